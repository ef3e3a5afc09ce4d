"""Small synthetic splits on disk, and Ultralytics' own transforms made to follow a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import torch
from ultralytics.cfg import get_cfg
from ultralytics.data.augment import CutMix, MixUp, Mosaic, RandomFlip, RandomHSV, RandomPerspective

from yolo_lat.data.dataset import LatDataset
from yolo_lat.data.device.cache import DeviceCache, build_cache
from yolo_lat.data.device.plan import Augment, Plan
from yolo_lat.data.labels import DetectionSplit, ImageLabels, image_labels

EVERYTHING = Augment(
    mosaic=0.7,
    mixup=0.5,
    cutmix=0.7,
    degrees=15,
    shear=5,
    perspective=0.0005,
    flipud=0.4,
    bgr=0.3,
    translate=0.2,
    hsv_h=0.1,
)


def write_split(
    folder: Path, count: int, seed: int = 0, most: int = 5, sides: tuple[int, int] = (40, 150)
) -> DetectionSplit:
    """Write smooth colourful PNGs of random sizes with up to `most` boxes of random colours, every fourth without."""
    rng, images = np.random.default_rng(seed), []
    for number in range(count):
        width, height = rng.integers(*sides, 2).tolist()
        coarse = rng.integers(0, 256, (height // 12 + 2, width // 12 + 2, 3), dtype=np.uint8)
        pixels = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
        boxes = []
        for _ in range(0 if number % 4 == 3 else rng.integers(1, most + 1)):
            w, h = (int(rng.integers(max(4, side // 12), side // 2)) for side in (width, height))
            x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
            pixels[y : y + h, x : x + w] = rng.integers(0, 256, 3)
            boxes.append([x, y, w, h])
        images.append(write_image(folder / f"{number:03}.png", number, pixels, boxes, rng.integers(0, 3, len(boxes))))
    return DetectionSplit("synthetic", ("a", "b", "c"), (1, 2, 3), images)


def write_image(path: Path, number: int, pixels: np.ndarray, boxes: Any = (), classes: Any = None) -> ImageLabels:
    cv2.imwrite(str(path), pixels)
    classes = [0] * len(boxes) if classes is None else classes
    return image_labels(path, number, (pixels.shape[1], pixels.shape[0]), classes, np.reshape(boxes, (-1, 4)))


def cached(split: DetectionSplit, imgsz: int, device: str = "cpu", **kwargs: Any) -> DeviceCache:
    return build_cache(split, imgsz, device, progress=False, **kwargs)


def host_dataset(split: DetectionSplit, imgsz: int, augment: bool = True, **settings: Any) -> LatDataset:
    """Ultralytics' data with every image in memory, so that a mosaic draws from all of them."""
    data = {"names": dict(enumerate(split.names)), "channels": 3}
    hyp = get_cfg(overrides=settings)
    return LatDataset(split, imgsz=imgsz, augment=augment, hyp=hyp, batch_size=8, cache="ram", stride=32, data=data)


def follow(dataset: LatDataset, plan: Plan, sample: int) -> dict[str, Any]:
    """Return what Ultralytics' transforms make of a sample when chance decides as planned: `img` (3, s, s), boxes."""
    s = plan.imgsz
    labels = _part(dataset, plan, sample, 0)
    if plan.mixup[sample]:
        params = {"r": plan.ratio[sample].double().item()}
        labels["mix_labels"] = [_part(dataset, plan, sample, 1)]
        step = MixUp(dataset)
        labels = step.apply_instances(step.apply_image(labels, params), params)
    if plan.cutmix[sample]:
        labels = _Cut(dataset, plan, sample)(labels)
    if plan.colours:
        with patch("numpy.random.uniform", lambda *_: plan.gains[sample].double().numpy()):
            labels = RandomHSV(1, 1, 1).apply_image(labels)
    for axis, direction in enumerate(("vertical", "horizontal")):
        flip = RandomFlip(float(plan.flip[sample, axis]), direction)
        with patch("random.random", lambda: 0.5):
            labels = flip(labels)
    pixels = labels["img"] if plan.bgr[sample] else labels["img"][..., ::-1]
    return {
        "img": np.ascontiguousarray(pixels.transpose(2, 0, 1)),
        "boxes": labels["instances"].bboxes / s,
        "labels": labels["cls"][:, 0].astype(int),
        "cut": labels.get("cut", np.zeros(4)),
    }


def _part(dataset: LatDataset, plan: Plan, sample: int, part: int) -> dict[str, Any]:
    tiles = plan.images[sample, part].tolist()
    labels = dataset.get_image_and_label(tiles[0])
    labels["img"] = labels["img"].copy()
    if plan.mosaic[sample, part]:
        mosaic = Mosaic(dataset, plan.imgsz, p=1.0)
        mosaic.get_indexes = lambda: tiles[1:]
        x, y = plan.centre[sample, part].tolist()
        chance = iter([0.0, y, x])
        with patch("random.uniform", lambda *_: next(chance)):
            labels = mosaic(labels)
    warp = RandomPerspective(perspective=float(plan.perspective), size=(plan.imgsz, plan.imgsz))
    matrix, scale = plan.matrix[sample, part].numpy(), plan.scale[sample, part].item()
    warp._compute_affine_matrix = lambda *_: (matrix, scale)
    return warp(labels)


class _Cut(CutMix):
    """Cutmix that tries the planned areas, and prefers among them as planned."""

    def __init__(self, dataset: LatDataset, plan: Plan, sample: int) -> None:
        super().__init__(dataset, pre_transform=lambda _: _part(dataset, plan, sample, 2), p=1.0)
        self.areas = iter(plan.areas[sample].numpy())
        self.priority = plan.priority[sample].numpy()

    def _rand_bbox(self, width: int, height: int) -> Any:
        return next(self.areas)

    def get_params(self, labels: dict[str, Any]) -> dict[str, Any]:
        with patch("numpy.random.choice", lambda free: free[self.priority[free].argmax()]):
            params = super().get_params(labels)
        labels["cut"] = params.get("area", np.zeros(4))
        return params


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
