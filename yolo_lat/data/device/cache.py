"""Images that live on the device: decoded once, resized for training, in one piece of memory with their boxes."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import psutil
import torch
from torch import Tensor
from ultralytics.utils import LOGGER, colorstr
from ultralytics.utils.patches import imread

from yolo_lat.data.dataset import training_label
from yolo_lat.data.images import image_size
from yolo_lat.data.labels import DetectionSplit, ImageLabels
from yolo_lat.errors import UserError
from yolo_lat.progress import show_progress

USABLE = 0.8  # of the free memory; the rest is left to the model
_NAMED = 20  # broken images that an error names


@dataclass(frozen=True)
class DeviceCache:
    """The images and boxes of a split; every tensor is on `device`, except the pixels where `spilled`.

    Attributes:
        imgsz: long side of every image, pixels.
        device: where batches are made.
        spilled: whether the pixels are in host memory because the device's does not hold them.
        pixels: (bytes,) uint8, image after image, each row by row in BGR.
        offsets: (n,) int64, where in `pixels` an image begins.
        heights, widths: (n,) int32 pixels, as resized.
        boxes: (m, 4) float32 x1 y1 x2 y2, pixels of the resized image.
        classes: (m,) int64.
        starts, counts: (n,) int64, the rows of `boxes` that belong to an image.
        paths: the image files.
        shapes, original_shapes: (n, 2) int64 height and width, resized and as in the file, in host memory.
        box_counts: (n,) int64, `counts` in host memory.
    """

    imgsz: int
    device: torch.device
    spilled: bool
    pixels: Tensor
    offsets: Tensor
    heights: Tensor
    widths: Tensor
    boxes: Tensor
    classes: Tensor
    starts: Tensor
    counts: Tensor
    paths: Sequence[Path]
    shapes: np.ndarray
    original_shapes: np.ndarray
    box_counts: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def most_boxes(self) -> int:
        """Return the largest number of boxes in an image."""
        return int(self.box_counts.max(initial=0))


def build_cache(
    split: DetectionSplit,
    imgsz: int,
    device: torch.device | str,
    *,
    budget: int | None = None,
    spill: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> DeviceCache:
    """Decode every image of a split into the device's memory, with the boxes that training takes from it.

    An image that its decoder completes in silence although bytes in its middle are damaged is not found here; a full
    check of the data set finds it.

    Args:
        split: images and labels.
        imgsz: long side that images are resized to, pixels.
        device: where batches are to be made.
        budget: bytes of memory that pixels may take; `USABLE` of what is free by default.
        spill: keep pixels in host memory, page-locked for CUDA, if they do not fit into `budget` on the device.
        workers: threads that decode; as many as there are cores by default.
        progress: show a progress bar.

    Raises:
        UserError: no images, not enough memory, which is known before anything is decoded, or broken images, all of
            them found before it is raised.
    """
    device = torch.device(device)
    if not split.images:
        raise UserError(f"{split.name}: holds no image; correct the path in the data YAML")
    original = np.array([(image.height, image.width) for image in split.images], dtype=np.int64)
    shapes = np.array([resized_shape(height, width, imgsz) for height, width in original.tolist()], dtype=np.int64)
    ends = np.cumsum(shapes.prod(axis=1) * 3)
    offsets = np.concatenate([[0], ends[:-1]])
    spilled = _spills(split, imgsz, int(ends[-1]), device, budget, spill)

    place = torch.device("cpu") if spilled else device
    pixels = torch.empty(int(ends[-1]), dtype=torch.uint8, device=place, pin_memory=spilled and device.type == "cuda")
    _fill(pixels, split, offsets, shapes, workers or os.cpu_count() or 1, progress)

    labels = [training_label(image) for image in split.images]
    rows = [_pixel_boxes(label["bboxes"], shape) for label, shape in zip(labels, shapes, strict=True)]
    counts = np.array([len(row) for row in rows], dtype=np.int64)
    return DeviceCache(
        imgsz,
        device,
        spilled,
        pixels,
        torch.from_numpy(offsets).to(device),
        torch.from_numpy(shapes[:, 0].astype(np.int32)).to(device),
        torch.from_numpy(shapes[:, 1].astype(np.int32)).to(device),
        torch.from_numpy(np.concatenate(rows)).to(device),
        torch.from_numpy(np.concatenate([label["cls"][:, 0] for label in labels]).astype(np.int64)).to(device),
        torch.from_numpy(np.cumsum(counts) - counts).to(device),
        torch.from_numpy(counts).to(device),
        [image.path for image in split.images],
        shapes,
        original,
        counts,
    )


def resized_shape(height: int, width: int, imgsz: int) -> tuple[int, int]:
    """Return (height, width) after the long side became `imgsz`, rounded as Ultralytics' `load_image` does."""
    ratio = imgsz / max(height, width)
    if ratio == 1:
        return height, width
    return min(math.ceil(height * ratio), imgsz), min(math.ceil(width * ratio), imgsz)


