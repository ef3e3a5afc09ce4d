"""Augmentation by recipe: albumentations named in data, checked before training, applied to image and boxes alike."""

from __future__ import annotations

import importlib
import inspect
import os
import random
import warnings
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import numpy as np
from ultralytics.utils.instance import Instances

from yolo_lat.errors import UserError, nearest

# Ultralytics' RandomPerspective, which comes before, drops what is smaller than this and what is hidden more.
_SMALLEST_SIDE, _LEAST_VISIBLE = 2.0, 0.1
_VERSION = "2.0.8"  # the last; what goes by that name with a higher number is another package
_RUNS = 8  # dry runs for each transform in an entry: what goes wrong in half of all cases is missed once in 256
_REFUSED = {
    "Lambda": "holds functions, which a checkpoint cannot keep; write a transform class of your own",
    "Compose": "settles boxes and seeds by itself; use Sequential",
    "ReplayCompose": "settles boxes and seeds by itself; use Sequential",
}
_BASES = {"BasicTransform", "DualTransform", "ImageOnlyTransform", "Transform3D", "BaseCompose"}


class Augmentations:
    """Apply transforms of albumentations to a sample in Ultralytics' training pipeline.

    It stands in for `ultralytics.data.augment.Albumentations`, which goes on without transforms when they fail to
    build, and which seeds all of them alike, so that two transforms with p=0.5 act together or not at all.

    All randomness comes from Python's `random`, which Ultralytics seeds in each worker: the same seed gives the same
    samples, and workers differ. Boxes are cut at the border of the image; those then less than 2 pixels wide or high,
    or less than a tenth visible, are dropped with their labels.

    Args:
        transforms: of albumentations; they see BGR images, as everything in Ultralytics' pipeline does.

    Raises:
        UserError: a transform changed the size or type of an image, so that no batch could be made.
    """

    def __init__(self, transforms: list[Any]) -> None:
        A = _albumentations()
        boxes = A.BboxParams(
            format="albumentations",  # relative corners
            label_fields=["class_ids", "rows"],
            clip=True,
            filter_invalid_bboxes=True,
            min_width=_SMALLEST_SIDE,
            min_height=_SMALLEST_SIDE,
            min_visibility=_LEAST_VISIBLE,
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Got processor for bboxes, but no transform")  # pixel transforms alone
            self.compose = A.Compose(transforms, bbox_params=boxes)

    def __call__(self, labels: dict[str, Any]) -> dict[str, Any]:
        """Return the sample, transformed: `img` (H, W, 3) uint8, `cls` (n, 1) and `instances`."""
        seed = random.getrandbits(64)
        # One state for all: `set_random_seed` would give each transform the same numbers.
        self.compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        image, classes, instances = labels["img"], labels["cls"], labels["instances"]
        instances.convert_bbox("xyxy")
        instances.normalize(image.shape[1], image.shape[0])
        found = self.compose(
            image=image, bboxes=instances.bboxes, class_ids=classes.ravel(), rows=np.arange(len(classes))
        )
        if getattr(found["image"], "shape", None) != image.shape or found["image"].dtype != image.dtype:
            raise UserError(
                f"augmentations: turns an image of {_form(image)} into one of {_form(found['image'])}; put it with a "
                "Resize into one Sequential, or use another transform"
            )
        rows = np.asarray(found["rows"], dtype=int)
        boxes = np.asarray(found["bboxes"], dtype=np.float32).reshape(-1, 4)
        labels["img"] = np.ascontiguousarray(found["image"])
        labels["cls"] = classes[rows]
        labels["instances"] = Instances(boxes, instances.segments[:0], bbox_format="xyxy", normalized=True)
        return labels


def _form(image: Any) -> str:
    """Describe an image, for messages."""
    shape = "x".join(map(str, getattr(image, "shape", ())))
    return f"{shape} {getattr(image, 'dtype', type(image).__name__)}"


def check_augmentations(entries: Any, imgsz: int) -> list[dict[str, Any]]:
    """Build every entry, try it on a sample image with and without boxes, and return the entries as plain data.

    Args:
        entries: as for `build_augmentations`.
        imgsz: side of the training images in pixels.

    Returns:
        The entries as YAML and checkpoints can keep them; `build_augmentations` takes them again.

    Raises:
        UserError: as for `build_augmentations`, or an entry that fails when it runs.
    """
    for number, transform in enumerate(build_augmentations(entries), start=1):
        _try_out(transform, imgsz, f"augmentations, entry {number} ({type(transform).__name__})")
    return [_as_data(entry, f"augmentations, entry {number}") for number, entry in enumerate(entries or [], start=1)]


def build_augmentations(entries: Any) -> list[Any]:
    """Build the transforms that a recipe lists under `augmentations`.

    Args:
        entries: a list, or None for no augmentations. An entry is the name of a transform, its name with its arguments
            (`{Blur: {p: 0.2}}`), a transform object, or what `albumentations.to_dict` made of one. The argument
            `transforms` of OneOf and its like is again such a list.

    Returns:
        Transforms of albumentations, one an entry.

    Raises:
        UserError: albumentations is missing or of another version, or an entry that cannot be built or cannot be used
            for training a detector; the message says which and why.
    """
    if entries in (None, [], ()):
        return []
    return _build_all(entries, "augmentations", "entry")


def _albumentations() -> Any:
    """Import albumentations."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # its import would ask the network for a newer version
    try:
        A = importlib.import_module("albumentations")
    except ImportError as error:
        raise UserError(f"augmentations need albumentations ({error}); pip install 'yolo-lat[augment]'") from error
    if A.__version__ != _VERSION:
        raise UserError(
            f"augmentations need albumentations {_VERSION}, its last release, not {A.__version__}; uninstall "
            "albumentations and its fork albumentationsx, then pip install 'yolo-lat[augment]'"
        )
    return A


def _build_all(entries: Any, where: str, kind: str) -> list[Any]:
    if not isinstance(entries, list | tuple) or not entries:
        raise UserError(f"{where}: {entries!r} is no list of transforms; write one with a dash before each")
    return [_build(entry, f"{where}, {kind} {number}") for number, entry in enumerate(entries, start=1)]


def _build(entry: Any, where: str) -> Any:
    """Build one entry; `where` says in which place it stands."""
    A = _albumentations()
    if isinstance(entry, A.BasicTransform | A.BaseCompose):
        transform = entry
    elif _is_serialized(entry):
        try:
            transform = A.from_dict(entry)
        except Exception as error:  # albumentations validates with whatever its parts raise
            raise UserError(f"{where}: albumentations cannot restore it ({_reason(error)}); write it anew") from error
    else:
        name, arguments = _name_and_arguments(entry, where)
        return _build_named(A, name, arguments, f"{where} ({name})")
    for part in _parts(transform):
        _check_part(A, part, f"{where} ({type(part).__name__})")
    return transform


def _is_serialized(entry: Any) -> bool:
    """Whether an entry is what `albumentations.to_dict` returns."""
    return isinstance(entry, Mapping) and entry.keys() == {"__version__", "transform"}


def _name_and_arguments(entry: Any, where: str) -> tuple[str, dict[str, Any]]:
    if isinstance(entry, str):
        return entry, {}
    if not isinstance(entry, Mapping):
        raise UserError(f"{where}: {entry!r} is no transform; give its name, or its name with its arguments")
    if len(entry) != 1:
        keys = ", ".join(map(str, entry))
        raise UserError(f"{where}: has the keys {keys}; one name belongs there, with its arguments indented below")
    ((name, arguments),) = entry.items()
    if not isinstance(arguments, Mapping | None):
        raise UserError(f"{where} ({name}): {arguments!r} are no arguments; write them as name: value")
    return str(name), dict(arguments or {})


def _build_named(A: Any, name: str, arguments: dict[str, Any], where: str) -> Any:
    known = {key for key, value in vars(A).items() if inspect.isclass(value) and key not in _BASES}
    names = {key for key in known if issubclass(vars(A)[key], A.BasicTransform | A.BaseCompose)}
    if name in _REFUSED:
        raise UserError(f"{where}: {_REFUSED[name]}")
    if name not in names:
        hint = nearest(name, names - _REFUSED.keys()) or f"; see the list at albumentations {A.__version__}"
        raise UserError(f"{where}: no albumentations transform of that name{hint}")
    kind = vars(A)[name]
    accepted = [key for key in inspect.signature(kind).parameters if key != "strict"]
    for key in arguments:
        if key not in accepted:  # albumentations would only warn
            hint = nearest(str(key), accepted) or f"; it takes {', '.join(accepted)}"
            raise UserError(f"{where}: has no argument '{key}'{hint}")
    if "transforms" in accepted:
        arguments = {**arguments, "transforms": _build_all(arguments.get("transforms"), where, "transform")}
    try:
        transform = kind(**arguments)
    except Exception as error:  # pydantic's errors, and whatever else the constructor raises
        raise UserError(f"{where}: {_reason(error)}; correct its arguments") from error
    _check_part(A, transform, where)
    return transform


def _reason(error: Exception) -> str:
    """Return what went wrong in one line; pydantic's errors, wrapped by albumentations, name the arguments."""
    faults: list[dict[str, Any]] = getattr(error.__cause__, "errors", list)()
    if faults:
        texts = (": ".join([*map(str, fault["loc"][:1]), fault["msg"]]) for fault in faults)
        return ", ".join(dict.fromkeys(text.replace("Value error, ", "") for text in texts))
    return " ".join(str(error).split())[:200] or type(error).__name__


def _parts(transform: Any) -> Iterator[Any]:
    """Yield a transform and all that are nested in it."""
    yield transform
    for part in getattr(transform, "transforms", []):
        yield from _parts(part)


def _check_part(A: Any, part: Any, where: str) -> None:
    """Refuse a transform that training cannot use or a checkpoint cannot keep."""
    for name, reason in _REFUSED.items():
        if isinstance(part, getattr(A, name)):
            raise UserError(f"{where}: {reason}")
    if isinstance(part, A.BaseCompose):
        return
    if isinstance(part, A.DualTransform) and "bboxes" not in part.available_keys:
        raise UserError(f"{where}: moves pixels but cannot move boxes with them; use another transform")
    missing = set(part.targets_as_params) - {"image", "bboxes"}
    if missing:
        raise UserError(f"{where}: needs the input {', '.join(sorted(missing))}, which training does not have; drop it")


def _try_out(transform: Any, imgsz: int, where: str) -> None:
    """Run a transform with p=1 on a sample image several times, with boxes at its border, inside it, and without."""
    trial = deepcopy(transform)
    parts = list(_parts(trial))
    for part in parts:
        part.p = 1.0
    image = np.random.default_rng(0).integers(0, 256, (imgsz, imgsz, 3), dtype=np.uint8)
    corners = np.array([[0, 0, 1, 1], [0.8, 0.9, 1, 1], [0.3, 0.3, 0.7, 0.6]], dtype=np.float32)
    state = random.getstate()
    try:
        augment = Augmentations([trial])
        for run in range(_RUNS * len(parts)):
            random.seed(run)
            boxes = (corners, corners[2:], corners[:0])[run % 3].copy()
            instances = Instances(boxes, np.zeros((0, 1000, 2), np.float32), bbox_format="xyxy", normalized=True)
            augment({"img": image.copy(), "cls": np.zeros((len(boxes), 1), np.float32), "instances": instances})
    except UserError as error:
        raise UserError(str(error).replace("augmentations", where, 1)) from error
    except Exception as error:  # transforms fail in any way
        raise UserError(f"{where}: fails on an image of {imgsz} pixels ({_reason(error)}); drop or mend it") from error
    finally:
        random.setstate(state)


def _as_data(entry: Any, where: str) -> dict[str, Any]:
    """Return an entry that can be built as plain data."""
    if isinstance(entry, str):
        return {entry: {}}
    if isinstance(entry, Mapping):
        return dict(entry)
    try:
        return dict(_albumentations().to_dict(entry))
    except Exception as error:  # a transform class of the user's own that cannot be written as data
        where = f"{where} ({type(entry).__name__})"
        raise UserError(f"{where}: cannot be kept in a checkpoint ({_reason(error)}); name it in a list") from error
