"""An image with its boxes, and a split of a data set: the form that every annotation format is read into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

MAX_PIXELS = 1e9  # no image is as long; sums and products of coordinates below it are finite


@dataclass(frozen=True, slots=True)
class ImageLabels:
    """An image and the boxes in it.

    Attributes:
        path: image file.
        image_id: COCO image id.
        width, height: pixels, EXIF rotation applied.
        class_ids: (n,) int64.
        boxes_xywh: (n, 4) float64 pixels, top-left corner and size, as annotated.
        areas: (n,) float64 square pixels; decides COCO's small, medium and large.
        crowd: (n,) bool; crowds are evaluated as COCO does and not trained on.
    """

    path: Path
    image_id: int
    width: int
    height: int
    class_ids: np.ndarray
    boxes_xywh: np.ndarray = field(repr=False)
    areas: np.ndarray = field(repr=False)
    crowd: np.ndarray = field(repr=False)

    @property
    def boxes_xyxy(self) -> np.ndarray:
        """Return the corners, (n, 4) float64 pixels."""
        return np.concatenate([self.boxes_xywh[:, :2], self.boxes_xywh[:, :2] + self.boxes_xywh[:, 2:]], axis=1)

    def selected(self, mask: np.ndarray) -> ImageLabels:
        """Return the image with those of its boxes for which the (n,) bool mask is true."""
        return replace(
            self,
            class_ids=self.class_ids[mask],
            boxes_xywh=self.boxes_xywh[mask],
            areas=self.areas[mask],
            crowd=self.crowd[mask],
        )


def image_labels(
    path: Path,
    image_id: int,
    size: tuple[int, int],
    class_ids: Sequence[int],
    boxes_xywh: Sequence[Sequence[float]] | np.ndarray,
    crowd: Sequence[bool] | None = None,
    areas: Sequence[float] | None = None,
) -> ImageLabels:
    """Build `ImageLabels` from plain rows; no crowd unless given, areas of the boxes unless given."""
    boxes = np.array(boxes_xywh, dtype=np.float64).reshape(-1, 4)
    return ImageLabels(
        path,
        image_id,
        *size,
        np.array(class_ids, dtype=np.int64),
        boxes,
        boxes[:, 2] * boxes[:, 3] if areas is None else np.array(areas, dtype=np.float64),
        np.zeros(len(boxes), dtype=bool) if crowd is None else np.array(crowd, dtype=bool),
    )


@dataclass(frozen=True)
class DetectionSplit:
    """A split, read and checked.

    Attributes:
        name: data set and split, for messages.
        names: class names.
        category_ids: COCO category id of each class in this split.
        images: in the order of their paths.
        labelled: False where the annotations are kept back, as for COCO's test-dev.
    """

    name: str
    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    images: Sequence[ImageLabels] = field(repr=False)
    labelled: bool = True

    def ground_truth(self) -> dict[str, Any]:
        """Return the split as the content of a COCO JSON, which pycocotools evaluates against."""
        annotations: list[dict[str, Any]] = []
        for image in self.images:
            rows = zip(image.class_ids, image.boxes_xywh, image.areas, image.crowd, strict=True)
            for class_id, box, area, crowd in rows:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image.image_id,
                        "category_id": self.category_ids[class_id],
                        "bbox": box.tolist(),
                        "area": float(area),
                        "iscrowd": int(crowd),
                    }
                )
        return {
            "info": {"description": self.name},
            "images": [
                {"id": i.image_id, "file_name": i.path.name, "width": i.width, "height": i.height} for i in self.images
            ],
            "annotations": annotations,
            "categories": [{"id": i, "name": n} for i, n in zip(self.category_ids, self.names, strict=True)],
        }
