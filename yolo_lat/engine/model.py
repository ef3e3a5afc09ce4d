"""`YOLOLAT`, the class that users hold: a model to train, validate, run and export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ultralytics.engine.model import Model
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG_DICT
from ultralytics.utils.torch_utils import parse_device

from yolo_lat.data.spec import load_dataset
from yolo_lat.engine import offline
from yolo_lat.engine.checkpoint import load_pt, load_safetensors, save_safetensors
from yolo_lat.engine.predictor import LatPredictor
from yolo_lat.engine.trainer import LatTrainer, find_checkpoint, resumable
from yolo_lat.engine.validator import LatMetrics, LatValidator
from yolo_lat.errors import UserError, nearest
from yolo_lat.nn.model import LatModel
from yolo_lat.nn.zoo import is_ours, load_model_yaml, model_names

offline.settle()

_WEIGHTS = (".pt", ".safetensors", ".onnx")


class YOLOLAT(Model):
    """A YOLO-LAT detector, or any Ultralytics detector, with Ultralytics' methods and arguments.

    Args:
        model: a name (`yolo-lat-n`), a model YAML, or weights (.pt, .safetensors, .onnx).
        scale: which of a YAML's scales to build, where its name does not say.
        verbose: log the table of layers.

    Raises:
        UserError: no such model, or a file that cannot be loaded.

    Example:
        >>> from yolo_lat import YOLOLAT
        >>> model = YOLOLAT("yolo-lat-n")
        >>> metrics = model.train(data="shapes", epochs=10, imgsz=256)
        >>> metrics.coco["AP"]
    """

    model: Any  # a LatModel, or the path of an exported model
    ckpt: dict[str, Any] | None

    def __init__(self, model: str | Path = "yolo-lat-n", scale: str | None = None, verbose: bool = False) -> None:
        self.scale = scale
        name = str(model).strip()
        suffix = Path(name).suffix.lower()
        if suffix not in (*_WEIGHTS, ".yaml", ".yml"):
            if not is_ours(name):
                names = model_names()
                raise UserError(
                    f"no model '{name}'{nearest(name, names)}; give weights, a YAML or one of {', '.join(names)}"
                )
            name += ".yaml"
        elif scale and suffix in _WEIGHTS:
            raise UserError(f"model={name} has its scale already; drop scale={scale}")
        super().__init__(name, task="detect", verbose=verbose)

    @property
    def task_map(self) -> dict[str, dict[str, Any]]:
        """The classes behind each mode, as Ultralytics asks for them."""
        return {
            "detect": {
                "model": LatModel,
                "trainer": LatTrainer,
                "validator": LatValidator,
                "predictor": LatPredictor,
            }
        }

    def _new(self, cfg: str, task: str | None = None, verbose: bool = False) -> None:
        self.cfg, self.task = cfg, task
        self.model = LatModel(load_model_yaml(cfg, self.scale), verbose=verbose)
        # With a "checkpoint" at hand Ultralytics trains self.model.yaml, scale included, instead of the file named cfg;
        # weights are initialised anew, after the seed is set.
        self.ckpt, self.overrides["pretrained"] = {"model": self.model}, False
        self.overrides.update(model=cfg, task=task)
        self.model.args = {**DEFAULT_CFG_DICT, **self.overrides}
        self.model.task = task
        self.model_name = cfg

    def _load(self, weights: str, task: str | None = None) -> None:
        suffix = Path(weights).suffix.lower()
        if suffix == ".pt":
            self.model, self.ckpt = load_pt(weights)
            self.overrides = self._reset_ckpt_args(self.model.args)
        elif suffix == ".safetensors":
            self.model = load_safetensors(weights)
            self.ckpt = {"model": self.model}
            self.overrides = dict(self.model.args)
            self.model.args = {**DEFAULT_CFG_DICT, **self.overrides}
        elif not Path(weights).is_file():
            raise UserError(f"{weights}: no such weights; correct the path")
        else:
            self.model, self.ckpt = weights, None
        self.task, self.ckpt_path, self.model_name = task, weights, weights
        self.overrides.update(model=weights, task=task)

    def save(self, filename: str | Path = "model.safetensors") -> None:
        """Write the weights as safetensors, or as an Ultralytics checkpoint when the name ends in .pt."""
        if Path(filename).suffix == ".safetensors":
            self._check_is_pytorch_model()
            save_safetensors(self.model, filename)
        else:
            super().save(filename)

    def train(self, trainer: Any = None, **kwargs: Any) -> LatMetrics:
        """Train on `data`; takes Ultralytics' training arguments.

        Args:
            trainer: a trainer class in place of `LatTrainer`.
            **kwargs: `data`, `epochs`, `imgsz`, `batch`, `device`, ...; `resume=True` goes on from this checkpoint and
                `resume="last.pt"` from that one.

        Returns:
            The metrics of the best epoch on the validation split; `.coco` holds the twelve numbers.

        Raises:
            UserError: arguments or data that cannot be used.
        """
        resume = kwargs.get("resume")
        if resume and not isinstance(resume, bool):
            find_checkpoint(resume)
        elif resume and not resumable(self.ckpt):
            raise UserError(f"resume: {self.ckpt_path or self.cfg} is no unfinished training; give the last.pt of one")
        if not resume and not kwargs.get("data") and not kwargs.get("cfg"):
            raise UserError("data is missing; give data= a data YAML or the name of a data set")
        return super().train(trainer, **self._checked(kwargs))

    def val(self, validator: Any = None, **kwargs: Any) -> LatMetrics:
        """Evaluate on a split of `data`, the training data unless given, with pycocotools.

        Returns:
            Metrics; `.coco` holds the twelve numbers by name.

        Raises:
            UserError: arguments or data that cannot be used.
        """
        kwargs["data"] = kwargs.get("data") or self.overrides.get("data")
        if not kwargs["data"]:
            raise UserError("data is missing; give data= a data YAML or the name of a data set")
        load_dataset(kwargs["data"]).split(kwargs.get("split", "val"))
        return super().val(validator, **self._checked(kwargs))

    def predict(self, source: Any = None, stream: bool = False, predictor: Any = None, **kwargs: Any) -> Any:
        """Detect objects; returns a list of Ultralytics `Results`, or with `stream=True` a generator of them.

        Args:
            source: image, folder, glob, video, stream URL, camera number, array, PIL image, tensor or list of these.
            stream: yield results one by one, in bounded memory.
            predictor: a predictor class in place of `LatPredictor`.
            **kwargs: `conf`, `iou`, `imgsz`, `device`, `save`, ...

        Raises:
            UserError: arguments or files that cannot be used.
        """
        if source is None:
            raise UserError("source is missing; give source= an image, a folder, a video or a camera number")
        return super().predict(source, stream, predictor, **self._checked(kwargs))

    def export(self, **kwargs: Any) -> str:
        """Export for deployment, to ONNX unless `format` says otherwise; returns the path of the file.

        Raises:
            UserError: arguments that cannot be used.
        """
        return super().export(**{"format": "onnx", "opset": 18, **self._checked(kwargs)})

    def _checked(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Refuse what Ultralytics would change or ignore with a warning, and put results under ./runs."""
        if isinstance(self.model, DetectionModel):
            check_image_size(kwargs.get("imgsz"), int(max(self.model.stride)))
        check_device(kwargs.get("device"))
        project = Path(kwargs.get("project") or "runs/detect").expanduser()
        return {**kwargs, "project": str(project.absolute())}


def check_image_size(imgsz: int | list[int] | tuple[int, ...] | None, stride: int) -> None:
    """Raise UserError unless every side is a positive multiple of the model's largest stride."""
    sides = [] if imgsz is None else list(imgsz) if isinstance(imgsz, list | tuple) else [imgsz]
    for side in sides:
        if not isinstance(side, int) or side < stride or side % stride:
            near = max(int(side) // stride, 1) * stride if isinstance(side, int | float) else 640
            raise UserError(
                f"imgsz={imgsz} is not a multiple of the model's stride {stride}; use {near} or {near + stride}"
            )


def check_device(device: Any) -> None:
    """Raise UserError when a CUDA device is asked for that this machine does not have."""
    wanted = parse_device(device) if device not in (None, "") else ""
    numbers = [int(x) for x in wanted.split(",") if x.isdigit()]
    if numbers and max(numbers) >= torch.cuda.device_count():
        raise UserError(
            f"device={device}: not among the {torch.cuda.device_count()} CUDA devices that torch sees; use device=cpu"
        )
