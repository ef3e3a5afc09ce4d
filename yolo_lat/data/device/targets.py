"""Boxes of a batch: from the images they were drawn in to where a plan puts them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from yolo_lat.data.device.cache import DeviceCache
from yolo_lat.data.device.plan import Plan

_SMALLEST = 2.0  # side, pixels
_LONGEST = 100.0  # aspect ratio
_REMAINING = 0.1  # of a box's area, below which it is dropped


@dataclass(frozen=True)
class Targets:
    """The boxes of B samples, those that count first and in the order of their tiles.

    Attributes:
        boxes: (B, M, 4) float32 centre and size, relative to the sample; zero where not valid.
        labels: (B, M) int64; zero where not valid.
        valid: (B, M) bool.
        cut: (B, 4) int32 x1 y1 x2 y2, where cutmix puts its partner before flips; without area where it does not.
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor
    cut: Tensor


def place(cache: DeviceCache, plan: Plan) -> Targets:
    """Place the boxes of every tile, as Ultralytics does after mosaic, mixup, cutmix and flips.

    A box goes the way of its four corners and becomes their hull; what `keep` refuses is dropped. Cutmix takes place
    only in an area free of boxes and brings boxes of which a tenth is in it. A box of which cutout leaves less than a
    tenth is dropped; one that margins cover in part is clipped, and dropped where `keep` refuses the rest. M is the
    number of tiles times the most boxes of an image, whatever the batch holds.
    """
    s = plan.imgsz
    boxes, labels, valid = _on_canvas(cache, plan)
    moved = transform(boxes, plan.matrix, plan.perspective).clamp(0, s)
    valid = valid & keep(boxes * plan.scale[..., None, None], moved)
    batch, parts = moved.shape[:2]
    cut = torch.zeros((batch, 4), dtype=torch.int32, device=moved.device)
    if parts > 1:
        mixed = torch.stack([torch.ones_like(plan.mixup), plan.mixup], dim=1)
        valid[:, :2] &= mixed[..., None]
        own = moved[:, :2].flatten(1, 2), valid[:, :2].flatten(1, 2)
        area, brought = _cutmix(plan, *own, moved[:, 2], valid[:, 2])
        moved[:, 2], valid[:, 2], cut = _clipped(moved[:, 2], area), brought, area.to(torch.int32)
    boxes, labels, valid = moved.flatten(1, 2), labels.flatten(1, 2), valid.flatten(1, 2)
    boxes = _flip(boxes, plan)
    valid = valid & (_hidden(boxes, plan.cutout) <= 1 - _REMAINING)
    if plan.margins:
        boxes, whole = _clipped(boxes, plan.shown), boxes
        valid = valid & (keep(whole, boxes) | (boxes == whole).all(-1))
    return Targets(*_valid_first(_relative(boxes, s), labels, valid), cut)


def place_whole(cache: DeviceCache, plan: Plan) -> Targets:
    """Place every box of images that a plan only moves, and drop none, as for validation."""
    boxes, labels, valid = _on_canvas(cache, plan)
    boxes = _relative(transform(boxes, plan.matrix, False).flatten(1, 2), plan.imgsz)
    cut = torch.zeros((len(boxes), 4), dtype=torch.int32, device=boxes.device)
    return Targets(*_valid_first(boxes, labels.flatten(1, 2), valid.flatten(1, 2)), cut)


