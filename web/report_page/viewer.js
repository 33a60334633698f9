// One frame, large: views, a slider between two of them, and the class under the pointer.
"use strict";

// Each view is a stack of pictures: a faint or plain one below, and those on top, which a slider may divide.
const VIEWS = [
  { name: "Overlay", below: "input", left: "truth", right: "prediction" },
  { name: "Errors", below: "input", faint: true, right: "errors", plain: true },
  { name: "Input", below: "input" },
  { name: "Ground truth", right: "truth", plain: true },
  { name: "Prediction", right: "prediction", plain: true },
];
const OTHER_VIEWS = [
  { name: "Both predictions", below: "input", left: "other_prediction", right: "prediction", two: true },
  { name: "Both errors", below: "input", faint: true, left: "other_errors", right: "errors", plain: true, two: true },
];
const SPOKEN = {
  input: "input",
  truth: "ground truth",
  prediction: "prediction",
  errors: "errors",
  other_prediction: "the other prediction",
  other_errors: "the other errors",
};
const viewer = { index: 0, view: 0, maps: null };

function prepareViewer() {
  if (report.other) VIEWS.push(...OTHER_VIEWS);
  VIEWS.forEach((view, place) => {
    const button = element(
      "button",
      { type: "button", title: `key ${place + 1}`, onclick: () => showView(place) },
      view.name,
    );
    byId("views").append(button);
  });
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("close").addEventListener("click", () => byId("viewer").close());
  byId("slider").addEventListener("input", slide);
  for (const kind of ["pointermove", "pointerdown"]) {
    byId("stage").addEventListener(kind, nameUnder);
    byId("stage").addEventListener(kind, drag);
  }
  byId("stage").addEventListener("pointerleave", () => byId("pointed").replaceChildren(HINT));
  document.addEventListener("keydown", takeKey); // a button that ends up disabled loses the focus to the page
  byId("viewer").addEventListener("click", (event) => {
    if (event.target === byId("viewer")) byId("viewer").close(); // beside it
  });
}

const HINT = "Point at the picture to read the classes there.";

function openViewer(index) {
  viewer.index = index;
  if (!byId("viewer").open) byId("viewer").showModal();
  byId("viewer-title").focus();
  showFrame();
}

function step(by) {
  const place = shown.indexOf(viewer.index) + by;
  if (place < 0 || place >= shown.length) return;
  viewer.index = shown[place];
  showFrame();
}

function takeKey(event) {
  const inSlider = event.target === byId("slider");
  if (!byId("viewer").open || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === "ArrowLeft" && !inSlider) step(-1);
  else if (event.key === "ArrowRight" && !inSlider) step(1);
  else if (/^[1-9]$/.test(event.key) && VIEWS[event.key - 1]) showView(event.key - 1);
  else return;
  event.preventDefault();
}

function showFrame() {
  const card = cards[viewer.index];
  const place = shown.indexOf(viewer.index);
  byId("viewer-title").replaceChildren(card.name, element("small", {}, ` ${place + 1} of ${shown.length}`));
  byId("previous").disabled = place <= 0;
  byId("next").disabled = place >= shown.length - 1;
  byId("viewer-side").replaceChildren(...describeFrame(card));
  viewer.maps = null;
  unpackLabels(viewer.index);
  byId("pointed").replaceChildren(HINT);
  showView(viewer.view);
}

function showView(place) {
  viewer.view = place;
  const view = VIEWS[place];
  const frame = report.frames[viewer.index];
  [...byId("views").children].forEach((button, index) => button.setAttribute("aria-pressed", String(index === place)));
  const stage = byId("stage");
  stage.className = view.plain ? "" : "mixed";
  stage.style.aspectRatio = `${frame.shown[1]} / ${frame.shown[0]}`;
  byId("stage-box").style.setProperty("--ratio", frame.shown[1] / frame.shown[0]);
  const layers = [];
  for (const [part, kind] of [
    ["below", view.below],
    ["left", view.left],
    ["right", view.right],
  ]) {
    if (!kind) continue;
    const image = picture(viewer.index, kind, frame, `${SPOKEN[kind]} of ${cards[viewer.index].name}`, false);
    image.className = `${part} ${part === "below" && view.faint ? "faint" : ""} ${kind === "input" ? "" : "labels"}`;
    layers.push(image);
  }
  if (view.left) {
    layers.push(element("span", { id: "divider", "aria-hidden": "true" }));
    const tags = view.two ? [otherName(), fileName(report.about.weights)] : [SPOKEN[view.left], SPOKEN[view.right]];
    layers.push(
      element("span", { className: "tag left-tag" }, tags[0]),
      element("span", { className: "tag right-tag" }, tags[1]),
    );
    byId("slider").setAttribute("aria-label", `between ${SPOKEN[view.left]} and ${SPOKEN[view.right]}`);
  }
  stage.replaceChildren(...layers);
  byId("slider").hidden = !view.left;
  slide();
}

