"""COCO's twelve numbers on resampled images, without evaluating again.

The percentile bootstrap of Efron & Tibshirani, An Introduction to the Bootstrap (1993), section 13.3: draw as many
images as there are, with replacement, compute the number, repeat, and take quantiles. Images are drawn, not boxes,
since the boxes of one image are not independent of each other.

pycocotools matches detections to ground truth image by image, so a resample does not change the matches: it changes how
often each image counts. The matches are made once, and a resample is a vector of image counts that weighs them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from yolo_lat.data.labels import DetectionSplit
from yolo_lat.engine.evaluate import COCO_NUMBERS, coco_evaluation

_RECALLS = np.linspace(0, 1, 101)  # where COCO reads precision off the curve
_SIZES = range(4)  # all, small, medium, large, as in COCOeval's parameters
_CAPS = (1, 10, 100)  # detections an image and class that count
_CELLS = 1 << 22  # resamples times detections worked on at once: 16 MB as int32
_ROUNDING = 1e-12  # differences below are those of floating point


@dataclass(frozen=True)
class Interval:
    """A number with its percentile interval; NaN where no ground truth falls into its size range.

    Attributes:
        value: on all images.
        low, high: bounds.
        resamples: how many have ground truth for this number, and so entered the bounds.
    """

    value: float
    low: float
    high: float
    resamples: int


@dataclass(frozen=True)
class Difference(Interval):
    """A number of a run minus that of the reference.

    Attributes:
        better, worse: in how many of the resamples the run has the higher, the lower number.
        excludes_zero: both bounds lie on the same side of zero.
    """

    better: int
    worse: int
    excludes_zero: bool


def percentile_interval(value: float, resampled: np.ndarray, confidence: float) -> Interval:
    """Return the interval between the quantiles that leave out equal parts of (n,) resampled values at either end."""
    known = resampled[~np.isnan(resampled)]
    if not len(known):
        return Interval(float(value), float("nan"), float("nan"), 0)
    tail = (1 - confidence) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return Interval(float(value), float(low), float(high), len(known))


def paired_difference(value: float, resampled: np.ndarray, confidence: float) -> Difference:
    """Return the interval of a difference from the (n,) differences on resamples that both runs were given."""
    resampled = np.where(np.abs(resampled) < _ROUNDING, 0, resampled)
    found = percentile_interval(0 if abs(value) < _ROUNDING else value, resampled, confidence)
    better, worse = int((resampled > 0).sum()), int((resampled < 0).sum())
    return Difference(**asdict(found), better=better, worse=worse, excludes_zero=found.low > 0 or found.high < 0)


def resample_images(images: int, resamples: int, seed: int, batch: int = 100) -> Iterator[np.ndarray]:
    """Draw `images` images with replacement, `resamples` times.

    Yields:
        (batch, images) int32, how often each image was drawn; the last batch may be smaller. The draws depend on
        `images` and `seed` alone, and fewer resamples are the first of more.
    """
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, batch):
        drawn = [rng.integers(0, images, images) for _ in range(min(batch, resamples - start))]
        yield np.stack([np.bincount(row, minlength=images) for row in drawn]).astype(np.int32)


@dataclass(frozen=True)
class _Curve:
    """The precision-recall curve of one class, size range and IoU.

    Precision is read off at true positives alone, since its maximum to the right of any point lies at one.

    Attributes:
        hits: (k,) image of each true positive, best score first.
        steady: (k,) how many of `_SizeRange.steady` come up to and including each.
        varying: (m,) images of further detections that count at this IoU but not at every one.
        varying_before: (k,) how many of those come up to and including each true positive.
    """

    hits: np.ndarray
    steady: np.ndarray
    varying: np.ndarray
    varying_before: np.ndarray

    def average_precision(self, weights: np.ndarray, steady: np.ndarray, truths: np.ndarray) -> np.ndarray:
        """Return the (b,) mean of the interpolated precision at the 101 recalls.

        Args:
            weights: (b, images) image counts.
            steady: (b, d + 1) running count of `_SizeRange.steady`.
            truths: (b,) objects to be found.
        """
        if not len(self.hits):
            return np.zeros(len(weights))
        found = np.cumsum(weights.take(self.hits, axis=1), axis=1, dtype=np.int32)
        counted = steady.take(self.steady, axis=1)
        counted += _running_count(weights, self.varying).take(self.varying_before, axis=1)
        precision = found / np.maximum(counted, 1)
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        reached = np.searchsorted(_RECALLS, found / np.maximum(truths, 1)[:, None], side="right")
        return np.einsum("bk,bk->b", envelope, np.diff(reached, axis=1, prepend=0)) / len(_RECALLS)


@dataclass(frozen=True)
class _SizeRange:
    """One class in one of COCO's size ranges.

    Attributes:
        truths: (n,) image of each object to be found.
        steady: (d,) images of the detections that count, as true or false, at every IoU, best score first.
        curves: one for each IoU.
        recalled: for each cap on detections an image, (k,) images of detections that are true positives at some IoU,
            and (k,) at how many.
    """

    truths: np.ndarray
    steady: np.ndarray
    curves: list[_Curve]
    recalled: list[tuple[np.ndarray, np.ndarray]]

    def average_precisions(self, weights: np.ndarray, truths: np.ndarray) -> np.ndarray:
        """Return (IoUs, b) average precisions of (b, images) image counts, `_CELLS` at a time."""
        rows = max(1, _CELLS // (len(self.steady) + 1))
        blocks = []
        for start in range(0, len(weights), rows):
            block, wanted = weights[start : start + rows], truths[start : start + rows]
            steady = _running_count(block, self.steady)
            blocks.append([curve.average_precision(block, steady, wanted) for curve in self.curves])
        return np.concatenate(blocks, axis=1)

    def recalls(self, weights: np.ndarray, truths: np.ndarray) -> list[np.ndarray]:
        """Return the (b,) mean recall over IoUs for each cap."""
        wanted = np.maximum(truths, 1) * len(self.curves)
        return [weights.take(images, axis=1) @ times / wanted for images, times in self.recalled]


@dataclass(frozen=True)
class Matches:
    """Which detections are right, by pycocotools, in a form that image counts can weigh.

    Attributes:
        image_ids: (images,) COCO ids in rising order; image counts are in this order.
        classes: the four size ranges of every class that has ground truth or detections.
    """

    image_ids: np.ndarray
    classes: list[list[_SizeRange]]

    def numbers(self, weights: np.ndarray) -> np.ndarray:
        """Compute COCO's twelve numbers on data in which every image occurs as often as its count says.

        Args:
            weights: (b, images) whole numbers, not negative.

        Returns:
            (b, 12) float64 in the order of `COCO_NUMBERS`; NaN where no ground truth falls into the size range, for
            which pycocotools has -1. A class counts where it has ground truth in the resample.
        """
        weights = np.ascontiguousarray(weights, dtype=np.int32)
        sums = np.zeros((len(COCO_NUMBERS), len(weights)))
        counts = np.zeros_like(sums)
        for ranges in self.classes:
            for size, part in zip(_SIZES, ranges, strict=True):
                truths = weights.take(part.truths, axis=1).sum(axis=1)
                precisions = part.average_precisions(weights, truths)
                recalls = part.recalls(weights, truths)
                if size == 0:  # AP, AP50, AP75, AR1, AR10, AR100
                    rows = [0, 1, 2, 6, 7, 8]
                    values = [precisions.mean(axis=0), precisions[0], precisions[5], *recalls]
                else:
                    rows = [2 + size, 8 + size]
                    values = [precisions.mean(axis=0), recalls[-1]]
                sums[rows] += values  # zero without ground truth, which nothing can then match
                counts[rows] += truths > 0
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan).T


def match_detections(split: DetectionSplit, detections: list[dict[str, Any]]) -> Matches:
    """Match COCO results (image_id, category_id, bbox xywh in pixels, score) to the ground truth of a split."""
    evaluation = coco_evaluation(split, detections)
    parameters = evaluation.params
    images, classes = len(parameters.imgIds), []
    per_class = images * len(_SIZES)  # evalImgs lists classes, in them size ranges, in them images
    for number in range(len(parameters.catIds)):
        entries = evaluation.evalImgs[number * per_class : (number + 1) * per_class]
        by_size = [entries[size * images : (size + 1) * images] for size in _SIZES]
        seen = [(image, rows) for image, rows in enumerate(zip(*by_size, strict=True)) if rows[0] is not None]
        if seen:
            classes.append(_size_ranges(seen))
    return Matches(np.array(parameters.imgIds), classes)


def _size_ranges(seen: list[tuple[int, tuple[dict[str, Any], ...]]]) -> list[_SizeRange]:
    """Join the images in which a class occurs: (image, COCOeval's match in each size range) in the order of images."""
    lengths = [len(rows[0]["dtScores"]) for _, rows in seen]
    scores = np.concatenate([np.array(rows[0]["dtScores"], dtype=np.float64) for _, rows in seen])
    order = np.argsort(-scores, kind="stable")  # as COCOeval orders equal scores
    positions = np.array([image for image, _ in seen])
    image_of = np.repeat(positions, lengths)[order]
    rank = np.concatenate([np.arange(length) for length in lengths])[order]
    ranges = []
    for size in _SIZES:
        ignored_truths = [rows[size]["gtIgnore"] for _, rows in seen]
        truths = np.repeat(positions, [int((ignored == 0).sum()) for ignored in ignored_truths])
        counted = ~np.concatenate([rows[size]["dtIgnore"] for _, rows in seen], axis=1)[:, order].astype(bool)
        matched = np.concatenate([rows[size]["dtMatches"] for _, rows in seen], axis=1)[:, order] > 0
        caps = _CAPS if size == 0 else _CAPS[-1:]
        ranges.append(_size_range(truths, image_of, rank, matched & counted, counted, caps))
    return ranges


def _size_range(
    truths: np.ndarray,
    image_of: np.ndarray,
    rank: np.ndarray,
    hit: np.ndarray,
    counted: np.ndarray,
    caps: tuple[int, ...],
) -> _SizeRange:
    """Gather (IoUs, d) flags of detections, best score first, `rank` being the place in their image from 0."""
    steady = counted.all(axis=0)
    steady_before = np.cumsum(steady)
    curves = []
    for hit_row, varying in zip(hit, counted & ~steady, strict=True):
        curves.append(_Curve(image_of[hit_row], steady_before[hit_row], image_of[varying], np.cumsum(varying)[hit_row]))
    recalled = []
    for cap in caps:
        times = hit[:, rank < cap].sum(axis=0)
        recalled.append((image_of[rank < cap][times > 0], times[times > 0]))
    return _SizeRange(truths, image_of[steady], curves, recalled)


def _running_count(weights: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Return (b, n + 1) int32: the summed counts of the first 0, 1, ..., n of `images`."""
    total = np.zeros((len(weights), len(images) + 1), dtype=np.int32)
    np.cumsum(weights.take(images, axis=1), axis=1, out=total[:, 1:])
    return total
