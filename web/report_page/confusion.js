// The confusion matrix: a picture with numbers on hover, and its largest entries in words.
"use strict";

// Rows are the classes of the ground truth, columns those that occur anywhere; `at` is a place in both.
const matrix = {
  rows: [],
  columns: [],
  counts: new Map(),
  totals: new Map(),
  labelled: 0,
  cell: 0,
  margin: 0,
  at: null,
};
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
  matrix.columns = report.classes.names.map((_, id) => id).filter((id) => present.has(id));
  matrix.rows = matrix.columns.filter((id) => truth.has(id));
  const canvas = byId("matrix");
  canvas.setAttribute(
    "aria-label",
    `Confusion matrix of ${matrix.rows.length} classes, each row in percent of its ground truth`,
  );
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
  const weak = (text) => element("span", { className: "weak" }, text);
  const what = element(
    "span",
    {},
    swatch(truth),
    nameOf(truth),
    weak(" taken for "),
    swatch(prediction),
    nameOf(prediction),
  );
  const amounts = element(
    "span",
    { className: "amounts" },
    element("b", {}, `${share(pixels, matrix.labelled)} %`),
    weak(" of all pixels, "),
    `${share(pixels, matrix.totals.get(truth))} %`,
    weak(` of ${nameOf(truth)}`),
  );
  return element(
    "li",
    {},
    element("button", { type: "button", onclick: () => filterByPair(truth, prediction) }, what, amounts),
  );
}

/** Draws the picture anew, as wide as there is room. */
function drawMatrix() {
  const canvas = byId("matrix");
  const context = canvas.getContext("2d");
  const width = byId("matrix-frame").clientWidth;
  const count = Math.max(1, matrix.columns.length);
  const size = Math.max(8, Math.min(12, (width / count) * 0.5));
  const font = `${size}px ${colorNamed("--sans")}`;
  context.font = font;
  const named = width / count >= 11;
  const longest = Math.max(0, ...matrix.columns.map((id) => context.measureText(nameOf(id)).width));
  matrix.margin = named ? Math.min(longest + 8, width / 4) : 2;
  matrix.cell = Math.min(56, (width - matrix.margin - 2) / count);
  const height = matrix.margin + matrix.cell * matrix.rows.length + 2;
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.height = `${height}px`;
  context.scale(ratio, ratio);
  context.font = font;
  context.textBaseline = "middle";
  drawCells(context);
  if (named) drawNames(context, font);
  if (matrix.at) {
    const [row, column] = matrix.at;
    context.strokeStyle = colorNamed("--ink");
    context.lineWidth = 2;
    context.strokeRect(
      matrix.margin + column * matrix.cell,
      matrix.margin + row * matrix.cell,
      matrix.cell,
      matrix.cell,
    );
  }
}

function colorNamed(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name);
}

function drawCells(context) {
  const { cell, margin, rows, columns } = matrix;
  const [page, right, wrong] = ["--page", "--accent", "--bad"].map(colorNamed);
  context.textAlign = "center";
  rows.forEach((row, y) => {
    columns.forEach((column, x) => {
      const part = (matrix.counts.get(row * 256 + column) || 0) / matrix.totals.get(row);
      if (!part) return;
      const [left, top, bad] = [margin + x * cell, margin + y * cell, isWrong(row, column)];
      const strength = bad ? Math.min(1, 0.06 + 1.3 * Math.sqrt(part)) : 0.15 + 0.85 * part;
      context.fillStyle = mixed(bad ? wrong : right, page, strength);
      context.fillRect(left, top, cell, cell);
      if (cell < 21 || part < 0.005) return;
      context.fillStyle = legibleOn(context.fillStyle);
      context.fillText((100 * part).toFixed(0), left + cell / 2, top + cell / 2 + 0.5);
    });
  });
  context.strokeStyle = colorNamed("--line");
  context.strokeRect(margin, margin, cell * columns.length, cell * rows.length);
}

