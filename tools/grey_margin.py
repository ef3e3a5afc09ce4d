"""Whether boxes depend on the grey beside an image: AP and sizes with grey margins around all validation images.

    python tools/grey_margin.py MODEL,MODEL,... DATA OUT.json [--imgsz 320] [--margins 0,16,32,64] [--batch 32]

Every image becomes a grey square of imgsz, as an exported model sees it, in the middle of a grey square that is larger
by the margin on each side; nothing is scaled, so boxes should stay as they are. In training a margin of grey comes of
an image made smaller, objects and all. Width and height are the means of boxes found at IoU 0.50 less those of their
objects, in pixels of the images as they are.
"""

from __future__ import annotations

import sys

import torch
from grid_shift import STRIDE, detect, fused, parser_of, record

from yolo_lat.data.labels import DetectionSplit
from yolo_lat.data.reader import read_split
from yolo_lat.data.registry import load_dataset
from yolo_lat.engine.evaluate import evaluate_detections
from yolo_lat.errors import UserError


def main() -> None:
    """Read the words, evaluate, record and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--margins", default="0,16,32,64")
    given = parser.parse_args()
    results = {}
    try:
        margins = [margin_of(word) for word in given.margins.split(",")]
        spec = load_dataset(given.data)
        split = read_split(spec, "val", progress=False)
        for name in given.models.split(","):
            model = fused(name, spec)
            results[name] = {m: evaluate(model, split, given.imgsz, m, given.batch) for m in margins}
            for margin, found in results[name].items():
                print(name, f"{margin} px:", *(f"{key} {value:.4f}" for key, value in found.items()), flush=True)
    except UserError as error:
        print(f"grey_margin: {error}", file=sys.stderr)
        sys.exit(2)
    record("grey_margin", given, results)


def margin_of(word: str) -> int:
    """Read a margin.

    Raises:
        UserError: it is no number of pixels that makes both margins together a multiple of the stride.
    """
    if not word.isdecimal() or int(word) * 2 % STRIDE:
        raise UserError(f"--margins has '{word}'; give multiples of {STRIDE // 2} pixels with commas between")
    return int(word)


def evaluate(model: torch.nn.Module, split: DetectionSplit, imgsz: int, margin: int, batch: int) -> dict[str, float]:
    """Return AP, AP75, and how much wider and higher boxes are than their objects, with `margin` px around images.

    Raises:
        UserError: no object is found, so that no box can be measured.
    """
    found = evaluate_detections(split, detect(model, split, imgsz, margin, batch, 2 * margin))
    assert found.analysis is not None
    if not found.analysis.offsets.boxes:
        raise UserError(f"with {margin} px of grey no object is found; give trained weights, or smaller --margins")
    left, top, right, bottom = found.analysis.offsets.mean.tolist()
    return {key: found.numbers[key] for key in ("AP", "AP75")} | {"width": right - left, "height": bottom - top}


if __name__ == "__main__":
    main()
