// The page: what its controls do, and the loop that takes a frame, detects and shows it.

import { Engine, runtimes, threadCount } from "./engine.js";
import { Meter } from "./meter.js";
import { Camera, Film, Picture, cameras } from "./sources.js";
import { draw, fillRows, sentence } from "./view.js";

const RUNTIME_NAMES = { wasm: "WASM", webgpu: "WebGPU" };
const SIZES = [320, 480, 640, 960, 1280];
const NUMBERS_EVERY = 250; // milliseconds between two updates of the numbers and the table of a moving picture
const WORDS_EVERY = 3000; // and of the sentence that a screen reader speaks

const part = Object.fromEntries([...document.querySelectorAll("[id]")].map((element) => [element.id, element]));
const meter = new Meter();
let manifest = null;
let opening = null; // the Engine that was asked for last
let engine = null; // the same once it is ready
let source = null;
let numbersAt = 0;
let wordsAt = 0;
let refreshing = false;
let refreshAgain = false;

function say(text) {
  part.status.textContent = text;
}

function warn(text) {
  part.alert.textContent = text;
}

function size(bytes) {
  return bytes < 1e5 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

function option(value, text, disabled = false) {
  const element = new Option(text, value);
  element.disabled = disabled;
  return element;
}

// Model

async function openModel(mayFallBack = false) {
  engine = null;
  opening?.close();
  const entry = manifest.models[part.model.selectedIndex];
  const runtime = part.runtime.value;
  const total = entry.bytes + manifest.runtimes[runtime];
  let loaded = 0;
  let shown = 0;
  const progress = (bytes) => {
    loaded += bytes;
    if (performance.now() - shown < NUMBERS_EVERY) return;
    shown = performance.now();
    part.running.textContent = `loading, ${Math.round((100 * loaded) / total)}%`;
  };
  part["model-bytes"].textContent = size(entry.bytes);
  part["runtime-bytes"].textContent = size(manifest.runtimes[runtime]);
  meter.reset();
  warn("");
  say(`Loading ${entry.label}, ${size(total)}`);
  const model = new Engine(entry, runtime, progress);
  opening = model;
  try {
    await model.open();
  } catch (error) {
    if (opening !== model) return; // another was chosen meanwhile
    model.close();
    if (runtime === "webgpu" && mayFallBack) {
      part.runtime.value = "wasm";
      await openModel();
      if (engine) say(`${entry.label} is ready on WASM, since WebGPU could not run it (${error.message})`);
      return;
    }
    const remedy = runtime === "webgpu" ? "choose WASM" : "export it again or choose another";
    warn(`${entry.label} cannot run on ${RUNTIME_NAMES[runtime]} (${error.message}); ${remedy}.`);
    say("No model is ready");
    part.running.textContent = "–";
    return;
  }
  if (opening !== model) return;
  engine = model;
  const why = globalThis.crossOriginIsolated ? "" : ", for want of headers";
  const threads = model.threads === 1 ? `1 thread${why}` : `${model.threads} threads`;
  part.running.textContent = runtime === "wasm" ? `WASM, ${threads}` : RUNTIME_NAMES[runtime];
  say(`${entry.label} is ready on ${RUNTIME_NAMES[runtime]}`);
  if (source) loop(source);
}

function fillSizes() {
  const { imgsz, dynamic, stride } = manifest.models[part.model.selectedIndex];
  const text = ([height, width]) => `${width} × ${height}`;
  const choices = [imgsz];
  if (dynamic) {
    const others = SIZES.filter((side) => side % stride === 0).map((side) => [side, side]);
    choices.push(...others.filter((size) => text(size) !== text(imgsz)));
    choices.sort((a, b) => a[0] * a[1] - b[0] * b[1]);
  }
  part.size.replaceChildren(...choices.map((size) => option(size.join(), text(size) + (dynamic ? "" : ", fixed"))));
  part.size.value = imgsz.join();
}

// Frames

async function detect(model, bitmap) {
  const sides = part.size.value.split(",").map(Number);
  const { iou, max_det: maxDet } = manifest.limits;
  const found = await model.detect(bitmap, sides, { conf: part.conf.valueAsNumber, iou, maxDet });
  return { ...found, names: model.entry.names };
}

function show(found, moving) {
  const started = performance.now();
  draw(part.view, found);
  found.bitmap.close();
  part.invitation.hidden = true;
  part.save.disabled = false;
  const now = performance.now();
  meter.add({ ...found.times, draw: now - started });
  const words = sentence(found);
  part.view.setAttribute("aria-label", `Picture. ${words}`);
  if (!moving || now - numbersAt > NUMBERS_EVERY) {
    numbersAt = now;
    fillRows(part.rows, found);
    showNumbers();
  }
  if (!moving || now - wordsAt > WORDS_EVERY) {
    wordsAt = now;
    if (part.summary.textContent !== words) part.summary.textContent = words;
  }
}

function showNumbers() {
  const means = meter.means;
  const number = (value) => (value == null ? "–" : value.toFixed(value < 10 ? 1 : 0));
  for (const stage of ["read", "prepare", "network", "boxes", "draw"]) part[stage].textContent = number(means?.[stage]);
  part.total.textContent = number(means && Object.values(means).reduce((sum, time) => sum + time, 0));
  part.fps.textContent = source?.moving ? number(meter.fps) : "–";
  part.skipped.textContent = source?.moving ? String(source.skipped) : "–";
}

/** Detect in every frame of a source, always the newest, until it is closed or the model changes. */
async function loop(from) {
  const model = engine;
  const current = () => source === from && engine === model;
  try {
    while (model && current()) {
      const bitmap = await from.frame();
      if (!bitmap || !current()) return;
      const found = await detect(model, bitmap);
      if (!current()) return;
      show(found, from.moving && !from.paused);
      if (!from.moving) return;
    }
  } catch (error) {
    if (current()) warn(`Detection stopped (${error.message}); choose a model again.`);
  }
}

/** Detect in the shown frame again, after a change of the threshold or the size. */
async function refresh() {
  if (!engine || !source || (source.moving && !source.paused)) return;
  refreshAgain = refreshing;
  if (refreshing) return;
  refreshing = true;
  const [from, model] = [source, engine];
  try {
    const found = await detect(model, await from.current());
    if (source === from && engine === model) show(found, false);
  } catch (error) {
    if (source === from && engine === model) warn(`Detection stopped (${error.message}); choose a model again.`);
  } finally {
    refreshing = false;
  }
  if (refreshAgain) refresh();
}

// Sources

async function use(opening) {
  stop();
  if (engine) warn("");
  try {
    const opened = await opening();
    stop(); // two may have been opened at once
    source = opened;
  } catch (error) {
    warn(`${error.message}.`);
    return;
  }
  meter.reset();
  const from = source;
  if (from.moving) {
    from.onend = () => {
      warn("The camera stopped; connect it again and start it.");
      stop();
    };
  }
  showControls();
  loop(from);
}

function stop() {
  source?.close();
  source = null;
  showControls();
}

function showControls() {
  const moving = source?.moving ?? false;
  part.pause.disabled = !moving;
  part.pause.textContent = moving && source.paused ? "Play" : "Pause";
  part.stop.disabled = !moving;
}

function openFile(file) {
  if (!file) return;
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  use(() => (file.type.startsWith("video/") ? Film.open(file, !still) : Picture.open(file)));
}

async function startCamera() {
  await use(() => Camera.open(part.cameras.hidden ? "" : part.device.value));
  if (!source?.deviceId) return;
  const found = await cameras();
  part.device.replaceChildren(...found.map(({ id, label }) => option(id, label)));
  part.device.value = source.deviceId;
  part.cameras.hidden = found.length < 2;
}

async function togglePause() {
  if (source.paused) await source.play();
  else source.pause();
  showControls();
}

function save() {
  part.view.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = "detections.png";
    link.click();
    URL.revokeObjectURL(link.href);
  });
}

