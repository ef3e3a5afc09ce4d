"""Numbers of objects, and the filters behind them against a plain one for a single box."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolo_lat.demo import kalman
from yolo_lat.demo.tracking import ByteTracker, _iou


def box(x: float, y: float, size: float = 20.0) -> list[float]:
    return [x, y, x + size, y + size]


def follow(tracker: ByteTracker, frames: list[list[list[float]]], scores=None, start: int = 0) -> list[list[int]]:
    """Ids of the boxes of each frame, 25 frames a second."""
    found = []
    for i, boxes in enumerate(frames, start):
        values = np.float32([0.9] * len(boxes) if scores is None else scores[i - start])
        found.append(tracker.update(np.float32(boxes).reshape(-1, 4), values, i / 25).tolist())
    return found


def test_two_objects_that_pass_each_other_keep_their_numbers():
    frames = [[box(4 * i, 0), box(200 - 4 * i, 15)] for i in range(50)]
    assert follow(ByteTracker(), frames) == [[1, 2]] * 50


def test_the_order_of_the_boxes_does_not_matter():
    frames = [[box(4 * i, 0), box(200 - 4 * i, 60)][:: (-1) ** i] for i in range(30)]
    assert follow(ByteTracker(), frames) == [[1, 2][:: (-1) ** i] for i in range(30)]


@pytest.mark.parametrize(("gap", "same"), [(1, True), (10, True), (24, True), (40, False)])
def test_an_object_out_of_sight_is_remembered_for_a_second(gap, same):
    tracker = ByteTracker()
    assert follow(tracker, [[box(2 * i, 0)] for i in range(20)])[-1] == [1]
    follow(tracker, [[]] * gap, start=20)
    again = follow(tracker, [[box(2 * i, 0)] for i in range(20 + gap, 24 + gap)], start=20 + gap)
    assert again[-1] == ([1] if same else [2])


def test_an_object_is_believed_when_it_is_seen_twice():
    frames = [[], [box(5, 5)], [], [box(5, 5)], [box(6, 5)]]
    assert follow(ByteTracker(), frames) == [[], [-1], [], [-1], [2]]


def test_a_low_score_keeps_a_number_and_starts_none():
    scores = [[0.9, 0.15]] * 3 + [[0.15, 0.15]] * 3
    assert follow(ByteTracker(high_score=0.5), [[box(5, 5), box(80, 80)]] * 6, scores) == [[1, -1]] * 6
    assert follow(ByteTracker(high_score=0.5), [[box(5, 5)]] * 2, [[0.9], [0.05]]) == [[1], [-1]]


def test_no_boxes_at_all():
    assert follow(ByteTracker(), [[], [], []]) == [[], [], []]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 30))
def test_a_tracker_that_is_restored_from_json_goes_on_the_same(seed, cut):
    rng = np.random.default_rng(seed)
    frames = []
    for i in range(40):
        boxes = [box(3 * i + 40 * k + rng.normal(), 30 * k) for k in range(4) if rng.random() < 0.8]
        frames.append([boxes[k] for k in rng.permutation(len(boxes))])
    whole = ByteTracker()
    expected = follow(whole, frames)
    first, second = ByteTracker(), ByteTracker()
    start = follow(first, frames[:cut])
    second.restore(json.loads(json.dumps(first.state())))
    assert start + follow(second, frames[cut:], start=cut) == expected
    assert second.state() == whole.state()
    for ids in expected:
        known = [number for number in ids if number >= 0]
        assert len(set(known)) == len(known)


def plain_filter(measurements: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The textbook equations for one box, with inverses in full."""
    motion, seen = np.eye(8), np.eye(4, 8)
    motion[:4, 4:] = np.eye(4)
    states: list[tuple[np.ndarray, np.ndarray]] = []
    for z in measurements:
        if not states:
            h = z[3]
            mean = np.concatenate([z, np.zeros(4)])
            deviation = [h / 10, h / 10, 1e-2, h / 10, h / 16, h / 16, 1e-5, h / 16]
            states.append((mean, np.diag(np.square(deviation))))
            continue
        mean, covariance = states[-1]
        h = mean[3]
        deviation = [h / 20, h / 20, 1e-2, h / 20, h / 160, h / 160, 1e-5, h / 160]
        mean, covariance = motion @ mean, motion @ covariance @ motion.T + np.diag(np.square(deviation))
        noise = np.diag(np.square([mean[3] / 20, mean[3] / 20, 1e-1, mean[3] / 20]))
        gain = covariance @ seen.T @ np.linalg.inv(seen @ covariance @ seen.T + noise)
        states.append((mean + gain @ (z - seen @ mean), (np.eye(8) - gain @ seen) @ covariance))
    return states


def test_the_filters_of_many_boxes_are_those_of_each():
    rng = np.random.default_rng(0)
    paths = rng.uniform(10, 50, (6, 1, 4)) + np.cumsum(rng.normal(0, 1, (6, 20, 4)), axis=1)
    mean, covariance = kalman.start(paths[:, 0])
    for i in range(1, 20):
        mean, covariance = kalman.update(*kalman.predict(mean, covariance), paths[:, i])
    for k in range(6):
        expected_mean, expected_covariance = plain_filter(list(paths[k]))[-1]
        np.testing.assert_allclose(mean[k], expected_mean, rtol=1e-9)
        np.testing.assert_allclose(covariance[k], expected_covariance, rtol=1e-6, atol=1e-9)


def test_boxes_survive_their_way_into_the_filter():
    boxes = np.float32([[10, 20, 30, 80], [0, 0, 5, 1]])
    mean, _ = kalman.start(kalman.to_measurement(boxes))
    np.testing.assert_allclose(kalman.to_boxes(mean), boxes, atol=1e-5)


def test_overlaps_are_those_of_one_pair_after_another():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 100, (2, 20, 2, 2))
    a, b = (np.sort(c, axis=1).reshape(20, 4) for c in corners)
    for i, (x1, y1, x2, y2) in enumerate(a):
        for k, (u1, v1, u2, v2) in enumerate(b):
            shared = max(min(x2, u2) - max(x1, u1), 0) * max(min(y2, v2) - max(y1, v1), 0)
            union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - shared
            assert _iou(a, b)[i, k] == pytest.approx(shared / union)
