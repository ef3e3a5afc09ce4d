"""H.264 in MP4 that ordinary players and browsers open, with the time of each frame kept."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

_CLOCK = 90_000  # ticks a second
# What OpenCV's conversion makes of sRGB: matrix of BT.601, and 16 to 235; players go by these marks.
_TAGS = {"colorspace": 6, "color_primaries": 1, "color_trc": 1, "color_range": 1}


class VideoWriter:
    """Write frames of any sizes at their presentation times.

    Every frame is fitted into the first one's size, with grey borders where the shape differs. There are no
    bidirectional frames, so packets have one order and files of one size can be joined by copying.

    Args:
        path: the file, whatever its suffix.
        size: width and height of the first frame.
        rate: frames a second, as a hint to the encoder.
    """

    def __init__(self, path: Path, size: tuple[int, int], rate: float) -> None:
        self.size = even(size)
        self._container = av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})
        self._stream = self._container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001))
        self._stream.width, self._stream.height = self.size
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = {"preset": "veryfast", "crf": "23", "bf": "0"}
        self._stream.time_base = self._stream.codec_context.time_base = Fraction(1, _CLOCK)
        for name, value in _TAGS.items():
            setattr(self._stream.codec_context, name, value)
        self._origin_s: float | None = None
        self._last, self._step = -1, round(_CLOCK / rate)

    def write(self, image_bgr: np.ndarray, time_s: float) -> None:
        """Add a (H, W, 3) uint8 BGR image; times count from that of the first."""
        self._origin_s = time_s if self._origin_s is None else self._origin_s
        ticks = max(round((time_s - self._origin_s) * _CLOCK), self._last + 1)
        if self._last >= 0:
            self._step = ticks - self._last
        self._last = ticks
        planes = cv2.cvtColor(fit_into(image_bgr, self.size), cv2.COLOR_BGR2YUV_I420)  # many times faster than swscale
        picture = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        picture.pts, picture.time_base, picture.duration = ticks, Fraction(1, _CLOCK), self._step
        self._container.mux(self._stream.encode(picture))

    def close(self) -> None:
        """Write what the encoder still holds and finish the file."""
        if self._last >= 0:
            self._container.mux(self._stream.encode())
        self._container.close()


def join_videos(parts: Sequence[tuple[Path, float]], target: Path) -> None:
    """Copy files that `VideoWriter` wrote in one size into one, each from its time in seconds on."""
    with av.open(str(target), "w", format="mp4", options={"movflags": "+faststart"}) as out:
        stream, last = None, -1
        for path, start_s in parts:
            with av.open(str(path)) as part:
                source = part.streams.video[0]
                if stream is None:
                    stream = out.add_stream_from_template(source)
                    stream.time_base = Fraction(1, _CLOCK)
                offset = round(start_s * _CLOCK)
                for packet in part.demux(source):
                    if packet.pts is None:  # the sign of the end
                        continue
                    ratio = packet.time_base * _CLOCK
                    ticks = max(round(packet.pts * ratio) + offset, last + 1)
                    packet.duration = max(round((packet.duration or 0) * ratio), 1)
                    packet.time_base, packet.pts, packet.dts, last = Fraction(1, _CLOCK), ticks, ticks, ticks
                    packet.stream = stream
                    out.mux(packet)


def even(size: tuple[int, int]) -> tuple[int, int]:
    """Return the size with each side rounded up to an even number, as yuv420p needs."""
    return size[0] + size[0] % 2, size[1] + size[1] % 2


def fit_into(image_bgr: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return an image of width and height `size`: as it is, with its edge repeated, or scaled between grey borders."""
    height, width = image_bgr.shape[:2]
    if even((width, height)) == size:
        if (width, height) == size:
            return np.ascontiguousarray(image_bgr)
        return cv2.copyMakeBorder(image_bgr, 0, size[1] - height, 0, size[0] - width, cv2.BORDER_REPLICATE)
    scale = min(size[0] / width, size[1] / height)
    inner = max(round(width * scale), 1), max(round(height * scale), 1)
    left, top = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    canvas = np.full((size[1], size[0], 3), 114, np.uint8)
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    canvas[top : top + inner[1], left : left + inner[0]] = cv2.resize(image_bgr, inner, interpolation=way)
    return canvas
