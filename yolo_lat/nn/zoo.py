"""Model names: which YAML and which scale `yolo-lat-n` stands for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ultralytics.nn.tasks import guess_model_scale
from ultralytics.utils import DEFAULT_CFG_PATH

from yolo_lat.data.faults import shown
from yolo_lat.data.files import read_yaml
from yolo_lat.errors import UserError, nearest
from yolo_lat.resources import model_names, resource

ULTRALYTICS_CFG = DEFAULT_CFG_PATH.parent


def _read(file: Path) -> dict[str, Any]:
    content = read_yaml(file)
    if not isinstance(content, dict) or not {"backbone", "head", "nc"} <= content.keys():
        raise UserError(f"{file}: not a model YAML; it needs the keys nc, backbone and head")
    for key in ("backbone", "head"):
        if not isinstance(content[key], list) or not content[key]:
            raise UserError(f"{file}, key {key}: is no list of rows; write one [from, repeats, module, [...]] a line")
    scales = content.get("scales") or {}
    if not isinstance(scales, dict) or not all(map(_is_scale, scales.items())):
        raise UserError(f"{file}, key scales: must map letters to [depth, width, max_channels]; correct it")
    if not isinstance(content["nc"], int) or isinstance(content["nc"], bool) or content["nc"] < 1:
        raise UserError(f"{file}, key nc: is {shown(content['nc'])}; give the number of classes, 1 or more")
    return content


def _is_scale(item: tuple[Any, Any]) -> bool:
    name, values = item
    return isinstance(name, str) and isinstance(values, list) and len(values) == 3 and all(map(_is_positive, values))


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _find(name: str, scale: str | None = None) -> tuple[Path, str | None] | None:
    """Find the shipped YAML of a name, and the scale that the name says, None if it says none.

    `yolo-lat-n` and `yolo-lat-v8n` say one. A scale may have a YAML of its own, which comes before that of its family.
    """
    match = re.fullmatch(r"(.+?)-?([a-z])", name)
    family, letter = match.groups() if match else (name, None)
    known = ((f"{family}-{letter}", letter), (f"{name}-{scale}", None), (name, None), (family, letter))
    files = ((resource(f"cfg/models/{stem}.yaml"), said) for stem, said in known)
    return next(((file, said) for file, said in files if file.is_file()), None)


def _ultralytics_yaml(stem: str) -> Path | None:
    """Find the YAML that Ultralytics ships for a name such as yolov8n, whose scale letter its file names leave out."""
    files = {file.stem: file for file in (ULTRALYTICS_CFG / "models").rglob("*.yaml")}
    return files.get(stem) or files.get(re.sub(r"(\d+)[nslmx]$", r"\1", stem))


def is_ours(name: str) -> bool:
    """Whether `name`, with or without .yaml, is a shipped model or family."""
    return _find(name.removesuffix(".yaml")) is not None


def load_model_yaml(model: str | Path, scale: str | None = None) -> dict[str, Any]:
    """Read a model YAML and settle its scale.

    Args:
        model: a path to a YAML, the name of a shipped model such as `yolo-lat-n` or `yolo-lat-n.yaml`, or one of
            Ultralytics' own YAMLs such as `yolov8n.yaml`.
        scale: a letter of the YAML's `scales`; needed where the name does not say it, unless the YAML has one scale.

    Returns:
        The YAML's content with `scale` and `yaml_file` set, as `ultralytics.nn.tasks.DetectionModel` takes it.

    Raises:
        UserError: no such model, broken YAML, or a scale that it does not have.
    """
    file, named = Path(model), None
    if not file.is_file():
        stem = str(model).removesuffix(".yaml")
        if found := _find(stem, scale):
            file, named = found
        elif file.suffix == ".yaml" and (stock := _ultralytics_yaml(stem)):
            file, named = stock, guess_model_scale(stem)
        else:
            names = model_names()
            raise UserError(f"no model '{model}'{nearest(stem, names)}; known models: {', '.join(names)}")
    if named and scale not in (None, named):
        raise UserError(f"model={model} already names scale '{named}', but scale={scale} was given; drop one")
    content = _read(file)
    scales = content.get("scales") or {}
    if scale and not scales:
        raise UserError(f"{file.name} has no scales; drop scale={scale}")
    if not scales:
        return {**content, "scale": "", "yaml_file": str(file)}
    scale = scale or named or content.get("scale") or (next(iter(scales)) if len(scales) == 1 else None)
    if scale not in scales:
        if named:
            names = model_names()
            relatives = [name for name in names if name.rpartition("-")[0] == stem.rpartition("-")[0]]
            raise UserError(f"no model '{stem}'; give one of {', '.join(relatives or names)}")
        problem = f"has no scale '{scale}'" if scale else "needs a scale"
        family = [name.rpartition("-")[2] for name in model_names() if name.rpartition("-")[0] == str(model)]
        raise UserError(f"{file.name} {problem}; give scale= one of {', '.join(family or scales)}")
    return {**content, "scale": scale, "yaml_file": str(file)}
