"""Opening pickled checkpoints without running what they say.

A pickle is a program: it names functions and calls them. torch's restricted unpickler calls none but its own for
tensors and those on a list; the list here is what checkpoints of detectors hold, ours and Ultralytics'. Why it is safe:

- A class on it is never called. Unpickling gets an empty instance (`_Hollow`), whose `__dict__` it then fills. No
  `__init__` runs; `DetectionModel("https://...")`, for one, would fetch that address.
- The state goes through the `__setstate__` of torch's and Ultralytics' modules, which set attributes and defaults.
- The only functions are three of this file, which return a number, a path without access to a disk and a stand-in.
- What is made is a tree of layers with attributes of the file's choice. No method of those layers evaluates, imports
  or opens what an attribute says; the one text that Ultralytics would evaluate, `activation` of a model YAML, is parsed
  by `yolo_lat.nn.parser` instead.

Everything that Ultralytics opens goes through here as well, whichever argument names it: this replaces
`ultralytics.nn.tasks.torch_safe_load`.
"""

from __future__ import annotations

import pickle
import re
import sys
import threading
import warnings
from functools import cache
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn
from ultralytics.nn import tasks
from ultralytics.nn.modules import block, conv, head, transformer
from ultralytics.utils import IterableSimpleNamespace, loss, tal

from yolo_lat.ela.kernels import KERNELS, Kernel
from yolo_lat.engine.trust import is_trusted
from yolo_lat.errors import UserError
from yolo_lat.nn.parser import ROWS
from yolo_lat.pretrained import find_weights

# Models for other tasks too, so that a file of theirs gets the sentence that says so.
_MODELS = (
    *(tasks.DetectionModel, tasks.RTDETRDetectionModel),
    *(tasks.SegmentationModel, tasks.PoseModel, tasks.OBBModel, tasks.ClassificationModel),
)
_LOSSES = (
    *(loss.v8DetectionLoss, loss.E2EDetectLoss, loss.E2ELoss, loss.BboxLoss, loss.DFLoss),
    tal.TaskAlignedAssigner,
)
# Names that older Ultralytics wrote; see `ultralytics.nn.tasks._SafeLoad`.
_FORMER = {
    "ultralytics.nn.modules.block.Silence": nn.Identity,
    "ultralytics.nn.tasks.YOLOv10DetectionModel": tasks.DetectionModel,
    "ultralytics.utils.loss.v10DetectLoss": loss.E2EDetectLoss,
    "ultralytics.yolo.utils.IterableSimpleNamespace": IterableSimpleNamespace,
}
_NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
# In the messages of torch's unpickler: what it was asked for, and the advice around what went wrong.
_NAMED = re.compile(r"GLOBAL (\S+)")
_TORCH_ADVICE = re.compile(r"Weights only load failed.*WeightsUnpickler error: |Check the documentation.*", re.DOTALL)
_stock_load = tasks.torch_safe_load
_lock = threading.Lock()


class _Hollow:
    """Stands for a class in torch's unpickler, which makes instances of it but cannot call it with arguments."""

    def __init__(self, cls: Any) -> None:
        self.cls = cls
        vars(self)["__new__"] = lambda *_: cls.__new__(cls)  # what a pickle's NEWOBJ asks a class for

    def __call__(self, *args: Any) -> Any:
        """Return an empty instance; a namespace is pickled as a call without arguments."""
        if args:
            raise pickle.UnpicklingError(f"calls {_name(self.cls)}, which a checkpoint only gives a state")
        return self.cls.__new__(self.cls)

    def __eq__(self, other: object) -> bool:
        """Whether `other` is this or the class, whose instances the unpickler gives their state."""
        return other is self or other is self.cls

    __hash__ = object.__hash__


