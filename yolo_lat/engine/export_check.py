"""The proof of an export: the same photographs through PyTorch and through the file on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from yolo_lat.deploy.onnx_int8 import read_image
from yolo_lat.deploy.postprocess import Boxes, from_raw_output
from yolo_lat.deploy.preprocess import to_input
from yolo_lat.deploy.session import open_session
from yolo_lat.errors import UserError

if TYPE_CHECKING:
    from yolo_lat.engine.export import Trace

TOP = 300  # best-scored boxes of an image
_BOUNDS = {"fp32": (0.5, 0.01), "fp16": (2.0, 0.02)}  # pixels and score; fp16 over the best boxes
_BROKEN = (0.05, 0.1)  # INT8: median over the best boxes, as a share of the longer side, and of the score
_ODD_ROWS = 0.02  # of a suppression: rounding may exchange the classes of a row


@dataclass
class Differences:
    """How far the boxes and scores of a file lie from PyTorch's.

    Attributes:
        boxes, scores: (n,) largest difference of any corner in pixels and of any class's score, for every anchor of
            every image; of the boxes that it returns for a file that needs no NMS.
        top_boxes, top_scores: (m,) those of the 300 best-scored anchors of each image.
    """

    boxes: np.ndarray
    scores: np.ndarray
    top_boxes: np.ndarray
    top_scores: np.ndarray

    def __str__(self) -> str:
        """Return the figures in words."""
        return (
            f"differs from PyTorch by at most {self.boxes.max():.2g} px and {self.scores.max():.2g} in score (median "
            f"{np.median(self.boxes):.2g} px and {np.median(self.scores):.2g}), in the best {TOP} boxes of an image by "
            f"{self.top_boxes.max():.2g} px and {self.top_scores.max():.2g}"
        )

    def refuse(self, precision: str, side: int) -> None:
        """Raise UserError if a file of this precision, for images of `side` pixels, is not the model."""
        if precision == "int8":
            pixels, score = side * _BROKEN[0], _BROKEN[1]
            found = np.median(self.top_boxes), np.median(self.top_scores)
        else:
            pixels, score = _BOUNDS[precision]
            kind = ("top_boxes", "top_scores") if precision == "fp16" else ("boxes", "scores")
            found = tuple(getattr(self, name).max() for name in kind)
        # The negation catches what is not a number.
        if not (np.isfinite([*self.boxes, *self.scores]).all() and found[0] <= pixels and found[1] <= score):
            advice = "report it with the model" if precision == "fp32" else "export it in fp32"
            limits = f"{pixels:g} px and {score:g}"
            raise UserError(f"the {precision} file {self}, beyond {limits}; nothing was written, {advice}")


class Check:
    """Runs a network in PyTorch and its file in ONNX Runtime.

    Args:
        network: the fused float32 module in export form, on the CPU.
        file: its ONNX file, whose input is (B, 3, height, width) and whose output is raw or, with `nms_free`, boxes.
        device: "cpu" or "cuda:N", for the file.
        nms_free: whether the output is (B, n, 6) x1, y1, x2, y2, score, class.
    """

    def __init__(self, network: Any, file: Path, device: str, nms_free: bool) -> None:
        self.network, self.session, self.nms_free = network, open_session(file, device), nms_free

    def run(self, files: Sequence[Path], trials: Sequence[tuple[tuple[int, int], int, int]]) -> Differences:
        """Compare image files at each (size, batch, number of images)."""
        parts = []
        for size, batch, count in trials:
            images = to_input([read_image(file, size) for file in files])
            for start in range(0, count, batch):
                rows = np.arange(start, start + batch) % len(images)  # a fixed batch begins anew after the last
                parts += self._compare(images[rows])
        return Differences(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _compare(self, images: np.ndarray) -> list[tuple[np.ndarray, ...]]:
        expected = self._torch(images)
        found = run(self.session, images)
        compare = _compare_rows if self.nms_free else _compare_anchors
        if not self.nms_free and expected.shape != found.shape:
            raise UserError(f"the file returns {found.shape} where PyTorch returns {expected.shape}; report it")
        return [compare(*pair) for pair in zip(expected, found, strict=True)]

    def _torch(self, images: np.ndarray) -> np.ndarray:
        """Return PyTorch's (B, 4 + classes, anchors); corners for a head without NMS, otherwise centres and sizes."""
        head = self.network.model[-1]
        head.shape = None  # of the images that the anchors were laid out for
        if self.nms_free:
            head.postprocess = lambda rows: rows.permute(0, 2, 1)
        try:
            with torch.no_grad():
                return self.network(torch.from_numpy(images)).numpy()
        finally:
            if self.nms_free:
                del head.postprocess


def run(session: Any, images: np.ndarray) -> np.ndarray:
    """Run a file on images in float32, or in bytes if they are bytes; returns float32."""
    node = session.get_inputs()[0]
    if node.type == "tensor(float16)":
        images = images.astype(np.float16)
    (output,) = session.run(None, {node.name: images})
    return output.astype(np.float32)


def _corners(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:2] - boxes[2:4] / 2, boxes[:2] + boxes[2:4] / 2])


def _compare_anchors(expected: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, ...]:
    """Compare two (4 + classes, anchors) outputs of one image."""
    boxes = np.abs(_corners(expected) - _corners(found)).max(axis=0)
    scores = np.abs(expected[4:] - found[4:]).max(axis=0)
    best = np.argsort(-expected[4:].max(axis=0), kind="stable")[:TOP]
    return boxes, scores, boxes[best], scores[best]


