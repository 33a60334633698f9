// What the other scripts need: the data, elements, numbers in words. Names from data become text, never markup.
"use strict";

const report = window.reportData;

/** Makes an element; properties that it has are set, all others become attributes. */
function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function byId(id) {
  return document.getElementById(id);
}

/** A fraction in percent, rounded as Python's {:.2f}, so that page and console agree in the last digit. */
function percent(fraction) {
  if (fraction === null || Number.isNaN(fraction)) return "–";
  return fixed(100 * fraction);
}

/** Two digits; of two that are equally near, the even one, where toFixed takes the larger. */
function fixed(value) {
  const tie = Math.abs(value) % 0.5 === 0.125;
  return (tie ? value - Math.sign(value) * 0.001 : value).toFixed(2);
}

/** A small share in percent, with as many digits as it takes to be no zero. */
function share(part, whole) {
  if (!whole) return "–";
  const value = (100 * part) / whole;
  return value >= 9.995 ? value.toFixed(1) : value >= 0.01 ? value.toFixed(2) : value.toPrecision(1);
}

function integer(count) {
  return count.toLocaleString("en-US");
}

/** A difference of two fractions in percent: with a sign, and "better" or "worse" for those who see no color. */
function difference(now, before) {
  if (now === null || before === null) return element("span", { className: "difference" }, "–");
  const points = 100 * now - 100 * before;
  const text = points.toFixed(2);
  const flat = text === "0.00" || text === "-0.00";
  const kind = flat ? "same" : points > 0 ? "better" : "worse";
  const shown = flat ? "±0.00" : points > 0 ? `▲ ${text}` : `▼ ${text.replace("-", "")}`;
  const spoken = flat ? "the same" : `${kind} by ${text.replace("-", "")} points`;
  return element("span", { className: `difference ${kind}`, title: spoken }, shown);
}

function colorOf(id) {
  const [red, green, blue] = report.classes.colors[id];
  return `rgb(${red}, ${green}, ${blue})`;
}

function swatch(id) {
  const made = element("span", { className: "swatch", "aria-hidden": "true" });
  made.style.backgroundColor = colorOf(id);
  return made;
}

/** Calls visit(truth, prediction, pixels) for what is not 0 in a confusion matrix. */
function eachPair(confusion, visit) {
  for (let place = 0; place < confusion.length; place += 3) {
    visit(confusion[place], confusion[place + 1], confusion[place + 2]);
  }
}

/** Whether a prediction counts as wrong; classes that the labels do not tell apart have one group. */
function isWrong(truth, prediction) {
  return report.classes.groups[truth] !== report.classes.groups[prediction];
}

/** Counts of a confusion matrix: labelled and wrong pixels; of each class its pixels, its wrong ones, and its IoU. */
function countPixels(confusion) {
  const groups = report.classes.groups;
  const counts = { labelled: 0, wrong: 0, truth: new Map(), wrongOf: new Map(), iou: new Map(), errors: [] };
  const right = new Map();
  const missed = new Map();
  const extra = new Map();
  const add = (map, key, pixels) => map.set(key, (map.get(key) || 0) + pixels);
  eachPair(confusion, (truth, prediction, pixels) => {
    counts.labelled += pixels;
    add(counts.truth, truth, pixels);
    if (!isWrong(truth, prediction)) {
      add(right, groups[truth], pixels);
      return;
    }
    counts.wrong += pixels;
    add(counts.wrongOf, truth, pixels);
    add(counts.wrongOf, prediction, pixels);
    add(missed, groups[truth], pixels);
    add(extra, groups[prediction], pixels);
    counts.errors.push({ truth, prediction, pixels });
  });
  for (const id of new Set([...counts.truth.keys(), ...counts.wrongOf.keys()])) {
    const group = groups[id];
    const hit = right.get(group) || 0;
    counts.iou.set(id, hit / (hit + (missed.get(group) || 0) + (extra.get(group) || 0)));
  }
  counts.errors.sort((a, b) => b.pixels - a.pixels);
  return counts;
}

function nameOf(id) {
  return report.classes.names[id];
}

/** The last part of a path. */
function fileName(path) {
  return path.split(/[/\\]/).filter(Boolean).pop() || path;
}

function frameName(frame) {
  return frame.folder && !frame.name.startsWith(`${frame.folder}_`) ? `${frame.folder}/${frame.name}` : frame.name;
}

function pictureOf(index, kind) {
  return `pictures/${String(index + 1).padStart(4, "0")}_${kind}.webp`;
}
