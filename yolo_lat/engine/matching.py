"""How COCOeval matched detections to ground truth, as flat arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_boxes


@dataclass(frozen=True)
class Matching:
    """How COCOeval matched detections to ground truth at IoU 0.50 and all sizes; N detections, M boxes, as given.

    Attributes:
        names: class names.
        image, label, score: (N,) number of the image, number of the class and confidence of each detection.
        boxes: (N, 4) float64 xywh in pixels.
        kept: (N,) bool, among the 100 best of its class in its image; COCO looks at no others.
        ignored: (N,) bool, neither right nor wrong: on a crowd.
        match: (N,) the ground-truth box found, -1 for none.
        true_image, true_label, true_boxes, true_areas, crowd: the same of the ground truth, areas in square pixels.
        counted: (M,) bool, to be found: no crowd, and inside COCO's range of all sizes.
    """

    names: tuple[str, ...]
    image: np.ndarray
    label: np.ndarray
    score: np.ndarray
    boxes: np.ndarray
    kept: np.ndarray
    ignored: np.ndarray
    match: np.ndarray
    true_image: np.ndarray
    true_label: np.ndarray
    true_boxes: np.ndarray
    true_areas: np.ndarray
    crowd: np.ndarray
    counted: np.ndarray

    @property
    def judged(self) -> np.ndarray:
        """(N,) bool, true or false positive in COCO's eyes."""
        return self.kept & ~self.ignored

    @property
    def found(self) -> np.ndarray:
        """(M,) bool, ground truth that COCO takes as detected."""
        found = np.zeros(len(self.counted), dtype=bool)
        found[self.match[self.judged & (self.match >= 0)]] = True
        return found


def matching(evaluation: Any, names: Sequence[str], category_ids: Sequence[int]) -> Matching:
    """Read the matches at the first IoU threshold, 0.50, and all sizes off the cells of a `COCOeval`."""
    params, cell_ids, cells = evaluation.params, [], []
    images = len(params.imgIds)
    for number in range(len(params.catIds)):
        start = number * len(params.areaRng) * images  # by class, then size, all sizes first, then image
        for cell in evaluation.evalImgs[start : start + images]:
            if cell is not None and cell["dtIds"]:
                cell_ids.extend(cell["dtIds"])
                cells.append(np.stack([cell["dtMatches"][0], cell["dtIgnore"][0]]))
    found = evaluation.cocoDt.dataset["annotations"]
    truth = evaluation.cocoGt.dataset["annotations"]
    image_of = {image: i for i, image in enumerate(params.imgIds)}
    class_of = {category: i for i, category in enumerate(category_ids)}
    kept, ignored = np.zeros((2, len(found)), dtype=bool)
    match = np.full(len(found), -1)
    if cells:
        places = np.array(cell_ids, dtype=np.int64) - 1
        matched, ignore = np.concatenate(cells, axis=1)
        kept[places], ignored[places], match[places] = True, ignore > 0, matched.astype(np.int64) - 1
    areas, crowd = _column(truth, "area", float), _column(truth, "iscrowd", bool)
    low, high = params.areaRng[0]
    return Matching(
        tuple(names),
        np.array([image_of[row["image_id"]] for row in found], dtype=np.int64),
        np.array([class_of[row["category_id"]] for row in found], dtype=np.int64),
        _column(found, "score", float),
        _column(found, "bbox", float).reshape(-1, 4),
        kept,
        ignored,
        match,
        np.array([image_of[row["image_id"]] for row in truth], dtype=np.int64),
        np.array([class_of[row["category_id"]] for row in truth], dtype=np.int64),
        _column(truth, "bbox", float).reshape(-1, 4),
        areas,
        crowd,
        ~crowd & (areas >= low) & (areas <= high),
    )


def _column(rows: list[dict[str, Any]], key: str, dtype: type) -> np.ndarray:
    return np.array([row[key] for row in rows], dtype=dtype)


def overlaps(m: Matching) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield for each image its kept detections, best score first, its ground truth, and how all of them overlap.

    Yields:
        numbers of d detections, numbers of g boxes, and their (d, g) IoU, which for a crowd is COCO's: the part of the
        detection that lies on it.
    """
    by_score = np.argsort(-m.score, kind="stable")
    detections = _by_image(by_score[m.kept[by_score]], m.image)
    truths = _by_image(np.arange(len(m.counted)), m.true_image)
    none = np.zeros(0, dtype=np.int64)
    for number in sorted(detections.keys() | truths.keys()):
        d, g = detections.get(number, none), truths.get(number, none)
        both = len(d) and len(g)
        iou = coco_boxes.iou(m.boxes[d], m.true_boxes[g], m.crowd[g].astype(np.uint8)) if both else []
        yield d, g, np.asarray(iou, dtype=np.float64).reshape(len(d), len(g))


def _by_image(numbers: np.ndarray, image: np.ndarray) -> dict[int, np.ndarray]:
    """Group numbers of detections or boxes by their image, in the order given."""
    if not len(numbers):
        return {}
    order = numbers[np.argsort(image[numbers], kind="stable")]
    images, starts = np.unique(image[order], return_index=True)
    return dict(zip(images.tolist(), np.split(order, starts[1:]), strict=True))
