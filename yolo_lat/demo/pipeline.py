"""Reader and detector as two threads with bounded queues; who iterates over the results is the third stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from threading import Event, Thread
from types import TracebackType

import numpy as np

from yolo_lat.demo.channel import Channel
from yolo_lat.demo.detectors import Detector
from yolo_lat.demo.frames import Frame
from yolo_lat.demo.records import FrameResult
from yolo_lat.demo.sources import Source
from yolo_lat.demo.tracking import ByteTracker
from yolo_lat.deploy.detections import Detections

_JOIN_S = 3.0


@dataclass
class Controls:
    """What the keys have set.

    Attributes:
        conf: least score that is shown and recorded.
        lowest: least value of `conf`, what the detector itself leaves out.
        tracks: whether numbers and trails are drawn.
        paused: whether the picture stands still.
        quit: whether the user has had enough.
    """

    conf: float
    lowest: float = 0.05
    tracks: bool = True
    paused: bool = False
    quit: bool = False


class Pipeline:
    """Detect and follow objects in the frames of a source, while the caller draws and writes those before.

    A live source is always looked at where it is now: a frame that waits gives way to a newer one and is counted. Of
    other sources every frame is used, in batches.

    Args:
        source: the frames.
        detector: finds objects in a list of images.
        tracker: numbers them; None for none.
        controls: the threshold, which may change on the way.
        batch: images at once, of a source that is not live.
        start: number of the first frame.
        part: frames after each of which `FrameResult.state` is set; a multiple of `batch`.
        stop: set it to end at once; what has not come out by then is given up.

    Example:
        >>> with Pipeline(source, detector, ByteTracker(), Controls(0.25)) as pipeline:
        ...     for result in pipeline:
        ...         print(result.frame.index, result.names())
    """

    def __init__(
        self,
        source: Source,
        detector: Detector,
        tracker: ByteTracker | None,
        controls: Controls,
        batch: int = 1,
        start: int = 0,
        part: int | None = None,
        stop: Event | None = None,
    ) -> None:
        self.source, self._detector, self._tracker, self._controls = source, detector, tracker, controls
        self._batch, self._start, self._part = 1 if source.live else batch, start, part
        self.stop = stop or Event()
        self._frames: Channel[tuple[Frame, float, dict[str, int]]] = Channel(
            1 if source.live else 2 * batch, newest=source.live
        )
        self._results: Channel[FrameResult] = Channel(1 if source.live else 2 * batch)
        self._error: BaseException | None = None
        stages: tuple[tuple[str, Callable[[], None]], ...] = (("reader", self._read), ("detector", self._detect))
        self._threads = [Thread(target=self._guarded, args=(run,), name=name, daemon=True) for name, run in stages]

    @property
    def dropped(self) -> int:
        """Frames of a live source that gave way to newer ones."""
        return self._frames.dropped

    def __enter__(self) -> Pipeline:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop.set()
        self._frames.close()
        self._results.close()
        for thread in self._threads:
            thread.join(_JOIN_S)  # a read from a dead stream may take its whole time-out, and holds nothing of ours

    def __iter__(self) -> Iterator[FrameResult]:
        """Yield results in the order of the frames.

        Raises:
            Exception: what went wrong in another stage, after the results before it.
        """
        while not self._results.finished and not self.stop.is_set():
            # Not for ever: `stop` may be set, and on some systems a waiting lock holds up signals.
            yield from self._results.get(timeout=0.2)
        if self._error is not None:
            raise self._error

    def _guarded(self, run: Callable[[], None]) -> None:
        try:
            run()
        except BaseException as error:  # handed to the caller's thread
            self._error = self._error or error
        finally:
            self._frames.close()  # so that neither waits for the other
            if run == self._detect:
                self._results.close()

    def _read(self) -> None:
        frames = self.source.frames(self.stop, self._start)
        while True:
            began = time.perf_counter()
            frame = next(frames, None)
            if frame is None:
                return
            read_ms, faults = 1e3 * (time.perf_counter() - began), dict(self.source.faults.counts)
            if not self._frames.put((frame, read_ms, faults)):
                return

    def _detect(self) -> None:
        count = 0
        while taken := self._frames.get(self._batch):
            began = time.perf_counter()
            found = self._detector([frame.image_bgr for frame, _, _ in taken])
            share_ms = 1e3 * (time.perf_counter() - began) / len(taken)
            for (frame, read_ms, faults), detections in zip(taken, found, strict=True):
                count += 1
                ends_part = self._part is not None and count % self._part == 0
                result = self._follow(frame, detections, read_ms, share_ms, ends_part)
                if not self._results.put(replace(result, faults=faults)):
                    return

    def _follow(
        self, frame: Frame, found: Detections, read_ms: float, detect_ms: float, ends_part: bool
    ) -> FrameResult:
        began, conf = time.perf_counter(), self._controls.conf
        track_ids = np.full(len(found), -1, np.int64)
        if self._tracker:
            self._tracker.high_score = conf
            track_ids = self._tracker.update(found.boxes_xyxy, found.scores, frame.time_s)
        shown = found.scores > np.float32(conf)
        kept = Detections(found.boxes_xyxy[shown], found.scores[shown], found.class_ids[shown], found.names)
        detect_ms += 1e3 * (time.perf_counter() - began)
        state = self._tracker.state() if self._tracker and ends_part else None
        return FrameResult(frame, kept, track_ids[shown], read_ms, detect_ms, state)
