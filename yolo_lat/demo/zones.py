"""Lines that objects cross and areas that they enter, from a small YAML; counted by supervision."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import supervision as sv

from yolo_lat.data.faults import shown
from yolo_lat.data.files import read_yaml
from yolo_lat.errors import UserError, nearest

_ANCHOR = (sv.Position.BOTTOM_CENTER,)  # where an object stands
_FORGET_FRAMES = 10_000  # an object out of sight for so long has lost its number
_FARTHEST = 1e6  # pixels
_SHAPES = {"lines": ("name", "from", "to"), "polygons": ("name", "points")}


@dataclass(frozen=True)
class Shape:
    """A line of two points or a polygon of three or more, in pixels or as shares of the image."""

    name: str
    points: tuple[tuple[float, float], ...]

    def pixels(self, size: tuple[int, int]) -> np.ndarray:
        """Return the (n, 2) float64 points in an image of that width and height.

        Points that all lie in 0 to 1 are shares.
        """
        points = np.array(self.points, np.float64)
        return points * size if points.max() <= 1 else points


@dataclass(frozen=True)
class Event:
    """An object went over a line ("in" or "out") or an edge ("entered" or "left")."""

    zone: str
    what: str
    class_id: int
    track_id: int


def read_zones(file: str | Path) -> tuple[list[Shape], list[Shape]]:
    """Return the lines and the polygons of a YAML file.

    Raises:
        UserError: no such file, no YAML, or a key or value that means nothing; the message has the file and the key.
    """
    if not Path(file).exists():
        raise UserError(f"zones={file}: No such file or directory; give a YAML file")
    content = read_yaml(Path(file))
    if not isinstance(content, dict) or not content:
        raise UserError(f"{file}: holds neither lines: nor polygons:; give at least one of them")
    for key in content:
        if key not in _SHAPES:
            raise UserError(
                f"{file}: unknown key {shown(key)}{nearest(str(key), _SHAPES) or '; use lines and polygons'}"
            )
    found: dict[str, list[Shape]] = {"lines": [], "polygons": []}
    for kind, entries in content.items():
        if not isinstance(entries, list):
            raise UserError(f"{file}: {kind} is no list; start each entry with '- name:'")
        found[kind] = [_read_shape(file, kind, index, entry) for index, entry in enumerate(entries)]
    shapes = found["lines"] + found["polygons"]
    if not shapes:
        raise UserError(f"{file}: holds no line and no polygon; give at least one")
    if twice := [name for name, count in Counter(shape.name for shape in shapes).items() if count > 1]:
        raise UserError(f"{file}: the name {shown(twice[0])} is given twice; names tell zones apart")
    return found["lines"], found["polygons"]


def _read_shape(file: str | Path, kind: str, index: int, entry: Any) -> Shape:
    place, keys = f"{kind}[{index}]", _SHAPES[kind]
    if not isinstance(entry, dict):
        raise UserError(f"{file}: {place} is no mapping; give {', '.join(keys)}")
    for key in entry:
        if key not in keys:
            raise UserError(f"{file}: unknown key {shown(key)} in {place}{nearest(str(key), keys) or f'; use {keys}'}")
    for key in keys:
        if key not in entry:
            raise UserError(f"{file}: {place} lacks {key}; give {', '.join(keys)}")
    points = [entry["from"], entry["to"]] if kind == "lines" else entry["points"]
    key = f"{place}.from, .to" if kind == "lines" else f"{place}.points"
    if not isinstance(points, list) or not all(map(_is_point, points)):
        raise UserError(f"{file}: {key} is {shown(points)}; give points as [x, y], pixels or shares from 0 to 1")
    corners = tuple((float(x), float(y)) for x, y in points)
    if len(set(corners)) < (2 if kind == "lines" else 3):
        raise UserError(f"{file}: {key} is {shown(points)}; a line needs two different points, a polygon three")
    return Shape(str(entry["name"]), corners)


def _is_point(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(number, int | float) and not isinstance(number, bool) for number in value)
        and all(0 <= number < _FARTHEST for number in value)
    )


class Zones:
    """Count the objects that cross lines and enter polygons.

    An object is where the middle of its box's lower edge is. It goes "in" over a line when it comes to the left-hand
    side of someone who walks from `from` to `to`, and "out" when it comes back. Counts go by class.

    Args:
        lines: shapes of two points.
        polygons: shapes of three points or more.
        size: width and height of the first frame; later sizes are scaled to it.
    """

    def __init__(self, lines: list[Shape], polygons: list[Shape], size: tuple[int, int]) -> None:
        self.lines, self.polygons, self._size = lines, polygons, size
        self._line_zones = [
            sv.LineZone(sv.Point(*start), sv.Point(*end), triggering_anchors=_ANCHOR)
            for start, end in (line.pixels(size).tolist() for line in lines)
        ]
        self._areas = [
            sv.PolygonZone(polygon.pixels(size).round().astype(int), triggering_anchors=_ANCHOR) for polygon in polygons
        ]
        # Of those inside, the class by number, and the frame in which each was seen last.
        self._inside: list[dict[int, tuple[int, int]]] = [{} for _ in polygons]
        self._frames = 0
        self.counts: dict[str, dict[str, Counter[int]]] = {
            **{line.name: {"in": Counter(), "out": Counter()} for line in lines},
            **{polygon.name: {"entered": Counter(), "left": Counter()} for polygon in polygons},
        }

    def update(
        self, boxes_xyxy: np.ndarray, class_ids: np.ndarray, track_ids: np.ndarray, size: tuple[int, int]
    ) -> list[Event]:
        """Take the (n, 4) boxes of a frame of that width and height, and return what happened."""
        followed = track_ids >= 0
        scale = np.array((self._size[0] / size[0], self._size[1] / size[1]) * 2)
        boxes, class_ids, track_ids = boxes_xyxy[followed] * scale, class_ids[followed], track_ids[followed]
        found = sv.Detections(xyxy=boxes, class_id=class_ids, tracker_id=track_ids)
        events = []
        for line, zone in zip(self.lines, self._line_zones, strict=True):
            for what, crossed in zip(("in", "out"), zone.trigger(found), strict=True):
                rows = np.flatnonzero(crossed).tolist()
                events += [Event(line.name, what, int(class_ids[row]), int(track_ids[row])) for row in rows]
        for polygon, area, before in zip(self.polygons, self._areas, self._inside, strict=True):
            inside = area.trigger(found)
            for class_id, track_id, now in zip(class_ids.tolist(), track_ids.tolist(), inside.tolist(), strict=True):
                if not now:
                    if track_id in before:
                        events.append(Event(polygon.name, "left", before.pop(track_id)[0], track_id))
                    continue
                if track_id not in before:
                    events.append(Event(polygon.name, "entered", class_id, track_id))
                before[track_id] = before.get(track_id, (class_id, 0))[0], self._frames
            for track_id in [number for number, (_, seen) in before.items() if self._frames - seen > _FORGET_FRAMES]:
                del before[track_id]
        self._frames += 1
        for event in events:
            self.counts[event.zone][event.what][event.class_id] += 1
        return events

    def outlines(self, size: tuple[int, int]) -> list[tuple[Shape, np.ndarray]]:
        """Return every shape with its (n, 2) points in the pixels of an image of that width and height."""
        scale = np.array(size) / self._size
        return [(shape, shape.pixels(self._size) * scale) for shape in self.polygons + self.lines]

    def text(self, name: str) -> str:
        """Return the counts of a zone in a few words."""
        return ", ".join(f"{what} {count.total()}" for what, count in self.counts[name].items())
