"""Models for the demo: exported files on ONNX Runtime, all others with torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolo_lat.deploy.detections import Detections
from yolo_lat.deploy.onnx_detector import OnnxDetector
from yolo_lat.deploy.session import device_name

Detector = Callable[[list[np.ndarray]], list[Detections]]


def open_detector(
    model: str,
    device: str | int = "cpu",
    conf: float = 0.25,
    iou: float = 0.7,
    max_det: int = 300,
    imgsz: int | Sequence[int] | None = None,
    box_vote: float | None = None,
) -> Detector:
    """Return what finds objects in a list of (H, W, 3) uint8 BGR images.

    Args:
        model: an `.onnx` file, which needs no torch, or a name, YAML, .pt or .safetensors, which does.
        device: "cpu", "cuda", "cuda:N", or N alone.
        conf: least score.
        iou: most overlap of two boxes of a class.
        max_det: most boxes of an image.
        imgsz: input size in pixels of a model that has no fixed one.
        box_vote: overlap from which boxes vote on those that suppression keeps; they do not unless given.

    Raises:
        UserError: the model or the device cannot be used.
    """
    device = device_name(device)
    if Path(model).suffix.lower() == ".onnx":
        return OnnxDetector(model, device=device, conf=conf, iou=iou, max_det=max_det, imgsz=imgsz, box_vote=box_vote)
    from yolo_lat import YOLOLAT

    network = YOLOLAT(model)
    settings: dict[str, Any] = {"device": device, "conf": conf, "iou": iou, "max_det": max_det}
    settings |= {"box_vote": box_vote, "verbose": False, "save": False} | ({} if imgsz is None else {"imgsz": imgsz})

    def detect(images: list[np.ndarray]) -> list[Detections]:
        return [_detections(result) for result in network.predict(images, **settings)]

    return detect


def _detections(result: Any) -> Detections:
    """Convert the `Results` of Ultralytics' predictor."""
    boxes, names = result.boxes, result.names
    return Detections(
        boxes.xyxy.cpu().numpy().astype(np.float32),
        boxes.conf.cpu().numpy().astype(np.float32),
        boxes.cls.cpu().numpy().astype(np.int64),
        names,
    )
