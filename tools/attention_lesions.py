"""What a trained model's attention is worth to it: AP on validation images with a part of attention taken away.

    python tools/attention_lesions.py MODEL,MODEL,... DATA OUT.json [--imgsz 320] [--batch 32]

Rows, for each model of DATA's classes with cross-scale ELA:

    whole       as trained
    own level   every level attends to its own tokens alone
    one for all every position receives what all receive in the mean, so that none has a query of its own
    constant    every position of every image receives the mean over training images, so that nothing is looked at

The weights stay as they are: this says what a model has come to rely on, and not what one that was trained without that
part would reach. Every image is a grey square of imgsz, as an exported model sees it. AP is COCO's, by
faster-coco-eval.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from grid_shift import evaluate, parser_of, record
from torch import Tensor, nn

from yolo_lat import YOLOLAT
from yolo_lat.data.labels import DetectionSplit
from yolo_lat.data.reader import read_split
from yolo_lat.data.registry import load_dataset
from yolo_lat.engine.validator import check_names
from yolo_lat.errors import UserError
from yolo_lat.nn import CrossScaleELA

TRAINING_IMAGES = 256  # that `constant` is the mean of


def main() -> None:
    """Read the words, evaluate, record and print."""
    given = parser_of(__doc__).parse_args()
    try:
        spec = load_dataset(given.data)
        train, val = (read_split(spec, name, progress=False) for name in ("train", "val"))
        step = max(len(train.images) // TRAINING_IMAGES, 1)
        train = replace(train, images=train.images[::step][:TRAINING_IMAGES])
        results = {}
        for name in given.models.split(","):
            model = YOLOLAT(name).model.float().eval()
            check_names(spec, model.names)
            results[name] = lesions(name, model, train, val, given.imgsz, given.batch)
            print(name, *(f"{part}: {ap:.4f}" for part, ap in results[name].items()), flush=True)
    except UserError as error:
        print(f"attention_lesions: {error}", file=sys.stderr)
        sys.exit(2)
    record("attention_lesions", given, results)


def lesions(
    name: str, model: nn.Module, train: DetectionSplit, val: DetectionSplit, imgsz: int, batch: int
) -> dict[str, float]:
    """Return the AP of a model in evaluation mode, whole and with each part taken away.

    Raises:
        UserError: a model without cross-scale ELA.
    """
    layers = [module for module in model.modules() if isinstance(module, CrossScaleELA) and module.attention]
    if not layers:
        raise UserError(f"{name} has no cross-scale attention; name a model that has")

    def measured(split: DetectionSplit) -> float:
        return evaluate(model, split, imgsz, 0, batch, border=0)

    found = {"whole": measured(val)}
    across = [layer.across for layer in layers]
    for layer in layers:
        layer.across = False
    found["own level"] = measured(val)
    for layer, before in zip(layers, across, strict=True):
        layer.across = before
    with replaced(layers, lambda y, _: over_positions(y).expand_as(y)):
        found["one for all"] = measured(val)
    sums: dict[int, list[Tensor]] = {index: [] for index in range(len(layers))}

    def noted(y: Tensor, index: int) -> Tensor:
        sums[index].extend(over_positions(y))
        return y

    with replaced(layers, noted):
        measured(train)
    means = [torch.stack(sums[index]).mean(0) for index in range(len(layers))]
    with replaced(layers, lambda y, index: means[index].expand_as(y)):
        found["constant"] = measured(val)
    return found


def over_positions(y: Tensor) -> Tensor:
    """Return the mean over the positions of each image, (B, C, 1, 1) of (B, C, H, W)."""
    return y.mean((2, 3), keepdim=True)


@contextmanager
def replaced(layers: list[CrossScaleELA], change: Any) -> Iterator[None]:
    """Let `change` of what attention gave a layer, and of the layer's number, stand in its place."""
    kept = [layer.attention.attend for layer in layers]
    try:
        for index, (layer, attend) in enumerate(zip(layers, kept, strict=True)):

            def changed(*given: Any, attend: Any = attend, index: int = index) -> tuple[Tensor, Any]:
                y, rest = attend(*given)
                return change(y, index), rest

            layer.attention.attend = changed
        yield
    finally:
        for layer in layers:
            del layer.attention.attend


if __name__ == "__main__":
    main()
