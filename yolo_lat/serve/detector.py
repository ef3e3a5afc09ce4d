"""The detector of a server: pictures of one batch may have thresholds of their own."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, cast

import numpy as np

from yolo_lat.deploy.detections import Detections
from yolo_lat.deploy.onnx_detector import MAX_BATCH, OnnxDetector
from yolo_lat.deploy.postprocess import Boxes
from yolo_lat.deploy.preprocess import PADDING_GREY, LetterboxResult, letterbox, unletterbox
from yolo_lat.deploy.session import ORT_ERRORS
from yolo_lat.errors import UserError
from yolo_lat.serve.settings import ServeSettings

_SIZES = (1, 2, 4, 8, 16)
_TRIES = 5
_UNABLE: tuple[type[Exception], ...] = (UserError, MemoryError, *ORT_ERRORS)


@dataclass(frozen=True)
class Thresholds:
    """What one request asks for; None for the server's own value."""

    conf: float | None = None
    iou: float | None = None
    max_det: int | None = None


class Frame(NamedTuple):
    """A picture in the network's input size, with what maps its boxes back and decides which are kept.

    Attributes:
        boxed: the letterboxed picture.
        height, width: pixels of the picture itself.
        thresholds: what its request asks for.
    """

    boxed: LetterboxResult
    height: int
    width: int
    thresholds: Thresholds


class ServedDetector(OnnxDetector):
    """An `OnnxDetector` in two steps, so that pictures are scaled by many threads and run together by one.

    Args:
        settings: of the server.

    Attributes:
        max_batch: most frames of one `detect`; as set, or fixed by the model, or else measured, see `_best_batch`.
        fixed_batch: the batch that the model is fixed to, if it is.
        provider: what ONNX Runtime runs the model on.
        takes_iou: whether boxes are suppressed here, by `iou`, rather than inside the model or not at all.

    Raises:
        UserError: as `OnnxDetector` does, or a `max_batch` beyond the batch that the model is fixed to.
    """

    def __init__(self, settings: ServeSettings) -> None:
        super().__init__(
            settings.model,
            settings.device,
            settings.conf,
            settings.iou,
            settings.max_det,
            settings.imgsz,
            settings.threads,
            max_batch=settings.max_batch or MAX_BATCH,
            box_vote=settings.box_vote,
        )
        self.fixed_batch: int | None = self._batch
        if self._batch and settings.max_batch and settings.max_batch > self._batch:
            raise UserError(
                f"max_batch={settings.max_batch} does not fit {settings.model}, whose batch is fixed at "
                f"{self._batch}; leave max_batch out or export with dynamic=true"
            )
        self.provider: str = self._session.get_providers()[0]
        self._from_output = cast("partial[list[Boxes]]", self._decode)
        self.takes_iou = "iou" in self._from_output.keywords
        self.max_batch: int = settings.max_batch or self._batch or self._best_batch()

    def frame(self, image_bgr: np.ndarray, thresholds: Thresholds) -> Frame:
        """Scale an (H, W, 3) uint8 BGR picture for `detect`; any thread may."""
        height, width = image_bgr.shape[:2]
        return Frame(letterbox(image_bgr, self.imgsz), height, width, thresholds)

    def detect(self, frames: Sequence[Frame]) -> list[Detections]:
        """Return what is in each of at most `max_batch` frames, as `OnnxDetector` with its thresholds would."""
        output = self._result([frame.boxed.image for frame in frames])
        return [self._detections(frame, output[index : index + 1]) for index, frame in enumerate(frames)]

    def _best_batch(self) -> int:
        """Return the size of batch from which on larger ones save nothing; on CPUs that is often 1.

        Sizes are doubled while a picture's share of the time, the best of `_TRIES`, falls by a twentieth or more, and
        while the device can run them.
        """
        blank = self.frame(np.full((*self.imgsz, 3), PADDING_GREY, np.uint8), Thresholds())
        best, fastest = 1, math.inf
        for size in _SIZES:
            seconds = []
            try:
                for _ in range(_TRIES):
                    begun = time.perf_counter()
                    self.detect([blank] * size)
                    seconds.append(time.perf_counter() - begun)
            except _UNABLE:
                if size == 1:
                    raise
                break
            if min(seconds) / size > 0.95 * fastest:
                break
            best, fastest = size, min(seconds) / size
        return best

    def _detections(self, frame: Frame, output: np.ndarray) -> Detections:
        asked = {name: value for name, value in vars(frame.thresholds).items() if value is not None}
        (found,) = self._from_output(output, **asked)
        boxes = unletterbox(found.xyxy, frame.boxed.ratio, frame.boxed.pad, (frame.height, frame.width))
        return Detections(boxes, found.scores, found.class_ids, self.names)
