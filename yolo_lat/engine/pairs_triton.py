"""Every object against every anchor in one Triton kernel: what `StaticAssigner` computes in a hundred operations.

A program compares one object with a run of anchors. Imported only where Triton is installed.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256  # anchors of a program


@triton.jit
def atan(x):
    """Return the arc tangent to float32's rounding: Cephes' `atanf`, which brings x to within tan(pi / 8) of zero."""
    size = tl.abs(x)
    far = size > 2.414213562373095
    middle = (size > 0.4142135623730951) & ~far
    small = tl.where(far, -1.0 / tl.where(far, size, 1.0), tl.where(middle, (size - 1.0) / (size + 1.0), size))
    start = tl.where(far, 1.5707963267948966, tl.where(middle, 0.7853981633974483, 0.0))
    z = small * small
    tail = ((8.05374449538e-2 * z - 1.38776856032e-1) * z + 1.99777106478e-1) * z - 3.33329491539e-1
    angle = start + tail * z * small + small
    return tl.where(x < 0, -angle, angle)


@triton.jit
def compare_kernel(
    scores,
    boxes,
    centres,
    labels,
    objects,
    valid,
    inside,
    metric,
    overlaps,
    count,
    anchors,
    of_sample,
    of_anchor,
    of_class,
    smallest,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write `inside`, `metric` and `overlaps`, (B, M, A); all but the scores is contiguous, and they have strides."""
    row = tl.program_id(0).to(tl.int64)
    sample = row // count
    anchor = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    known = anchor < anchors
    x1, y1 = tl.load(objects + row * 4), tl.load(objects + row * 4 + 1)
    x2, y2 = tl.load(objects + row * 4 + 2), tl.load(objects + row * 4 + 3)
    is_object = tl.load(valid + row) != 0

    cx = tl.load(centres + anchor * 2, mask=known, other=0.0)
    cy = tl.load(centres + anchor * 2 + 1, mask=known, other=0.0)
    half_width = tl.maximum(x2 - x1, smallest) / 2
    half_height = tl.maximum(y2 - y1, smallest) / 2
    middle_x = (x1 + x2) / 2
    middle_y = (y1 + y2) / 2
    candidate = (cx - (middle_x - half_width) > 1e-9) & (cy - (middle_y - half_height) > 1e-9)
    candidate = candidate & (middle_x + half_width - cx > 1e-9) & (middle_y + half_height - cy > 1e-9)
    candidate = candidate & is_object & known

    first = boxes + (sample * anchors + anchor) * 4
    u1, v1 = tl.load(first, mask=known, other=0.0), tl.load(first + 1, mask=known, other=0.0)
    u2, v2 = tl.load(first + 2, mask=known, other=1.0), tl.load(first + 3, mask=known, other=1.0)
    width, height = x2 - x1, y2 - y1 + 1e-7
    other_width, other_height = u2 - u1, v2 - v1 + 1e-7
    shared_width = tl.maximum(tl.minimum(x2, u2) - tl.maximum(x1, u1), 0.0)
    shared_height = tl.maximum(tl.minimum(y2, v2) - tl.maximum(y1, v1), 0.0)
    shared = shared_width * shared_height
    iou = shared / (width * height + other_width * other_height - shared + 1e-7)
    hull_width = tl.maximum(x2, u2) - tl.minimum(x1, u1)
    hull_height = tl.maximum(y2, v2) - tl.minimum(y1, v1)
    apart_x = u1 + u2 - x1 - x2
    apart_y = v1 + v2 - y1 - y2
    diagonal = hull_width * hull_width + hull_height * hull_height + 1e-7
    distance = (apart_x * apart_x + apart_y * apart_y) / 4 / diagonal
    angle = atan(other_width / other_height) - atan(width / height)
    shape = angle * angle * 0.4052847345693511  # 4 / pi²
    overlap = tl.maximum(iou - (distance + shape * (shape / (1 - iou + shape + 1e-7))), 0.0)

    label = tl.load(labels + row)
    place = scores + sample * of_sample + anchor.to(tl.int64) * of_anchor + label * of_class
    score = tl.load(place, mask=known, other=0.0).to(tl.float32)
    aligned = tl.exp2(ALPHA * tl.log2(tl.maximum(score, 1e-37))) * tl.exp2(BETA * tl.log2(tl.maximum(overlap, 1e-37)))
    out = row * anchors + anchor
    tl.store(inside + out, candidate.to(tl.uint8), mask=known)
    tl.store(metric + out, tl.where(candidate, aligned, 0.0), mask=known)
    tl.store(overlaps + out, tl.where(candidate, overlap, tl.where(is_object, 0.0, -1.0)), mask=known)


def compare(
    scores: Tensor,
    boxes: Tensor,
    centres: Tensor,
    labels: Tensor,
    objects: Tensor,
    valid: Tensor,
    smallest: float,
    alpha: float,
    beta: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compare all pairs.

    Args:
        scores: class probabilities (B, A, nc), of any strides.
        boxes: predicted boxes (B, A, 4), xyxy in pixels, float32.
        centres: anchor centres (A, 2) in pixels.
        labels: class numbers (B, M), int64.
        objects: objects' boxes (B, M, 4), xyxy in pixels, float32.
        valid: which rows are objects (B, M, 1), bool.
        smallest: side in pixels to which objects are grown when centres are looked for in them.
        alpha: exponent of the score in the metric.
        beta: exponent of the overlap.

    Returns:
        Whether centres lie in objects, bool, alignment metrics and overlaps, float32, each (B, M, A).
    """
    batch, count = labels.shape
    anchors = boxes.shape[1]
    inside = torch.empty(batch, count, anchors, dtype=torch.bool, device=boxes.device)
    metric, overlaps = (torch.empty(batch, count, anchors, device=boxes.device) for _ in range(2))
    # Objects first: of the others there may be no more than 65,535.
    compare_kernel[(batch * count, triton.cdiv(anchors, BLOCK))](
        scores,
        boxes.contiguous(),
        centres.float().contiguous(),
        labels.contiguous(),
        objects.contiguous(),
        valid.contiguous().view(torch.uint8),
        inside.view(torch.uint8),
        metric,
        overlaps,
        count,
        anchors,
        *scores.stride(),
        smallest,
        ALPHA=alpha,
        BETA=beta,
        BLOCK=BLOCK,
    )
    return inside, metric, overlaps
