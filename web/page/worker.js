// The network and its label head, away from the page's own thread.
//
// Takes {open} once and answers {ready} or {problem}; then takes {id, pixels, width, height} and answers {id, labels,
// networkMs, headMs} or {id, problem}.

import { labelsFromLogits } from "./label_head.js";

const MOST_THREADS = 8;

let network; // the description of the network, network.json
let runtime; // the module of ONNX Runtime Web
let session;

onmessage = async ({ data }) => {
  try {
    if (data.open) {
      postMessage({ ready: await open(data.open) });
    } else {
      const result = await segment(data);
      postMessage({ id: data.id, ...result }, [result.labels.buffer]);
    }
  } catch (error) {
    postMessage({ id: data.id, problem: String(error?.message ?? error) });
  }
};

/** Opens the network on WebGPU where there is an adapter, else on WASM. */
async function open({ description, engine, threads }) {
  network = description;
  const file = await fetch(network.file);
  if (!file.ok) {
    throw new Error(`${network.file} cannot be loaded (${file.status} ${file.statusText}): export the site again.`);
  }
  const content = new Uint8Array(await file.arrayBuffer());
  let failed = "";
  if (engine === "webgpu" || (engine !== "wasm" && (await hasAdapter()))) {
    try {
      await start("webgpu", content, 1);
      return { engine: "WebGPU", note: "" };
    } catch (error) {
      failed = `WebGPU does not work here (${error.message}). `;
    }
  }
  const isolated = globalThis.crossOriginIsolated;
  const count = isolated ? threads || Math.min(navigator.hardwareConcurrency || 1, MOST_THREADS) : 1;
  await start("wasm", content, count);
  const alone = isolated ? "" : "One thread only: this server does not send the headers that more need; serve.py does.";
  return { engine: `WASM, ${count} ${count === 1 ? "thread" : "threads"}`, note: failed + alone };
}

/** Whether there is a graphics processor; one that is emulated on the CPU is slower than WASM. */
async function hasAdapter() {
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  return Boolean(adapter) && !adapter.info?.isFallbackAdapter;
}

/** Loads one build of the runtime, and runs the network once, which allocates and compiles. */
async function start(provider, content, threads) {
  const base = new URL(network.runtime.url, location.href).href;
  const file = `${base}ort.${provider}.min.mjs`;
  runtime = await import(file).catch(() => {
    throw new Error(`The runtime cannot be loaded from ${file}: is the file there, and can it be reached?`);
  });
  runtime.env.wasm.wasmPaths = base;
  runtime.env.wasm.numThreads = threads;
  runtime.env.logLevel = "error";
  const options = { executionProviders: [provider], logSeverityLevel: 3 };
  session = await runtime.InferenceSession.create(content, options).catch((error) => {
    throw new Error(`The runtime from ${base} does not start; is every file there? (${error.message})`);
  });
  await segment({ pixels: new Uint8ClampedArray(4 * 64 * 36), width: 64, height: 36 });
}

/** Returns the labels of RGBA pixels, and the milliseconds that network and label head took. */
async function segment({ pixels, width, height }) {
  const rgb = new Uint8Array(3 * width * height);
  for (let i = 0, j = 0; j < rgb.length; i += 4, j += 3) {
    rgb[j] = pixels[i];
    rgb[j + 1] = pixels[i + 1];
    rgb[j + 2] = pixels[i + 2];
  }
  const begin = performance.now();
  const input = new runtime.Tensor("uint8", rgb, [1, height, width, 3]);
  const { [session.outputNames[0]]: logits } = await session.run({ [session.inputNames[0]]: input });
  const middle = performance.now();
  const shape = logits.dims.slice(1);
  const labels = labelsFromLogits(logits.data, shape, [height, width], network.align_corners);
  logits.dispose();
  return { labels, networkMs: middle - begin, headMs: performance.now() - middle };
}
