"""The third stage of the demo: count, draw, write and show the results, in the order of the frames."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from yolo_lat.demo.frames import Faults
from yolo_lat.demo.overlay import Overlay
from yolo_lat.demo.pipeline import Controls
from yolo_lat.demo.recorder import Recorder
from yolo_lat.demo.records import FrameResult, arrays, to_line
from yolo_lat.demo.stats import Stats
from yolo_lat.demo.window import Window
from yolo_lat.demo.zones import Shape, Zones
from yolo_lat.drawing import save_picture

_PAUSE_S = 0.1  # a longer wait at the window is one that the user wanted


class Output:
    """Take the results of a pipeline one after another.

    Args:
        shapes: lines and polygons to count at.
        controls: what the keys have set.
        faults: what the source survived, for the status lines.
        recorder: writes pictures and lines.
        window: shows the pictures.
        paced: show frames no faster than their presentation times.
        screenshots: where to write a picture that the user asks for.
        tell: takes one sentence for the user.

    Attributes:
        dropped_before: frames dropped before a run that goes on.
        dropped: frames dropped altogether.
        stats: how fast it went.
        frames: frames of the whole run, with those before it went on.
        last: the latest result.
    """

    def __init__(
        self,
        shapes: tuple[list[Shape], list[Shape]] | None,
        controls: Controls,
        faults: Faults,
        recorder: Recorder | None,
        window: Window | None,
        paced: bool,
        screenshots: Path,
        tell: Callable[[str], None],
    ) -> None:
        self._shapes, self._controls, self._faults, self._recorder = shapes, controls, faults, recorder
        self._window, self._paced, self._screenshots, self._tell = window, paced, screenshots, tell
        self._overlay = Overlay()
        self._names: dict[int, str] = {}
        self.zones: Zones | None = None
        self.stats, self.frames, self.dropped, self.dropped_before = Stats(), 0, 0, 0
        self.last: FrameResult | None = None
        self._first_shown: tuple[float, float] | None = None

    def replay(self, record: dict[str, Any]) -> None:
        """Take a frame that was recorded before the run went on: count it, and remember it for the trails."""
        boxes, class_ids, track_ids = arrays(record)
        width, height = record["size"]
        if self._shapes:
            self._zones_for(self._shapes, (width, height)).update(boxes, class_ids, track_ids, (width, height))
        self._overlay.follow(boxes, track_ids, (width, height))
        self._names |= dict(zip(record["class_ids"], record["names"], strict=True))
        self.frames += 1

    def take(self, result: FrameResult, dropped: int) -> None:
        """Count, draw, write and show a result; `dropped` frames gave way to newer ones so far."""
        began, frame, found = time.perf_counter(), result.frame, result.detections
        self.last, self.dropped = result, self.dropped_before + dropped
        self._names |= dict(zip(found.class_ids.tolist(), result.names(), strict=True))
        events = []
        if self._shapes:
            zones = self._zones_for(self._shapes, frame.size)
            events = zones.update(found.boxes_xyxy, found.class_ids, result.track_ids, frame.size)
        self._overlay.follow(found.boxes_xyxy, result.track_ids, frame.size)
        delay_s = None
        if self._window or self._recorder:
            self._overlay.show_tracks = self._controls.tracks
            drawn = self._overlay.draw(result, self.status())
        write_ms = 1e3 * (time.perf_counter() - began)
        if self._window:
            early_s = self._early_s(frame.time_s)
            delay_s = time.monotonic() + early_s - frame.captured_s
            shown_s = time.monotonic()
            wanted = self._window.show(drawn, early_s)
            if time.monotonic() - shown_s > early_s + _PAUSE_S:
                self._first_shown = None  # what a pause took is not caught up with
            if wanted:
                file = save_picture(self._screenshots / f"{frame.index:06d}.png", drawn)
                self._tell(f"screenshot: {file}")
        began = time.perf_counter()
        if self._recorder:
            self._recorder.add(result, to_line(result, events), drawn, self.dropped)
        self.frames += 1
        delay_s = time.monotonic() - frame.captured_s if delay_s is None else delay_s
        self.stats.add(result.read_ms, result.detect_ms, write_ms + 1e3 * (time.perf_counter() - began), delay_s)

    def status(self) -> list[str]:
        """Return the lines of the panel in the picture."""
        stages = "  ".join(f"{stage} {value:.1f}" for stage, value in self.stats.recent_ms().items())
        counts = {"dropped": self.dropped} | self._faults.counts
        troubles = "".join(f"  {kind} {count}" for kind, count in counts.items() if count)
        return [f"{self.stats.fps:.1f} FPS  {stages} ms", f"threshold {self._controls.conf:.2f}{troubles}"]

    def close(self) -> None:
        """Complete what is being written."""
        if self._recorder:
            self._recorder.close(self.last, self.dropped)

    def summary(self, source: str) -> dict[str, Any]:
        """Return the contents of `summary.json`: frames, rates of this sitting, faults, and zones by class."""

        def named(counter: Counter[int]) -> dict[str, int]:
            return {self._names.get(class_id, str(class_id)): count for class_id, count in sorted(counter.items())}

        zones = self.zones.counts if self.zones else {}
        return {
            "source": source,
            **self.stats.whole(),
            "frames": self.frames,
            "dropped": self.dropped,
            "delay_ms": self.stats.delays_ms(),
            "faults": dict(self._faults.counts),
            "zones": {zone: {what: named(c) for what, c in kinds.items()} for zone, kinds in zones.items()},
        }

    def _zones_for(self, shapes: tuple[list[Shape], list[Shape]], size: tuple[int, int]) -> Zones:
        """Return the zones, which the first frame gives their size."""
        if self.zones is None:
            self.zones = self._overlay.zones = Zones(*shapes, size)
        return self.zones

    def _early_s(self, time_s: float) -> float:
        """Return for how many seconds a frame is too early to be shown."""
        if not self._paced:
            return 0.0
        now = time.monotonic()
        if self._first_shown is None:
            self._first_shown = now, time_s
        return max(time_s - self._first_shown[1] - (now - self._first_shown[0]), 0.0)
