"""COCO JSON, read directly: boxes in pixels, crowds, areas, and classes matched by name."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo_lat.data.class_names import categories, is_id
from yolo_lat.data.faults import Fault, Report, shown
from yolo_lat.data.files import read_json
from yolo_lat.data.labels import MAX_PIXELS, ImageLabels, image_labels
from yolo_lat.errors import UserError, nearest

if TYPE_CHECKING:
    from yolo_lat.data.spec import DatasetSpec

Size = tuple[int, int]
Measure = Callable[[list[Path]], Sequence[Size | None]]


@dataclass(frozen=True)
class CocoFile:
    """A COCO JSON, read into images.

    Attributes:
        images: in the order of their file names.
        category_ids: the file's id of each class of the data set.
        labelled: whether the file has annotations at all.
    """

    images: list[ImageLabels]
    category_ids: tuple[int, ...]
    labelled: bool


def read_coco(
    file: Path,
    folder: Path,
    spec: DatasetSpec,
    measure: Measure,
    choose: Callable[[list[Path]], list[Path]],
    report: Report,
) -> CocoFile:
    """Read a COCO JSON.

    Args:
        file: the JSON.
        folder: what its file names are relative to.
        spec: the data set, for the names of its classes.
        measure: returns the size of each image, None where it cannot be read.
        choose: returns those of the images that take part.
        report: told of every fault.

    Raises:
        UserError: not a COCO JSON at all.
    """
    content = read_json(file)
    if not isinstance(content, dict) or not {"images", "categories"} <= content.keys():
        raise UserError(f"{file}: not a COCO JSON; it needs the keys images, annotations and categories")
    labelled = "annotations" in content
    annotations = content.get("annotations", [])
    if not isinstance(content["images"], list) or not isinstance(annotations, list):
        raise UserError(f"{file}: images and annotations must be lists; mend the file")
    names = categories(content, file)
    numbers = {name: class_id for class_id, name in enumerate(spec.names)}
    class_of = {category: numbers[name] for category, name in names.items() if name in numbers}
    if not content["images"]:
        raise UserError(f"{file}, key images: is empty; list the images there")
    entries = _images(content["images"], folder, file, report)
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    known = {entry["id"]: path for path, entry in entries.items()}
    for number, row in enumerate(annotations):
        if fault := _annotation_fault(row, number, file, names, class_of, spec, known):
            report(fault)
        else:
            by_image[row["image_id"]].append(row)
    paths = choose(sorted(entries))
    images = []
    for path, size in zip(paths, measure(paths), strict=True):
        entry = entries[path]
        if size is None:
            continue
        given = entry.get("width", size[0]), entry.get("height", size[1])
        if size != given:
            wrong = f"is given as {shown(given[0])}x{shown(given[1])} pixels but has {size[0]}x{size[1]}"
            message = f"{file}: image {entry['file_name']} {wrong}; correct the entry or replace the image"
            report(Fault("size", file, message, path))
        rows = by_image.get(entry["id"], [])
        images.append(
            image_labels(
                path,
                entry["id"],
                size,
                [class_of[row["category_id"]] for row in rows],
                [row["bbox"] for row in rows],
                [bool(row.get("iscrowd", 0)) for row in rows],
                [row.get("area", row["bbox"][2] * row["bbox"][3]) for row in rows],
            )
        )
    return CocoFile(images, _category_ids(spec.names, names), labelled)


def _category_ids(names: tuple[str, ...], categories: dict[int, str]) -> tuple[int, ...]:
    """Return the id of each class; a class that the file does not know gets an id that it does not use."""
    ids = {name: category for category, name in categories.items()}
    spare = max(categories) + 1
    return tuple(ids.get(name, spare + class_id) for class_id, name in enumerate(names))


def _images(rows: list[Any], folder: Path, file: Path, report: Report) -> dict[Path, dict[str, Any]]:
    """Return the entries that are right, by the path of their image."""
    ids: set[int] = set()
    entries: dict[Path, dict[str, Any]] = {}
    for number, row in enumerate(rows):
        problem, path = None, None
        if not isinstance(row, dict):
            problem = f"{shown(row)} is not an object with id and file_name; mend or drop it"
        elif not is_id(row.get("id")):
            problem = f"id is {shown(row.get('id'))}, not a whole number; mend it"
        elif not _is_file_name(row.get("file_name")):
            problem = f"file_name is {shown(row.get('file_name'))}, not the name of a file; mend it"
        elif row["id"] in ids:
            problem = f"id {row['id']} is given twice; drop one"
        else:
            path = folder / row["file_name"]
            if ".." in path.parts[len(folder.parts) :] or not path.is_relative_to(folder):
                problem = f"file_name '{row['file_name']}' leads out of {folder}; images must lie inside"
            elif path in entries:
                problem = f"file_name {row['file_name']} is given twice; drop one"
        if problem or path is None:
            report(Fault("labels", file, f"{file}, entry {number} of images: {problem}"))
        else:
            ids.add(row["id"])
            entries[path] = row
    return entries


def _annotation_fault(
    row: Any,
    number: int,
    file: Path,
    names: dict[int, str],
    class_of: dict[int, int],
    spec: DatasetSpec,
    images: dict[int, Path],
) -> Fault | None:
    where = f"{file}, entry {number} of annotations"
    if not isinstance(row, dict):
        return Fault("labels", file, f"{where}: {shown(row)} is not an object; mend or drop it")
    if "id" in row:
        where = f"{file}, annotation id {shown(row['id'])}"
    box, category, image = (row.get(key) for key in ("bbox", "category_id", "image_id"))
    kind, problem = "labels", ""
    if not is_id(image):
        problem = f"image_id is {shown(image)}, not a whole number; mend or drop it"
    elif image not in images:
        problem = f"image_id {image} is not among the images; add or drop it"
    elif not is_id(category) or category not in names:
        kind, problem = "class", f"category_id {shown(category)} is not among the categories; add or drop it"
    elif category not in class_of:
        hint = nearest(names[category], spec.names) or "; add or drop it"
        kind, problem = "class", f"category {shown(names[category])} is not among the names of {spec.file}{hint}"
    elif not isinstance(box, list) or len(box) != 4 or not all(map(_is_pixels, box)) or min(box[2:]) < 0:
        problem = f"bbox {shown(box)} is not [x, y, width, height] in pixels; mend or drop it"
    elif not _is_number(row.get("area", 0)) or not 0 <= row.get("area", 0) < MAX_PIXELS**2:
        problem = f"area {shown(row['area'])} is not a number of square pixels; mend or drop it"
    elif row.get("iscrowd", 0) not in (0, 1):
        problem = f"iscrowd {shown(row['iscrowd'])} is neither 0 nor 1; mend it"
    about = images.get(row["image_id"]) if is_id(image) else None
    return Fault(kind, file, f"{where}: {problem}", about) if problem else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_pixels(value: Any) -> bool:
    return _is_number(value) and abs(value) < MAX_PIXELS


def _is_file_name(value: Any) -> bool:
    if not isinstance(value, str) or len(value.splitlines()) != 1 or "\0" in value:
        return False
    try:
        os.fsencode(value)
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True
