"""Cross-scale ELA: tokens of every pyramid level attend to one state summed over levels.

States of exact linear attention add (see `yolo_lat.ela.ELAState`), so attention over the tokens of P3, P4 and P5
together costs no more than attention over each alone. The paper does not do this; it is this project's own step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from ultralytics.nn.modules import Conv

from yolo_lat.ela import Kernel, ela_state, get_kernel
from yolo_lat.nn.blocks import GatedFFN, check_heads, merge_heads, split_heads


class CrossScaleELA(nn.Module):
    """One ELA layer across pyramid levels: x_l + GatedFFN(attention(x_l) + local(x_l)) for every level l.

    Keys and values come from the levels named by `memory` and are summed into one state, which every level queries. The
    1x1 projections are shared by the levels and run once, on the tokens of all levels side by side; what tells levels
    and positions apart is a depthwise convolution a level.

    Args:
        channels: width of each level; levels that differ from c2 are adapted by a 1x1 convolution.
        c2: width inside and of every output level.
        heads: must divide c2.
        key_dim: channels of a head's query and key.
        memory: indices of the levels that give keys and values; None takes all.
        kernel: a name known to `yolo_lat.ela.get_kernel`.
        ffn_ratio: hidden width of the gated FFN over c2.
        local: side of the depthwise convolution, odd.

    Shape:
        [(B, channels[l], H_l, W_l)] -> [(B, c2, H_l, W_l)].

    Raises:
        ValueError: heads that do not divide c2, an unknown kernel, or a memory level that does not exist.
    """

    def __init__(
        self,
        channels: list[int],
        c2: int,
        heads: int = 4,
        key_dim: int = 8,
        memory: list[int] | None = None,
        kernel: str = "HadamardExp",
        ffn_ratio: float = 1.0,
        local: int = 5,
    ) -> None:
        super().__init__()
        check_heads(c2, heads)
        self.memory = list(range(len(channels))) if memory is None else list(memory)
        if not self.memory or not set(self.memory) <= set(range(len(channels))):
            raise ValueError(f"memory={memory} must name levels out of {list(range(len(channels)))}")
        self.heads = heads
        self.kernel: Kernel = get_kernel(kernel)
        self.widths = [heads * key_dim, c2]
        self.adapt = nn.ModuleList(nn.Identity() if c == c2 else Conv(c, c2, 1) for c in channels)
        self.q = Conv(c2, heads * key_dim, 1, act=False)
        self.kv = Conv(c2, sum(self.widths), 1, act=False)
        self.local = nn.ModuleList(Conv(c2, c2, local, g=c2, act=False) for _ in channels)
        self.ffn = GatedFFN(c2, ffn_ratio)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Let every level attend to the memory levels."""
        levels = [adapt(x) for adapt, x in zip(self.adapt, levels, strict=True)]
        tokens = _side_by_side(levels)
        memory = tokens if len(self.memory) == len(levels) else _side_by_side([levels[i] for i in self.memory])
        k, v = (split_heads(t, self.heads) for t in self.kv(memory).split(self.widths, dim=1))
        y = ela_state(k, v, self.kernel).query(split_heads(self.q(tokens), self.heads))
        local = _side_by_side([conv(x) for conv, x in zip(self.local, levels, strict=True)])
        y = tokens + self.ffn(merge_heads(y, tokens.shape[-2:]) + local)
        out, start = [], 0
        for x in levels:  # slices and reshapes by sizes read off the tensors stay dynamic in an exported graph
            end = start + x.shape[2] * x.shape[3]
            out.append(y[:, :, start:end].reshape(x.shape))
            start = end
        return out


def _side_by_side(levels: list[Tensor]) -> Tensor:
    """Lay the positions of all levels in a row: [(B, C, H_l, W_l)] -> (B, C, sum H_l·W_l, 1)."""
    return torch.cat([x.flatten(2) for x in levels], dim=2).unsqueeze(-1)