def _spills(
    split: DetectionSplit, imgsz: int, need: int, device: torch.device, budget: int | None, spill: bool
) -> bool:
    """Return whether `need` bytes go to host memory, or raise UserError if they fit nowhere they may go."""
    on_device = _free(device) if budget is None else budget
    if need <= on_device:
        return False
    what = f"{split.name}: {len(split.images)} images of {imgsz} pixels take {_gigabytes(need)}"
    remedy = "use a smaller imgsz or fewer images"
    if not spill:
        raise UserError(
            f"{what}, and {_gigabytes(on_device)} of the memory of {device} may be used for them; {remedy}, or spill "
            "them to host memory (spill=True)"
        )
    # PyTorch takes page-locked memory in powers of two.
    whole = 1 << (need - 1).bit_length() if device.type == "cuda" else need
    if whole > (in_host := _free(torch.device("cpu"))):
        raise UserError(
            f"{what}, {_gigabytes(whole)} when spilled to host memory, of which {_gigabytes(in_host)} may be used for "
            f"them; {remedy}"
        )
    LOGGER.info(
        f"{colorstr(split.name + ':')} {_gigabytes(need)} of pixels are kept in host memory, as {device} has "
        f"{_gigabytes(on_device)} for them"
    )
    return True


def _free(device: torch.device) -> int:
    """Return the bytes that may be used of a device's free memory."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return int(free * USABLE)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.3g} GB"


def _fill(
    pixels: Tensor,
    split: DetectionSplit,
    offsets: np.ndarray,
    shapes: np.ndarray,
    workers: int,
    progress: bool,
) -> None:
    """Decode every image into its place; all broken ones are named in one UserError."""

    def decode(number: int) -> str:
        start, (height, width) = int(offsets[number]), shapes[number].tolist()
        try:
            image = _read(split.images[number])
        except UserError as error:
            return str(error)
        if image.shape[:2] != (height, width):
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        pixels[start : start + image.size] = torch.from_numpy(np.ascontiguousarray(image).reshape(-1))
        return ""

    total, broken = len(split.images), []
    with ThreadPoolExecutor(workers) as pool, show_progress(f"{split.name}: decoding", total, progress) as advance:
        for answer in pool.map(decode, range(total)):
            if answer:
                broken.append(answer)
            advance()
    if broken:
        more = f"\n... and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
        named = "\n".join(broken[:_NAMED])
        raise UserError(f"{split.name}: {len(broken)} of {total} images cannot be used:\n{named}{more}")


def _read(image: ImageLabels) -> np.ndarray:
    """Return (height, width, 3) uint8 BGR as Ultralytics reads it, EXIF rotation applied."""
    image_size(image.path)
    try:
        pixels = imread(str(image.path))
    except (cv2.error, OSError, ValueError, MemoryError) as error:
        raise UserError(f"{image.path}: broken image ({error}); replace or remove it") from error
    if pixels is None or pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise UserError(f"{image.path}: broken image (cannot be decoded to colours); replace it or save it as PNG")
    height, width = pixels.shape[:2]
    if (height, width) != (image.height, image.width):
        raise UserError(
            f"{image.path}: broken image (it should have {image.width}x{image.height} pixels but decodes to "
            f"{width}x{height}); save it anew"
        )
    return pixels


def _pixel_boxes(xywh: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Turn (n, 4) float32 relative centre and size into float32 corners in pixels of `shape`."""
    half = xywh[:, 2:] / 2
    size = np.array([shape[1], shape[0]] * 2, dtype=np.float32)
    return np.concatenate([xywh[:, :2] - half, xywh[:, :2] + half], axis=1) * size
