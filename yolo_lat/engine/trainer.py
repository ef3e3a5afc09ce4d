"""Training: Ultralytics' loop on our data sets, our models and COCO's numbers."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any

import torch
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import DEFAULT_CFG, RANK, colorstr
from ultralytics.utils.torch_utils import unwrap_model

from yolo_lat.data.augment import check_augmentations
from yolo_lat.data.dataset import LatDataset, build_dataset
from yolo_lat.data.labels import DetectionSplit
from yolo_lat.data.reader import read_split
from yolo_lat.data.registry import load_dataset
from yolo_lat.data.spec import DatasetSpec
from yolo_lat.engine.checkpoint import pt_to_safetensors
from yolo_lat.engine.validator import LatValidator, ultralytics_data
from yolo_lat.errors import UserError
from yolo_lat.nn.model import LatModel
from yolo_lat.nn.zoo import load_model_yaml


class LatTrainer(DetectionTrainer):
    """Train a detector.

    Arguments, both splits and `augmentations` are read and checked before the run folder is made.

    Raises:
        UserError: augmentations that cannot be used, data that cannot be read, a batch that does not fit into memory.
    """

    def __init__(
        self, cfg: Any = DEFAULT_CFG, overrides: dict[str, Any] | None = None, _callbacks: dict[str, Any] | None = None
    ) -> None:
        self.splits: dict[str, DetectionSplit] = {}
        self.first_batch = 0
        super().__init__(cfg, overrides, _callbacks)

    def check_resume(self, overrides: dict[str, Any]) -> None:
        """Settle the arguments, those of the checkpoint if training goes on, and check what they name.

        Augmentations become plain data: Ultralytics would take a recipe's for transforms that it has stored itself.
        """
        super().check_resume(overrides)
        entries, imgsz = getattr(self.args, "augmentations", None), self.args.imgsz
        side = max(imgsz) if isinstance(imgsz, list | tuple) else imgsz
        self.args.augmentations = check_augmentations(entries, side)
        if self.args.data:
            self._read(load_dataset(self.args.data), self.args.split)

    def _read(self, spec: DatasetSpec, split: str) -> None:
        self.splits = {
            "train": read_split(spec, "train", progress=RANK in {-1, 0}),
            "val": read_split(spec, split, progress=RANK in {-1, 0}),
        }
        for part in self.splits.values():
            if not part.labelled:
                raise UserError(f"{part.name} has no annotations, and training needs them; choose another split")

    def get_dataset(self) -> dict[str, Any]:
        """Return the data set's description in Ultralytics' keys."""
        data = ultralytics_data(load_dataset(self.args.data))
        data.setdefault(self.args.split, data["val"])
        if self.args.single_cls:
            data.update(names={0: "item"}, nc=1)
        return data

    def build_dataset(self, img_path: Any, mode: str = "train", batch: int | None = None) -> LatDataset:
        """Build the training set, augmented, or the validation set, letterboxed."""
        return build_dataset(
            self.splits[mode],
            self.args,
            batch,
            stride=max(int(unwrap_model(self.model).stride.max()), 32),
            augment=mode == "train",
            prefix=colorstr(f"{mode}: "),
        )

    def _build_train_pipeline(self) -> None:
        if self.optimizer is not None:  # Ultralytics comes here again, with half the batch, when out of memory
            raise UserError(
                f"batch={self.first_batch} at imgsz={self.args.imgsz} does not fit into the memory of "
                f"{self.device}; lower batch= or imgsz="
            )
        self.first_batch = self.batch_size
        super()._build_train_pipeline()

    def build_optimizer(self, model: torch.nn.Module, name: str = "auto", *args: Any, **kwargs: Any) -> Any:
        """Build the optimizer; a name that there is none of is the user's error."""
        try:
            return super().build_optimizer(model, name, *args, **kwargs)
        except NotImplementedError as error:
            raise UserError(f"optimizer={name}: unknown; use auto, SGD, AdamW, MuSGD or another of torch's") from error

    def get_model(
        self,
        cfg: str | dict[str, Any],
        weights: torch.nn.Module | None = None,
        verbose: bool = True,
    ) -> LatModel:
        """Build the model for the data set's classes and load weights into it."""
        content = cfg if isinstance(cfg, dict) else load_model_yaml(cfg)
        model = LatModel(content, ch=self.data["channels"], nc=self.data["nc"], verbose=verbose and RANK == -1)
        self.set_model_names_for_load(model)
        if weights:
            model.load(weights)
        return model

    def get_validator(self) -> LatValidator:
        """Return the validator that runs after each epoch."""
        return LatValidator(self.test_loader, save_dir=self.save_dir, args=copy(self.args), _callbacks=self.callbacks)

    def final_eval(self) -> None:
        """Validate the best weights and write them as safetensors too."""
        super().final_eval()
        if RANK in {-1, 0}:
            for checkpoint in (self.best, self.last):
                if checkpoint.exists():
                    pt_to_safetensors(checkpoint, checkpoint.with_suffix(".safetensors"))


def resumable(checkpoint: dict[str, Any] | None) -> bool:
    """Whether a loaded checkpoint holds the state of an unfinished training."""
    if checkpoint is None or checkpoint.get("optimizer") is None:
        return False
    return 0 <= checkpoint.get("epoch", -1) < checkpoint["train_args"]["epochs"] - 1


def find_checkpoint(path: str | Path) -> Path:
    """Return the checkpoint to resume from.

    Raises:
        UserError: no such file.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"resume={path}: no such checkpoint; give the last.pt in the weights folder of a run")
    return file
