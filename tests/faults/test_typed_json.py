"""JSON becomes dataclasses of the right types or is refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from yolo_lat.typed_json import read_typed, typed


@dataclass
class Inner:
    a: float


@dataclass
class Outer:
    name: str
    count: int
    inner: Inner | None = None
    many: list[Inner] = field(default_factory=list)
    by_name: dict[str, int] = field(default_factory=dict)
    anything: Any = None


def test_what_fits_is_made() -> None:
    content = {"name": "x", "count": 2, "inner": {"a": 1}, "many": [{"a": 0.5}], "by_name": {"k": 3}, "anything": [1]}
    assert typed(Outer, content) == Outer("x", 2, Inner(1.0), [Inner(0.5)], {"k": 3}, [1])
    assert typed(Outer, {"name": "x", "count": 2, "inner": None}) == Outer("x", 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "it is not an object"),
        ({"name": "x"}, "it lacks count"),
        ({"name": "x", "count": 1, "other": 2}, "it has the unknown key 'other'"),
        ({"name": 3, "count": 1}, "name is not a text"),
        ({"name": "x", "count": True}, "count is not a whole number"),
        ({"name": "x", "count": 1.0}, "count is not a whole number"),
        ({"name": "x", "count": 2**63}, "count is not a whole number"),
        ({"name": "x", "count": 1, "inner": 5}, "inner is not an object"),
        ({"name": "x", "count": 1, "many": {}}, "many is not a list"),
        ({"name": "x", "count": 1, "many": [{"a": 1}, {"a": "b"}]}, r"many\[1\].a is not a number"),
        ({"name": "x", "count": 1, "many": [{"a": float("nan")}]}, r"many\[0\].a is not a number"),
        ({"name": "x", "count": 1, "by_name": {"k": None}}, "by_name.k is not a whole number"),
        ({"name": "x", "count": 1, "by_name": []}, "by_name is not an object"),
    ],
)
def test_what_does_not_fit_is_named(content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        typed(Outer, content)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\ufeff{}"])
def test_what_is_no_json_is_refused(tmp_path, text: str) -> None:
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"."):
        read_typed(dict[str, Any], tmp_path / "a.json")
