"""What files and streams have in common when PyAV decodes them."""

from __future__ import annotations

from urllib.parse import urlsplit

import av
import numpy as np


def upright(picture: av.VideoFrame) -> np.ndarray:
    """Return a decoded frame as a (H, W, 3) uint8 BGR image, turned as its metadata say."""
    image = picture.to_ndarray(format="bgr24")
    turns = round(picture.rotation / 90) % 4  # the metadata count anticlockwise
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def reason(error: BaseException) -> str:
    """Return what an error of FFmpeg says, without its number and file name."""
    return str(getattr(error, "strerror", "") or error).strip().lower() or type(error).__name__


def without_password(address: str) -> str:
    """Return an address without the user and password in it, to be shown and written."""
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
