"""Pictures for an export: to calibrate INT8 with, to check the file with, and to measure what quantisation costs."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ultralytics.utils import ASSETS, LOGGER

from yolo_lat.data.reader import read_split
from yolo_lat.data.registry import load_dataset
from yolo_lat.data.spec import Subset
from yolo_lat.engine import offline
from yolo_lat.errors import UserError

if TYPE_CHECKING:
    from yolo_lat.engine.export import Trace

CALIBRATION_IMAGES = 300
_CHECKED_IMAGES = 6


def calibration_files(data: str, fraction: float | None) -> list[Path]:
    """Draw the training images to calibrate with; the same ones every time.

    Args:
        data: a data YAML or the name of a data set.
        fraction: a share up to 1 of the images or, above 1, their number; None for 300, or all where there are fewer.

    Raises:
        UserError: a fraction that is no such number, or data that cannot be read.
    """
    if fraction is not None and (not isinstance(fraction, int | float) or fraction <= 0):
        raise UserError(f"fraction={fraction}: give a share of the training images up to 1, or their number")
    files = [image.path for image in read_split(load_dataset(data), "train").images]
    if fraction is None:
        count = CALIBRATION_IMAGES
    else:
        count = round(fraction * len(files)) if fraction <= 1 else round(fraction)
    return Subset(min(max(count, 1), len(files))).choose(files)


def check_files(data: str | None) -> list[Path]:
    """Return the two photographs in Ultralytics' wheel and, of `data`, six validation images."""
    files = sorted(ASSETS.glob("*.jpg"))
    if data:
        images = [image.path for image in read_split(load_dataset(data), "val").images]
        files += Subset(min(_CHECKED_IMAGES, len(images))).choose(images)
    return files


def compare_ap(
    model: type[Any], trace: Trace, data: str, files: tuple[Path, Path], folder: Path
) -> tuple[float, float] | None:
    """Evaluate a file and its quantised form on the validation split with pycocotools.

    Returns:
        Both average precisions; None for an input that is not square, which validation does not take.

    Raises:
        UserError: quantisation loses more than half of the average precision.
    """
    if trace.imgsz[0] != trace.imgsz[1]:
        LOGGER.info(f"AP of INT8 is not measured: validation takes square images, and imgsz is {list(trace.imgsz)}")
        return None
    LOGGER.info(f"evaluating the fp32 and the INT8 file on {data}, which takes as long as two validations on the CPU")
    arguments = {"data": data, "project": folder, "plots": False, "verbose": False, "device": "cpu"}
    with offline.quiet(), contextlib.redirect_stdout(io.StringIO()):  # neither is the result that was asked for
        before, after = (model(file).val(**arguments, name=file.stem).coco["AP"] for file in files)
    if after < before / 2:
        raise UserError(
            f"quantize=8: AP falls from {before:.4f} to {after:.4f} on {data}; calibrate on more images "
            "with fraction=, or export in fp16"
        )
    return before, after
