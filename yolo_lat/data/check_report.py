"""What a check of a data set found: as tables, as JSON and as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.table import Table
from rich.text import Text

from yolo_lat.data.findings import KINDS, Findings
from yolo_lat.data.labels import ImageLabels
from yolo_lat.data.spec import DatasetSpec
from yolo_lat.data.split_summary import QUANTILES, SplitSummary
from yolo_lat.drawing import class_colour, contact_sheet, draw_boxes, fit, picture_path, save_picture
from yolo_lat.errors import UserError
from yolo_lat.unfinished import write_whole

EXAMPLES, LOOKS, CLASSES = 3, 10, 40  # rows of the tables: findings of a kind, images to look at, classes
_BAR, _COLUMNS, _SIDE = 6, 6, 320  # characters of a full bar, tiles in a row, pixels of a tile


@dataclass(frozen=True)
class Tile:
    """An image for the contact sheet, and the split that it is in."""

    split: str
    image: ImageLabels


@dataclass(frozen=True)
class CheckReport:
    """What a check found.

    Attributes:
        spec: the data set.
        splits: those that could be read, in numbers.
        found: errors and warnings.
        notes: what is neither.
        tiles: images for the contact sheet, suspicious ones first.
    """

    spec: DatasetSpec
    splits: Mapping[str, SplitSummary]
    found: Findings
    notes: tuple[str, ...]
    tiles: tuple[Tile, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no error; warnings do not count."""
        return self.found.total(error=True) == 0

    def tables(self) -> list[Table]:
        """Return what a terminal shows; the JSON has the rest."""
        tables = []
        if self.splits:
            tables += [self._split_table(), self._size_table(), self._class_table()]
        tables += [self._finding_table(error) for error in (True, False) if self.found.total(error)]
        looks = self.found.by_image()
        return tables + ([self._look_table()] if looks else [])

    def as_dict(self) -> dict[str, Any]:
        """Return everything that JSON can hold; of each kind of finding at most `findings.LISTED` are listed."""
        levels = {"errors": True, "warnings": False}
        return {
            "data": self.spec.name,
            "file": str(self.spec.file),
            "format": self.spec.format,
            "ok": self.ok,
            **{key: self.found.total(error) for key, error in levels.items()},
            "splits": {split: summary.as_dict(self.spec.names) for split, summary in self.splits.items()},
            "findings": [
                {
                    "kind": kind,
                    "title": KINDS[kind].title,
                    "error": KINDS[kind].error,
                    "count": self.found.counts[kind],
                    "listed": [{"file": str(f.file), "message": f.message} for f in self.found.listed[kind]],
                }
                for kind in self._kinds()
            ],
            "look_at": [
                {"image": str(image), "reasons": [finding.kind for finding in findings]}
                for image, findings in self.found.by_image().items()
            ],
            "notes": list(self.notes),
        }

    def save(self, file: str | Path) -> Path:
        """Write the report as JSON; the file appears under its name only when it is complete.

        Raises:
            UserError: no file can be written there.
        """
        path = Path(file)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # A file name may hold bytes that are no UTF-8; they are written as escapes.
            write_whole(path, json.dumps(self.as_dict(), indent=2) + "\n")
        except OSError as error:
            raise UserError(f"{file}: cannot be written ({error.strerror}); choose another place") from error
        return path

    def contact_sheet(self, file: str | Path) -> Path:
        """Write a picture of the suspicious images and others drawn at random, with their boxes.

        Raises:
            UserError: no picture can be written there, or no image can be read.
        """
        picture_path(file)
        reasons = {path: [KINDS[f.kind].title for f in found] for path, found in self.found.by_image().items()}
        pictures, titles = [], []
        for tile in self.tiles:
            pixels = cv2.imdecode(np.fromfile(tile.image.path, np.uint8), cv2.IMREAD_COLOR)
            if pixels is None:
                raise UserError(f"{tile.image.path}: changed since the check; check again")
            small, ratio = fit(pixels, _SIDE)
            corners = (tile.image.boxes_xyxy * ratio).clip(-_SIDE, 2 * _SIDE)  # OpenCV draws no farther than 32 bits
            labels = [self.spec.names[class_id] for class_id in tile.image.class_ids]
            colours = [class_colour(int(class_id)) for class_id in tile.image.class_ids]
            pictures.append(draw_boxes(small, corners, labels, colours))
            why = ", ".join(dict.fromkeys(reasons.get(tile.image.path, [])))
            titles.append(f"{tile.split}/{tile.image.path.name}" + (f": {why}" if why else ""))
        if not pictures:
            raise UserError(f"{self.spec.file}: no image that can be drawn; see the errors of the check")
        return save_picture(file, contact_sheet(pictures, titles, _COLUMNS, _SIDE))

    def _kinds(self) -> list[str]:
        return [kind for kind in KINDS if self.found.counts[kind]]

    def _split_table(self) -> Table:
        table = _table(f"{self.spec.name} ({self.spec.format})", "", *self.splits)
        rows: dict[str, list[str]] = {
            "images": [f"{s.images:,}" for s in self.splits.values()],
            "without boxes": [f"{s.empty:,}" for s in self.splits.values()],
            "boxes": [f"{s.boxes:,}" for s in self.splits.values()],
            "crowds": [f"{s.crowds:,}" for s in self.splits.values()],
            "boxes per image": [_range(s.boxes_per_image) for s in self.splits.values()],
            "width, px": [_range(s.width) for s in self.splits.values()],
            "height, px": [_range(s.height) for s in self.splits.values()],
            "kinds": [", ".join(f"{kind} {n:,}" for kind, n in s.kinds.items()) for s in self.splits.values()],
            "turned by EXIF": [f"{s.turned:,}" for s in self.splits.values()],
        }
        for name, cells in rows.items():
            table.add_row(name, *cells)
        table.caption = "ranges: smallest / median / largest"
        return table

    def _size_table(self) -> Table:
        table = _table("Boxes by size (COCO: small under 32² px, large over 96² px)", "", *self.splits)
        for name in ("small", "medium", "large"):
            counts = [(summary.sizes[name], summary.boxes) for summary in self.splits.values()]
            table.add_row(name, *(f"{n:>9,} {_percent(n, whole):>6} {_bar(n, whole)}" for n, whole in counts))
        for position in (1, 2, 3):
            cells = [
                f"{s.side[position]:.1f} px, {100 * s.side_share[position]:.1f}% of the image's" if s.side else "-"
                for s in self.splits.values()
            ]
            table.add_row(f"side at {QUANTILES[position]}%", *cells)
        table.caption = "side: square root of a box's area"
        return table

    def _class_table(self) -> Table:
        first = next(iter(self.splits.values()))
        order = sorted(range(len(self.spec.names)), key=lambda c: -first.class_boxes[c])
        table = _table("Classes", "class", *(f"{split}: boxes, share, images" for split in self.splits))
        for c in order[:CLASSES]:
            cells = [
                f"{s.class_boxes[c]:>7,} {_percent(s.class_boxes[c], s.boxes):>6} "
                f"{_bar(s.class_boxes[c], max(s.class_boxes))} {s.class_images[c]:>6,}"
                for s in self.splits.values()
            ]
            table.add_row(Text(self.spec.names[c]), *cells)
        if len(order) > CLASSES:
            table.caption = f"and {len(order) - CLASSES} more classes, see the JSON"
        return table

    def _finding_table(self, error: bool) -> Table:
        title = f"{self.found.total(error):,} " + ("errors" if error else "warnings: training goes on, have a look")
        table = Table("what", "how many", "where", title=title, title_justify="left", show_lines=True)
        for kind in self._kinds():
            if KINDS[kind].error == error:
                count = self.found.counts[kind]
                lines = [self._short(finding.message) for finding in self.found.listed[kind][:EXAMPLES]]
                lines += [f"and {count - EXAMPLES:,} more"] if count > EXAMPLES else []
                table.add_row(KINDS[kind].title, f"{count:,}", Text("\n".join(lines), overflow="fold"))
        return table

    def _short(self, text: str) -> str:
        """Return text with paths relative to the data set's folder, so that a terminal has room for file names."""
        return text.replace(f"{self.spec.root}/", "")

    def _look_table(self) -> Table:
        images = self.found.by_image()
        table = Table("image", "why", title="Look at these first", title_justify="left")
        for path in list(images)[:LOOKS]:
            why = dict.fromkeys(KINDS[finding.kind].title for finding in images[path])
            table.add_row(Text(self._short(str(path)), overflow="fold"), ", ".join(why))
        if len(images) > LOOKS:
            table.caption = f"and {len(images) - LOOKS:,} more, see the JSON"
        return table


def _table(title: str, *columns: str) -> Table:
    return Table(*columns, title=Text(title), title_justify="left")


def _range(quantiles: tuple[float, ...]) -> str:
    return " / ".join(f"{quantiles[i]:g}" for i in (0, 2, 4)) if quantiles else "-"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.1f}%"


def _bar(part: int, whole: int) -> str:
    return ("█" * round(_BAR * part / max(whole, 1))).ljust(_BAR)
