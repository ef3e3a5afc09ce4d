"""Exact linear attention on feature maps: projections, heads, and the form in which it is deployed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from ultralytics.nn.modules import Conv

from yolo_lat.ela import HadamardExp, Kernel, ela_state, get_kernel
from yolo_lat.nn.layout import as_map, rows_product, token_rows

LOGIT_BOUND = 4.0  # of queries and keys; batch norm keeps them near unit variance
_VALUE_SCALE = 64.0
VALUE_BOUND = _VALUE_SCALE * LOGIT_BOUND  # so that one operator bounds queries, keys and values / 64
_HEADROOM = 16.0  # float16: numerators stay below exp(2 · LOGIT_BOUND) · VALUE_BOUND / 16 = 47,700


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Turn channels-first tokens (B, heads·D, ...) into the attention layout (B, heads, L, D) without a copy."""
    # Reshaping with sizes read off the tensor, unlike unflatten, stays dynamic in an exported graph.
    return x.reshape(x.shape[0], heads, x.shape[1] // heads, -1).transpose(-1, -2)


def merge_heads(x: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Turn (B, heads, L, D) back into channels-first (B, heads·D, *size)."""
    return x.transpose(-1, -2).reshape(x.shape[0], x.shape[1] * x.shape[3], *size)


def check_heads(width: int, heads: int, key_dim: int = 1) -> None:
    """Raise ValueError unless `heads` divides `width`, and keys have a channel."""
    if key_dim < 1:
        raise ValueError(f"key_dim={key_dim} leaves keys no channel; use 1 or more, such as 8")
    if heads < 1 or width % heads:
        divisors = [h for h in range(1, min(width, 32) + 1) if width % h == 0]
        raise ValueError(f"heads={heads} does not divide the width {width}; use one of {divisors}")


class ProjectedELA(nn.Module):
    """Multi-head bidirectional ELA over the positions of a map, with its projections (paper, section 1).

    q, k, v = BN(W x), queries and keys bounded to ±4 and values to ±256, then y = ELA(q, k, v). The bounds are part of
    the function, in training too: with them every quantity of the deployed form fits into float16, whatever x is.

    Args:
        c1: input channels.
        c2: output channels, also the width of v.
        heads: must divide c2.
        key_dim: channels of a head's query and key; bounds the rank of its attention matrix.
        kernel: a name known to `yolo_lat.ela.get_kernel`.

    Shape:
        (B, c1, H, W) -> y and v, both (B, c2, H, W).

    Raises:
        ValueError: heads that do not divide c2, keys without a channel, or an unknown kernel.
    """

    same_head: Tensor | None

    def __init__(self, c1: int, c2: int, heads: int, key_dim: int, kernel: str) -> None:
        super().__init__()
        check_heads(c2, heads, key_dim)
        self.heads = heads
        self.kernel: Kernel = get_kernel(kernel)
        self.widths = [heads * key_dim, heads * key_dim, c2]
        self.qkv = Conv(c1, sum(self.widths), 1, act=False)
        self.register_buffer("same_head", None, persistent=False)  # (heads·key_dim, 2·c2) once deployed

    def forward(self, x: Tensor, memory: Sequence[tuple[int, int]] | None = None) -> tuple[Tensor, Tensor]:
        """Attend from every position to those of `memory`, ranges of positions in row-major order; None takes all."""
        return self.attend(self.qkv(x), memory)

    def attend(self, qkv: Tensor, memory: Sequence[tuple[int, int]] | None = None) -> tuple[Tensor, Tensor]:
        """Attend as `forward` does, given what the projection `qkv` made of x."""
        if self.same_head is not None:
            return self._deployed(qkv, memory)
        q, k, v = qkv.split(self.widths, dim=1)
        v = v.clamp(-VALUE_BOUND, VALUE_BOUND)
        queries, keys, values = (split_heads(t, self.heads) for t in (_bounded(q), _bounded(k), v))
        state = ela_state(_pick(keys, memory), _pick(values, memory), self.kernel)
        return merge_heads(state.query(queries), qkv.shape[-2:]), v

    def fold(self) -> None:
        """Append channels that are always 1 to v, which turn the sums of weights into columns of the same product.

        Only for `HadamardExp`, whose features are exponentials of single channels; other kernels keep their form. To be
        called once the batch norm is folded.
        """
        if not isinstance(self.kernel, HadamardExp) or self.same_head is not None:
            return
        conv, (width, _, c2) = self.qkv.conv, self.widths
        packed = nn.Conv2d(conv.in_channels, conv.out_channels + c2, 1).to(conv.weight)
        for name, last in (("weight", 0.0), ("bias", 1.0)):
            old = getattr(conv, name).data
            parts = [old[: 2 * width], old[2 * width :] / _VALUE_SCALE, torch.full_like(old[:c2], last)]
            getattr(packed, name).data = torch.cat(parts)
        self.qkv.conv = packed.requires_grad_(conv.weight.requires_grad)
        head_of_key = torch.arange(width) // (width // self.heads)
        head_of_value = torch.arange(c2) // (c2 // self.heads)
        same_head = (head_of_key[:, None] == head_of_value).to(conv.weight)
        self.same_head = torch.cat([same_head * _VALUE_SCALE, same_head], dim=1)

    def _deployed(self, qkv: Tensor, memory: Sequence[tuple[int, int]] | None) -> tuple[Tensor, Tensor]:
        """Compute all heads in two products, (K, L) x (L, 2·c2) and (A, K) x (K, 2·c2), few kernels to launch.

        What the first product computes across heads, `same_head` removes. Its scale cancels in the fraction and keeps
        sums over tokens within float16.
        """
        assert self.same_head is not None
        width, _, c2 = self.widths
        logits, values = _bounded(token_rows(qkv)).split([2 * width, 2 * c2], dim=-1)
        phi, psi = logits.exp().split(width, dim=-1)
        psi, kept = _pick(psi, memory), _pick(values, memory)
        fours = (psi.shape[1] + 3) // 4  # float16 holds this number up to 262,016 tokens
        scale = (4 * _HEADROOM * (width // self.heads)) ** -0.5 * fours**-0.5
        state = (psi * scale).transpose(1, 2) @ (kept * scale) * self.same_head.to(qkv.dtype)
        numerator, denominator = rows_product(phi, state).split(c2, dim=-1)
        return as_map(numerator / denominator, qkv), as_map(values[..., :c2] * _VALUE_SCALE, qkv)


class ProjectedSoftmax(nn.Module):
    """Multi-head softmax attention with the projections of `ProjectedELA`, which ELA is compared with.

    y = softmax(q k^T / sqrt(D)) v with q, k, v = BN(W x): the same weights, and a cost that grows with the product of
    the numbers of queries and keys. Nothing is bounded: softmax subtracts its largest logit.

    Args:
        c1: input channels.
        c2: output channels, also the width of v.
        heads: must divide c2.
        key_dim: D, channels of a head's query and key.

    Shape:
        (B, c1, H, W) -> y and v, both (B, c2, H, W).

    Raises:
        ValueError: heads that do not divide c2.
    """

    def __init__(self, c1: int, c2: int, heads: int, key_dim: int) -> None:
        super().__init__()
        check_heads(c2, heads, key_dim)
        self.heads = heads
        self.widths = [heads * key_dim, heads * key_dim, c2]
        self.qkv = Conv(c1, sum(self.widths), 1, act=False)

    def forward(self, x: Tensor, memory: Sequence[tuple[int, int]] | None = None) -> tuple[Tensor, Tensor]:
        """Attend as `ProjectedELA.forward` does."""
        return self.attend(self.qkv(x), memory)

    def attend(self, qkv: Tensor, memory: Sequence[tuple[int, int]] | None = None) -> tuple[Tensor, Tensor]:
        """Attend as `forward` does, given what the projection `qkv` made of x."""
        q, k, v = qkv.split(self.widths, dim=1)
        queries, keys, values = (split_heads(t, self.heads) for t in (q, k, v))
        y = F.scaled_dot_product_attention(queries, _pick(keys, memory), _pick(values, memory))
        return merge_heads(y, qkv.shape[-2:]), v


class ProjectedMean(nn.Module):
    """The mean of v = BN(W x) over all positions, for every position: attention that tells no keys and queries apart.

    Args:
        c1: input channels.
        c2: output channels, also the width of v.

    Shape:
        (B, c1, H, W) -> y and v, both (B, c2, H, W).
    """

    def __init__(self, c1: int, c2: int) -> None:
        super().__init__()
        self.qkv = Conv(c1, c2, 1, act=False)  # named as in the others, whose place it takes

    def forward(self, x: Tensor, memory: Sequence[tuple[int, int]] | None = None) -> tuple[Tensor, Tensor]:
        """Average over the positions of `memory`, ranges in row-major order; None takes all."""
        return self.attend(self.qkv(x), memory)

    def attend(self, qkv: Tensor, memory: Sequence[tuple[int, int]] | None = None) -> tuple[Tensor, Tensor]:
        """Average as `forward` does, given what the projection made of x."""
        mean = _pick(split_heads(qkv, 1), memory).mean(-2, keepdim=True)
        return merge_heads(mean, (1, 1)).expand_as(qkv), qkv


def _bounded(logits: Tensor) -> Tensor:
    return logits.clamp(-LOGIT_BOUND, LOGIT_BOUND)


def _pick(tokens: Tensor, memory: Sequence[tuple[int, int]] | None) -> Tensor:
    """Return the given ranges of the last axis but one."""
    return tokens if memory is None else torch.cat([tokens[..., start:end, :] for start, end in memory], dim=-2)
