"""Prediction: Ultralytics' predictor, except that a broken input is an error and never skipped, and so is a full disk.

What is written of an image appears under its name only when it is complete.
"""

from __future__ import annotations

import shutil
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
from yolo_lat.engine.box_voting import vote
from yolo_lat.errors import UserError
from yolo_lat.unfinished import new_folder_of_run

_STAGE = ".unfinished"


class LatPredictor(DetectionPredictor):
    """Detect objects in images, folders, videos and streams.

    Args:
        overrides: Ultralytics' arguments by name.
        _callbacks: Ultralytics' callbacks.
        box_vote: overlap from which boxes vote on those that suppression keeps; they do not unless given.

    Raises:
        UserError: a file that is no whole image or video.
    """

    save_dir: Path

    def __init__(
        self,
        overrides: dict[str, Any] | None = None,
        _callbacks: dict[str, Any] | None = None,
        box_vote: float | None = None,
    ) -> None:
        super().__init__(overrides=overrides, _callbacks=_callbacks)
        self.box_vote = box_vote

    def setup_source(self, source: Any, *args: Any, **kwargs: Any) -> None:
        """Open the source and make its loader strict."""
        try:
            super().setup_source(source, *args, **kwargs)
        except UnicodeDecodeError as error:
            raise UserError(f"{source}: not a text file; list one image or video a line") from error
        except ModuleNotFoundError as error:  # what copies a screen
            raise UserError(f"source={source}: needs the package {error.name}; install it first") from error
        except (TypeError, ValueError) as error:  # what is no image, nor a list of them
            problem = " ".join(str(error).split()).partition(" For supported types")[0].rstrip(".")
            given = type(source).__name__
            raise UserError(
                f"source: {problem} ({given}); give an image, a file, an array or a list of these"
            ) from error
        except (OSError, Image.DecompressionBombError) as error:  # such as missing files, cameras that do not open
            problem = " ".join(str(error).split()).partition(" Supported formats")[0].rstrip(".")
            raise UserError(f"source={source}: {problem}; give a readable image, video, folder or camera") from error
        if isinstance(self.dataset, LoadImagesAndVideos):
            for file, is_video in zip(self.dataset.files, self.dataset.video_flag, strict=True):
                if is_video:
                    _check_video(file)
            self.dataset.files = _LookedAt(self.dataset.files)
            self.dataset._append_image = partial(_append_image, type(self.dataset), self.dataset)

        if self.args.save or self.args.save_txt or self.args.save_crop or self.args.visualize:
            self.save_dir = new_folder_of_run(self.save_dir, self.args.exist_ok)

    def write_results(self, i: int, p: Path, im: torch.Tensor, s: list[str]) -> str:
        """Do what the base does, but let the files of an image appear when they are complete."""
        if self.dataset.mode != "image" or not (self.args.save or self.args.save_txt or self.args.save_crop):
            return super().write_results(i, p, im, s)
        folder, stage = self.save_dir, self.save_dir / _STAGE
        try:
            shutil.rmtree(stage, ignore_errors=True)
            (stage / "labels").mkdir(parents=True)
            self.save_dir = stage
            text = super().write_results(i, p, im, s)
            self.results[i].save_dir = str(folder)
            for file in [path for path in stage.rglob("*") if path.is_file()]:
                target = folder / file.relative_to(stage)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)
        except OSError as error:
            raise UserError(f"{folder}: results of {p} cannot be written ({error.strerror}); make room") from error
        finally:
            self.save_dir = folder
            shutil.rmtree(stage, ignore_errors=True)
        return text

    def save_predicted_images(self, save_path: Path, frame: int | None = 0) -> None:
        """Write a picture, where the base would pass over that it cannot be written, or a frame of a video."""
        if self.dataset.mode in ("stream", "video"):
            super().save_predicted_images(save_path, frame)
        else:
            save_path.with_suffix(".jpg").write_bytes(cv2.imencode(".jpg", self.plotted_img)[1].tobytes())

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
        if self.box_vote is not None:
            boxes = vote(preds, boxes, self.box_vote, self.args.conf, agnostic=self.args.agnostic_nms)
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
