"""The detection head of `yolo-lat.yaml`: 1x1 convolutions only, shared by all levels."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from ultralytics.nn.modules import DFL, Conv, Detect


class LatDetect(Detect):
    """An Ultralytics `Detect` whose branches are shared by all levels and have no spatial extent.

    The blocks before it have mixed positions already; sharing spends the parameters once instead of once a level, and
    all positions of all levels go through each convolution together. Boxes are distances in units of the level's
    stride, so one branch serves every level. Training, decoding, losses and the one-to-one branch are `Detect`'s.

    Args:
        nc: number of classes.
        reg_max: bins of a box side's distribution (DFL); 1 regresses distances directly.
        end2end: add a one-to-one branch for inference without NMS.
        ch: width of each level, all equal.

    Raises:
        ValueError: levels of different widths.
    """

    def __init__(self, nc: int = 80, reg_max: int = 16, end2end: bool = False, ch: tuple[int, ...] = ()) -> None:
        nn.Module.__init__(self)  # Detect's own would build its convolutions for each level
        if len(set(ch)) != 1:
            raise ValueError(f"LatDetect shares its branches, so its levels must have one width, not {list(ch)}")
        self.nc, self.nl, self.reg_max = nc, len(ch), reg_max
        self.no = nc + 4 * reg_max
        self.stride = torch.zeros(self.nl)
        width = ch[0]
        # Lists of one branch: Detect's loading, fusing and one-to-one code walks over lists.
        self.cv2 = nn.ModuleList([nn.Sequential(Conv(width, width, 1), nn.Conv2d(width, 4 * reg_max, 1))])
        self.cv3 = nn.ModuleList([nn.Sequential(Conv(width, width, 1), nn.Conv2d(width, nc, 1))])
        self.dfl = DFL(reg_max) if reg_max > 1 else nn.Identity()
        if end2end:
            self.one2one_cv2, self.one2one_cv3 = copy.deepcopy(self.cv2), copy.deepcopy(self.cv3)

    def forward_head(
        self, x: list[Tensor], box_head: nn.ModuleList | None = None, cls_head: nn.ModuleList | None = None
    ) -> dict[str, Tensor | list[Tensor]]:
        """Predict from levels [(B, C, H_l, W_l)]: boxes (B, 4·reg_max, A) and class logits (B, nc, A), A positions."""
        if box_head is None or cls_head is None:  # the branch that fusing removed
            return {}
        tokens = torch.cat([level.flatten(2) for level in x], dim=2).unsqueeze(-1)
        return {"boxes": box_head[0](tokens).squeeze(-1), "scores": cls_head[0](tokens).squeeze(-1), "feats": x}

    def bias_init(self) -> None:
        """Start from boxes of two strides to each side and the class prior of `Detect`, averaged over its levels."""
        prior = sum(math.log(5 / self.nc / (640 / float(s)) ** 2) for s in self.stride) / self.nl
        branches = [self.one2many]
        if getattr(self, "one2one_cv2", None) is not None:
            branches.append(self.one2one)
        for branch in branches:
            branch["box_head"][0][-1].bias.data[:] = 2.0
            branch["cls_head"][0][-1].bias.data[:] = prior
