// From a canvas's pixels to the network's input and back, bit for bit as yolo_lat/deploy/preprocess.py does it with
// OpenCV, so that boxes in the page equal those in Python.

const PADDING_GREY = 114; // the border the networks were trained with
const FRACTION_BITS = 11; // of OpenCV's weights, when it resizes bytes
const ONE = 1 << FRACTION_BITS;

/** Round halves to the even neighbour, as Python's round() and OpenCV's cvRound() do. */
export function roundHalfEven(value) {
  const floor = Math.floor(value);
  const rest = value - floor;
  if (rest !== 0.5) return rest < 0.5 ? floor : floor + 1;
  return floor % 2 === 0 ? floor : floor + 1;
}

/**
 * Return where an image of width by height pixels goes in an input of inputWidth by inputHeight.
 * An odd border has its extra pixel at the bottom and at the right.
 */
export function placement(width, height, inputWidth, inputHeight) {
  const scale = Math.min(inputHeight / height, inputWidth / width);
  const innerHeight = Math.max(roundHalfEven(height * scale), 1);
  const innerWidth = Math.max(roundHalfEven(width * scale), 1);
  return {
    innerWidth,
    innerHeight,
    left: Math.floor((inputWidth - innerWidth) / 2),
    top: Math.floor((inputHeight - innerHeight) / 2),
    ratioX: innerWidth / width,
    ratioY: innerHeight / height,
  };
}

/** Return for each target pixel its source pixel and the weights, of 2048, of that pixel and the next. */
function taps(source, target, stopsAtEdge) {
  const ratio = 1 / (target / source);
  const first = new Int32Array(target);
  const weights = new Int32Array(2 * target);
  for (let i = 0; i < target; i++) {
    const position = Math.fround((i + 0.5) * ratio - 0.5);
    let index = Math.floor(position);
    let fraction = Math.fround(position - index);
    if (stopsAtEdge && index < 0) [index, fraction] = [0, 0];
    if (stopsAtEdge && index >= source - 1) [index, fraction] = [source - 1, 0];
    first[i] = index;
    weights[2 * i] = roundHalfEven(Math.fround(Math.fround(1 - fraction) * ONE));
    weights[2 * i + 1] = roundHalfEven(Math.fround(fraction * ONE));
  }
  return { first, weights };
}

/** Resize one row of RGBA into 32-bit sums of RGB, 2048 times the pixels' values. */
function resizeRow(rgba, row, width, columns, sums) {
  const start = row * width * 4;
  const { first, weights } = columns;
  for (let x = 0, out = 0; x < first.length; x++) {
    const a = start + first[x] * 4;
    const b = first[x] + 1 < width ? a + 4 : a;
    const wa = weights[2 * x];
    const wb = weights[2 * x + 1];
    sums[out++] = rgba[a] * wa + rgba[b] * wb;
    sums[out++] = rgba[a + 1] * wa + rgba[b + 1] * wb;
    sums[out++] = rgba[a + 2] * wa + rgba[b + 2] * wb;
  }
}

/** Average 2 by 2 pixels, which is what OpenCV does when both sides are halved exactly. */
function halve(rgba, width, place, inputWidth, pixels) {
  for (let y = 0; y < place.innerHeight; y++) {
    let out = ((place.top + y) * inputWidth + place.left) * 3;
    for (let x = 0; x < place.innerWidth; x++) {
      const a = (2 * y * width + 2 * x) * 4;
      const b = a + width * 4;
      for (let c = 0; c < 3; c++) {
        pixels[out++] = (rgba[a + c] + rgba[a + 4 + c] + rgba[b + c] + rgba[b + 4 + c] + 2) >> 2;
      }
    }
  }
}

function resize(rgba, width, height, place, inputWidth, pixels) {
  const { innerWidth, innerHeight } = place;
  const columns = taps(width, innerWidth, true);
  const rows = taps(height, innerHeight, false);
  // Two source rows are kept; going down the image, most are used twice.
  const kept = [new Int32Array(innerWidth * 3), new Int32Array(innerWidth * 3)];
  const keptRow = [-1, -1];
  const sumsOf = (row, other) => {
    const found = keptRow.indexOf(row);
    if (found >= 0) return found;
    const slot = other === 0 ? 1 : 0;
    resizeRow(rgba, row, width, columns, kept[slot]);
    keptRow[slot] = row;
    return slot;
  };
  const inside = (row) => Math.min(Math.max(row, 0), height - 1);
  for (let y = 0; y < innerHeight; y++) {
    const upperRow = inside(rows.first[y]);
    const lowerRow = inside(rows.first[y] + 1);
    // The slot that holds the lower row already must not be overwritten by the upper one.
    const upperSlot = sumsOf(upperRow, keptRow.indexOf(lowerRow));
    const lowerSlot = sumsOf(lowerRow, upperSlot);
    const upper = kept[upperSlot];
    const lower = kept[lowerSlot];
    const wu = rows.weights[2 * y];
    const wl = rows.weights[2 * y + 1];
    let out = ((place.top + y) * inputWidth + place.left) * 3;
    for (let i = 0; i < innerWidth * 3; i++) {
      // OpenCV's vector code multiplies 16-bit numbers and keeps the upper half of each product.
      pixels[out++] = (((wu * (upper[i] >> 4)) >> 16) + ((wl * (lower[i] >> 4)) >> 16) + 2) >> 2;
    }
  }
}

/**
 * Fit RGBA pixels into the network's input, centred on grey.
 * Returns { pixels, width, height, place }: RGB bytes of (inputHeight, inputWidth, 3), and what unletterbox needs.
 */
export function letterbox(rgba, width, height, inputWidth, inputHeight) {
  const place = placement(width, height, inputWidth, inputHeight);
  const pixels = new Uint8Array(inputWidth * inputHeight * 3).fill(PADDING_GREY);
  const { innerWidth, innerHeight } = place;
  if (innerWidth === width && innerHeight === height) {
    for (let y = 0, from = 0; y < height; y++) {
      let out = ((place.top + y) * inputWidth + place.left) * 3;
      for (let x = 0; x < width; x++, from += 4) {
        pixels[out++] = rgba[from];
        pixels[out++] = rgba[from + 1];
        pixels[out++] = rgba[from + 2];
      }
    }
  } else if (width === 2 * innerWidth && height === 2 * innerHeight) {
    halve(rgba, width, place, inputWidth, pixels);
  } else {
    resize(rgba, width, height, place, inputWidth, pixels);
  }
  return { pixels, width: inputWidth, height: inputHeight, place };
}

/** Map (n, 4) corners from input pixels to pixels of the image, clipped to it, in place and in float32. */
export function unletterbox(boxes, place, width, height) {
  const ratios = [Math.fround(place.ratioX), Math.fround(place.ratioY)];
  const pads = [place.left, place.top];
  const limits = [width, height];
  for (let i = 0; i < boxes.length; i++) {
    const axis = i % 2;
    const value = Math.fround(Math.fround(boxes[i] - pads[axis]) / ratios[axis]);
    boxes[i] = Math.min(Math.max(value, 0), limits[axis]);
  }
  return boxes;
}
