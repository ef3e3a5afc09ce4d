"""A small language model for experiments with causal exact linear attention (paper, sections 1 to 4).

With the defaults it has the paper's shape: 4 layers of width 256, 4 heads, 4 SwiGLU experts, rotary positions, RMSNorm,
an embedding of 6,400 tokens that is the output layer too, 5.84 M parameters, 6.62 M with a Memory Lobe. One switch each
exchanges attention, the link between layers, the lobe and the bias of the experts, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from yolo_lat.ela.attention import ELAState
from yolo_lat.ela.causal import causal_attention
from yolo_lat.ela.kernels import KERNELS, get_kernel
from yolo_lat.ela.lobe import MemoryLobe
from yolo_lat.ela.moe import Bias, LabelMoE, Routing

ROTARY_BASE = 10_000.0


@dataclass(frozen=True)
class LMConfig:
    """Shape and variant of a `LanguageModel`.

    Attributes:
        vocabulary: number of tokens.
        width: D of the stream.
        layers: number of layers.
        heads: must divide the width into an even number of channels, which rotary positions pair.
        hidden: hidden width of an expert.
        experts: E; 1 makes an ordinary feed-forward network of it.
        k: experts a token.
        attention: "softmax", or the name of a kernel of exact linear attention.
        link: "hyper" is x + FFN(Attn(Norm(x))), one update a layer (section 2); "residual" is pre-norm, with an update
            by attention and another by the feed-forward network.
        lobe: a Memory Lobe over the update of every layer (section 3): None, "causal", or "bidirectional" as in the
            paper, which shows every position the future.
        bias: of the experts' labels: "outer", "inner" or None (section 4).

    Raises:
        ValueError: a name that is unknown, a number that leaves no model, or heads that do not go with the width.
    """

    vocabulary: int = 6400
    width: int = 256
    layers: int = 4
    heads: int = 4
    hidden: int = 256
    experts: int = 4
    k: int = 1
    attention: str = "HadamardExp"
    link: Literal["hyper", "residual"] = "hyper"
    lobe: Literal["causal", "bidirectional"] | None = None
    bias: Bias | None = "outer"

    def __post_init__(self) -> None:
        choices = {
            "attention": ("softmax", *KERNELS),
            "link": ("hyper", "residual"),
            "lobe": (None, "causal", "bidirectional"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; use one of {', '.join(map(repr, known))}")
        for name in ("vocabulary", "width", "layers", "heads", "hidden", "experts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} leaves no model; use 1 or more")
        if not 1 <= self.k <= self.experts:
            raise ValueError(f"k={self.k} experts a token out of {self.experts} is impossible; use 1 to {self.experts}")
        if self.width % (2 * self.heads):
            raise ValueError(f"heads={self.heads} leaves no even number of channels a head of width={self.width}")


class KeyValues:
    """Keys and values of softmax attention, (B, H, capacity, D) each, written in place; grows with every token."""

    def __init__(self, k: Tensor, v: Tensor, capacity: int) -> None:
        batch, heads, length, width = k.shape
        self.length = 0
        self.k, self.v = (x.new_empty(batch, heads, max(capacity, length), width) for x in (k, v))
        self.extend(k, v)

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append (B, H, L, D) and return all so far.

        Raises:
            ValueError: there is no place left.
        """
        end = self.length + k.shape[2]
        if end > self.k.shape[2]:
            raise ValueError(f"a cache of {self.k.shape[2]} tokens is full; give prefill a larger capacity")
        self.k[:, :, self.length : end], self.v[:, :, self.length : end] = k, v
        self.length = end
        return self.k[:, :, :end], self.v[:, :, :end]

    @property
    def nbytes(self) -> int:
        """Bytes of the tokens so far."""
        return 2 * self.k[:, :, : self.length].numel() * self.k.element_size()


