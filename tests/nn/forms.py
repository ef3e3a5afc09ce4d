"""Modules with batch norms that have seen data, and their inference form."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from ultralytics.nn.modules import Conv
from ultralytics.utils.torch_utils import fuse_conv_and_bn

from yolo_lat.nn import Gate
from yolo_lat.nn.layout import channels_last_graph


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


def check_gradients_and_fused_forms(block: nn.Module, levels: list[Tensor], out: list[Tensor], last: bool) -> None:
    """Every parameter of a block on levels learns from `out`, and both inference forms, joined and apart, equal it."""
    sum(y.square().mean() for y in out).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters())
    with channels_last_graph(last):
        folded = fuse(block)
        joined = folded(levels)
        folded.keep_levels_apart()
        for form in (joined, folded(levels)):
            for fused, y in zip(form, out, strict=True):
                torch.testing.assert_close(fused, y, rtol=1e-4, atol=1e-4)
