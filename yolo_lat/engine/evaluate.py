"""COCO's twelve numbers, by pycocotools: the only figures this package calls mAP, and what else the same run shows."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faster_coco_eval
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.table import Table

from yolo_lat.data.files import read_json
from yolo_lat.data.labels import DetectionSplit
from yolo_lat.data.reader import read_split
from yolo_lat.data.registry import load_dataset
from yolo_lat.engine import report
from yolo_lat.engine.analysis import Analysis, analyse
from yolo_lat.errors import UserError
from yolo_lat.typed_json import is_number
from yolo_lat.unfinished import write_whole

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
        analysis: what else the run shows; None after a fast evaluation.
    """

    numbers: dict[str, float]
    class_ap: np.ndarray = field(repr=False)
    analysis: Analysis | None = field(repr=False, default=None)

    def table(self, title: str = "COCO evaluation by pycocotools") -> Table:
        """Return the twelve numbers as a table for the terminal."""
        table = Table("metric", "value", "of", title=title, title_justify="left")
        for name, value in self.numbers.items():
            table.add_row(name, f"{value:.3f}" if value >= 0 else "-", COCO_NUMBERS[name])
        return table

    def iou_table(self) -> Table:
        """Return how AP falls as boxes have to be more precise, as a table for the terminal."""
        return report.iou_table(self._analysed())

    def offset_table(self) -> Table:
        """Return where the sides of boxes lie as a table for the terminal."""
        return report.offset_table(self._analysed())

    def class_table(self) -> Table:
        """Return the numbers of each class as a table for the terminal."""
        return report.class_table(self._analysed())

    def error_table(self) -> Table:
        """Return what each kind of error costs as a table for the terminal."""
        return report.error_table(self._analysed())

    def save(self, path: str | Path) -> None:
        """Write the twelve numbers as JSON."""
        write_whole(Path(path), json.dumps(self.numbers, indent=1) + "\n")

    def write(self, folder: Path, split: DetectionSplit, about: dict[str, Any], plots: bool = True) -> list[Path]:
        """Write `evaluation.json`, and figures if `plots`, into a folder.

        Args:
            folder: existing folder.
            split: the ground truth that was evaluated against.
            about: what was evaluated and how; goes into `evaluation.json` as it is.
            plots: draw the figures too.

        Returns:
            The figures written.
        """
        analysis = self._analysed()
        report.write_json(folder / "evaluation.json", self.numbers, analysis, split.ground_truth(), about)
        return report.draw(folder, analysis) if plots else []

    def _analysed(self) -> Analysis:
        if self.analysis is None:
            raise ValueError("a fast evaluation has the twelve numbers only; evaluate without fast=True")
        return self.analysis


def evaluate_detections(split: DetectionSplit, detections: list[dict[str, Any]], fast: bool = False) -> CocoResult:
    """Evaluate COCO results (image_id, category_id, bbox xywh in pixels, score) against the ground truth of a split.

    Every image of the split counts, also those without detections.

    Args:
        split: the ground truth.
        detections: the results; left as they are.
        fast: let faster-coco-eval match in place of pycocotools, several times faster and with the same numbers, and
            analyse nothing beyond them.
    """
    evaluation = coco_evaluation(split, detections, fast)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
        evaluation.summarize()
    order = [evaluation.params.catIds.index(category) for category in split.category_ids]
    precision = evaluation.eval["precision"][:, :, order, 0, -1]  # IoU, recall, class at all sizes and 100 detections
    valid = precision.max(axis=(0, 1)) > -1
    class_ap = np.where(valid[:, None], precision.mean(axis=1).T, np.nan)
    numbers = dict(zip(COCO_NUMBERS, map(float, evaluation.stats[:12]), strict=True))
    return CocoResult(numbers, class_ap, None if fast else analyse(evaluation, split.names, split.category_ids))


def coco_evaluation(split: DetectionSplit, detections: list[dict[str, Any]], fast: bool = False) -> Any:
    """Return a `COCOeval`, or faster-coco-eval's, that has matched COCO results to the ground truth of a split."""
    coco, evaluator = (faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster) if fast else (COCO, COCOeval)
    truth = split.ground_truth()
    with contextlib.redirect_stdout(io.StringIO()):
        gt, dt = coco(), coco()
        gt.dataset = truth
        gt.createIndex()
        if detections:
            dt = gt.loadRes([dict(row) for row in detections])  # loadRes adds keys to what it is given
        else:
            dt.dataset = {**truth, "annotations": []}
            dt.createIndex()
        evaluation = evaluator(gt, dt, "bbox")
        evaluation.evaluate()
    return evaluation


def evaluate_predictions(
    predictions: str | Path,
    data: str | Path,
    split: str = "val",
    save_dir: Path | None = None,
    plots: bool = True,
) -> CocoResult:
    """Evaluate a COCO results JSON, from whatever program, against a data set.

    Args:
        predictions: the results file.
        data: data YAML or name of a data set.
        split: train, val or test.
        save_dir: folder to write what validation writes into, `predictions.json` too; None writes nothing.
        plots: draw the figures.

    Raises:
        UserError: not a COCO results file, or one that names images or categories that the data set lacks; or a split
            without annotations.
    """
    file = Path(predictions)
    if not file.is_file():
        raise UserError(f"predictions={predictions}: no such file; give a COCO results JSON")
    truth = read_split(load_dataset(data), split)
    if not truth.labelled:
        raise UserError(f"{truth.name} has no annotations to evaluate against; choose another split")
    detections = read_results(file, truth)
    result = evaluate_detections(truth, detections)
    if save_dir is not None:
        folder = Path(save_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "predictions.json", json.dumps(detections))
        result.save(folder / "metrics.json")
        about = report.about(data=given_data(data), split=split, predictions=str(file.absolute()))
        result.write(folder, truth, about, plots)
    return result


def read_results(file: Path, split: DetectionSplit) -> list[dict[str, Any]]:
    """Read COCO results for a split: dicts of image_id, category_id, bbox (xywh in pixels) and score.

    Raises:
        UserError: not a COCO results file, or one that names images or categories that the split lacks.
    """
    rows = read_json(file)
    if not isinstance(rows, list):
        raise UserError(f"{file}: not COCO results; they are a list of {{image_id, category_id, bbox, score}}")
    images, categories = {image.image_id for image in split.images}, set(split.category_ids)
    for number, row in enumerate(rows):
        if problem := _problem(row, images, categories, split.name):
            raise UserError(f"{file}, entry {number}: {problem}")
    # Other keys, such as caption, would make pycocotools take the rows for another task's.
    return [{key: row[key] for key in _RESULT_KEYS} for row in rows]


def given_data(data: str | Path) -> str:
    """Return a data set as it was given, a path made absolute."""
    return str(Path(data).absolute()) if Path(data).is_file() else str(data)


def _problem(row: Any, images: set[int], categories: set[int], name: str) -> str | None:
    """Return what is wrong with an entry of a COCO results file, and what to do."""
    try:
        image, category, box, score = (row[key] for key in _RESULT_KEYS)
    except (TypeError, LookupError):
        return "lacks image_id, category_id, bbox or score; COCO results need all four"
    for key, value, known in (("image_id", image, images), ("category_id", category, categories)):
        if not isinstance(value, int) or value not in known:
            return f"{key} {value} is not in {name}; evaluate on the set it is made for"
    numbers = [*box, score] if isinstance(box, list) and len(box) == 4 else [None]
    if not all(map(is_number, numbers)):
        return f"bbox {box}, score {score}: not numbers; a box is [x, y, width, height]"
    return None