class LayerMemory(NamedTuple):
    """What a layer remembers of the tokens so far."""

    attention: ELAState | KeyValues
    lobe: ELAState | None

    @property
    def nbytes(self) -> int:
        """Bytes of it."""
        states = [part for part in self if isinstance(part, ELAState)]
        tensors = [x for part in states for x in (part.S, part.C, part.log_scale) if x is not None]
        cached = self.attention.nbytes if isinstance(self.attention, KeyValues) else 0
        return cached + sum(x.numel() * x.element_size() for x in tensors)


class Memory(NamedTuple):
    """What decoding goes on from: the memory of each layer, and the number of tokens in it."""

    layers: tuple[LayerMemory, ...]
    length: int

    @property
    def nbytes(self) -> int:
        """Bytes of all layers."""
        return sum(layer.nbytes for layer in self.layers)


class LMOutput(NamedTuple):
    """What a `LanguageModel` returns.

    Attributes:
        logits: (B, L, vocabulary) of the token that follows each.
        balance: mean over layers of the experts' balance loss, 1 where all are equally busy.
        routing: of each layer.
    """

    logits: Tensor
    balance: Tensor
    routing: tuple[Routing, ...]


class LanguageModel(nn.Module):
    """A decoder of tokens; see `LMConfig` for its variants.

    Experts are routed to by what enters the feed-forward network, without a projection of its own.

    Example:
        >>> model = LanguageModel(LMConfig(vocabulary=100, width=32, layers=1))
        >>> model(torch.zeros(2, 7, dtype=torch.long)).logits.shape
        torch.Size([2, 7, 100])
    """

    def __init__(self, config: LMConfig | None = None) -> None:
        super().__init__()
        self.config = config or LMConfig()
        self.embedding = nn.Embedding(self.config.vocabulary, self.config.width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.layers = nn.ModuleList(_Layer(self.config) for _ in range(self.config.layers))
        self.norm = nn.RMSNorm(self.config.width)

    def forward(self, tokens: Tensor) -> LMOutput:
        """Predict what follows each token of (B, L) int64, all positions at once, as for training."""
        x, _, balances, routings = self._run(tokens, None, None)
        return LMOutput(self._logits(x), torch.stack(balances).mean(), routings)

    @torch.no_grad()
    def prefill(self, tokens: Tensor, capacity: int = 0) -> tuple[Tensor, Memory]:
        """Read a prompt (B, L) and return the logits (B, vocabulary) of what follows it, and what is remembered.

        Args:
            tokens: the prompt.
            capacity: most tokens that softmax attention will have to keep, prompt included; ELA needs no such number.

        Raises:
            ValueError: the model has a bidirectional lobe, which needs tokens that are not there yet.
        """
        return self._continue(tokens, None, capacity)

    @torch.no_grad()
    def step(self, tokens: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Read the tokens (B, L) that follow, usually one, and return what `prefill` returns.

        Softmax attention writes into the memory that it is given: go on from the newest.

        Raises:
            ValueError: the cache of softmax attention is full.
        """
        return self._continue(tokens, memory, 0)

    def generate(self, prompt: Tensor, count: int) -> Tensor:
        """Return the `count` most likely tokens (B, count) that follow a prompt (B, L), one after another.

        Raises:
            ValueError: no token is asked for, the prompt is empty, or the model has a bidirectional lobe.
        """
        if count < 1 or not prompt.shape[1]:
            raise ValueError(f"generate continues a prompt by 1 token or more; got {prompt.shape[1]} and count={count}")
        logits, memory = self.prefill(prompt, prompt.shape[1] + count)
        found = [logits.argmax(-1, keepdim=True)]
        while len(found) < count:
            logits, memory = self.step(found[-1], memory)
            found.append(logits.argmax(-1, keepdim=True))
        return torch.cat(found, dim=1)

    def _continue(self, tokens: Tensor, memory: Memory | None, capacity: int) -> tuple[Tensor, Memory]:
        if self.config.lobe == "bidirectional":
            raise ValueError("a bidirectional lobe reads tokens that are not there yet; decode with lobe='causal'")
        x, memory, *_ = self._run(tokens, memory, capacity)
        assert memory is not None
        return self._logits(x[:, -1]), memory

    def _run(
        self, tokens: Tensor, memory: Memory | None, capacity: int | None
    ) -> tuple[Tensor, Memory | None, list[Tensor], tuple[Routing, ...]]:
        """Run all layers; a capacity asks for a memory to be kept."""
        start = memory.length if memory else 0
        length = start + tokens.shape[1]
        angles = rotary_angles(start, length, self.config.width // self.config.heads, tokens.device)
        x = self.embedding(tokens)
        kept: list[LayerMemory] = []
        balances, routings = [], []
        befores: Sequence[LayerMemory | None] = memory.layers if memory else [None] * len(self.layers)
        for layer, before in zip(self.layers, befores, strict=True):
            x, after, balance, routing = layer(x, angles, before, capacity)
            balances.append(balance)
            routings.append(routing)
            kept += [] if after is None else [after]
        return x, Memory(tuple(kept), length) if kept else None, balances, tuple(routings)

    def _logits(self, x: Tensor) -> Tensor:
        return F.linear(self.norm(x), self.embedding.weight)


class _Layer(nn.Module):
    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.kernel = None if config.attention == "softmax" else get_kernel(config.attention)
        self.norm = nn.RMSNorm(width)
        self.projections = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.second_norm = nn.RMSNorm(width) if config.link == "residual" else None
        self.ffn = LabelMoE(width, config.hidden, config.experts, config.k, config.bias, project=False)
        self.lobe = MemoryLobe(width, config.heads, self.kernel, config.lobe == "causal") if config.lobe else None

    def forward(
        self, x: Tensor, angles: Tensor, before: LayerMemory | None, capacity: int | None
    ) -> tuple[Tensor, LayerMemory | None, Tensor, Routing]:
        """Return the stream after this layer, its memory if one is kept, the balance loss and the routing."""
        batch, length, width = x.shape
        q, k, v = self.projections(self.norm(x)).reshape(batch, length, 3, self.config.heads, -1).permute(2, 0, 3, 1, 4)
        y, seen = self._attend(rotate(q, angles), rotate(k, angles), v, before and before.attention, capacity)
        y = self.out(y.transpose(1, 2).reshape(batch, length, width))
        if self.second_norm is None:  # Hyper-Link: attention has no residual of its own
            made = self.ffn(y)
            update = made.y
        else:
            made = self.ffn(self.second_norm(x + y))
            update = y + made.y
        remembered = None
        if self.lobe is not None and capacity is not None:
            added, remembered = self.lobe.extend(update, before and before.lobe)
            update = update + added
        elif self.lobe is not None:
            update = update + self.lobe(update)
        memory = None if seen is None else LayerMemory(seen, remembered)
        return x + update, memory, made.balance, made.routing

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, before: ELAState | KeyValues | None, capacity: int | None
    ) -> tuple[Tensor, ELAState | KeyValues | None]:
        if self.kernel is not None:
            assert not isinstance(before, KeyValues)
            y, state = causal_attention(q, k, v, self.kernel, before)
            return y, None if capacity is None else state
        if capacity is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True), None
        assert not isinstance(before, ELAState)
        if before is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True), KeyValues(k, v, capacity)
        keys, values = before.extend(k, v)
        new, total = k.shape[2], keys.shape[2]
        # One new token sees everything; of several, each sees what came before it.
        seen = None if new == 1 else torch.ones(new, total, dtype=torch.bool, device=q.device).tril(total - new)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=seen), before


def rotary_angles(start: int, end: int, width: int, device: torch.device) -> Tensor:
    """Return the angles (end - start, width / 2) of positions start to end, float32 (RoFormer, Su et al., 2021)."""
    speeds = ROTARY_BASE ** (-torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)
    return torch.arange(start, end, device=device, dtype=torch.float32)[:, None] * speeds


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn each pair of channels i, i + D/2 of (B, H, L, D) by the angle (L, D/2) of its position."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
