"""Whether a detector minds where its grid of cells falls: AP with all validation images moved by some pixels.

    python tools/grid_shift.py MODEL,MODEL,... DATA OUT.json [--imgsz 320] [--shifts 0,8,16,24] [--batch 32]

Every image becomes a grey square of imgsz, as an exported model sees it, which lies on a grey square that is 32 px
larger, moved right and down from its corner. A detector that treats all places alike comes to the same AP, but for
chance, whatever the shift. AP is COCO's, by faster-coco-eval.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.progress import track
from study_record import git_commit
from ultralytics.utils import nms

from yolo_lat import YOLOLAT
from yolo_lat.data.labels import DetectionSplit
from yolo_lat.data.reader import read_split
from yolo_lat.data.registry import load_dataset
from yolo_lat.data.spec import DatasetSpec
from yolo_lat.deploy.preprocess import PADDING_GREY, letterbox
from yolo_lat.engine.evaluate import evaluate_detections
from yolo_lat.engine.validator import check_names
from yolo_lat.errors import UserError

STRIDE = 32


def main() -> None:
    """Read the words, evaluate, record and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--shifts", default="0,8,16,24")
    given = parser.parse_args()
    try:
        spec = load_dataset(given.data)
        split = read_split(spec, "val", progress=False)
        shifts = [pixels(shift) for shift in given.shifts.split(",")]
        results = {}
        for name in given.models.split(","):
            model = fused(name, spec)
            results[name] = {s: evaluate(model, split, given.imgsz, s, given.batch) for s in shifts}
            print(name, *(f"{s} px: {ap:.4f}" for s, ap in results[name].items()), flush=True)
    except UserError as error:
        print(f"grid_shift: {error}", file=sys.stderr)
        sys.exit(2)
    record("grid_shift", given, results)


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the words that tools for models on squares share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models")
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--batch", type=int, default=32)
    return parser


def fused(name: str, spec: DatasetSpec) -> torch.nn.Module:
    """Return a model in float32, as deployed.

    Raises:
        UserError: its classes are not those of the data.
    """
    model = YOLOLAT(name).model.float().eval()
    check_names(spec, model.names)
    model.fuse(verbose=False)
    return model


def record(tool: str, given: argparse.Namespace, results: dict[str, Any]) -> None:
    """Write what was found, and how to find it again."""
    asked = " ".join(f"--{name} {vars(given)[name]}" for name in ("imgsz", "shifts", "margins") if name in given)
    words = f"{given.models} {Path(given.data).name} OUT.json {asked}"
    told = {"command": f"python tools/{tool}.py {words}", "imgsz": given.imgsz}
    told |= {"commit": git_commit(), "torch": torch.__version__, "AP": results}
    given.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def pixels(word: str) -> int:
    """Read a shift.

    Raises:
        UserError: it is no number of pixels that stays on the canvas.
    """
    if word not in map(str, range(STRIDE + 1)):
        raise UserError(f"--shifts has '{word}'; give pixels from 0 to {STRIDE} with commas between")
    return int(word)


def evaluate(
    model: torch.nn.Module, split: DetectionSplit, imgsz: int, shift: int, batch: int, border: int = STRIDE
) -> float:
    """Return the AP with every image moved by `shift` pixels right and down, over a square larger by `border`."""
    return evaluate_detections(split, detect(model, split, imgsz, shift, batch, border), fast=True).numbers["AP"]


def detect(
    model: torch.nn.Module, split: DetectionSplit, imgsz: int, shift: int, batch: int, border: int
) -> list[dict[str, Any]]:
    """Return what is found so, as COCO results in pixels of the images as they are."""
    found: list[dict[str, Any]] = []
    for start in track(range(0, len(split.images), batch), "images", transient=True):
        images = split.images[start : start + batch]
        boxed = [letterbox(cv2.imread(str(image.path)), (imgsz, imgsz)) for image in images]
        side = imgsz + border
        canvas = np.full((len(images), side, side, 3), PADDING_GREY, np.uint8)
        for place, box in zip(canvas, boxed, strict=True):
            place[shift : shift + imgsz, shift : shift + imgsz] = box.image
        x = torch.from_numpy(canvas[..., ::-1].transpose(0, 3, 1, 2).copy()).float() / 255
        with torch.inference_mode():
            kept = nms.non_max_suppression(model(x), 0.001, 0.7, multi_label=True, max_time_img=float("inf"))
        for image, box, rows in zip(images, boxed, kept, strict=True):
            for *sides, score, class_id in rows.tolist():
                left, top, right, bottom = (
                    (side - shift - pad) / ratio
                    for side, pad, ratio in zip(sides, box.pad * 2, box.ratio * 2, strict=True)
                )
                bbox, category = [left, top, right - left, bottom - top], split.category_ids[int(class_id)]
                found.append({"image_id": image.image_id, "category_id": category, "bbox": bbox, "score": score})
    return found


if __name__ == "__main__":
    main()
