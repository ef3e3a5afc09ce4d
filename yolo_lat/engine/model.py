"""`YOLOLAT`, the class that users hold: a model to train, validate, run and export."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from ultralytics.engine.exporter import export_formats
from ultralytics.engine.model import Model
from ultralytics.nn.modules import Detect
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER

from yolo_lat.data.download import download
from yolo_lat.data.registry import load_dataset
from yolo_lat.engine import launch, offline, ranks
from yolo_lat.engine.arguments import (
    as_list,
    check_arguments,
    check_arrays,
    check_classes,
    check_device,
    check_embed,
    check_export,
    check_image_size,
    check_part,
    check_precision,
    check_suppression,
    check_tracker,
    check_visualize,
    note_suppression,
    plain,
    removed_on_failure,
    warn_of_threshold,
)
from yolo_lat.engine.box_voting import check_box_vote
from yolo_lat.engine.checkpoint import (
    check_layout,
    check_not_fused,
    load_pt,
    load_safetensors,
    onnx_metadata,
    save_safetensors,
)
from yolo_lat.engine.export import Export, export_onnx
from yolo_lat.engine.mode_keys import check_abilities
from yolo_lat.engine.predictor import LatPredictor
from yolo_lat.engine.recipe import find_recipe, read_recipe
from yolo_lat.engine.train_options import freeze_list
from yolo_lat.engine.trainer import LatTrainer, find_checkpoint, resumable
from yolo_lat.engine.trust import trust_files
from yolo_lat.engine.unpickle import check_names as check_pickled_names
from yolo_lat.engine.validator import LatMetrics, LatValidator, Submission, check_names
from yolo_lat.errors import UserError, nearest
from yolo_lat.nn.model import LatModel
from yolo_lat.nn.zoo import is_ours, load_model_yaml, model_names
from yolo_lat.pretrained import find_pretrained, find_weights, pretrained_names

offline.settle()

_WEIGHTS = (".pt", ".safetensors", ".onnx")
_WEIGHT_KEYS = ("pretrained", "distill_model")  # arguments of training that name weights


class YOLOLAT(Model):
    """A YOLO-LAT detector, or any Ultralytics detector, with Ultralytics' methods and arguments.

    Args:
        model: a name (`yolo-lat-n`), the name of weights that ship (`yolo-lat-n-voc12`), a model YAML, or weights (.pt,
            .safetensors, .onnx).
        scale: which of a YAML's scales to build, where its name does not say.
        verbose: log the table of layers.
        trust: open every .pt that is named here or in a call (`pretrained`, `resume`, ...) whatever it holds. Opening a
            pickle may run code; without this, one that names more than the parts of a detector is refused.
        task: "detect", the only one that there is.

    Raises:
        UserError: no such model, or a file that cannot be loaded.

    Example:
        >>> from yolo_lat import YOLOLAT
        >>> model = YOLOLAT("yolo-lat-n")
        >>> metrics = model.train(data="shapes", epochs=10, imgsz=256)
        >>> metrics.coco["AP"]
    """

    model: Any  # a LatModel, or the path of an exported model
    predictor: Any  # of the last prediction, which Ultralytics keeps for the next one; None before
    ckpt: dict[str, Any] | None
    exported: Export  # what the last export to ONNX found
    _box_vote: float | None = None  # of the call in progress

    def __init__(
        self,
        model: str | Path = "yolo-lat-n",
        scale: str | None = None,
        verbose: bool = False,
        trust: bool = False,
        task: str | None = None,
    ) -> None:
        if task not in (None, "detect"):
            raise UserError(f"task={task}: there is detection alone; leave it out")
        if not isinstance(trust, bool):
            raise UserError(f"trust={trust}: must be True or False")
        given = str(model).strip()
        if not isinstance(model, str | Path) or not given:
            raise UserError(
                f"model of {type(model).__name__}: give a name, a model YAML or weights, as a text or a path"
            )
        self.scale, self.trust = scale, trust
        shipped = find_pretrained(given)
        name = str(shipped.checked()) if shipped else given
        self._admit(name)
        suffix = Path(name).suffix.lower()
        if suffix not in (*_WEIGHTS, ".yaml", ".yml"):
            if not is_ours(name):
                if Path(name).is_dir():
                    raise UserError(
                        f"model={given}: is a folder; give a file, such as weights/best.pt or last.pt of a run"
                    )
                names = [*model_names(), *pretrained_names()]
                raise UserError(
                    f"no model '{name}'{nearest(name, names)}; give weights, a YAML or one of {', '.join(names)}"
                )
            name += ".yaml"
        elif scale and suffix in _WEIGHTS:
            raise UserError(f"model={given} has its scale already; drop scale={scale}")
        super().__init__(name, task="detect", verbose=verbose)
        if shipped:
            self.model.pt_path = shipped.file.name  # an export goes to the working directory, not into the package

    def __getstate__(self) -> dict[str, Any]:
        """Return what is copied and pickled: all but the predictor, which holds an open source and a lock."""
        return {**self.__dict__, "predictor": None}

    @property
    def task_map(self) -> dict[str, dict[str, Any]]:
        """What makes the parts of each mode, as Ultralytics asks for it."""
        return {
            "detect": {
                "model": LatModel,
                "trainer": LatTrainer,
                "validator": partial(LatValidator, box_vote=self._box_vote),
                "predictor": partial(LatPredictor, box_vote=self._box_vote),
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
        else:
            metadata = onnx_metadata(weights)
            check_layout(weights, metadata)
            self.model, self.ckpt, self.names_inside = weights, None, metadata["names"]
            self.export_args, self.nms_free = metadata["args"], metadata["nms_free"]
            self.stride, self.fixed_size = int(metadata["stride"]), None if metadata["dynamic"] else metadata["imgsz"]
            self.overrides["imgsz"] = max(metadata["imgsz"])
        self.task, self.ckpt_path, self.model_name = task, weights, weights
        self.overrides.update(model=weights, task=task)

    def load(self, weights: Any) -> YOLOLAT:
        """Take over weights where names and shapes agree.

        Args:
            weights: a .pt, safetensors, the name of weights that ship, or a module.

        Raises:
            UserError: no such weights, or a .pt that names what is no part of a detector.
        """
        if isinstance(weights, str | Path):
            weights = find_weights(weights)
        self._admit(weights)
        super().load(weights)
        return self

    def to(self, *args: Any, **kwargs: Any) -> YOLOLAT:
        """Move to a device, or change the type of the weights, as torch does; `device` as every mode takes it, too.

        Raises:
            UserError: this machine has no such device.
        """
        given = kwargs.get("device", args[0] if args else None)
        if isinstance(given, str | int | torch.device):
            check_device(str(given))
        moved: YOLOLAT = super().to(*args, **kwargs)
        return moved

    def save(self, filename: str | Path = "model.safetensors") -> None:
        """Write the weights as safetensors, or as an Ultralytics checkpoint when the name ends in .pt.

        Raises:
            UserError: another ending, a fused model, or no file can be written there.
        """
        self._check_is_pytorch_model()
        check_not_fused(self.model, f"{filename}: a fused model cannot be saved")
        ending = Path(filename).suffix.lower()
        if ending == ".safetensors":
            save_safetensors(self.model, filename)
        elif ending == ".pt":
            if not Path(filename).parent.is_dir():
                raise UserError(f"{filename}: its folder does not exist; make it, or choose another")
            super().save(filename)
        else:
            raise UserError(f"{filename}: weights are written as .safetensors or .pt; name it so, or export it")

    def train(self, trainer: Any = None, **kwargs: Any) -> LatMetrics:
        """Train on `data`; takes Ultralytics' training arguments.

        Args:
            trainer: a trainer class in place of `LatTrainer`.
            **kwargs: `data`, `epochs`, `imgsz`, `batch`, `device`, ...; `cfg` names a recipe, a file or one that ships
                with the package; `download=True` fetches missing data; `resume=True` goes on from this checkpoint and
                `resume="last.pt"` from that one.

        Returns:
            The metrics of the best epoch on the validation split; `.coco` holds the twelve numbers.

        Raises:
            UserError: arguments or data that cannot be used.
        """
        self._check_is_pytorch_model()
        check_not_fused(self.model, "train: a fused model has lost what training changes")
        check_part("trainer", trainer)
        try:
            return self._train(trainer, kwargs)
        except UserError:
            ranks.give_up()
            raise

    def _train(self, trainer: Any, kwargs: dict[str, Any]) -> LatMetrics:
        resume = kwargs.get("resume")
        self._admit(resume, *(kwargs.get(key) for key in _WEIGHT_KEYS))
        if resume:
            given = not isinstance(resume, bool)
            where = find_checkpoint(resume) if given else self.ckpt_path or self.cfg
            if not resumable(load_pt(where)[1] if given else self.ckpt, where):
                raise UserError(f"resume={where} is no unfinished training; give the last.pt of one")
        recipe = {}
        if kwargs.get("cfg"):
            if not isinstance(kwargs["cfg"], str | Path):
                raise UserError("cfg: must be the name or the file of a recipe; give single keys as arguments")
            kwargs["cfg"] = str(find_recipe(kwargs["cfg"]))
            recipe = read_recipe(Path(kwargs["cfg"]))
            self._admit(*(recipe.get(key) for key in _WEIGHT_KEYS))
            kwargs = {"data": recipe.get("data"), **kwargs}
        if (freeze := freeze_list(kwargs.get("freeze", recipe.get("freeze")), self.model)) is not None:
            kwargs["freeze"] = freeze
        for key in _WEIGHT_KEYS:
            weights = kwargs.get(key, recipe.get(key))
            if isinstance(weights, str | Path):
                find_weights(weights, key)
        check_precision({**recipe, **kwargs})
        if kwargs.get("distill_on", recipe.get("distill_on")) == "outputs" and not resume:
            kwargs.setdefault("dis", recipe.get("dis", 1.0))  # Ultralytics' own default is for its features
        if not resume and not kwargs.get("data"):
            raise UserError("data is missing; give data= a data YAML or the name of a data set")
        if resume and kwargs.get("project"):
            LOGGER.warning(f"resume ignores project={kwargs['project']}: the training goes on in its folder")
        kwargs = self._checked("train", kwargs, rectangles=False)
        kwargs |= launch.interrupted_run(kwargs.get("device"), Path(kwargs["project"]))
        if kwargs.get("resume"):
            del kwargs["project"]  # its folder is known
        return super().train(trainer, **kwargs)

    def tune(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: Ultralytics would train in processes of its own, which know neither our models nor our data sets.

        Raises:
            UserError: always.
        """
        raise UserError("tune: not offered; train with several recipes, and let yolo-lat compare tell them apart")

    def benchmark(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: Ultralytics would hide what fails in a table, and needs formats that no library here reads.

        Raises:
            UserError: always.
        """
        raise UserError("benchmark: not offered; run yolo-lat benchmark models=..., which exports and compares several")

    def val(self, validator: Any = None, **kwargs: Any) -> LatMetrics | Submission:
        """Evaluate on a split of `data`, the training data unless given, with pycocotools.

        Takes Ultralytics' arguments for validation, `download=True` to fetch missing data, and `box_vote=0.8` for boxes
        that vote on those that suppression keeps (`yolo_lat.engine.box_voting`).

        Returns:
            Metrics; `.coco` holds the twelve numbers by name. For a split without annotations, such as COCO's test-dev,
            a `Submission` that names the file for the evaluation server.

        Raises:
            UserError: arguments or data that cannot be used.
        """
        if ranks.RANKS > 1:
            raise UserError("val runs in one process, and torchrun has started several; leave torchrun out")
        kwargs["data"] = kwargs.get("data") or self.overrides.get("data")
        if not kwargs["data"]:
            raise UserError("data is missing; give data= a data YAML or the name of a data set")
        check_part("validator", validator)
        self._take_box_vote(kwargs, validator)
        kwargs = self._checked("val", kwargs, rectangles=False)
        spec = load_dataset(kwargs["data"])
        spec.split(kwargs.get("split") or "val")
        check_classes(kwargs.get("classes"), self._classes)
        check_precision(kwargs, self.export_args if isinstance(self.model, str) else None)
        if not kwargs.get("single_cls", self.overrides.get("single_cls")):
            check_names(spec, self._classes)
        if isinstance(self.model, str):
            check_suppression(kwargs, self.export_args, conf=False)
            warn_of_threshold(self.model, self.export_args, kwargs.get("conf"))
        return super().val(validator, **kwargs)

    def predict(self, source: Any = None, stream: bool = False, predictor: Any = None, **kwargs: Any) -> Any:
        """Detect objects; returns a list of Ultralytics `Results`, or with `stream=True` a generator of them.

        Args:
            source: image, folder, glob, video, stream URL, camera number, array, PIL image, tensor or list of these.
            stream: yield results one by one, in bounded memory.
            predictor: a predictor class in place of `LatPredictor`.
            **kwargs: `conf`, `iou`, `imgsz`, `device`, `save`, ...; with `box_vote=0.8` boxes vote on those that
                suppression keeps (`yolo_lat.engine.box_voting`); `embed=[5, 7]` returns, in place of `Results`, a
                tensor for each image, what layers 5 and 7 compute, averaged over its positions.

        Raises:
            UserError: arguments or files that cannot be used.
        """
        if source is None:
            raise UserError("source is missing; give source= an image, a folder, a video or a camera number")
        if kwargs.get("tracker", "") is None:
            del kwargs["tracker"]  # Ultralytics' default, which None would replace in later calls too
        if "tracker" in kwargs:
            self._admit(check_tracker(kwargs["tracker"]).get("model"))  # which tells objects by their looks
        check_classes(kwargs.get("classes"), self._classes)
        check_precision(kwargs, self.export_args if isinstance(self.model, str) else None)
        check_arrays(source, self._channels)
        check_part("predictor", predictor)
        self._take_box_vote(kwargs, predictor)
        if self.predictor is not None and getattr(self.predictor, "box_vote", None) != self._box_vote:
            self.predictor = None  # Ultralytics would keep it for the next call
        mode = kwargs.get("mode", "predict")
        kwargs = self._checked(mode, kwargs)
        if isinstance(self.model, str):
            check_suppression(kwargs, self.export_args, conf=mode != "track")  # where Ultralytics asks for 0.1 itself
        if kwargs.get("visualize"):
            check_visualize(kwargs, source, self.model)
        if kwargs.get("embed") not in (None, []):
            self._check_is_pytorch_model()
            kwargs["embed"] = check_embed(kwargs | {"box_vote": self._box_vote}, self.model.model)
        return super().predict(source, stream, predictor, **kwargs)

    def export(self, **kwargs: Any) -> str:
        """Export for deployment, to ONNX unless `format` says otherwise; returns the path of the file.

        An ONNX file is compared with the PyTorch model before it takes its name; `exported` holds what was found.

        Args:
            **kwargs: Ultralytics' arguments: `imgsz`, `batch`, `dynamic`, `quantize=16` or `8`, `nms`, `data`, ...; for
                ONNX also `preprocess=True`, bytes as input, and `best_class=True`, one score and class a box as output.

        Raises:
            UserError: arguments that cannot be used, a package that the format needs is not installed, or an ONNX file
                whose results are not the model's.
        """
        self._check_is_pytorch_model()
        kwargs = check_export({"format": "onnx", **self._checked("export", kwargs)})
        try:
            if kwargs["format"] == "onnx":
                self.exported = export_onnx(self, super().export, kwargs, self._export_source())
                LOGGER.info(str(self.exported))
                return str(self.exported.file)
            return self._export_elsewhere(kwargs)
        except ImportError as error:
            raise UserError(f"format={kwargs['format']}: {error}; install that package first") from error

    def _export_elsewhere(self, kwargs: dict[str, Any]) -> str:
        """Export to a format other than ONNX, as Ultralytics does."""
        self.add_callback("on_export_start", note_suppression)
        with removed_on_failure(self._export_targets(kwargs["format"])):
            try:
                with offline.quiet():
                    file = super().export(**kwargs)
            except (ValueError, AssertionError) as error:  # what does not go together there
                raise UserError(f"format={kwargs['format']}: {' '.join(str(error).split())}") from error
            finally:
                self.callbacks["on_export_start"].remove(note_suppression)
        size = Path(file).stat().st_size / 1e6 if Path(file).is_file() else None
        LOGGER.info(f"exported {file}" + (f", {size:.2f} MB" if size is not None else ""))
        return file

    def info(
        self, detailed: bool = False, verbose: bool = True, imgsz: int | list[int] = 640
    ) -> tuple[int, int, int, float] | None:
        """Log and return layers, parameters, gradients and GFLOPs at `imgsz` pixels; nothing unless `verbose`."""
        self._check_is_pytorch_model()
        check_image_size(imgsz, int(max(self.model.stride)))
        return super().info(detailed, verbose, imgsz)

    @property
    def _channels(self) -> int:
        return 3 if isinstance(self.model, str) else int(self.model.yaml.get("channels", 3))

    @property
    def _classes(self) -> dict[int, str]:
        names: dict[int, str] = self.names_inside if isinstance(self.model, str) else self.model.names
        return names

    def _admit(self, *files: Any) -> None:
        """Trust those of `files` that are paths of a .pt if the user does, else refuse what may run code."""
        if self.trust:
            trust_files(files)
            return
        for file in files:
            if isinstance(file, str | Path) and Path(file).suffix.lower() == ".pt" and Path(file).is_file():
                check_pickled_names(Path(file))

    def _take_box_vote(self, kwargs: dict[str, Any], own: Any) -> None:
        """Take `box_vote` out of a call's arguments, for the part that it makes unless the user gives their `own`."""
        self._box_vote = kwargs.pop("box_vote", None)
        exported = isinstance(self.model, str)
        nms_free = self.nms_free if exported else kwargs.get("nms") is False or kwargs.get("end2end") is True
        check_box_vote(self._box_vote, self.model_name, nms_free)
        if own is not None and self._box_vote is not None:
            raise UserError(f"box_vote={self._box_vote}: {own} has to see to it, as it is not ours; leave box_vote out")

    def _check_is_pytorch_model(self) -> None:
        if not isinstance(self.model, torch.nn.Module):
            raise UserError(
                f"model={self.model_name} can only be run and validated; give the .pt or .safetensors that it came from"
            )

    def _export_source(self) -> Path:
        """Return the weights beside which an export lies, and whose name it takes; for a YAML the working directory."""
        if getattr(self.model, "pt_path", None):
            return Path(self.model.pt_path)
        given, scale = Path(self.model_name), self.model.yaml.get("scale")
        return Path(f"{given.stem}-{scale}.yaml" if given.is_file() and scale else given.name)

    def _export_targets(self, form: str) -> list[Path]:
        """Return what an export may write, as Ultralytics names it; most formats are made from an ONNX file."""
        source = self._export_source()
        suffix = dict(zip(*(export_formats()[key] for key in ("Argument", "Suffix")), strict=True))[form]
        return [source.with_name(source.stem + ending) for ending in {suffix, ".onnx"}]

    def _checked(self, mode: str, kwargs: dict[str, Any], rectangles: bool = True) -> dict[str, Any]:
        """Refuse what Ultralytics would change or ignore with a warning, and put results under ./runs."""
        kwargs = {key: plain(value) for key, value in kwargs.items()}
        for key in ("model", "task"):
            if kwargs.get(key) not in (None, self.overrides.get(key)):
                raise UserError(f"{key}={kwargs[key]}: this object has one, {self.overrides.get(key)}; make another")
        check_arguments(mode, kwargs)
        exported = isinstance(self.model, str)
        head = None if exported else self.model.model[-1]
        nms_free = self.nms_free if exported else getattr(head, "one2one_cv2", None) is not None
        check_abilities(kwargs, self.model_name, exported, nms_free, type(head) is Detect)
        imgsz = kwargs.get("imgsz")
        if isinstance(self.model, DetectionModel):
            check_image_size(imgsz, int(max(self.model.stride)), rectangles)
        else:
            check_image_size(imgsz, self.stride, rectangles)
            if imgsz is not None and self.fixed_size and self.fixed_size not in ([imgsz, imgsz], as_list(imgsz)):
                raise UserError(
                    f"imgsz={imgsz}: {self.model_name} is exported for {self.fixed_size} alone; leave imgsz out or "
                    "export with dynamic=True"
                )
        check_device(kwargs.get("device"))
        project = Path(kwargs.get("project") or "runs/detect").expanduser().absolute()
        existing = next(folder for folder in (project, *project.parents) if folder.exists())
        if not existing.is_dir():
            raise UserError(f"project={project}: {existing} is a file; give a folder")
        data = kwargs.get("data")
        if data is not None and not isinstance(data, str | Path):
            raise UserError(f"data={data}: must be one data YAML or name; merge several sets into one YAML")
        kwargs = {**kwargs, "project": str(project)}
        if data and Path(data).is_file():
            kwargs["data"] = str(Path(data).absolute())  # checkpoints remember it
        if kwargs.pop("download", False) and data:
            download(load_dataset(data))
        return kwargs
