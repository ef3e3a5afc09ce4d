"""What a client gets: the boxes as COCO-style JSON, or the picture with them."""

from __future__ import annotations

import cv2
import numpy as np
from pydantic import BaseModel, Field

from yolo_lat.deploy.detections import Detections
from yolo_lat.serve.pictures import Picture
from yolo_lat.serve.refusal import RefusalError

_JPEG_QUALITY = 90


class Found(BaseModel):
    """One object."""

    bbox: list[float] = Field(description="x, y, width and height in pixels of the picture", min_length=4, max_length=4)
    score: float = Field(ge=0, le=1)
    category_id: int = Field(description="number of the class in the model", ge=0)
    category_name: str


class Milliseconds(BaseModel):
    """Where the time went."""

    decode: float = Field(description="decoding and scaling, and waiting for a thread to do it", ge=0)
    wait: float = Field(description="waiting for the batch to begin", ge=0)
    inference: float = Field(description="network and suppression, of the whole batch", ge=0)


class Answer(BaseModel):
    """What is in a picture, best score first."""

    width: int = Field(description="pixels of the picture, EXIF rotation applied", ge=1)
    height: int = Field(ge=1)
    model: str = Field(description="file name of the model")
    detections: list[Found]
    batch: int = Field(description="pictures that ran together with this one, itself included", ge=1)
    milliseconds: Milliseconds


class Problem(BaseModel):
    """Why there is no answer, in one sentence."""

    error: str


def coco_rows(found: Detections) -> list[dict[str, object]]:
    """Return each object as `Found`.

    The numbers are those of the detector, bit for bit: in double precision the difference of two corners is exact.
    """
    boxes = found.boxes_xyxy.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    return [
        {"bbox": box, "score": score, "category_id": number, "category_name": str(found.names.get(number, number))}
        for box, score, number in zip(boxes.tolist(), found.scores.tolist(), found.class_ids.tolist(), strict=True)
    ]


def annotated(picture: Picture, found: Detections) -> tuple[bytes, str]:
    """Return the picture with boxes and its media type: a JPEG of a JPEG, otherwise a PNG."""
    suffix, media, options = ".png", "image/png", list[int]()
    if picture.format == "JPEG":
        suffix, media, options = ".jpg", "image/jpeg", [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    done, content = cv2.imencode(suffix, found.draw(picture.image_bgr), options)
    if not done:
        raise RefusalError(413, "the picture is too large to be drawn on; ask for format=json")
    return content.tobytes(), media
