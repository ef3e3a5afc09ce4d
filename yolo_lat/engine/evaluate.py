"""COCO's twelve numbers, by pycocotools: the only figures this package calls mAP."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.table import Table

from yolo_lat.data.files import read_json
from yolo_lat.data.labels import DetectionSplit
from yolo_lat.data.reader import read_split
from yolo_lat.data.registry import load_dataset
from yolo_lat.errors import UserError

COCO_NUMBERS = {
    "AP": "IoU 0.50:0.95, all sizes",
    "AP50": "IoU 0.50",
    "AP75": "IoU 0.75",
    "APs": "small, area below 32² px",
    "APm": "medium",
    "APl": "large, area above 96² px",
    "AR1": "recall with 1 detection an image",
    "AR10": "recall with 10",
    "AR100": "recall with 100",
    "ARs": "recall, small",
    "ARm": "recall, medium",
    "ARl": "recall, large",
}
_RESULT_KEYS = ("image_id", "category_id", "bbox", "score")


@dataclass(frozen=True)
class CocoResult:
    """What COCOeval found.

    Attributes:
        numbers: the twelve by name; -1 where no ground truth falls into the size range, as pycocotools has it.
        class_ap: (classes, 10) average precision at IoU 0.50, 0.55, ..., 0.95; NaN for classes without ground truth.
    """

    numbers: dict[str, float]
    class_ap: np.ndarray = field(repr=False)

    def table(self, title: str = "COCO evaluation by pycocotools") -> Table:
        """Return the twelve numbers as a table for the terminal."""
        table = Table("metric", "value", "of", title=title, title_justify="left")
        for name, value in self.numbers.items():
            table.add_row(name, f"{value:.3f}" if value >= 0 else "-", COCO_NUMBERS[name])
        return table

    def save(self, path: str | Path) -> None:
        """Write the twelve numbers as JSON."""
        Path(path).write_text(json.dumps(self.numbers, indent=1) + "\n", encoding="utf-8")


def evaluate_detections(split: DetectionSplit, detections: list[dict[str, Any]]) -> CocoResult:
    """Evaluate COCO results (image_id, category_id, bbox xywh in pixels, score) against the ground truth of a split.

    Every image of the split counts, also those without detections.
    """
    truth = split.ground_truth()
    with contextlib.redirect_stdout(io.StringIO()):
        gt, dt = COCO(), COCO()
        gt.dataset = truth
        gt.createIndex()
        if detections:
            dt = gt.loadRes(copy.deepcopy(detections))  # loadRes adds keys to what it is given
        else:
            dt.dataset = {**truth, "annotations": []}
            dt.createIndex()
        evaluation = COCOeval(gt, dt, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # IoU, recall, class at all sizes and 100 detections
    valid = precision.max(axis=(0, 1)) > -1
    class_ap = np.where(valid[:, None], precision.mean(axis=1).T, np.nan)
    numbers = dict(zip(COCO_NUMBERS, map(float, evaluation.stats), strict=True))
    return CocoResult(numbers, class_ap)


def evaluate_predictions(predictions: str | Path, data: str | Path, split: str = "val") -> CocoResult:
    """Evaluate a COCO results JSON, from whatever program, against a data set.

    Raises:
        UserError: not a COCO results file, or one that names images or categories that the data set lacks.
    """
    file = Path(predictions)
    if not file.is_file():
        raise UserError(f"predictions={predictions}: no such file; give a COCO results JSON")
    truth = read_split(load_dataset(data), split)
    detections = read_json(file)
    if not isinstance(detections, list):
        raise UserError(f"{file}: not COCO results; they are a list of {{image_id, category_id, bbox, score}}")
    images, categories = {image.image_id for image in truth.images}, set(truth.category_ids)
    for number, row in enumerate(detections):
        where = f"{file}, entry {number}"
        if not isinstance(row, dict) or not row.keys() >= set(_RESULT_KEYS):
            raise UserError(f"{where}: lacks image_id, category_id, bbox or score; COCO results need all four")
        for key, known in (("image_id", images), ("category_id", categories)):
            if not isinstance(row[key], int) or row[key] not in known:
                raise UserError(f"{where}: {key} {row[key]} is not in {truth.name}; evaluate on the set it is made for")
        box = row["bbox"]
        numbers = [*box, row["score"]] if isinstance(box, list) and len(box) == 4 else [None]
        if not all(isinstance(v, int | float) and np.isfinite(v) for v in numbers):
            raise UserError(f"{where}: bbox {box}, score {row['score']}: not numbers; a box is [x, y, width, height]")
    # Other keys, such as caption, would make pycocotools take the rows for another task's.
    return evaluate_detections(truth, [{key: row[key] for key in _RESULT_KEYS} for row in detections])
