"""A split in numbers: its images, boxes and classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from yolo_lat.data.inspect_image import Facts
from yolo_lat.data.labels import DetectionSplit

QUANTILES = (0, 5, 50, 95, 100)  # per cent
SMALL, LARGE = 32**2, 96**2  # square pixels: COCO's bounds of small, medium and large objects


@dataclass(frozen=True)
class SplitSummary:
    """A split in numbers; crowds are counted as such and nowhere else.

    Attributes:
        images: those that can be read.
        empty: of these, the ones without a box.
        boxes, crowds: their numbers.
        class_boxes, class_images: by class number, the boxes, and the images with at least one.
        sizes: boxes by COCO's small, medium and large.
        width, height: pixels of the images at `QUANTILES`.
        boxes_per_image: at `QUANTILES`.
        side: square root of a box's area in pixels, at `QUANTILES`; empty without boxes.
        side_share: the same as a share of the square root of the image's area.
        kinds: images by `Facts.kind`.
        turned: images that EXIF turns or mirrors.
    """

    images: int
    empty: int
    boxes: int
    crowds: int
    class_boxes: tuple[int, ...]
    class_images: tuple[int, ...]
    sizes: Mapping[str, int]
    width: tuple[float, ...]
    height: tuple[float, ...]
    boxes_per_image: tuple[float, ...]
    side: tuple[float, ...]
    side_share: tuple[float, ...]
    kinds: Mapping[str, int]
    turned: int

    def as_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """Return what JSON can hold, classes by name."""
        numbers = {key: getattr(self, key) for key in ("images", "empty", "boxes", "crowds", "turned")}
        quantiles = ("width", "height", "boxes_per_image", "side", "side_share")
        return {
            **numbers,
            "sizes": dict(self.sizes),
            "kinds": dict(self.kinds),
            "classes": {
                name: {"boxes": boxes, "images": images}
                for name, boxes, images in zip(names, self.class_boxes, self.class_images, strict=True)
            },
            "per_cent": list(QUANTILES),
            **{key: list(getattr(self, key)) for key in quantiles},
        }


def summarise(data: DetectionSplit, facts: Sequence[Facts]) -> SplitSummary:
    """Count a split, whose images `facts` are about, one each."""
    images, count = data.images, len(data.names)
    crowd = _joined([image.crowd for image in images], bool)
    owner = np.repeat(np.arange(len(images)), [len(image.crowd) for image in images])[~crowd]
    classes = _joined([image.class_ids for image in images], np.int64)[~crowd]
    areas = _joined([image.areas for image in images], float)[~crowd]
    # The side is that of the box; the area of a COCO object is that of its outline.
    boxes = _joined([image.boxes_xywh[:, 2:].prod(1) for image in images], float)[~crowd]
    whole = np.array([image.width * image.height for image in images], dtype=float)
    small, large = int((areas < SMALL).sum()), int((areas > LARGE).sum())
    per_image = np.bincount(owner, minlength=len(images))
    class_images = np.unique(owner * count + classes) % max(count, 1)
    return SplitSummary(
        images=len(images),
        empty=int((per_image == 0).sum()),
        boxes=len(classes),
        crowds=int(crowd.sum()),
        class_boxes=tuple(np.bincount(classes, minlength=count).tolist()),
        class_images=tuple(np.bincount(class_images, minlength=count).tolist()),
        sizes={"small": small, "medium": len(areas) - small - large, "large": large},
        width=_quantiles(np.array([image.width for image in images])),
        height=_quantiles(np.array([image.height for image in images])),
        boxes_per_image=_quantiles(per_image),
        side=_quantiles(np.sqrt(boxes)),
        side_share=_quantiles(np.sqrt(boxes / whole[owner])),
        kinds=dict(Counter(fact.kind for fact in facts).most_common()),
        turned=sum(fact.turned for fact in facts),
    )


def _joined(parts: Sequence[np.ndarray], kind: type) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0, kind)


def _quantiles(values: np.ndarray) -> tuple[float, ...]:
    return tuple(np.percentile(values, QUANTILES).round(4).tolist()) if len(values) else ()
