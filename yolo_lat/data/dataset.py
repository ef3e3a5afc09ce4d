"""The bridge from our labels to Ultralytics' training data: its augmentation and batching on what `read_split` read."""

from __future__ import annotations

import sys
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
from ultralytics.data.augment import Albumentations, Compose
from ultralytics.data.dataset import YOLODataset
from ultralytics.utils import LOGGER, colorstr

from yolo_lat.data.augment import Augmentations, build_augmentations
from yolo_lat.data.labels import DetectionSplit, ImageLabels
from yolo_lat.data.order import Pool, SampleOrder
from yolo_lat.errors import UserError


class LatDataset(YOLODataset):
    """An Ultralytics detection data set that takes its labels from a `DetectionSplit`.

    Unlike its base it writes no cache beside the data, drops no image in silence, and reads COCO JSON. Albumentations
    take part only when `hyp.augmentations` lists them: Ultralytics would add some of its own wherever the package
    happens to be installed.

    Args:
        split: images and labels.
        **kwargs: as for `ultralytics.data.dataset.YOLODataset`.

    Attributes:
        order: of the samples; where it is set, samples are asked for by its keys, batch by batch.
    """

    order: SampleOrder | None = None

    def __init__(self, split: DetectionSplit, **kwargs: Any) -> None:
        self.split = split
        self.chosen_classes = kwargs.get("classes")
        self._decoded: set[int] = set()
        super().__init__(img_path=split.name, **kwargs)

    def __getitems__(self, keys: list[int]) -> list[dict[str, Any]]:
        """Make the samples of a batch; a data loader asks here rather than one by one."""
        if self.order is None:
            return [self[key] for key in keys]
        images = [self.order.image(key) for key in keys]
        if self.cache != "ram":
            self._keep(Pool([*self.order.recent(keys[0]), *self.order.batch_of(keys[0])]))
        samples = []
        for key, image in zip(keys, images, strict=True):
            with self.order.randomness(key):
                samples.append(self[image])
        return samples

    def load_image(self, i: int, *args: Any, **kwargs: Any) -> Any:
        """Decode an image, or return it as long as it is kept."""
        self._decoded.add(i)
        return super().load_image(i, *args, **kwargs)

    def _keep(self, pool: Pool) -> None:
        """Let mosaics draw from `pool`, and forget the images that it does not hold."""
        self.buffer, self.max_buffer_length = pool, sys.maxsize
        for i in self._decoded - set(pool):
            self.ims[i] = self.im_hw0[i] = self.im_hw[i] = None
        self._decoded &= set(pool)

    def get_img_files(self, img_path: str | list[str]) -> list[str]:
        """Return the image paths, the first ones only where `fraction` asks for fewer."""
        images = self.split.images
        count = self.fraction if isinstance(self.fraction, int) else max(1, round(len(images) * self.fraction))
        self.images = images[: min(count, len(images))]
        return [str(image.path) for image in self.images]

    def evaluated(self) -> DetectionSplit:
        """Return what predictions are to be held against.

        These are the images that `fraction` kept, the boxes of `classes` where some are chosen, and one class in place
        of all if `single_cls`.
        """
        images = self.images
        if self.chosen_classes is not None:
            images = [image.selected(np.isin(image.class_ids, self.chosen_classes)) for image in images]
        if not self.single_cls:
            return replace(self.split, images=images)
        images = [replace(image, class_ids=np.zeros_like(image.class_ids)) for image in images]
        return replace(self.split, images=images, names=("item",), category_ids=self.split.category_ids[:1])

    def get_labels(self) -> list[dict[str, Any]]:
        """Return one Ultralytics label dictionary an image."""
        labels = [training_label(image) for image in self.images]
        left_out = sum(int((~image.crowd).sum()) for image in self.images) - sum(len(label["cls"]) for label in labels)
        boxes = sum(len(label["cls"]) for label in labels)
        note = f", {left_out} boxes without area inside the image left out" if left_out else ""
        LOGGER.info(f"{colorstr(self.split.name + ':')} {len(labels)} images, {boxes} boxes{note}")
        return labels

    def build_transforms(self, hyp: Any) -> Compose:
        """Build the pipeline that makes a sample; `hyp.augmentations` act after mosaic, mixup and the like.

        Raises:
            UserError: augmentations that cannot be built.
        """
        hyp = copy(hyp)
        entries, hyp.augmentations = getattr(hyp, "augmentations", None), []
        pipeline = super().build_transforms(hyp)
        transforms = build_augmentations(entries) if self.augment else []
        if transforms:
            places = [i for i, step in enumerate(pipeline.transforms) if isinstance(step, Albumentations)]
            if len(places) != 1:
                raise UserError(
                    "augmentations: this Ultralytics has no place for them; install the one that we require"
                )
            pipeline.transforms[places[0]] = Augmentations(transforms)
            listed = ", ".join(f"{type(transform).__name__} p={transform.p}" for transform in transforms)
            LOGGER.info(f"{colorstr('augmentations:')} {listed}")
        return pipeline


def build_dataset(
    split: DetectionSplit, hyp: Any, batch: int | None, stride: int, augment: bool = True, prefix: str = ""
) -> LatDataset:
    """Return the data set of a training: augmented to draw samples from, or letterboxed to validate on.

    Args:
        split: images and labels.
        hyp: Ultralytics' training arguments, as `ultralytics.cfg.get_cfg` returns them.
        batch: samples in a batch.
        stride: the model's largest.
        augment: for training rather than validation.
        prefix: of messages.
    """
    return LatDataset(
        split,
        imgsz=hyp.imgsz,
        batch_size=batch,
        augment=augment,
        hyp=hyp,
        rect=hyp.rect or not augment,
        cache=hyp.cache if hyp.cache in (True, "ram", "disk") else None,
        single_cls=hyp.single_cls,
        stride=stride,
        pad=0.0 if augment else 0.5,
        prefix=prefix,
        task="detect",
        classes=hyp.classes,
        data={"names": dict(enumerate(split.names)), "channels": 3},
        fraction=hyp.fraction if augment else 1.0,
    )


def training_label(image: ImageLabels) -> dict[str, Any]:
    """Return what a training takes from an image's labels, in Ultralytics' form: no crowds, no boxes without area."""
    size = np.array([image.width, image.height] * 2, dtype=np.float64)
    xyxy = np.concatenate([image.boxes_xywh[:, :2], image.boxes_xywh[:, :2] + image.boxes_xywh[:, 2:]], axis=1)
    xyxy = xyxy.clip(0, size)
    wh = xyxy[:, 2:] - xyxy[:, :2]
    keep = ~image.crowd & (wh > 0).all(axis=1)
    xywh = np.concatenate([(xyxy[:, :2] + xyxy[:, 2:]) / 2, wh], axis=1) / size
    return {
        "im_file": str(image.path),
        "shape": (image.height, image.width),
        "cls": image.class_ids[keep, None].astype(np.float32),
        "bboxes": xywh[keep].astype(np.float32),
        "segments": [],
        "keypoints": None,
        "normalized": True,
        "bbox_format": "xywh",
    }
