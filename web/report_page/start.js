// Fills the page.
"use strict";

if (report && Array.isArray(report.frames)) {
  showSummary();
  showClasses();
  showConfusions();
  showCurves();
  showFrames();
  prepareViewer();
  document.body.classList.add("filled");
} else {
  byId("problem").hidden = false;
  byId("problem").textContent =
    "data.js is missing or damaged: it has to lie beside this file, as do the other files of the report. " +
    "Copy the whole folder, or write the report again.";
}
