"""The data set doctor: reads everything, as training does but without stopping, and tells all that it finds."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from yolo_lat.data.check_report import CheckReport, Tile
from yolo_lat.data.copies import exact_copies, look_alikes
from yolo_lat.data.faults import Fault
from yolo_lat.data.findings import Finding, Findings
from yolo_lat.data.inspect_image import THUMB, Facts, Inspectors
from yolo_lat.data.labels import DetectionSplit
from yolo_lat.data.reader import read_split
from yolo_lat.data.registry import load_dataset
from yolo_lat.data.spec import SPLITS, DatasetSpec
from yolo_lat.data.split_summary import SplitSummary, summarise
from yolo_lat.data.suspects import suspect_boxes, suspect_files
from yolo_lat.errors import UserError

TILES = 24  # of the contact sheet
_SUFFIXES = {
    "BMP": {".bmp"},
    "JPEG": {".jpg", ".jpeg"},
    "MPO": {".jpg", ".jpeg"},  # several JPEG pictures in one file, as some cameras write
    "PNG": {".png"},
    "TIFF": {".tif", ".tiff"},
    "WEBP": {".webp"},
}


def check_dataset(
    data: str | Path, progress: bool = True, workers: int | None = None, near: bool = True, seed: int = 0
) -> CheckReport:
    """Read all of a data set, decode every image in full, and report every fault and what looks like a mistake.

    Nothing is written. A picture in two splits is an error here, although training does not refuse it: results on
    pictures that were trained on mean nothing.

    Args:
        data: a registry name or the path of a data YAML.
        progress: show a bar on stderr when that is a terminal.
        workers: processes that decode; as many as there are cores by default.
        near: also look for pictures saved again with another quality or size.
        seed: of the images that the contact sheet shows besides the suspicious ones.

    Raises:
        UserError: an unknown name, a YAML that cannot be read, or a number of processes that is none.
    """
    if workers is not None and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 1):
        raise UserError(f"workers={workers}: must be a whole number from 1; leave it out for one a core")
    found = Findings()
    spec = _load(data, found)
    splits: dict[str, DetectionSplit] = {}
    facts: dict[str, list[Facts]] = {}
    notes: list[str] = []
    with Inspectors(workers) as inspectors:
        for split in SPLITS if spec.names else ():
            if reason := _absence(spec, split):
                if split == "test":
                    notes.append(reason)
                else:
                    found.add(Finding("split", spec.file, reason))
            elif read := _read(spec, split, progress, inspectors, found):
                splits[split], facts[split] = read
    for split, content in splits.items():
        for finding in (*_suspect_images(content, facts[split]), *suspect_files(content, spec, split)):
            found.add(finding)
        for finding in suspect_boxes(content, spec, split):
            found.add(finding)
        if not content.labelled:
            notes.append(f"{content.name}: its annotations are kept back, so it has none")
    for finding in _copies(splits, facts, near):
        found.add(finding)
    summaries = {split: summarise(content, facts[split]) for split, content in splits.items()}
    for finding in _suspect_classes(spec, splits, summaries):
        found.add(finding)
    return CheckReport(spec, summaries, found, tuple(notes), _tiles(splits, found, seed))


def _load(data: str | Path, found: Findings) -> DatasetSpec:
    """Return the data set; without names where they are in annotations that cannot be read."""
    try:
        return load_dataset(data)
    except UserError as error:
        file = Path(data).absolute()
        if (
            file.suffix not in (".yaml", ".yml")
            or not file.is_file()
            or str(error).startswith((f"{file}:", f"{file},"))
        ):
            raise
        found.add(Finding("split", file, str(error)))
        return DatasetSpec(file.stem, file, file.parent, (), {})


def _absence(spec: DatasetSpec, split: str) -> str:
    """Return why a split cannot be read, an empty text if it can."""
    if split not in spec.splits:
        return f"{spec.file}: describes no split {split}"
    if missing := spec.missing(split):
        return f"{spec.file}, split {split}: no such path {', '.join(map(str, missing))}; {spec.advice}"
    return ""


def _read(
    spec: DatasetSpec, split: str, progress: bool, inspectors: Inspectors, found: Findings
) -> tuple[DetectionSplit, list[Facts]] | None:
    """Return a split and the facts of its images; None, with the reason among the findings, if it is none."""
    seen: dict[Path, Facts] = {}

    def look(path: Path) -> tuple[int, int]:
        seen[path] = inspectors.inspect(path)
        return seen[path].width, seen[path].height

    def report(fault: Fault) -> None:
        found.add(Finding(fault.kind, fault.file, fault.message, fault.image))

    try:
        content = read_split(spec, split, progress, report, look)
    except UserError as error:
        found.add(Finding("split", spec.splits[split].annotations or spec.file, str(error)))
        return None
    return content, [seen[image.path] for image in content.images]


def _suspect_images(data: DetectionSplit, facts: list[Facts]) -> Iterator[Finding]:
    for image, fact in zip(data.images, facts, strict=True):
        path = image.path
        if fact.complaint:
            message = f"{path}: damaged image ({fact.complaint}), a part may be garbage; look at it and replace it"
            yield Finding("damaged", path, message, path)
        if path.suffix.lower() not in _SUFFIXES.get(fact.format, ()):
            message = f"{path}: is a {fact.format} file in spite of its suffix; rename it or save it anew"
            yield Finding("suffix", path, message, path)


def _suspect_classes(
    spec: DatasetSpec, splits: dict[str, DetectionSplit], summaries: dict[str, SplitSummary]
) -> Iterator[Finding]:
    """Yield one finding for all classes that lack boxes in the same way."""
    if not {"train", "val"} <= {split for split, data in splits.items() if data.labelled}:
        return
    train, val = summaries["train"].class_boxes, summaries["val"].class_boxes
    ways = {
        "has boxes in val but none in train, so it cannot be learnt": lambda a, b: b and not a,
        "has boxes in train but none in val, so it is not measured": lambda a, b: a and not b,
        "has boxes neither in train nor in val": lambda a, b: not a and not b,
    }
    for way, holds in ways.items():
        if names := [name for name, a, b in zip(spec.names, train, val, strict=True) if holds(a, b)]:
            each = "the class" if len(names) == 1 else f"each of {len(names)} classes"
            message = f"{spec.file}: {each} {', '.join(names)} {way}; add images, or drop it from the names"
            yield Finding("classes", spec.file, message)


def _copies(splits: dict[str, DetectionSplit], facts: dict[str, list[Facts]], near: bool) -> Iterator[Finding]:
    images = [(split, image) for split, data in splits.items() for image in data.images]
    every = [fact for part in facts.values() for fact in part]
    for group in exact_copies([fact.digest for fact in every]):
        first_split, first = images[group[0]]
        for split, image in (images[position] for position in group[1:]):
            same = np.array_equal(first.class_ids, image.class_ids) and np.allclose(first.boxes_xywh, image.boxes_xywh)
            labels = "" if same else ", with other labels"
            if split != first_split:
                message = (
                    f"{image.path}: is the same picture in {split} as {first.path} in {first_split}{labels}; "
                    "keep it in one split"
                )
                yield Finding("leak", image.path, message, image.path)
            else:
                message = f"{image.path}: is the same picture as {first.path}{labels}; drop one of them"
                yield Finding("copy", image.path, message, image.path)
    if not near or not every:
        return
    thumbs = np.frombuffer(b"".join(fact.thumb for fact in every), np.uint8).reshape(-1, *THUMB)
    for one, other in look_alikes(thumbs).tolist():
        if every[one].digest != every[other].digest:
            (first_split, first), (split, image) = images[one], images[other]
            where = f" in {first_split}" if split == first_split else f" in {first_split}, itself in {split}"
            message = f"{image.path}: looks like {first.path}{where}; if they are one picture, drop one of them"
            yield Finding("alike", image.path, message, image.path)


def _tiles(splits: dict[str, DetectionSplit], found: Findings, seed: int) -> tuple[Tile, ...]:
    """Return the suspicious images, the worst first, then others drawn at random, as far as `TILES` goes."""
    images = {image.path: (split, image) for split, data in splits.items() for image in data.images}
    suspicious = [path for path in found.by_image() if path in images][:TILES]
    others = sorted(images.keys() - set(suspicious))
    chosen = random.Random(seed).sample(others, min(TILES - len(suspicious), len(others)))
    return tuple(Tile(*images[path]) for path in suspicious + chosen)
