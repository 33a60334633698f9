// Curves of the training, as SVG.
"use strict";

const CHARTS = [
  { title: "Loss", unit: "", factor: 1, digits: 4, columns: { train_loss: "training", val_loss: "validation" } },
  {
    title: "Validation scores, %",
    unit: " %",
    factor: 100,
    digits: 2,
    columns: {
      pixel_accuracy: "pixel accuracy",
      category_miou: "category mIoU",
      class_miou: "class mIoU",
      joined_miou: "joined mIoU",
    },
  },
  { title: "Learning rate", unit: "", factor: 1, digits: 6, columns: { lr: "learning rate" } },
];
const [CHART_WIDTH, CHART_HEIGHT] = [360, 190];
const PLOT = { left: 44, right: 8, top: 8, bottom: 22 };

function showCurves() {
  const curves = report.curves;
  byId("curves-link").hidden = !curves;
  if (!curves) return;
  byId("curves").hidden = false;
  const ends = curves.epochs.length === 1 ? "1 epoch" : `${curves.epochs.length} epochs`;
  byId("curves-file").textContent = curves.problem
    ? `${curves.file}, which lies beside the weights, could not be read: ${curves.problem}`
    : `${ends}, from ${curves.file} beside the weights`;
  const values = new Map(curves.columns);
  for (const chart of CHARTS) {
    const lines = Object.entries(chart.columns)
      .filter(([name]) => values.has(name))
      .map(([name, label]) => ({
        label,
        values: values.get(name).map((value) => (value === null ? null : value * chart.factor)),
      }));
    if (lines.length) byId("curves-body").append(drawChart(chart, lines, curves.epochs));
  }
}

function svg(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function drawChart(chart, lines, epochs) {
  const all = lines.flatMap((line) => line.values).filter((value) => value !== null);
  let [low, high] = all.reduce(
    ([low, high], value) => [Math.min(low, value), Math.max(high, value)],
    [Infinity, -Infinity],
  );
  if (chart.title === "Learning rate") low = 0;
  if (high === low) [low, high] = [low - 0.5, high + 0.5];
  const [first, last] = [epochs[0], epochs[epochs.length - 1]];
  const x = (epoch) =>
    PLOT.left + ((epoch - first) / Math.max(1, last - first)) * (CHART_WIDTH - PLOT.left - PLOT.right);
  const y = (value) =>
    CHART_HEIGHT - PLOT.bottom - ((value - low) / (high - low)) * (CHART_HEIGHT - PLOT.top - PLOT.bottom);
  const words = lines
    .map((line) => `${line.label} ends at ${lastOf(line.values).toFixed(chart.digits)}${chart.unit}`)
    .join(", ");
  const picture = svg("svg", {
    viewBox: `0 0 ${CHART_WIDTH} ${CHART_HEIGHT}`,
    role: "img",
    "aria-label": `${chart.title} from epoch ${first} to ${last}: ${words}`,
  });
  for (const value of ticks(low, high)) {
    picture.append(
      svg("line", { class: "grid", x1: PLOT.left, x2: CHART_WIDTH - PLOT.right, y1: y(value), y2: y(value) }),
      svg(
        "text",
        { class: "tick", x: PLOT.left - 6, y: y(value) + 3, "text-anchor": "end" },
        String(Number(value.toPrecision(4))),
      ),
    );
  }
  for (const [epoch, anchor] of last > first
    ? [
        [first, "start"],
        [last, "end"],
      ]
    : [[first, "start"]]) {
    picture.append(
      svg("text", { class: "tick", x: x(epoch), y: CHART_HEIGHT - 6, "text-anchor": anchor }, `epoch ${epoch}`),
    );
  }
  lines.forEach((line, place) => {
    const runs = line.values.map((value, index) =>
      value === null ? "" : `${x(epochs[index]).toFixed(1)},${y(value).toFixed(1)}`,
    );
    for (const run of runs.join(" ").split(/ {2,}/)) {
      const points = run.trim();
      if (points.includes(" ")) picture.append(svg("polyline", { class: `curve curve${place}`, points }));
      else if (points)
        picture.append(
          svg("circle", { class: `curve curve${place}`, cx: points.split(",")[0], cy: points.split(",")[1], r: 2 }),
        );
    }
  });
  const cursor = svg("line", { class: "cursor", y1: PLOT.top, y2: CHART_HEIGHT - PLOT.bottom });
  picture.append(cursor);
  const readout = element("p", { className: "readout" });
  const tell = (index) => {
    cursor.setAttribute("x1", x(epochs[index]));
    cursor.setAttribute("x2", x(epochs[index]));
    readout.textContent = `epoch ${epochs[index]}`;
    lines.forEach((line, place) => {
      const value = line.values[index];
      const key = svg(
        "svg",
        { class: "key", viewBox: "0 0 22 8", "aria-hidden": "true" },
        svg("line", { class: `curve curve${place}`, x1: 0, x2: 22, y1: 4, y2: 4 }),
      );
      const number = value === null ? "–" : value.toFixed(chart.digits);
      readout.append(element("span", {}, key, ` ${line.label} ${number}`));
    });
  };
  const scored = epochs.indexOf(report.about.epoch); // of these weights
  tell(scored < 0 ? epochs.length - 1 : scored);
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * CHART_WIDTH;
    const index = epochs.reduce(
      (best, epoch, place) => (Math.abs(x(epoch) - at) < Math.abs(x(epochs[best]) - at) ? place : best),
      0,
    );
    tell(index);
  });
  return element("figure", {}, element("figcaption", {}, chart.title), picture, readout);
}

function lastOf(values) {
  return values.filter((value) => value !== null).pop();
}

/** Round values between two, about five. */
function ticks(low, high) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const first = Math.ceil(low / step);
  return [0, 1, 2, 3, 4, 5].map((more) => (first + more) * step).filter((value) => value <= high);
}
