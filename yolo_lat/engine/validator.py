"""Validation: Ultralytics' loop, COCO's numbers."""

from __future__ import annotations

import gc
import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import torch
import yaml
from rich.console import Console
from torch.utils.data import DataLoader
from ultralytics.cfg import get_cfg, get_save_dir
from ultralytics.data.build import build_dataloader, seed_worker
from ultralytics.engine import validator as ultralytics_validator
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.nn.autobackend import AutoBackend
from ultralytics.utils import LOGGER, colorstr, nms, ops
from ultralytics.utils.metrics import ConfusionMatrix, DetMetrics

from yolo_lat.data.dataset import LatDataset
from yolo_lat.data.labels import DetectionSplit
from yolo_lat.data.reader import read_split
from yolo_lat.data.registry import load_dataset
from yolo_lat.data.spec import DatasetSpec
from yolo_lat.engine import report
from yolo_lat.engine.arguments import as_list
from yolo_lat.engine.box_voting import vote
from yolo_lat.engine.evaluate import CocoResult, evaluate_detections, given_data
from yolo_lat.engine.ranks import MAIN, RANKS, mean_over_ranks, own_share
from yolo_lat.errors import UserError
from yolo_lat.unfinished import new_folder_of_run, whole_file, write_whole


class LatMetrics(DetMetrics):
    """Ultralytics' detection metrics in which everything called mAP is COCO's.

    Attributes:
        result: what pycocotools found, during training faster-coco-eval; `coco` are its twelve numbers by name.
    """

    result: CocoResult

    @property
    def coco(self) -> dict[str, float]:
        """Return the twelve COCO numbers by name."""
        return self.result.numbers

    @classmethod
    def read(cls, file: Path) -> LatMetrics:
        """Return metrics that have the twelve numbers of a `metrics.json` and nothing else."""
        metrics = cls()
        metrics.result = CocoResult(json.loads(file.read_text(encoding="utf-8")), np.empty((0, 10)))
        return metrics

    def take(self, result: CocoResult) -> None:
        """Replace the average precisions that Ultralytics computed its own way; precision and recall stay."""
        self.result = result
        self.box.all_ap = result.class_ap[list(self.box.ap_class_index)]


