"""The Memory Lobe: attention over what a layer changed, added to the stream (paper, section 3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from yolo_lat.ela.attention import ELAState, exact_linear_attention
from yolo_lat.ela.causal import causal_attention
from yolo_lat.ela.kernels import HadamardExp, Kernel


class MemoryLobe(nn.Module):
    """Exact linear attention over the updates delta_k = x_k - x_{k-1} of a layer, with projections of its own.

    Goes with any residual model: x_k = x_{k-1} + delta_k + lobe(delta_k). The value projection starts at zero, so that
    a model begins as it would without.

    The paper's lobe is bidirectional. In a model that predicts the next token it then shows every position what comes
    after it: training loss falls, and means nothing, since the future is not there when text is generated.
    `causal=True` sums over earlier positions alone.

    Args:
        width: D, of the stream.
        heads: must divide D.
        kernel: defaults to `HadamardExp()`.
        causal: see above; False as in the paper.

    Shape:
        (B, L, D) -> (B, L, D).

    Raises:
        ValueError: heads that do not divide the width.
    """

    def __init__(self, width: int, heads: int = 4, kernel: Kernel | None = None, causal: bool = False) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"heads={heads} does not divide the width {width}")
        self.heads, self.kernel, self.causal = heads, kernel or HadamardExp(), causal
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        nn.init.zeros_(self.value.weight)

    def forward(self, delta: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return what a layer's update adds beyond itself.

        Args:
            delta: the update (B, L, D).
            mask: (B, L) bool, True for positions that count as memory; None counts all.
        """
        y = exact_linear_attention(*self._heads(delta), self.kernel, mask, causal=self.causal)
        return y.transpose(1, 2).reshape(delta.shape)

    def extend(self, delta: Tensor, state: ELAState | None = None) -> tuple[Tensor, ELAState]:
        """Return what `forward` returns for updates (B, L, D) that follow those in a state, and the state after them.

        Raises:
            ValueError: the lobe is bidirectional, and what follows would change what was returned before.
        """
        if not self.causal:
            raise ValueError("a bidirectional lobe cannot go on token by token; make it with causal=True")
        y, state = causal_attention(*self._heads(delta), self.kernel, state)
        return y.transpose(1, 2).reshape(delta.shape), state

    def _heads(self, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k and v (B, H, L, D / H)."""
        projections = (project(delta).unflatten(-1, (self.heads, -1)) for project in (self.query, self.key, self.value))
        q, k, v = (x.transpose(1, 2) for x in projections)
        return q, k, v

    def extra_repr(self) -> str:
        """Say what the projections do not."""
        return f"heads={self.heads}, kernel={self.kernel}, causal={self.causal}"


@torch.enable_grad()
def future_leak(model: nn.Module, x: Tensor) -> float:
    """Return how strongly outputs depend on later positions: 0 for a causal model of sequences.

    The largest derivative of an output by an input that comes after it, over the largest by one that does not. Of an
    output stands a random mixture of its channels, always the same: their sum would hide a leak into channels whose sum
    is constant, as behind a softmax or a layer norm.

    Args:
        model: maps (B, L, D) to (B, L, anything).
        x: where to look, (B, L, D) with L from 2.

    Returns:
        From 0 on; infinity for a model that sees nothing but what comes after.

    Raises:
        ValueError: a derivative is not finite.
    """
    length = x.shape[1]
    x = x.detach().requires_grad_()
    y = model(x)
    mixture = (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(y)).flatten(2).sum((0, 2))
    if not y.requires_grad:  # a constant
        return 0.0
    late, early = 0.0, 0.0
    for position in range(length):
        (gradient,) = torch.autograd.grad(mixture[position], x, retain_graph=True)
        if not gradient.isfinite().all():
            raise ValueError(f"the derivative of output {position} is not finite, so nothing can be said of the model")
        late = max(late, float(gradient[:, position + 1 :].abs().amax()) if position + 1 < length else 0.0)
        early = max(early, float(gradient[:, : position + 1].abs().amax()))
    return late / early if early else math.inf if late else 0.0
