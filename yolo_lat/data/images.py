"""Image files: which ones there are, how large they are, and whether they are whole.

A few bytes can stand for a picture that fills the memory, so the pixels that a header names are counted before anything
is decoded, and refused above a limit: 178 megapixels, as in Pillow, or what YOLO_LAT_MAX_MEGAPIXELS says.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps

from yolo_lat.data.image_header import webp_size
from yolo_lat.errors import UserError

FORMATS = frozenset({"BMP", "JPEG", "MPO", "PNG", "TIFF", "WEBP"})  # MPO: JPEG with further pictures behind it
IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
# What Pillow's decoders raise.
_DECODING = (OSError, SyntaxError, ValueError, TypeError, LookupError, RuntimeError, Image.DecompressionBombError)
_LIMIT_VARIABLE, _LIMIT = "YOLO_LAT_MAX_MEGAPIXELS", 178
_HIGHEST_LIMIT = 1073  # OpenCV's own
_TILE_WIDTH, _TILE_HEIGHT = 322, 323  # tags of TIFF
_MOST_PAGES = 1000  # of a TIFF, all of which training decodes
ENDINGS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}


class TooManyPixelsError(Exception):
    """The header of an image names more pixels than are allowed."""


def list_images(sources: Iterable[Path]) -> list[Path]:
    """List image files, sorted: folders are searched to any depth, text files hold one path a line.

    In the ImageSets of Pascal VOC a line may be a bare name, such as 000005, of an image in JPEGImages.

    Raises:
        UserError: a source without a single image.
    """
    found: list[Path] = []
    for source in sources:
        if source.is_dir():
            files = [f for f in source.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES]
        elif source.suffix.lower() in IMAGE_SUFFIXES:
            files = [source]
        else:
            try:
                lines = source.read_text(encoding="utf-8-sig").split("\n")
            except (UnicodeDecodeError, OSError) as error:
                raise UserError(f"{source}: neither an image nor a text file that lists images; correct it") from error
            files = _listed(source, [line.strip() for line in lines if line.strip()])
        if not files:
            raise UserError(f"{source}: holds no image; supported are {', '.join(sorted(IMAGE_SUFFIXES))}")
        found += files
    return sorted(set(found))  # an image that two sources name counts once


def _listed(source: Path, lines: list[str]) -> list[Path]:
    if source.parent.parent.name != "ImageSets":
        return [source.parent / line for line in lines]
    folder = source.parent.parent.parent / "JPEGImages"
    by_name = {file.stem: file for file in folder.glob("*") if file.suffix.lower() in IMAGE_SUFFIXES}
    return [
        source.parent / line
        if Path(line).suffix.lower() in IMAGE_SUFFIXES
        else by_name.get(line, folder / f"{line}.jpg")
        for line in lines
    ]


def image_size(file: Path) -> tuple[int, int]:
    """Return (width, height) in pixels as the image is shown, EXIF rotation applied, after checking that it is whole.

    A file that ends as its format demands is taken as whole; any other is decoded in full to find out.

    Raises:
        UserError: missing, not an image, too large, truncated, or of a kind that training would not see as it is.
    """
    try:
        with _opened(file) as image:
            if image.format not in FORMATS:
                raise UserError(f"{file}: holds {image.format}, whatever its suffix says; convert it to PNG or JPEG")
            with file.open("rb") as stream:
                stream.seek(max(file.stat().st_size - 12, 0))
                ending = stream.read().rstrip(b"\0")
            if not ending.endswith(ENDINGS.get(image.format, b"\0")):
                image.load()
            width, height = image.size  # after loading, which turns a TIFF already
            turned = image.getexif().get(ImageOps.ExifTags.Base.Orientation) in (5, 6, 7, 8)
            if image.format == "TIFF" and not _opencv_reads(file):
                raise UserError(
                    f"{file}: a TIFF of mode {image.mode} that OpenCV cannot read; convert it to PNG or JPEG"
                )
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such image; correct the path") from error
    except ImportError as error:  # Ultralytics replaces Image.open, and asks for a HEIF reader when all others fail
        raise UserError(f"{file}: broken image (unknown format); replace or remove it") from error
    except _DECODING as error:
        raise UserError(f"{file}: broken image ({error}); replace or remove it") from error
    return (height, width) if turned else (width, height)


def check_pixels(file: Path) -> None:
    """Refuse an image whose header names more pixels than are allowed; what Pillow cannot read passes.

    Raises:
        UserError: too large.
    """
    try:
        _opened(file).close()
    except UserError:
        raise
    except (*_DECODING, ImportError, MemoryError):
        return


def open_image(
    source: Path | bytes | bytearray, most: float, formats: list[str] | None = None, all_pages: bool = True
) -> Image.Image:
    """Open an image, decode nothing, and refuse one of too many pixels; a tile of a TIFF counts whole.

    Args:
        source: a file, or what is in one.
        most: pixels that it may have.
        formats: names of Pillow's formats that it may have; all unless given.
        all_pages: count every page of a TIFF rather than its first alone.

    Raises:
        TooManyPixelsError: it has more.
        OSError, ...: what Pillow raises for what is no image.
    """
    if isinstance(source, Path):
        with source.open("rb") as stream:
            size = webp_size(stream.read(30))
    else:
        size = webp_size(source)
    if size is not None:  # Pillow takes memory for the whole of a WebP when it opens one
        _check_pixels(math.prod(size), most)
    try:
        image = Image.open(source if isinstance(source, Path) else io.BytesIO(source), formats=formats)
    except Image.DecompressionBombError as error:
        raise TooManyPixelsError from error
    try:
        _check_pixels(math.prod(image.size), most)
        if image.format == "TIFF":
            _check_pixels(_tiff_pixels(image, all_pages), most)
    except BaseException:
        image.close()
        raise
    return image


def _opened(file: Path) -> Image.Image:
    """Open an image file, decode nothing, and refuse one of too many pixels."""
    most = most_pixels()
    try:
        return open_image(file, most)
    except TooManyPixelsError:
        raise UserError(
            f"{file}: broken image, or one of more than {most / 1e6:g} megapixels; make it smaller, or allow more by "
            f"the environment variable {_LIMIT_VARIABLE}"
        ) from None


def most_pixels() -> float:
    """Return how many pixels an image may have, and let Pillow open as many.

    Raises:
        UserError: the environment sets no limit that can be.
    """
    text = os.environ.get(_LIMIT_VARIABLE)
    if text is None:
        return _LIMIT * 1e6
    if not text.isascii() or not text.isdigit() or not 0 < int(text) <= _HIGHEST_LIMIT:
        raise UserError(f"{_LIMIT_VARIABLE}={text}: must be a whole number from 1 to {_HIGHEST_LIMIT}")
    most = int(text) * 1e6
    if Image.MAX_IMAGE_PIXELS is not None:  # Pillow warns above this value and refuses above twice as many
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, math.ceil(most / 2))
    return most


def _check_pixels(pixels: float, most: float) -> None:
    if pixels > most:
        raise TooManyPixelsError


def _tiff_pixels(image: Any, all_pages: bool) -> float:
    """Return the pixels of the pages, each of which training decodes; a tile is decoded whole, however little shows."""
    pixels = 0.0
    for page in range(_MOST_PAGES):
        try:
            image.seek(page)
        except EOFError:
            image.seek(0)
            return pixels
        tile = image.tag_v2.get(_TILE_WIDTH, 0), image.tag_v2.get(_TILE_HEIGHT, 0)
        pixels += max(math.prod(image.size), math.prod(tile))
        if not all_pages:
            return pixels
    return math.inf


def _opencv_reads(file: Path) -> bool:
    try:
        return cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_COLOR) is not None
    except cv2.error:
        return False
