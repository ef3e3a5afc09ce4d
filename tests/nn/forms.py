"""Modules with batch norms that have seen data, and their inference form."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from ultralytics.nn.modules import Conv
from ultralytics.utils.torch_utils import fuse_conv_and_bn

from yolo_lat.nn import Gate


def settled(module: nn.Module, *inputs: object) -> nn.Module:
    """Give batch norms statistics and scales that differ from their start, so that fusing them is a real test."""
    torch.manual_seed(0)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.uniform_(m.bias, -0.5, 0.5)
        if isinstance(m, Gate):
            nn.init.uniform_(m.scale, 0.5, 1.5)
    module.train()
    for _ in range(20):
        module(*inputs)
    return module.eval()


def fuse(module: nn.Module) -> nn.Module:
    """As `LatModel.fuse`, with what it folds for either target."""
    module = copy.deepcopy(module)
    for m in module.modules():
        if isinstance(m, Conv) and hasattr(m, "bn"):
            m.conv = fuse_conv_and_bn(m.conv, m.bn)
            del m.bn
            m.forward = m.forward_fuse
    for m in module.modules():
        if hasattr(m, "fold"):
            m.fold()
    return module


def maps(*widths: int, size: int = 16) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(2, c, size // 2**i, size // 2**i) for i, c in enumerate(widths)]
