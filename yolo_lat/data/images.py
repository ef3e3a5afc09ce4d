"""Image files: which ones there are, how large they are, and whether they are whole."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from yolo_lat.errors import UserError

_FORMATS = frozenset({"BMP", "JPEG", "MPO", "PNG", "TIFF", "WEBP"})  # MPO: JPEG with further pictures behind it
IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
# What Pillow's decoders raise.
_DECODING = (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError)
_ENDINGS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}


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
        UserError: missing, not an image, truncated, or of a kind that training would not see as it is.
    """
    try:
        with Image.open(file) as image:
            if image.format not in _FORMATS:
                raise UserError(f"{file}: holds {image.format}, whatever its suffix says; convert it to PNG or JPEG")
            with file.open("rb") as stream:
                stream.seek(max(file.stat().st_size - 12, 0))
                ending = stream.read().rstrip(b"\0")
            if not ending.endswith(_ENDINGS.get(image.format, b"\0")):
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


def _opencv_reads(file: Path) -> bool:
    try:
        return cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_COLOR) is not None
    except cv2.error:
        return False
