"""What the demo draws over a frame: boxes, trails, zones with their counts, and how fast it runs."""

from __future__ import annotations

from collections import deque

import cv2
import numpy as np

from yolo_lat.demo.records import FrameResult
from yolo_lat.demo.zones import Zones
from yolo_lat.drawing import class_colour, draw_boxes

_TRAIL = 40  # points
_LINE_COLOUR, _AREA_COLOUR = (80, 220, 255), (255, 200, 80)
_TEXT_COLOUR, _FONT = (240, 240, 240), cv2.FONT_HERSHEY_SIMPLEX


class Overlay:
    """Draw results onto copies of their frames, in the order of the frames.

    Attributes:
        show_tracks: whether numbers and trails are drawn.
        zones: lines and areas to draw, with their counts.
    """

    def __init__(self) -> None:
        self.zones: Zones | None = None
        self.show_tracks = True
        self._trails: dict[int, deque[tuple[int, int]]] = {}
        self._size = (0, 0)

    def follow(self, boxes_xyxy: np.ndarray, track_ids: np.ndarray, size: tuple[int, int]) -> None:
        """Remember where the objects of a frame of that width and height are, for their trails."""
        if size != self._size:
            self._trails, self._size = {}, size
        middle = ((boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2).round().astype(int).tolist()
        seen = {number: (x, y) for number, (x, y) in zip(track_ids.tolist(), middle, strict=True) if number >= 0}
        for number, trail in list(self._trails.items()):
            if number not in seen:
                trail.popleft()  # the trail of an object that left runs out
                if not trail:
                    del self._trails[number]
        for number, point in seen.items():
            self._trails.setdefault(number, deque(maxlen=_TRAIL)).append(point)

    def draw(self, result: FrameResult, status: list[str]) -> np.ndarray:
        """Return a copy of the frame with everything on it.

        Args:
            result: what was found; `follow` has been called for it.
            status: lines for the panel in the top left corner, ASCII.
        """
        found, ids = result.detections, result.track_ids.tolist()
        canvas = result.frame.image_bgr.copy()
        thickness = max(round(max(canvas.shape) / 400), 1)
        if self.zones:
            canvas = self._draw_zones(canvas, self.zones, thickness)
        colours = [class_colour(class_id) for class_id in found.class_ids.tolist()]
        if self.show_tracks:
            for number, colour in zip(ids, colours, strict=True):
                if len(trail := self._trails.get(number, ())) > 1:
                    cv2.polylines(canvas, [np.array(trail, np.int32)], False, colour, thickness, cv2.LINE_AA)
        labels = [
            f"{name} {score:.2f}" + (f" #{number}" if number >= 0 and self.show_tracks else "")
            for name, score, number in zip(result.names(), found.scores, ids, strict=True)
        ]
        canvas = draw_boxes(canvas, found.boxes_xyxy[::-1], labels[::-1], colours[::-1])
        _draw_status(canvas, status)
        return canvas

    def _draw_zones(self, canvas: np.ndarray, zones: Zones, thickness: int) -> np.ndarray:
        size = canvas.shape[1], canvas.shape[0]
        shades = canvas.copy()
        places, labels, colours = [], [], []
        for shape, points in zones.outlines(size):
            corners = points.round().astype(np.int32)
            is_line = len(corners) == 2
            colour = _LINE_COLOUR if is_line else _AREA_COLOUR
            if not is_line:
                cv2.fillPoly(shades, [corners], colour)
            cv2.polylines(canvas, [corners], not is_line, colour, 2 * thickness, cv2.LINE_AA)
            cv2.polylines(shades, [corners], not is_line, colour, 2 * thickness, cv2.LINE_AA)
            if is_line:
                _draw_way_in(canvas, points, colour, thickness)
            x, y = corners.mean(axis=0).round().tolist() if is_line else corners[corners[:, 1].argmin()].tolist()
            places.append([x, y, x, y])
            labels.append(f"{shape.name}: {zones.text(shape.name)}")
            colours.append(colour)
        canvas = cv2.addWeighted(canvas, 0.85, shades, 0.15, 0)
        return draw_boxes(canvas, np.array(places), labels, colours)


def _draw_way_in(canvas: np.ndarray, line: np.ndarray, colour: tuple[int, int, int], thickness: int) -> None:
    """Draw an arrow from the middle of a (2, 2) line to the side that counts as in."""
    along = line[1] - line[0]
    aside = np.array([along[1], -along[0]]) / np.hypot(*along)  # left of someone who walks along, as y points down
    start = line.mean(axis=0) - along * 0.08
    end = start + aside * 0.05 * max(canvas.shape)
    tail, tip = (point.round().astype(int).tolist() for point in (start, end))
    cv2.arrowedLine(canvas, tail, tip, colour, 2 * thickness, cv2.LINE_AA, tipLength=0.4)


def _draw_status(canvas: np.ndarray, lines: list[str]) -> None:
    """Write lines on a darkened panel, in place."""
    if not lines:
        return
    scale = max(max(canvas.shape) / 1600, 0.4)
    sizes = [cv2.getTextSize(line, _FONT, scale, 1)[0] for line in lines]
    step = round(1.7 * sizes[0][1])
    width, height = max(size[0] for size in sizes) + step, step * len(lines) + step // 2
    panel = canvas[:height, :width]
    panel[:] = panel // 3
    for row, line in enumerate(lines):
        cv2.putText(canvas, line, (step // 2, step * (row + 1)), _FONT, scale, _TEXT_COLOUR, 1, cv2.LINE_AA)
