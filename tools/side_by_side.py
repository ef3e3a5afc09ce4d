"""Draw what several models find in the same validation images, a row an image, beside the boxes that are there.

    python tools/side_by_side.py MODEL,MODEL,... DATA OUT.jpg [--images 6] [--seed 0] [--conf 0.25] [--side 320]

Models are names, weights or exported files; DATA is a data YAML or a name. The first column has the annotations. The
images are those of the data set, so whether the sheet may be passed on is for its licence to say.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from yolo_lat import YOLOLAT
from yolo_lat.data.reader import read_split
from yolo_lat.data.registry import load_dataset
from yolo_lat.drawing import class_colour, contact_sheet, draw_boxes, fit, picture_path, save_picture
from yolo_lat.errors import UserError


def main() -> None:
    """Read the words, draw, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models")
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--conf", type=float, default=0.25)
    parser.add_argument("--side", type=int, default=320, help="of a picture on the sheet, pixels")
    given = parser.parse_args()
    try:
        picture_path(given.out)
        save_picture(given.out, sheet(given))
    except UserError as error:
        print(f"side_by_side: {error}", file=sys.stderr)
        sys.exit(2)


def sheet(given: argparse.Namespace) -> np.ndarray:
    """Return the contact sheet, (H, W, 3) uint8 BGR.

    Raises:
        UserError: a model or a data set that cannot be used.
    """
    spec = load_dataset(given.data)
    images = list(read_split(spec, "val", progress=False).images)
    chosen = random.Random(given.seed).sample(images, min(given.images, len(images)))
    names = given.models.split(",")
    models = [YOLOLAT(name) for name in names]
    tiles, titles = [], []
    for image in chosen:
        picture, ratio = fit(cv2.imread(str(image.path)), given.side)
        labels = [spec.names[i] for i in image.class_ids]
        tiles.append(boxed(picture, image.boxes_xyxy * ratio, labels, image.class_ids))
        for model in models:
            found = model.predict(str(image.path), conf=given.conf, verbose=False, save=False)[0].boxes
            order = found.conf.argsort()  # the surest on top
            classes = found.cls[order].int().tolist()
            labels = [f"{model.names[i]} {s:.2f}" for i, s in zip(classes, found.conf[order].tolist(), strict=True)]
            tiles.append(boxed(picture, found.xyxy[order].cpu().numpy() * ratio, labels, classes))
        titles += [image.path.name, *(Path(name).stem for name in names)]
    return contact_sheet(tiles, titles, 1 + len(models), given.side)


def boxed(picture: np.ndarray, boxes_xyxy: np.ndarray, labels: list[str], class_ids: Sequence[int]) -> np.ndarray:
    """Return the picture with boxes in the colours of their classes."""
    return draw_boxes(picture, boxes_xyxy, labels, [class_colour(int(i)) for i in class_ids])


if __name__ == "__main__":
    main()
