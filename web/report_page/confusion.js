// The confusion matrix: a picture with numbers on hover, and its largest entries in words.
"use strict";

const matrix = { ids: [], counts: new Map(), totals: new Map(), labelled: 0, cell: 0, left: 0, top: 0, at: null };
const MOST_WORDS = 12;

function showConfusions() {
  const { truth, labelled, errors } = countPixels(report.confusion);
  matrix.totals = truth;
  matrix.labelled = labelled;
  const present = new Set();
  eachPair(report.confusion, (row, column, pixels) => {
    matrix.counts.set(row * 256 + column, pixels);
    present.add(row).add(column);
  });
  matrix.ids = report.classes.names.map((_, id) => id).filter((id) => present.has(id));
  const canvas = byId("matrix");
  canvas.setAttribute("aria-label", `Confusion matrix of ${matrix.ids.length} classes, each row in percent of its ground truth`);
  for (const error of errors.slice(0, MOST_WORDS)) byId("words").append(inWords(error));
  if (!errors.length) byId("words").append(element("li", {}, "none: every labelled pixel is right"));
  canvas.addEventListener("pointermove", (event) => pointAt(cellAt(event)));
  canvas.addEventListener("pointerleave", () => pointAt(null));
  canvas.addEventListener("click", (event) => chooseCell(cellAt(event)));
  canvas.addEventListener("keydown", moveInMatrix);
  new ResizeObserver(drawMatrix).observe(byId("matrix-frame"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawMatrix);
}

function inWords({ truth, prediction, pixels }) {
  return element(
    "li",
    {},
    element(
      "button",
      { type: "button", className: "words", onclick: () => filterByPair(truth, prediction) },
      swatch(truth), nameOf(truth), element("span", { className: "weak" }, " taken for "), swatch(prediction), nameOf(prediction),
      ": ", element("b", {}, `${share(pixels, matrix.labelled)} %`), element("span", { className: "weak" }, " of all pixels, "),
      `${share(pixels, matrix.totals.get(truth))} %`, element("span", { className: "weak" }, ` of ${nameOf(truth)}`),
    ),
  );
}

function drawMatrix() {
  const canvas = byId("matrix");
  const style = getComputedStyle(document.documentElement);
  const [ink, weak, right, wrong, line] = ["--ink", "--weak", "--accent", "--bad", "--line"].map((name) => style.getPropertyValue(name));
  const width = byId("matrix-frame").clientWidth;
  const count = matrix.ids.length;
  const context = canvas.getContext("2d");
  const font = `${style.getPropertyValue("--sans")}`;
  const size = Math.max(8, Math.min(12, (width / Math.max(count, 1)) * 0.5));
  context.font = `${size}px ${font}`;
  const named = width / Math.max(count, 1) >= 11;
  const longest = Math.max(0, ...matrix.ids.map((id) => context.measureText(nameOf(id)).width));
  const margin = named ? Math.min(longest + 8, width / 3) : 2;
  const cell = Math.min(44, (width - margin - 2) / Math.max(count, 1));
  Object.assign(matrix, { cell, left: margin, top: margin });
  const height = margin + cell * count + 2;
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.height = `${height}px`;
  context.scale(ratio, ratio);
  context.font = `${size}px ${font}`;
  context.textBaseline = "middle";
  matrix.ids.forEach((row, y) => {
    const total = matrix.totals.get(row) || 0;
    matrix.ids.forEach((column, x) => {
      const part = total ? (matrix.counts.get(row * 256 + column) || 0) / total : 0;
      const [left, top] = [margin + x * cell, margin + y * cell];
      if (part > 0) {
        context.globalAlpha = isWrong(row, column) ? Math.min(1, 0.06 + 1.3 * Math.sqrt(part)) : 0.15 + 0.85 * part;
        context.fillStyle = isWrong(row, column) ? wrong : right;
        context.fillRect(left, top, cell, cell);
        context.globalAlpha = 1;
      }
      if (cell >= 21 && part >= 0.005) {
        context.fillStyle = part > (isWrong(row, column) ? 0.3 : 0.55) ? style.getPropertyValue("--page") : ink;
        context.textAlign = "center";
        context.fillText((100 * part).toFixed(0), left + cell / 2, top + cell / 2 + 0.5);
      }
    });
  });
  context.strokeStyle = line;
  context.lineWidth = 1;
  context.strokeRect(margin, margin, cell * count, cell * count);
  if (named) {
    matrix.ids.forEach((id, place) => {
      const marked = matrix.at && (matrix.at[0] === place || matrix.at[1] === place);
      context.fillStyle = matrix.totals.get(id) ? ink : weak;
      const middle = margin + (place + 0.5) * cell;
      context.font = `${marked && matrix.at[0] === place ? "600 " : ""}${size}px ${font}`;
      context.textAlign = "right";
      context.fillText(nameOf(id), margin - 5, middle, margin - 6);
      context.save();
      context.translate(middle, margin - 5);
      context.rotate(-Math.PI / 2);
      context.font = `${marked && matrix.at[1] === place ? "600 " : ""}${size}px ${font}`;
      context.textAlign = "left";
      context.fillText(nameOf(id), 0, 0, margin - 6);
      context.restore();
    });
  }
  if (matrix.at) {
    context.strokeStyle = ink;
    context.lineWidth = 2;
    context.strokeRect(margin + matrix.at[1] * cell, margin + matrix.at[0] * cell, cell, cell);
  }
}

/** The [row, column] under the pointer, or null. */
function cellAt(event) {
  const box = byId("matrix").getBoundingClientRect();
  const column = Math.floor((event.clientX - box.left - matrix.left) / matrix.cell);
  const row = Math.floor((event.clientY - box.top - matrix.top) / matrix.cell);
  const inside = (place) => place >= 0 && place < matrix.ids.length;
  return inside(row) && inside(column) ? [row, column] : null;
}

function pointAt(place) {
  matrix.at = place;
  if (place) {
    const [truth, prediction] = [matrix.ids[place[0]], matrix.ids[place[1]]];
    const pixels = matrix.counts.get(truth * 256 + prediction) || 0;
    const total = matrix.totals.get(truth) || 0;
    const verb = isWrong(truth, prediction) ? "taken for" : "recognised as";
    byId("matrix-text").textContent = total
      ? `${nameOf(truth)} ${verb} ${nameOf(prediction)}: ${percent(pixels / total)} % of ${nameOf(truth)}, ` +
        `${percent(pixels / matrix.labelled)} % of all pixels, ${integer(pixels)} pixels`
      : `${nameOf(truth)} is not in the ground truth`;
  }
  drawMatrix();
}

function moveInMatrix(event) {
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (event.key === "Enter") chooseCell(matrix.at);
  if (!step) return;
  event.preventDefault();
  const last = matrix.ids.length - 1;
  const [row, column] = matrix.at || [-step[0], -step[1]];
  pointAt([row + step[0], column + step[1]].map((place) => Math.max(0, Math.min(last, place))));
}

function chooseCell(place) {
  if (place && isWrong(matrix.ids[place[0]], matrix.ids[place[1]])) filterByPair(matrix.ids[place[0]], matrix.ids[place[1]]);
  else if (place) filterByClass(matrix.ids[place[0]]);
}
