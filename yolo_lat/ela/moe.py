"""A mixture of experts whose labels route and, as biases, speak (paper, section 4)."""

from __future__ import annotations

import math
from collections.abc import Iterable
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

    All experts run in two products, on tokens sorted by expert. Without `capacity` no choice is dropped. Where torch
    multiplies groups of different sizes (`_group_dtype`) each expert then gets its own tokens and no more; in
    bfloat16 on a GPU of compute capability 9 or 10 the host does not wait for their numbers. Elsewhere the products are
    batched: each expert has as many places as the busiest one needs, which the host has to ask the device for. With
    `capacity` each has ceil(capacity · T · k / E) places, shapes do not depend on values, and choices beyond them are
    dropped in the order of the tokens.

    Args:
        width: D.
        hidden: hidden width of an expert.
        experts: E.
        k: experts a token.
        bias: "outer", "inner" or None.
        capacity: places over an even share; None for dropless.
        project: learn W_q; without it the token itself is the query, as the paper's number of parameters has it.

    Shape:
        (..., D) -> y (..., D), T being the number of tokens. Shares and balance loss are float32 at least.

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
        project: bool = True,
    ) -> None:
        super().__init__()
        if bias not in ("outer", "inner", None):
            raise ValueError(f"bias={bias!r} is unknown; use 'outer', 'inner' or None")
        if isinstance(k, bool) or not 1 <= k <= experts:
            raise ValueError(f"k={k} experts a token out of {experts} is impossible; use 1 to {experts}")
        if capacity is not None and not 0 < capacity < math.inf:
            raise ValueError(f"capacity={capacity} leaves no places; use 1 for an even share, or more")
        self.k, self.bias, self.capacity = k, bias, capacity
        self.query = nn.Linear(width, width, bias=False) if project else nn.Identity()
        self.labels = nn.Parameter(torch.randn(experts, width) / math.sqrt(width))
        self.expand = nn.Parameter(torch.empty(experts, width, 2 * hidden).uniform_(-1, 1) / math.sqrt(width))
        self.shrink = nn.Parameter(torch.empty(experts, hidden, width).uniform_(-1, 1) / math.sqrt(hidden))

    def forward(self, x: Tensor) -> MoEOutput:
        """Send every token through its experts.

        Raises:
            ValueError: there is no token, and so no share that experts could have of them.
        """
        if not x.numel():
            raise ValueError(f"x of shape {tuple(x.shape)} has no token to send to an expert")
        tokens = x.reshape(-1, x.shape[-1])
        logits = self.query(tokens) @ self.labels.T / math.sqrt(x.shape[-1])
        shares = logits.softmax(-1, dtype=torch.promote_types(x.dtype, torch.float32))
        gates, experts = shares.topk(self.k, dim=-1)
        count = len(self.labels)
        # F.one_hot may look at the values, for which the host would wait.
        chosen = experts.unsqueeze(-1) == torch.arange(count, device=x.device)
        load = chosen.to(shares.dtype).mean(dim=(0, 1))
        balance = count * (load * shares.mean(0)).sum()
        y, kept = self._run(tokens, experts, gates, chosen.sum(dim=(0, 1)))
        routing = Routing(experts.masked_fill(~kept, -1), gates, load)
        return MoEOutput(y.reshape(x.shape).to(x.dtype), balance, routing)

    def _run(self, tokens: Tensor, experts: Tensor, gates: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighted sum over experts (T, D), and which choices (T, k) found a place; `sizes` counts them."""
        chosen = experts.flatten()
        order = chosen.argsort(stable=True)
        dtype = _group_dtype(tokens, self.shrink.shape[1:]) if self.capacity is None else None
        if dtype is None:
            made, kept = self._batched(tokens, chosen, order, sizes)
        else:
            made, kept = self._grouped(tokens.to(dtype), order, sizes), torch.ones_like(order, dtype=torch.bool)
        weights = gates.flatten()[:, None]
        if self.bias == "inner":
            made = made + self.labels[chosen]
        made = weights * made
        if self.bias == "outer":
            made = made + self.labels[chosen]
        made = made * kept[:, None]
        return made.reshape(len(tokens), self.k, -1).sum(1), kept.reshape(experts.shape)

    def _grouped(self, tokens: Tensor, order: Tensor, sizes: Tensor) -> Tensor:
        """Return what experts make of each choice (T·k, D), in groups of `sizes`, taken in `order`."""
        ends = sizes.cumsum(0).to(torch.int32)
        expanded = F.grouped_mm(tokens[order // self.k], self.expand.to(tokens.dtype), offs=ends)
        gate, value = expanded.chunk(2, dim=-1)
        made = F.grouped_mm(F.silu(gate) * value, self.shrink.to(tokens.dtype), offs=ends)
        return torch.empty_like(made).index_copy(0, order, made)

    def _batched(self, tokens: Tensor, chosen: Tensor, order: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Return what experts make of each choice (T·k, D), 0 where it found no place, and which found one (T·k,)."""
        total, count = len(chosen), len(self.labels)
        starts = sizes.cumsum(0) - sizes
        place = torch.empty_like(order)
        place[order] = torch.arange(total, device=order.device) - starts[chosen[order]]
        places = self._places(sizes, total)
        kept = place < places
        # One row more than there are places takes what is dropped.
        row = torch.where(kept, chosen * places + place, count * places)
        source = torch.arange(total, device=order.device) // self.k
        groups = tokens.new_zeros(count * places + 1, tokens.shape[1]).index_copy(0, row, tokens[source])
        gate, value = (groups[:-1].reshape(count, places, -1) @ self.expand).chunk(2, dim=-1)
        made = (F.silu(gate) * value) @ self.shrink
        return F.pad(made.reshape(count * places, -1), (0, 0, 0, 1))[row], kept

    def _places(self, sizes: Tensor, total: int) -> int:
        """Return how many choices an expert takes in the batched product."""
        if self.capacity is not None:
            return math.ceil(self.capacity * total / len(sizes))
        # Tensors without values serve to count operations: those of an even share.
        return math.ceil(total / len(sizes)) if sizes.is_meta else int(sizes.max())


def _group_dtype(tokens: Tensor, widths: Iterable[int]) -> torch.dtype | None:
    """Return the dtype in which `F.grouped_mm` multiplies groups of tokens; None where it does not.

    torch 2.11 has it and 2.6 has not. It wants rows of whole 16 bytes and bfloat16, or float32 where nothing is
    compiled. Autocast, which it does not know, is followed here.
    """
    kind = tokens.device.type
    if not hasattr(F, "grouped_mm") or kind not in ("cpu", "cuda"):
        return None
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tokens.dtype
    fits = all(width * dtype.itemsize % 16 == 0 for width in widths)
    taken = (torch.bfloat16,) if torch.compiler.is_compiling() else (torch.float32, torch.bfloat16)
    return dtype if fits and dtype in taken else None


def routing_table(routing: Routing, groups: Tensor, count: int | None = None) -> Tensor:
    """Count which groups of tokens go to which experts, to see what experts specialise in.

    Args:
        routing: of T tokens.
        groups: (T,) int64, each token's group from 0: its class, its number in a vocabulary, its layer.
        count: G, number of groups; None for one more than the largest in `groups`.

    Returns:
        (G, E) float32: of the choices of group g that found a place, the share that fell on expert e. A row sums to 1,
        or is 0 if the group has none.

    Raises:
        ValueError: not one group for each token, or a group outside 0 to G - 1.
    """
    if groups.shape != routing.experts.shape[:1]:
        raise ValueError(f"groups of shape {tuple(groups.shape)} must be one for each of {len(routing.experts)} tokens")
    rows = int(groups.max()) + 1 if count is None else count
    if groups.min() < 0 or groups.max() >= rows:
        raise ValueError(f"groups from {int(groups.min())} to {int(groups.max())} must lie in 0 to {rows - 1}")
    experts = len(routing.load)
    cells = (groups[:, None] * experts + routing.experts)[routing.experts >= 0]
    table = cells.bincount(minlength=rows * experts).reshape(rows, experts).float()
    return table / table.sum(1, keepdim=True).clamp(min=1)
