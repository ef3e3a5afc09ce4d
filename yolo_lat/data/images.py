"""Image files: which ones there are, how large they are, and whether they are whole."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from yolo_lat.errors import UserError

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_ENDINGS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}


def list_images(sources: Iterable[Path]) -> list[Path]:
    """List image files, sorted: folders are searched to any depth, text files hold one path a line.

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
            except UnicodeDecodeError as error:
                raise UserError(f"{source}: neither an image nor a text file that lists images; correct it") from error
            files = [(source.parent / line.strip()) for line in lines if line.strip()]
        if not files:
            raise UserError(f"{source}: holds no image; supported are {', '.join(sorted(IMAGE_SUFFIXES))}")
        found += files
    return sorted(set(found))  # an image that two sources name counts once


def image_size(file: Path) -> tuple[int, int]:
    """Return (width, height) in pixels as the image is shown, EXIF rotation applied, after checking that it is whole.

    A file that ends as its format demands is taken as whole; any other is decoded in full to find out.

    Raises:
        UserError: missing, not an image, or truncated.
    """
    try:
        with Image.open(file) as image:
            width, height = image.size
            turned = image.getexif().get(ImageOps.ExifTags.Base.Orientation, 1) >= 5
            with file.open("rb") as stream:
                stream.seek(max(file.stat().st_size - 12, 0))
                ending = stream.read().rstrip(b"\0")
            if not ending.endswith(_ENDINGS.get(image.format or "", b"\0")):
                image.load()
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such image; correct the path") from error
    except ImportError as error:  # Ultralytics replaces Image.open, and asks for a HEIF reader when all others fail
        raise UserError(f"{file}: broken image (unknown format); replace or remove it") from error
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{file}: broken image ({error}); replace or remove it") from error
    return (height, width) if turned else (width, height)
