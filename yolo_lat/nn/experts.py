"""A feed-forward network of several experts for feature maps, of which every position takes one (paper, section 4)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from yolo_lat.ela import LabelMoE
from yolo_lat.ela.moe import Bias
from yolo_lat.nn.layout import as_map, channels_first, channels_last, token_rows

BALANCE_WEIGHT = 0.01  # Switch Transformers (Fedus et al., 2021), section 2.2


class RoutedFFN(nn.Module):
    """BN(LabelMoE(x)), positions being the tokens: each is sent to the expert whose label suits it best.

    The batch norm's scale is the layer's gate on the shared stream, as in `GatedFFN`. In training a position costs what
    one expert costs. The deployed form runs all experts everywhere, in convolutions, and keeps one a position: nothing
    is sorted, so it can be exported, and it costs what its experts cost together.

    Args:
        c: channels in and out.
        hidden: hidden width of an expert.
        experts: number of experts.
        bias: what labels add to the output: "outer", "inner" or None, as in `yolo_lat.ela.LabelMoE`.

    Attributes:
        balance: balance loss of the last forward pass in training, until `with_balance` takes it.

    Shape:
        (B, c, H, W) -> (B, c, H, W).

    Raises:
        ValueError: an unknown bias, or no experts.
    """

    def __init__(self, c: int, hidden: int, experts: int, bias: Bias | None = "outer") -> None:
        super().__init__()
        self.moe: Any = LabelMoE(c, hidden, experts, bias=bias)
        self.norm: Any = nn.BatchNorm2d(c)
        self.balance: Tensor | None = None
        self.experts, self.bias = experts, bias
        self.halves = nn.ModuleList()  # gate and value of all experts, once deployed; so are the next two
        self.route: nn.Module = nn.Identity()
        self.out: nn.Module = nn.Identity()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the balance loss, part of a graph that can neither be copied nor stored."""
        return {**self.__dict__, "balance": None}

    def forward(self, x: Tensor) -> Tensor:
        """Send every position through its expert."""
        if self.halves:
            return self._deployed(x)
        y, balance, _ = self.moe(channels_last(x))
        self.balance = balance if self.training else None
        return self.norm(channels_first(y))

    def _deployed(self, x: Tensor) -> Tensor:
        """Weigh the hidden values of all experts, 0 for all but the best, and add up what is left in one product."""
        shares = token_rows(self.route(x)).softmax(-1)
        best = (shares.argmax(-1, keepdim=True) == torch.arange(self.experts, device=x.device)).to(shares.dtype)
        gates = shares * best
        gate, value = (half(x) for half in self.halves)
        hidden = token_rows(F.silu(gate) * value)
        by_expert = hidden.reshape(hidden.shape[0], -1, self.experts, gate.shape[1] // self.experts)
        weighted = (by_expert * gates.unsqueeze(-1)).reshape(hidden.shape)
        labels = {"outer": [best], "inner": [gates], None: []}[self.bias]
        return self.out(as_map(torch.cat([weighted, *labels], dim=-1), x))

    @torch.no_grad()
    def fold(self) -> None:
        """Turn experts, labels and batch norm into 1x1 convolutions: route, gate, value, out."""
        if self.halves:
            return
        moe, norm = self.moe, self.norm
        self.route = _pointwise(moe.labels @ moe.query.weight / math.sqrt(moe.labels.shape[1]))
        for part in moe.expand.chunk(2, dim=-1):
            self.halves.append(_pointwise(part.transpose(1, 2).flatten(0, 1)))
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        columns = [moe.shrink.flatten(0, 1), *([] if self.bias is None else [moe.labels])]
        self.out = _pointwise(torch.cat(columns).T * scale[:, None], norm.bias - norm.running_mean * scale)
        self.moe = self.norm = nn.Identity()
        for conv in (self.route, *self.halves, self.out):
            conv.requires_grad_(moe.expand.requires_grad)


def _pointwise(weight: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    """Return the 1x1 convolution with a matrix (out, in) and a bias (out,)."""
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=False)
    conv.weight = nn.Parameter(weight[:, :, None, None].contiguous())
    conv.bias = None if bias is None else nn.Parameter(bias)
    return conv


def with_balance(losses: Tensor, model: nn.Module, images: int) -> Tensor:
    """Append what the experts of the last forward pass add to the losses of a batch, a sum over its images.

    Args:
        losses: (n,), times the number of images, as Ultralytics has them.
        model: what made the predictions; its balance losses are taken from it.
        images: number of images in the batch.

    Returns:
        (n + 1,), or `losses` as they are where no experts were trained.
    """
    taken = []
    for module in model.modules():
        if isinstance(module, RoutedFFN) and module.balance is not None:
            taken.append(module.balance)
            module.balance = None
    if not taken:
        return losses
    return torch.cat([losses, BALANCE_WEIGHT * images * torch.stack(taken).sum(0, keepdim=True)])
