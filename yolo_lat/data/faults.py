"""What can be wrong with a data set, and what a reader does when it meets it."""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolo_lat.errors import UserError


@dataclass(frozen=True)
class Fault:
    """One thing that keeps a data set from being used as it is.

    Attributes:
        kind: `image` (missing or broken file), `size` (another size than annotated), `labels` (malformed annotation) or
            `class` (a class that the data set does not name).
        file: where the fault is.
        message: one sentence: what is wrong, where and what to do.
        image: the image that it is about, where it is about one.
    """

    kind: str
    file: Path
    message: str
    image: Path | None = None


class _Short(reprlib.Repr):
    """The first few parts of a value, whatever its size: aliases make a short YAML unfold without end."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring = 2, 60

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if abs(x) < 10**30 else "a number of more than 30 digits"  # Python prints 4300 digits at most


def shown(value: Any) -> str:
    """Return a value as a message quotes it: in one line and not at length."""
    return _Short().repr(value)


Report = Callable[[Fault], None]
"""Told of every fault; where it returns, the reader leaves the faulty row or image out and goes on."""


def refuse(fault: Fault) -> None:
    """Raise UserError: training and evaluation take a data set without faults or not at all."""
    raise UserError(fault.message)
