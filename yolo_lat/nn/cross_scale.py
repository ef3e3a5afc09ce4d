"""Cross-scale ELA: tokens of every pyramid level attend to one state summed over levels.

States of exact linear attention add (see `yolo_lat.ela.ELAState`), so attention over the tokens of P3, P4 and P5
together costs no more than attention over each alone. The paper does not do this; it is this project's own step. The
layer also has what it is compared with, by names in the YAML: attention for each level alone, softmax, a mean, none.
"""

from __future__ import annotations

from itertools import accumulate

from torch import Tensor, nn
from ultralytics.nn.modules import Conv

from yolo_lat.ela.moe import Bias
from yolo_lat.nn.attention import ProjectedELA, ProjectedMean, ProjectedSoftmax
from yolo_lat.nn.blocks import feed_forward
from yolo_lat.nn.body import check_odd
from yolo_lat.nn.layout import from_areas, into_areas, side_by_side, split_levels

ATTENTIONS = ("ela", "softmax", "area", "mean", "none")
AREAS = 4  # of every level but the last in area attention, as in YOLO12 (Tian et al., 2025, section 3.2)

Projected = ProjectedELA | ProjectedSoftmax | ProjectedMean


class CrossScaleELA(nn.Module):
    """One ELA layer across pyramid levels: x_l + GatedFFN(attention(x_l) + local(x_l)) for every level l.

    Keys and values come from the levels named by `memory` and are summed into one state, which every level queries. The
    1x1 projections are shared by the levels and run once, on the tokens of all levels side by side; what tells levels
    and positions apart is a depthwise convolution a level.

    From `attention` on, each argument changes one thing of this:

    - attention "softmax": softmax attention with the same projections; "area": softmax attention for each level alone,
      within `AREAS` runs of its positions, and within all of the last, coarsest level; "mean": every position receives
      the mean of the values; "none": local(x_l) alone.
    - across False: every level attends to its own tokens alone.
    - gate False: the FFN has no gate, and as many weights.
    - residual True: a residual around attention too, as in a transformer: u = x + W_out(attention(x) + local(x)), then
      u + FFN(u).
    - lobe True: the Memory Lobe (paper, section 3), attention over the update d_l of all levels, x_l + d_l + lobe(d)_l;
      the scale of its values starts at zero, so that a model begins as it would without.

    Args:
        channels: width of each level; levels that differ from c2 are adapted by a 1x1 convolution.
        c2: width inside and of every output level.
        heads: must divide c2.
        key_dim: channels of a head's query and key.
        memory: indices of the levels that give keys and values; None takes all.
        kernel: a name known to `yolo_lat.ela.get_kernel`.
        ffn_ratio: hidden width of the gated FFN over c2.
        local: side of the depthwise convolution, odd; 0 for none.
        experts: number of experts, each an FFN, of which every position takes one; 0 for one FFN without routing.
        bias: what the labels of experts add: "outer", "inner" or None.
        attention: "ela", "softmax", "area", "mean" or "none".
        across: one state for all levels.
        gate: gate the FFN.
        residual: a residual around attention.
        lobe: add a Memory Lobe.

    Shape:
        [(B, channels[l], H_l, W_l)] -> [(B, c2, H_l, W_l)]. "area" needs H_l·W_l to be a multiple of `AREAS`, as it is
        at strides up to 16.

    Raises:
        ValueError: heads that do not divide c2, an unknown kernel, bias or attention, a memory level that does not
            exist, or arguments that do not go together.
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
        attention: str = "ela",
        across: bool = True,
        gate: bool = True,
        residual: bool = False,
        lobe: bool = False,
    ) -> None:
        super().__init__()
        self.memory = list(range(len(channels))) if memory is None else list(memory)
        if not self.memory or len(set(self.memory) & set(range(len(channels)))) < len(self.memory):
            raise ValueError(f"memory={memory} must name levels out of {list(range(len(channels)))}, each once")
        if attention not in ATTENTIONS:
            raise ValueError(f"attention={attention} is unknown; use one of {', '.join(ATTENTIONS)}")
        self.across = across and attention != "area"
        if memory is not None and (not self.across or attention == "none"):
            raise ValueError(f"memory={memory} is for levels that share their tokens; leave it out")
        if kernel != "HadamardExp" and attention != "ela" and not lobe:
            raise ValueError(f"kernel={kernel} is for attention=ela, and attention={attention} has none; leave it out")
        if attention == "none" and not local:
            raise ValueError("attention=none and local=0 leave nothing that mixes positions; keep one of them")
        if local:
            check_odd("local", local)
        self.areas = [AREAS] * (len(channels) - 1) + [1] if attention == "area" else [1] * len(channels)
        self.adapt = nn.ModuleList(nn.Identity() if c == c2 else Conv(c, c2, 1) for c in channels)
        self.attention = self._attention(attention, c2, heads, key_dim, kernel)
        self.local = nn.ModuleList(Conv(c2, c2, local, g=c2, act=False) for _ in channels if local)
        self.out = Conv(c2, c2, 1, act=False) if residual else None
        self.ffn = feed_forward(c2, ffn_ratio, experts, bias, gate)
        self.lobe = ProjectedELA(c2, c2, heads, c2 // heads, kernel) if lobe else None
        if self.lobe is not None:
            nn.init.zeros_(self.lobe.qkv.bn.weight[-c2:])
        self.by_level = False

    @staticmethod
    def _attention(kind: str, c2: int, heads: int, key_dim: int, kernel: str) -> Projected | None:
        if kind == "ela":
            return ProjectedELA(c2, c2, heads, key_dim, kernel)
        if kind == "mean":
            return ProjectedMean(c2, c2)
        return None if kind == "none" else ProjectedSoftmax(c2, c2, heads, key_dim)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Let every level attend to the memory levels.

        `work` is what 1x1 convolutions run on: the tokens of all levels side by side, or, kept apart, each level.
        """
        levels = [adapt(x) for adapt, x in zip(self.adapt, levels, strict=True)]
        work = self._together(levels)
        mixed = [self._attend(self.attention, work, levels)] if self.attention is not None else []
        if self.local:
            mixed.append(self._together([conv(x) for conv, x in zip(self.local, levels, strict=True)]))
        parts = [sum(pair[1:], pair[0]) for pair in zip(*mixed, strict=True)]
        if self.out is not None:
            parts = work = [x + self.out(part) for x, part in zip(work, parts, strict=True)]
        deltas = [self.ffn(part) for part in parts]
        if self.lobe is not None:
            recalled = self._attend(self.lobe, deltas, levels, whole=True)
            deltas = [delta + y for delta, y in zip(deltas, recalled, strict=True)]
        written = [x + delta for x, delta in zip(work, deltas, strict=True)]
        return written if self.by_level else split_levels(written[0], levels)

    def keep_levels_apart(self) -> None:
        """Run the 1x1 convolutions once a level: more steps, but maps stay maps, which a CPU convolves faster."""
        self.by_level = True

    def _together(self, levels: list[Tensor]) -> list[Tensor]:
        return levels if self.by_level else [side_by_side(levels)]

    def _apart(self, work: list[Tensor], levels: list[Tensor]) -> list[Tensor]:
        return work if self.by_level else split_levels(work[0], levels)

    def _attend(
        self, attention: Projected, work: list[Tensor], levels: list[Tensor], whole: bool = False
    ) -> list[Tensor]:
        """Return what attention makes of `work`, in its form; `whole` lets every token attend to all."""
        projected = [attention.qkv(x) for x in work]
        if not (self.across or whole):
            maps = zip(self._apart(projected, levels), self.areas, strict=True)
            return self._together([_within_areas(attention, qkv, areas) for qkv, areas in maps])
        row = side_by_side(projected) if self.by_level else projected[0]
        y, _ = attention.attend(row, None if whole else self._memory_ranges(levels))
        return split_levels(y, levels) if self.by_level else [y]

    def _memory_ranges(self, levels: list[Tensor]) -> list[tuple[int, int]] | None:
        """Return where the tokens of the memory levels stand in the row, None for all of them."""
        if len(self.memory) == len(levels):
            return None
        ends = list(accumulate(x.shape[2] * x.shape[3] for x in levels))
        return [(ends[i - 1] if i else 0, ends[i]) for i in self.memory]


def _within_areas(attention: Projected, qkv: Tensor, areas: int) -> Tensor:
    """Attend within each area of a projected map (B, C, H, W)."""
    if areas == 1:
        return attention.attend(qkv)[0]
    return from_areas(attention.attend(into_areas(qkv, areas))[0], qkv, areas)


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
