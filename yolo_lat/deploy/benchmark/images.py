"""The real pictures that every model sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from yolo_lat.data.images import check_pixels
from yolo_lat.deploy.preprocess import letterbox, to_input
from yolo_lat.errors import UserError

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
_MOST = 64  # pictures held in memory
_POOL_BYTES = 1 << 28
_POOL_MOST = 16


@dataclass(frozen=True)
class Pictures:
    """Decoded pictures, and where they are from.

    Attributes:
        images_bgr: (H, W, 3) uint8 each, of any sizes.
        origin: in words.
        seed: of the order.
    """

    images_bgr: tuple[np.ndarray, ...]
    origin: str
    seed: int

    @cached_property
    def boxed(self) -> dict[int, list[np.ndarray]]:
        """Pictures fitted into a square, by its side, filled as needed."""
        return {}

    def batches(self, batch: int, count: int) -> list[list[int]]:
        """Return `count` batches of picture numbers in random order; pictures repeat only where there are too few."""
        rng = np.random.default_rng(self.seed)
        total = len(self.images_bgr)
        rounds = -(-batch * count // total)
        order = np.concatenate([rng.permutation(total) for _ in range(rounds)])
        return order[: batch * count].reshape(count, batch).tolist()

    def inputs(self, shape: Sequence[int], dtype: np.dtype) -> list[np.ndarray]:
        """Return a small pool of different inputs for a network, as many as fit into 256 MB, at least two.

        Args:
            shape: (B, 3, side, side), or (B, side, side, 3) for a network that takes uint8 pixels.
            dtype: of the input.
        """
        batch, side = shape[0], shape[2]
        size = int(np.prod(shape)) * dtype.itemsize
        count = min(max(_POOL_BYTES // size, 2), _POOL_MOST)
        if side not in self.boxed:
            self.boxed[side] = [letterbox(image, (side, side)).image for image in self.images_bgr]
        frames = self.boxed[side]
        made = []
        for numbers in self.batches(batch, count):
            chosen = [frames[number] for number in numbers]
            made.append(np.stack(chosen) if dtype == np.uint8 else to_input(chosen).astype(dtype, copy=False))
        return made


def load_pictures(data: str | None, source: str | None, seed: int) -> Pictures:
    """Decode up to 64 pictures: of a folder, of a data set's validation split, or those that Ultralytics ships.

    Raises:
        UserError: a folder without pictures, a picture that cannot be read, or none at hand.
    """
    if source is not None:
        origin, files = source, _files(Path(source))
        if not files:
            raise UserError(f"source={source} is no folder with pictures ({', '.join(sorted(_SUFFIXES))}); give one")
    elif data is not None:
        from yolo_lat.data.reader import read_split
        from yolo_lat.data.registry import load_dataset

        split = read_split(load_dataset(data), "val", progress=False)
        origin, files = split.name, sorted(image.path for image in split.images)
    else:
        package = find_spec("ultralytics")
        files = _files(Path(package.origin).parent / "assets") if package and package.origin else []
        origin = "the pictures that Ultralytics ships"
        if not files:
            raise UserError("source= is needed here, a folder of pictures, since Ultralytics' are not installed")
    chosen = np.random.default_rng(seed).permutation(len(files))[:_MOST]
    images = []
    for file in (files[i] for i in sorted(chosen)):
        check_pixels(file)
        image = cv2.imread(str(file))
        if image is None:
            raise UserError(f"{file} cannot be read as a picture; remove or replace it")
        images.append(image)
    return Pictures(tuple(images), origin, seed)


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*") if file.suffix.lower() in _SUFFIXES)
