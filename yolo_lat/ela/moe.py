"""A mixture of experts whose labels route and, as biases, speak (paper, section 4)."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

Bias = Literal["outer", "inner"]


class Routing(NamedTuple):
    """Which token went where.

    Attributes:
        experts: (T, k) int64, the best first; -1 where an expert had no place left.
        gates: (T, k) S_e, their shares of the routing softmax.
        load: (E,) share of all token-places that each expert was chosen for, sums to 1.
    """

    experts: Tensor
    gates: Tensor
    load: Tensor


class MoEOutput(NamedTuple):
    """What a mixture returns: its output, the loss that keeps experts equally busy, and the routing."""

    y: Tensor
    balance: Tensor
    routing: Routing


class LabelMoE(nn.Module):
    """SwiGLU experts, each with a learned label: queries attend to labels to choose experts, and labels are biases.

    With S_e = softmax_e(W_q x · label_e / sqrt(D)), summed over the k best experts,

        outer: y = sum_e S_e ffn_e(x) + label_e        inner: y = sum_e S_e (ffn_e(x) + label_e)

    and `bias=None` leaves the labels out. The balance loss is E · sum_e f_e g_e, f_e being the share of choices that
    fell on e and g_e the mean of S_e: 1 where all are equal, up to E.

    All experts run in two batched products, on tokens sorted by expert. Without `capacity` there is a place for every
    choice (dropless), as many as the busiest expert needs, which the host has to ask the device for. With it each
    expert has ceil(capacity · T · k / E) places, shapes do not depend on values, and choices beyond them are dropped in
    the order of the tokens.

    Args:
        width: D.
        hidden: hidden width of an expert.
        experts: E.
        k: experts a token.
        bias: "outer", "inner" or None.
        capacity: places over an even share; None for dropless.

    Shape:
        (..., D) -> y (..., D), T being the number of tokens.

    Raises:
        ValueError: another bias, k beyond the number of experts, or a capacity that is not positive.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        experts: int = 4,
        k: int = 1,
        bias: Bias | None = "outer",
        capacity: float | None = None,
    ) -> None:
        super().__init__()
        if bias not in ("outer", "inner", None):
            raise ValueError(f"bias={bias!r} is unknown; use 'outer', 'inner' or None")
        if not 1 <= k <= experts:
            raise ValueError(f"k={k} experts a token out of {experts} is impossible; use 1 to {experts}")
        if capacity is not None and capacity <= 0:
            raise ValueError(f"capacity={capacity} leaves no places; use 1 for an even share, or more")
        self.k, self.bias, self.capacity = k, bias, capacity
        self.query = nn.Linear(width, width, bias=False)
        self.labels = nn.Parameter(torch.randn(experts, width) / math.sqrt(width))
        self.expand = nn.Parameter(torch.empty(experts, width, 2 * hidden).uniform_(-1, 1) / math.sqrt(width))
        self.shrink = nn.Parameter(torch.empty(experts, hidden, width).uniform_(-1, 1) / math.sqrt(hidden))

    def forward(self, x: Tensor) -> MoEOutput:
        """Send every token through its experts."""
        tokens = x.reshape(-1, x.shape[-1])
        shares = (self.query(tokens) @ self.labels.T / math.sqrt(x.shape[-1])).softmax(-1)
        gates, experts = shares.topk(self.k, dim=-1)
        count = len(self.labels)
        load = F.one_hot(experts, count).to(shares.dtype).mean(dim=(0, 1))
        balance = count * (load.detach() * shares.mean(0)).sum()
        y, kept = self._run(tokens, experts, gates)
        routing = Routing(experts.masked_fill(~kept, -1), gates, load)
        return MoEOutput(y.reshape(x.shape), balance, routing)

    def _run(self, tokens: Tensor, experts: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighted sum over experts (T, D), and which choices (T, k) found a place."""
        total, count = experts.numel(), len(self.labels)
        chosen = experts.flatten()
        order = chosen.argsort(stable=True)
        sizes = F.one_hot(chosen, count).sum(0)
        starts = sizes.cumsum(0) - sizes
        place = torch.empty_like(order)
        place[order] = torch.arange(total, device=order.device) - starts[chosen[order]]
        places = int(sizes.max()) if self.capacity is None else math.ceil(self.capacity * total / count)
        kept = place < places
        # One row more than there are places takes what is dropped.
        row = torch.where(kept, chosen * places + place, count * places)
        source = torch.arange(total, device=order.device) // self.k
        groups = tokens.new_zeros(count * places + 1, tokens.shape[1]).index_copy(0, row, tokens[source])
        gate, value = (groups[:-1].reshape(count, places, -1) @ self.expand).chunk(2, dim=-1)
        made = (F.silu(gate) * value) @ self.shrink
        made = F.pad(made.reshape(count * places, -1), (0, 0, 0, 1))[row]
        weights = gates.flatten()[:, None]
        if self.bias == "inner":
            made = made + self.labels[chosen]
        made = weights * made
        if self.bias == "outer":
            made = made + self.labels[chosen]
        made = made * kept[:, None]
        return made.reshape(len(tokens), self.k, -1).sum(1), kept.reshape(experts.shape)
