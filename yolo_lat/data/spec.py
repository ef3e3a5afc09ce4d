"""What a data set is: where its images and annotations lie and what its classes are called."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from yolo_lat.errors import UserError, nearest
from yolo_lat.resources import resource

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class SplitSpec:
    """One split of a data set.

    Attributes:
        images: folders, image files, or text files that list image paths.
        annotations: a COCO JSON; None reads YOLO label files beside the images.
    """

    images: tuple[Path, ...]
    annotations: Path | None = None


@dataclass(frozen=True)
class DatasetSpec:
    """A data set as described by a YAML or the registry.

    Attributes:
        name: for messages and tables.
        file: the YAML it was read from.
        names: class names; a class's index is its position.
        splits: those of train, val and test that are described.
        category_ids: the COCO category id of each class, 1, 2, 3, ... for YOLO labels.
    """

    name: str
    file: Path
    names: tuple[str, ...]
    splits: Mapping[str, SplitSpec] = field(repr=False)
    category_ids: tuple[int, ...] = field(repr=False, default=())

    def split(self, split: str) -> SplitSpec:
        """Return one split.

        Raises:
            UserError: the data set does not describe it.
        """
        if split not in self.splits:
            raise UserError(f"{self.file}: has no split '{split}', only {', '.join(self.splits)}; add it or choose one")
        return self.splits[split]


def datasets_dir() -> Path:
    """Return the folder that registry entries lie under."""
    return Path(os.environ.get("YOLO_LAT_DATASETS", "datasets")).expanduser().absolute()


def registry() -> dict[str, dict[str, Any]]:
    """Return the entries of datasets.yaml by name."""
    return yaml.safe_load(resource("datasets.yaml").read_text(encoding="utf-8"))


def load_dataset(data: str | Path) -> DatasetSpec:
    """Resolve a registry name or the path of a data YAML; synthetic sets are generated on first use.

    Args:
        data: `coco`, `shapes`, or the path of a YAML with `path`, `train`, `val` and either `names` or `coco_json`.

    Raises:
        UserError: unknown name, broken YAML, or paths that do not exist.
    """
    file = Path(data)
    if file.suffix in (".yaml", ".yml") or file.is_file():
        if not file.is_file():
            raise UserError(
                f"data={data}: no such file; give the path of a data YAML or one of {', '.join(registry())}"
            )
        return _from_yaml(file.absolute())
    entries = registry()
    if str(data) not in entries:
        close = nearest(str(data), entries)
        raise UserError(
            f"data={data}: no data set of that name{close}; give a YAML path or one of {', '.join(entries)}"
        )
    return _from_registry(str(data), dict(entries[str(data)]))


def _from_registry(name: str, entry: dict[str, Any]) -> DatasetSpec:
    root = datasets_dir() / entry["path"]
    if "generate" in entry:
        from yolo_lat.data.shapes import ShapesConfig, generate

        generate(root, ShapesConfig(**entry["generate"]))
        return _from_yaml(root / "data.yaml", name)
    wanted = [entry[split] for split in SPLITS if split in entry] + list(entry["coco_json"].values())
    missing = [path for path in wanted if not (root / path).exists()]
    if missing:
        raise UserError(
            f"data={name}: {root} lacks {', '.join(missing)}; put the data set there as {root}/{{{','.join(wanted)}}} "
            f"(from {entry['source']}) or set YOLO_LAT_DATASETS to the folder that holds '{entry['path']}'"
        )
    return _build(name, resource("datasets.yaml"), root, entry)


def _from_yaml(file: Path, name: str | None = None) -> DatasetSpec:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not a text file"
        raise UserError(f"{file}{line}: not valid YAML ({problem}); mend the file") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: not a data YAML; it needs the keys path, train, val and names")
    root = Path(str(content.get("path") or "."))
    return _build(name or file.stem, file, root if root.is_absolute() else (file.parent / root).resolve(), content)


def _build(name: str, file: Path, root: Path, content: dict[str, Any]) -> DatasetSpec:
    if not root.is_dir():
        raise UserError(f"{file}, key path: no folder {root}; correct the path")
    for key in ("train", "val"):
        if not content.get(key):
            raise UserError(f"{file}: key {key} is missing; name the folder of its images")
    coco_json = content.get("coco_json") or {}
    if not isinstance(coco_json, dict) or not all(k in SPLITS and isinstance(v, str) for k, v in coco_json.items()):
        raise UserError(
            f"{file}, key coco_json: must map splits to files, such as {{train: train.json, val: val.json}}"
        )
    splits = {
        split: SplitSpec(
            images=tuple(_existing(file, split, root / str(p)) for p in _as_list(content[split])),
            annotations=_existing(file, f"coco_json: {split}", root / coco_json[split]) if split in coco_json else None,
        )
        for split in SPLITS
        if content.get(split)
    }
    if coco_json:
        unlabelled = [split for split in splits if split not in coco_json]
        if unlabelled:
            raise UserError(f"{file}, key coco_json: has no file for {' and '.join(unlabelled)}; name one for each")
        categories = _categories(splits["train"].annotations)
        names = tuple(categories.values())
        given = _names(file, content)
        if given and given != names:
            raise UserError(
                f"{file}, key names: {len(given)} names differ from the {len(names)} in coco_json; drop names"
            )
        return DatasetSpec(name, file, names, splits, tuple(categories))
    names = _names(file, content)
    if not names:
        raise UserError(f"{file}: key names is missing; list the class names in the order of their numbers")
    return DatasetSpec(name, file, names, splits, tuple(range(1, len(names) + 1)))


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _existing(file: Path, key: str, path: Path) -> Path:
    if not path.exists():
        raise UserError(f"{file}, key {key}: no such path {path}; correct it or put the data there")
    return path.resolve()


def _names(file: Path, content: dict[str, Any]) -> tuple[str, ...]:
    names, count = content.get("names"), content.get("nc")
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise UserError(f"{file}, key names: class numbers must run from 0 to {len(names) - 1} without a gap")
        names = [names[i] for i in range(len(names))]
    if names is None:
        names = []
    if not isinstance(names, list) or len(set(map(str, names))) != len(names):
        raise UserError(f"{file}, key names: must list each class name once")
    if count is not None and names and count != len(names):
        raise UserError(f"{file}, key nc: says {count} classes, but names lists {len(names)}; make them agree")
    return tuple(map(str, names))


def _categories(annotations: Path | None) -> dict[int, str]:
    """Read COCO category ids and names, in the order of the ids, from a COCO JSON."""
    content: Any = read_json(annotations) if annotations else None
    try:
        rows = [(int(c["id"]), str(c["name"])) for c in content["categories"]]
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"{annotations}: not a COCO JSON, its categories lack id or name; mend the file") from error
    if not rows:
        raise UserError(f"{annotations}, key categories: is empty; list the classes there")
    for what, values in (("id", [str(i) for i, _ in rows]), ("name", [name for _, name in rows])):
        if twice := [value for value in values if values.count(value) > 1]:
            raise UserError(f"{annotations}, key categories: {what} {twice[0]} is given twice; drop one")
    return dict(sorted(rows))


def read_json(file: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: unreadable or not JSON; the message names the line.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}, line {error.lineno}: not valid JSON ({error.msg}); mend the file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not a text file; give a JSON") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); give a JSON file") from error
