// From the network's output to boxes, with the numbers of yolo_lat/deploy/postprocess.py: float32 throughout.

const MAX_CANDIDATES = 30000; // best-scored boxes that enter NMS
const CLASS_OFFSET = 7680; // pixels between two classes; wider than any input
const round = Math.fround;

/**
 * Decode one image's output.
 * output: { data: Float32Array, dims: [1, rows, columns] }; kind: the metadata `output` of the file, or null.
 * limits: { conf, iou, maxDet }.
 * Returns { boxes: Float32Array (n, 4) corners in input pixels, scores: Float32Array, classIds: Int32Array }, best first.
 */
export function decode(output, kind, limits) {
  if (kind === "best-class") return suppress(bestClassCandidates(output, limits.conf), limits.iou, limits.maxDet);
  if (output.dims[2] === 6) return fromNmsFree(output, limits.conf, limits.maxDet);
  return suppress(rawCandidates(output, limits.conf), limits.iou, limits.maxDet);
}

/** (1, n, 6): x1, y1, x2, y2, score and class of boxes that need no suppression, best first. */
function fromNmsFree({ data, dims }, conf, maxDet) {
  const floor = round(conf);
  const rows = [];
  for (let row = 0; row < dims[1] && rows.length < maxDet; row++) if (data[row * 6 + 4] > floor) rows.push(row);
  const found = empty(rows.length);
  rows.forEach((row, i) => {
    for (let side = 0; side < 4; side++) found.boxes[i * 4 + side] = data[row * 6 + side];
    found.scores[i] = data[row * 6 + 4];
    found.classIds[i] = Math.trunc(data[row * 6 + 5]);
  });
  return found;
}

/** (1, 4 + classes, anchors): centre x, centre y, width, height, then a score for every class. */
function rawCandidates({ data, dims }, conf) {
  const [, rows, anchors] = dims;
  const best = data.slice(4 * anchors, 5 * anchors);
  const ids = new Int32Array(anchors);
  for (let row = 5; row < rows; row++) {
    const start = row * anchors;
    for (let i = 0; i < anchors; i++) {
      const score = data[start + i];
      // What is no number stays, and is above no threshold.
      if (score > best[i] || score !== score) {
        best[i] = score;
        ids[i] = row - 4;
      }
    }
  }
  return bestFirst(data, anchors, best, ids, conf);
}

/** (1, 6, anchors): the box as above, the best score, the number of its class. */
function bestClassCandidates({ data, dims }, conf) {
  const anchors = dims[2];
  const ids = Int32Array.from(data.subarray(5 * anchors, 6 * anchors), Math.trunc);
  return bestFirst(data, anchors, data.subarray(4 * anchors, 5 * anchors), ids, conf);
}

function bestFirst(data, anchors, scores, ids, conf) {
  const floor = round(conf);
  const order = [];
  for (let i = 0; i < anchors; i++) if (scores[i] > floor) order.push(i);
  order.sort((a, b) => scores[b] - scores[a]); // equal ones keep their order
  order.length = Math.min(order.length, MAX_CANDIDATES);
  const found = empty(order.length);
  order.forEach((anchor, i) => {
    for (let axis = 0; axis < 2; axis++) {
      const centre = data[axis * anchors + anchor];
      const half = data[(axis + 2) * anchors + anchor] / 2;
      found.boxes[i * 4 + axis] = centre - half;
      found.boxes[i * 4 + axis + 2] = centre + half;
    }
    found.scores[i] = scores[anchor];
    found.classIds[i] = ids[anchor];
  });
  return found;
}

/** Drop each box that overlaps a better one of its class by more than iou; boxes are sorted best first. */
export function suppress(found, iou, maxDet) {
  const count = found.scores.length;
  const corners = new Float32Array(count * 4);
  const areas = new Float32Array(count);
  for (let i = 0; i < count; i++) {
    // Classes are moved apart rather than compared, since the rounding that this causes is part of the result.
    const offset = round(found.classIds[i] * CLASS_OFFSET);
    for (let side = 0; side < 4; side++) corners[i * 4 + side] = found.boxes[i * 4 + side] + offset;
    const [x1, y1, x2, y2] = corners.subarray(i * 4, i * 4 + 4);
    areas[i] = round(x2 - x1) * round(y2 - y1);
  }
  const kept = [];
  for (let i = 0; i < count && kept.length < maxDet; i++) {
    if (!kept.some((better) => overlap(corners, areas, better, i) > iou)) kept.push(i);
  }
  const result = empty(kept.length);
  kept.forEach((from, to) => {
    result.boxes.set(found.boxes.subarray(from * 4, from * 4 + 4), to * 4);
    result.scores[to] = found.scores[from];
    result.classIds[to] = found.classIds[from];
  });
  return result;
}

/** Intersection over union of two boxes; not a number, hence above no threshold, for two empty ones. */
function overlap(corners, areas, a, b) {
  const p = a * 4;
  const q = b * 4;
  const width = round(Math.min(corners[p + 2], corners[q + 2]) - Math.max(corners[p], corners[q]));
  const height = round(Math.min(corners[p + 3], corners[q + 3]) - Math.max(corners[p + 1], corners[q + 1]));
  const intersection = round(Math.max(width, 0) * Math.max(height, 0));
  return round(intersection / round(round(areas[a] + areas[b]) - intersection));
}

function empty(count) {
  return { boxes: new Float32Array(count * 4), scores: new Float32Array(count), classIds: new Int32Array(count) };
}
