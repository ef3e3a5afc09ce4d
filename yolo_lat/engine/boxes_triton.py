"""Decoded boxes and their losses in Triton kernels: what `StaticBboxLoss` computes in some two hundred operations.

A program has a run of an image's anchors. Gradients are computed from the predictions anew, by the chain rule written
out, so that nothing is kept. Imported only where Triton is installed.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from yolo_lat.engine.pairs_triton import atan

BLOCK = 128  # anchors of a program


@triton.jit
def _softmax_terms(raw, of_channel, known, BINS: tl.constexpr):
    """Return the largest of a side's values, the sum of exponentials below it, and the same weighted by the bin."""
    largest = tl.load(raw, mask=known, other=0.0).to(tl.float32)
    for k in tl.static_range(1, BINS):
        largest = tl.maximum(largest, tl.load(raw + k * of_channel, mask=known, other=0.0).to(tl.float32))
    total = tl.exp(tl.load(raw, mask=known, other=0.0).to(tl.float32) - largest)
    moment = total * 0
    for k in tl.static_range(1, BINS):
        share = tl.exp(tl.load(raw + k * of_channel, mask=known, other=0.0).to(tl.float32) - largest)
        total += share
        moment += k * share
    return largest, total, moment


@triton.jit
def _distance(raw, of_channel, known, BINS: tl.constexpr):
    """Return the distance from the anchor to a side, in strides: the value, or the mean of the bins by softmax."""
    if BINS == 1:
        found = tl.load(raw, mask=known, other=0.0).to(tl.float32)
    else:
        _, total, moment = _softmax_terms(raw, of_channel, known, BINS)
        found = moment / total
    return found


