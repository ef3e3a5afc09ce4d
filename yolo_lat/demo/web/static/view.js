// What was found, for eyes and for screen readers: boxes on the picture, a sentence, and a table.

const TEXT_PIXELS = 13; // of the screen
const SMALLEST = 640; // pixels of the drawn picture's longer side, below which labels would be blurred
const ROWS = 100; // of the table

/** Return a class's colour, the one of yolo_lat/drawing.py; black text is legible on all of them. */
export function classColour(classId) {
  const hue = ((classId * 0.618) % 1) * 6;
  const channel = (offset) => {
    const k = (offset + hue) % 6;
    return Math.round(255 * (1 - 0.5 * Math.max(0, Math.min(k, 4 - k, 1))));
  };
  return `rgb(${channel(5)} ${channel(3)} ${channel(1)})`;
}

/** Draw a frame with its boxes, the worst first, so that the best stay on top. */
export function draw(canvas, { bitmap, boxes, scores, classIds, names }) {
  const zoom = Math.max(1, Math.ceil(SMALLEST / Math.max(bitmap.width, bitmap.height)));
  const [width, height] = [bitmap.width * zoom, bitmap.height * zoom];
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  canvas.hidden = false;
  const context = canvas.getContext("2d", { alpha: false });
  context.drawImage(bitmap, 0, 0, width, height);
  const scale = Math.max(width / (canvas.clientWidth || width), height / (canvas.clientHeight || height));
  const size = TEXT_PIXELS * Math.max(scale, 0.5);
  const line = Math.max(2 * scale, 1);
  context.font = `${size}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  for (let i = scores.length - 1; i >= 0; i--) {
    const [x1, y1, x2, y2] = boxes.subarray(i * 4, i * 4 + 4).map((side) => side * zoom);
    const text = `${nameOf(names, classIds[i])} ${scores[i].toFixed(2)}`;
    const labelWidth = context.measureText(text).width + size * 0.6;
    const labelHeight = size * 1.4;
    const left = Math.max(Math.min(x1 - line / 2, width - labelWidth), 0);
    const top = Math.max(y1 - labelHeight, 0);
    context.strokeStyle = context.fillStyle = classColour(classIds[i]);
    context.lineWidth = line;
    context.strokeRect(x1, y1, x2 - x1, y2 - y1);
    context.fillRect(left, top, labelWidth, labelHeight);
    context.fillStyle = "black";
    context.fillText(text, left + size * 0.3, top + labelHeight / 2);
  }
}

function nameOf(names, classId) {
  return names[classId] ?? String(classId);
}

/** Return what was found in words: "3 found: 2 dog, 1 cat". */
export function sentence({ classIds, names }) {
  if (!classIds.length) return "Nothing found above the threshold";
  const counts = new Map();
  for (const id of classIds) counts.set(id, (counts.get(id) ?? 0) + 1);
  const parts = [...counts].sort((a, b) => b[1] - a[1]).map(([id, count]) => `${count} ${nameOf(names, id)}`);
  return `${classIds.length} found: ${parts.join(", ")}`;
}

/** Fill the table's body, best first. */
export function fillRows(body, { boxes, scores, classIds, names }) {
  const rows = [];
  for (let i = 0; i < Math.min(scores.length, ROWS); i++) {
    const row = document.createElement("tr");
    const corners = [...boxes.subarray(i * 4, i * 4 + 4)].map((value) => value.toFixed(1));
    for (const text of [nameOf(names, classIds[i]), scores[i].toFixed(3), ...corners]) {
      const cell = document.createElement("td");
      cell.textContent = text;
      row.append(cell);
    }
    rows.push(row);
  }
  if (scores.length > ROWS) {
    const cell = document.createElement("td");
    cell.colSpan = 6;
    cell.textContent = `and ${scores.length - ROWS} more`;
    const row = document.createElement("tr");
    row.append(cell);
    rows.push(row);
  }
  body.replaceChildren(...rows);
}