@dataclass(frozen=True)
class Submission:
    """What validation on images without annotations leaves: a file for an evaluation server, and no numbers.

    Attributes:
        split: data set and split, for messages.
        results: the COCO results JSON.
        archive: the same, zipped as the server takes it.
    """

    split: str
    results: Path
    archive: Path

    @property
    def coco(self) -> dict[str, float]:
        """Refuse: the twelve numbers need annotations.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"{self.split} has no annotations, so there are no numbers; submit {self.archive} to the evaluation server"
        )


class LatValidator(DetectionValidator):
    """Evaluate a detector on a split as COCO does, and save its predictions as a COCO results JSON.

    After training and by itself it evaluates with pycocotools and writes `predictions.json`, `metrics.json` (the twelve
    numbers by name), `evaluation.json` and, unless `plots=False`, figures to the run folder; during training it only
    computes the numbers, faster. Where several processes train, each predicts on its part of the images and the first
    one evaluates. On a split without annotations it writes the file for the evaluation server and
    `metrics` is a `Submission`. Every image counts: the time limit of Ultralytics' non-maximum suppression, which drops
    the rest of a slow batch, is lifted.

    Args:
        dataloader: batches to validate on; of the data set's split unless given.
        save_dir: folder of the run; a new one below `project` unless given.
        args: Ultralytics' arguments by name.
        _callbacks: Ultralytics' callbacks.
        box_vote: overlap from which boxes vote on those that suppression keeps; they do not unless given.

    Raises:
        UserError: a data set that cannot be read, or whose classes are not the model's.
    """

    loss: Any  # by name, during training
    metrics: Any  # LatMetrics; a Submission once a split without annotations is done
    device: torch.device

    def __init__(
        self,
        dataloader: Any = None,
        save_dir: Path | None = None,
        args: Any = None,
        _callbacks: dict[str, Any] | None = None,
        box_vote: float | None = None,
    ) -> None:
        wanted = get_cfg(overrides=args)
        self.box_vote = box_vote
        self.given_data, self.given_model = given_data(wanted.data), str(wanted.model)
        self.spec = load_dataset(wanted.data)
        # Before the base makes the run folder, which broken data must not leave behind.
        self.split = None if dataloader is not None else read_split(self.spec, wanted.split)
        if save_dir is None:
            save_dir = new_folder_of_run(Path(get_save_dir(wanted)), wanted.exist_ok)
        super().__init__(dataloader, save_dir, args, _callbacks)
        self.metrics = LatMetrics()
        # Ultralytics reads the data set's description from a file of its own format.
        self._folder = None if MAIN else tempfile.TemporaryDirectory()
        self.args.data = str(Path(self._folder.name if self._folder else self.save_dir) / "data.yaml")
        write_whole(Path(self.args.data), yaml.safe_dump(ultralytics_data(self.spec)))

    def __call__(self, trainer: Any = None, model: Any = None, **kwargs: Any) -> Any:
        """Validate; training's last call names the weights by their path."""
        if isinstance(model, str | Path):
            self.given_model = str(model)
        with (
            _processes_without_gpu() if RANKS > 1 and not torch.cuda.is_available() else nullcontext(),
            _without_collection(),
        ):
            return super().__call__(trainer, model, **kwargs)

    def build_dataset(self, img_path: Any, mode: str = "val", batch: int | None = None) -> LatDataset:
        """Read the split to validate on."""
        return LatDataset(
            self.split or read_split(self.spec, self.args.split),
            imgsz=self.args.imgsz,
            batch_size=batch,
            augment=False,
            hyp=self.args,
            rect=self.args.rect,
            cache=self.args.cache or None,
            single_cls=self.args.single_cls,
            stride=self.stride,
            pad=0.5,
            prefix=colorstr("val: "),
            task="detect",
            classes=self.args.classes,
            data=self.data,
        )

    def get_dataloader(self, dataset_path: str, batch_size: int) -> Any:
        """Return what makes the batches of this process."""
        return val_loader(
            self.build_dataset(dataset_path, "val", batch_size), batch_size, self.args.workers, self.device
        )

    def init_metrics(self, model: torch.nn.Module) -> None:
        """Prepare to collect predictions for pycocotools."""
        self.args.save_json = False  # keeps Ultralytics from building a ground truth of its own
        super().init_metrics(model)
        self.args.save_json = True  # makes it hand every prediction to pred_to_json
        dataset: LatDataset = self.dataloader.dataset
        if not self.args.single_cls:
            check_names(self.spec, self.names)
        self.image_ids = {str(image.path): image.image_id for image in dataset.images}

    def postprocess(self, preds: Any) -> list[dict[str, torch.Tensor]]:
        """Suppress overlapping boxes, without Ultralytics' time limit; what is left is on the host, in float32."""
        agnostic = self.args.single_cls or self.args.agnostic_nms
        outputs = nms.non_max_suppression(
            preds,
            self.args.conf,
            self.args.iou,
            multi_label=True,
            agnostic=agnostic,
            max_det=self.args.max_det,
            end2end=self.end2end,
            max_time_img=float("inf"),
        )
        if self.box_vote is not None:
            outputs = vote(preds, outputs, self.box_vote, self.args.conf, multi_label=True, agnostic=agnostic)
        kept = [x.float().cpu() for x in outputs]
        return [{"bboxes": x[:, :4], "conf": x[:, 4], "cls": x[:, 5], "extra": x[:, 6:]} for x in kept]

    def update_metrics(self, preds: list[dict[str, torch.Tensor]], batch: dict[str, Any]) -> None:
        """Take in a batch on the host: each of the many steps for an image's few boxes would wait for a GPU."""
        truth = {key: batch[key].cpu() for key in ("batch_idx", "cls", "bboxes")}
        device, self.device = self.device, torch.device("cpu")
        try:
            super().update_metrics(preds, {**batch, **truth})
        finally:
            self.device = device

    def plot_predictions(
        self, batch: dict[str, Any], preds: list[dict[str, torch.Tensor]], ni: int, max_det: int | None = None
    ) -> None:
        """Draw predictions; boxes turned inside out, which a hardly trained model gives, cannot be drawn."""
        upright = [(p["bboxes"][:, 2:] > p["bboxes"][:, :2]).all(1) for p in preds]
        kept = [{key: p[key][keep] for key in p} for p, keep in zip(preds, upright, strict=True)]
        super().plot_predictions(batch, kept, ni, max_det)

    def pred_to_json(self, predn: dict[str, torch.Tensor], pbatch: dict[str, Any]) -> None:
        """Collect one image's predictions, in pixels of the original image."""
        categories = self.dataloader.dataset.split.category_ids
        image_id = self.image_ids[pbatch["im_file"]]
        boxes = ops.xyxy2ltwh(predn["bboxes"]).tolist()
        chosen = None if self.args.classes is None else as_list(self.args.classes)
        for box, score, class_id in zip(boxes, predn["conf"].tolist(), predn["cls"].tolist(), strict=True):
            if chosen is not None and not self.args.single_cls and int(class_id) not in chosen:
                continue
            row = {"image_id": image_id, "category_id": categories[int(class_id)], "bbox": box, "score": score}
            self.jdict.append(row)

    def gather_stats(self) -> None:
        """Bring to the first process what all have found."""
        super().gather_stats()
        if self.training:
            self.loss = {name: mean_over_ranks(value) for name, value in self.loss.items()}

    def get_stats(self) -> dict[str, Any]:
        """Evaluate the collected predictions."""
        split = self.dataloader.dataset.evaluated()
        if not split.labelled:
            self.metrics = self.submit(split)
            return {}
        # Without Ultralytics' plots: they are of its own matching, and would contradict the figures of `write`.
        self.metrics.process(save_dir=self.save_dir, plot=False)
        self.metrics.take(evaluate_detections(split, self.jdict, fast=self.training))
        self.metrics.clear_stats()
        return self.metrics.results_dict

    def submit(self, split: DetectionSplit) -> Submission:
        """Write the predictions in the form and under the name that COCO's evaluation server asks for."""
        official = (self.given_data, self.args.split) == ("coco", "test")
        testset = "test-dev2017" if official else re.sub(r"[^\w.-]+", "-", split.name)
        name = f"detections_{testset}_{Path(self.given_model).stem}_results"
        rows = [row | {"bbox": [round(v, 3) for v in row["bbox"]]} for row in self.jdict]
        submission = Submission(split.name, self.save_dir / f"{name}.json", self.save_dir / f"{name}.zip")
        write_whole(submission.results, json.dumps(rows))
        with whole_file(submission.archive) as partial, ZipFile(partial, "w", ZIP_DEFLATED) as archive:
            archive.write(submission.results, submission.results.name)
        return submission

    def finalize_metrics(self) -> None:
        """Outside training, write predictions, numbers, analysis and figures, but none of Ultralytics' own matching."""
        self.args.save_json = False  # all is written here; Ultralytics would write and evaluate once more
        if isinstance(self.metrics, Submission):
            return
        self.metrics.speed, self.metrics.save_dir = self.speed, self.save_dir
        result: CocoResult = self.metrics.result
        if result.analysis is None:
            return
        self.confusion_matrix = ConfusionMatrix(names=dict(enumerate(result.analysis.names)))
        self.confusion_matrix.matrix = result.analysis.confusion.T  # Ultralytics has true classes by column
        self.metrics.confusion_matrix = self.confusion_matrix
        write_whole(self.save_dir / "predictions.json", json.dumps(self.jdict))
        result.save(self.save_dir / "metrics.json")
        about = report.about(
            model=self.given_model,
            data=self.given_data,
            split=self.args.split,
            imgsz=self.args.imgsz,
            conf=self.args.conf,
            iou=self.args.iou,
            max_det=self.args.max_det,
            box_vote=self.box_vote,
        )
        for figure in result.write(self.save_dir, self.dataloader.dataset.evaluated(), about, self.args.plots):
            self.on_plot(figure)

    def print_results(self) -> None:
        """Print Ultralytics' line for each class and, outside training, the twelve numbers."""
        if isinstance(self.metrics, Submission):
            LOGGER.info(
                f"{self.metrics.split} has no annotations: {len(self.jdict)} predictions on {self.seen} images are in "
                f"{self.metrics.archive}, and the twelve numbers come from the COCO evaluation server"
            )
            return
        super().print_results()
        if not self.training:
            result = self.metrics.result
            tables = (result.table(), result.iou_table(), result.offset_table(), result.error_table())
            Console().print(*tables, sep="\n")