// Controls

function connect() {
  part.camera.onclick = startCamera;
  part.device.onchange = startCamera;
  part.choose.onclick = () => part.file.click();
  part.file.onchange = () => {
    openFile(part.file.files[0]);
    part.file.value = ""; // so that the same file can be chosen again
  };
  part.pause.onclick = togglePause;
  part.stop.onclick = stop;
  part.save.onclick = save;
  part.model.onchange = () => {
    fillSizes();
    openModel();
  };
  part.runtime.onchange = () => openModel();
  part.size.onchange = () => {
    meter.reset();
    refresh();
  };
  part.conf.oninput = () => {
    part["conf-value"].textContent = part.conf.valueAsNumber.toFixed(2);
    refresh();
  };
  document.ondragover = (event) => {
    event.preventDefault();
    part.frame.classList.add("over");
  };
  document.ondragleave = (event) => {
    if (!event.relatedTarget) part.frame.classList.remove("over");
  };
  document.ondrop = (event) => {
    event.preventDefault();
    part.frame.classList.remove("over");
    openFile(event.dataTransfer.files[0]);
  };
}

async function start() {
  const response = await fetch("models.json");
  if (!response.ok) throw new Error("models.json is not there");
  manifest = await response.json();
  part.version.textContent = `yolo-lat ${manifest.version}`;
  part.model.replaceChildren(
    ...manifest.models.map(({ label, bytes }, i) => option(i, `${label} (${size(bytes)})`)),
  );
  const found = await runtimes();
  const gpu = found.includes("webgpu");
  const threads = threadCount();
  part.runtime.replaceChildren(
    option("webgpu", `WebGPU, ${gpu ? "graphics card" : "not in this browser"}`, !gpu),
    option("wasm", `WASM, processor (${threads} thread${threads === 1 ? "" : "s"})`),
  );
  [part.runtime.value] = found;
  part.conf.value = manifest.limits.conf;
  part["conf-value"].textContent = part.conf.valueAsNumber.toFixed(2);
  fillSizes();
  connect();
  await openModel(true);
}

start().catch((error) => {
  warn(`The page could not start (${error.message}); load it again.`);
});
