"""Which parameters of a test every run has, and which only the slow ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def first(count: int, values: Iterable[Any]) -> list[Any]:
    """Return the values of `pytest.mark.parametrize`, all but the first `count` of them marked as slow."""
    values = list(values)
    assert 0 < count < len(values)
    return values[:count] + [pytest.param(value, marks=pytest.mark.slow) for value in values[count:]]
