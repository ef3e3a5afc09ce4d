"""Parameters and operations of a model, counted the same way for every architecture."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from ultralytics.nn.tasks import DetectionModel


def count_parameters(model: nn.Module) -> int:
    """Return the number of learned values as they stand: fuse the model first to count its inference form."""
    return sum(p.numel() for p in model.parameters())


def count_gflops(model: DetectionModel, imgsz: int | tuple[int, int] = 640, channels: int = 3) -> float:
    """Return 1e9 operations of one image's forward pass, a multiplication and an addition counting as two.

    Convolutions and matrix products are counted as they run, those inside attention included; Ultralytics' own counter
    hooks modules instead and so misses the products of attention.

    Args:
        model: a detector.
        imgsz: side in pixels, or (height, width).
        channels: input channels.
    """
    height, width = (imgsz, imgsz) if isinstance(imgsz, int) else imgsz
    stride = model.model[-1].stride
    model = copy.deepcopy(model).to("meta").float().eval()
    model.model[-1].stride = stride  # the head reads numbers from it, which the meta device does not have
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, channels, height, width, device="meta"))
    return counter.get_total_flops() / 1e9
