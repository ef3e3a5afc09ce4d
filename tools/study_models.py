"""Model YAMLs of a study: a model that ships, with a few of its values changed.

A change maps paths to values. `rows.10` is row 10, counted over backbone and head as in error messages; one past the
last adds a row. `rows.10.3.3` is the fourth argument of row 10. A module's name in place of `rows.10` stands for all
rows of it: `HyperLink.3.2` is the third argument of every Hyper-Link, wherever a model has them. Any other path is a
key of the YAML, `backbone` and `head` all of their rows.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

from yolo_lat.errors import UserError
from yolo_lat.nn.zoo import load_model_yaml


def changed_model(model: str, change: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a model YAML, with its one scale and the change.

    Args:
        model: a name such as yolo-lat-p, or a YAML.
        change: values by path.

    Raises:
        UserError: no such model, or a path that leads nowhere.
    """
    content = copy.deepcopy(load_model_yaml(model))
    scale, depth = content.pop("scale"), len(content["backbone"])
    del content["yaml_file"]
    if scale:
        content["scales"] = {scale: content["scales"][scale]}
    rows = [*content.pop("backbone"), *content.pop("head")]
    for path, value in copy.deepcopy(change).items():
        (key, *places), where = path.split("."), f"model {model}, change {path}"
        of_module = [row for row in rows if row[2:3] == [key]]
        if key == "rows":
            _set(rows, places, value, where)
        elif key == "backbone" and not places:
            rows[:depth], depth = value, len(value)
        elif key == "head" and not places:
            rows[depth:] = value
        elif of_module:
            for row in of_module:
                _set(row, places, copy.deepcopy(value), where)
        elif places:
            problem = f"there is no row of {key}; write rows.NUMBER, a row's module, backbone, head or another key"
            raise UserError(f"{where}: {problem} of the YAML")
        else:
            content[key] = value
    return {**content, "backbone": rows[:depth], "head": rows[depth:]}


def write_model(model: str, change: dict[str, Any], file: Path) -> Path:
    """Write a changed model as a YAML."""
    content = changed_model(model, change)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120), encoding="utf-8")
    return file


def _set(at: Any, places: list[str], value: Any, where: str) -> None:
    """Put a value into nested lists; a place one past the end of a list adds it there."""
    numbers = [int(place) for place in places if place.isdecimal()]
    if not numbers or len(numbers) < len(places):
        raise UserError(f"{where}: after rows or a module come numbers, such as rows.10 or Conv.3.0; correct it")
    for depth, number in enumerate(numbers):
        last = depth + 1 == len(numbers)
        if not isinstance(at, list) or number > len(at) - (not last):
            raise UserError(f"{where}: there is nothing at {'.'.join(places[: depth + 1])}; correct the path")
        if last:
            at[number : number + 1] = [value]
        else:
            at = at[number]
