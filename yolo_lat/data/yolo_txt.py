"""YOLO label files: one text file an image, one row an object, everything relative to the image size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from yolo_lat.data.faults import Fault, Report, shown
from yolo_lat.data.labels import ImageLabels, image_labels

if TYPE_CHECKING:
    from yolo_lat.data.spec import DatasetSpec

_TOLERANCE = 0.01  # annotation tools round outwards


class _UnknownClassError(ValueError):
    pass


def label_file(image: Path) -> Path:
    """Return where the YOLO labels of an image lie: the last folder `images` becomes `labels`, the suffix .txt."""
    parts = list(image.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def read_yolo_labels(
    path: Path, image_id: int, size: tuple[int, int], spec: DatasetSpec, report: Report
) -> ImageLabels:
    """Read `class cx cy w h` rows, or polygons `class x1 y1 x2 y2 ...`, of the image `path`.

    An image without a label file has no objects.
    """
    file = label_file(path)
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        lines = []
    except UnicodeDecodeError:
        report(Fault("labels", file, f"{file}: not UTF-8 text; labels are rows of numbers, save it as UTF-8"))
        lines = []
    except OSError as error:
        report(Fault("labels", file, f"{file}: cannot be read ({error.strerror}); make it a readable text file"))
        lines = []
    class_ids, boxes = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            class_id, box = _parse_row(line, spec)
        except ValueError as error:
            kind = "class" if isinstance(error, _UnknownClassError) else "labels"
            report(Fault(kind, file, f"{file}, line {number}: {error}"))
            continue
        class_ids.append(class_id)
        boxes.append(box)
    relative = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    corner = relative[:, :2] - relative[:, 2:] / 2
    return image_labels(
        path, image_id, size, class_ids, np.concatenate([corner, relative[:, 2:]], axis=1) * [*size, *size]
    )


def _parse_row(line: str, spec: DatasetSpec) -> tuple[int, list[float]]:
    """Return the class and the relative (cx, cy, w, h) of a row; a ValueError says what is wrong with it."""
    values = line.split()
    try:
        row = [float(v) for v in values]
    except ValueError:
        advice = "separate the numbers by spaces" if "," in line else "mend it"
        raise ValueError(f"{shown(line.strip())} is not a row of numbers; {advice}") from None
    if len(row) != 5 and (len(row) < 7 or len(row) % 2 == 0):
        raise ValueError(f"has {len(row)} numbers; a row is class, centre x, centre y, width, height")
    if not (row[0].is_integer() and 0 <= row[0] < len(spec.names)):
        raise _UnknownClassError(
            f"class {values[0]} is not a number from 0 to {len(spec.names) - 1} of names in {spec.file}; "
            "correct the row or add the name"
        )
    if not all(-_TOLERANCE <= v <= 1 + _TOLERANCE for v in row[1:]):
        raise ValueError("coordinates must lie between 0 and 1, relative to the image size; convert them")
    if len(row) == 5 and min(row[3:]) < 0:
        raise ValueError(f"width {values[3]} and height {values[4]} must not be negative; mend the row")
    return int(row[0]), _polygon_box(row[1:]) if len(row) > 5 else row[1:]


def _polygon_box(points: list[float]) -> list[float]:
    x, y = points[0::2], points[1::2]
    return [(min(x) + max(x)) / 2, (min(y) + max(y)) / 2, max(x) - min(x), max(y) - min(y)]
