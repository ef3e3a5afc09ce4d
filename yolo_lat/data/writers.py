"""Write a split as COCO JSON, YOLO label files or Pascal VOC XML, so exactly that it reads back as the same boxes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from yolo_lat.data.labels import ImageLabels
from yolo_lat.data.voc_xml import xml_file
from yolo_lat.data.yolo_txt import label_file
from yolo_lat.errors import UserError

_ROUNDING = 1e-9  # what a quotient may exceed 1 by when a box is as wide as its image
_NOT_IN_XML = re.compile("[\x00-\x1f\ud800-\udfff\ufffe\uffff]")  # line breaks are legal, but altered


@dataclass(frozen=True)
class PlacedImage:
    """An image with its boxes, and where it goes.

    Attributes:
        labels: the image as it was read.
        place: its path below `images/SPLIT`.
        entry: what a COCO JSON says of it besides id, name and size, such as its licence.
    """

    labels: ImageLabels
    place: PurePath
    entry: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class NewSplit:
    """A split to write.

    Attributes:
        name: train, val or test.
        classes: class names.
        images: in the order of the new file.
        categories: a COCO category, `{id, name, ...}`, of each class.
        header: other keys of a COCO JSON, such as info and licenses.
    """

    name: str
    classes: tuple[str, ...]
    images: Sequence[PlacedImage] = field(repr=False)
    categories: Sequence[Mapping[str, Any]] = field(repr=False)
    header: Mapping[str, Any] = field(default_factory=dict, repr=False)


def write_coco(folder: Path, split: NewSplit) -> None:
    """Write `annotations/SPLIT.json`: boxes and areas in pixels, crowds, image and category ids as given."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image in split.images:
        labels = image.labels
        size = {"width": labels.width, "height": labels.height}
        images.append({**image.entry, "id": labels.image_id, "file_name": image.place.as_posix(), **size})
        rows = zip(labels.class_ids, labels.boxes_xywh, labels.areas, labels.crowd, strict=True)
        annotations += [
            {
                "id": number,
                "image_id": labels.image_id,
                "category_id": split.categories[class_id]["id"],
                "bbox": box.tolist(),
                "area": float(area),
                "iscrowd": int(crowd),
            }
            for number, (class_id, box, area, crowd) in enumerate(rows, start=len(annotations) + 1)
        ]
    file = folder / f"annotations/{split.name}.json"
    file.parent.mkdir(exist_ok=True)
    categories = [dict(category) for category in split.categories]
    content = {**split.header, "images": images, "annotations": annotations, "categories": categories}
    file.write_text(json.dumps(content), encoding="utf-8")


def write_yolo(folder: Path, split: NewSplit) -> None:
    """Write a label file for each image, also for one without objects; crowds are written as ordinary boxes.

    Raises:
        UserError: a box that reaches out of its image too far for numbers from 0 to 1.
    """
    for image in split.images:
        file = label_file(_image_path(folder, split, image))
        file.parent.mkdir(parents=True, exist_ok=True)
        if not fits_yolo(image.labels).all():
            raise UserError(f"{image.labels.path}: a box reaches too far out of the image for YOLO labels; clip it")
        rows = zip(image.labels.class_ids.tolist(), yolo_rows(image.labels).clip(0, 1).tolist(), strict=True)
        lines = [" ".join(map(_number, (class_id, *row))) + "\n" for class_id, row in rows]
        file.write_text("".join(lines), encoding="utf-8")


def yolo_rows(labels: ImageLabels) -> np.ndarray:
    """Return centres and sizes relative to the image, (n, 4) float64: 0 to 1 where a label file can hold them."""
    centres = labels.boxes_xywh[:, :2] + labels.boxes_xywh[:, 2:] / 2
    return np.concatenate([centres, labels.boxes_xywh[:, 2:]], axis=1) / ([labels.width, labels.height] * 2)


def fits_yolo(labels: ImageLabels) -> np.ndarray:
    """Return which boxes a label file can hold, (n,) bool: centre in the image, and no larger than it."""
    rows = yolo_rows(labels)
    return np.all((rows >= -_ROUNDING) & (rows <= 1 + _ROUNDING), axis=1)


def write_voc(folder: Path, split: NewSplit) -> None:
    """Write an XML for each image: corners in pixels counted from 1 (VOC devkit), crowds as `difficult`.

    Raises:
        UserError: a name that XML or the readers of VOC cannot hold.
    """
    for name in split.classes:
        if name != name.strip() or not name:
            raise UserError(f"class '{name}': VOC cannot hold names that begin or end with a blank; rename it")
        _check_text(f"class {name!r}", name)
    for image in split.images:
        file = xml_file(_image_path(folder, split, image))
        file.parent.mkdir(parents=True, exist_ok=True)
        tree = ElementTree.ElementTree(_voc_root(image, split.classes))
        ElementTree.indent(tree)
        tree.write(file, encoding="utf-8")


def _voc_root(image: PlacedImage, classes: tuple[str, ...]) -> ElementTree.Element:
    labels = image.labels
    _check_text(f"{labels.path!r}", str(image.place))
    root = ElementTree.Element("annotation")
    _add(root, folder=image.place.parent.name, filename=image.place.name)
    with Image.open(labels.path) as picture:
        depth = len(picture.getbands())
    _add(ElementTree.SubElement(root, "size"), width=labels.width, height=labels.height, depth=depth)
    _add(root, segmented=0)
    rows = zip(labels.class_ids, labels.boxes_xywh.tolist(), labels.crowd, strict=True)
    for class_id, (x, y, width, height), crowd in rows:
        node = ElementTree.SubElement(root, "object")
        # Neither is known; many readers insist on both, and these are the values that annotation tools write.
        _add(node, name=classes[class_id], pose="Unspecified", truncated=0, difficult=int(crowd))
        (xmin, xmax), (ymin, ymax) = _voc_side(x, width), _voc_side(y, height)
        _add(ElementTree.SubElement(node, "bndbox"), xmin=xmin, ymin=ymin, xmax=xmax, ymax=ymax)
    return root


def _voc_side(start: float, length: float) -> tuple[str, str]:
    """Return the first and the last pixel, counted from 1, of a side in coordinates counted from 0."""
    first, last = start + 1, start + length
    while last - first + 1 < 0:  # by rounding alone, and readers refuse a negative length
        last = math.nextafter(last, math.inf)
    return _number(first), _number(last)


def _image_path(folder: Path, split: NewSplit, image: PlacedImage) -> Path:
    return folder / "images" / split.name / image.place


def _add(node: ElementTree.Element, **texts: object) -> None:
    for tag, text in texts.items():
        ElementTree.SubElement(node, tag).text = str(text)


def _check_text(what: str, text: str) -> None:
    if _NOT_IN_XML.search(text):
        raise UserError(f"{what}: VOC's XML cannot hold a character of this name; rename it or choose another format")


def _number(value: float) -> str:
    """Return the shortest text that reads back as the same number, without a point where none is needed."""
    return str(int(value)) if float(value).is_integer() else repr(value)


WRITERS: dict[str, Callable[[Path, NewSplit], None]] = {"coco": write_coco, "yolo": write_yolo, "voc": write_voc}
