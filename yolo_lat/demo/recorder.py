"""The writing of a run, part by part."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from yolo_lat.demo.records import FrameResult
from yolo_lat.demo.run_folder import Part, RunFolder
from yolo_lat.demo.video_writer import VideoWriter
from yolo_lat.drawing import save_picture


@dataclass
class _Open:
    """A part under work."""

    lines: TextIO
    video: VideoWriter | None
    start_s: float
    frames: int = 0


class Recorder:
    """Append frames to a run folder, in parts of a fixed number of frames.

    Args:
        folder: where to.
        part_frames: frames of a part.
        rate: frames a second, a hint to the encoder.
        pictures: write each frame as a picture of its own, in `pictures/`, instead of a video.
    """

    def __init__(self, folder: RunFolder, part_frames: int, rate: float, pictures: bool = False) -> None:
        self._folder, self._length, self._rate, self._pictures = folder, part_frames, rate, pictures
        first = next(folder.records(), None)
        self._size: tuple[int, int] | None = tuple(first["size"]) if first else None
        self._number = sum(1 for _ in folder.parts())
        self._part: _Open | None = None

    def add(self, result: FrameResult, line: str, drawn: np.ndarray, dropped: int) -> None:
        """Write a picture and its line; complete the part where it is full."""
        frame = result.frame
        self._size = self._size or frame.size
        if self._part is None:
            self._part = self._begin(self._size, frame.time_s)
        self._part.lines.write(line + "\n")
        if self._part.video:
            self._part.video.write(drawn, frame.time_s)
        else:
            save_picture(self._folder.path / "pictures" / f"{frame.index:05d}-{Path(frame.name).stem}.jpg", drawn)
        self._part.frames += 1
        if self._part.frames == self._length:
            self.close(result, dropped)

    def close(self, last: FrameResult | None, dropped: int) -> None:
        """Complete the part under work, however short; `last` is the last frame in it."""
        part, self._part = self._part, None
        if part is None or last is None:
            return
        part.lines.close()
        if part.video:
            part.video.close()
        whole, index = part.frames == self._length, last.frame.index
        facts = Part(part.frames, index + 1, part.start_s, whole, last.state, last.faults, dropped)
        self._folder.complete_part(self._number, facts)
        self._number += 1

    def _begin(self, size: tuple[int, int], start_s: float) -> _Open:
        lines = self._folder.part(self._number, "jsonl.partial").open("w", encoding="utf-8")
        path = self._folder.part(self._number, "mp4.partial")
        return _Open(lines, None if self._pictures else VideoWriter(path, size, self._rate), start_s)
