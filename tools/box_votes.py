"""What it gives a detector to let boxes vote on those that suppression keeps (docs/evaluation.md): AP with and without.

    python tools/box_votes.py MODEL,MODEL,... DATA OUT.json [--imgsz 320] [--batch 16] [--overlaps 0.6,0.7,0.8,0.9]

Each model is validated as `yolo-lat val` does, without votes and with each overlap as `box_vote`; differences to the
first come with intervals over the choice of images (95% of 1,000 draws, the same for all).
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from grid_shift import parser_of, record

from yolo_lat import YOLOLAT
from yolo_lat.engine.compare import compare_runs
from yolo_lat.errors import UserError


def main() -> None:
    """Read the words, evaluate, record and print."""
    parser = parser_of(__doc__)
    parser.set_defaults(batch=16)  # which decides on rectangles, and so on the last digit
    parser.add_argument("--overlaps", default="0.6,0.7,0.8,0.9")
    given = parser.parse_args()
    results = {}
    try:
        overlaps = [overlap_of(word) for word in given.overlaps.split(",")]
        for name in given.models.split(","):
            results[name] = gains(name, overlaps, data=given.data, imgsz=given.imgsz, batch=given.batch)
            print(name, *(f"{votes}: {found['AP']:.4f}" for votes, found in results[name].items()), flush=True)
    except UserError as error:
        print(f"box_votes: {error}", file=sys.stderr)
        sys.exit(2)
    record("box_votes", given, results)


def overlap_of(word: str) -> float:
    """Read a threshold.

    Raises:
        UserError: it is no number.
    """
    try:
        return float(word)
    except ValueError:
        raise UserError(f"--overlaps has '{word}'; give numbers from 0 to 1 with commas between") from None


def gains(name: str, overlaps: Sequence[float], **arguments: Any) -> dict[str, dict[str, Any]]:
    """Return what a model has without votes and with each overlap: AP, AP50 and AP75, and how AP differs."""
    model = YOLOLAT(name)
    with tempfile.TemporaryDirectory() as folder:
        runs = {}
        for votes in (None, *overlaps):
            label = "without" if votes is None else f"{votes:g}"
            words = {"project": folder, "name": label, "plots": False, "verbose": False, "device": "cpu"}
            found = model.val(box_vote=votes, **words, **arguments).coco
            runs[label] = {number: found[number] for number in ("AP", "AP50", "AP75")}
        comparison = compare_runs([Path(folder, label) for label in runs], progress=False)
    for place, label in enumerate(runs):
        if place:
            runs[label]["difference"] = asdict(comparison.difference(place, "AP"))
    return runs


if __name__ == "__main__":
    main()
