// The classes: IoU as bars, sorted by a click on a column's head; a click on a class filters the frames.
"use strict";

const classOrder = { column: "iou", down: false };

function showClasses() {
  const body = byId("classes-body");
  if (report.other) document.querySelector("#classes .hint").append(` The mark on a bar is ${otherName()}.`);
  const table = element("table", { id: "class-table", className: report.other ? "with-other" : "", role: "table" });
  table.append(element("caption", { className: "spoken" }, "IoU and share of the labelled pixels of each class"));
  table.append(element("thead", {}, element("tr", { role: "row" }, ...classHeads())), element("tbody"));
  const absent = report.classes.names.filter((_, id) => report.scores.iou[id] === null);
  const box = element("div", {}, table);
  if (absent.length) {
    const those = absent.length === 1 ? "1 class" : `${absent.length} classes`;
    box.append(
      element(
        "p",
        { className: "hint absent" },
        `Neither in the ground truth nor predicted, ${those}: ${absent.join(", ")}`,
      ),
    );
  }
  body.append(box);
  const side = element("div", { className: "side" });
  const { categories, joined } = report.scores;
  if (categories.length) side.append(meanTable("Categories", "categories", categories.keys()));
  if (joined.length) {
    const { groups, unions } = report.classes;
    side.append(
      meanTable(
        "Joined",
        "joined",
        unions.map(([id]) => groups[id]),
      ),
    );
    for (const [id, members] of unions) {
      side.append(
        element("p", { className: "hint" }, `${nameOf(id)} in the labels: any of ${members.map(nameOf).join(", ")}`),
      );
    }
  }
  if (side.childElementCount) body.append(side);
  fillClasses();
}

function classHeads() {
  const columns = [
    ["name", "Class"],
    ["iou", "IoU, %"],
    ["pixels", "Pixels, %"],
  ];
  if (report.other) columns.splice(2, 0, ["difference", "Change"]);
  return columns.map(([column, label]) => {
    const button = element("button", { type: "button", onclick: () => sortClasses(column) }, label);
    return element("th", { scope: "col", role: "columnheader", className: column, "data-column": column }, button);
  });
}

function sortClasses(column) {
  // IoU and change begin with the worst, pixels with the most.
  classOrder.down = classOrder.column === column ? !classOrder.down : column === "pixels";
  classOrder.column = column;
  fillClasses();
}

function fillClasses() {
  const total = countPixels(report.confusion);
  const rows = report.classes.names.map((name, id) => {
    const iou = report.scores.iou[id];
    const before = report.other ? report.other.scores.iou[id] : null;
    const change = iou === null || before === null ? null : iou - before;
    return { id, name, iou, before, difference: change, pixels: total.truth.get(id) || 0 };
  });
  const key = classOrder.column;
  const sign = classOrder.down ? -1 : 1;
  rows.sort((a, b) => {
    if (key === "name") return sign * a.name.localeCompare(b.name);
    if ((a[key] === null) !== (b[key] === null)) return a[key] === null ? 1 : -1; // what has no number is always last
    return sign * (a[key] - b[key]) || a.id - b.id;
  });
  const body = document.querySelector("#class-table tbody");
  body.replaceChildren(...rows.filter((row) => row.iou !== null).map((row) => classRow(row, total.labelled)));
  for (const head of document.querySelectorAll("#class-table th[data-column]")) {
    const sorted = head.dataset.column === key ? (classOrder.down ? "descending" : "ascending") : "none";
    head.setAttribute("aria-sort", sorted);
  }
  markClass();
}

function classRow(row, labelled) {
  const bar = element("span", { className: "bar", "aria-hidden": "true" }, element("span"));
  bar.firstChild.style.width = `${100 * (row.iou || 0)}%`;
  if (row.before !== null) {
    const mark = element("i", { title: "the other report" });
    mark.style.left = `${100 * row.before}%`;
    bar.append(mark);
  }
  const name = element(
    "span",
    {},
    row.name,
    row.pixels ? null : element("span", { className: "weak" }, " only predicted"),
  );
  const button = element("button", { type: "button", "data-class": row.id }, swatch(row.id), name);
  return element(
    "tr",
    { onclick: () => filterByClass(row.id), role: "row" },
    element("th", { scope: "row", role: "rowheader" }, button),
    element(
      "td",
      { className: "iou", role: "cell" },
      element("div", {}, bar, element("span", { className: "value" }, percent(row.iou))),
    ),
    report.other ? element("td", { className: "change", role: "cell" }, difference(row.iou, row.before)) : null,
    element("td", { className: "share", role: "cell" }, labelled ? fixed((100 * row.pixels) / labelled) : "–"),
  );
}

/** Shows which class the frames are filtered by. */
function markClass() {
  for (const button of document.querySelectorAll("#class-table button[data-class]")) {
    const chosen = filter.kind === "class" && Number(button.dataset.class) === filter.truth;
    button.setAttribute("aria-pressed", String(chosen));
    button.closest("tr").classList.toggle("chosen", chosen);
  }
}

/** A table of those scores at some places of a list. */
function meanTable(title, key, places) {
  const table = element("table", { className: "means" }, element("caption", {}, title));
  const body = element("tbody");
  for (const place of places) {
    const [name, iou] = report.scores[key][place];
    const before = report.other ? report.other.scores[key][place][1] : null;
    body.append(
      element(
        "tr",
        {},
        element("th", { scope: "row" }, name),
        element("td", {}, percent(iou)),
        report.other ? element("td", { className: "change" }, difference(iou, before)) : null,
      ),
    );
  }
  table.append(body);
  return table;
}
