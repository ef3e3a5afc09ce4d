"""The detection head of YOLO-LAT: 1x1 convolutions only, shared by all levels."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.modules import DFL, Conv, Detect

from yolo_lat.nn.layout import side_by_side, token_rows

# From distances left, top, right, bottom to the box's centre, relative to the anchor, and its width and height.
_CENTRE_AND_SIZE = ((-0.5, 0.0, 0.5, 0.0), (0.0, -0.5, 0.0, 0.5), (1.0, 0.0, 1.0, 0.0), (0.0, 1.0, 0.0, 1.0))


class BinMeans(nn.Module):
    """The mean of each box side's distribution over its bins (DFL), as sums of exponentials by one product.

    The same numbers as `DFL`'s softmax and convolution. ONNX Runtime's softmax on a CPU takes each side of each
    position by itself, 16 numbers at a time, and spends a fifth of a small detector's time on that.

    Shape:
        (B, 4·bins, A) -> (B, 4, A).
    """

    sums: Tensor

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins
        sides = torch.eye(4)
        weighted, plain = (torch.kron(sides, of_bins) for of_bins in (torch.arange(bins)[None], torch.ones(1, bins)))
        self.register_buffer("sums", torch.cat([weighted, plain]))  # (8, 4·bins)

    def forward(self, x: Tensor) -> Tensor:
        """Divide the weighted sums by the plain ones."""
        sides = x.reshape(x.shape[0], 4, self.bins, -1)
        powers = (sides - sides.amax(2, keepdim=True)).exp().reshape(x.shape[0], 4 * self.bins, -1)
        weighted, plain = (self.sums @ powers).chunk(2, dim=1)
        return weighted / plain


class LatDetect(Detect):
    """An Ultralytics `Detect` whose convolutions are shared by all levels and have no spatial extent.

    The blocks before it have mixed positions already; sharing spends the parameters once instead of once a level, and
    all positions of all levels go through each convolution together. Boxes are distances in units of the level's
    stride, so one convolution serves every level. The hidden layer of the boxes is half as wide as that of the classes,
    as boxes say less; Ultralytics' is a quarter. Training, decoding, losses and the one-to-one branch are `Detect`'s.

    Args:
        nc: number of classes.
        reg_max: bins of a box side's distribution (DFL); 1 regresses distances directly.
        end2end: add a one-to-one branch for inference without NMS.
        ch: width of each level, all equal.

    Raises:
        ValueError: levels of different widths.
    """

    from_bins: Tensor

    def __init__(self, nc: int = 80, reg_max: int = 16, end2end: bool = False, ch: tuple[int, ...] = ()) -> None:
        nn.Module.__init__(self)  # Detect's own would build its convolutions for each level
        if len(set(ch)) != 1:
            raise ValueError(f"LatDetect shares its branches, so its levels must have one width, not {list(ch)}")
        self.nc, self.nl, self.reg_max = nc, len(ch), reg_max
        self.no = nc + 4 * reg_max
        self.stride = torch.zeros(self.nl)
        width = ch[0]
        half = max(16, width // 2)
        # Lists of one branch: Detect's loading, fusing and one-to-one code walks over lists.
        self.cv2 = nn.ModuleList([nn.Sequential(Conv(width, half, 1), nn.Conv2d(half, 4 * reg_max, 1))])
        self.cv3 = nn.ModuleList([nn.Sequential(Conv(width, width, 1), nn.Conv2d(width, nc, 1))])
        self.dfl = DFL(reg_max) if reg_max > 1 else nn.Identity()
        self.folded = self.by_level = False
        if end2end:
            self.one2one_cv2, self.one2one_cv3 = copy.deepcopy(self.cv2), copy.deepcopy(self.cv3)

    def forward_head(
        self, x: list[Tensor], box_head: Any = None, cls_head: Any = None
    ) -> dict[str, Tensor | list[Tensor]]:
        """Predict from levels [(B, C, H_l, W_l)]: boxes (B, 4·reg_max, A) and class logits (B, nc, A), A positions."""
        if box_head is None or cls_head is None:  # the branch that fusing removed
            return {}
        if self.by_level:
            made = (side_by_side([branch[0](level) for level in x]) for branch in (box_head, cls_head))
            boxes, scores = (tokens.squeeze(-1) for tokens in made)
            return {"boxes": boxes, "scores": scores, "feats": x}
        tokens = side_by_side(x)
        if self.folded:
            hidden = token_rows(box_head[0][0](tokens))
            boxes, scores = (branch[0][1].weight.flatten(1) for branch in (box_head, cls_head))
            scores = scores @ hidden.transpose(1, 2)
            if self.reg_max == 1:
                boxes = boxes @ hidden.transpose(1, 2)
            else:  # a softmax is fastest over numbers that lie together
                bins = (hidden @ boxes.T).reshape(hidden.shape[0], -1, 4, self.reg_max).softmax(-1)
                boxes = (bins.reshape(hidden.shape[0], -1, 4 * self.reg_max) @ self.from_bins).transpose(1, 2)
        else:
            boxes, scores = (branch[0](tokens).squeeze(-1) for branch in (box_head, cls_head))
        return {"boxes": boxes, "scores": scores, "feats": x}

    def decode_bboxes(self, bboxes: Tensor, anchors: Tensor, angle: Tensor | None = None) -> Tensor:
        """Turn predictions (B, 4, A) into boxes in units of the stride: xyxy where the caller wants that, else xywh."""
        if not self.folded:
            return super().decode_bboxes(bboxes, anchors, angle)
        if self.end2end or self.xyxy:
            centre, half = bboxes[:, :2] + anchors, bboxes[:, 2:] / 2
            return torch.cat([centre - half, centre + half], dim=1)
        return bboxes + torch.cat([anchors, torch.zeros_like(anchors)], dim=1)

    def keep_levels_apart(self) -> None:
        """Become faster on a CPU.

        The convolutions run once a level: more steps, but maps stay maps. Means of bins are products.
        """
        self.by_level = True
        if self.reg_max > 1:
            self.dfl = BinMeans(self.reg_max).to(next(self.parameters()))

    @torch.no_grad()
    def fold(self) -> None:
        """Spare the inference form every operation that its weights can do.

        The hidden layers of boxes and classes become one convolution, in which a channel that never changes carries the
        biases, so that each output is one product. Boxes are centre and size in place of distances: without DFL their
        weights give these, with DFL the product that takes the means of the bins. To be called once batch norms are
        folded and one branch is left.
        """
        if self.folded:
            return
        left: Any = self.one2one if self.cv2 is None else self.one2many
        (box_hidden, to_boxes), (cls_hidden, to_scores) = left["box_head"][0], left["cls_head"][0]
        widths, constant = (to_boxes.in_channels, to_scores.in_channels), 8  # tensor cores want multiples of 8
        total = sum(widths) + constant
        convs = (box_hidden.conv, cls_hidden.conv)
        weight = convs[0].weight.new_zeros(constant, convs[0].in_channels, 1, 1)
        bias = convs[0].bias.new_ones(constant)
        merged: Any = nn.Conv2d(convs[0].in_channels, total, 1).to(weight).requires_grad_(False)
        merged.weight.copy_(torch.cat([*(conv.weight for conv in convs), weight]))
        merged.bias.copy_(torch.cat([*(conv.bias for conv in convs), bias]))
        one = float(box_hidden.act(weight.new_ones(())))  # what the activation makes of the constant
        for output, start in ((to_boxes, 0), (to_scores, widths[0])):
            columns = output.weight.new_zeros(output.out_channels, total, 1, 1)
            columns[:, start : start + output.in_channels] = output.weight
            columns[:, sum(widths), 0, 0] = output.bias / one
            output.weight, output.bias = nn.Parameter(columns, requires_grad=False), None
        change = to_boxes.weight.new_tensor(_CENTRE_AND_SIZE)
        if self.reg_max == 1:
            to_boxes.weight.copy_(torch.einsum("ij,jkhw->ikhw", change, to_boxes.weight))
        else:
            numbers = torch.arange(self.reg_max).to(change)
            self.register_buffer("from_bins", torch.kron(change, numbers).T.contiguous())  # (4·reg_max, 4)
            self.dfl = nn.Identity()
        box_hidden.conv, left["cls_head"][0][0] = merged, nn.Identity()
        self.folded = True

    def bias_init(self) -> None:
        """Start from boxes of two strides to each side and the class prior of `Detect`, averaged over its levels."""
        prior = sum(math.log(5 / self.nc / (640 / float(s)) ** 2) for s in self.stride) / self.nl
        branches = [self.one2many]
        if getattr(self, "one2one_cv2", None) is not None:
            branches.append(self.one2one)
        for branch in branches:
            branch["box_head"][0][-1].bias.data[:] = 2.0
            branch["cls_head"][0][-1].bias.data[:] = prior