/** Divides the picture: left of the slider one, right of it the other. */
function slide() {
  const at = Number(byId("slider").value);
  byId("stage").style.setProperty("--at", `${at}%`);
  const left = VIEWS[viewer.view].left;
  if (left) byId("slider").setAttribute("aria-valuetext", `${at} % ${SPOKEN[left]}`);
}

/** Moves the slider with a pointer that is pressed on the picture. */
function drag(event) {
  if (!(event.buttons & 1) || byId("slider").hidden) return;
  const box = byId("stage").getBoundingClientRect();
  byId("slider").value = (100 * (event.clientX - box.left)) / box.width;
  slide();
}

function describeFrame(card) {
  const { counts, frame } = card;
  const facts = element("p", { className: "facts" });
  if (counts.labelled) {
    facts.append(
      element("b", {}, percent(frame.iou)),
      " % mean IoU",
      report.other ? difference(frame.iou, card.before) : "",
      element("br"),
      `${integer(counts.wrong)} of ${integer(counts.labelled)} labelled pixels wrong`,
      element("br"),
    );
  } else facts.append("no labelled pixel", element("br"));
  facts.append(`${frame.size[1]} × ${frame.size[0]} pixels`);
  const table = element(
    "table",
    {},
    element(
      "thead",
      {},
      element("tr", {}, ...["Class", "IoU, %", "wrong"].map((text) => element("th", { scope: "col" }, text))),
    ),
  );
  const body = element("tbody");
  const ids = [...counts.iou.keys()].sort((a, b) => (counts.wrongOf.get(b) || 0) - (counts.wrongOf.get(a) || 0));
  for (const id of ids) {
    const absent = !counts.truth.has(id);
    body.append(
      element(
        "tr",
        { title: absent ? "not in the ground truth of this frame" : "" },
        element(
          "th",
          { scope: "row" },
          element(
            "div",
            {},
            swatch(id),
            element("span", {}, nameOf(id), absent ? element("span", { className: "weak" }, " only predicted") : null),
          ),
        ),
        element("td", {}, percent(counts.iou.get(id))),
        element("td", {}, integer(counts.wrongOf.get(id) || 0)),
      ),
    );
  }
  table.append(body);
  const words = element("ol", { className: "errors" });
  for (const { truth, prediction, pixels } of counts.errors.slice(0, 6)) {
    words.append(
      element(
        "li",
        {},
        nameOf(truth),
        element("span", { className: "weak" }, " taken for "),
        nameOf(prediction),
        `: ${share(pixels, counts.labelled)} %`,
      ),
    );
  }
  return [
    facts,
    counts.iou.size ? table : "",
    counts.errors.length ? element("h3", {}, "Largest confusions") : "",
    words,
  ];
}

/** Reads what base 64 and zlib hold: of every second row and column, the train ids of truth and prediction. */
async function unpackLabels(index) {
  const unpack = async (packed) => {
    const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
    return new Uint8Array(
      await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer(),
    );
  };
  if (!window.DecompressionStream) return; // only the names under the pointer are missing then
  const own = await unpack(report.frames[index].labels);
  const other = report.other ? await unpack(report.other.frames[index].labels) : null;
  if (index === viewer.index) viewer.maps = { own, other };
}

/** Names the classes under the pointer. */
function nameUnder(event) {
  if (!viewer.maps) return;
  const box = byId("stage").getBoundingClientRect();
  const [across, down] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  if (across < 0 || across >= 1 || down < 0 || down >= 1) return;
  const read = (map, [height, width], layer) => {
    const [rows, columns] = [Math.ceil(height / 2), Math.ceil(width / 2)];
    return map[(layer * rows + Math.floor(down * rows)) * columns + Math.floor(across * columns)];
  };
  const size = report.frames[viewer.index].shown;
  const truth = read(viewer.maps.own, size, 0);
  const words = [
    ["ground truth", truth],
    ["prediction", read(viewer.maps.own, size, 1)],
  ];
  if (viewer.maps.other) words.push(["other", read(viewer.maps.other, report.other.frames[viewer.index].shown, 1)]);
  byId("pointed").replaceChildren(
    ...words.map(([label, id]) => {
      const known = id < report.classes.names.length;
      const wrong = label !== "ground truth" && truth < report.classes.names.length && isWrong(truth, id);
      return element(
        "span",
        {},
        element("span", { className: "weak" }, `${label} `),
        known ? swatch(id) : "",
        known ? nameOf(id) : "not labelled",
        wrong ? element("b", { className: "bad" }, " wrong") : "",
      );
    }),
  );
}
