// The list of frames: ordered, filtered by class, confusion or name. Cards are made once and moved.
"use strict";

const PANELS = [
  ["input", "Input"],
  ["truth", "Ground truth"],
  ["prediction", "Prediction"],
  ["errors", "Errors"],
];
const filter = { kind: "none", truth: null, prediction: null };
const cards = [];
let shown = []; // the frames of the list in their order, which the viewer leads through

function showFrames() {
  report.frames.forEach((frame, index) => {
    const counts = countPixels(frame.confusion);
    const before = report.other ? report.other.frames[index].iou : null;
    const change = frame.iou === null || before === null ? null : frame.iou - before;
    cards.push({ index, frame, counts, before, change, name: frameName(frame) });
  });
  for (const card of cards) makeCard(card);
  for (const [value, label] of orders()) byId("order").append(element("option", { value }, label));
  byId("order").addEventListener("change", listFrames);
  byId("search").addEventListener("input", listFrames);
  byId("clear").addEventListener("click", () => setFilter("none"));
  byId("legend").append(...report.classes.names.map((name, id) => element("li", {}, swatch(id), name)));
  byId("legend").append(
    element("li", {}, element("span", { className: "swatch none", "aria-hidden": "true" }), "not labelled, or right"),
  );
  listFrames();
}

function orders() {
  const beside = [
    ["lost", "lost most first"],
    ["gained", "gained most first"],
  ];
  return [
    ["worst", "worst mean IoU first"],
    ["best", "best mean IoU first"],
    ...(report.other ? beside : []),
    ["wrong", "most wrong pixels first"],
    ["name", "by name"],
  ];
}

function makeCard(card) {
  const { frame, index } = card;
  const score = element("span", { className: "score" });
  const button = element(
    "button",
    { type: "button", className: "open", onclick: () => openViewer(index) },
    element("span", { className: "name" }, card.name),
    score,
  );
  const panels = element("div", { className: "panels" });
  for (const [kind, label] of PANELS) {
    const stack = element("span", { className: `stack ${kind}`, onclick: () => openViewer(index) });
    stack.style.setProperty("--ratio", frame.shown[1] / frame.shown[0]);
    if (kind === "errors") stack.append(picture(index, "input", frame, ""));
    stack.append(picture(index, kind, frame, `${label} of ${card.name}`));
    panels.append(element("figure", {}, stack, element("figcaption", {}, label)));
  }
  card.score = score;
  card.node = element("li", { className: "frame", "data-index": index }, button, panels);
}

function picture(index, kind, frame, alt, lazy = true) {
  const made = element("img", { alt, width: frame.shown[1], height: frame.shown[0], decoding: "async" });
  if (lazy) made.loading = "lazy"; // before src, or it is fetched at once
  made.src = pictureOf(index, kind);
  return made;
}

/** What a frame has of the filter: wrong pixels of a class, or pixels of a confusion. */
function amount(card) {
  if (filter.kind === "class") return card.counts.wrongOf.get(filter.truth) || 0;
  const same = (error) => error.truth === filter.truth && error.prediction === filter.prediction;
  return card.counts.errors.find(same)?.pixels || 0;
}

function filterByClass(id) {
  setFilter("class", id);
}

function filterByPair(truth, prediction) {
  setFilter("pair", truth, prediction);
}

function setFilter(kind, truth = null, prediction = null) {
  Object.assign(filter, { kind, truth, prediction });
  byId("order").querySelector("option[value=filter]")?.remove();
  byId("clear").hidden = kind === "none";
  if (kind !== "none") {
    const what = kind === "class" ? nameOf(truth) : `${nameOf(truth)} taken for ${nameOf(prediction)}`;
    byId("order").prepend(
      element(
        "option",
        { value: "filter" },
        kind === "class" ? `most wrong pixels of ${nameOf(truth)}` : "most such pixels",
      ),
    );
    byId("order").value = "filter";
    byId("clear").replaceChildren(what, element("span", { "aria-hidden": "true" }, " ×"));
    byId("clear").setAttribute("aria-label", `show all frames again, not only those with ${what}`);
  }
  markClass();
  listFrames();
  // By keys one goes on where one looks: beside what the filter changed, not where it was chosen.
  byId(kind === "none" ? "order" : "clear").focus({ preventScroll: true });
  if (kind !== "none")
    byId("frames").scrollIntoView({
      behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth",
    });
}

function listFrames() {
  const text = byId("search").value.trim().toLowerCase();
  const kept = cards.filter(
    (card) => (!text || card.name.toLowerCase().includes(text)) && (filter.kind === "none" || amount(card) > 0),
  );
  const order = byId("order").value;
  const keys = {
    worst: (card) => card.frame.iou,
    best: (card) => (card.frame.iou === null ? null : -card.frame.iou),
    wrong: (card) => -card.counts.wrong,
    lost: (card) => card.change,
    gained: (card) => (card.change === null ? null : -card.change),
    filter: (card) => -amount(card),
  };
  kept.sort((a, b) => {
    if (order === "name") return a.name.localeCompare(b.name, "en", { numeric: true });
    const [x, y] = [keys[order](a), keys[order](b)];
    if ((x === null) !== (y === null)) return x === null ? 1 : -1; // a frame without labels is always last
    return x - y || a.index - b.index;
  });
  shown = kept.map((card) => card.index);
  for (const card of kept) describe(card);
  byId("list").replaceChildren(...kept.map((card) => card.node));
  const all = integer(cards.length);
  byId("found").textContent =
    kept.length === cards.length
      ? `${all} ${cards.length === 1 ? "frame" : "frames"}`
      : `${integer(kept.length)} of ${all} frames`;
}

function describe(card) {
  const { counts, frame } = card;
  if (!counts.labelled) {
    card.score.replaceChildren("no labelled pixel");
    return;
  }
  const weak = (text) => element("span", { className: "weak" }, text);
  const parts = [element("b", {}, percent(frame.iou)), weak(" % mean IoU")];
  if (report.other) parts.push(difference(frame.iou, card.before));
  parts.push(weak(" · "), `${share(counts.wrong, counts.labelled)} %`, weak(" wrong"));
  if (filter.kind !== "none") {
    const what = filter.kind === "class" ? ` pixels wrong of ${nameOf(filter.truth)}` : " such pixels";
    parts.push(weak(" · "), integer(amount(card)), weak(what));
  }
  card.score.replaceChildren(...parts);
}
