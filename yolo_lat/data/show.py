"""A contact sheet of a data set: some of its images with their boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from ultralytics.utils.patches import imread

from yolo_lat.data.convert import places_below
from yolo_lat.data.faults import Fault, refuse
from yolo_lat.data.labels import ImageLabels
from yolo_lat.data.reader import read_split
from yolo_lat.data.registry import load_dataset
from yolo_lat.data.spec import DatasetSpec, Subset
from yolo_lat.drawing import class_colour, contact_sheet, draw_boxes, fit, picture_path, save_picture
from yolo_lat.errors import UserError, nearest

_CROWD_COLOUR = (200, 200, 200)  # BGR; no class is grey


@dataclass(frozen=True)
class _Sample(Subset):
    """At most `count` of the images that `within`, if any, leaves."""

    within: Subset | None = None

    def choose(self, paths: list[Path]) -> list[Path]:
        paths = paths if self.within is None else self.within.choose(paths)
        return Subset(min(self.count, len(paths)), self.seed).choose(paths)


def show(
    data: str | Path,
    split: str = "train",
    samples: int = 24,
    seed: int = 0,
    file: str | Path = "sheet.jpg",
    classes: Sequence[str] | str | None = None,
    columns: int | None = None,
    side: int = 320,
    progress: bool = True,
) -> Path:
    """Draw images of a data set with their boxes and class names on one sheet; returns the picture.

    Crowds are grey and say so. Which images are drawn depends on their names, the seed and the count alone.

    Args:
        data: registry name or data YAML.
        split: train, val or test.
        samples: number of images; all where there are fewer.
        seed: another seed draws other images.
        file: picture to write; its suffix decides on the format.
        classes: only images that have one of these classes, and only boxes of these.
        columns: images in a row.
        side: pixels of an image's longer side on the sheet.
        progress: show a bar on stderr.

    Raises:
        UserError: an image or annotation with a fault, a class that there is none of, or no picture can be written.
    """
    picture = picture_path(file)
    if samples < 1:
        raise UserError(f"samples={samples}: give 1 or more")
    spec = load_dataset(data)
    spec.split(split)
    wanted = _class_ids(spec, classes)
    if wanted is None:  # then nothing but the chosen images needs to be read
        spec = _sampled(spec, split, samples, seed)
    images = list(read_split(spec, split, progress, partial(_refuse_unless_unlabelled, spec=spec)).images)
    if wanted is not None:
        images = [image for image in images if np.isin(image.class_ids, wanted).any()]
        chosen = set(_Sample(samples, seed).choose([image.path for image in images]))
        images = [image for image in images if image.path in chosen]
    if not images:
        raise UserError(f"{spec.name} {split}: no image has an object of {classes}; choose other classes")
    places = places_below(spec.splits[split].images, [image.path for image in images])
    tiles = [_tile(image, spec, wanted, side) for image in images]
    return save_picture(picture, contact_sheet(tiles, [place.as_posix() for place in places], columns, side))


def _class_ids(spec: DatasetSpec, classes: Sequence[str] | str | None) -> list[int] | None:
    if classes is None:
        return None
    names = classes.split(",") if isinstance(classes, str) else classes
    for name in names:
        if name not in spec.names:
            raise UserError(
                f"classes={name}: is no class of {spec.name}{nearest(name, spec.names) or '; see its names'}"
            )
    return [spec.names.index(name) for name in names]


def _sampled(spec: DatasetSpec, split: str, samples: int, seed: int) -> DatasetSpec:
    part = spec.splits[split]
    return replace(spec, splits={split: replace(part, subset=_Sample(samples, seed, within=part.subset))})


def _refuse_unless_unlabelled(fault: Fault, spec: DatasetSpec) -> None:
    if fault.file != spec.file:  # a few images may well be without labels, though a training split may not
        refuse(fault)


def _tile(image: ImageLabels, spec: DatasetSpec, wanted: list[int] | None, side: int) -> np.ndarray:
    pixels = imread(image.path)  # decoded as for training
    if pixels is None:
        raise UserError(f"{image.path}: cannot be decoded; replace or remove it")
    tile, ratio = fit(pixels, side)
    shown = [i for i, class_id in enumerate(image.class_ids) if wanted is None or class_id in wanted]
    sizes = image.boxes_xywh[:, 2:].prod(axis=1)
    order = sorted(shown, key=lambda i: (not image.crowd[i], -sizes[i]))  # large ones below, crowds lowest
    return draw_boxes(
        tile,
        image.boxes_xyxy[order] * ratio,
        [spec.names[image.class_ids[i]] + (" (crowd)" if image.crowd[i] else "") for i in order],
        [_CROWD_COLOUR if image.crowd[i] else class_colour(int(image.class_ids[i])) for i in order],
    )
