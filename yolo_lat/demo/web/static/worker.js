// The thread that detects, so that the page stays at hand meanwhile: pixels, network, boxes.

import { letterbox, unletterbox } from "./letterbox.js";
import { decode } from "./postprocess.js";
import { asFloat32, inputNumbers } from "./tensor.js";

const ENTRANCES = { wasm: "ort.wasm.min.mjs", webgpu: "ort.webgpu.min.mjs" };
const BINARIES = { wasm: "ort-wasm-simd-threaded.wasm", webgpu: "ort-wasm-simd-threaded.asyncify.wasm" };

let ort = null;
let session = null;
let model = null;
let canvas = null;

/** Fetch a file and tell how many bytes have come since the last call. */
async function download(url, came) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url} is not there (${response.status})`);
  const parts = [];
  const reader = response.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    parts.push(part.value);
    came(part.value.length);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

async function open({ entry, runtime, threads }) {
  model = entry;
  const came = (bytes) => postMessage({ kind: "progress", bytes });
  const vendor = new URL("./vendor/", import.meta.url);
  const [library, binary, bytes] = await Promise.all([
    import(new URL(ENTRANCES[runtime], vendor).href),
    download(new URL(BINARIES[runtime], vendor), came),
    download(new URL(entry.file, import.meta.url), came),
  ]);
  ort = library;
  ort.env.logLevel = "error";
  ort.env.wasm.numThreads = threads;
  ort.env.wasm.wasmPaths = vendor.href;
  ort.env.wasm.wasmBinary = binary;
  session = await ort.InferenceSession.create(bytes, { executionProviders: [runtime], logSeverityLevel: 3 });
  const [height, width] = entry.imgsz;
  await infer(new Uint8Array(height * width * 3), width, height); // the first run prepares those after it
}

/** Run the network on RGB bytes of (height, width, 3); returns its output and how long it took, in milliseconds. */
async function infer(pixels, width, height) {
  const { name, dtype, channels_last: channelsLast } = model.input;
  const started = performance.now();
  let numbers = inputNumbers(pixels, dtype);
  // Browsers that know float16 have an array of its own for it, the others hand over the bits.
  if (dtype === "float16" && globalThis.Float16Array) numbers = new Float16Array(numbers.buffer);
  const dims = channelsLast ? [1, height, width, 3] : [1, 3, height, width];
  const input = new ort.Tensor(dtype, numbers, dims);
  const prepared = performance.now();
  const results = await session.run({ [name]: input });
  const output = results[model.output.name];
  const data = output.location === "cpu" ? output.data : await output.getData(true);
  return {
    output: { data: asFloat32(data, output.type), dims: output.dims },
    prepare: prepared - started,
    network: performance.now() - prepared,
  };
}

async function detect({ bitmap, size, limits }) {
  const started = performance.now();
  const { width, height } = bitmap;
  if (canvas?.width !== width || canvas.height !== height) canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  const read = performance.now();
  const boxed = letterbox(data, width, height, size[1], size[0]);
  const fitted = performance.now();
  const { output, prepare, network } = await infer(boxed.pixels, size[1], size[0]);
  const ran = performance.now();
  const found = decode(output, model.output.kind, limits);
  unletterbox(found.boxes, boxed.place, width, height);
  const times = {
    read: read - started,
    prepare: fitted - read + prepare,
    network,
    boxes: performance.now() - ran,
  };
  postMessage({ kind: "found", bitmap, ...found, times }, [bitmap]);
}

const jobs = { open, detect };

onmessage = async ({ data }) => {
  try {
    await jobs[data.kind](data);
    if (data.kind === "open") postMessage({ kind: "opened" });
  } catch (error) {
    postMessage({ kind: "failed", reason: String(error?.message ?? error).split("\n")[0] });
  }
};
