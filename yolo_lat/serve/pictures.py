"""From the bytes of a picture to its pixels; what is too large is refused by its header."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps

from yolo_lat.data.images import ENDINGS, TooManyPixelsError, open_image
from yolo_lat.serve.heads import broken, check_structure, format_of, webp_size
from yolo_lat.serve.refusal import RefusalError

# What Pillow's decoders raise.
_DECODING = (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError)


class Picture(NamedTuple):
    """A decoded picture, EXIF rotation applied.

    Attributes:
        image_bgr: (H, W, 3) uint8.
        format: JPEG, PNG, WEBP, BMP or TIFF.
    """

    image_bgr: np.ndarray
    format: str


def decode(content: bytes | bytearray, max_pixels: int) -> Picture:
    """Decode a picture as training and prediction do.

    Raises:
        RefusalError: 415 for what is none of the formats, 413 for too many pixels, by its header alone, and 400 for one
            that is damaged or cut off.
    """
    kind = format_of(content)
    check_structure(content, kind)
    width, height = _shown_size(content, kind, max_pixels)
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except (cv2.error, MemoryError) as error:
        raise broken(kind) from error
    if image is None or image.shape[:2] != (height, width):
        raise broken(kind)
    return Picture(image, kind)


def _shown_size(content: bytes | bytearray, kind: str, max_pixels: int) -> tuple[int, int]:
    """Return (width, height) with EXIF rotation applied, after checking that the picture is small enough and whole."""
    if kind == "WEBP":
        webp_size(content)  # refuses one that names none
    try:
        # Of a TIFF, OpenCV decodes the first page alone, and there may be many others to look at.
        with open_image(content, max_pixels, formats=[kind], all_pages=False) as image:
            if not content[-12:].rstrip(b"\0").endswith(ENDINGS.get(kind, b"\0")):
                image.load()
            width, height = image.size  # after loading, which turns a TIFF already
            turned = image.getexif().get(ImageOps.ExifTags.Base.Orientation) in (5, 6, 7, 8)
    except TooManyPixelsError:
        raise RefusalError(
            413, f"the picture has more than {max_pixels / 1e6:g} megapixels; send a smaller one"
        ) from None
    except (*_DECODING, TypeError, MemoryError) as error:
        raise broken(kind) from error
    return (height, width) if turned else (width, height)
