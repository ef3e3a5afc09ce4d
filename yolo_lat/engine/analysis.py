"""What one COCO evaluation says beyond its twelve numbers: classes, curves, confusions, errors and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from yolo_lat.engine.matching import Matching, matching, overlaps
from yolo_lat.engine.tide import FOREGROUND_IOU, Errors, break_down

CONFIDENCE = 0.25
BINS = 15
SIZES = ("small", "medium", "large")
SIDES = ("left", "top", "right", "bottom")


@dataclass(frozen=True)
class Calibration:
    """Whether scores are probabilities of being right, at IoU 0.50.

    Attributes:
        edges: (bins + 1,) bounds of the bins of score; the upper bound belongs to a bin.
        counts: (bins,) detections in each.
        score: (bins,) their mean score; NaN where there are none.
        precision: (bins,) which part of them is right; NaN where there are none.
        d_ece: detection expected calibration error of all detections, 0 to 1.
        d_ece_confident: the same of detections with a score of `CONFIDENCE` or more; NaN where there are none.
    """

    edges: np.ndarray
    counts: np.ndarray
    score: np.ndarray
    precision: np.ndarray
    d_ece: float
    d_ece_confident: float


@dataclass(frozen=True)
class Offsets:
    """How far the sides of boxes lie from those of the objects that they found, at IoU 0.50, right and down positive.

    A mean that is no zero is a shift or a size that all boxes share, such as half a pixel of a label format.

    Attributes:
        boxes: how many were found.
        mean: (4,) of left, top, right and bottom, pixels of the original images; NaN where there are none.
        spread: (4,) the standard deviation.
    """

    boxes: int
    mean: np.ndarray
    spread: np.ndarray


@dataclass(frozen=True)
class Analysis:
    """All that is derived from one evaluation; C classes.

    Attributes:
        names: class names.
        iou_ap: average precision by IoU, "0.50" to "0.95", the mean over classes; NaN without any ground truth.
        classes: columns of C values by name: AP, AP50, AP75, APs, APm, APl, AR100 (NaN without ground truth), and the
            counts of ground-truth boxes, images with such a box, and detections.
        sizes: ground-truth boxes that are small, medium and large.
        recall: (101,) COCO's recall points.
        precision: "AP50" and "AP75" to (C, 101) precision at these points; NaN without ground truth.
        confusion: (C + 1, C + 1) counts, true class by row and detected class by column, background last.
        offsets: where the sides of boxes lie.
        errors: the breakdown of errors.
        calibration: the reliability of scores.
    """

    names: tuple[str, ...]
    iou_ap: dict[str, float]
    classes: dict[str, np.ndarray] = field(repr=False)
    sizes: dict[str, int]
    recall: np.ndarray = field(repr=False)
    precision: dict[str, np.ndarray] = field(repr=False)
    confusion: np.ndarray = field(repr=False)
    offsets: Offsets
    errors: Errors
    calibration: Calibration = field(repr=False)


def analyse(evaluation: Any, names: Sequence[str], category_ids: Sequence[int]) -> Analysis:
    """Derive everything from a `COCOeval` that has been accumulated.

    Its annotations and detections must be numbered 1, 2, 3, ... in their order, as `DetectionSplit.ground_truth` and
    `COCO.loadRes` do.
    """
    params = evaluation.params
    order = [params.catIds.index(category) for category in category_ids]
    precision = evaluation.eval["precision"][..., -1][:, :, order]  # IoU, recall, class, size
    recall = evaluation.eval["recall"][:, order, 0, -1]  # IoU, class
    absent = precision.max(axis=(0, 1)) < 0  # class, size
    precision = np.where(absent, np.nan, precision)
    m = matching(evaluation, names, category_ids)
    small, medium, large = (
        m.counted & (m.true_areas >= low) & (m.true_areas <= high) for low, high in params.areaRng[1:]
    )
    pairs = np.unique(np.stack([m.true_image, m.true_label], axis=1)[m.counted], axis=0)
    count = len(names)
    known = precision[:, :, ~absent[:, 0], 0]  # IoU, recall, class
    means = known.mean(axis=(1, 2)) if known.size else np.full(len(known), np.nan)
    classes = {
        "AP": precision[..., 0].mean(axis=(0, 1)),
        "AP50": precision[0, ..., 0].mean(axis=0),
        "AP75": precision[5, ..., 0].mean(axis=0),
        **{f"AP{size[0]}": precision[..., i].mean(axis=(0, 1)) for i, size in enumerate(SIZES, start=1)},
        "AR100": np.where(absent[:, 0], np.nan, recall.mean(axis=0)),
        "boxes": np.bincount(m.true_label[m.counted], minlength=count),
        "images": np.bincount(pairs[:, 1], minlength=count),
        "detections": np.bincount(m.label, minlength=count),
    }
    return Analysis(
        tuple(names),
        {f"{iou:.2f}": float(mean) for iou, mean in zip(params.iouThrs, means, strict=True)},
        classes,
        {size: int(inside.sum()) for size, inside in zip(SIZES, (small, medium, large), strict=True)},
        np.asarray(params.recThrs),
        {"AP50": precision[0, :, :, 0].T, "AP75": precision[5, :, :, 0].T},
        confusion_matrix(m),
        offsets(m),
        break_down(m),
        calibration(m.score[m.judged], m.match[m.judged] >= 0),
    )


def confusion_matrix(m: Matching) -> np.ndarray:
    """Count which class was taken for which, among detections with a score of at least `CONFIDENCE`, at IoU 0.5.

    Matching is one-to-one over all classes: the best score first takes the free box that it overlaps most, its own
    class's where two overlap alike. A detection that takes none and lies on a crowd of its class is left out, as COCO
    does; other ones are background taken for an object, and boxes that stay free are objects taken for background.

    Returns:
        (C + 1, C + 1) counts, true class by row and detected class by column, background last.
    """
    confusion = np.zeros((len(m.names) + 1,) * 2, dtype=np.int64)
    for d, g, iou in overlaps(m):
        free = [column for column in range(len(g)) if m.counted[g[column]]]
        for row in np.flatnonzero(m.score[d] >= CONFIDENCE):
            label = m.label[d[row]]
            near = [(iou[row, c], m.true_label[g[c]] == label, -c) for c in free if iou[row, c] >= FOREGROUND_IOU]
            if near:
                column = -max(near)[2]
                free.remove(column)
                confusion[m.true_label[g[column]], label] += 1
            elif not (~m.counted[g] & (m.true_label[g] == label) & (iou[row] >= FOREGROUND_IOU)).any():
                confusion[-1, label] += 1
        np.add.at(confusion, (m.true_label[g[free]], -1), 1)
    return confusion


def offsets(m: Matching) -> Offsets:
    """Measure where the sides of true positives lie."""
    right = m.judged & (m.match >= 0)
    by = m.boxes[right] - m.true_boxes[m.match[right]]  # x, y, width, height
    by[:, 2:] += by[:, :2]
    if not len(by):
        return Offsets(0, *np.full((2, 4), np.nan))
    return Offsets(len(by), by.mean(axis=0), by.std(axis=0))


def calibration(score: np.ndarray, right: np.ndarray, bins: int = BINS) -> Calibration:
    """Compare scores with the precision they come with (Küppers et al., CVPR workshops 2020, confidence only).

    The detection expected calibration error is the mean over detections of |precision - mean score| of their bin.

    Args:
        score: (N,) confidence, 0 to 1.
        right: (N,) bool, whether the detection found a box of its class at IoU 0.50.
        bins: number of bins of equal width.
    """
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, score, side="left") - 1, 0, bins - 1)

    def sums(part: np.ndarray) -> np.ndarray:
        """(3, bins): detections, their scores and how many are right, of those in `part`."""
        values = (np.ones(len(score)), score, right)
        return np.stack([np.bincount(place[part], value[part], minlength=bins) for value in values])

    def error(part: np.ndarray) -> float:
        counts, scores, rights = sums(part)
        return float(np.abs(scores - rights).sum() / counts.sum()) if counts.any() else float("nan")

    everything = np.ones(len(score), dtype=bool)
    counts, scores, rights = sums(everything)
    filled = np.where(counts > 0, counts, np.nan)
    return Calibration(
        edges, counts.astype(int), scores / filled, rights / filled, error(everything), error(score >= CONFIDENCE)
    )
