// The page's side of worker.js: opens a model in a thread of its own, and hands over one picture at a time.

/** Return how many threads WASM gets: every core of a small machine, half of those of a large one. */
export function threadCount() {
  if (!globalThis.crossOriginIsolated) return 1;
  const cores = navigator.hardwareConcurrency || 1;
  return Math.min(Math.max(Math.ceil(cores / 2), Math.min(cores, 4)), 8);
}

/** Return the ways of running that this browser has, the faster one first. */
export async function runtimes() {
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  return adapter ? ["webgpu", "wasm"] : ["wasm"];
}

export class Engine {
  threads = 1;
  #worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  #closed = false;
  #waiting = null;
  #last = Promise.resolve();
  #progress;

  /** entry: a model of models.json; runtime: "wasm" or "webgpu"; progress: called with the bytes that came. */
  constructor(entry, runtime, progress) {
    this.entry = entry;
    this.runtime = runtime;
    this.#progress = progress;
    if (runtime === "wasm") this.threads = threadCount();
    this.#worker.onmessage = ({ data }) => this.#hear(data);
    this.#worker.onerror = (event) => this.#hear({ kind: "failed", reason: event.message || "it did not start" });
  }

  open() {
    return this.#ask({ kind: "open", entry: this.entry, runtime: this.runtime, threads: this.threads });
  }

  /**
   * Detect in an ImageBitmap, which comes back in the result; a second call waits for the first.
   * Returns { bitmap, boxes, scores, classIds, times } with boxes in its pixels and times in milliseconds.
   */
  detect(bitmap, size, limits) {
    const result = this.#last.then(() => this.#ask({ kind: "detect", bitmap, size, limits }, [bitmap]));
    this.#last = result.catch(() => {});
    return result;
  }

  close() {
    this.#closed = true;
    this.#worker.terminate();
    this.#waiting?.reject(new Error("the model was closed"));
  }

  #ask(message, transfer = []) {
    if (this.#closed) return Promise.reject(new Error("the model was closed"));
    return new Promise((resolve, reject) => {
      this.#waiting = { resolve, reject };
      this.#worker.postMessage(message, transfer);
    });
  }

  #hear(data) {
    if (data.kind === "progress") this.#progress(data.bytes);
    else if (data.kind === "failed") this.#waiting?.reject(new Error(data.reason));
    else this.#waiting?.resolve(data);
  }
}