@triton.jit
def decode_kernel(
    raw,
    centres,
    strides,
    boxes,
    anchors,
    of_sample,
    of_channel,
    of_anchor,
    BINS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write boxes (B, A, 4), xyxy in pixels, of raw predictions (B, 4·BINS, A), which have strides."""
    sample = tl.program_id(0).to(tl.int64)
    anchor = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    known = anchor < anchors
    place = raw + sample * of_sample + anchor.to(tl.int64) * of_anchor
    side = BINS * of_channel
    x = tl.load(centres + anchor * 2, mask=known, other=0.0)
    y = tl.load(centres + anchor * 2 + 1, mask=known, other=0.0)
    stride = tl.load(strides + anchor, mask=known, other=1.0)
    out = boxes + (sample * anchors + anchor) * 4
    tl.store(out, (x - _distance(place, of_channel, known, BINS)) * stride, mask=known)
    tl.store(out + 1, (y - _distance(place + side, of_channel, known, BINS)) * stride, mask=known)
    tl.store(out + 2, (x + _distance(place + 2 * side, of_channel, known, BINS)) * stride, mask=known)
    tl.store(out + 3, (y + _distance(place + 3 * side, of_channel, known, BINS)) * stride, mask=known)


@triton.jit
def _share(a, b):
    """Return the share that a has in the gradient of the larger of a and b: one half where they are equal."""
    return (a > b).to(tl.float32) + 0.5 * (a == b).to(tl.float32)


@triton.jit
def _overlap(x1, y1, x2, y2, gx1, gy1, gx2, gy2):
    """Return the complete IoU of boxes with targets, and its derivatives by the boxes' four coordinates."""
    w, h = x2 - x1, y2 - y1 + 1e-7
    gw, gh = gx2 - gx1, gy2 - gy1 + 1e-7
    iw = tl.minimum(x2, gx2) - tl.maximum(x1, gx1)
    ih = tl.minimum(y2, gy2) - tl.maximum(y1, gy1)
    wide, high = (iw >= 0).to(tl.float32), (ih >= 0).to(tl.float32)
    iw, ih = tl.maximum(iw, 0.0), tl.maximum(ih, 0.0)
    shared = iw * ih
    union = w * h + gw * gh - shared + 1e-7
    iou = shared / union
    hull_w = tl.maximum(x2, gx2) - tl.minimum(x1, gx1)
    hull_h = tl.maximum(y2, gy2) - tl.minimum(y1, gy1)
    diagonal = hull_w * hull_w + hull_h * hull_h + 1e-7
    apart_x, apart_y = gx1 + gx2 - x1 - x2, gy1 + gy2 - y1 - y2
    distance = (apart_x * apart_x + apart_y * apart_y) / 4 / diagonal
    angle = atan(gw / gh) - atan(w / h)
    shape = angle * angle * 0.4052847345693511  # 4 / pi²
    weight = shape / (shape - iou + (1 + 1e-7))  # a constant to gradients
    overlap = iou - (distance + shape * weight)

    # d iou = (d shared · (union + shared) - shared · d (w h)) / union², d union being d (w h) - d shared.
    by_shared = (union + shared) / (union * union)
    by_area = -shared / (union * union)
    turn = -2 * 0.4052847345693511 * angle * weight / (w * w + h * h)  # of d shape · weight, by w over h and h over -w
    by_w, by_h = by_area * h - turn * h, by_area * w + turn * w
    by_hull = 2 * distance / diagonal
    left, right = _share(x1, gx1), _share(gx2, x2)
    upper, lower = _share(y1, gy1), _share(gy2, y2)
    by_iw, by_ih = by_shared * ih * wide, by_shared * iw * high
    pull_x, pull_y = apart_x / 2 / diagonal, apart_y / 2 / diagonal
    d_x1 = -by_iw * left - by_w + pull_x - by_hull * hull_w * (1 - left)
    d_x2 = by_iw * right + by_w + pull_x + by_hull * hull_w * (1 - right)
    d_y1 = -by_ih * upper - by_h + pull_y - by_hull * hull_h * (1 - upper)
    d_y2 = by_ih * lower + by_h + pull_y + by_hull * hull_h * (1 - lower)
    return overlap, d_x1, d_y1, d_x2, d_y2


@triton.jit
def _side_loss(raw, of_channel, known, target, scale, BINS: tl.constexpr):
    """Return the loss of a side: the distance from the target times `scale`, or with bins its cross entropy (DFL)."""
    if BINS == 1:
        found = tl.abs(tl.load(raw, mask=known, other=0.0).to(tl.float32) * scale - target * scale)
    else:
        largest, total, _ = _softmax_terms(raw, of_channel, known, BINS)
        target = tl.minimum(tl.maximum(target, 0.0), BINS - 1 - 0.01)
        found = largest + tl.log(total)
        for k in tl.static_range(BINS):
            share = tl.maximum(1 - tl.abs(target - k), 0.0)
            found -= share * tl.load(raw + k * of_channel, mask=known, other=0.0).to(tl.float32)
    return found


@triton.jit
def _side_gradient(raw, out, of_channel, to, known, target, scale, by_distance, by_loss, BINS: tl.constexpr):
    """Write the gradient of a side's raw values, given those by its distance and by its own loss."""
    if BINS == 1:
        ahead = tl.load(raw, mask=known, other=0.0).to(tl.float32) * scale - target * scale
        sign = (ahead > 0).to(tl.float32) - (ahead < 0).to(tl.float32)
        tl.store(out, (by_distance + by_loss * sign * scale).to(out.dtype.element_ty), mask=known)
    else:
        largest, total, moment = _softmax_terms(raw, of_channel, known, BINS)
        mean = moment / total
        target = tl.minimum(tl.maximum(target, 0.0), BINS - 1 - 0.01)
        for k in tl.static_range(BINS):
            value = tl.load(raw + k * of_channel, mask=known, other=0.0).to(tl.float32)
            probability = tl.exp(value - largest) / total
            share = tl.maximum(1 - tl.abs(target - k), 0.0)
            slope = by_distance * probability * (k - mean) + by_loss * (probability - share)
            tl.store(out + k * to, slope.to(out.dtype.element_ty), mask=known)


@triton.jit
def losses_kernel(
    raw,
    centres,
    strides,
    targets,
    weights,
    foreground,
    image_size,
    losses,
    slopes,
    gradient,
    anchors,
    of_sample,
    of_channel,
    of_anchor,
    BINS: tl.constexpr,
    BLOCK: tl.constexpr,
    BACKWARD: tl.constexpr,
):
    """Write both losses of each anchor (2, B, A), or the foreground's gradient (B, 4·BINS, A) given their `slopes`.

    Of the background nothing is loaded, so that its box is a point, finite like all that is computed of it.
    """
    sample = tl.program_id(0).to(tl.int64)
    anchor = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    exists = anchor < anchors
    row = sample * anchors + anchor
    known = exists & (tl.load(foreground + row, mask=exists, other=0) != 0)
    weight = tl.load(weights + row, mask=known, other=0.0)
    x = tl.load(centres + anchor * 2, mask=known, other=0.0)
    y = tl.load(centres + anchor * 2 + 1, mask=known, other=0.0)
    stride = tl.load(strides + anchor, mask=known, other=1.0)
    target = targets + row * 4
    gx1 = tl.load(target, mask=known, other=0.0) / stride
    gy1 = tl.load(target + 1, mask=known, other=0.0) / stride
    gx2 = tl.load(target + 2, mask=known, other=0.0) / stride
    gy2 = tl.load(target + 3, mask=known, other=0.0) / stride
    left = raw + sample * of_sample + anchor.to(tl.int64) * of_anchor
    top, right, bottom = left + BINS * of_channel, left + 2 * BINS * of_channel, left + 3 * BINS * of_channel
    x1 = x - _distance(left, of_channel, known, BINS)
    y1 = y - _distance(top, of_channel, known, BINS)
    x2 = x + _distance(right, of_channel, known, BINS)
    y2 = y + _distance(bottom, of_channel, known, BINS)
    overlap, d_x1, d_y1, d_x2, d_y2 = _overlap(x1, y1, x2, y2, gx1, gy1, gx2, gy2)
    high, wide = stride / tl.load(image_size), stride / tl.load(image_size + 1)
    if BACKWARD:
        box = -tl.load(slopes) * weight
        side = tl.load(slopes + 1) * weight / 4
        out, to = gradient + sample * 4 * BINS * anchors + anchor, anchors
        _side_gradient(left, out, of_channel, to, known, x - gx1, wide, -box * d_x1, side, BINS)
        out += BINS * anchors
        _side_gradient(top, out, of_channel, to, known, y - gy1, high, -box * d_y1, side, BINS)
        out += BINS * anchors
        _side_gradient(right, out, of_channel, to, known, gx2 - x, wide, box * d_x2, side, BINS)
        out += BINS * anchors
        _side_gradient(bottom, out, of_channel, to, known, gy2 - y, high, box * d_y2, side, BINS)
    else:
        sides = _side_loss(left, of_channel, known, x - gx1, wide, BINS)
        sides += _side_loss(top, of_channel, known, y - gy1, high, BINS)
        sides += _side_loss(right, of_channel, known, gx2 - x, wide, BINS)
        sides += _side_loss(bottom, of_channel, known, gy2 - y, high, BINS)
        tl.store(losses + row, (1 - overlap) * weight, mask=exists)
        second = losses + tl.num_programs(0).to(tl.int64) * anchors + row
        tl.store(second, sides * weight / 4, mask=exists)


def decode(raw: Tensor, centres: Tensor, strides: Tensor) -> Tensor:
    """Return boxes (B, A, 4), xyxy in pixels, float32, without gradients.

    Args:
        raw: predictions (B, 4·bins, A) of any strides, float16, bfloat16 or float32.
        centres: anchor centres (A, 2) in strides, float32.
        strides: stride of each anchor (A, 1), float32.
    """
    batch, channels, anchors = raw.shape
    boxes = torch.empty(batch, anchors, 4, device=raw.device)
    decode_kernel[_grid(raw)](
        raw.detach(), centres, strides, boxes, anchors, *raw.stride(), BINS=channels // 4, BLOCK=BLOCK
    )
    return boxes


class BoxLosses(torch.autograd.Function):
    """The sums over anchors of weighted CIoU and DFL or L1 losses (2,), float32; gradients to `raw` alone.

    Args:
        raw, centres, strides: as those of `decode`.
        targets: assigned boxes (B, A, 4), xyxy in pixels, float32.
        weights: what an anchor's losses are multiplied by (B, A), float32.
        foreground: which anchors have losses (B, A), bool.
        image_size: height and width in pixels (2,), float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        raw: Tensor,
        centres: Tensor,
        strides: Tensor,
        targets: Tensor,
        weights: Tensor,
        foreground: Tensor,
        image_size: Tensor,
    ) -> Tensor:
        """Sum up."""
        arguments = (
            *(raw, centres, strides, targets.contiguous(), weights.contiguous()),
            *(foreground.contiguous().view(torch.uint8), image_size),
        )
        ctx.save_for_backward(*arguments)
        losses = torch.empty(2, *foreground.shape, device=raw.device)
        _launch(arguments, losses, losses, losses, backward=False)
        return losses.sum((1, 2))

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> tuple[Tensor | None, ...]:
        """Return the gradient of the predictions."""
        arguments = ctx.saved_tensors
        raw = arguments[0]
        gradient = torch.zeros(raw.shape, dtype=raw.dtype, device=raw.device)
        _launch(arguments, gradient, slopes[0].float().contiguous(), gradient, backward=True)
        return gradient, *[None] * 6


def _grid(raw: Tensor) -> tuple[int, int]:
    return raw.shape[0], triton.cdiv(raw.shape[2], BLOCK)


def _launch(arguments: tuple[Tensor, ...], losses: Tensor, slopes: Tensor, gradient: Tensor, backward: bool) -> None:
    raw = arguments[0]
    sizes = (raw.shape[2], *raw.stride())
    losses_kernel[_grid(raw)](
        *arguments, losses, slopes, gradient, *sizes, BINS=raw.shape[1] // 4, BLOCK=BLOCK, BACKWARD=backward
    )
