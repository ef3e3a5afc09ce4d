"""What a detector found in one image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from yolo_lat.deploy.preprocess import check_image
from yolo_lat.drawing import class_colour, draw_boxes
from yolo_lat.errors import UserError


@dataclass(frozen=True, eq=False)
class Detections:
    """The objects found in one image, best score first.

    Attributes:
        boxes_xyxy: (n, 4) float32 corners, pixels of the original image.
        scores: (n,) float32 in 0..1.
        class_ids: (n,) int64.
        names: Class names by id.

    Raises:
        UserError: When an array has another shape or dtype.
    """

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray
    names: dict[int, str]

    def __post_init__(self) -> None:
        n = len(self.scores)
        for field, shape, dtype in (
            ("boxes_xyxy", (n, 4), np.float32),
            ("scores", (n,), np.float32),
            ("class_ids", (n,), np.int64),
        ):
            array = getattr(self, field)
            if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
                found = f"{getattr(array, 'dtype', type(array).__name__)} {np.shape(array)}"
                raise UserError(f"Detections.{field} is {found}; for {n} scores pass {np.dtype(dtype)} {shape}")

    def __len__(self) -> int:
        return len(self.scores)

    def draw(self, image_bgr: np.ndarray) -> np.ndarray:
        """Return a copy of the (H, W, 3) uint8 BGR image with every box, its class name and its score."""
        check_image(image_bgr)
        class_ids = self.class_ids.tolist()
        labels = [f"{self.names.get(i, i)} {score:.2f}" for i, score in zip(class_ids, self.scores, strict=True)]
        colours = [class_colour(class_id) for class_id in class_ids]
        # Worst first, so that the best stay on top.
        return draw_boxes(image_bgr, self.boxes_xyxy[::-1], labels[::-1], colours[::-1])
