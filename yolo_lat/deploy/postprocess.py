"""From the network's output to boxes in input pixels: score threshold and non-maximum suppression (NMS), numpy only.

Results equal those of `ultralytics.utils.nms.non_max_suppression` with one label per box and class-aware suppression,
but without its time limit, which drops images in silence.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

MAX_CANDIDATES = 30_000  # best-scored boxes that enter NMS, as in Ultralytics
CLASS_OFFSET = 7680  # pixels between two classes, as in Ultralytics; wider than any input


class Boxes(NamedTuple):
    """Boxes of one image, best score first.

    Attributes:
        xyxy: (n, 4) float32 corners, input pixels.
        scores: (n,) float32.
        class_ids: (n,) int64.
    """

    xyxy: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray


def from_raw_output(output: np.ndarray, conf: float, iou: float, max_det: int) -> list[Boxes]:
    """Decode a head's raw output and suppress overlapping boxes of the same class.

    Args:
        output: (B, 4 + num_classes, anchors) float: centre x, centre y, width, height in input pixels, then a score in
            0..1 for every class.
        conf: Keep boxes whose best class scores above this.
        iou: Suppress a box that overlaps a better one by more than this intersection over union.
        max_det: Most boxes to return for an image.
    """
    return [_suppress(_candidates(image.astype(np.float32), conf), iou, max_det) for image in output]


def from_nms_free_output(output: np.ndarray, conf: float, max_det: int) -> list[Boxes]:
    """Threshold the (B, n, 6) output of a head that needs no NMS; rows are x1, y1, x2, y2, score, class, best first."""
    results = []
    for rows in output.astype(np.float32):
        rows = rows[rows[:, 4] > np.float32(conf)][:max_det]
        results.append(Boxes(rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64)))
    return results


def _candidates(prediction: np.ndarray, conf: float) -> Boxes:
    """Return the boxes of a (4 + num_classes, anchors) prediction whose best class scores above `conf`."""
    best = prediction[4:].max(axis=0)
    found = np.flatnonzero(best > np.float32(conf))
    found = found[np.argsort(-best[found], kind="stable")[:MAX_CANDIDATES]]
    centre, half_size = prediction[:2, found].T, prediction[2:4, found].T / 2
    xyxy = np.concatenate([centre - half_size, centre + half_size], axis=1)
    return Boxes(xyxy, best[found], prediction[4:, found].argmax(axis=0))


def _suppress(boxes: Boxes, iou: float, max_det: int) -> Boxes:
    """Greedy class-aware NMS over boxes sorted best first."""
    # Classes are moved apart rather than compared: the rounding that this causes is part of Ultralytics' result.
    offset = (boxes.class_ids * CLASS_OFFSET).astype(np.float32)
    x1, y1, x2, y2 = boxes.xyxy.T + offset
    areas = (x2 - x1) * (y2 - y1)

    kept: list[int] = []
    rest = np.arange(len(areas))
    while rest.size and len(kept) < max_det:
        best, rest = rest[0], rest[1:]
        kept.append(best)
        overlap_w = np.minimum(x2[best], x2[rest]) - np.maximum(x1[best], x1[rest])
        overlap_h = np.minimum(y2[best], y2[rest]) - np.maximum(y1[best], y1[rest])
        overlap = np.maximum(overlap_w, 0) * np.maximum(overlap_h, 0)
        union = areas[best] + areas[rest] - overlap
        with np.errstate(invalid="ignore"):  # 0 / 0 of two empty boxes: not a number, hence no overlap
            suppressed = overlap / union > np.float64(iou)  # in double precision, as torchvision compares
        rest = rest[~suppressed]
    return Boxes(*(values[kept] for values in boxes))
