"""Backbone pieces of `yolo-lat.yaml`: a stem that reaches stride 4 in one convolution, and a light residual block."""

from __future__ import annotations

from torch import Tensor, nn
from ultralytics.nn.modules import Conv
from ultralytics.utils.ops import make_divisible


class PixelStem(nn.Module):
    """PixelUnshuffle(2) and a 3x3 convolution of stride 2: the image at stride 4 without a layer at stride 2.

    Layers at stride 1 and 2 take most of a small detector's time on a GPU; this stem has none.

    Shape:
        (B, c1, H, W) -> (B, c2, H / 4, W / 4).
    """

    def __init__(self, c1: int, c2: int) -> None:
        super().__init__()
        self.unshuffle = nn.PixelUnshuffle(2)
        self.conv = Conv(4 * c1, c2, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Fold 2x2 pixels into channels, then convolve."""
        return self.conv(self.unshuffle(x))


class LocalBlock(nn.Module):
    """n residual units of a depthwise and one or two pointwise convolutions.

    Args:
        c1: input channels; a 1x1 convolution adapts them when they differ from c2.
        c2: output channels.
        n: number of units.
        k: side of the depthwise convolution, odd.
        expand: hidden width over c2; 0 uses a single pointwise convolution.

    Shape:
        (B, c1, H, W) -> (B, c2, H, W).
    """

    def __init__(self, c1: int, c2: int, n: int = 1, k: int = 3, expand: float = 0.0) -> None:
        super().__init__()
        self.adapt = Conv(c1, c2, 1) if c1 != c2 else nn.Identity()
        self.units = nn.ModuleList(self._unit(c2, k, expand) for _ in range(n))

    @staticmethod
    def _unit(c: int, k: int, expand: float) -> nn.Sequential:
        depthwise = Conv(c, c, k, g=c, act=False)
        if not expand:
            return nn.Sequential(depthwise, Conv(c, c, 1))
        hidden = make_divisible(c * expand, 8)
        return nn.Sequential(depthwise, Conv(c, hidden, 1), Conv(hidden, c, 1, act=False))

    def forward(self, x: Tensor) -> Tensor:
        """Add each unit's output to the stream."""
        x = self.adapt(x)
        for unit in self.units:
            x = x + unit(x)
        return x
