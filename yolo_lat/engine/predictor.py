"""Prediction: Ultralytics' predictor, except that a broken input is an error and never skipped."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from ultralytics.data.loaders import LoadImagesAndVideos
from ultralytics.data.utils import IMG_FORMATS
from ultralytics.engine.results import Results
from ultralytics.models.yolo.detect import DetectionPredictor
from ultralytics.utils import nms, ops

from yolo_lat.data.images import IMAGE_SUFFIXES, check_pixels, image_size
from yolo_lat.errors import UserError


class LatPredictor(DetectionPredictor):
    """Detect objects in images, folders, videos and streams.

    Raises:
        UserError: a file that is no whole image or video.
    """

    def setup_source(self, source: Any, *args: Any, **kwargs: Any) -> None:
        """Open the source and make its loader strict."""
        try:
            super().setup_source(source, *args, **kwargs)
        except UnicodeDecodeError as error:
            raise UserError(f"{source}: not a text file; list one image or video a line") from error
        except (OSError, Image.DecompressionBombError) as error:  # such as missing files, cameras that do not open
            problem = " ".join(str(error).split()).partition(" Supported formats")[0].rstrip(".")
            raise UserError(f"source={source}: {problem}; give a readable image, video, folder or camera") from error
        if isinstance(self.dataset, LoadImagesAndVideos):
            for file, is_video in zip(self.dataset.files, self.dataset.video_flag, strict=True):
                if is_video:
                    _check_video(file)
            self.dataset.files = _LookedAt(self.dataset.files)
            self.dataset._append_image = partial(_append_image, type(self.dataset), self.dataset)

    def postprocess(self, preds: Any, img: torch.Tensor, orig_imgs: Any, **kwargs: Any) -> list[Results]:
        """Do what the base does, without its time limit, which drops the rest of a slow batch."""
        features = getattr(self, "_feats", None)
        found = nms.non_max_suppression(
            preds,
            self.args.conf,
            kwargs.pop("iou", self.args.iou),
            self.args.classes,
            self.args.agnostic_nms,
            max_det=self.args.max_det,
            end2end=getattr(self.model, "end2end", False),
            return_idxs=features is not None,
            max_time_img=float("inf"),
        )
        boxes, kept = found if features is not None else (found, None)
        if not isinstance(orig_imgs, list):
            orig_imgs = ops.convert_torch2numpy_batch(orig_imgs)[..., ::-1]
        results = self.construct_results(boxes, img, orig_imgs, **kwargs)
        if features is not None:  # trackers that compare looks
            for result, feature in zip(results, self.get_obj_feats(features, kept), strict=True):
                result.feats = feature
        return results


class _LookedAt(list[str]):
    """Paths that are looked at when the loader takes them to decode them.

    Raises:
        UserError: on taking, an image that is too large or broken; OpenCV decodes what there is of a truncated one.
    """

    def __getitem__(self, place: Any) -> Any:
        """Return one path, or several for a slice."""
        taken = super().__getitem__(place)
        for path in map(Path, taken if isinstance(place, slice) else [taken]):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                image_size(path)
            elif path.suffix.lower().removeprefix(".") in IMG_FORMATS:
                check_pixels(path)
        return taken


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
    if im0 is None:
        raise UserError(f"{path}: broken image; replace or remove it")
    loader._append_image(dataset, paths, imgs, info, path, im0, idx)


def _check_video(file: str) -> None:
    capture = cv2.VideoCapture(file)
    readable, _ = capture.read()
    capture.release()
    if not readable:
        raise UserError(f"{file}: broken video, its first frame cannot be decoded; replace or remove it")
