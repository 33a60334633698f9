// The top of the page: what was scored, and the means.
"use strict";

function showSummary() {
  const about = report.about;
  const other = report.other;
  const title = `${fileName(about.weights)} on ${fileName(about.data)}, ${about.split}`;
  document.title = `${percent(report.scores.class_miou)} % – ${title}`;
  byId("title").textContent = fileName(about.weights);
  const frames = report.frames.length === 1 ? "1 frame" : `${integer(report.frames.length)} frames`;
  const rest = other ? `, beside ${otherName()}` : "";
  byId("subtitle").textContent =
    `${frames} of ${fileName(about.data)}, ${about.split}${rest} · ${about.date.slice(0, 10)}`;
  byId("about").open = matchMedia("(min-width: 44rem)").matches;
  byId("note").hidden = !about.note;
  byId("note").textContent = about.note;
  for (const [key, label] of shownMeans()) {
    byId("means").append(
      element(
        "div",
        {},
        element("dt", {}, label),
        element(
          "dd",
          {},
          element("span", { className: "number", id: key }, percent(report.scores[key])),
          element("small", {}, " %"),
        ),
        other
          ? element(
              "dd",
              { className: "versus" },
              `other ${percent(other.scores[key])} %`,
              difference(report.scores[key], other.scores[key]),
            )
          : null,
      ),
    );
  }
  byId("about-tables").append(aboutTable(about, other ? "This report" : null));
  if (other) byId("about-tables").append(aboutTable(other.about, "The other report"));
}

/** Means that say something: not those of data without categories or unions. */
function shownMeans() {
  const scores = report.scores;
  const means = [["class_miou", "class mIoU"]];
  // Two reports whose networks predict other absent classes are compared by the classes that both are asked for.
  if ([report, report.other].some((one) => one && one.scores.class_miou !== one.scores.class_miou_present))
    means.push(["class_miou_present", "mIoU of present classes"]);
  if (scores.joined.length) means.push(["joined_miou", "joined mIoU"]);
  if (scores.categories.length) means.push(["category_miou", "category mIoU"]);
  means.push(["pixel_accuracy", "pixel accuracy"]);
  return means;
}

function aboutTable(about, title) {
  const rows = [
    ["weights", about.weights],
    ["epoch", about.epoch === null ? "" : String(about.epoch)],
    ["data", about.data],
    ["split", about.split],
    ["network", about.network],
    ["date", about.date.replace("T", " ")],
    ["command", about.command],
    ["note", about.note],
  ].filter(([, value]) => value);
  const list = element("dl", { className: "about" });
  for (const [name, value] of rows) list.append(element("dt", {}, name), element("dd", {}, value));
  return element("div", {}, title ? element("h3", {}, title) : null, list);
}

/** A short name of the other report: its weights, with the date if both have the same. */
function otherName() {
  const other = report.other.about;
  const name = fileName(other.weights);
  if (name !== fileName(report.about.weights)) return name;
  return `${name} of ${other.date.slice(0, 16).replace("T", " ")}`;
}
