"""Marks for `torch.compile` that cost nothing where nothing is compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable[..., object])


def assume_constant_result(function: F) -> F:
    """Have `torch.compile` call a function while it traces, and take the result for a constant.

    As `torch.compiler.assume_constant_result`, which imports the compiler to leave this same mark: two seconds at the
    start of every command. tests/ela/test_compiling.py holds the two equal.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
