// Numbers of the network's input and output: bytes to float32 or float16, and back from float16.

const scratch = new Float32Array(1);
const scratchBits = new Uint32Array(scratch.buffer);

/** Return the 16 bits of the float16 nearest to a number from 0 to 1, halves to even. */
export function toHalf(value) {
  scratch[0] = value;
  const bits = scratchBits[0];
  const exponent = (bits >>> 23) - 127 + 15;
  if (exponent <= 0) return roundToEven(((bits & 0x7fffff) | 0x800000) >>> 0, 14 - exponent);
  return roundToEven((exponent << 23) | (bits & 0x7fffff), 13);
}

function roundToEven(bits, dropped) {
  if (dropped > 24) return 0;
  const kept = bits >>> dropped;
  const rest = bits & ((1 << dropped) - 1);
  const half = 1 << (dropped - 1);
  return rest > half || (rest === half && kept & 1) ? kept + 1 : kept;
}

let halves = null;

/** Return a table from 16 bits to the number that they stand for. */
function halfTable() {
  if (halves) return halves;
  halves = new Float32Array(1 << 16);
  for (let bits = 0; bits < 1 << 16; bits++) {
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >> 10) & 31;
    const mantissa = bits & 1023;
    if (exponent === 31) halves[bits] = mantissa ? NaN : sign * Infinity;
    else if (exponent === 0) halves[bits] = sign * mantissa * 2 ** -24;
    else halves[bits] = sign * (1 + mantissa / 1024) * 2 ** (exponent - 15);
  }
  return halves;
}

/** Return an output's numbers as float32; float16 may come as Uint16Array or Float16Array, as the browser has it. */
export function asFloat32(data, type) {
  if (data instanceof Float32Array) return data;
  if (type !== "float16") return Float32Array.from(data, Number);
  const bits = new Uint16Array(data.buffer, data.byteOffset, data.length);
  const table = halfTable();
  const values = new Float32Array(bits.length);
  for (let i = 0; i < bits.length; i++) values[i] = table[bits[i]];
  return values;
}

/**
 * Return the network's input: RGB planes with values 0 to 1 as Float32Array or as the bits of float16 in a Uint16Array,
 * or, for dtype "uint8", BGR bytes in the order of the pixels.
 */
export function inputNumbers(pixels, dtype) {
  if (dtype === "uint8") {
    const bgr = new Uint8Array(pixels.length);
    for (let i = 0; i < pixels.length; i += 3) {
      bgr[i] = pixels[i + 2];
      bgr[i + 1] = pixels[i + 1];
      bgr[i + 2] = pixels[i];
    }
    return bgr;
  }
  const table = tables[dtype] ?? (tables[dtype] = makeTable(dtype));
  const plane = pixels.length / 3;
  const numbers = new table.constructor(pixels.length);
  for (let i = 0, from = 0; i < plane; i++) {
    numbers[i] = table[pixels[from++]];
    numbers[plane + i] = table[pixels[from++]];
    numbers[2 * plane + i] = table[pixels[from++]];
  }
  return numbers;
}

const tables = {};

function makeTable(dtype) {
  const values = Float32Array.from({ length: 256 }, (_, byte) => byte / 255);
  return dtype === "float16" ? Uint16Array.from(values, toHalf) : values;
}
