"""What the demo found in a frame, as objects in memory and as lines of JSON and CSV."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from yolo_lat.demo.frames import Frame
from yolo_lat.demo.zones import Event
from yolo_lat.deploy.detections import Detections

CSV_COLUMNS = ("frame", "time_s", "x1", "y1", "x2", "y2", "score", "class_id", "name", "track_id")


@dataclass(frozen=True, eq=False)
class FrameResult:
    """A frame with the objects in it.

    Attributes:
        frame: the picture.
        detections: what is above the threshold.
        track_ids: (n,) int64, -1 where an object has no number.
        read_ms: time to decode the frame, or to wait for it from a live source.
        detect_ms: time in the detector, its share of a batch, and in the tracker.
        state: of the tracker after this frame, where a part may end.
        faults: what the source had survived when it gave this frame, by kind; it reads ahead meanwhile.
    """

    frame: Frame
    detections: Detections
    track_ids: np.ndarray
    read_ms: float = 0.0
    detect_ms: float = 0.0
    state: dict[str, Any] | None = None
    faults: dict[str, int] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Return the class name of each object."""
        names = self.detections.names
        return [str(names.get(class_id, class_id)) for class_id in self.detections.class_ids.tolist()]


def to_line(result: FrameResult, events: list[Event]) -> str:
    """Return one line of `detections.jsonl`, without its end.

    Numbers are the shortest that read back as the same float32.
    """
    found, frame = result.detections, result.frame
    record: dict[str, Any] = {
        "frame": frame.index,
        "time_s": frame.time_s,
        "size": list(frame.size),
        "boxes": [[_short(value) for value in box] for box in found.boxes_xyxy],
        "scores": [_short(score) for score in found.scores],
        "class_ids": found.class_ids.tolist(),
        "names": result.names(),
        "track_ids": [None if number < 0 else number for number in result.track_ids.tolist()],
    }
    if frame.name:
        record["file"] = frame.name
    if events:
        record["events"] = [vars(event) for event in events]
    return json.dumps(record, ensure_ascii=False)


def arrays(record: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the boxes (n, 4), classes (n,) and track numbers (n,) of a line that was read back."""
    track_ids = [-1 if number is None else number for number in record["track_ids"]]
    return (
        np.array(record["boxes"], np.float32).reshape(-1, 4),
        np.array(record["class_ids"], np.int64),
        np.array(track_ids, np.int64),
    )


def write_csv(jsonl: Path, target: Path) -> None:
    """Write one row for each object of a `detections.jsonl`."""
    with jsonl.open(encoding="utf-8") as lines, target.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(CSV_COLUMNS)
        for record in map(json.loads, lines):
            columns = (record[key] for key in ("boxes", "scores", "class_ids", "names", "track_ids"))
            for box, score, class_id, name, track_id in zip(*columns, strict=True):
                writer.writerow([record["frame"], record["time_s"], *box, score, class_id, name, track_id])


def _short(value: np.floating[Any]) -> float:
    return float(str(value))