def transform(boxes: Tensor, matrix: Tensor, perspective: bool) -> Tensor:
    """Return the hulls of transformed boxes.

    Args:
        boxes: (..., n, 4) float32 x1 y1 x2 y2.
        matrix: (..., 3, 3) float32.
        perspective: whether the third row of `matrix` matters.
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    x, y = torch.stack([x1, x2, x1, x2], dim=-1), torch.stack([y1, y2, y2, y1], dim=-1)
    rows = [matrix[..., i, j, None, None] for i in range(3) for j in range(3)]
    u, v, w = (x * a + y * b + c for a, b, c in (rows[:3], rows[3:6], rows[6:]))
    if perspective:
        u, v = u / w, v / w
    return torch.stack([u.amin(-1), v.amin(-1), u.amax(-1), v.amax(-1)], dim=-1)


def keep(before: Tensor, after: Tensor) -> Tensor:
    """Return which boxes are still worth learning: Ultralytics' `RandomPerspective.box_candidates`.

    Args:
        before: (..., 4) x1 y1 x2 y2 on the canvas, times the scale factor.
        after: (..., 4) in the output, clipped.
    """
    tiny = 1e-16
    w, h = (before[..., 2:] - before[..., :2]).unbind(-1)
    width, height = (after[..., 2:] - after[..., :2]).unbind(-1)
    aspect = torch.maximum(width / (height + tiny), height / (width + tiny))
    large = (width > _SMALLEST) & (height > _SMALLEST)
    return large & (width * height / (w * h + tiny) > _REMAINING) & (aspect < _LONGEST)


def _on_canvas(cache: DeviceCache, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes (B, P, R, 4), labels and valid (B, P, R) of all tiles, R = 4 times the most boxes of an image.

    A mosaic's tile shows what is inside the canvas, so clipping its boxes to the canvas clips them to the tile.
    """
    each = torch.arange(cache.most_boxes, device=plan.images.device)
    valid = each < cache.counts[plan.images][..., None]
    valid[:, :, 1:] &= plan.mosaic[..., None, None]
    rows = torch.where(valid, cache.starts[plan.images][..., None] + each, 0)
    right, low = torch.arange(4, device=rows.device) % 2, torch.arange(4, device=rows.device) // 2
    x = plan.centre[..., :1] - torch.where(right == 1, 0, cache.widths[plan.images])
    y = plan.centre[..., 1:] - torch.where(low == 1, 0, cache.heights[plan.images])
    boxes = cache.boxes[rows] + torch.stack([x, y, x, y], dim=-1)[..., None, :]
    boxes, labels, valid = boxes.flatten(2, 3), cache.classes[rows].flatten(2), valid.flatten(2)
    mosaic = plan.mosaic[..., None]
    boxes = torch.where(mosaic[..., None], boxes.clamp(0, 2 * plan.imgsz), boxes)
    return boxes, labels, valid & (~mosaic | (_area(boxes) > 0))


def _cutmix(plan: Plan, boxes: Tensor, valid: Tensor, theirs: Tensor, theirs_valid: Tensor) -> tuple[Tensor, Tensor]:
    """Choose where cutmix cuts.

    The boxes are (B, R, 4), the sample's own and its partner's. Returns (B, 4) float32 areas, all zero without cutmix,
    and (B, R) bool, the partner's boxes that come along.
    """
    taken = (_overlap(plan.areas[:, :, None], boxes[:, None]) > 0) & valid[:, None]
    free = ~taken.any(-1)
    choice = torch.where(free, plan.priority, -1.0).argmax(dim=1)
    area = plan.areas.gather(1, choice[:, None, None].expand(-1, 1, 4))
    inside = _overlap(area, theirs) / (_area(theirs) + 1e-7)
    brought = theirs_valid & (inside >= _REMAINING) & (plan.cutmix & free.any(-1))[:, None]
    return area[:, 0] * brought.any(-1, keepdim=True), brought


def _clipped(boxes: Tensor, area: Tensor) -> Tensor:
    """Return (B, R, 4) boxes clipped to (B, 4) rectangles."""
    low, high = area[:, None, :2].repeat(1, 1, 2), area[:, None, 2:].repeat(1, 1, 2)
    return boxes.maximum(low).minimum(high)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _overlap(a: Tensor, b: Tensor) -> Tensor:
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp_min(0)
    return sides[..., 0] * sides[..., 1]


def _hidden(boxes: Tensor, cutout: Tensor) -> Tensor:
    """Return the share of each of (B, R, 4) boxes that a (B, 4) rectangle covers."""
    return _overlap(boxes, cutout[:, None].to(boxes)) / (_area(boxes) + 1e-7)


def _flip(boxes: Tensor, plan: Plan) -> Tensor:
    s = plan.imgsz
    x1, y1, x2, y2 = boxes.unbind(-1)
    up, left = plan.flip[:, :1], plan.flip[:, 1:]
    x1, x2 = torch.where(left, s - x2, x1), torch.where(left, s - x1, x2)
    y1, y2 = torch.where(up, s - y2, y1), torch.where(up, s - y1, y2)
    return torch.stack([x1, y1, x2, y2], dim=-1)


def _relative(boxes: Tensor, s: int) -> Tensor:
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1) / s


def _valid_first(boxes: Tensor, labels: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    order = (~valid).to(torch.uint8).argsort(dim=1, stable=True)
    valid = valid.gather(1, order)
    labels = torch.where(valid, labels.gather(1, order), 0)
    boxes = torch.where(valid[..., None], boxes.gather(1, order[..., None].expand(-1, -1, 4)), 0.0)
    return boxes, labels, valid
