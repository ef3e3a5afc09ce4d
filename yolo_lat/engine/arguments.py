"""Checks of arguments that Ultralytics would change, ignore or refuse with a traceback."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ultralytics.cfg import check_cfg, get_cfg
from ultralytics.engine.exporter import export_formats, validate_args
from ultralytics.trackers.track import TRACKER_MAP
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER, ROOT, YAML
from ultralytics.utils.torch_utils import parse_device

from yolo_lat.cli_kinds import COUNT, NATURAL
from yolo_lat.data.files import read_yaml
from yolo_lat.engine.export_keys import check_keys
from yolo_lat.engine.mode_keys import check_use
from yolo_lat.engine.recipe import DEFAULTS
from yolo_lat.engine.train_options import DEPRECATED_KEYS, OWN_OPTIONS
from yolo_lat.errors import UserError, nearest
from yolo_lat.nn.cross_scale import CrossScaleELA

OWN_EXPORT_KEYS = ("preprocess", "best_class", "target")
TARGETS = ("gpu", "cpu")
_OF_BOXES = ("augment", "visualize", "box_vote", "show", "save", "save_txt", "save_crop")
_OUTSIDE_TRAINING = {"batch": COUNT, "workers": NATURAL}  # where train takes more, or checks for itself
MAX_OPSET = 23  # that torch's tracing exporter writes
_ARGUMENTS = {*DEFAULT_CFG_DICT, *DEPRECATED_KEYS, *OWN_OPTIONS, *OWN_EXPORT_KEYS, "augmentations", "download"}
_TRACKERS = {name: ROOT / f"cfg/trackers/{name}.yaml" for name in TRACKER_MAP}


def as_list(value: Any) -> list[Any]:
    """Return a list or tuple as a list, and anything else in one."""
    return list(value) if isinstance(value, list | tuple) else [value]


def plain(value: Any) -> Any:
    """Return a number of NumPy as Python's own, and a range as a list; Ultralytics refuses both."""
    if isinstance(value, list | tuple | range):
        return [plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def check_arguments(mode: str, kwargs: dict[str, Any]) -> None:
    """Raise UserError for a name that no mode has an argument of, a value that is refused, or one that does nothing."""
    for key in kwargs:
        if key not in _ARGUMENTS:
            raise UserError(f"{key}: no such argument{nearest(key, _ARGUMENTS)}; see yolo-lat MODE --help")
    try:
        check_cfg({key: kwargs[key] for key in kwargs.keys() & DEFAULT_CFG_DICT.keys() - {"augmentations"}})
    except (TypeError, ValueError) as error:
        raise UserError(" ".join(str(error).split())) from error
    for key, kind in {} if mode == "train" else _OUTSIDE_TRAINING.items():
        if kwargs.get(key) is not None and not kind.holds(kwargs[key]):
            raise UserError(f"{key}={kwargs[key]}: must be {kind.text} in {mode}")
    check_use(mode, kwargs, DEFAULTS)


def check_export(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of an export under Ultralytics' current names, with the default opset, 18, where it has one.

    Raises:
        UserError: an unknown format, or an argument that the format has no use for.
    """
    form, table = kwargs["format"], export_formats()
    keys = dict(zip(table["Argument"][1:], table["Arguments"][1:], strict=True))
    if form not in keys:
        raise UserError(f"format={form}: unknown{nearest(str(form), keys)}; use one of {', '.join(keys)}")
    asked = [f"{key}={kwargs[key]}" for key in ("half", "int8", "quantize") if kwargs.get(key) not in (None, False)]
    if len(asked) > 1:
        raise UserError(f"{' and '.join(asked)}: a file has one precision; keep one of them")
    own = {key: kwargs[key] for key in OWN_EXPORT_KEYS if key in kwargs}
    for key, value in own.items():
        if key == "target":
            if value not in (None, *TARGETS):
                raise UserError(f"target={value}: must be {' or '.join(TARGETS)}")
        elif not isinstance(value, bool):
            raise UserError(f"{key}={value}: must be True or False")
        if value and form != "onnx":
            raise UserError(f"format={form}: argument '{key}' is for format=onnx; leave it out")
    kwargs = {key: value for key, value in kwargs.items() if key not in own}
    if "opset" in keys[form]:
        kwargs = {"opset": 18, **kwargs}
        if isinstance(kwargs["opset"], int) and kwargs["opset"] > MAX_OPSET:
            raise UserError(f"opset={kwargs['opset']}: torch writes {MAX_OPSET} at most; leave it out for 18")
    try:
        args = get_cfg(overrides={"batch": 1, **kwargs})
        validate_args(form, args, keys[form])
    except AssertionError as error:
        problem = " ".join(str(error).split()).removeprefix("ERROR ❌️ ")
        raise UserError(f"format={form}: {problem}; leave it out or choose another format") from error
    check_keys(form, keys[form], args)
    if form == "engine" and (str(args.device) == "cpu" or not torch.cuda.is_available()):
        raise UserError("format=engine: TensorRT builds for a GPU, on that GPU; choose one, or another format")
    kwargs = {key: value for key, value in kwargs.items() if key not in ("half", "int8", "end2end")}
    return {**kwargs, "quantize": args.quantize, "nms": args.nms, **(own if form == "onnx" else {})}


def note_suppression(exporter: Any) -> None:
    """Write the thresholds of a suppression inside the graph into the metadata, which Ultralytics leaves out."""
    if exporter.args.nms:
        exporter.metadata["args"] |= {key: getattr(exporter.args, key) for key in ("conf", "iou", "max_det")}


def warn_of_threshold(model: str, args: dict[str, Any], conf: float | None) -> None:
    """Warn before an evaluation of a model that suppresses inside its graph, at a higher confidence than `conf`.

    Args:
        model: for the message.
        args: what its export wrote into its metadata.
        conf: confidence from which detections are to be evaluated; None for Ultralytics' 0.001.
    """
    inside, wanted = args.get("conf"), 0.001 if conf is None else conf
    if args.get("nms") and (inside is None or inside > wanted):
        known = "of unknown confidence, by default 0.25," if inside is None else f"of confidence {inside}"
        LOGGER.warning(
            f"{model} has a suppression {known} inside: detections below are lost, and AP is lower than the model's; "
            f"export it with conf={wanted} to measure it"
        )


@contextmanager
def removed_on_failure(targets: list[Path]) -> Iterator[None]:
    """Remove those files and folders if the body fails after it wrote them: what is there is whole."""
    before = {target: target.stat().st_mtime_ns if target.exists() else None for target in targets}
    try:
        yield
    except BaseException:
        for target, time in before.items():
            if target.is_dir() and target.stat().st_mtime_ns != time:
                shutil.rmtree(target)
            elif target.is_file() and target.stat().st_mtime_ns != time:
                target.unlink()
        raise


def check_image_size(imgsz: int | list[int] | tuple[int, ...] | None, stride: int, rectangles: bool = True) -> None:
    """Raise UserError unless every side is a positive multiple of the model's largest stride.

    Args:
        imgsz: one side of a square, or height and width; None for the default.
        stride: the model's largest.
        rectangles: accept height and width; training and validation take one number.
    """
    if imgsz is None:
        return
    sides = as_list(imgsz)
    if not 1 <= len(sides) <= (2 if rectangles else 1):
        raise UserError(f"imgsz={imgsz}: give one number{' or two, height and width' if rectangles else ''}")
    for side in sides:
        if not isinstance(side, int) or isinstance(side, bool):
            raise UserError(f"imgsz={imgsz}: must be a whole number of pixels")
        if side < stride or side % stride:
            near = max(side // stride, 1) * stride
            raise UserError(
                f"imgsz={imgsz} is not a multiple of the model's stride {stride}; use {near} or {near + stride}"
            )


def check_classes(classes: Any, names: Collection[Any]) -> None:
    """Raise UserError unless `classes`, one or several or None, are numbers of those that have names."""
    for number in () if classes is None else as_list(plain(classes)):
        if isinstance(number, bool) or number not in range(len(names)):
            raise UserError(f"classes={number}: must be the number of a class, from 0 to {len(names) - 1}")


def check_tracker(tracker: str | Path) -> dict[str, Any]:
    """Return the settings of a tracker that a file describes; none for the name of one of Ultralytics'.

    Raises:
        UserError: no such file, a tracker that Ultralytics does not have, or a key that is missing.
    """
    file, names = Path(str(tracker)), [path.name for path in _TRACKERS.values()]
    if not file.is_file():
        if str(tracker) in names:
            return {}
        raise UserError(f"tracker={tracker}: no such file; give one, or {', '.join(names)}")
    settings = read_yaml(file)
    kind = settings.get("tracker_type") if isinstance(settings, dict) else None
    if kind not in _TRACKERS:
        hint = nearest(str(kind), _TRACKERS)
        raise UserError(f"{file}, key tracker_type: {kind} is unknown{hint}; use {', '.join(_TRACKERS)}")
    missing = _tracker_keys(kind) - settings.keys()
    if missing:
        raise UserError(f"{file}: lacks {', '.join(sorted(missing))}; copy {_TRACKERS[kind]} and change that")
    return dict(settings)


@cache
def _tracker_keys(kind: str) -> set[str]:
    """Return the keys of one of Ultralytics' trackers, read once: a call may be made for every frame."""
    return set(YAML.load(_TRACKERS[kind]))


def check_arrays(source: Any, channels: int = 3) -> None:
    """Raise UserError for an array or tensor that is no image, or whose numbers would be taken for others.

    Args:
        source: anything; of arrays, tensors and lists of them each is looked at.
        channels: of the images that the model takes.
    """
    for image in as_list(source):
        if isinstance(image, np.ndarray):
            if image.dtype not in (np.uint8, np.uint16):
                raise UserError(f"source: an image of {image.dtype}; give bytes (uint8), as cv2.imread does")
            if image.ndim not in (2, 3) or image.shape[2:] not in ((), (1,), (2,), (3,), (4,), (channels,)):
                raise UserError(f"source: an array of shape {image.shape}; give (height, width, {channels})")
        elif isinstance(image, torch.Tensor):
            if image.ndim not in (3, 4) or image.shape[-3] != channels:
                shape = f"(images, {channels}, height, width)"
                raise UserError(f"source: a tensor of shape {tuple(image.shape)}; give {shape}, values from 0 to 1")
            if not image.isfinite().all():
                raise UserError("source: a tensor with values that are not finite; give values from 0 to 1")


def check_embed(kwargs: dict[str, Any], layers: Sequence[Any]) -> list[int]:
    """Return the numbers of the layers that `embed` asks for; they end the forward pass, so there are no boxes.

    Raises:
        UserError: something that is no layer with one map as its result, or another argument that needs boxes.
    """
    embed = kwargs["embed"]
    usable = [number for number, layer in enumerate(layers[:-1]) if not isinstance(layer, CrossScaleELA)]
    for number in as_list(embed):
        if isinstance(number, bool) or number not in usable:
            raise UserError(
                f"embed={embed}: {number} is no layer that gives one map; use {', '.join(map(str, usable))}"
            )
    for name in _OF_BOXES:
        if kwargs.get(name):
            raise UserError(
                f"{name}={kwargs[name]}: needs boxes, and embed={embed} ends before there are any; drop one"
            )
    return as_list(embed)


def check_visualize(kwargs: dict[str, Any], source: Any, model: Any) -> None:
    """Raise UserError where Ultralytics would draw no heat map of what a prediction rests on."""
    if isinstance(model, str):
        raise UserError(f"visualize=True: {model} has no gradients to draw; give the weights that it came from")
    if isinstance(source, torch.Tensor):
        raise UserError("visualize=True: a tensor has no picture to draw on; give an array or a file")
    if kwargs.get("augment"):
        raise UserError("visualize=True: draws one scale, and augment=True has several; drop one")


def check_part(name: str, own: Any) -> None:
    """Raise UserError unless a user's own trainer, validator or predictor can be made of what is given."""
    if own is not None and not callable(own):
        raise UserError(f"{name}={own}: must be a class, made from ours or Ultralytics' of that name; leave it out")


def check_precision(kwargs: dict[str, Any], exported: dict[str, Any] | None = None) -> None:
    """Raise UserError for a precision in which a model would not run, but in its own without a word.

    Args:
        kwargs: the arguments of a call.
        exported: those that an exported file was written with, whose precision is fixed; None for torch's models.
    """
    wanted = next((key for key in ("half", "int8", "quantize") if kwargs.get(key) not in (None, False, 32)), None)
    if wanted is None:
        return
    if exported is not None:
        bits = {"half": 16, "int8": 8, "quantize": kwargs[wanted]}[wanted]
        of_file = exported.get("quantize") or (16 if exported.get("half") else 8 if exported.get("int8") else 32)
        if bits != of_file:
            name = {16: "float16", 8: "INT8"}.get(of_file, "float32")
            raise UserError(f"{wanted}={kwargs[wanted]}: the file is in {name}; leave it out, or export again")
        return
    if wanted == "int8" or str(kwargs[wanted]).lower() in ("8", "int8"):
        raise UserError(f"{wanted}={kwargs[wanted]}: is for exports; export with it, and use that file")
    device = kwargs.get("device")
    if parse_device(device) == "cpu" if device not in (None, "") else not torch.cuda.is_available():
        raise UserError(f"{wanted}={kwargs[wanted]}: a CPU computes in float32; leave it out, or use a GPU")


def check_suppression(kwargs: dict[str, Any], exported: dict[str, Any], conf: bool) -> None:
    """Raise UserError for thresholds that come too late, as a file has suppressed inside with others.

    Args:
        kwargs: the arguments of a call.
        exported: what the file's export wrote into its metadata.
        conf: whether a lower confidence is refused too.
    """
    if not exported.get("nms"):
        return
    inside = {key: exported.get(key, DEFAULTS[key]) for key in ("iou", "agnostic_nms")}
    late = [key for key, value in inside.items() if kwargs.get(key) not in (None, value)]
    inside["conf"] = exported.get("conf") or 0.25
    if conf and kwargs.get("conf") is not None and kwargs["conf"] < inside["conf"]:
        late.append("conf")
    if late:
        key = late[0]
        raise UserError(f"{key}={kwargs[key]}: the file suppresses inside, at {key}={inside[key]}; export with yours")


def check_device(device: Any) -> None:
    """Raise UserError when a device is asked for that this machine does not have."""
    wanted = parse_device(device) if device not in (None, "") else ""
    family, numbers = wanted.partition(":")[0], wanted.split(",")
    if not wanted and device not in (None, ""):
        raise UserError(f"device={device}: torch sees no idle CUDA device; use device=cpu")
    if wanted in ("", "cpu") or family in ("npu", "xpu", "dla"):
        return
    if wanted == "mps":
        if not torch.backends.mps.is_available():
            raise UserError("device=mps: torch sees no Apple GPU; use device=cpu")
    elif not all(number.isdigit() for number in numbers):
        raise UserError(f"device={device}: unknown; give cpu, a CUDA number such as 0 or several such as 0,1")
    elif max(map(int, numbers)) >= torch.cuda.device_count():
        raise UserError(
            f"device={device}: not among the {torch.cuda.device_count()} CUDA devices that torch sees; use device=cpu"
        )
