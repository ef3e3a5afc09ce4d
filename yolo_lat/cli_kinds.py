"""Which values keys and arguments take, where what they are handed to would fail with a traceback."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """The values that a key takes.

    Attributes:
        text: what they are, in words that follow "must be".
        holds: whether a value is one.
    """

    text: str
    holds: Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_whole(values: Sequence[Any]) -> bool:
    return all(map(_is_whole, values))


def one_of(*values: str) -> Kind:
    """Return the kind of a key that takes one of some words."""
    return Kind(" or ".join([", ".join(values[:-1]), values[-1]]), lambda value: value in values)


PATH = Kind("a name or a path", lambda value: isinstance(value, str))
NUMBER = Kind("a number", lambda value: _is_whole(value) or isinstance(value, float))
WHOLE = Kind("a whole number", _is_whole)
NATURAL = Kind("a whole number from 0", lambda value: _is_whole(value) and value >= 0)
COUNT = Kind("a whole number from 1", lambda value: _is_whole(value) and value >= 1)
SEED = Kind("a whole number from 0 to 4294967295", lambda value: _is_whole(value) and 0 <= value < 2**32)
SIZE = Kind("a number of pixels", lambda value: value is not None)  # what takes it compares the rest with its stride
SOURCE = Kind(
    "a path, an address or the number of a camera",
    lambda value: _is_whole(value) or isinstance(value, str | list | tuple),
)
RESUME = Kind("the path of a last.pt, True or False", lambda value: isinstance(value, str | bool | None))
# Keys of Ultralytics whose values its own check passes over.
ENGINE_KINDS = {
    "batch": Kind(
        "a whole number, or a share of the GPU's memory between 0 and 1",
        lambda value: _is_whole(value) or (isinstance(value, float) and 0 < value < 1),
    ),
    "classes": Kind(
        "the number of a class, or a list of them",
        lambda value: _is_whole(value) or (isinstance(value, list | tuple) and _are_whole(value)),
    ),
    "copy_paste_mode": one_of("flip", "mixup"),
    "distill_model": PATH,
    "imgsz": SIZE,
    "seed": SEED,
}
