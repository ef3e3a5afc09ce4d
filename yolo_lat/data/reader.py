"""Read a split, whatever the format of its annotations, into one typed form."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from yolo_lat.data.coco_json import read_coco
from yolo_lat.data.faults import Fault, Report, refuse
from yolo_lat.data.images import image_size, list_images
from yolo_lat.data.labels import DetectionSplit
from yolo_lat.data.spec import DatasetSpec
from yolo_lat.data.voc_xml import read_voc_labels
from yolo_lat.data.yolo_txt import label_file, read_yolo_labels
from yolo_lat.errors import UserError
from yolo_lat.progress import show_progress

_BATCH = 1024  # images whose reading is queued at a time: bounds memory, whatever their number
Look = Callable[[Path], tuple[int, int]]


def read_split(
    spec: DatasetSpec, split: str, progress: bool = True, report: Report = refuse, look: Look = image_size
) -> DetectionSplit:
    """Read and check every image and annotation of a split.

    Args:
        spec: the data set.
        split: train, val or test.
        progress: show a bar on stderr.
        report: told of every fault; the default raises UserError at the first.
        look: reads an image and returns its width and height, called from several threads at once.

    Raises:
        UserError: nothing that can be read as a split, or a fault that `report` raised; the message names file and
            line or annotation.
    """
    part = spec.split(split)
    name = f"{spec.name} {split}"
    measure = partial(_measure, name=name, progress=progress, report=report, look=look)
    if part.annotations is not None:
        if len(part.images) != 1 or not part.images[0].is_dir():
            raise UserError(
                f"{spec.file}, key {split}: with coco_json it needs to be one folder of images; name the one that its "
                "file names start from"
            )
        coco = read_coco(part.annotations, part.images[0], spec, measure, part.choose, report)
        return DetectionSplit(name, spec.names, coco.category_ids, coco.images, coco.labelled)
    paths = part.choose(list_images(part.images))
    read_labels = read_voc_labels if spec.format == "voc" else read_yolo_labels
    images = [
        read_labels(path, number, size, spec, _about(path, report))
        for number, (path, size) in enumerate(zip(paths, measure(paths), strict=True), start=1)
        if size is not None
    ]
    if split == "train" and spec.format == "yolo" and images and not any(len(image.class_ids) for image in images):
        wanted = label_file(images[0].path)
        problem = f"files such as {wanted} are empty, write labels into them"
        if not wanted.is_file():
            problem = f"labels are looked for as {wanted}, put them there"
        message = f"{spec.file}: no image of split train has a label; {problem}"
        report(Fault("labels", spec.file, message))
    return DetectionSplit(name, spec.names, tuple(range(1, len(spec.names) + 1)), images)


def _about(image: Path, report: Report) -> Report:
    """Return `report`, with each fault marked as one of the labels of `image`."""
    return lambda fault: report(replace(fault, image=image))


def _measure(paths: list[Path], name: str, progress: bool, report: Report, look: Look) -> list[tuple[int, int] | None]:
    """Return what `look` says of each image, None where it refused and `report` let that pass."""

    def attempt(path: Path) -> tuple[int, int] | UserError:
        try:
            return look(path)
        except UserError as error:
            return error

    sizes: list[tuple[int, int] | None] = []
    with ThreadPoolExecutor() as pool, show_progress(f"Reading {name}", len(paths), progress) as advance:
        for start in range(0, len(paths), _BATCH):
            batch = paths[start : start + _BATCH]
            for path, found in zip(batch, pool.map(attempt, batch), strict=True):
                if isinstance(found, UserError):
                    report(Fault("image", path, str(found), path))
                    sizes.append(None)
                else:
                    sizes.append(found)
                advance()
    return sizes