/** Color channels of #rrggbb, 0 to 255. */
function channels(color) {
  return [1, 3, 5].map((place) => parseInt(color.trim().slice(place, place + 2), 16));
}

/** A color laid over another one, as #rrggbb. */
function mixed(color, below, strength) {
  const [over, under] = [channels(color), channels(below)];
  const parts = over.map((value, place) => Math.round(strength * value + (1 - strength) * under[place]));
  return `#${parts.map((value) => value.toString(16).padStart(2, "0")).join("")}`;
}

/** Black or white, whichever has more contrast: one of them has 4.5, by the relative luminance of WCAG 2.2. */
function legibleOn(color) {
  const linear = channels(color).map((value) => {
    const part = value / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 ? "#000000" : "#ffffff";
}

function drawNames(context, font) {
  const { cell, margin, rows, columns } = matrix;
  const [ink, weak] = [colorNamed("--ink"), colorNamed("--weak")];
  context.fillStyle = ink;
  context.textAlign = "right";
  rows.forEach((id, place) => {
    context.font = matrix.at && matrix.at[0] === place ? `600 ${font}` : font;
    context.fillText(cut(context, nameOf(id), margin - 6), margin - 5, margin + (place + 0.5) * cell);
  });
  context.textAlign = "left";
  columns.forEach((id, place) => {
    context.font = matrix.at && matrix.at[1] === place ? `600 ${font}` : font;
    context.fillStyle = matrix.totals.has(id) ? ink : weak;
    context.save();
    context.translate(margin + (place + 0.5) * cell, margin - 5);
    context.rotate(-Math.PI / 2);
    context.fillText(cut(context, nameOf(id), margin - 6), 0, 0);
    context.restore();
  });
}

/** A text that is at most `width` wide. */
function cut(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  const share = width / context.measureText(text).width;
  return `${[...text].slice(0, Math.max(1, Math.floor(share * [...text].length) - 1)).join("")}…`;
}

/** The [row, column] under the pointer, or null. */
function cellAt(event) {
  const box = byId("matrix").getBoundingClientRect();
  const column = Math.floor((event.clientX - box.left - matrix.margin) / matrix.cell);
  const row = Math.floor((event.clientY - box.top - matrix.margin) / matrix.cell);
  const inside = row >= 0 && row < matrix.rows.length && column >= 0 && column < matrix.columns.length;
  return inside ? [row, column] : null;
}

function pointAt(place) {
  matrix.at = place;
  if (place) {
    const [truth, prediction] = [matrix.rows[place[0]], matrix.columns[place[1]]];
    const pixels = matrix.counts.get(truth * 256 + prediction) || 0;
    const part = percent(pixels / matrix.totals.get(truth));
    const verb = isWrong(truth, prediction) ? "taken for" : "recognised as";
    byId("matrix-text").textContent =
      `${nameOf(truth)} ${verb} ${nameOf(prediction)}: ${part} % of ${nameOf(truth)}, ` +
      `${percent(pixels / matrix.labelled)} % of all pixels, ${integer(pixels)} pixels`;
  }
  drawMatrix();
}

function moveInMatrix(event) {
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if ((!step && event.key !== "Enter") || !matrix.rows.length) return;
  event.preventDefault(); // of Enter too, or it presses what gets the focus
  if (!step) return void chooseCell(matrix.at);
  const within = (place, list) => Math.max(0, Math.min(list.length - 1, place));
  const [row, column] = matrix.at || [-step[0], -step[1]];
  pointAt([within(row + step[0], matrix.rows), within(column + step[1], matrix.columns)]);
}

function chooseCell(place) {
  if (!place) return;
  const [truth, prediction] = [matrix.rows[place[0]], matrix.columns[place[1]]];
  if (isWrong(truth, prediction)) filterByPair(truth, prediction);
  else filterByClass(truth);
}
