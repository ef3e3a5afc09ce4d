"""Backbone pieces of `yolo-lat-p.yaml`: a stem that reaches stride 4 in one convolution, and light residual blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from ultralytics.nn.modules import Conv

from yolo_lat.nn.layout import channels_first


def check_odd(name: str, side: int) -> None:
    """Raise ValueError unless the side of a convolution is odd, as one that keeps a map's size has to be."""
    if side < 1 or side % 2 == 0:
        raise ValueError(f"{name}={side} is no odd side; use 3, 5 or another odd number")


class PixelStem(nn.Module):
    """PixelUnshuffle(2) and a 3x3 convolution of stride 2: the image at stride 4 without a layer at stride 2.

    Layers at stride 1 and 2 take most of a small detector's time on a GPU; this stem has none.

    Shape:
        (B, c1, H, W) -> (B, c2, H / 4, W / 4).
    """

    def __init__(self, c1: int, c2: int) -> None:
        super().__init__()
        self.conv = Conv(4 * c1, c2, 3, 2)
        self.direct = False

    def forward(self, x: Tensor) -> Tensor:
        """Fold 2x2 pixels into channels, then convolve."""
        if self.direct:
            return self.conv(x)
        b, c, h, w = x.shape
        # As nn.PixelUnshuffle, but with one transposition on the way to a convolution that runs channels last.
        cells = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
        return self.conv(channels_first(cells.reshape(b, h // 2, w // 2, 4 * c)))

    @torch.no_grad()
    def fold(self) -> None:
        """Become one 6x6 convolution of stride 4, to be called once the batch norm is folded.

        The same sums in another order: a CPU is faster without moving the pixels, a GPU with it, where convolutions of
        three channels are slow.
        """
        if self.direct:
            return
        conv = self.conv.conv
        c2, c4 = conv.weight.shape[:2]
        # (c2, c, i, j, cell row, cell column) -> (c2, c, cell row, i, cell column, j)
        weight = conv.weight.reshape(c2, c4 // 4, 2, 2, 3, 3).permute(0, 1, 4, 2, 5, 3).reshape(c2, c4 // 4, 6, 6)
        self.conv.conv = nn.Conv2d(c4 // 4, c2, 6, 4, 2).to(weight)
        self.conv.conv.weight.data, self.conv.conv.bias.data = weight, conv.bias
        self.direct = True


class ResidualConv(nn.Module):
    """act(x + BN(W x)), a residual that folds into one plain convolution for inference.

    The identity joins before the activation, so both branches are linear in x, as in RepVGG (Ding et al., 2021); unlike
    there, it has no batch norm of its own.

    Args:
        c: channels in and out.
        k: side of the convolution, odd.
        groups: must divide c; c makes it depthwise.
        act: end with the model's activation.

    Shape:
        (B, c, H, W) -> (B, c, H, W).

    Raises:
        ValueError: an even k.
    """

    def __init__(self, c: int, k: int = 3, groups: int = 1, act: bool = True) -> None:
        super().__init__()
        check_odd("k", k)
        self.branch = Conv(c, c, k, g=groups, act=False)
        self.act = Conv.default_act if act else nn.Identity()
        self.folded = False

    def forward(self, x: Tensor) -> Tensor:
        """Add the branches and activate."""
        y = self.branch(x)
        return self.act(y if self.folded else x + y)

    @torch.no_grad()
    def fold(self) -> None:
        """Fold the identity into the branch, whose batch norm is folded already."""
        if self.folded:
            return
        weight = self.branch.conv.weight
        channels, centre = torch.arange(len(weight), device=weight.device), weight.shape[-1] // 2
        weight[channels, channels % weight.shape[1], centre, centre] += 1
        self.folded = True


class LocalBlock(nn.Module):
    """n residual units that fold into plain convolutions: a k x k one, or a depthwise k x k and a pointwise one.

    Args:
        c1: input channels; a 1x1 convolution adapts them when they differ from c2.
        c2: output channels.
        n: number of units.
        k: side of the convolution, odd.
        depthwise: split the convolution in two: less to compute and to store, but one more kernel to launch.

    Shape:
        (B, c1, H, W) -> (B, c2, H, W).

    Raises:
        ValueError: an even k.
    """

    def __init__(self, c1: int, c2: int, n: int = 1, k: int = 3, depthwise: bool = True) -> None:
        super().__init__()
        self.adapt = Conv(c1, c2, 1) if c1 != c2 else nn.Identity()
        self.units = nn.Sequential(*(self._unit(c2, k, depthwise) for _ in range(n)))

    @staticmethod
    def _unit(c: int, k: int, depthwise: bool) -> nn.Module:
        if not depthwise:
            return ResidualConv(c, k)
        return nn.Sequential(ResidualConv(c, k, groups=c, act=False), ResidualConv(c, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Run the units."""
        return self.units(self.adapt(x))
