"""Numbers that stay with objects from frame to frame: ByteTrack.

Zhang et al., "ByteTrack: multi-object tracking by associating every detection box", ECCV 2022. Boxes of high score are
matched to the expected places of known objects first; those left over are then looked for among the boxes of low score,
which alone would start nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from yolo_lat.demo import kalman

LOW_SCORE = 0.1  # boxes below it are no evidence of an object
_TENTATIVE, _TRACKED, _LOST = 0, 1, 2
_FIRST_IOU, _LOW_IOU, _TENTATIVE_IOU = 0.2, 0.5, 0.3  # least overlap, that of the first and last times the score


@dataclass(eq=False)
class _Tracks:
    """What is known of n objects; one row each."""

    mean: np.ndarray  # (n, 8) float64
    covariance: np.ndarray  # (n, 8, 8) float64
    ids: np.ndarray  # (n,) int64
    state: np.ndarray  # (n,) int64: tentative, tracked or lost
    seen_s: np.ndarray  # (n,) float64

    @classmethod
    def none(cls) -> _Tracks:
        return cls(np.zeros((0, 8)), np.zeros((0, 8, 8)), *(np.zeros(0, d) for d in (np.int64, np.int64, np.float64)))

    def take(self, rows: np.ndarray) -> _Tracks:
        return _Tracks(*(values[rows] for values in vars(self).values()))

    def append(self, other: _Tracks) -> _Tracks:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return _Tracks(*(np.concatenate(pair) for pair in pairs))


class ByteTracker:
    """Give each detection the number of the object it shows.

    Args:
        high_score: a box of this score or more may start an object.
        keep_s: seconds of presentation time for which an object out of sight is remembered.

    Example:
        >>> tracker = ByteTracker()
        >>> tracker.update(found.boxes_xyxy, found.scores, time_s=0.0)
        array([1, 2])
    """

    def __init__(self, high_score: float = 0.25, keep_s: float = 1.0) -> None:
        self.high_score, self._keep = high_score, keep_s
        self._tracks, self._next, self._frames = _Tracks.none(), 1, 0

    def update(self, boxes_xyxy: np.ndarray, scores: np.ndarray, time_s: float) -> np.ndarray:
        """Return (n,) int64 numbers from 1 on for the (n, 4) boxes of a frame; -1 for those of no known object.

        An object gets its number shown from its second frame on, in the first frame at once.
        """
        ids = np.full(len(scores), -1, np.int64)
        tracks = self._tracks
        tracks.mean, tracks.covariance = kalman.predict(tracks.mean, tracks.covariance)
        high = np.flatnonzero(scores >= self.high_score)
        low = np.flatnonzero((scores >= LOW_SCORE) & (scores < self.high_score))
        known = np.full(len(tracks.ids), -1)

        def match(rows: np.ndarray, candidates: np.ndarray, least: float, fuse: bool) -> None:
            overlap = _iou(kalman.to_boxes(tracks.mean[rows]), boxes_xyxy[candidates].astype(np.float64))
            for row, column in _pairs(overlap * scores[candidates] if fuse else overlap, least):
                known[rows[row]] = candidates[column]

        def left(candidates: np.ndarray) -> np.ndarray:
            return candidates[~np.isin(candidates, known)]

        match(np.flatnonzero(tracks.state != _TENTATIVE), high, _FIRST_IOU, fuse=True)
        match(np.flatnonzero((tracks.state == _TRACKED) & (known < 0)), low, _LOW_IOU, fuse=False)
        match(np.flatnonzero(tracks.state == _TENTATIVE), left(high), _TENTATIVE_IOU, fuse=True)

        seen = np.flatnonzero(known >= 0)
        measured = kalman.to_measurement(boxes_xyxy[known[seen]])
        tracks.mean[seen], tracks.covariance[seen] = kalman.update(tracks.mean[seen], tracks.covariance[seen], measured)
        tracks.state[seen], tracks.seen_s[seen] = _TRACKED, time_s
        ids[known[seen]] = tracks.ids[seen]
        gone = (known < 0) & ((tracks.state == _TENTATIVE) | (time_s - tracks.seen_s > self._keep))
        tracks.state[(known < 0) & (tracks.state == _TRACKED)] = _LOST
        new = left(high)
        first = self._frames == 0
        if first:
            ids[new] = self._next + np.arange(len(new))
        self._tracks = tracks.take(~gone).append(self._begin(boxes_xyxy[new], time_s, first))
        self._frames += 1
        return ids

    def _begin(self, boxes_xyxy: np.ndarray, time_s: float, first: bool) -> _Tracks:
        count = len(boxes_xyxy)
        mean, covariance = kalman.start(kalman.to_measurement(boxes_xyxy))
        ids = self._next + np.arange(count, dtype=np.int64)
        self._next += count
        state = np.full(count, _TRACKED if first else _TENTATIVE)
        return _Tracks(mean, covariance, ids, state, np.full(count, time_s))

    def state(self) -> dict[str, Any]:
        """Return all that the next frames depend on, as JSON can hold it."""
        tracks = {name: values.tolist() for name, values in vars(self._tracks).items()}
        return {"tracks": tracks, "next": self._next, "frames": self._frames}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        empty = vars(_Tracks.none())
        self._tracks = _Tracks(
            *(np.array(state["tracks"][name], like.dtype).reshape(-1, *like.shape[1:]) for name, like in empty.items())
        )
        self._next, self._frames = state["next"], state["frames"]


def _pairs(similarity: np.ndarray, least: float) -> list[tuple[int, int]]:
    """Return the (row, column) pairs of the assignment with the greatest sum, those of at least `least`."""
    rows, columns = linear_sum_assignment(np.where(similarity >= least, similarity, 0), maximize=True)
    return [(r, c) for r, c in zip(rows.tolist(), columns.tolist(), strict=True) if similarity[r, c] >= least]


def _iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the (n, m) intersection over union of (n, 4) and (m, 4) boxes."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=2)
    areas, other_areas = (np.prod(np.clip(b[:, 2:] - b[:, :2], 0, None), axis=1) for b in (boxes, others))
    return shared / np.maximum(areas[:, None] + other_areas - shared, 1e-9)
