"""Read the annotations of a split, COCO JSON or YOLO label files, into one typed form."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from yolo_lat.data.images import image_size, list_images
from yolo_lat.data.spec import DatasetSpec, read_json
from yolo_lat.errors import UserError


@dataclass(frozen=True)
class ImageLabels:
    """An image and the boxes in it.

    Attributes:
        path: image file.
        image_id: COCO image id.
        width, height: pixels, EXIF rotation applied.
        class_ids: (n,) int64.
        boxes_xywh: (n, 4) float64 pixels, top-left corner and size, as annotated.
        areas: (n,) float64 square pixels; decides COCO's small, medium and large.
        crowd: (n,) bool; crowds are evaluated as COCO does and not trained on.
    """

    path: Path
    image_id: int
    width: int
    height: int
    class_ids: np.ndarray
    boxes_xywh: np.ndarray = field(repr=False)
    areas: np.ndarray = field(repr=False)
    crowd: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class DetectionSplit:
    """A split, read and checked.

    Attributes:
        name: data set and split, for messages.
        names: class names.
        category_ids: COCO category id of each class.
        images: in the order of their paths.
    """

    name: str
    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    images: Sequence[ImageLabels] = field(repr=False)

    def ground_truth(self) -> dict[str, Any]:
        """Return the split as the content of a COCO JSON, which pycocotools evaluates against."""
        annotations: list[dict[str, Any]] = []
        for image in self.images:
            rows = zip(image.class_ids, image.boxes_xywh, image.areas, image.crowd, strict=True)
            for class_id, box, area, crowd in rows:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image.image_id,
                        "category_id": self.category_ids[class_id],
                        "bbox": box.tolist(),
                        "area": float(area),
                        "iscrowd": int(crowd),
                    }
                )
        return {
            "info": {"description": self.name},
            "images": [
                {"id": i.image_id, "file_name": i.path.name, "width": i.width, "height": i.height} for i in self.images
            ],
            "annotations": annotations,
            "categories": [{"id": i, "name": n} for i, n in zip(self.category_ids, self.names, strict=True)],
        }


def read_split(spec: DatasetSpec, split: str, progress: bool = True) -> DetectionSplit:
    """Read and check every image and annotation of a split.

    Args:
        spec: the data set.
        split: train, val or test.
        progress: show a bar on stderr.

    Raises:
        UserError: a broken image or annotation; the message names file and line or annotation.
    """
    part = spec.split(split)
    name = f"{spec.name} {split}"
    if part.annotations is None:
        paths = list_images(part.images)
        sizes = _sizes(paths, name, progress)
        images = [_read_yolo(path, i + 1, size, spec) for i, (path, size) in enumerate(zip(paths, sizes, strict=True))]
        if split == "train" and not any(len(image.class_ids) for image in images):
            wanted = label_file(images[0].path)
            raise UserError(f"{spec.file}: no image of split train has a label; labels are looked for as {wanted}")
    else:
        images = _read_coco(part.images, part.annotations, spec, name, progress)
    return DetectionSplit(name, spec.names, spec.category_ids, images)


def _sizes(paths: list[Path], name: str, progress: bool) -> list[tuple[int, int]]:
    console = Console(stderr=True)
    with ThreadPoolExecutor() as pool:
        sizes = pool.map(image_size, paths)
        hidden = not (progress and sys.stderr.isatty())
        return list(track(sizes, f"Reading {name}", len(paths), console=console, disable=hidden, transient=True))


def label_file(image: Path) -> Path:
    """Return where the YOLO labels of an image lie: the last folder `images` becomes `labels`, the suffix .txt."""
    parts = list(image.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _read_yolo(path: Path, image_id: int, size: tuple[int, int], spec: DatasetSpec) -> ImageLabels:
    """Read `class cx cy w h` rows, or polygons `class x1 y1 x2 y2 ...`, all relative to the image size."""
    file = label_file(path)
    class_ids, boxes = [], []
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines() if file.is_file() else []
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not a text file; labels are rows of numbers, write it anew") from error
    for number, line in enumerate(lines, start=1):
        values = line.split()
        if not values:
            continue
        where = f"{file}, line {number}"
        try:
            row = [float(v) for v in values]
        except ValueError as error:
            raise UserError(f"{where}: '{line.strip()}' is not a row of numbers; mend it") from error
        if len(row) != 5 and (len(row) < 7 or len(row) % 2 == 0):
            raise UserError(f"{where}: has {len(row)} numbers; a row is class, centre x, centre y, width, height")
        if row[0] not in range(len(spec.names)):
            raise UserError(
                f"{where}: class {values[0]} is not a number from 0 to {len(spec.names) - 1} of names in {spec.file}"
            )
        if not all(-0.01 <= v <= 1.01 for v in row[1:]):
            raise UserError(f"{where}: coordinates must lie between 0 and 1, relative to the image size; convert them")
        if len(row) == 5 and min(row[3:]) < 0:
            raise UserError(f"{where}: width {values[3]} and height {values[4]} must not be negative; mend the row")
        class_ids.append(int(row[0]))
        boxes.append(_polygon_box(row[1:]) if len(row) > 5 else row[1:])
    relative = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    corner = relative[:, :2] - relative[:, 2:] / 2
    xywh = np.concatenate([corner, relative[:, 2:]], axis=1) * [*size, *size]
    areas = xywh[:, 2] * xywh[:, 3]
    return ImageLabels(
        path, image_id, *size, np.array(class_ids, dtype=np.int64), xywh, areas, np.zeros(len(xywh), dtype=bool)
    )


def _polygon_box(points: list[float]) -> list[float]:
    x, y = points[0::2], points[1::2]
    return [(min(x) + max(x)) / 2, (min(y) + max(y)) / 2, max(x) - min(x), max(y) - min(y)]


def _read_coco(
    folders: tuple[Path, ...], file: Path, spec: DatasetSpec, name: str, progress: bool
) -> list[ImageLabels]:
    content = read_json(file)
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= content.keys():
        raise UserError(f"{file}: not a COCO JSON; it needs the keys images, annotations and categories")
    if len(folders) != 1 or not folders[0].is_dir():
        raise UserError(f"{spec.file}: a split with coco_json needs one folder of images, not {len(folders)} paths")
    class_of = {category: i for i, category in enumerate(spec.category_ids)}
    try:
        by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for annotation in content["annotations"]:
            _check_annotation(annotation, file, class_of)
            by_image[annotation["image_id"]].append(annotation)
        _check_images(content["images"], file)
    except TypeError as error:
        raise UserError(f"{file}: images and annotations must be lists; mend the file") from error
    entries = sorted(content["images"], key=lambda entry: entry["file_name"])
    paths = [_inside(folders[0], entry["file_name"], file) for entry in entries]
    for strange in sorted(by_image.keys() - {entry["id"] for entry in entries})[:1]:
        raise UserError(
            f"{file}, annotation id {by_image[strange][0].get('id')}: image_id {strange} is not among the images; "
            "add or drop it"
        )
    if not entries:
        raise UserError(f"{file}, key images: is empty; list the images there")
    images = []
    for entry, path, size in zip(entries, paths, _sizes(paths, name, progress), strict=True):
        if size != (entry.get("width", size[0]), entry.get("height", size[1])):
            raise UserError(
                f"{file}: image {entry['file_name']} is given as {entry.get('width')}x{entry.get('height')} pixels but "
                f"has {size[0]}x{size[1]}; correct the entry or replace the image"
            )
        rows = by_image.get(entry["id"], [])
        images.append(
            ImageLabels(
                path,
                entry["id"],
                *size,
                np.array([class_of[a["category_id"]] for a in rows], dtype=np.int64),
                np.array([a["bbox"] for a in rows], dtype=np.float64).reshape(-1, 4),
                np.array([a.get("area", a["bbox"][2] * a["bbox"][3]) for a in rows], dtype=np.float64),
                np.array([bool(a.get("iscrowd", 0)) for a in rows], dtype=bool),
            )
        )
    return images


def _check_images(entries: list[Any], file: Path) -> None:
    seen: set[int | str] = set()
    for number, entry in enumerate(entries):
        where = f"{file}, entry {number} of images"
        if not isinstance(entry, dict):
            raise UserError(f"{where}: {entry!r} is not an object with id and file_name; mend or drop it")
        for key, kind in (("id", int), ("file_name", str)):
            value = entry.get(key)
            if not isinstance(value, kind):
                raise UserError(f"{where}: {key} is {value!r}, not a {'number' if kind is int else 'text'}; mend it")
            if value in seen:
                raise UserError(f"{where}: {key} {value} is given twice; drop one")
            seen.add(value)


def _check_annotation(annotation: Any, file: Path, class_of: dict[int, int]) -> None:
    if not isinstance(annotation, dict):
        raise UserError(f"{file}: annotation {annotation!r} is not an object; mend or drop it")
    where = f"{file}, annotation id {annotation.get('id')}"
    box, category, image = (annotation.get(key) for key in ("bbox", "category_id", "image_id"))
    if not isinstance(image, int):
        raise UserError(f"{where}: image_id is {image!r}, not a number; mend or drop it")
    if not isinstance(category, int) or category not in class_of:
        raise UserError(f"{where}: category_id {category} is not among the categories; add or drop it")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)) or min(box[2:]) < 0:
        raise UserError(f"{where}: bbox {box} is not [x, y, width, height] in pixels; mend or drop it")
    if not _is_number(annotation.get("area", 0)):
        raise UserError(f"{where}: area {annotation['area']!r} is not a number; mend or drop it")
    if annotation.get("iscrowd", 0) not in (0, 1):
        raise UserError(f"{where}: iscrowd {annotation['iscrowd']!r} is neither 0 nor 1; mend it")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))


def _inside(folder: Path, name: str, file: Path) -> Path:
    path = folder / name
    if ".." in Path(name).parts or not path.is_relative_to(folder):
        raise UserError(f"{file}: file_name '{name}' leads out of {folder}; images must lie inside")
    return path
