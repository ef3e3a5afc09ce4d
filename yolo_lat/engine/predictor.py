"""Prediction: Ultralytics' predictor, except that a broken input is an error and never skipped."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ultralytics.data.loaders import LoadImagesAndVideos
from ultralytics.models.yolo.detect import DetectionPredictor

from yolo_lat.data.images import IMAGE_SUFFIXES, image_size
from yolo_lat.errors import UserError


class LatPredictor(DetectionPredictor):
    """Detect objects in images, folders, videos and streams.

    Raises:
        UserError: a file that is no whole image or video.
    """

    def setup_source(self, source: Any, *args: Any, **kwargs: Any) -> None:
        """Open the source and make its loader strict."""
        super().setup_source(source, *args, **kwargs)
        if isinstance(self.dataset, LoadImagesAndVideos):
            for file, is_video in zip(self.dataset.files, self.dataset.video_flag, strict=True):
                if is_video:
                    _check_video(file)
            self.dataset._append_image = partial(_append_image, type(self.dataset), self.dataset)


def _append_image(
    loader: type[LoadImagesAndVideos],
    dataset: LoadImagesAndVideos,
    paths: list[str],
    imgs: list[np.ndarray],
    info: list[str],
    path: str,
    im0: np.ndarray | None,
    idx: int,
) -> None:
    if Path(path).suffix.lower() in IMAGE_SUFFIXES:
        image_size(Path(path))  # OpenCV decodes what there is of a truncated file
    if im0 is None:
        raise UserError(f"{path}: broken image; replace or remove it")
    loader._append_image(dataset, paths, imgs, info, path, im0, idx)


def _check_video(file: str) -> None:
    capture = cv2.VideoCapture(file)
    readable, _ = capture.read()
    capture.release()
    if not readable:
        raise UserError(f"{file}: broken video, its first frame cannot be decoded; replace or remove it")
