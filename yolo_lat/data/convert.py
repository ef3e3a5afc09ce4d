"""Write a data set in another format: its boxes, classes and crowds, with the images beside them."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import yaml

from yolo_lat.data.files import read_json
from yolo_lat.data.labels import DetectionSplit, ImageLabels
from yolo_lat.data.new_folder import check_new, new_folder
from yolo_lat.data.reader import read_split
from yolo_lat.data.registry import load_dataset
from yolo_lat.data.spec import DatasetSpec
from yolo_lat.data.voc_xml import xml_file
from yolo_lat.data.writers import WRITERS, NewSplit, PlacedImage, fits_yolo
from yolo_lat.data.yolo_txt import label_file
from yolo_lat.errors import UserError, nearest
from yolo_lat.progress import show_progress

Note = Callable[[str], None]
_VISIBLE = 1e-6  # px; a box that reaches less far out of its image does so by rounding
_MORE_THAN_BOXES = {
    "coco": re.compile(rb'"(?:segmentation|keypoints)"\s*:\s*[\[{]\s*[^\s\]}]'),
    "yolo": re.compile(rb"^[^\S\n]*(?:\S+[^\S\n]+){5,}\S", re.MULTILINE),
    "voc": re.compile(rb"<part>|<(?:truncated|occluded)>\s*1"),
}


def to_stderr(note: str) -> None:
    """Print a note for the user."""
    print(f"note: {note}", file=sys.stderr)


def convert(
    data: str | Path,
    directory: str | Path,
    format: str,
    images: str = "copy",
    crowd: str | None = None,
    outside: str | None = None,
    progress: bool = True,
    note: Note = to_stderr,
) -> Path:
    """Write every split of a data set in another format; returns the new data YAML, `directory/data.yaml`.

    Boxes keep their coordinates to rounding of float64. From COCO to COCO the ids of images and categories stay, and
    what the JSON says of each image. Polygons and key points are not converted. A split test whose files are missing or
    whose annotations are kept back is left out. What is lost or left out, `note` says.

    Args:
        data: registry name, with the size of a part if wanted, or data YAML.
        directory: a new or empty folder; it appears when all is written.
        format: `coco`, `yolo` or `voc`.
        images: `copy` the files unchanged, or `link` to them.
        crowd: `drop` leaves crowds out, `keep` makes them ordinary boxes; None writes them as crowds.
        outside: `clip` cuts boxes at the edge of their image and leaves out those that lie outside of it.
        progress: show bars on stderr.
        note: told what a user should know about the result, a sentence each time.

    Raises:
        UserError: a data set with faults, boxes that the format cannot say, images that would share a label file, or a
            folder that is not new; nothing is written then.
    """
    check_options(format, images, crowd, outside)
    spec = load_dataset(data)
    target = new_target(spec, directory)
    splits = []
    for split in read_labelled(spec, progress, note).items():
        places = places_below(spec.splits[split[0]].images, [image.path for image in split[1].images])
        splits.append(as_new_split(spec, *split, places))
    return write_dataset(spec, target, splits, format, images, crowd, outside, progress, note)


def check_options(format: str, images: str, crowd: str | None, outside: str | None) -> None:
    """Raise UserError for an option of `convert` that has another value than those that it can have."""
    options: dict[str, tuple[str | None, tuple[str | None, ...]]] = {
        "format": (format, tuple(WRITERS)),
        "images": (images, ("copy", "link")),
        "crowd": (crowd, (None, "drop", "keep")),
        "outside": (outside, (None, "clip")),
    }
    for name, (value, choices) in options.items():
        if value not in choices:
            words = [choice for choice in choices if choice is not None]
            hint = nearest(str(value), words) or f"; use {' or '.join(words)}"
            raise UserError(f"{name}={value}: is none of the values that {name} can have{hint}")


def new_target(spec: DatasetSpec, directory: str | Path) -> Path:
    """Return the folder to make, after a check that it is new and does not lie among the images of the data set."""
    target = Path(directory).expanduser().absolute()
    check_new(target)
    for source in (source for part in spec.splits.values() for source in part.images if source.is_dir()):
        if target.resolve().is_relative_to(source):
            raise UserError(f"{target}: lies among the images of {spec.name}, in {source}; choose another folder")
    return target


def read_labelled(spec: DatasetSpec, progress: bool, note: Note) -> dict[str, DetectionSplit]:
    """Read all splits; a split test without its files or its annotations is left out.

    Raises:
        UserError: train or val has none, or faults.
    """
    splits = {}
    for split, part in spec.splits.items():
        if split == "test" and spec.missing(split):
            note(f"{spec.name} test: left out, as there is no {spec.missing(split)[0]}")
            continue
        found = read_split(spec, split, progress)
        if not found.labelled and split != "test":
            raise UserError(f"{part.annotations}: has no key annotations; give a file with annotations")
        if not found.labelled:
            note(f"{spec.name} test: left out, as its annotations are kept back")
            continue
        splits[split] = found
        files = [part.annotations] if part.annotations else [_annotation(spec.format, i.path) for i in found.images]
        if any(_MORE_THAN_BOXES[spec.format].search(file.read_bytes()) for file in files if file.exists()):
            what = "parts and marks such as truncated" if spec.format == "voc" else "polygons or key points"
            note(f"{found.name}: has {what}, which are left out; boxes, classes and crowds are converted")
    return splits


def places_below(sources: Sequence[Path], paths: Sequence[Path]) -> list[PurePath]:
    """Return paths relative to the folder that they come from, or to the common parent of several sources."""
    if len(sources) == 1 and sources[0].is_dir():
        root = str(sources[0])
    else:
        root = os.path.commonpath([os.path.abspath(path.parent) for path in paths])  # noqa: PTH100 - keeps links
    return [PurePath(os.path.relpath(path, root)) for path in paths]


def as_new_split(spec: DatasetSpec, name: str, split: DetectionSplit, places: Sequence[PurePath]) -> NewSplit:
    """Return a split as it was read, with what a COCO JSON says besides boxes."""
    annotations = spec.splits[name].annotations
    content = read_json(annotations) if annotations else {"images": [], "categories": []}
    rows, categories = ({row["id"]: row for row in content[key]} for key in ("images", "categories"))
    return NewSplit(
        name,
        spec.names,
        [PlacedImage(i, place, rows.get(i.image_id, {})) for i, place in zip(split.images, places, strict=True)],
        [categories.get(i, {}) | {"id": i, "name": n} for i, n in zip(split.category_ids, spec.names, strict=True)],
        {key: content[key] for key in ("info", "licenses") if key in content},
    )


def write_dataset(
    spec: DatasetSpec,
    target: Path,
    splits: Sequence[NewSplit],
    format: str,
    images: str,
    crowd: str | None,
    outside: str | None,
    progress: bool,
    note: Note,
) -> Path:
    """Check that `format` can say all of the splits and write them; arguments and errors as those of `convert`."""
    splits = [_prepared(spec, split, format, crowd, outside, note) for split in splits]
    with new_folder(target) as folder:
        total = sum(len(split.images) for split in splits)
        with show_progress("Copying images" if images == "copy" else "Linking images", total, progress) as advance:
            for split in splits:
                for image in split.images:
                    _bring(image.labels.path, folder / "images" / split.name / image.place, images)
                    advance()
        for split in splits:
            WRITERS[format](folder, split)
        (folder / "data.yaml").write_text(_data_yaml(splits, format), encoding="utf-8")
    return target / "data.yaml"


def _prepared(
    spec: DatasetSpec, split: NewSplit, format: str, crowd: str | None, outside: str | None, note: Note
) -> NewSplit:
    """Return the split as it is to be written, with all notes on what that loses."""
    name = f"{spec.name} {split.name}"
    _check_places(split, format)
    labels = [image.labels for image in split.images]
    crowds = sum(int(image.crowd.sum()) for image in labels)
    if crowds and crowd is None and format == "yolo":
        raise UserError(
            f"{name}: {crowds} boxes are crowds, which YOLO labels cannot say; add crowd=drop to leave them out or "
            "crowd=keep to make them ordinary boxes"
        )
    if crowds and crowd:
        note(f"{name}: {crowds} crowds {'are left out' if crowd == 'drop' else 'become ordinary boxes'}")
        labels = [_without_crowds(image, crowd) for image in labels]
    if outside == "clip":
        clipped = [_clipped(image) for image in labels]
        labels = [image for image, _, _ in clipped]
        cut, dropped = sum(cut for _, cut, _ in clipped), sum(dropped for _, _, dropped in clipped)
        if cut or dropped:
            note(f"{name}: {cut} boxes are cut at the edge of their image, {dropped} outside of it are left out")
    elif format == "yolo":
        _check_fits_yolo(name, labels)
    areas = sum(int((np.abs(image.areas - image.boxes_xywh[:, 2:].prod(axis=1)) > 1).sum()) for image in labels)
    if areas and format != "coco":
        note(f"{name}: {areas} areas differ from width x height, as those of outlines do; {format} cannot say them")
    if format == "yolo" and split.name == "train" and not any(len(image.class_ids) for image in labels):
        raise UserError(f"{name}: has no box at all, and such YOLO data cannot be told from misplaced labels")
    placed = [replace(image, labels=new) for image, new in zip(split.images, labels, strict=True)]
    return replace(split, images=placed)


def _check_fits_yolo(name: str, images: Sequence[ImageLabels]) -> None:
    if unfit := [image for image in images if not fits_yolo(image).all()]:
        count = sum(int((~fits_yolo(image)).sum()) for image in unfit)
        raise UserError(
            f"{name}: {count} boxes, the first in {unfit[0].path}, reach too far out of their image for YOLO labels; "
            "add outside=clip to cut them at its edge"
        )


def _check_places(split: NewSplit, format: str) -> None:
    """Raise UserError where two images would be written to one file, or share a label file."""
    taken: dict[Path, Path] = {}
    for image in split.images:
        file = Path("images", image.place) if format == "coco" else _annotation(format, Path("images", image.place))
        other = taken.setdefault(file, image.labels.path)
        if other != image.labels.path:
            raise UserError(
                f"{other} and {image.labels.path}: would share {'a label file' if format != 'coco' else file}; "
                "rename one of them"
            )


def _annotation(format: str, image: Path) -> Path:
    return xml_file(image) if format == "voc" else label_file(image)


def _without_crowds(labels: ImageLabels, crowd: str) -> ImageLabels:
    if crowd == "drop":
        labels = labels.selected(~labels.crowd)
    return replace(labels, crowd=np.zeros_like(labels.crowd))


def _clipped(labels: ImageLabels) -> tuple[ImageLabels, int, int]:
    """Return the labels with every box inside the image, and how many were cut and how many left out."""
    corners = labels.boxes_xyxy
    inside = corners.clip(0, [labels.width, labels.height] * 2)
    moved = (np.abs(inside - corners) > _VISIBLE).any(axis=1)
    gone = moved & (inside[:, 2:] - inside[:, :2] <= 0).any(axis=1)
    boxes = labels.boxes_xywh.copy()
    boxes[moved] = np.concatenate([inside[:, :2], inside[:, 2:] - inside[:, :2]], axis=1)[moved]
    areas = np.where(moved, np.minimum(labels.areas, boxes[:, 2:].prod(axis=1)), labels.areas)
    clipped = replace(labels, boxes_xywh=boxes, areas=areas)
    return clipped.selected(~gone), int((moved & ~gone).sum()), int(gone.sum())


def _bring(source: Path, target: Path, images: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if images == "copy":
        shutil.copyfile(source, target)
        return
    try:
        target.symlink_to(source.resolve())
    except OSError as error:
        raise UserError(f"{target.parent}: takes no links ({error.strerror}); use images=copy") from error


def _data_yaml(splits: Sequence[NewSplit], format: str) -> str:
    content: dict[str, Any] = {split.name: f"images/{split.name}" for split in splits}
    if format == "coco":
        content["coco_json"] = {split.name: f"annotations/{split.name}.json" for split in splits}
    elif format == "voc":
        content |= {"format": "voc", "voc_first_pixel": 1}
    content["names"] = list(splits[0].classes)
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
