// What the page shows: the picture with its labels, what lies under the pointer, the legend.

const $ = (id) => document.getElementById(id);

let network; // the description of the network, network.json
let shown = null; // {labels, width, height} of the picture on the page
let chosen = -1; // the only class that is drawn, or -1 for all
const entries = []; // of the legend, {button, share}

/** Sets a text, or hides its element if there is none. */
export function say(id, text) {
  $(id).textContent = text;
  $(id).hidden = !text;
}

/** Replaces the notes below the numbers. */
export function showNotes(notes) {
  $("notes").replaceChildren(...notes.map((note) => Object.assign(document.createElement("li"), { textContent: note })));
}

/** Builds the legend, and what follows from it; names are data, which enter as text. */
export function describe(description) {
  network = description;
  for (const [index, name] of network.classes.entries()) {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    button.title = "show only this class";
    const [swatch, label, share] = ["swatch", "name", "share"].map((kind) => {
      const part = document.createElement("span");
      part.className = kind;
      return part;
    });
    swatch.style.background = `rgb(${network.palette[index].join(" ")})`;
    label.textContent = name;
    button.append(swatch, label, share);
    button.addEventListener("click", () => choose(index === chosen ? -1 : index));
    const item = document.createElement("li");
    item.append(button);
    $("legend").append(item);
    entries.push({ button, share });
  }
}

function choose(index) {
  chosen = index;
  entries.forEach(({ button }, k) => button.setAttribute("aria-pressed", String(k === chosen)));
  paint();
}

/** Shows a picture without labels. */
export function showPicture(canvas) {
  const { width, height } = canvas;
  for (const id of ["picture", "labels"]) {
    Object.assign($(id), { width, height });
  }
  $("picture").getContext("2d").drawImage(canvas, 0, 0);
  $("frame").style.setProperty("--ratio", width / height);
  $("frame").hidden = false;
  $("invitation").hidden = true;
  shown = null;
  $("readout").hidden = true;
}

/** Draws the labels over the picture, and the shares of the classes into the legend. */
export function showLabels(labels, width, height) {
  shown = { labels, width, height };
  paint();
  const counts = new Uint32Array(network.classes.length);
  for (const label of labels) {
    counts[label] += 1;
  }
  entries.forEach(({ button, share }, k) => {
    const percent = (100 * counts[k]) / labels.length;
    button.style.setProperty("--share", `${percent}%`);
    button.classList.toggle("absent", counts[k] === 0);
    share.textContent = counts[k] === 0 ? "–" : percent < 0.1 ? "< 0.1 %" : `${percent.toFixed(1)} %`;
  });
  const order = [...counts.keys()].filter((k) => counts[k]).sort((a, b) => counts[b] - counts[a]);
  $("count").textContent = `${order.length} of ${counts.length} in this picture`;
  const words = order.map((k) => `${network.classes[k]} ${Math.round((100 * counts[k]) / labels.length)} %`);
  $("picture").setAttribute("aria-label", `Picture: ${words.join(", ")}`);
}

function paint() {
  if (!shown) {
    return;
  }
  const image = new ImageData(shown.width, shown.height);
  const colors = new Uint32Array(image.data.buffer);
  const table = new Uint32Array(256);
  const bytes = new Uint8Array(table.buffer);
  network.palette.forEach((rgb, k) => {
    bytes.set(chosen < 0 || k === chosen ? [...rgb, 255] : [0, 0, 0, 0], 4 * k);
  });
  for (let i = 0; i < colors.length; i += 1) {
    colors[i] = table[shown.labels[i]];
  }
  $("labels").getContext("2d").putImageData(image, 0, 0);
}

/** Names the class under the pointer. */
export function readOut(event) {
  const box = $("frame").getBoundingClientRect();
  const [x, y] = [event.clientX - box.left, event.clientY - box.top];
  const column = Math.floor((x / box.width) * (shown?.width ?? 0));
  const row = Math.floor((y / box.height) * (shown?.height ?? 0));
  const inside = shown && column >= 0 && row >= 0 && column < shown.width && row < shown.height;
  say("readout", inside ? network.classes[shown.labels[row * shown.width + column]] : "");
  const { offsetWidth: width, offsetHeight: height } = $("readout");
  $("readout").style.left = `${Math.max(0, Math.min(x + 12, box.width - width))}px`;
  $("readout").style.top = `${y > height + 8 ? y - height - 8 : y + 20}px`;
}
