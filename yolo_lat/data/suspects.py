"""Boxes and label files that training accepts and that are probably mistakes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from yolo_lat.data.findings import Finding
from yolo_lat.data.images import IMAGE_SUFFIXES
from yolo_lat.data.labels import DetectionSplit
from yolo_lat.data.spec import DatasetSpec
from yolo_lat.data.voc_xml import xml_file
from yolo_lat.data.yolo_txt import label_file

OUTSIDE = 0.5  # pixels; tools round corners to the nearest pixel
TINY = 2.0  # pixels of the shorter side
_SAME = 1  # decimals of a pixel that make two boxes one
LABEL_FILES: dict[str, Callable[[Path], Path]] = {"yolo": label_file, "voc": xml_file}


def suspect_boxes(data: DetectionSplit, spec: DatasetSpec, split: str) -> Iterator[Finding]:
    """Yield one finding for each image and kind of suspicious box."""
    images = data.images
    if not any(len(image.boxes_xywh) for image in images):
        return
    owner = np.repeat(np.arange(len(images)), [len(image.boxes_xywh) for image in images])
    corners = np.concatenate([image.boxes_xyxy for image in images])
    classes = np.concatenate([image.class_ids for image in images])
    size = np.array([(image.width, image.height) for image in images], dtype=float)[owner]
    beyond = np.maximum(-corners[:, :2], corners[:, 2:] - size).max(1)
    sides = (np.minimum(corners[:, 2:], size) - np.maximum(corners[:, :2], 0)).min(1)

    def of(number: int, what: str, remedy: str) -> str:
        image = images[number]
        file = LABEL_FILES[spec.format](image.path) if spec.format in LABEL_FILES else spec.splits[split].annotations
        return f"{image.path}: {what}; {remedy} in {file}"

    def finding(kind: str, number: int, what: str, remedy: str = "correct them") -> Finding:
        return Finding(kind, images[number].path, of(number, what, remedy), images[number].path)

    for number, rows in _by_owner(owner, beyond > OUTSIDE):
        part = f"{len(rows)} of {len(images[number].class_ids)}"
        yield finding("outside", number, f"boxes outside the image: {part}, by up to {beyond[rows].max():.1f} px")
    for number, rows in _by_owner(owner, sides <= 0):
        yield finding("no area", number, f"{_boxes(rows)} without area inside the image, which training leaves out")
    for number, rows in _by_owner(owner, (sides > 0) & (sides < TINY)):
        what = f"{_boxes(rows)} with a side under {TINY:g} px, the smallest {sides[rows].min():.2f} px"
        yield finding("tiny", number, what, "check them")
    place = np.column_stack([owner, corners.round(_SAME)])
    labelled = np.column_stack([place, classes])
    _, first, box = np.unique(place, axis=0, return_index=True, return_inverse=True)
    _, kept = np.unique(labelled, axis=0, return_index=True)
    again = np.ones(len(owner), dtype=bool)
    again[kept] = False
    for number, rows in _by_owner(owner, again):
        yield finding("repeated", number, f"{_boxes(rows)} given again with the same class", "drop what repeats")
    contested = np.zeros(len(owner), dtype=bool)
    contested[first[np.bincount(box.ravel()[kept]) > 1]] = True
    for number, rows in _by_owner(owner, contested):
        yield finding("contested", number, f"{_boxes(rows)} with several classes", "keep one class")
    if spec.format == "voc" and spec.voc_first_pixel == 1 and (count := int((corners[:, :2] == -1).any(1).sum())):
        yield Finding(
            "corners",
            spec.file,
            f"{spec.file}: {count} boxes of split {split} have xmin or ymin 0, but VOC counts pixels from 1; if these "
            "annotations count from 0, add voc_first_pixel: 0",
        )


def suspect_files(data: DetectionSplit, spec: DatasetSpec, split: str) -> Iterator[Finding]:
    """Yield findings about label files: lacking ones, those of two images, and those of none."""
    if spec.format not in LABEL_FILES:
        return
    images_of: dict[Path, list[Path]] = defaultdict(list)
    for image in data.images:
        images_of[LABEL_FILES[spec.format](image.path)].append(image.path)
    present = {file for folder in {file.parent for file in images_of} for file in _listed(folder)}
    for file, images in images_of.items():
        for other in images[1:]:
            message = f"{other}: shares {file} with {images[0].name}; rename one of the images and give it its own"
            yield Finding("shared", other, message, other)
        if file not in present and spec.format == "yolo":
            for path in images:
                message = f"{path}: no {file}, counts as an image without objects; add the file, empty if that is true"
                yield Finding("unlabelled", path, message, path)
    part = spec.splits[split]
    if part.subset is None and all(source.is_dir() for source in part.images):
        suffix = {"yolo": ".txt", "voc": ".xml"}[spec.format]
        stems = {file.with_suffix("") for file in images_of} | {
            LABEL_FILES[spec.format](path).with_suffix("")
            for source in part.images
            for path in source.rglob("*")
            if path.suffix.lower() in IMAGE_SUFFIXES
        }
        folders = {image.path.parent for image in data.images}  # may hold other text files too
        for file in sorted(file for file in present if file.name != "classes.txt"):
            if file.suffix == suffix and file.with_suffix("") not in stems and file.parent not in folders:
                message = f"{file}: no image of split {split} belongs to it; add the image or correct one of the names"
                yield Finding("orphan", file, message)


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # no such folder, or not readable: the reader has said so
        return []


def _boxes(rows: np.ndarray) -> str:
    return "1 box" if len(rows) == 1 else f"{len(rows)} boxes"


def _by_owner(owner: np.ndarray, chosen: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each image's number and the chosen rows that are its; rows of an image lie together."""
    rows = np.flatnonzero(chosen)
    for part in np.split(rows, np.flatnonzero(np.diff(owner[rows])) + 1):
        if len(part):
            yield int(owner[part[0]]), part
