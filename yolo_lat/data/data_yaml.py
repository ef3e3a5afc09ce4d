"""Data YAMLs: Ultralytics' keys, and a few more for COCO JSON, Pascal VOC and subsets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from yolo_lat.data.class_names import categories_of, listed_names
from yolo_lat.data.faults import refuse, shown
from yolo_lat.data.files import read_yaml
from yolo_lat.data.images import list_images
from yolo_lat.data.spec import SPLITS, DatasetSpec, SplitSpec, Subset
from yolo_lat.data.voc_xml import voc_names
from yolo_lat.errors import UserError, nearest

FORMATS = ("yolo", "coco", "voc")


def read_data_yaml(file: Path, name: str | None = None) -> DatasetSpec:
    """Read a data YAML; a relative `path` starts from the folder of the file.

    Raises:
        UserError: not a YAML, or one that describes no data set.
    """
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise UserError(f"{file}: not a data YAML; it needs the keys path, train, val and names")
    root = path_in(file.parent, content.get("path") or ".", f"{file}, key path")
    advice = "correct it or put the data there"
    if content.get("download"):
        advice += ", or add download=true to fetch what the YAML's key download names"
    elif not root.is_dir():
        raise UserError(f"{file}, key path: no folder {root}; correct the path")
    return describe(name or file.stem, file, root, content, advice, str(file))


def describe(name: str, file: Path, root: Path, content: dict[str, Any], advice: str, where: str) -> DatasetSpec:
    """Turn the keys of a data YAML or of a registry entry, which is `where`, into a data set.

    Raises:
        UserError: a key is missing or wrong; the message names it.
    """
    for key in ("train", "val"):
        if not content.get(key):
            raise UserError(f"{where}: key {key} is missing; name the folder of its images")
    coco_json = content.get("coco_json") or {}
    if not isinstance(coco_json, dict) or not all(k in SPLITS and isinstance(v, str) for k, v in coco_json.items()):
        raise UserError(
            f"{where}, key coco_json: must map splits to files, such as {{train: train.json, val: val.json}}"
        )
    form = content.get("format", "coco" if coco_json else "yolo")
    if form not in FORMATS or (form == "coco") != bool(coco_json):
        wanted = "must be yolo or voc" if form not in FORMATS else "does not go with coco_json as it is given"
        raise UserError(f"{where}, key format: {shown(form)} {wanted}; correct it or leave it out")
    first_pixel = content.get("voc_first_pixel", 1)
    if first_pixel not in (0, 1):
        raise UserError(f"{where}, key voc_first_pixel: is {shown(first_pixel)}, not 0 or 1; correct it")
    splits = {
        split: SplitSpec(
            images=tuple(path_in(root, path, f"{where}, key {split}") for path in _as_list(content[split])),
            annotations=path_in(root, coco_json[split], f"{where}, key coco_json") if split in coco_json else None,
        )
        for split in SPLITS
        if content.get(split)
    }
    if unlabelled := [split for split in splits if coco_json and split not in coco_json]:
        raise UserError(f"{where}, key coco_json: has no file for {' and '.join(unlabelled)}; name one for each")
    spec = DatasetSpec(
        name, file, root, listed_names(where, content), splits, form, first_pixel, content.get("download"), advice
    )
    spec = spec if spec.names else _with_names_found(spec, where)
    return with_subset(spec, content["subset"], f"{where}, key subset") if content.get("subset") else spec


def path_in(root: Path, value: Any, where: str) -> Path:
    """Return a path of a data YAML, which starts from `root` unless it is absolute.

    Raises:
        UserError: a value that no file can have as its path; `where` begins the message.
    """
    fault = f"{where}: {shown(value)} is not a path; correct it"
    if not isinstance(value, str | int) or len(str(value).splitlines()) != 1:
        raise UserError(fault)
    try:
        path = (root / str(value)).resolve()
        path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, links in a circle
        raise UserError(fault) from error
    return path


def with_subset(spec: DatasetSpec, counts: Any, where: str) -> DatasetSpec:
    """Return the data set with splits cut down to `counts`, such as `{train: 2000, val: 500, seed: 1}`.

    Raises:
        UserError: other keys than the splits and the seed, or values that are no counts; `where` begins the message.
    """
    known = (*spec.splits, "seed")
    if not isinstance(counts, dict):
        raise UserError(f"{where}: is {shown(counts)}; give counts such as {{train: 2000, val: 500, seed: 1}}")
    for key, value in counts.items():
        if key not in known:
            raise UserError(f"{where}: unknown key {shown(key)}{nearest(str(key), known)}; use {', '.join(known)}")
        if not isinstance(value, int) or isinstance(value, bool) or value < (key != "seed"):
            raise UserError(f"{where}: {key} is {shown(value)}; give a whole number, 1 or more")
    seed = counts.get("seed", 0)
    splits = {
        split: replace(spec.splits[split], subset=Subset(count, seed, f"{where}: {split}"))
        for split, count in counts.items()
        if split != "seed"
    }
    return replace(spec, splits={**spec.splits, **splits})


def _with_names_found(spec: DatasetSpec, where: str) -> DatasetSpec:
    """Return the data set with the class names that its annotations have."""
    if spec.format == "coco":
        # Training's categories decide; whoever has the validation files alone gets those.
        files = [part.annotations for part in spec.splits.values() if part.annotations and part.annotations.exists()]
        if files:
            return replace(spec, names=tuple(categories_of(files[0]).values()))
    if spec.download and spec.missing("train"):
        raise UserError(f"{where}: key names is missing; list the class names, which a download needs beforehand")
    if spec.format == "coco":
        spec.split("train")  # says what is missing
    if spec.format == "voc":
        names = voc_names(list_images(spec.split("train").images), refuse)
        if names:
            return replace(spec, names=names)
        raise UserError(f"{where}: no annotation of split train has an object; list the class names under names")
    raise UserError(f"{where}: key names is missing; list the class names in the order of their numbers")


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