def _compare_rows(expected: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, ...]:
    """Compare (n, 6) rows with the (4 + classes, anchors) that they were chosen from, corners both.

    A row belongs to the anchor whose box and score of that class are nearest; and the n scores must be the n best, so
    that nothing is missing. Comparing row by row would call an exchange of two equal scores a difference.
    """
    if expected.shape[1] < len(found):
        raise UserError(f"the file returns {len(found)} boxes where there are {expected.shape[1]} anchors; report it")
    best = np.sort(expected[4:].ravel())[::-1][: len(found)]
    missing = np.abs(best - found[:, 4])
    boxes, scores = np.empty(len(found)), np.empty(len(found))
    for number, row in enumerate(found):
        box = np.abs(expected[:4] - row[:4, None]).max(axis=0)
        score = np.abs(expected[4 + int(row[5])] - row[4])
        anchor = np.argmin(box + 100 * score)  # a hundredth of a score weighs as much as a pixel
        boxes[number], scores[number] = box[anchor], max(score[anchor], missing[number])
    return boxes, scores, boxes[:TOP], scores[:TOP]


def check_tail(
    file: Path, network: Path, trace: Trace, output: str, takes_bytes: bool, pictures: Sequence[Path]
) -> None:
    """Compare the finished file with numpy's twin of what was added to the checked network.

    Args:
        file: the finished file.
        network: the checked one, which returns everything and takes floats.
        trace: the traced network.
        output: raw, best-class, nms or nms-free.
        takes_bytes: whether the finished file takes bytes.
        pictures: image files.

    Raises:
        UserError: they differ.
    """
    sessions = [open_session(path, trace.device) for path in (network, file)]
    # ONNX Runtime's CPU rounds to float16 at other places in the other graph.
    tolerance = 2e-3 if sessions[0].get_inputs()[0].type == "tensor(float16)" else 1e-5
    for size, batch, count in trace.trials(len(pictures)):
        images = [read_image(path, size) for path in pictures]
        pixels = tolerance * max(size)
        for start in range(0, count, batch):
            rows = [images[i % len(images)] for i in range(start, start + batch)]
            plain = run(sessions[0], to_input(rows))
            found = run(sessions[1], np.stack(rows) if takes_bytes else to_input(rows))
            if output == "nms":
                same = _same_detections(plain, found, trace.args, tolerance, pixels)
            elif output == "best-class":
                same = _same_best_class(plain, found, tolerance, pixels)
            else:
                across = (0, 2, 1) if output == "nms-free" else (0, 1, 2)
                difference = np.abs(plain - found).transpose(across)
                same = bool(difference[:, :4].max() <= pixels and difference[:, 4:].max() <= tolerance)
            if not same:
                raise UserError(
                    f"the {output} output of the file is not that of the network in it; nothing was written, report it"
                )


def _same_best_class(plain: np.ndarray, found: np.ndarray, tolerance: float, pixels: float) -> bool:
    """Return whether (B, 6, anchors) is the best class of (B, 4 + classes, anchors); of equal ones either will do."""
    scores = plain[:, 4:]
    best, named = scores.max(axis=1), np.take_along_axis(scores, found[:, 5:].astype(np.int64), axis=1)[:, 0]
    away = max(np.abs(found[:, 4] - best).max(), np.abs(named - best).max())
    return bool(np.abs(found[:, :4] - plain[:, :4]).max() <= pixels and away <= tolerance)


def _same_detections(plain: np.ndarray, found: np.ndarray, args: Any, tolerance: float, pixels: float) -> bool:
    """Return whether numpy's suppression agrees with the (B, max_det, 6) rows of the one in the graph.

    A row is odd if it is no candidate, if a better row of its class should have suppressed it, or if it is missing
    although no row of its class suppresses it. Overlaps within rounding of the limit may be decided either way.
    """
    if args.agnostic_nms:  # numpy's knows classes only: as if there were one
        plain, found = np.concatenate([plain[:, :4], plain[:, 4:].max(1, keepdims=True)], axis=1), found.copy()
        found[..., 5] = 0
    limits, margin = np.array([*[pixels] * 4, tolerance, 0]), 50 * tolerance
    odd = total = 0
    candidates = from_raw_output(plain, args.conf, 1, plain.shape[2])
    kept = from_raw_output(plain, args.conf, args.iou, args.max_det)
    for possible, expected, padded in zip(map(_rows, candidates), map(_rows, kept), found, strict=True):
        rows = padded[padded[:, 4] > 0]
        twins = (np.abs(expected[:, None] - rows) <= limits).all(axis=-1)
        suppressed = np.any(_overlap(expected, rows) > args.iou - margin, axis=1)
        missing = ~np.any(twins, axis=1) & ~suppressed & (len(rows) < args.max_det)
        known = (np.abs(rows[:, None] - possible) <= limits).all(axis=-1)
        doubled = np.any(np.triu(_overlap(rows, rows), 1) > args.iou + margin, axis=0)
        odd += int(missing.sum() + (~np.any(known, axis=1) | doubled).sum())
        total += len(rows) + len(expected)
    return odd <= _ODD_ROWS * total


def _rows(boxes: Boxes) -> np.ndarray:
    """Return (n, 6) x1, y1, x2, y2, score, class."""
    return np.column_stack([boxes.xyxy, boxes.scores, boxes.class_ids])


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return (n, m) intersection over union of rows of one class, 0 for rows of two."""
    low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:4], b[:, 2:4])
    common = np.clip(high - low, 0, None).prod(axis=-1)
    areas_a, areas_b = ((rows[:, 2:4] - rows[:, :2]).prod(axis=-1) for rows in (a, b))
    return common / np.maximum(areas_a[:, None] + areas_b - common, 1e-9) * (a[:, None, 5] == b[:, 5])
