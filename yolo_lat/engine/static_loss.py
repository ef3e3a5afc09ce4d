"""The detection loss in tensors whose shapes do not depend on values, so that a training step can become a CUDA graph.

Ultralytics' loss gathers what is assigned before it computes on it; how much that is, only the device knows, so the
host waits. Here all of it is computed and what is not assigned weighs nothing. Values and gradients are Ultralytics'
in float32 to rounding; its class is the slow twin in the tests. Under autocast Ultralytics computes boxes in what the
network returns, which is too coarse in bfloat16; here the loss is computed in float32 there too.
"""

from __future__ import annotations

import math
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from ultralytics.utils.loss import BboxLoss, E2ELoss, v8DetectionLoss
from ultralytics.utils.metrics import bbox_iou
from ultralytics.utils.ops import xywh2xyxy, xyxy2xywh
from ultralytics.utils.tal import TaskAlignedAssigner, bbox2dist

from yolo_lat.ela.attention import no_autocast
from yolo_lat.engine.ranks import RANKS, mean_over_ranks
from yolo_lat.errors import UserError

# Pairs of object and anchor that are compared at once: temporaries of 16 MB stay in a GPU's cache.
_PAIRS_AT_ONCE = 4_194_304


class StaticAssigner(TaskAlignedAssigner):
    """Ultralytics' task-aligned assigner (TOOD, https://arxiv.org/abs/2108.07755, section 3.2) on all pairs.

    Candidates, metric, top-k, conflicts and targets are those of its base class. Rows that `mask_gt` leaves out may
    hold anything and lie anywhere.
    """

    @torch.no_grad()
    def forward(
        self,
        pd_scores: Tensor,
        pd_bboxes: Tensor,
        anc_points: Tensor,
        gt_labels: Tensor,
        gt_bboxes: Tensor,
        mask_gt: Tensor,
        **extra: Any,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Assign objects to anchors.

        Args:
            pd_scores: class probabilities (B, A, nc).
            pd_bboxes: predicted boxes (B, A, 4), xyxy in pixels.
            anc_points: anchor centres (A, 2) in pixels.
            gt_labels: class numbers (B, M, 1).
            gt_bboxes: objects' boxes (B, M, 4), xyxy in pixels; M at least 1.
            mask_gt: which rows are objects (B, M, 1).
            **extra: nothing; other tasks' assigners take more.

        Returns:
            Labels (B, A), boxes (B, A, 4) in pixels, scores (B, A, nc), which anchors are foreground (B, A), and the
            rows of their objects (B, A).
        """
        self.bs, self.n_max_boxes = gt_bboxes.shape[:2]
        mask_gt = mask_gt.bool()
        labels = gt_labels.squeeze(-1).long().masked_fill(~mask_gt.squeeze(-1), 0)
        inside, metric, overlaps = self._compare(pd_scores, pd_bboxes, anc_points, labels, gt_bboxes, mask_gt)
        positive = self.select_topk_candidates(metric, topk_mask=mask_gt.expand(-1, -1, self.topk)).mul_(inside)
        rows, foreground, _ = self.select_highest_overlaps(positive, overlaps, self.n_max_boxes, metric)
        foreground = foreground.bool()

        own_metric, own_overlap = (
            pairs.gather(1, rows.unsqueeze(1)).squeeze(1).masked_fill_(~foreground, 0) for pairs in (metric, overlaps)
        )
        best_metric, best_overlap = (
            own.new_zeros(self.bs, self.n_max_boxes).scatter_reduce_(1, rows, own, "amax").gather(1, rows)
            for own in (own_metric, own_overlap)
        )
        level = own_metric.mul_(best_overlap).div_(best_metric.add_(self.eps))

        target_labels = labels.gather(1, rows)
        target_bboxes = gt_bboxes.gather(1, rows.unsqueeze(-1).expand(-1, -1, 4))
        scores = level.new_zeros(self.bs, pd_scores.shape[-1], level.shape[1])  # class by class, as the head predicts
        scores.scatter_(1, target_labels.unsqueeze(1), level.unsqueeze(1))
        return target_labels, target_bboxes, scores.transpose(1, 2), foreground, rows

    def _compare(
        self, scores: Tensor, boxes: Tensor, centres: Tensor, labels: Tensor, gt_bboxes: Tensor, mask_gt: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return whether centres lie in objects, alignment metrics and overlaps, each (B, M, A), a few rows at a time.

        The last two are 0 outside; overlaps of rows that are no objects are -1, below any object's in a conflict.
        """
        if has_kernels(boxes.device) and boxes.dtype == gt_bboxes.dtype == torch.float32:
            from yolo_lat.engine.pairs_triton import compare

            grown = float(self.stride_val)
            return compare(scores, boxes, centres, labels, gt_bboxes, mask_gt, grown, self.alpha, self.beta)
        batch, count, anchors = *labels.shape, boxes.shape[1]
        inside = torch.empty(batch, count, anchors, dtype=torch.bool, device=boxes.device)
        overlaps = boxes.new_empty(batch, count, anchors)
        metric = torch.empty_like(overlaps, dtype=torch.promote_types(scores.dtype, boxes.dtype))
        outside = mask_gt.to(boxes.dtype) - 1
        by_class = scores.transpose(1, 2)
        for start in range(0, count, step := max(1, _PAIRS_AT_ONCE // (batch * anchors))):
            rows = slice(start, start + step)
            mask = mask_gt[:, rows]
            candidates = self.select_candidates_in_gts(centres, gt_bboxes[:, rows], mask).logical_and_(mask)
            overlap = pairwise_ciou(gt_bboxes[:, rows], boxes).clamp_(0)
            score = by_class.gather(1, labels[:, rows, None].expand(-1, -1, anchors)).pow(self.alpha)
            torch.where(candidates, overlap, outside[:, rows], out=overlaps[:, rows])
            metric[:, rows] = (score * overlap.pow_(self.beta)).masked_fill_(~candidates, 0)
            inside[:, rows] = candidates
        return inside, metric, overlaps

    def select_candidates_in_gts(
        self, xy_centers: Tensor, gt_bboxes: Tensor, mask_gt: Tensor, eps: float = 1e-9
    ) -> Tensor:
        """Return which centres (A, 2) lie in boxes (B, M, 4) grown to the second stride, (B, M, A)."""
        boxes = xyxy2xywh(gt_bboxes)
        sides = boxes[..., 2:]
        sides.masked_fill_((sides < self.stride_val) & mask_gt.bool(), self.stride_val)
        left, top, right, bottom = xywh2xyxy(boxes).unsqueeze(-1).unbind(2)
        x, y = xy_centers.unbind(-1)
        mask = x - left > eps
        for distance in (y - top, right - x, bottom - y):
            mask &= distance > eps
        return mask


@cache
def has_kernels(device: torch.device) -> bool:
    """Whether `pairs_triton` and `boxes_triton` take over: on CUDA devices, where Triton is installed."""
    return device.type == "cuda" and find_spec("triton") is not None


def _box_kernels(raw: Tensor) -> Any:
    """Return `boxes_triton` where it takes such predictions, else None."""
    if not has_kernels(raw.device) or raw.dtype == torch.float64:
        return None
    from yolo_lat.engine import boxes_triton

    return boxes_triton


def pairwise_ciou(boxes: Tensor, others: Tensor, eps: float = 1e-7) -> Tensor:
    """Return the complete IoU (https://arxiv.org/abs/1911.08287) of boxes (B, M, 4) with others (B, A, 4), xyxy.

    The same operations in the same order as `bbox_iou`, in place, and what belongs to one box computed once; no
    gradients. Shape (B, M, A).
    """
    ax1, ay1, ax2, ay2 = boxes.unsqueeze(-1).unbind(2)
    bx1, by1, bx2, by2 = others.transpose(1, 2).contiguous().unsqueeze(2).unbind(1)
    aw, ah = ax2 - ax1, ay2 - ay1 + eps
    bw, bh = bx2 - bx1, by2 - by1 + eps

    inter = torch.minimum(ax2, bx2).sub_(torch.maximum(ax1, bx1)).clamp_(0)
    inter.mul_(torch.minimum(ay2, by2).sub_(torch.maximum(ay1, by1)).clamp_(0))
    iou = inter.div_((aw * ah + bw * bh).sub_(inter).add_(eps))

    diagonal = torch.maximum(ax2, bx2).sub_(torch.minimum(ax1, bx1)).pow_(2)
    diagonal.add_(torch.maximum(ay2, by2).sub_(torch.minimum(ay1, by1)).pow_(2)).add_(eps)
    distance = ((bx1 + bx2) - ax1).sub_(ax2).pow_(2)
    distance.add_(((by1 + by2) - ay1).sub_(ay2).pow_(2)).div_(4).div_(diagonal)

    shape = ((bw / bh).atan() - (aw / ah).atan()).pow_(2).mul_(4 / math.pi**2)
    weight = shape / (1 - iou).add_(shape).add_(eps)
    return iou.sub_(distance.add_(shape.mul_(weight)))


class StaticBboxLoss(BboxLoss):
    """Ultralytics' box losses over all anchors; background counts with weight zero."""

    def forward(
        self,
        pred_dist: Tensor,
        pred_bboxes: Tensor,
        anchor_points: Tensor,
        target_bboxes: Tensor,
        target_scores: Tensor,
        target_scores_sum: Tensor,
        fg_mask: Tensor,
        imgsz: Tensor,
        stride: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the CIoU loss and the DFL (https://arxiv.org/abs/2006.04388) or, with one bin, L1 loss.

        Args:
            pred_dist: raw predictions (B, A, 4·reg_max).
            pred_bboxes: decoded boxes (B, A, 4), xyxy in strides.
            anchor_points: anchor centres (A, 2) in strides.
            target_bboxes: assigned boxes (B, A, 4), xyxy in strides.
            target_scores: assigned scores (B, A, nc), zero in the background.
            target_scores_sum: what both losses are divided by, a scalar.
            fg_mask: which anchors are foreground (B, A).
            imgsz: height and width of the image (2,) in pixels.
            stride: stride of each anchor (A, 1).
        """
        foreground = fg_mask.unsqueeze(-1)
        weight = target_scores.sum(-1, keepdim=True)
        # A box in the background may have no height, and a gradient of infinity times zero is not zero.
        iou = bbox_iou(_or_unit(foreground, pred_bboxes), _or_unit(foreground, target_bboxes), xywh=False, CIoU=True)
        loss_iou = ((1.0 - iou) * weight).sum() / target_scores_sum

        if self.dfl_loss:
            bins = self.dfl_loss.reg_max
            target = bbox2dist(anchor_points, target_bboxes, bins - 1)
            log_probability = pred_dist.view(*target.shape, bins).log_softmax(-1)
            per_side = -(log_probability * _two_bins(target, bins)).sum(-1)
        else:
            sides = imgsz.flip(0).repeat(2)
            target = bbox2dist(anchor_points, target_bboxes)
            per_side = (pred_dist * stride / sides - target * stride / sides).abs().masked_fill(~foreground, 0)
        loss_dfl = (per_side.mean(-1, keepdim=True) * weight).sum() / target_scores_sum
        return loss_iou, loss_dfl


def _or_unit(mask: Tensor, boxes: Tensor) -> Tensor:
    """Put the unit square wherever `mask` (B, A, 1) is false in boxes (B, A, 4), xyxy."""
    low, high = boxes.chunk(2, -1)
    return torch.cat((low.masked_fill(~mask, 0), high.masked_fill(~mask, 1)), -1)


def _two_bins(target: Tensor, bins: int) -> Tensor:
    """Share each of the distances (...) between the bins to its left and right, by nearness; (..., bins)."""
    positions = torch.arange(bins, device=target.device, dtype=target.dtype)
    return (target.unsqueeze(-1) - positions).abs_().neg_().add_(1).clamp_(min=0)


class StaticDetectionLoss(v8DetectionLoss):
    """Ultralytics' detection loss on a padded batch, without a wait for the device.

    A batch holds `boxes` (B, M, 4), normalised xywh, `labels` (B, M), int64, and `valid` (B, M), bool: which rows are
    objects, none of them perhaps; M is at least 1. Rows that are not valid change nothing, whatever they hold.

    Args:
        model: a detection model with its arguments (`model.args`) set.
        tal_topk: anchors that an object may take.
        tal_topk2: how many of those it keeps; None keeps all.
    """

    assigner: StaticAssigner

    def __init__(self, model: torch.nn.Module, tal_topk: int = 10, tal_topk2: int | None = None) -> None:
        super().__init__(model, tal_topk, tal_topk2)
        stock = self.assigner
        self.assigner = StaticAssigner(
            stock.topk, stock.num_classes, stock.alpha, stock.beta, stock.stride, stock.eps, stock.topk2
        )
        self.bbox_loss = StaticBboxLoss(self.reg_max).to(self.device)
        self._grids: dict[tuple[Any, ...], tuple[Tensor, Tensor, Tensor]] = {}

    def get_assigned_targets_and_loss(
        self, preds: dict[str, Any], batch: dict[str, Any], **assign_kwargs: Any
    ) -> tuple[tuple[Tensor, ...], Tensor, dict[str, Tensor]]:
        """Return what was assigned, the losses of box, class and distribution with their gains, (3,), and by name.

        What was assigned is a tuple: foreground (B, A), rows of the objects (B, A), boxes (B, A, 4) in pixels, anchor
        centres (A, 2) in strides, and strides (A, 1). All is computed in float32 at least, whatever autocast says: in
        bfloat16 the right side of a box at 640 px would be rounded to 4 px.
        """
        with no_autocast(preds["boxes"].device.type):
            return self._assigned_and_loss(preds, batch, assign_kwargs)

    def _assigned_and_loss(
        self, preds: dict[str, Any], batch: dict[str, Any], assign_kwargs: dict[str, Any]
    ) -> tuple[tuple[Tensor, ...], Tensor, dict[str, Tensor]]:
        dtype = torch.promote_types(preds["boxes"].dtype, torch.float32)
        scores = preds["scores"].to(dtype)
        anchor_points, strides, image_size = self._grid(preds["feats"], dtype)
        valid = batch["valid"].unsqueeze(-1)
        gt_bboxes = xywh2xyxy(batch["boxes"].masked_fill(~valid, 0) * image_size.flip(0).repeat(2))
        # Ultralytics knows padding by its zeros, so a box whose corners do not sum to more is none there either.
        mask_gt = valid & (gt_bboxes.sum(-1, keepdim=True) > 0)
        raw, kernels = preds["boxes"], _box_kernels(preds["boxes"])
        if kernels is not None:
            pixels = kernels.decode(raw, anchor_points, strides)
        else:
            distances = raw.to(dtype).permute(0, 2, 1).contiguous()
            pred_bboxes = self.bbox_decode(anchor_points, distances)
            pixels = (pred_bboxes.detach() * strides).type(gt_bboxes.dtype)

        _, target_bboxes, target_scores, foreground, rows = self.assigner(
            scores.detach().sigmoid().transpose(1, 2),
            pixels,
            anchor_points * strides,
            batch["labels"].unsqueeze(-1),
            gt_bboxes,
            mask_gt,
            **assign_kwargs,
        )
        # Each process divides by its part of what one would divide by, so that sums of gradients are one's.
        total = mean_over_ranks(target_scores.sum()).clamp_(min=1 / RANKS)
        loss_cls = self.bce(scores, target_scores.transpose(1, 2).to(scores.dtype))
        if self.class_weights is not None:
            loss_cls = loss_cls * self.class_weights.transpose(1, 2)
        if kernels is not None:
            weights = target_scores.sum(-1)
            sums = kernels.BoxLosses.apply(raw, anchor_points, strides, target_bboxes, weights, foreground, image_size)
            loss_box, loss_dfl = (sums / total).unbind()
        else:
            loss_box, loss_dfl = self.bbox_loss(
                distances,
                pred_bboxes,
                anchor_points,
                target_bboxes / strides,
                target_scores,
                total,
                foreground,
                image_size,
                strides,
            )
        parts = (loss_box * self.hyp.box, loss_cls.sum() / total * self.hyp.cls, loss_dfl * self.hyp.dfl)
        loss = torch.stack(parts)
        named = dict(zip(self.loss_names, loss.detach(), strict=True))
        return (foreground, rows, target_bboxes, anchor_points, strides), loss, named

    def _grid(self, levels: list[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Return anchor centres (A, 2) in strides, strides (A, 1) and the image's height and width (2,) in pixels.

        They are made once for each size, as tensors that autograd may keep, also within a validation. `make_anchors`
        computes the same on the host and copies it; so does a tensor made of a list.
        """
        like: dict[str, Any] = {"device": levels[0].device, "dtype": dtype}
        sizes = tuple(tuple(level.shape[2:]) for level in levels)
        key = (sizes, *like.values())
        if key not in self._grids:
            with torch.inference_mode(False):
                self._grids[key] = self._make_grid(sizes, like)
        return self._grids[key]

    def _make_grid(self, sizes: tuple[tuple[int, ...], ...], like: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        points, strides = [], []
        for (height, width), stride in zip(sizes, self.assigner.stride, strict=True):
            y, x = (torch.arange(side, **like) + 0.5 for side in (height, width))
            points.append(torch.stack((x.expand(height, -1), y.unsqueeze(1).expand(-1, width)), -1).view(-1, 2))
            strides.append(torch.full((height * width, 1), stride, **like))
        image_size = torch.empty(2, **like)
        for i in range(2):
            image_size[i].fill_(sizes[0][i] * self.assigner.stride[0])
        return torch.cat(points), torch.cat(strides), image_size


class StaticE2ELoss(E2ELoss):
    """Ultralytics' loss of an end-to-end head, its two gains in tensors that `update` fills.

    A CUDA graph that was captured with them reads what they hold when it is replayed.
    """

    o2m: Tensor
    o2o: Tensor

    def __init__(self, model: torch.nn.Module, loss_fn: type[v8DetectionLoss] = StaticDetectionLoss) -> None:
        super().__init__(model, loss_fn)
        self.o2m, self.o2o = (torch.tensor(gain, device=self.one2many.device) for gain in (self.o2m, self.o2o))

    def update(self) -> None:
        """Move on by an epoch from the one-to-many towards the one-to-one loss."""
        self.updates += 1
        gain = self.decay(self.updates)
        self.o2m.fill_(gain)
        self.o2o.fill_(max(self.total - gain, 0))


def static_criterion(model: Any) -> StaticDetectionLoss | StaticE2ELoss:
    """Return the static form of `model.init_criterion()`.

    Raises:
        UserError: a model whose loss has no static form.
    """
    stock = model.init_criterion()
    if type(stock) is v8DetectionLoss:
        return StaticDetectionLoss(model)
    if type(stock) is E2ELoss and type(stock.one2many) is v8DetectionLoss:
        return StaticE2ELoss(model)
    raise UserError(
        f"{type(model).__name__} trains with {type(stock).__name__}, which has no form without waits for the device; "
        "train it with Ultralytics' own step"
    )
