"""Training arguments that Ultralytics does not have."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from yolo_lat.cli_kinds import COUNT, NATURAL, NUMBER, Kind
from yolo_lat.errors import UserError, nearest

# Old names that `ultralytics.cfg._handle_deprecation` still maps or drops with a warning.
DEPRECATED_KEYS = (
    *("half", "int8", "end2end", "boxes", "hide_labels", "hide_conf", "line_thickness"),
    *("label_smoothing", "save_hybrid", "crop_fraction", "keras"),
)
DISTILLED = ("features", "outputs")  # values of distill_on=
DEVICE_CACHES = ("device", "pinned")  # values of cache=, beside Ultralytics'
_COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
_OPTIMIZERS = ("auto", "SGD", "AdamW", "MuSGD", "Adam", "Adamax", "NAdam", "RAdam", "RMSprop")
# Values of training arguments that Ultralytics' own check passes over.
_KINDS = {
    "batch": Kind(
        "a whole number from 1, -1 for as many as fit, or a share of the GPU's memory between 0 and 1",
        lambda value: COUNT.holds(value) or (NUMBER.holds(value) and (value == -1 or 0 < value < 1)),
    ),
    "cache": Kind(
        f"True, False, ram, disk, {' or '.join(DEVICE_CACHES)}",
        lambda value: value in (None, True, False, "ram", "disk", *DEVICE_CACHES),
    ),
    "close_mosaic": Kind("a whole number of epochs from 0", NATURAL.holds),
    "compile": Kind(
        f"True, False or one of {', '.join(_COMPILE_MODES)}", lambda value: value in (True, False, *_COMPILE_MODES)
    ),
    "optimizer": Kind(
        f"one of {', '.join(_OPTIMIZERS)}", lambda value: str(value).lower() in map(str.lower, _OPTIMIZERS)
    ),
    "time": Kind("a number of hours above 0", lambda value: value is None or (NUMBER.holds(value) and value > 0)),
    "warmup_epochs": Kind("a number of epochs from 0", lambda value: NUMBER.holds(value) and value >= 0),
    "workers": NATURAL,
    **dict.fromkeys(
        ("box", "cls", "dfl", "dis"), Kind("a weight from 0", lambda value: NUMBER.holds(value) and value >= 0)
    ),
}
LOGGERS = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wb"}  # Ultralytics' modules of callbacks


@dataclass(frozen=True)
class OwnOption:
    """An argument of ours.

    Attributes:
        default: its value where it is not given.
        text: what it does, in a line.
    """

    default: Any
    text: str


OWN_OPTIONS = {
    "cuda_graph": OwnOption(False, "with cache=device on a GPU: capture the training step as CUDA graphs"),
    "cutout": OwnOption(0.0, "with cache=device: probability that a rectangle of an image turns grey"),
    "margin": OwnOption(0.0, "with cache=device: probability that grey covers the edges of an image"),
    "sync_bn": OwnOption(False, "on several GPUs: batch normalization over the batches of all of them"),
    "distill_on": OwnOption("features", "what to learn from distill_model: its features or its outputs"),
    "val_period": OwnOption(1, "validate every so many epochs, and after the last"),
    "loggers": OwnOption("", f"log to {', '.join(LOGGERS)}, with commas between"),
}


def take_own(overrides: dict[str, Any]) -> dict[str, Any]:
    """Take our arguments out of `overrides` and return them checked, with defaults for those not given.

    Raises:
        UserError: a value that cannot be used.
    """
    own = {name: overrides.pop(name, option.default) for name, option in OWN_OPTIONS.items()}
    for name in ("cuda_graph", "sync_bn"):
        if not isinstance(own[name], bool):
            raise UserError(f"{name}={own[name]}: must be True or False")
    if not isinstance(own["val_period"], int) or isinstance(own["val_period"], bool) or own["val_period"] < 1:
        raise UserError(f"val_period={own['val_period']}: must be a whole number of epochs from 1")
    for name in ("cutout", "margin"):
        if not isinstance(own[name], int | float) or not 0 <= own[name] <= 1:
            raise UserError(f"{name}={own[name]}: must be a probability from 0 to 1")
    if own["distill_on"] not in DISTILLED:
        raise UserError(f"distill_on={own['distill_on']}: must be {' or '.join(DISTILLED)}")
    own["loggers"] = ",".join(logger_names(own["loggers"]))
    return own


def logger_names(value: Any) -> list[str]:
    """Return the names of the loggers in a list, or a text with commas.

    Raises:
        UserError: an unknown logger, or one whose package is not installed.
    """
    parts = value if isinstance(value, list | tuple) else str(value or "").split(",")
    names = [name for part in parts if (name := str(part).strip())]
    for name in names:
        if name not in LOGGERS:
            raise UserError(f"loggers={name}: unknown{nearest(name, LOGGERS)}; use {', '.join(LOGGERS)}")
        if find_spec(name) is None:
            raise UserError(f"loggers={name}: the package {name} is not installed; run: pip install {name}")
    return names


def check_values(args: Any) -> None:
    """Raise UserError for a value that Ultralytics would take for another, or fail with late.

    Args:
        args: all training arguments.
    """
    for name, kind in _KINDS.items():
        if not kind.holds(getattr(args, name)):
            raise UserError(f"{name}={getattr(args, name)}: must be {kind.text}")


def freeze_list(freeze: Any, model: Any) -> int | list[int | str] | None:
    """Return what `freeze` names in the form that Ultralytics takes: a number of layers, or a list of layers by name.

    Raises:
        UserError: something that is no layer of the model, or all of its layers.
    """
    if freeze is None:
        return None
    names = [name for name, _ in model.named_parameters()]
    if isinstance(freeze, int) and not isinstance(freeze, bool):
        layers: list[Any] = list(range(freeze))
        if freeze < 0:
            raise UserError(f"freeze={freeze}: must be a number of layers from 0, or names of layers")
    else:
        layers = list(freeze) if isinstance(freeze, list | tuple) else [freeze]
        known = {name for name, _ in model.named_modules()}
        for layer in layers:
            if f"model.{layer}" not in known:
                raise UserError(f"freeze={freeze}: the model has no layer {layer}; give numbers, or names like 16.cv2")
        freeze = layers
    if all(any(f"model.{layer}." in name for layer in layers) for name in names):
        raise UserError(f"freeze={freeze}: leaves nothing to train; freeze fewer of the {len(model.model)} layers")
    return freeze


def check_device_cache(args: Any, device: str, cuda: bool) -> None:
    """Raise UserError where data on the device do not go together with other training arguments.

    Args:
        args: all training arguments.
        device: where the training runs, as Ultralytics' `parse_device` writes it: cpu, 0, 0,1, or nothing for a choice.
        cuda: whether there is a GPU to choose.
    """
    gpu = device[0].isdigit() if device else cuda
    if args.cache not in DEVICE_CACHES:
        for name in ("cuda_graph", "cutout", "margin"):
            if getattr(args, name):
                raise UserError(f"{name}={getattr(args, name)}: needs cache=device; add that or drop {name}")
        return
    if args.cache == "pinned" and not gpu:
        raise UserError("cache=pinned: keeps images where a GPU reads them, and there is none here; use cache=ram")
    if args.cuda_graph and not gpu:
        raise UserError("cuda_graph=True: needs a GPU, and there is none here; drop it")
    if args.cuda_graph and args.multi_scale:
        raise UserError(f"cuda_graph=True: sizes must not change; drop multi_scale={args.multi_scale}")


def check_gpu_wishes(args: Any, gpu: bool) -> None:
    """Raise UserError for what only a GPU does, and Ultralytics leaves undone without one.

    Args:
        args: all training arguments.
        gpu: whether the training runs on one.
    """
    if args.batch < 1 and not gpu:
        raise UserError(f"batch={args.batch}: measures a GPU's memory, and there is none here; give a number of images")
    if args.amp in ("fp16", "bf16") and not gpu:
        raise UserError(f"amp={args.amp}: needs a GPU, and there is none here; drop it")


def check_several(args: Any, ranks: int, gpu: bool) -> None:
    """Raise UserError where training arguments do not go together with the number of processes that train.

    Args:
        args: all training arguments.
        ranks: how many processes train.
        gpu: whether they do on GPUs.
    """
    if ranks == 1:
        if args.sync_bn:
            raise UserError("sync_bn=True: is for several GPUs; name them (device=0,1), or drop it")
        return
    if args.batch < 1 or args.batch % ranks:
        near = max(int(args.batch) // ranks, 1) * ranks
        raise UserError(f"batch={args.batch}: cannot be divided among {ranks} processes; use {near} or {near + ranks}")
    if args.sync_bn and not gpu:
        raise UserError("sync_bn=True: torch has it for GPUs alone; drop it, or train on GPUs")
    if args.sync_bn and args.cuda_graph:
        raise UserError("sync_bn=True: its messages cannot be captured; drop it, or cuda_graph")
    for name in ("rect", "compile", "distill_model"):
        if getattr(args, name):
            raise UserError(f"{name}={getattr(args, name)}: is for one process, and {ranks} train; drop it")
