"""What an actor of a run does: decode images and detect in them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from PIL import Image, UnidentifiedImageError

from yolo_lat.collection.sources import Source
from yolo_lat.data.images import ENDINGS, FORMATS, TooManyPixelsError, most_pixels, open_image
from yolo_lat.deploy import Detections, OnnxDetector
from yolo_lat.errors import UserError

SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("boxes_xyxy", pa.list_(pa.list_(pa.float32(), 4))),
        ("scores", pa.list_(pa.float32())),
        ("class_ids", pa.list_(pa.int32())),
        ("error", pa.string()),
    ]
)
# What Pillow's decoders and OpenCV raise.
_DECODING = (OSError, SyntaxError, ValueError, RuntimeError, MemoryError, Image.DecompressionBombError, cv2.error)


class Worker:
    """An actor of Ray Data: takes rows of encoded images, gives a row of `SCHEMA` for every image.

    Args:
        source: what the rows come from.
        model: the `.onnx` file.
        device: "cpu", with one thread, or "cuda", the GPU that Ray gave to the actor.
        detect: `conf`, `iou`, `max_det`, `imgsz`, `box_vote` and `max_batch` of `OnnxDetector`.
    """

    def __init__(self, source: Source, model: str, device: str, detect: dict[str, Any]) -> None:
        cv2.setNumThreads(1)
        self._source = source
        self._detector = OnnxDetector(model, device, threads=1 if device == "cpu" else None, **detect)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Detect in the images of some rows."""
        decoded: list[tuple[str, np.ndarray | str]] = []
        for name, content in self._source.contents(rows):
            try:
                decoded.append((name, decode(content)))
            except UserError as error:
                decoded.append((name, str(error)))
        found = iter(self._detector([image for _, image in decoded if isinstance(image, np.ndarray)]))
        return table(
            _failed(name, image) if isinstance(image, str) else _detected(name, image, next(found))
            for name, image in decoded
        )


def decode(content: bytes | None) -> np.ndarray:
    """Return an image as OpenCV reads it from a file, (H, W, 3) uint8 BGR, EXIF rotation applied.

    OpenCV decodes what there is of a truncated file, so one that does not end as its format demands is decoded by
    Pillow first, which refuses it.

    Raises:
        UserError: no image, a broken or truncated one, or one of another format.
    """
    if not content:
        raise UserError("empty")
    most = most_pixels()
    try:
        with open_image(content, most) as image:
            kind = image.format or ""
            if kind not in FORMATS:
                raise UserError(f"{kind}, which is not read; convert it to PNG or JPEG")
            if not content[-12:].rstrip(b"\0").endswith(ENDINGS.get(kind, b"\0")):
                image.load()
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except UserError:
        raise
    except TooManyPixelsError:
        raise UserError(f"broken image, or one of more than {most / 1e6:g} megapixels") from None
    except UnidentifiedImageError as error:
        raise UserError("no image, or one broken at its beginning") from error
    except _DECODING as error:
        raise UserError(f"broken image ({_first_line(error)})") from error
    if pixels is None:
        raise UserError(f"{kind} of a form that cannot be decoded")
    return pixels


def table(rows: Iterable[dict[str, Any]]) -> pa.Table:
    """Return rows as a table of `SCHEMA`; what they lack is null."""
    return pa.Table.from_pylist(list(rows), SCHEMA)


def failures(names: Iterable[tuple[str, str]]) -> pa.Table:
    """Return a table of `SCHEMA` of (name, error) of what gave no image."""
    return table(_failed(name, error) for name, error in names)


def _failed(name: str, error: str) -> dict[str, Any]:
    return {"image": name, "error": error}


def _detected(name: str, image: np.ndarray, found: Detections) -> dict[str, Any]:
    height, width = image.shape[:2]
    return {
        "image": name,
        "width": width,
        "height": height,
        "boxes_xyxy": found.boxes_xyxy.tolist(),
        "scores": found.scores.tolist(),
        "class_ids": found.class_ids.tolist(),
    }


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
