// Runs the page's modules on arrays written by Python: a JSON list of jobs on standard input, their results on output.

import { pathToFileURL } from "node:url";
import { readFileSync } from "node:fs";

const folder = pathToFileURL(process.argv[2] + "/");
const { letterbox, unletterbox } = await import(new URL("letterbox.js", folder));
const { asFloat32, inputNumbers } = await import(new URL("tensor.js", folder));
const { decode } = await import(new URL("postprocess.js", folder));
const { classColour } = await import(new URL("view.js", folder));
const types = { uint8: Uint8Array, uint16: Uint16Array, float32: Float32Array, float64: Float64Array, int32: Int32Array };

function read({ dtype, data }) {
  const bytes = Buffer.from(data, "base64");
  return new types[dtype](bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
}

function write(array) {
  const dtype = array.constructor.name.replace("Array", "").toLowerCase();
  return { dtype, data: Buffer.from(array.buffer, array.byteOffset, array.byteLength).toString("base64") };
}

const jobs = {
  letterbox({ rgba, width, height, inputWidth, inputHeight, boxes }) {
    const { pixels, place } = letterbox(read(rgba), width, height, inputWidth, inputHeight);
    return { pixels: write(pixels), boxes: write(unletterbox(read(boxes), place, width, height)), place };
  },
  input: ({ pixels, dtype }) => ({ numbers: write(inputNumbers(read(pixels), dtype)) }),
  colours: ({ count }) => ({ colours: Array.from({ length: count }, (_, id) => classColour(id)) }),
  floats: ({ bits }) => ({ numbers: write(asFloat32(read(bits), "float16")) }),
  decode({ data, type, dims, kind, limits }) {
    const found = decode({ data: asFloat32(read(data), type), dims }, kind, limits);
    return Object.fromEntries(Object.entries(found).map(([name, array]) => [name, write(array)]));
  },
};

const results = JSON.parse(readFileSync(0, "utf8")).map(({ job, ...values }) => jobs[job](values));
process.stdout.write(JSON.stringify(results));
