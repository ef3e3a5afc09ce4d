"""Whole files made of the finished parts of a run, image by image: COCO JSON, and the list of what failed."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pyarrow.parquet as pq


def write_coco(detections: Path, names: dict[int, str], target: Path) -> None:
    """Write a COCO file with `images`, `categories` and `annotations`, each of which has its `score`.

    Images are numbered from 1 in the order of the parts, and failed ones are left out. Boxes are rounded to 0.001 px
    and scores to 0.00001; the Parquet files have them as they were detected.

    Args:
        detections: folder of the parts.
        names: class names by id; the ids become those of the categories.
        target: the file.
    """
    categories = [{"id": number, "name": name} for number, name in names.items()]
    partial = target.with_name(f".{target.name}")
    with partial.open("w", encoding="utf-8") as out:
        out.write(f'{{"categories": {json.dumps(categories)},\n"images": [')
        _write_list(out, _images(detections))
        out.write('],\n"annotations": [')
        _write_list(out, _annotations(detections))
        out.write("]}\n")
    partial.replace(target)


def write_failures(detections: Path, target: Path) -> None:
    """Write a CSV of the images, and input files, that failed, and why."""
    partial = target.with_name(f".{target.name}")
    with partial.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["image", "error"])
        writer.writerows(
            (row["image"], row["error"]) for row in read_rows(detections, ["image", "error"]) if row["error"]
        )
    partial.replace(target)


def read_rows(detections: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of all finished parts, in the same order every time."""
    for path in sorted(detections.glob("[0-9]*/*.parquet")):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(1000, columns=columns):
                yield from batch.to_pylist()


def _images(detections: Path) -> Iterator[dict[str, Any]]:
    rows = (row for row in read_rows(detections, ["image", "width", "height", "error"]) if row["error"] is None)
    for number, row in enumerate(rows, 1):
        yield {"id": number, "file_name": row["image"], "width": row["width"], "height": row["height"]}


def _annotations(detections: Path) -> Iterator[dict[str, Any]]:
    columns = ["boxes_xyxy", "scores", "class_ids", "error"]
    rows = (row for row in read_rows(detections, columns) if row["error"] is None)
    number = 0
    for image, row in enumerate(rows, 1):
        for (x1, y1, x2, y2), score, label in zip(row["boxes_xyxy"], row["scores"], row["class_ids"], strict=True):
            number += 1
            width, height = x2 - x1, y2 - y1
            yield {
                "id": number,
                "image_id": image,
                "category_id": label,
                "bbox": [round(value, 3) for value in (x1, y1, width, height)],
                "area": round(width * height, 3),
                "iscrowd": 0,
                "score": round(score, 5),
            }


def _write_list(out: TextIO, rows: Iterator[dict[str, Any]]) -> None:
    for number, row in enumerate(rows):
        out.write(",\n" if number else "\n")
        out.write(json.dumps(row))
