"""Where frames come from: a video file, pictures, a camera or a stream."""

from __future__ import annotations

import glob
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Protocol
from urllib.parse import urlsplit

import av
import cv2
import numpy as np

from yolo_lat.data.images import check_pixels
from yolo_lat.demo.decoding import reason, upright, without_password
from yolo_lat.demo.frames import Faults, Frame
from yolo_lat.demo.live import camera, stream
from yolo_lat.demo.options import is_pattern
from yolo_lat.errors import UserError

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
VIDEOS = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".3gp"})
_STREAMS = frozenset({"rtsp", "rtsps", "rtmp", "http", "https", "udp", "tcp", "srt"})
_PICTURES_PER_SECOND = 1
_MOST_BREAKS = 1000  # places where a file cannot be read; beyond that it has no more to give


class Source(Protocol):
    """Something that yields frames.

    Attributes:
        name: what to call it.
        live: whether it goes on by itself, so that old frames are worth nothing.
        pictures: whether its frames are unrelated pictures.
        total: how many frames it has, as far as its file knows.
        rate: frames a second, as far as it knows.
        faults: what it survived.
    """

    name: str
    live: bool
    pictures: bool
    total: int | None
    rate: float
    faults: Faults

    def frames(self, stop: Event, start: int = 0) -> Iterator[Frame]:
        """Yield frames from number `start` on until there are no more or `stop` is set."""


class Pictures:
    """Picture files in the order of their names; a file that is no picture is counted and left out."""

    live, pictures, rate = False, True, float(_PICTURES_PER_SECOND)

    def __init__(self, files: list[Path], name: str, faults: Faults) -> None:
        self.files, self.name, self.faults = files, name, faults
        self.total: int | None = len(files)

    def frames(self, stop: Event, start: int = 0) -> Iterator[Frame]:
        """Yield one frame a file; its index is that of the file."""
        for index in range(start, len(self.files)):
            if stop.is_set():
                return
            file = self.files[index]
            try:
                check_pixels(file)
            except UserError as error:
                self.faults.add("unreadable pictures", f"{error}; left out")
                continue
            image = cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_COLOR) if file.stat().st_size else None
            if image is None:
                self.faults.add("unreadable pictures", f"{file}: no readable picture, left out")
                continue
            yield Frame(image, index, index / _PICTURES_PER_SECOND, time.monotonic(), file.name)


class VideoFile:
    """Every frame of a video file or of one behind an http address, with its presentation time.

    Packets that cannot be decoded are counted and left out. Frames that the decoder had to patch are counted too.

    Raises:
        UserError: no video that can be read.
    """

    live, pictures = False, False

    def __init__(self, place: str, name: str, faults: Faults, timeout_s: float) -> None:
        self.place, self.name, self.faults, self._timeout = place, name, faults, timeout_s
        with self._open() as container:
            video = container.streams.video[0]
            self.rate = float(video.average_rate or video.guessed_rate or 25)
            length = (video.duration or 0) * float(video.time_base or 0) or (container.duration or 0) / av.time_base
            self.total: int | None = video.frames or round(length * self.rate) or None

    def frames(self, stop: Event, start: int = 0) -> Iterator[Frame]:
        """Decode from the beginning, which alone gives the same frames each time, and yield those from `start` on."""
        origin_s, last_s = None, -1 / self.rate
        with self._open() as container:
            for index, picture in enumerate(self._decoded(container)):
                if stop.is_set():
                    return
                next_s = last_s + 1 / self.rate
                stamp_s = picture.time
                if stamp_s is None:
                    time_s = next_s
                else:
                    origin_s = stamp_s if origin_s is None else origin_s
                    time_s = stamp_s - origin_s
                    if time_s <= last_s:
                        self.faults.add("time jumps", f"{self.name}: its time goes back; the frames stay in order")
                        origin_s, time_s = stamp_s - next_s, next_s
                last_s = time_s
                if index >= start:
                    yield Frame(upright(picture), index, round(time_s, 6), time.monotonic())

    def _open(self) -> av.container.InputContainer:
        timeout = None if Path(self.place).is_file() else (self._timeout, self._timeout)
        try:
            container = av.open(self.place, timeout=timeout)
        except (OSError, av.FFmpegError) as error:
            raise UserError(f"source={self.name}: {reason(error)}; give a video file that a player opens") from error
        if not container.streams.video:
            container.close()
            raise UserError(f"source={self.name}: holds no video; give another file")
        container.streams.video[0].thread_type = "AUTO"
        return container

    def _decoded(self, container: av.container.InputContainer) -> Iterator[av.VideoFrame]:
        video, breaks = container.streams.video[0], 0
        packets = container.demux(video)
        while breaks < _MOST_BREAKS:
            try:
                packet = next(packets, None)
            except av.error.InvalidDataError as error:
                self._leave_out(error)
                packets, breaks = container.demux(video), breaks + 1
                continue
            except (OSError, av.FFmpegError) as error:
                self.faults.add("read errors", f"{self.name}: {reason(error)}; the video ends here")
                return
            if packet is None:
                return
            try:
                pictures = packet.decode()
            except av.FFmpegError as error:
                self._leave_out(error)
                continue
            for picture in pictures:
                if picture.is_corrupt:
                    self.faults.add("damaged frames", f"{self.name}: damaged frames, patched by the decoder")
                yield picture

    def _leave_out(self, error: av.FFmpegError) -> None:
        self.faults.add("corrupt packets", f"{self.name}: corrupt packets ({reason(error)}), left out")


def open_source(source: str | int, faults: Faults, timeout_s: float = 10, retry_s: float = 300) -> Source:
    """Open a camera number, a video, a picture, a folder of pictures, a pattern such as `shots/*.jpg`, or an address.

    Args:
        source: what the user wrote.
        faults: where to count and tell what goes wrong.
        timeout_s: seconds without a frame after which a live source is opened again.
        retry_s: seconds to keep trying to open it again.

    Raises:
        UserError: nothing there, or nothing that can be read.
    """
    text = str(source)
    if text.isdecimal():
        return camera(int(text), faults, retry_s)
    try:
        address = urlsplit(text)
    except ValueError as error:
        raise UserError(f"source={text}: no address ({error}); correct it, as in rtsp://host/name") from error
    if address.scheme in _STREAMS and address.netloc:
        if address.scheme in {"http", "https"} and Path(address.path).suffix.lower() in VIDEOS:
            return VideoFile(text, without_password(text), faults, timeout_s)
        return stream(text, faults, timeout_s, retry_s)
    path = Path(text)
    if path.is_file():
        if path.suffix.lower() in PICTURES:
            return Pictures([path], text, faults)
        return VideoFile(text, text, faults, timeout_s)
    if path.is_dir():
        files, place = sorted(path.iterdir()), "the folder"
    elif is_pattern(text):
        files = sorted(map(Path, glob.glob(text, recursive=True)))  # noqa: PTH207 - Path.glob takes no full paths
        place = "the pattern"
    else:
        raise UserError(
            f"source={text}: no such file or folder; give a video, a picture, a folder, a pattern, a camera number or "
            "an address such as rtsp://host/name"
        )
    pictures = [file for file in files if file.suffix.lower() in PICTURES and file.is_file()]
    if not pictures:
        raise UserError(f"source={text}: {place} has no pictures; their names end in {', '.join(sorted(PICTURES))}")
    return Pictures(pictures, text, faults)
