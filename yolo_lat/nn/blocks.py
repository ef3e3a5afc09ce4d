"""The blocks of YOLO-LAT: 2D exact linear attention, its gated FFN, the layer made of both, and Hyper-Links.

Every projection is an Ultralytics `Conv` (convolution, batch norm, activation), so that the normalisation in the
paper's `Attn(Norm(x))` sits behind each 1x1 projection instead of before it: there it bounds the logits of attention
and folds into the projection when the model is fused for inference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from ultralytics.nn.modules import Conv
from ultralytics.utils.ops import make_divisible

from yolo_lat.ela.moe import Bias
from yolo_lat.nn.attention import ProjectedELA
from yolo_lat.nn.experts import RoutedFFN
from yolo_lat.nn.layout import add_upsampled

JOINS = ("gated", "linear", "sum", "concat")  # of a HyperLink


class ELA2d(nn.Module):
    """2D multi-head bidirectional exact linear attention over all H·W positions (paper, section 1).

    y = W_out (ELA(W_q x, W_k x, W_v x) + DepthwiseConv(W_v x)); the depthwise convolution of v is the positional term,
    without which attention could not tell positions apart. W_out is for a block that stands alone: a layer whose next
    step is linear, such as `ELALayer`, leaves it out, since two linear maps in a row are one.

    Args:
        c1: input channels.
        c2: output channels, also the width of v.
        heads: must divide c2.
        key_dim: channels of a head's query and key; bounds the rank of its attention matrix.
        kernel: a name known to `yolo_lat.ela.get_kernel`.
        pe: side of the positional convolution, odd.
        project: end with the 1x1 projection W_out.

    Shape:
        (B, c1, H, W) -> (B, c2, H, W).

    Raises:
        ValueError: heads that do not divide c2, or an unknown kernel.
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        heads: int = 4,
        key_dim: int = 8,
        kernel: str = "HadamardExp",
        pe: int = 5,
        project: bool = True,
    ) -> None:
        super().__init__()
        self.attention = ProjectedELA(c1, c2, heads, key_dim, kernel)
        self.pe = Conv(c2, c2, pe, g=c2, act=False)
        self.out = Conv(c2, c2, 1, act=False) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the whole map."""
        y, v = self.attention(x)
        return self.out(y + self.pe(v))


class GatedFFN(nn.Module):
    """Feed-forward network whose gate modulates what the layer writes: W_out (act(W_gate x) * W_value x).

    Args:
        c: channels in and out.
        ratio: hidden width over c; rounded up to a multiple of 8.

    Shape:
        (B, c, H, W) -> (B, c, H, W).
    """

    def __init__(self, c: int, ratio: float = 1.0) -> None:
        super().__init__()
        hidden = make_divisible(c * ratio, 8)
        self.expand: nn.Module = Conv(c, 2 * hidden, 1, act=False)
        self.act = Conv.default_act
        self.out = Conv(hidden, c, 1, act=False)
        self.halves = nn.ModuleList()  # of `expand` once deployed

    def forward(self, x: Tensor) -> Tensor:
        """Apply the network at every position."""
        gate, value = (half(x) for half in self.halves) if self.halves else self.expand(x).chunk(2, dim=1)
        return self.out(self.act(gate) * value)

    @torch.no_grad()
    def fold(self) -> None:
        """Compute gate and value apart, so that nothing has to be split; to be called once batch norms are folded."""
        if self.halves:
            return
        conv: Any = self.expand.conv
        for part in zip(conv.weight.chunk(2), conv.bias.chunk(2), strict=True):
            half: Any = nn.Conv2d(conv.in_channels, conv.out_channels // 2, 1).to(conv.weight)
            half.weight.copy_(part[0])
            half.bias.copy_(part[1])
            self.halves.append(half.requires_grad_(conv.weight.requires_grad))
        self.expand = nn.Identity()


class PlainFFN(nn.Module):
    """Feed-forward network without a gate, W_out act(W x), which `GatedFFN` is compared with.

    Args:
        c: channels in and out.
        ratio: hidden width of the gated network over c; this one's is half as wide again, so that both have the same
            number of weights.

    Shape:
        (B, c, H, W) -> (B, c, H, W).
    """

    def __init__(self, c: int, ratio: float = 1.0) -> None:
        super().__init__()
        hidden = make_divisible(1.5 * c * ratio, 8)
        self.expand = Conv(c, hidden, 1)
        self.out = Conv(hidden, c, 1, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the network at every position."""
        return self.out(self.expand(x))


def feed_forward(c: int, ratio: float, experts: int, bias: Bias | None, gate: bool = True) -> nn.Module:
    """Return a gated FFN, or with `experts` above 0 a mixture of so many, each with the same hidden width.

    Raises:
        ValueError: a hidden width or a number of experts that cannot be, or experts without a gate; there are none.
    """
    if ratio <= 0:
        raise ValueError(f"ffn_ratio={ratio} leaves no hidden layer; use a number above 0, such as 1.0")
    if not isinstance(experts, int) or experts < 0:
        raise ValueError(f"experts={experts} must be a whole number from 0; 0 is one network without routing")
    if not experts:
        return GatedFFN(c, ratio) if gate else PlainFFN(c, ratio)
    if not gate:
        raise ValueError(f"experts={experts} are gated; leave gate=False out, or experts")
    return RoutedFFN(c, make_divisible(c * ratio, 8), experts, bias)


