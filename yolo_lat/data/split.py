"""Divide all images of a data set anew into train, val and test, so that each gets its share of every class."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath

import numpy as np

from yolo_lat.data.convert import (
    Note,
    as_new_split,
    check_options,
    new_target,
    places_below,
    read_labelled,
    to_stderr,
    write_dataset,
)
from yolo_lat.data.labels import DetectionSplit, ImageLabels
from yolo_lat.data.registry import load_dataset
from yolo_lat.data.spec import SPLITS, DatasetSpec
from yolo_lat.data.writers import NewSplit, PlacedImage
from yolo_lat.data.yolo_txt import label_file
from yolo_lat.errors import UserError

FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}


def split_dataset(
    data: str | Path,
    directory: str | Path,
    fractions: Mapping[str, float] = FRACTIONS,
    seed: int = 0,
    stratify: bool = True,
    format: str | None = None,
    images: str = "copy",
    group: str | None = None,
    crowd: str | None = None,
    outside: str | None = None,
    progress: bool = True,
    note: Note = to_stderr,
) -> Path:
    """Pool the splits of a data set and divide them anew; returns the new data YAML, `directory/data.yaml`.

    The outcome depends on the seed and on the names and the content of the files, not on their order or on where they
    lie. An image that several splits name counts once. Files of equal content go into the same split.

    Args:
        data: registry name or data YAML.
        directory: a new or empty folder; it appears when all is written.
        fractions: share of the images for each split, train and val at least; they add up to 1.
        seed: another seed gives another division.
        stratify: give each split its share of every class; False divides at random.
        format: `coco`, `yolo` or `voc`; that of the data set by default.
        images: `copy` the files unchanged, or `link` to them.
        group: `folder` keeps the images of a folder together, as frames of a video need.
        crowd: as for `convert`.
        outside: as for `convert`.
        progress: show bars on stderr.
        note: told what a user should know about the result, a sentence each time.

    Raises:
        UserError: fractions that are none, too few images, or what `convert` raises; nothing is written then.
    """
    spec = load_dataset(data)
    format = format or spec.format
    check_options(format, images, crowd, outside)
    if group not in (None, "folder"):
        raise UserError(f"group={group}: use group=folder, or leave it out")
    fractions = _checked(fractions)
    target = new_target(spec, directory)
    pool = _pool(spec, read_labelled(spec, progress, note))
    units = _units(pool.images, group)
    room = _whole_shares(len(pool.images), list(fractions.values()))
    if 0 in room:
        raise UserError(
            f"{spec.name}: {len(pool.images)} images are too few for {len(room)} splits; add some or drop one"
        )
    order = sorted(range(len(units)), key=lambda unit: _rank(seed, pool.images[units[unit][0]].place))
    units = [units[unit] for unit in order]
    counts = np.array([_class_counts([pool.images[i].labels for i in unit], len(spec.names)) for unit in units])
    chosen = stratified(counts if stratify else counts[:, :0], [len(unit) for unit in units], room)
    splits = []
    for number, name in enumerate(fractions):
        members = sorted(i for unit, choice in zip(units, chosen, strict=True) if choice == number for i in unit)
        if not members:
            raise UserError(f"{spec.name}: split {name} would be empty, as the groups are too large; use smaller ones")
        splits.append(replace(pool, name=name, images=[pool.images[i] for i in members]))
        had = counts.sum(axis=0) > 0
        has = _class_counts([pool.images[i].labels for i in members], len(spec.names)) > 0
        if absent := [class_name for class_name, lacks in zip(spec.names, had & ~has, strict=True) if lacks]:
            note(f"{spec.name} {name}: has no box of {', '.join(absent)}; there are too few")
    return write_dataset(spec, target, splits, format, images, crowd, outside, progress, note)


def stratified(counts: np.ndarray, sizes: Sequence[int], room: Sequence[int]) -> list[int]:
    """Return the split of each unit, by iterative stratification.

    Sechidis, Tsoumakas and Vlahavas, "On the stratification of multi-label data" (ECML PKDD 2011), algorithm 1: the
    label that fewest of the undecided units have goes first, each of its units to the split that lacks most of it.
    Two things differ. A label here is "this class at least 1, 2, 4, 8, ... times", which balances boxes as well as
    images. And a full split takes no more, so that sizes are exact.

    Args:
        counts: (units, classes) boxes; units without any are divided by size alone.
        sizes: images of each unit.
        room: images that each split is to have.
    """
    levels = int(counts.max(initial=1)).bit_length()
    labels = np.concatenate([counts >= 2**level for level in range(levels)], axis=1).astype(np.int64)
    free = np.array(room, dtype=np.float64)
    have = labels.sum(axis=0)
    lacking = np.outer(free / free.sum(), have)  # units, (splits, labels)
    chosen = [-1] * len(sizes)

    def decide(unit: int, need: np.ndarray) -> None:
        fits = free >= sizes[unit]
        best = max(range(len(free)), key=lambda split: (fits[split], need[split] if fits[split] else 0, free[split]))
        chosen[unit] = best
        free[best] -= sizes[unit]
        lacking[best] -= labels[unit]
        have[:] -= labels[unit]

    while (have > 0).any():
        rarest = int(np.where(have > 0, have, len(sizes) + 1).argmin())
        undecided = [int(unit) for unit in np.flatnonzero(labels[:, rarest]) if chosen[unit] < 0]
        for unit in sorted(undecided, key=lambda unit: -sizes[unit]):
            decide(unit, lacking[:, rarest])
    rest = [unit for unit, choice in enumerate(chosen) if choice < 0]
    for unit in sorted(rest, key=lambda unit: -sizes[unit]):
        decide(unit, free)
    return chosen


def _checked(fractions: Mapping[str, float]) -> dict[str, float]:
    """Return the fractions without a test of 0, which asks for none."""
    given = {split: value for split, value in fractions.items() if split != "test" or value != 0}
    if not {"train", "val"} <= set(given) <= set(SPLITS):
        raise UserError(f"fractions of {', '.join(given) or 'nothing'}: give train, val and, if wanted, test")
    if not all(value > 0 for value in given.values()) or not math.isclose(sum(given.values()), 1, abs_tol=1e-6):
        shares = ", ".join(f"{split}={value:g}" for split, value in given.items())
        raise UserError(
            f"{shares}: shares of the images must be above 0 and add up to 1; correct them, test=0 for none"
        )
    return {split: given[split] for split in SPLITS if split in given}


def _whole_shares(total: int, fractions: Sequence[float]) -> list[int]:
    """Return whole numbers that add up to `total`, each less than 1 from its fraction (largest remainder)."""
    exact = [total * fraction for fraction in fractions]
    shares = [math.floor(value + 1e-6) for value in exact]  # 0.1 x 30 is a little less than 3
    by_remainder = sorted(range(len(exact)), key=lambda i: shares[i] - exact[i])
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    return shares


def _pool(spec: DatasetSpec, splits: Mapping[str, DetectionSplit]) -> NewSplit:
    """Return all images as one split, each file once, in the order of their places."""
    new = [
        as_new_split(spec, name, split, places_below(spec.splits[name].images, [image.path for image in split.images]))
        for name, split in splits.items()
    ]
    found: dict[Path, PlacedImage] = {}
    for image in (image for split in new for image in split.images):
        first = found.setdefault(image.labels.path.resolve(), image)
        if first is not image and not _same_boxes(first.labels, image.labels):
            raise UserError(f"{image.labels.path}: is in two splits with different boxes; correct one of them")
    images = list(found.values())
    if len({label_file(Path("images", image.place)) for image in images}) < len(images):
        # Names that several splits use need the folder of the split too.
        places = places_below((), [image.labels.path for image in images])
        images = [replace(image, place=place) for image, place in zip(images, places, strict=True)]
    images.sort(key=lambda image: image.place.as_posix())
    if len({image.labels.image_id for image in images}) < len(images):
        images = [replace(i, labels=replace(i.labels, image_id=n)) for n, i in enumerate(images, start=1)]
    categories = new[0].categories
    if any(split.categories != categories for split in new):
        categories = [{"id": number, "name": name} for number, name in enumerate(spec.names, start=1)]
    licenses = {str(row): row for split in new for row in split.header.get("licenses", [])}
    header = {**new[0].header, **({"licenses": list(licenses.values())} if licenses else {})}
    return NewSplit("all", spec.names, images, categories, header)


def _same_boxes(one: ImageLabels, other: ImageLabels) -> bool:
    return all(np.array_equal(getattr(one, key), getattr(other, key)) for key in ("class_ids", "boxes_xywh", "crowd"))


def _units(images: Sequence[PlacedImage], group: str | None) -> list[list[int]]:
    """Return the images, by index, that must stay together: files of equal content, and folders if asked for."""
    by_size: dict[int, list[int]] = defaultdict(list)
    for index, image in enumerate(images):
        by_size[image.labels.path.stat().st_size].append(index)
    sets: list[Iterable[int]] = []
    for same_size in by_size.values():
        by_content: dict[bytes, list[int]] = defaultdict(list)
        for index in same_size if len(same_size) > 1 else ():
            by_content[hashlib.blake2b(images[index].labels.path.read_bytes()).digest()].append(index)
        sets += by_content.values()
    if group == "folder":
        by_folder: dict[Path, list[int]] = defaultdict(list)
        for index, image in enumerate(images):
            by_folder[image.labels.path.parent].append(index)
        sets += by_folder.values()
    unit_of = {index: [index] for index in range(len(images))}
    for first, *others in sets:
        for other in others:
            if unit_of[first] is not unit_of[other]:
                unit_of[first] += unit_of[other]
                for index in unit_of[other]:
                    unit_of[index] = unit_of[first]
    return [sorted(unit) for index, unit in unit_of.items() if index == min(unit)]


def _class_counts(images: Sequence[ImageLabels], classes: int) -> np.ndarray:
    return np.bincount(np.concatenate([image.class_ids for image in images]), minlength=classes)


def _rank(seed: int, place: PurePath) -> bytes:
    return hashlib.blake2b(f"{seed}/{place.as_posix()}".encode(errors="surrogateescape"), digest_size=8).digest()
