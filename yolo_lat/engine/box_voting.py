"""Box voting: the boxes that suppression drops make the one that it keeps more precise.

A box that non-maximum suppression (NMS) keeps becomes the mean, weighted by score, of all boxes of its class that
overlap it by more than a threshold; scores stay. From "Object detection via a multi-region and semantic
segmentation-aware CNN model" (Gidaris and Komodakis, 2015); Detectron calls it BBOX_VOTE, with 0.8.
`yolo_lat.deploy.postprocess` does the same in numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from ultralytics.utils.metrics import box_iou
from ultralytics.utils.ops import xywh2xyxy

from yolo_lat.deploy.postprocess import is_threshold
from yolo_lat.errors import UserError


def check_box_vote(box_vote: Any, model: str, nms_free: bool) -> None:
    """Raise UserError unless `box_vote` is None, or a threshold and the model returns what it needs.

    Args:
        box_vote: the argument.
        model: for the message.
        nms_free: whether the model's output is final: nothing is suppressed, so nothing can vote.
    """
    if box_vote is None:
        return
    if not is_threshold(box_vote):
        raise UserError(f"box_vote={box_vote}: must be a number from 0 to 1, an overlap; 0.8 is usual")
    if nms_free:
        raise UserError(
            f"box_vote={box_vote}: {model} suppresses nothing outside of the model, so no box is left to vote; drop it"
        )


def vote(
    output: Tensor | Sequence[Any],
    kept: Sequence[Tensor],
    threshold: float,
    conf: float,
    multi_label: bool = False,
    agnostic: bool = False,
) -> list[Tensor]:
    """Return what suppression kept, with boxes that have been voted on.

    Args:
        output: (B, 4 + classes, A) float, what suppression was given: centre x, centre y, width, height in pixels, then
            scores in 0..1; or what begins with it, as Ultralytics' models return.
        kept: for each image (n, 6 or more) x1, y1, x2, y2, score, class, what suppression returned.
        threshold: intersection over union above which a box votes.
        conf: score above which a box votes.
        multi_label: a box votes in each class for which it has that score, not in its best one alone.
        agnostic: boxes vote whatever their class, with their best score.
    """
    output = output if isinstance(output, Tensor) else output[0]
    return [
        _vote(image.float(), found, threshold, conf, multi_label, agnostic)
        for image, found in zip(output, kept, strict=True)
    ]


def _vote(image: Tensor, found: Tensor, threshold: float, conf: float, multi_label: bool, agnostic: bool) -> Tensor:
    image = image[:, image[4:].amax(0) > conf]
    boxes, scores = xywh2xyxy(image[:4].T), image[4:]
    best = scores.amax(0)
    if agnostic:
        weights = best.expand(len(found), -1)
    else:
        votes = (scores > conf) & (multi_label | (scores == best))
        weights = (scores * votes)[found[:, 5].long()]
    weights = weights * (box_iou(found[:, :4], boxes) > threshold)
    total = weights.sum(1, keepdim=True)
    # An empty box overlaps nothing, not even itself.
    voted = torch.where(total > 0, weights @ boxes / total.clamp_min(1e-12), found[:, :4])
    return torch.cat([voted, found[:, 4:]], dim=1)
