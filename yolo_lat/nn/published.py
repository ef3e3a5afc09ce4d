"""The detector of the paper as its description has it (section 5): what this project's models are compared with.

One ELA block at stride 16 and a head of one scale with 5 + nc outputs. The description leaves out widths, the rest of
the block, and the loss; `cfg/models/yolo-lat-paper.yaml` says what was assumed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.modules import Detect

from yolo_lat.ela import exact_linear_attention
from yolo_lat.nn.attention import check_heads, merge_heads, split_heads

BOX_LIMIT = 2.0  # cells


class PaperELA(nn.Module):
    """x + W_out ELA(W_q x / sqrt(d), W_k x / sqrt(d), W_v x) with the Hadamard Exp kernel and d = c / heads.

    No batch norm, no bounds, no positional term: the operator alone, with its temperature sqrt(d). The residual and
    W_out are assumed.

    Args:
        c1: input channels.
        c2: output channels, equal to c1.
        heads: must divide c2.

    Shape:
        (B, c1, H, W) -> (B, c2, H, W).

    Raises:
        ValueError: two widths, or heads that do not divide them.
    """

    def __init__(self, c1: int, c2: int, heads: int = 4) -> None:
        super().__init__()
        if c1 != c2:
            raise ValueError(f"PaperELA keeps its width, and {c1} channels come in for {c2}; put a 1x1 Conv before it")
        check_heads(c2, heads)
        self.heads = heads
        self.temperature = math.sqrt(c2 // heads)
        self.qkv = nn.Conv2d(c2, 3 * c2, 1, bias=False)
        self.out = nn.Conv2d(c2, c2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the whole map."""
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=1))
        y = exact_linear_attention(q / self.temperature, k / self.temperature, v)
        return x + self.out(merge_heads(y, x.shape[-2:]))


class PaperDetect(Detect):
    """One scale, one box a cell: 5 + nc outputs, the box by sigmoid, its sides at most `BOX_LIMIT` cells.

    With t the outputs of a cell, the centre lies at sigmoid(t_x), sigmoid(t_y) of the cell and the sides are
    `BOX_LIMIT`·sigmoid of two more, in cells; the score of class c is sigmoid(objectness)·sigmoid(t_c). Both are handed
    on in the form that Ultralytics' `Detect` has them, distances from the cell's centre to the box's sides and one
    logit a class, so that loss, decoding and export are those of every other model here. That loss is assumed.

    Args:
        nc: number of classes.
        reg_max: 1, as there is no distribution of distances.
        end2end: False, as there is one branch.
        ch: width of the one level.

    Raises:
        ValueError: several levels, reg_max above 1, or end2end.
    """

    def __init__(self, nc: int = 80, reg_max: int = 1, end2end: bool = False, ch: tuple[int, ...] = ()) -> None:
        nn.Module.__init__(self)  # Detect's own would build its convolutions for each level
        if len(ch) != 1 or reg_max != 1 or end2end:
            raise ValueError(
                f"PaperDetect takes one level, reg_max: 1 and no end2end, not {len(ch)} levels, {reg_max}, {end2end}"
            )
        self.nc, self.nl, self.reg_max = nc, 1, 1
        self.no = nc + 4
        self.stride = torch.zeros(1)
        self.cv2 = nn.ModuleList([nn.Conv2d(ch[0], 4, 1)])  # centre and sides
        self.cv3 = nn.ModuleList([nn.Conv2d(ch[0], 1 + nc, 1)])  # objectness and classes
        self.dfl = nn.Identity()

    def forward_head(
        self, x: list[Tensor], box_head: Any = None, cls_head: Any = None
    ) -> dict[str, Tensor | list[Tensor]]:
        """Predict from [(B, C, H, W)]: distances (B, 4, H·W) in cells and class logits (B, nc, H·W)."""
        if box_head is None or cls_head is None:
            return {}
        boxes, scores = (branch[0](x[0]).flatten(2) for branch in (box_head, cls_head))
        centre, half = boxes.sigmoid().split(2, dim=1)
        centre, half = centre - 0.5, half * (BOX_LIMIT / 2)  # from the centre of the cell
        objectness, classes = scores.split([1, self.nc], dim=1)
        return {
            "boxes": torch.cat([half - centre, half + centre], dim=1),
            "scores": joint_logit(objectness, classes),
            "feats": x,
        }

    def bias_init(self) -> None:
        """Start from Ultralytics' prior of about five objects an image, with both factors of a score alike."""
        prior = math.sqrt(5 / self.nc / (640 / float(self.stride[0])) ** 2)
        boxes: Any = self.cv2[0]
        scores: Any = self.cv3[0]
        boxes.bias.data[:] = 0.0
        scores.bias.data[:] = math.log(prior / (1 - prior))


def joint_logit(a: Tensor, b: Tensor) -> Tensor:
    """Return the logit of sigmoid(a)·sigmoid(b), without forming the product: -log(e^-a + e^-b + e^-(a + b))."""
    a, b = torch.broadcast_tensors(a, b)
    return -torch.logsumexp(torch.stack([-a, -b, -(a + b)]), dim=0)
