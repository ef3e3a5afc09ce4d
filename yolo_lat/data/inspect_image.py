"""A full look at one image: decoded to its last pixel, in a process that may die of it."""

from __future__ import annotations

import hashlib
import os
import pickle
import queue
import re
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

import cv2
import numpy as np
from PIL import Image, ImageOps

from yolo_lat.data.images import image_size
from yolo_lat.errors import UserError

THUMB = (16, 17)  # rows and columns: 16 x 16 differences of neighbours are the 256 bits of `copies.look_alikes`
_KINDS = {"1": "grey", "L": "grey", "LA": "transparent", "RGB": "colour", "RGBA": "transparent", "P": "palette"}
# Harmless chatter, such as libpng's about colour profiles, is not among these.
_COMPLAINT = re.compile(
    r"(Corrupt JPEG data.*|Premature end of JPEG.*|Inconsistent progression.*|Invalid SOS.*|Bogus .*"
    r"|(?<=libpng error: ).*|(?<=TIFF_Error ).*)"
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a full look at an image found.

    Attributes:
        width, height: pixels, EXIF rotation applied.
        kind: colour, grey, transparent, palette, 16-bit, or Pillow's name of another mode such as CMYK.
        format: Pillow's name of the file format, such as JPEG.
        turned: whether EXIF asks for rotation or mirroring.
        complaint: what the decoder said of corrupt data that it made up for; empty when it said nothing.
        digest: 16 bytes, blake2b of the decoded pixels, so a copy with other metadata has the same.
        thumb: THUMB grey levels, each the mean over its part of the image.
    """

    width: int
    height: int
    kind: str
    format: str
    turned: bool
    complaint: str
    digest: bytes
    thumb: bytes


def inspect(file: Path, complaints: Callable[[], str]) -> Facts:
    """Decode an image in full, with OpenCV as training does.

    Args:
        file: the image.
        complaints: returns what decoders wrote to standard error since it was called last; they report damage that
            they can hide nowhere else.

    Raises:
        UserError: missing, no image, broken, or of another size than its header says.
    """
    width, height = image_size(file)
    try:
        with Image.open(file) as image:
            deep = any(";16" in str(tile) for tile in image.tile) or image.mode.startswith("I")
            kind = "16-bit" if deep else _KINDS.get(image.mode, image.mode)
            turned = image.getexif().get(ImageOps.ExifTags.Base.Orientation, 1) != 1
            form = image.format or ""
        content = np.fromfile(file, np.uint8)
        complaints()
        pixels = cv2.imdecode(content, cv2.IMREAD_COLOR)
    except (OSError, SyntaxError, ValueError, MemoryError, cv2.error) as error:
        problem = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{file}: broken image ({problem}); replace or remove it") from error
    match = _COMPLAINT.search(complaints())
    complaint = match[0].strip() if match else ""
    if pixels is None:
        raise UserError(f"{file}: broken image ({complaint or 'cannot be decoded'}); replace or remove it")
    if pixels.shape[:2] != (height, width):
        raise UserError(
            f"{file}: broken image (its header says {width}x{height} pixels but it decodes to {pixels.shape[1]}x"
            f"{pixels.shape[0]}); save it anew"
        )
    digest = hashlib.blake2b(f"{width}x{height}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    grey = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    thumb = cv2.resize(grey, THUMB[::-1], interpolation=cv2.INTER_AREA)
    return Facts(width, height, kind, form, turned, complaint, digest.digest(), thumb.tobytes())


def serve() -> None:
    """Answer pickled paths on standard input with pickled `Facts`, or the text of a UserError, on standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process, without a traceback
    warnings.simplefilter("ignore")
    cv2.setNumThreads(1)
    with tempfile.TemporaryFile() as heard, os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(heard.fileno(), 1)
        os.dup2(heard.fileno(), 2)

        def complaints() -> str:
            heard.seek(0)
            text = heard.read().decode(errors="replace")
            heard.seek(0)
            heard.truncate()
            return text

        _send(answers, "ready")
        while True:
            try:
                file = pickle.load(sys.stdin.buffer)
            except EOFError:
                return
            answer: Facts | str
            try:
                answer = inspect(file, complaints)
            except UserError as error:
                answer = str(error)
            _send(answers, answer)


def _send(stream: IO[bytes] | None, message: object) -> None:
    stream = cast("IO[bytes]", stream)  # a pipe, as `_start` asks for
    pickle.dump(message, stream)
    stream.flush()


def _receive(stream: IO[bytes] | None) -> Any:
    return pickle.load(cast("IO[bytes]", stream))


class Inspectors:
    """Processes that inspect images; any thread may ask, and an image that kills a decoder is named like any other.

    A process of its own has a standard error of its own, where decoders report damage, so each report belongs to a
    known file.

    Args:
        workers: processes; as many as there are cores by default.
    """

    def __init__(self, workers: int | None = None) -> None:
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes] | None] = queue.SimpleQueue()
        self._workers = workers or os.cpu_count() or 1
        for _ in range(self._workers):
            self._idle.put(None)

    def __enter__(self) -> Inspectors:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for _ in range(self._workers):
            _stop(self._idle.get())

    def inspect(self, file: Path) -> Facts:
        """Return what `inspect` finds, waiting for an idle process.

        Raises:
            UserError: as `inspect` does, or the decoder did not survive the image.
        """
        process = self._idle.get()
        try:
            process = process or _start()
            try:
                _send(process.stdin, file)
                answer = _receive(process.stdout)
            except (EOFError, BrokenPipeError, pickle.UnpicklingError):
                _stop(process)
                process = None
                raise UserError(f"{file}: broken image (decoding it ended the process); replace or remove it") from None
        finally:
            self._idle.put(process)
        if isinstance(answer, str):
            raise UserError(answer)
        return answer


def _start() -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", f"from {__name__} import serve; serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        _receive(process.stdout)
    except EOFError:
        raise RuntimeError(f"{sys.executable} did not start; its own message is above") from None
    return process


def _stop(process: subprocess.Popen[bytes] | None) -> None:
    if process is not None:
        process.kill()
        process.communicate()