def check_names(spec: DatasetSpec, names: dict[int, str]) -> None:
    """Raise UserError unless a model's classes are those of the data set, or as many but without names."""
    unnamed = len(names) == len(spec.names) and all(str(i) == name for i, name in names.items())
    if not unnamed and list(names.values()) != list(spec.names):
        other = " in this order" if sorted(map(str, names.values())) == sorted(map(str, spec.names)) else ""
        raise UserError(
            f"{spec.file}: its {len(spec.names)} classes are not the model's {len(names)}{other}; validate on data "
            f"with the same names{other}, the model's are {', '.join(map(str, names.values()))[:200]}"
        )


def ultralytics_data(spec: DatasetSpec) -> dict[str, Any]:
    """Return the description of a data set in the keys of an Ultralytics data YAML."""
    return {
        "path": str(spec.file.parent),
        **{split: [str(path) for path in part.images] for split, part in spec.splits.items()},
        "names": dict(enumerate(spec.names)),
        "nc": len(spec.names),
        "channels": 3,
    }


@contextmanager
def _without_collection() -> Iterator[None]:
    """Keep Python from looking for cycles, which among hundreds of thousands of boxes takes longer than making them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _processes_without_gpu() -> Iterator[None]:
    """Let Ultralytics validate on CPUs in several processes, of which it believes that each has a GPU."""

    def on_cpu(**kwargs: Any) -> AutoBackend:
        return AutoBackend(**{**kwargs, "device": torch.device("cpu")})

    first = SimpleNamespace(current_device=lambda: 0)
    with (
        patch.object(ultralytics_validator, "AutoBackend", on_cpu),
        patch.object(ultralytics_validator, "get_torch_device_backend", lambda _: first),
    ):
        yield


def val_loader(dataset: LatDataset, batch: int, workers: int, device: torch.device) -> Any:
    """Return what loads the images of a data set in their order, in batches that several processes divide."""
    if RANKS == 1:
        return build_dataloader(dataset, batch, workers, shuffle=False, rank=-1, device=device)
    return DataLoader(
        dataset,
        batch_sampler=own_share(len(dataset), batch, max(batch // RANKS, 1)),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        collate_fn=dataset.collate_fn,
        worker_init_fn=seed_worker,
    )