class _NumberType:
    """What becomes of a `numpy.dtype`, whose own `__setstate__` takes any layout of memory."""

    def __init__(self, name: str, *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """Leave the byte order alone, which is that of the machine."""


def _number(kind: Any, content: bytes = b"") -> Any:
    """Return a scalar of NumPy as Python's."""
    if not isinstance(kind, _NumberType) or kind.name not in _NUMBERS:
        raise pickle.UnpicklingError("holds a scalar of NumPy that is no number")
    return np.frombuffer(content, kind.name)[0].item()


def _path(*parts: str) -> PurePosixPath:
    return PurePosixPath(*parts)


@cache
def _shipped() -> dict[str, Any]:
    """Return what stands for each name that a checkpoint may hold, but for those of the user's own classes."""
    # Attention of torch has a class of its own for the layer at its end.
    modules = (nn.modules, nn.modules.linear, block, conv, head, transformer)
    layers = [cls for module in modules for cls in _classes(module)]
    known = {_name(cls): cls for cls in (*layers, *_MODELS, *_LOSSES, IterableSimpleNamespace)}
    hollow: dict[str, Any] = {name: _Hollow(cls) for name, cls in (known | _FORMER).items()}
    scalars = {f"numpy.{core}.multiarray.scalar": _number for core in ("core", "_core")}
    paths = {f"{module}.{cls}Path": _path for module in ("pathlib", "pathlib._local") for cls in ("Posix", "Windows")}
    return {**hollow, **scalars, **paths, "numpy.dtype": _NumberType}


def _allowed() -> dict[str, Any]:
    """Return what stands for each name that a checkpoint may hold.

    Beside what ships these are the rows and kernels that the user's program has registered: it imported their code.
    """
    ours = [module for name, module in list(sys.modules.items()) if name.startswith(("yolo_lat.nn.", "yolo_lat.ela."))]
    own = [cls for module in ours for cls in _classes(module)]
    own += [row.module for row in ROWS.values() if isinstance(row.module, type)]
    return {**{_name(cls): _Hollow(cls) for cls in (*own, *KERNELS.values())}, **_shipped()}


def _classes(module: ModuleType) -> list[type]:
    """Return the layers and kernels in a module's namespace, but for those that run code when an instance is made."""
    found = [value for value in vars(module).values() if isinstance(value, type) and value.__new__ is object.__new__]
    lazy = nn.modules.lazy.LazyModuleMixin  # turns into another class, and no trained model has one
    return [cls for cls in found if issubclass(cls, nn.Module | Kernel) and not issubclass(cls, lazy)]


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def check_names(file: Path) -> None:
    """Raise UserError if a checkpoint names what is not on the list; reads its names alone, and runs nothing."""
    if not is_trusted(file):
        _refuse_others(file, _names(file), _allowed())


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Read a pickled checkpoint; nothing in it is called but what is on the list.

    Raises:
        UserError: it names something else, is damaged, or is no checkpoint.
    """
    allowed = _allowed()
    names = _names(file)
    _refuse_others(file, names, allowed)
    try:
        # The list is the process's: whoever leaves first would take it away from others. It is kept to what this file
        # names because torch goes through it at every step.
        entries: list[Any] = [(allowed[name], name) for name in (allowed if names is None else names)]
        with _lock, warnings.catch_warnings(), torch.serialization.safe_globals(entries):
            warnings.simplefilter("ignore")  # of pickle protocols that it does not know, which it then refuses
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(checkpoint, dict):
            raise TypeError(f"holds {type(checkpoint).__name__}")
        if checkpoint.get("modelopt"):
            raise TypeError("holds a model quantised by NVIDIA ModelOpt, which rebuilds it by code of its own")
    except Exception as error:  # a foreign pickle can fail in any way
        if named := _NAMED.search(str(error)):
            raise _refusal(file, named[1]) from error
        reason = " ".join(_TORCH_ADVICE.sub("", str(error)).split())[:160]
        raise UserError(f"{file}: not a checkpoint of a detector ({reason}); give a .pt that training wrote") from error
    return checkpoint


def _names(file: Path) -> list[str] | None:
    """Return what a checkpoint names beside torch's own; None where only reading tells, as in torch's old format."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(file)))
    except Exception:  # reading says what is wrong
        return None


def _refuse_others(file: Path, names: list[str] | None, allowed: dict[str, Any]) -> None:
    for name in names or ():
        if name not in allowed:
            raise _refusal(file, name)


def _refusal(file: Path, name: str) -> UserError:
    plain = "".join(sign if sign.isprintable() else "?" for sign in name[:100])
    return UserError(
        f"{file}: names {plain}, which is no part of a detector and may run code; add trust=true if you made the file "
        "yourself, or use it as safetensors"
    )


def torch_safe_load(weight: str | Path, safe_only: bool | None = None) -> tuple[dict[str, Any], str]:
    """Read a checkpoint, a drop-in for `ultralytics.nn.tasks.torch_safe_load`; returns it and the path of its file.

    It takes safetensors and the names of weights that ship too, and where Ultralytics would look for what is missing on
    the internet, it does not.

    Raises:
        UserError: no such weights; or as `read_checkpoint`, for a file that is not trusted.
    """
    file = find_weights(weight)
    if file.suffix.lower() == ".safetensors":
        from yolo_lat.engine.checkpoint import load_safetensors  # which installs this module

        return {"model": load_safetensors(file)}, str(file)
    if is_trusted(str(file)):
        checkpoint, name = _stock_load(file, safe_only)
        return checkpoint, str(name)
    return read_checkpoint(file), str(file)


def install() -> None:
    """Make all of Ultralytics read checkpoints this way."""
    tasks.torch_safe_load = torch_safe_load
