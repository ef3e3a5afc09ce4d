"""A small sound data set in three formats, and ways to spoil it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import yaml
from PIL import Image

from yolo_lat.data.check_report import CheckReport
from yolo_lat.data.doctor import check_dataset
from yolo_lat.data.voc_xml import xml_file
from yolo_lat.data.yolo_txt import label_file

NAMES = ["cat", "dog"]
FORMATS = ("yolo", "coco", "voc")
WIDTH, HEIGHT = 64, 48


def picture(seed: int) -> np.ndarray:
    """Smooth noise: as distinct as photographs, also after compression."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    return cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)


class Data:
    """A small sound data set in one of the formats; boxes are (class, x, y, w, h) in pixels."""

    def __init__(self, root: Path, form: str, train: int = 4, val: int = 2) -> None:
        self.root, self.form = root, form
        self.yaml = root / "data.yaml"
        self.boxes: dict[Path, list] = {}
        for split, number in (("train", train), ("val", val)):
            for i in range(number):
                self.add(split, f"{split[0]}{i}.jpg", picture(100 * number + i))
        keys = {"train": "images/train", "val": "images/val", "names": NAMES}
        keys |= {
            "yolo": {},
            "voc": {"format": "voc"},
            "coco": {"coco_json": {s: f"{s}.json" for s in ("train", "val")}},
        }[form]
        self.keys = keys
        self.write()

    def add(self, split: str, name: str, pixels: np.ndarray, boxes=((0, 8, 8, 20, 16), (1, 30, 12, 24, 30))) -> Path:
        path = self.root / "images" / split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(path.suffix, pixels)[1].tobytes())  # imwrite dies of names that are no UTF-8
        self.boxes[path] = list(boxes)
        return path

    def path(self, name: str) -> Path:
        return next(path for path in self.boxes if path.name == name)

    def write(self) -> None:
        """Write the YAML and the annotations; call again after a change to `boxes` or `keys`."""
        self.yaml.write_text(yaml.safe_dump(self.keys))
        for path, boxes in self.boxes.items():
            if self.form == "yolo":
                rows = [
                    f"{c} {(x + w / 2) / WIDTH!r} {(y + h / 2) / HEIGHT!r} {w / WIDTH!r} {h / HEIGHT!r}"
                    for c, x, y, w, h in boxes
                ]
                self._put(label_file(path), "\n".join(rows))
            if self.form == "voc":
                objects = "".join(
                    f"<object><name>{NAMES[c]}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
                    f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
                    for c, x, y, w, h in boxes
                )
                size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
                self._put(xml_file(path), f"<annotation>{size}{objects}</annotation>")
        if self.form == "coco":
            for split in ("train", "val"):
                (self.root / f"{split}.json").write_text(json.dumps(self.coco(split)))

    def coco(self, split: str) -> dict:
        paths = [path for path in self.boxes if path.parent.name == split]
        rows = [(i, c, box) for i, path in enumerate(paths) for c, *box in self.boxes[path]]
        return {
            "images": [{"id": i, "file_name": p.name, "width": WIDTH, "height": HEIGHT} for i, p in enumerate(paths)],
            "annotations": [
                {"id": k, "image_id": i, "category_id": c, "bbox": box} for k, (i, c, box) in enumerate(rows)
            ],
            "categories": [{"id": c, "name": name} for c, name in enumerate(NAMES)],
        }

    def _put(self, file: Path, text: str) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def check(self, **kwargs) -> CheckReport:
        before = tree(self.root)
        report = check_dataset(self.yaml, progress=False, workers=1, **kwargs)
        assert tree(self.root) == before
        return report


def tree(root: Path) -> dict[str, str]:
    """Every path under a folder, with the hash of its content and the time of its last change."""
    return {
        str(
            path
        ): f"{path.stat().st_mtime_ns} {hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ''}"
        for path in sorted(root.rglob("*"))
    }


def messages(report: CheckReport, kind: str) -> list[str]:
    return [finding.message for finding in report.found.listed.get(kind, [])]


def kinds(report: CheckReport) -> dict[str, int]:
    return dict(report.found.counts)


def break_image(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("this is no image")
    elif how == "html":
        path.write_text("<html>404</html>")
    elif how == "gif":
        Image.new("RGB", (WIDTH, HEIGHT)).save(path, format="GIF")
    elif how == "folder":
        path.unlink()
        path.mkdir()
    elif how == "JPEG without tables":
        path.write_bytes(content.replace(b"\xff\xdb", b"\xff\xef"))
    elif how == "PNG cut in the middle":
        png = bytearray(cv2.imencode(".png", picture(7))[1].tobytes())
        png[len(png) // 2 : len(png) // 2 + 20] = bytes(20)
        path.write_bytes(png)


BREAKS = ("truncated", "empty", "text", "html", "gif", "folder", "JPEG without tables", "PNG cut in the middle")
