// The page: takes pictures and camera frames to the worker, and shows what comes back.
//
// Two parameters of the address are for measurements: ?engine=wasm or webgpu, and &threads=1.

import { closeCamera, decode, draw, openCamera } from "./pictures.js";
import { describe, readOut, say, showLabels, showNotes, showPicture } from "./view.js";

const $ = (id) => document.getElementById(id);
const RATE_OVER = 10; // frames that frames/s is the mean of
const SHOWN = [1024, 2048]; // longer side of what is shown, where the network has a size of its own: from, to

const worker = new Worker("worker.js", { type: "module" });
const canvas = document.createElement("canvas"); // what the network sees
let ready = false;
let engineNote = "";
let ownSide = 0; // the longer side to which the network itself resizes pictures
let source = null; // the picture, or the video of the camera
let asked = 0; // how many pictures were asked for; a decoder may be overtaken
let busy = false; // the worker has pixels
let again = false; // the source or the size changed meanwhile
let answer = null; // resolves what the worker is asked
let times = []; // when the picture was begun, or the last frames of the camera came

worker.onmessage = ({ data }) => answer(data);
worker.onerror = (event) => {
  const problem = event.message || "worker.js cannot be loaded: export the site again.";
  (answer ?? fail)({ problem, message: problem });
};

function ask(message, transfer = []) {
  worker.postMessage(message, transfer);
  return new Promise((resolve) => {
    answer = resolve;
  });
}

const isCamera = () => source instanceof HTMLVideoElement;

async function start() {
  const response = await fetch("network.json");
  if (!response.ok) {
    throw new Error(`network.json cannot be loaded (${response.status}): export the site again.`);
  }
  const description = await response.json().catch(() => {
    throw new Error("network.json is damaged: export the site again.");
  });
  describe(description);
  const { weights, precision, classes, runtime } = description;
  ownSide = description.input_side ?? 0;
  $("longest-control").hidden = ownSide > 0; // a choice would hardly change the labels
  const seen = ownSide ? `, pictures resized to a longer side of ${ownSide}` : "";
  $("about").textContent =
    `Weights ${weights}, ${classes.length} classes, ${precision}${seen}, ONNX Runtime Web ${runtime.version} (MIT).`;
  const parameters = new URLSearchParams(location.search);
  const options = { engine: parameters.get("engine"), threads: Number(parameters.get("threads")) };
  const { ready: opened, problem } = await ask({ open: { description, ...options } });
  if (problem) {
    throw new Error(problem);
  }
  ready = true;
  engineNote = opened.note;
  document.documentElement.dataset.engine = opened.engine;
  showNotes(engineNote ? [engineNote] : []);
  $("about").textContent += ` It runs on ${opened.engine}.`;
  say("status", `The network is ready, on ${opened.engine}.`);
  await segment();
}

/** Counts what was asked for, and takes away the complaint about what was before. */
function begin() {
  if (ready) {
    say("problem", "");
  }
  asked += 1;
  return asked;
}

/** Gives the current source to the worker, and shows the labels; the camera goes on so. */
async function segment() {
  if (!ready || !source) {
    return;
  }
  if (busy) {
    again = true;
    return;
  }
  busy = true;
  try {
    do {
      again = false;
      await segmentOnce();
    } while (again && source);
  } catch (error) {
    stopCamera();
    fail(error);
  } finally {
    busy = false;
  }
}

async function segmentOnce() {
  const moving = isCamera();
  if (!moving) {
    times = [performance.now()];
  }
  const longest = ownSide ? Math.min(Math.max(ownSide, SHOWN[0]), SHOWN[1]) : Number($("longest").value);
  const { pixels, notes } = draw(source, longest, canvas);
  const { width, height } = pixels;
  if (!moving) {
    showPicture(canvas);
    say("status", "The network looks at it …");
  }
  const found = await ask({ id: asked, pixels: pixels.data, width, height }, [pixels.data.buffer]);
  if (found.problem) {
    throw new Error(`The network failed: ${found.problem}. Reload the page, or add ?engine=wasm to its address.`);
  }
  if (moving !== isCamera()) {
    return;
  }
  if (moving) {
    showPicture(canvas);
  }
  showLabels(found.labels, width, height);
  showNumbers(found, width, height);
  showNotes(engineNote ? [engineNote, ...notes] : notes);
  say("status", moving ? "The camera is on." : "Point at the picture, or choose a class, to see what is where.");
  if (moving) {
    await new Promise(requestAnimationFrame); // none comes to a page that nobody sees
    again ||= isCamera();
  }
}

function showNumbers({ networkMs, headMs }, width, height) {
  $("size").textContent = `${width} x ${height}`;
  $("network-ms").textContent = `${networkMs.toFixed(networkMs < 10 ? 1 : 0)} ms`;
  $("head-ms").textContent = `${headMs.toFixed(headMs < 10 ? 1 : 0)} ms`;
  times = [...times, performance.now()].slice(-RATE_OVER - 1);
  const passed = times.at(-1) - times[0];
  $("rate-name").textContent = isCamera() ? "frames/s" : "in all";
  $("rate").textContent = isCamera() ? ((1000 * (times.length - 1)) / passed).toFixed(1) : `${passed.toFixed(0)} ms`;
}

function fail(error) {
  say("problem", error.message);
  say("status", "");
}

function stopCamera() {
  if (isCamera()) {
    closeCamera(source);
    source = null;
  }
  $("camera").textContent = "Start camera";
}

/** Shows the first of these files. */
async function openFiles(files) {
  const id = begin();
  try {
    if (!files.length) {
      throw new Error("That holds no file: drop, paste or open a picture.");
    }
    const picture = await decode(files[0]);
    if (id === asked) {
      stopCamera();
      source = picture;
      await segment();
    }
  } catch (error) {
    fail(error);
  }
}

async function toggleCamera() {
  const id = begin();
  if (isCamera()) {
    stopCamera();
    say("status", "The camera is off.");
    return;
  }
  try {
    say("status", "Starting the camera …");
    const video = await openCamera();
    if (id !== asked) {
      closeCamera(video);
      return;
    }
    video.srcObject.getVideoTracks()[0].onended = () => {
      stopCamera();
      fail(new Error("The camera stopped: connect it, and start it again."));
    };
    source = video;
    times = [performance.now()];
    $("camera").textContent = "Stop camera";
    await segment();
  } catch (error) {
    fail(error);
  }
}

for (const id of ["open", "invitation"]) {
  $(id).addEventListener("click", () => $("file").click());
}
$("file").addEventListener("change", () => {
  openFiles([...$("file").files]);
  $("file").value = ""; // the same file again is a change too
});
$("camera").addEventListener("click", toggleCamera);
$("longest").addEventListener("change", () => {
  begin();
  segment();
});
$("opacity").addEventListener("input", () => {
  $("labels").style.opacity = $("opacity").value / 100;
  $("opacity-value").textContent = `${$("opacity").value} %`;
});
$("opacity").dispatchEvent(new Event("input")); // a reloaded page keeps the slider where it was
for (const kind of ["pointermove", "pointerdown"]) {
  $("frame").addEventListener(kind, readOut);
}
$("frame").addEventListener("pointerleave", () => say("readout", ""));
document.addEventListener("paste", (event) => openFiles([...event.clipboardData.files]));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  $("stage").classList.add("target");
});
document.addEventListener("dragleave", () => $("stage").classList.remove("target"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("stage").classList.remove("target");
  openFiles([...event.dataTransfer.files]);
});

start().catch(fail);
