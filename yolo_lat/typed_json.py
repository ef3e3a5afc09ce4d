"""JSON as dataclasses, checked against their types: what was written by one version, or by nobody, is not trusted."""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

_LARGEST = 2**63
_PLAIN = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}


def typed(kind: Any, value: Any, where: str = "") -> Any:
    """Return what `json.loads` gave as an instance of `kind`.

    Args:
        kind: a dataclass, `str`, `int`, `float`, `bool`, `None`, `list` and `dict` of them, a union, or `Any`.
        value: it.
        where: what it is called, for messages.

    Raises:
        ValueError: of another kind; the message says where and what.
    """
    if kind is Any:
        return value
    if is_dataclass(kind) and isinstance(kind, type):
        return _instance(kind, value, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _one_of(arguments, value, where)
    if origin is list and isinstance(value, list):
        return [typed(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {key: typed(arguments[1], item, f"{where}.{key[:40]}") for key, item in value.items()}
    if _fits(kind, value):
        return float(value) if kind is float else value
    name = {list: "a list", dict: "an object"}.get(origin) or _PLAIN[kind]
    raise ValueError(f"{where.strip('.')[:200] or 'it'} is not {name}")


def read_typed(kind: Any, file: Path) -> Any:
    """Return a JSON file as an instance of `kind`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no JSON, or of another kind.
    """
    try:
        return typed(kind, json.loads(file.read_text(encoding="utf-8")))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _instance(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where.strip('.')[:200] or 'it'} is not an object")
    hints = _hints(kind)
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    lacking, unknown = [key for key in needed if key not in value], [key for key in value if key not in hints]
    if lacking or unknown:
        what = f"lacks {lacking[0]}" if lacking else f"has the unknown key {unknown[0][:40]!r}"
        raise ValueError(f"{where.strip('.')[:200] or 'it'} {what}")
    return kind(**{key: typed(hints[key], item, f"{where}.{key}") for key, item in value.items()})


@cache
def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _one_of(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and NoneType in kinds:
        return None
    for kind in kinds:
        if kind is NoneType:
            continue
        try:
            return typed(kind, value, where)
        except ValueError as error:
            problem = error
    raise problem


def is_number(value: Any) -> bool:
    """Whether a value is a number that float64 and int64 can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and _is_usual(value)


def _fits(kind: Any, value: Any) -> bool:
    if kind is float:
        return is_number(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and _is_usual(value)
    return isinstance(kind, type) and isinstance(value, kind)


def _is_usual(value: float) -> bool:
    return math.isfinite(value) and abs(value) < _LARGEST if isinstance(value, float) else abs(value) < _LARGEST