class ELALayer(nn.Module):
    """One layer as one unit of the Hyper-Link: x + GatedFFN(ELA2d(x)), no residual around attention (section 2).

    The scale of the last batch norm is the layer's gate_k on the shared stream, one a channel.
    """

    def __init__(
        self,
        c: int,
        heads: int,
        key_dim: int,
        kernel: str,
        ffn_ratio: float,
        experts: int = 0,
        bias: Bias | None = "outer",
    ) -> None:
        super().__init__()
        self.attention = ELA2d(c, c, heads, key_dim, kernel, project=False)
        self.ffn = feed_forward(c, ffn_ratio, experts, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Write the layer's update to the stream x (B, c, H, W)."""
        return x + self.ffn(self.attention(x))


class ELABlock(nn.Module):
    """A stack of ELA layers on one stream; takes the place of C2f, C3k2 or A2C2f in a neck.

    Args:
        c1: input channels; a 1x1 convolution adapts them when they differ from c2.
        c2: output channels.
        n: number of layers.
        heads: must divide c2.
        key_dim: channels of a head's query and key.
        kernel: a name known to `yolo_lat.ela.get_kernel`.
        ffn_ratio: hidden width of the gated FFN over c2.
        experts: number of experts, each an FFN, of which every position takes one; 0 for one FFN without routing.
        bias: what the labels of experts add: "outer", "inner" or None.

    Shape:
        (B, c1, H, W) -> (B, c2, H, W).

    Raises:
        ValueError: heads that do not divide c2, an unknown kernel or bias.
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        n: int = 1,
        heads: int = 4,
        key_dim: int = 8,
        kernel: str = "HadamardExp",
        ffn_ratio: float = 1.0,
        experts: int = 0,
        bias: Bias | None = "outer",
    ) -> None:
        super().__init__()
        self.adapt = Conv(c1, c2, 1) if c1 != c2 else nn.Identity()
        self.layers = nn.Sequential(*(ELALayer(c2, heads, key_dim, kernel, ffn_ratio, experts, bias) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        """Run the stack."""
        return self.layers(self.adapt(x))


class Gate(nn.Module):
    """A learned factor a channel, 1 at the start."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(c, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Scale (B, c, H, W) by channel; the result has x's dtype, also where autocast made that a half."""
        return x * self.scale.to(x.dtype)


class HyperLink(nn.Module):
    """Gated sum of features from several depths, in place of Concat: x_0 + sum_k gate_k * layer_k (section 2).

    The first input that has the width of the stream and its resolution is x_0, the stream itself, and passes unchanged.
    Every other input is brought to the stream: by a 1x1 convolution where its width differs (the scale of its batch
    norm is the gate), by a gate a channel where it does not, and by nearest-neighbour upsampling, after the
    convolution, where it is coarser.

    `join` names what else may be written: "linear", a 1x1 convolution for every input but the stream, so that channels
    of one depth reach all of another; "sum", neither gates nor that, a plain residual (a convolution that adapts the
    width keeps its batch norm, as in ResNet); and "concat", upsampled inputs side by side and one 1x1 convolution, of
    which each input's part is computed at that input's own resolution, as it commutes with the upsampling.

    Args:
        channels: width of each input.
        c2: width of the stream.
        upsample: integer factor for each input; None stands for 1 everywhere.
        join: "gated", "linear", "sum" or "concat".

    Shape:
        [(B, channels[i], H / upsample[i], W / upsample[i])] -> (B, c2, H, W).

    Raises:
        ValueError: not one upsampling factor for each input, or an unknown join.
    """

    def __init__(self, channels: list[int], c2: int, upsample: list[int] | None = None, join: str = "gated") -> None:
        super().__init__()
        if join not in JOINS:
            raise ValueError(f"join={join} is unknown; use one of {', '.join(JOINS)}")
        factors = [1] * len(channels) if upsample is None else list(upsample)
        if len(factors) != len(channels) or any(f != int(f) or f < 1 for f in factors):
            raise ValueError(f"upsample={upsample} must give one whole factor for each of the {len(channels)} inputs")
        self.upsample = factors
        self.widths = list(channels)
        self.mix = Conv(sum(channels), c2, 1, act=False) if join == "concat" else None
        self.stream = next((i for i, c in enumerate(channels) if c == c2 and factors[i] == 1), -1)
        self.links = nn.ModuleList(
            nn.Identity() if i == self.stream or join == "concat" else self._link(c, c2, join)
            for i, c in enumerate(channels)
        )

    @staticmethod
    def _link(c1: int, c2: int, join: str) -> nn.Module:
        if c1 != c2 or join == "linear":
            return Conv(c1, c2, 1, act=False)
        return Gate(c2) if join == "gated" else nn.Identity()

    def forward(self, x: list[Tensor]) -> Tensor:
        """Sum the inputs onto the stream."""
        if self.mix is None:
            return self._sum([link(feature) for link, feature in zip(self.links, x, strict=True)])
        weights, bias = self.mix.conv.weight.split(self.widths, dim=1), self.mix.conv.bias
        first, *others = zip(x, weights, strict=True)
        total = self._sum([F.conv2d(*first, bias), *(F.conv2d(*pair) for pair in others)])
        return self.mix.bn(total) if hasattr(self.mix, "bn") else total  # in bias, once fused

    def _sum(self, x: list[Tensor]) -> Tensor:
        total: Tensor | None = None
        for y, factor in sorted(zip(x, self.upsample, strict=True), key=lambda pair: pair[1]):  # finest first
            if total is None:
                total = _upsampled(y, factor)
            else:
                total = add_upsampled(total, y, factor) if factor > 1 else total + y
        assert total is not None
        return total


def _upsampled(x: Tensor, factor: int) -> Tensor:
    return F.interpolate(x, scale_factor=float(factor), mode="nearest") if factor > 1 else x
