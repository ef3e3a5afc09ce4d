"""See what training sees: samples after mosaic, mixup, colour changes, flips and augmentations, on one picture."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from ultralytics.cfg import get_cfg

from yolo_lat.data.augment import check_augmentations
from yolo_lat.data.dataset import LatDataset, build_dataset
from yolo_lat.data.reader import read_split
from yolo_lat.data.registry import load_dataset
from yolo_lat.drawing import class_colour, contact_sheet, draw_boxes, fit, picture_path, save_picture
from yolo_lat.errors import UserError

_TILE = 320  # pixels
_MOST = 400  # samples; the picture then has 20 by 20 tiles, 6500 pixels each way
_STRIDE = 32


def preview(
    data: str | Path,
    samples: int = 16,
    seed: int = 0,
    imgsz: int | None = None,
    recipe: Mapping[str, Any] | None = None,
    split: str = "train",
    file: str | Path = "preview.jpg",
) -> Path:
    """Draw samples as training would see them, with boxes and class names, and write them as one picture.

    Args:
        data: data YAML, or the name of a data set.
        samples: how many, from 1 to 400; images repeat, differently augmented, where there are fewer.
        seed: the same one gives the same picture.
        imgsz: side of the training images in pixels; default: the recipe's, or 640.
        recipe: training arguments such as `mosaic`, `mixup`, `hsv_h`, `fliplr`, `augmentations`; others have
            Ultralytics' defaults.
        split: whose images.
        file: ends in .jpg, .jpeg, .png or .webp.

    Returns:
        The path of the picture.

    Raises:
        UserError: data or a recipe that cannot be used, or no picture can be written there.
    """
    path = picture_path(file)
    if not 1 <= samples <= _MOST:
        raise UserError(f"samples={samples}: give a number from 1 to {_MOST}")
    hyp = _arguments({**(recipe or {}), **({"imgsz": imgsz} if imgsz is not None else {})})
    labels = read_split(load_dataset(data), split)
    names = ("item",) if hyp.single_cls else labels.names
    with _seeded(seed):
        # As many images as a first batch, so that the buffer from which mosaics are made holds them all.
        dataset = build_dataset(labels, hyp, batch=samples, stride=_STRIDE, prefix=f"{split}: ")
        order = [int(i) for _ in range(samples // len(dataset) + 1) for i in np.random.permutation(len(dataset))]  # noqa: NPY002
        for index in order[:samples]:
            dataset.load_image(index)
        tiles = [_tile(dataset, index, names) for index in order[:samples]]
    titles = [Path(dataset.im_files[index]).name for index in order[:samples]]
    return save_picture(path, contact_sheet(tiles, titles, side=_TILE))


def _arguments(recipe: dict[str, Any]) -> Any:
    """Return Ultralytics' training arguments with those of a recipe, checked."""
    try:
        hyp = get_cfg(overrides=recipe)
    except (SyntaxError, TypeError, ValueError) as error:
        raise UserError(f"recipe: {' '.join(str(error).split())}; correct it") from error
    if not isinstance(hyp.imgsz, int) or hyp.imgsz < _STRIDE or hyp.imgsz % _STRIDE:
        raise UserError(f"imgsz={hyp.imgsz} is not a multiple of {_STRIDE}; use 640, for example")
    hyp.augmentations = check_augmentations(getattr(hyp, "augmentations", None), hyp.imgsz)
    hyp.cache = None  # a preview reads few images
    return hyp


def _tile(dataset: LatDataset, index: int, names: tuple[str, ...]) -> np.ndarray:
    """Draw one sample of the data set at the size of a tile, so that its labels stay legible."""
    sample = dataset[index]
    image, _ = fit(np.ascontiguousarray(sample["img"].numpy().transpose(1, 2, 0)[..., ::-1]), _TILE)
    height, width = image.shape[:2]
    centres, sizes = np.split(sample["bboxes"].numpy().reshape(-1, 4) * [width, height, width, height], 2, axis=1)
    boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1)
    class_ids = [int(class_id) for class_id in sample["cls"].numpy().ravel()]
    return draw_boxes(image, boxes, [names[i] for i in class_ids], [class_colour(i) for i in class_ids])


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the generators that augmentation draws from, and give the caller his own state back afterwards."""
    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
