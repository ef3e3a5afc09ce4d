"""Sources that go on by themselves: cameras and streams, opened again when they break."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from threading import Event
from typing import Protocol

import av
import cv2
import numpy as np

from yolo_lat.demo.decoding import reason, upright, without_password
from yolo_lat.demo.frames import Faults, Frame
from yolo_lat.errors import UserError

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 8.0
_TOLD_LOSSES = 20
# Little buffering at the start, and none of packets out of order: what counts is the newest frame.
_OPTIONS = {"rtsp_transport": "tcp", "fflags": "nobuffer", "analyzeduration": "1000000"}


class LostError(Exception):
    """A camera or stream gave no frame; the message says why."""


class Connection(Protocol):
    """An open camera or stream."""

    def read(self) -> np.ndarray:
        """Wait for the next (H, W, 3) uint8 BGR image.

        Raises:
            LostError: there is none.
        """

    def close(self) -> None:
        """Let go of the device or the connection."""


class LiveSource:
    """Frames of a camera or stream, numbered and timed as they arrive.

    A lost connection is counted, the first twenty are told, and each is opened again after pauses that double from a
    quarter of a second to eight seconds.

    Args:
        name: what to call it.
        connect: opens it, or raises LostError.
        faults: where to count and tell what goes wrong.
        retry_s: seconds to keep trying before the run ends.

    Raises:
        UserError: it cannot be opened at all.
    """

    live, pictures, rate = True, False, 30.0
    total: int | None = None

    def __init__(self, name: str, connect: Callable[[], Connection], faults: Faults, retry_s: float) -> None:
        self.name, self.faults, self._connect, self._retry = name, faults, connect, retry_s
        try:
            self._connection: Connection | None = connect()
        except LostError as error:
            raise UserError(f"source={name}: {error}; check the address or number and that it is on") from error

    def frames(self, stop: Event, start: int = 0) -> Iterator[Frame]:
        """Yield frames as they come until `stop` is set.

        Raises:
            UserError: lost, and not back in time.
        """
        index, began_s = start, time.monotonic()
        try:
            while not stop.is_set():
                try:
                    if self._connection is None:
                        self._connection = self._connect()
                    image = self._connection.read()
                except LostError as error:
                    self._reopen(str(error), stop)
                    continue
                now = time.monotonic()
                yield Frame(image, index, round(now - began_s, 6), now)
                index += 1
        finally:
            self._close()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _reopen(self, why: str, stop: Event) -> None:
        """Open the source again, however often that takes."""
        self._close()
        lost_s, pause_s, attempts = time.monotonic(), FIRST_PAUSE_S, 0
        self.faults.add("losses")
        told = self.faults.counts["losses"] <= _TOLD_LOSSES
        if told:
            last = ", further losses are only counted" if self.faults.counts["losses"] == _TOLD_LOSSES else ""
            self.faults.tell(f"{self.name}: lost ({why}), opening it again{last}")
        while not stop.wait(pause_s):
            attempts += 1
            try:
                self._connection = self._connect()
            except LostError as error:
                away_s = time.monotonic() - lost_s
                if away_s > self._retry:
                    raise UserError(
                        f"source={self.name}: not back after {away_s:.0f} s ({error}); check it, or wait longer with "
                        "retry="
                    ) from error
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                continue
            self.faults.add("reconnects")
            if told:
                self.faults.tell(f"{self.name}: back after {time.monotonic() - lost_s:.1f} s, {attempts} attempts")
            return


class _Camera:
    def __init__(self, number: int) -> None:
        missing = "no such camera, or another program uses it"
        try:
            with _quiet_opencv():
                self._capture = cv2.VideoCapture(number)
        except cv2.error as error:  # a number larger than OpenCV counts
            raise LostError(missing) from error
        if not self._capture.isOpened():
            raise LostError(missing)
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)

    def read(self) -> np.ndarray:
        done, image = self._capture.read()
        if not done:
            raise LostError("the camera gives no picture")
        return image

    def close(self) -> None:
        self._capture.release()


class _Stream:
    def __init__(self, address: str, faults: Faults, timeout_s: float) -> None:
        self._faults, self._name = faults, without_password(address)
        options = _OPTIONS if address.startswith("rtsp") else {k: v for k, v in _OPTIONS.items() if k[:4] != "rtsp"}
        try:
            self._container = av.open(address, options=options, timeout=(timeout_s, timeout_s))
        except (OSError, av.FFmpegError) as error:
            raise LostError(_why(error, timeout_s)) from error
        self._timeout = timeout_s
        if not self._container.streams.video:
            self._container.close()
            raise LostError("it holds no video")
        video = self._container.streams.video[0]
        video.thread_type = "SLICE"  # frame threads would hold back one frame each
        self._packets = self._container.demux(video)
        self._pictures: list[av.VideoFrame] = []

    def read(self) -> np.ndarray:
        while not self._pictures:
            try:
                packet = next(self._packets, None)
                if packet is None:
                    raise LostError("the stream ended")
                self._pictures = [picture for picture in packet.decode() if not self._damaged(picture)]
            except av.error.InvalidDataError:
                self._faults.add("corrupt packets", f"{self._name}: corrupt packets, left out")
            except (OSError, av.FFmpegError) as error:
                raise LostError(_why(error, self._timeout)) from error
        return upright(self._pictures.pop(0))

    def _damaged(self, picture: av.VideoFrame) -> bool:
        if picture.is_corrupt:
            self._faults.add("damaged frames", f"{self._name}: damaged frames, left out")
        return picture.is_corrupt

    def close(self) -> None:
        self._container.close()


def camera(number: int, faults: Faults, retry_s: float) -> LiveSource:
    """Return the frames of a camera of this machine."""
    return LiveSource(f"camera {number}", lambda: _Camera(number), faults, retry_s)


def stream(address: str, faults: Faults, timeout_s: float, retry_s: float) -> LiveSource:
    """Return the frames of an rtsp, http or similar address."""
    return LiveSource(without_password(address), lambda: _Stream(address, faults, timeout_s), faults, retry_s)


def _why(error: BaseException, timeout_s: float) -> str:
    silent = isinstance(error, av.error.ExitError | TimeoutError)
    return f"no answer for {timeout_s:g} s" if silent else reason(error)


@contextlib.contextmanager
def _quiet_opencv() -> Iterator[None]:
    """Keep OpenCV's warnings about a missing camera to itself; the error says it in one sentence."""
    level = cv2.utils.logging.getLogLevel() if hasattr(cv2, "utils") else None
    if level is not None:
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        if level is not None:
            cv2.utils.logging.setLogLevel(level)
