"""Class names: as a data YAML lists them, or as a COCO JSON has them."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

from yolo_lat.data.faults import shown
from yolo_lat.data.files import read_json
from yolo_lat.errors import UserError


def listed_names(where: str, content: dict[str, Any]) -> tuple[str, ...]:
    """Return the class names under the key `names` of a data YAML, empty where there is none.

    Messages begin with `where`.

    Raises:
        UserError: names that do not number the classes from 0 on, or another count than the key `nc` says.
    """
    names, count = content.get("names"), content.get("nc")
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise UserError(f"{where}, key names: class numbers must run from 0 to {len(names) - 1} without a gap")
        names = [names[i] for i in range(len(names))]
    if names is None:
        names = []
    if not isinstance(names, list):
        raise UserError(f"{where}, key names: must list each class name once")
    for name in names:
        if not isinstance(name, str | int | float) or isinstance(name, bool):  # a bare `no` or `on` is a truth value
            raise UserError(f"{where}, key names: {shown(name)} is read as no text; put the name in quotes")
    if len(set(map(str, names))) != len(names):
        raise UserError(f"{where}, key names: must list each class name once")
    if count is not None and names and count != len(names):
        raise UserError(f"{where}, key nc: says {shown(count)} classes, but names lists {len(names)}; make them agree")
    return tuple(map(str, names))


def categories_of(file: Path) -> dict[int, str]:
    """Return the categories of a COCO JSON, as `categories` does."""
    stat = file.stat()
    return _categories_cached(str(file), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=16)
def _categories_cached(file: str, _mtime: int, _size: int) -> dict[int, str]:
    """Read the categories of a COCO JSON once as long as it does not change: the file may have half a gigabyte."""
    return categories(read_json(Path(file)), Path(file))


def categories(content: Any, file: Path) -> dict[int, str]:
    """Return the names of a COCO JSON's categories by id, in the order of the ids.

    Raises:
        UserError: malformed, empty or ambiguous categories.
    """
    try:
        rows = [(row["id"], row["name"]) for row in content["categories"]]
    except (TypeError, KeyError) as error:
        raise UserError(f"{file}: not a COCO JSON, its categories lack id or name; mend the file") from error
    if not rows:
        raise UserError(f"{file}, key categories: is empty; list the classes there")
    for number, name in rows:
        if not is_id(number) or not isinstance(name, str):
            where = f"{file}, key categories: id {shown(number)}, name {shown(name)}"
            raise UserError(f"{where} are not a whole number and a text; mend them")
    for what, values in (("id", [number for number, _ in rows]), ("name", [name for _, name in rows])):
        value, count = Counter(values).most_common(1)[0]
        if count > 1:
            raise UserError(f"{file}, key categories: {what} {shown(value)} is given twice; drop one")
    return dict(sorted(rows))


def is_id(value: Any) -> bool:
    """Return whether a value of a COCO JSON can be the id of something."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**62
