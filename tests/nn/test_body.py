"""The stem, and residual units whose inference form is plain convolutions."""

from __future__ import annotations

import pytest
import torch
from forms import fuse, settled
from torch import nn
from ultralytics.nn.modules import Conv

from yolo_lat.nn import LocalBlock, PixelStem
from yolo_lat.nn.body import ResidualConv
from yolo_lat.nn.layout import channels_last_graph


def doubles(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


class TestResidualConv:
    @pytest.mark.parametrize(
        ("k", "groups"), [(3, 1), (5, 8), (3, 2), (1, 1), (7, 8)], ids=["dense", "depthwise", "grouped", "1x1", "7x7"]
    )
    @pytest.mark.parametrize("act", [False, True])
    def test_folds_into_one_plain_convolution(self, k: int, groups: int, act: bool) -> None:
        x = doubles(2, 8, 9, 7)
        unit = settled(ResidualConv(8, k, groups, act).double(), x)
        folded = fuse(unit)
        same(folded(x), unit(x))
        leaves = {type(m) for m in folded.modules() if not list(m.children())}
        assert leaves == {nn.Conv2d, nn.Identity, type(unit.act)}  # a Conv's own activation is an Identity
        assert folded.branch.conv.weight.shape == unit.branch.conv.weight.shape

    def test_is_what_it_says(self) -> None:
        x = doubles(2, 8, 9, 7)
        unit = settled(ResidualConv(8).double(), x)
        expected = unit.branch.bn(unit.branch.conv(x)) + x
        same(unit(x), nn.functional.silu(expected))

    def test_folding_twice_changes_nothing(self) -> None:
        x = doubles(2, 8, 9, 7)
        once = fuse(settled(ResidualConv(8).double(), x))
        same(fuse(once)(x), once(x))

    def test_the_identity_carries_the_gradient(self) -> None:
        unit = settled(ResidualConv(8, act=False).double(), doubles(2, 8, 9, 7))
        nn.init.zeros_(unit.branch.bn.weight)
        x = doubles(2, 8, 9, 7).requires_grad_()
        unit(x).sum().backward()
        same(x.grad, torch.ones_like(x))


class TestPixelStem:
    @pytest.mark.parametrize(("c1", "size"), [(3, (32, 32)), (1, (64, 32)), (4, (32, 96))])
    def test_is_pixel_unshuffle_and_a_convolution_in_both_forms(self, c1: int, size: tuple[int, int]) -> None:
        x = doubles(2, c1, *size)
        stem = settled(PixelStem(c1, 8).double(), x)
        expected = stem.conv(nn.functional.pixel_unshuffle(x, 2))
        same(stem(x), expected)
        with channels_last_graph():
            same(stem(x), expected)
        folded = fuse(stem)
        same(folded(x), expected)
        conv = folded.conv.conv
        assert (conv.kernel_size, conv.stride, conv.padding) == ((6, 6), (4, 4), (2, 2))
        assert expected.shape == (2, 8, size[0] // 4, size[1] // 4)
        same(fuse(folded)(x), expected)


class TestLocalBlock:
    def test_no_units_are_the_identity(self) -> None:
        x = doubles(2, 8, 9, 7)
        block = LocalBlock(8, 8, n=0)
        assert block(x) is x
        assert not list(block.parameters())
        assert fuse(block)(x) is x

    def test_no_units_still_adapt_the_width(self) -> None:
        x = doubles(2, 8, 9, 7)
        block = settled(LocalBlock(8, 16, n=0).double(), x)
        same(block(x), block.adapt(x))

    @pytest.mark.parametrize(("depthwise", "groups"), [(True, [12, 1, 12, 1]), (False, [1, 1])])
    def test_folds_into_plain_convolutions(self, depthwise: bool, groups: list[int]) -> None:
        x = doubles(2, 8, 9, 7)
        block = settled(LocalBlock(8, 12, n=2, k=5, depthwise=depthwise).double(), x)
        folded = fuse(block)
        same(folded(x), block(x))
        convolutions = [m for m in folded.units.modules() if isinstance(m, nn.Conv2d)]
        assert [conv.groups for conv in convolutions] == groups
        assert {conv.kernel_size for conv in convolutions} == ({(5, 5), (1, 1)} if depthwise else {(5, 5)})
        assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]

    def test_the_models_activation_is_used(self, monkeypatch) -> None:
        monkeypatch.setattr(Conv, "default_act", nn.ReLU())
        assert LocalBlock(8, 8)(doubles(2, 8, 9, 7).float()).min() == 0
