"""Cross-scale ELA: tokens of every pyramid level attend to one state summed over levels.

States of exact linear attention add (see `yolo_lat.ela.ELAState`), so attention over the tokens of P3, P4 and P5
together costs no more than attention over each alone. The paper does not do this; it is this project's own step.
"""

from __future__ import annotations

from itertools import accumulate

from torch import Tensor, nn
from ultralytics.nn.modules import Conv

from yolo_lat.ela.moe import Bias
from yolo_lat.nn.attention import ProjectedELA
from yolo_lat.nn.blocks import feed_forward
from yolo_lat.nn.layout import side_by_side, split_levels


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
        experts: number of experts, each an FFN, of which every position takes one; 0 for one FFN without routing.
        bias: what the labels of experts add: "outer", "inner" or None.

    Shape:
        [(B, channels[l], H_l, W_l)] -> [(B, c2, H_l, W_l)].

    Raises:
        ValueError: heads that do not divide c2, an unknown kernel or bias, or a memory level that does not exist.
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
        experts: int = 0,
        bias: Bias | None = "outer",
    ) -> None:
        super().__init__()
        self.memory = list(range(len(channels))) if memory is None else list(memory)
        if not self.memory or not set(self.memory) <= set(range(len(channels))):
            raise ValueError(f"memory={memory} must name levels out of {list(range(len(channels)))}")
        self.adapt = nn.ModuleList(nn.Identity() if c == c2 else Conv(c, c2, 1) for c in channels)
        self.attention = ProjectedELA(c2, c2, heads, key_dim, kernel)
        self.local = nn.ModuleList(Conv(c2, c2, local, g=c2, act=False) for _ in channels)
        self.ffn = feed_forward(c2, ffn_ratio, experts, bias)
        self.by_level = False

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Let every level attend to the memory levels."""
        levels = [adapt(x) for adapt, x in zip(self.adapt, levels, strict=True)]
        if self.by_level:
            projected = side_by_side([self.attention.qkv(x) for x in levels])
            y, _ = self.attention.attend(projected, self._memory_ranges(levels))
            parts = zip(levels, split_levels(y, levels), self.local, strict=True)
            return [x + self.ffn(part + conv(x)) for x, part, conv in parts]
        tokens = side_by_side(levels)
        y, _ = self.attention(tokens, self._memory_ranges(levels))
        local = side_by_side([conv(x) for conv, x in zip(self.local, levels, strict=True)])
        return split_levels(tokens + self.ffn(y + local), levels)

    def keep_levels_apart(self) -> None:
        """Run the 1x1 convolutions once a level: more steps, but maps stay maps, which a CPU convolves faster."""
        self.by_level = True

    def _memory_ranges(self, levels: list[Tensor]) -> list[tuple[int, int]] | None:
        """Return where the tokens of the memory levels stand in the row, None for all of them."""
        if len(self.memory) == len(levels):
            return None
        ends = list(accumulate(x.shape[2] * x.shape[3] for x in levels))
        return [(ends[i - 1] if i else 0, ends[i]) for i in self.memory]


class Level(nn.Module):
    """Take one of the maps that a row such as `CrossScaleELA` returns.

    Args:
        channels: width of each map.
        c2: width of the one taken; a 1x1 convolution adapts it when it differs.
        index: which one, from 0.

    Shape:
        [(B, channels[l], H_l, W_l)] -> (B, c2, H_index, W_index).

    Raises:
        ValueError: no such map.
    """

    def __init__(self, channels: list[int], c2: int, index: int) -> None:
        super().__init__()
        if not 0 <= index < len(channels):
            raise ValueError(f"level {index} is not among the {len(channels)} maps; use 0 to {len(channels) - 1}")
        self.index = index
        self.adapt = nn.Identity() if channels[index] == c2 else Conv(channels[index], c2, 1)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Return the map."""
        return self.adapt(levels[self.index])
