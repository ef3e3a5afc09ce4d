"""Data sets known by name: those that ship with the package and those that a user adds."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from yolo_lat.data.data_yaml import describe, path_in, read_data_yaml, with_subset
from yolo_lat.data.faults import shown
from yolo_lat.data.files import read_yaml
from yolo_lat.data.spec import SPLITS, DatasetSpec
from yolo_lat.errors import UserError, nearest
from yolo_lat.resources import resource

_REQUIRED = ("about", "licence", "size", "path")
_TEXTS = (*_REQUIRED, "source", "subset_of")


def datasets_dir() -> Path:
    """Return the folder that registry entries lie under: $YOLO_LAT_DATASETS, or ./datasets."""
    return Path(os.environ.get("YOLO_LAT_DATASETS", "datasets")).expanduser().absolute()


def registry() -> dict[str, dict[str, Any]]:
    """Return the entries by name: those of the package, then those of `datasets.yaml` in the datasets folder.

    Each has at least about, licence, size and path, besides the keys of a data YAML, and `file`, where it stands.

    Raises:
        UserError: the user's file is malformed, or takes a name that the package has.
    """
    shipped = resource("datasets.yaml")
    entries = {name: {**entry, "file": shipped} for name, entry in read_yaml(shipped).items()}
    own = datasets_dir() / "datasets.yaml"
    if own.is_file():
        content = read_yaml(own)
        if not isinstance(content, dict):
            raise UserError(f"{own}: must map names to data sets; see datasets.yaml of this package for the keys")
        for name, entry in content.items():
            where = f"{own}, entry {name if isinstance(name, str) and name.isprintable() else shown(name)}"
            if name in entries:
                raise UserError(f"{where}: is a name of this package's own; choose another")
            entries[str(name)] = {**_own_entry(entry, where), "file": own}
    return entries


def _own_entry(entry: Any, where: str) -> dict[str, Any]:
    """Return an entry of the user's file with its texts in one line each."""
    given = entry if isinstance(entry, dict) else {}
    required = _REQUIRED[:-1] if "subset_of" in given else _REQUIRED
    if lacking := [key for key in required if not given.get(key)]:
        raise UserError(f"{where}: lacks {', '.join(lacking)}; add what is missing")
    texts = {key: given[key] for key in _TEXTS if key in given}
    for key, value in texts.items():
        if not isinstance(value, str | int | float):
            raise UserError(f"{where}, key {key}: {shown(value)} is not a text; correct it")
    if "generate" in given:
        raise UserError(f"{where}, key generate: is for this package's own data sets; give train and val")
    return {**given, **{key: " ".join(str(value).split()) for key, value in texts.items()}}


def load_dataset(data: str | Path) -> DatasetSpec:
    """Resolve a registry name or the path of a data YAML; synthetic sets are generated on first use.

    Args:
        data: a name such as `coco` (`yolo-lat data list` shows all), a name with the size of a part such as
            `coco-subset:train=2000,val=500,seed=1`, or the path of a YAML.

    Raises:
        UserError: unknown name or broken YAML.
    """
    file = Path(data)
    there = _is_file(file)
    if file.suffix in (".yaml", ".yml") or there:
        if not there:
            names = ", ".join(registry())
            raise UserError(f"data={data}: no such file; give the path of a data YAML or one of {names}")
        if file.suffix == ".json":
            raise UserError(
                f"data={data}: is annotations alone; write a data YAML with the keys train, val and coco_json"
            )
        return read_data_yaml(file.absolute())
    name, colon, part = str(data).partition(":")
    entries = registry()
    if name not in entries:
        close = nearest(name, entries)
        raise UserError(
            f"data={data}: no data set of that name{close}; give a YAML path or one of {', '.join(entries)}"
        )
    entry = complete(entries, name)
    where = f"{entry['file']}, entry {name}"
    root = path_in(datasets_dir(), entry["path"], f"{where}, key path")
    if "generate" in entry:
        from yolo_lat.data.shapes import ShapesConfig, generate

        generate(root, ShapesConfig(**entry["generate"]))
        spec = read_data_yaml(root / "data.yaml", name)
    else:
        spec = describe(name, entry["file"], root, entry, _advice(root, entry), where)
    if not colon:
        return spec
    counts = {**entry.get("subset", {}), **_counts(str(data), part)}
    return replace(with_subset(spec, counts, f"data={data}"), name=str(data))


def complete(entries: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """Return an entry with what it takes over from the one that it is a subset of."""
    entry = entries[name]
    if "subset_of" not in entry:
        return entry
    if entry["subset_of"] not in entries or "subset_of" in entries[entry["subset_of"]]:
        where = f"{entry['file']}, entry {name}, key subset_of"
        raise UserError(f"{where}: no data set '{entry['subset_of']}' to choose from; correct it")
    return {**entries[entry["subset_of"]], **entry}


def tree(entry: dict[str, Any]) -> list[str]:
    """Return the paths, relative to the datasets folder, that an entry expects."""
    listed = [path for split in SPLITS for path in _as_list(entry.get(split))]
    return [f"{entry['path']}/{path}" for path in [*listed, *(entry.get("coco_json") or {}).values()]]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for a file
        return False


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value else []


def _advice(root: Path, entry: dict[str, Any]) -> str:
    advice = f"put the data set at {root}"
    if "source" in entry:
        advice += f" (from {entry['source']})"
    advice += f" or set YOLO_LAT_DATASETS to the folder that holds '{entry['path']}'"
    return advice + (f", or add download=true to fetch {entry['size']}" if entry.get("download") else "")


def _counts(data: str, text: str) -> dict[str, int]:
    """Return `train=2000,val=500,seed=1` as a dict."""
    counts: dict[str, int] = {}
    for word in text.split(","):
        key, _, value = word.partition("=")
        if not value.isascii() or not value.isdigit() or len(value) > 9:
            raise UserError(f"data={data}: '{word}' is no count; write for example train=2000,val=500,seed=1")
        counts[key.strip()] = int(value)
    return counts
