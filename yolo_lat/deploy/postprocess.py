"""From the network's output to boxes in input pixels: score threshold and non-maximum suppression (NMS), numpy only.

Results equal those of `ultralytics.utils.nms.non_max_suppression` with one label per box and class-aware suppression,
but without its time limit, which drops images in silence. Where asked for, boxes that suppression drops vote on the one
that it keeps, as in `yolo_lat.engine.box_voting`.
"""

from __future__ import annotations

from numbers import Real
from typing import Any, NamedTuple

import numpy as np

MAX_CANDIDATES = 30_000  # best-scored boxes that enter NMS, as in Ultralytics
CLASS_OFFSET = 7680  # pixels between two classes, as in Ultralytics; wider than any input
_BLOCK = 256  # candidates compared with each other at once


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


def is_threshold(value: Any) -> bool:
    """Return whether a value is a number from 0 to 1."""
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) <= 1


def from_raw_output(
    output: np.ndarray, conf: float, iou: float, max_det: int, box_vote: float | None = None
) -> list[Boxes]:
    """Decode a head's raw output and suppress overlapping boxes of the same class.

    Args:
        output: (B, 4 + num_classes, anchors) float: centre x, centre y, width, height in input pixels, then a score in
            0..1 for every class.
        conf: Keep boxes whose best class scores above this.
        iou: Suppress a box that overlaps a better one by more than this intersection over union.
        max_det: Most boxes to return for an image.
        box_vote: Replace a box that is kept by the mean, weighted by score, of all boxes of its class that overlap it
            by more than this intersection over union.
    """
    return [_suppress(_candidates(image, conf), iou, max_det, box_vote) for image in _as_float(output)]


def from_best_class_output(
    output: np.ndarray, conf: float, iou: float, max_det: int, box_vote: float | None = None
) -> list[Boxes]:
    """As `from_raw_output`, for (B, 6, anchors): centre x, centre y, width, height, best score, number of its class."""
    results = []
    for image in _as_float(output):
        rows = image[:, image[4] > _floor(np.float32(conf), image.dtype)].astype(np.float32)
        boxes = _best_first(rows[:4], rows[4], rows[5].astype(np.int64))
        results.append(_suppress(boxes, iou, max_det, box_vote))
    return results


def from_nms_free_output(output: np.ndarray, conf: float, max_det: int) -> list[Boxes]:
    """Threshold the (B, n, 6) output of a head that needs no NMS; rows are x1, y1, x2, y2, score, class, best first."""
    results = []
    for rows in output.astype(np.float32):
        rows = rows[rows[:, 4] > np.float32(conf)][:max_det]
        results.append(Boxes(rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64)))
    return results


def _as_float(output: np.ndarray) -> np.ndarray:
    """Return float16 and float32 as they are, other numbers as float32."""
    return output if output.dtype in (np.float16, np.float32) else output.astype(np.float32)


def _floor(value: np.floating | float, dtype: np.dtype) -> np.floating:
    """Return the largest number of `dtype` that is at most `value`; the same numbers of `dtype` are above both."""
    rounded = dtype.type(value)
    return rounded if float(rounded) <= float(value) else np.nextafter(rounded, dtype.type(-np.inf))


def _candidates(prediction: np.ndarray, conf: float) -> Boxes:
    """Return the boxes of a (4 + num_classes, anchors) prediction whose best class scores above `conf`, best first."""
    # Positive floats are ordered as the integers of the same bits, whose maximum numpy finds ten times faster in half
    # precision; negative ones are not, but stay below every threshold. What is no number is sorted out afterwards.
    bits = np.dtype(f"i{prediction.itemsize}")
    limit = _floor(np.float32(conf), prediction.dtype).view(bits)
    found = np.flatnonzero(prediction[4:].view(bits).max(axis=0) > limit)
    scores = prediction[4:, found].astype(np.float32)
    best = scores.max(axis=0)
    known = ~np.isnan(best)
    return _best_first(prediction[:4, found[known]].astype(np.float32), best[known], scores.argmax(axis=0)[known])


def _best_first(xywh: np.ndarray, scores: np.ndarray, class_ids: np.ndarray) -> Boxes:
    """Return the best of (4, n) centred boxes, sorted by score; equal ones keep their order."""
    order = np.argsort(-scores, kind="stable")[:MAX_CANDIDATES]
    centre, half_size = xywh[:2, order].T, xywh[2:, order].T / 2
    xyxy = np.concatenate([centre - half_size, centre + half_size], axis=1)
    return Boxes(xyxy, scores[order], class_ids[order])


def _suppress(boxes: Boxes, iou: float, max_det: int, box_vote: float | None) -> Boxes:
    """Greedy class-aware NMS over boxes sorted best first, and their vote."""
    # Classes are moved apart rather than compared: the rounding that this causes is part of Ultralytics' result.
    corners = boxes.xyxy.T + (boxes.class_ids * CLASS_OFFSET).astype(np.float32)
    limit = _floor(iou, corners.dtype)  # exact: torchvision compares in double precision
    kept = np.empty(0, np.intp)
    for start in range(0, len(boxes.scores), _BLOCK):
        block = np.arange(start, min(start + _BLOCK, len(boxes.scores)))
        if kept.size:
            block = block[~_overlap(corners[:, kept], corners[:, block], limit).any(axis=0)]
        overlap = _overlap(corners[:, block], corners[:, block], limit)
        alive = np.ones(len(block), bool)
        for row in np.flatnonzero(np.triu(overlap, 1).any(axis=1)):
            if alive[row]:
                alive[row + 1 :] &= ~overlap[row, row + 1 :]
        kept = np.concatenate([kept, block[alive]])
        if len(kept) >= max_det:
            break
    found = Boxes(*(values[kept[:max_det]] for values in boxes))
    return found if box_vote is None else found._replace(xyxy=_vote(boxes, found, box_vote))


def _vote(boxes: Boxes, found: Boxes, limit: float) -> np.ndarray:
    """Return the (n, 4) corners of `found`, each the mean of the `boxes` of its class that overlap it."""
    voted = found.xyxy.copy()
    for class_id in np.unique(found.class_ids):
        of_class, chosen = boxes.class_ids == class_id, np.flatnonzero(found.class_ids == class_id)
        corners, scores = boxes.xyxy[of_class], boxes.scores[of_class]
        weights = scores * _overlap(found.xyxy[chosen].T, corners.T, np.float32(limit))
        total = weights.sum(axis=1, keepdims=True)
        some = total[:, 0] > 0  # an empty box overlaps nothing, not even itself
        voted[chosen[some]] = (weights[some] @ corners) / total[some]
    return voted


def _overlap(better: np.ndarray, others: np.ndarray, limit: np.floating) -> np.ndarray:
    """Return (n, m): whether (4, n) and (4, m) corners overlap by an intersection over union above `limit`."""
    x1, y1, x2, y2 = better[:, :, None]
    other_x1, other_y1, other_x2, other_y2 = others[:, None]
    overlap_w = np.minimum(x2, other_x2) - np.maximum(x1, other_x1)
    overlap_h = np.minimum(y2, other_y2) - np.maximum(y1, other_y1)
    intersection = np.maximum(overlap_w, 0) * np.maximum(overlap_h, 0)
    union = (x2 - x1) * (y2 - y1) + (other_x2 - other_x1) * (other_y2 - other_y1) - intersection
    with np.errstate(invalid="ignore"):  # 0 / 0 of two empty boxes: not a number, hence no overlap
        return intersection / union > limit
