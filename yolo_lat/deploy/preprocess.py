"""From a BGR photo to the network's input and back: letterboxing, normalisation and the inverse mapping of boxes.

Results equal those of Ultralytics' predictor bit for bit, so a model scores the same here as where it was trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from yolo_lat.errors import UserError

PADDING_GREY = 114  # the border the networks were trained with


class LetterboxResult(NamedTuple):
    """An image fitted into the network's input size, with what `unletterbox` needs to undo it.

    Attributes:
        image: (h, w, 3) uint8 BGR.
        ratio: Input pixels per original pixel along (x, y); the two differ by the rounding to whole pixels.
        pad: Grey border at the (left, top), input pixels.
    """

    image: np.ndarray
    ratio: tuple[float, float]
    pad: tuple[int, int]


def check_image(image_bgr: Any, name: str = "image") -> None:
    """Raise `UserError` naming `name` unless `image_bgr` is a non-empty (H, W, 3) uint8 array."""
    if image_bgr is None:
        raise UserError(f"{name} is None; cv2.imread returns None for a missing or unreadable file, so check the path")
    if not isinstance(image_bgr, np.ndarray) or image_bgr.dtype != np.uint8:
        found = getattr(image_bgr, "dtype", type(image_bgr).__name__)
        raise UserError(f"{name} is {found}; pass a uint8 numpy array with values 0..255")
    if image_bgr.ndim != 3 or image_bgr.shape[2] != 3 or image_bgr.size == 0:
        raise UserError(f"{name} has shape {image_bgr.shape}; pass a non-empty (height, width, 3) BGR image")


def letterbox(image_bgr: np.ndarray, size: tuple[int, int], stride: int | None = None) -> LetterboxResult:
    """Resize an image to fit `size`, keeping its aspect ratio, and centre it on grey.

    Args:
        image_bgr: (H, W, 3) uint8.
        size: Height and width to fit into, pixels.
        stride: None fills `size` exactly; a stride pads each side only to the next multiple of it (counted from
            `size`), the minimum rectangle that Ultralytics calls `auto`.
    """
    height, width = image_bgr.shape[:2]
    scale = min(size[0] / height, size[1] / width)
    # A side of a very thin image would round to nothing.
    inner_h, inner_w = max(round(height * scale), 1), max(round(width * scale), 1)
    border_h, border_w = size[0] - inner_h, size[1] - inner_w
    if stride is not None:
        border_h, border_w = border_h % stride, border_w % stride
    # An odd border has its extra pixel at the bottom and at the right.
    top, left = border_h // 2, border_w // 2

    if (inner_h, inner_w) != (height, width):
        image_bgr = cv2.resize(image_bgr, (inner_w, inner_h), interpolation=cv2.INTER_LINEAR)
    padded = cv2.copyMakeBorder(
        image_bgr, top, border_h - top, left, border_w - left, cv2.BORDER_CONSTANT, value=(PADDING_GREY,) * 3
    )
    return LetterboxResult(padded, (inner_w / width, inner_h / height), (left, top))


def to_input(images_bgr: Sequence[np.ndarray]) -> np.ndarray:
    """Stack (h, w, 3) uint8 BGR images of one size into a (B, 3, h, w) float32 RGB array with values 0..1."""
    batch = np.empty((len(images_bgr), 3, *images_bgr[0].shape[:2]), np.float32)
    write_input(images_bgr, batch)
    return batch


def write_input(images_bgr: Sequence[np.ndarray], batch: np.ndarray) -> None:
    """Write images into a network's input buffer, as its dtype says.

    Args:
        images_bgr: B images of (h, w, 3) uint8.
        batch: contiguous (B, 3, h, w) float32 or float16, which becomes RGB with values 0..1 (float16 is rounded from
            float32), or (B, h, w, 3) uint8, which becomes a copy.
    """
    if batch.dtype == np.uint8:
        np.stack(images_bgr, out=batch)
        return
    values = (np.arange(256, dtype=np.float32) / np.float32(255)).astype(batch.dtype)
    if batch.dtype == np.float16:
        values, batch = values.view(np.int16), batch.view(np.int16)  # OpenCV's tables hold no float16
    for image, planes in zip(images_bgr, batch, strict=True):
        for plane, channel in zip(planes, reversed(cv2.split(image)), strict=True):
            cv2.LUT(channel, values, dst=plane)


def unletterbox(
    boxes_xyxy: np.ndarray, ratio: tuple[float, float], pad: tuple[int, int], original_hw: tuple[int, int]
) -> np.ndarray:
    """Map (n, 4) boxes from input pixels to pixels of the original image, clipped to it; returns float32."""
    shifted = boxes_xyxy.astype(np.float32) - np.asarray(pad * 2, np.float32)
    height, width = original_hw
    return (shifted / np.asarray(ratio * 2, np.float32)).clip(0, np.asarray((width, height) * 2, np.float32))
