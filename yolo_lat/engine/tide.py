"""What costs AP50: TIDE's six kinds of error and what each of them is worth.

Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020, sections 2.2 and 2.3.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from yolo_lat.engine.matching import Matching, overlaps

FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.1
ERRORS = {
    "classification": "IoU of 0.5 or more with a box of another class",
    "localisation": "IoU of 0.1 to 0.5 with a box of its class",
    "both": "IoU of 0.1 to 0.5 with a box of another class",
    "duplicate": "IoU of 0.5 or more with a box that a better detection has found",
    "background": "IoU of at most 0.1 with every box",
    "missed": "box that no detection found, misnamed or misplaced",
}
_KIND = {name: number for number, name in enumerate(ERRORS)}


@dataclass(frozen=True)
class Errors:
    """TIDE's breakdown of what costs AP50.

    Attributes:
        ap50: AP50 as it is.
        counts: errors of each kind; all are detections but `missed`, which are ground-truth boxes.
        d_ap50: what AP50 gains when errors of that kind alone are mended; NaN without ground truth.
    """

    ap50: float
    counts: dict[str, int]
    d_ap50: dict[str, float]


def break_down(m: Matching) -> Errors:
    """Name the kind of every error and measure what each kind costs.

    A false positive, by COCO's own matching, is in this order of precedence, which is that of the authors' program,
    `localisation`, `classification`, `duplicate`, `background` or `both`, as defined in `ERRORS`. Undetected boxes
    that no localisation or classification error points at are `missed`. Crowds take no part.
    """
    kind, target = classify(m)
    counts = {name: int((kind == number).sum()) for name, number in _KIND.items()}
    missed = missed_boxes(m, kind, target)
    ap50 = mended_ap50(m, kind, target, ())
    gains = {name: mended_ap50(m, kind, target, (name,)) - ap50 for name in ERRORS}
    return Errors(ap50, counts | {"missed": int(missed.sum())}, gains)


def classify(m: Matching) -> tuple[np.ndarray, np.ndarray]:
    """Return (N,) the number of the error in `ERRORS` that each detection is, -1 for none, and (N,) the box it meant.

    Only localisation and classification errors mean a box; for other ones the second number is of no use.
    """
    wrong = m.judged & (m.match < 0)
    kind = np.where(wrong, _KIND["background"], -1)  # also in images without ground truth
    target = np.full(len(m.score), -1)
    for d, g, iou in overlaps(m):
        if iou.size:
            kinds, target[d] = _explain(m, iou, d, g)
            kind[d] = np.where(wrong[d], kinds, -1)
    return kind, target


def _explain(m: Matching, iou: np.ndarray, d: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the kind of error that each detection of an image would be, and the box that it should have found."""
    same = m.label[d][:, None] == m.true_label[g]
    own, other = (np.where(mask & m.counted[g], iou, 0.0) for mask in (same, ~same))
    own_iou, other_iou = own.max(axis=1), other.max(axis=1)
    localisation = (own_iou >= BACKGROUND_IOU) & (own_iou < FOREGROUND_IOU)
    kinds = np.select(
        [
            localisation,
            other_iou >= FOREGROUND_IOU,
            own_iou >= FOREGROUND_IOU,
            np.maximum(own_iou, other_iou) <= BACKGROUND_IOU,
        ],
        [_KIND["localisation"], _KIND["classification"], _KIND["duplicate"], _KIND["background"]],
        _KIND["both"],
    )
    return kinds, g[np.where(localisation, own.argmax(axis=1), other.argmax(axis=1))]


def missed_boxes(m: Matching, kind: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return (M,) bool: undetected, and no localisation or classification error points there."""
    missed = m.counted & ~m.found
    missed[target[np.isin(kind, [_KIND["localisation"], _KIND["classification"]])]] = False
    return missed


def mended_ap50(m: Matching, kind: np.ndarray, target: np.ndarray, mended: Collection[str]) -> float:
    """Return AP50 after TIDE's oracles have mended errors of some kinds.

    A classification or localisation error becomes right if its box is undetected and no better detection is mended onto
    that box, and disappears otherwise; duplicates, background and both disappear; missed boxes cease to be counted.
    A better detection is one of the kinds that are mended; the authors' program takes either of the two kinds for one,
    whichever is mended, and so finds a little less to gain.

    Args:
        m: the matching.
        kind: (N,) number of each detection's error, from `classify`.
        target: (N,) the box that each meant, from `classify`.
        mended: names of the kinds.
    """
    right, label, kept = m.judged & (m.match >= 0), m.label.copy(), m.judged.copy()
    kept[np.isin(kind, [_KIND[name] for name in mended])] = False
    moved = np.flatnonzero(np.isin(kind, [_KIND[n] for n in mended if n in ("localisation", "classification")]))
    moved = moved[~m.found[target[moved]]]
    moved = moved[np.argsort(-m.score[moved], kind="stable")]
    moved = moved[np.unique(target[moved], return_index=True)[1]]  # the best of each box
    kept[moved] = right[moved] = True
    label[moved] = m.true_label[target[moved]]
    counted = m.counted & ~missed_boxes(m, kind, target) if "missed" in mended else m.counted
    order = np.lexsort((m.image, -m.score, label))  # within a class as COCOeval has it, so that ties fall the same way
    order = order[kept[order]]
    aps = []
    for number in np.unique(m.true_label[m.counted]):
        start, end = np.searchsorted(label[order], (number, number + 1))
        aps.append(average_precision(right[order[start:end]], int(counted[m.true_label == number].sum())))
    return float(np.mean(aps)) if aps else float("nan")


def average_precision(right: np.ndarray, positives: int) -> float:
    """Return COCO's 101-point average precision of detections by descending score; 0 without positives."""
    if not positives:
        return 0.0
    hits = np.cumsum(right)
    precision = hits / (np.arange(len(right)) + 1 + np.spacing(1))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    points = np.searchsorted(hits / positives, np.linspace(0, 1, 101), side="left")
    return float(np.append(envelope, 0.0)[points].mean())
