"""Thresholding and NMS against `ultralytics.utils.nms.non_max_suppression` and against answers worked out by hand."""

import numpy as np
import pytest
import torch
import torchvision  # noqa: F401  Ultralytics takes torchvision's NMS only where it is imported, as its predictor does
from hypothesis import given, settings
from hypothesis import strategies as st
from ultralytics.utils.nms import non_max_suppression

from yolo_lat.deploy import postprocess
from yolo_lat.deploy.postprocess import from_best_class_output, from_nms_free_output, from_raw_output

thresholds = st.sampled_from([0.0, 0.001, 0.1, 0.25, 0.45, 0.5, 0.6, 0.7, 0.9, 1.0])


def random_output(seed: int, batch: int, num_classes: int, anchors: int, steps: int | None) -> np.ndarray:
    """Raw head output; `steps` rounds coordinates and scores, so that ties and overlaps on the threshold occur."""
    rng = np.random.default_rng(seed)
    boxes = np.concatenate([rng.uniform(0, 200, (batch, 2, anchors)), rng.uniform(0, 150, (batch, 2, anchors))], 1)
    scores = rng.uniform(0, 1, (batch, num_classes, anchors)) ** 3
    if steps:
        boxes, scores = (boxes * steps / 200).round() * 200 / steps, (scores * steps).round() / steps
    return np.concatenate([boxes, scores], 1).astype(np.float32)


def assert_equal_with_ultralytics(output, found, **settings):
    expected = non_max_suppression(
        torch.from_numpy(output.copy()), settings.pop("conf"), settings.pop("iou"), **settings
    )
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours.xyxy, theirs[:, :4].numpy(), strict=True)
        np.testing.assert_array_equal(ours.scores, theirs[:, 4].numpy(), strict=True)
        np.testing.assert_array_equal(ours.class_ids, theirs[:, 5].long().numpy(), strict=True)


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(1, 3),
    num_classes=st.sampled_from([1, 2, 3, 80, 600]),
    anchors=st.integers(7, 300),  # Ultralytics takes six for an NMS-free output
    steps=st.sampled_from([None, 5, 10, 20]),
    conf=thresholds,
    iou=thresholds,
    max_det=st.sampled_from([1, 5, 300]),
)
def test_raw_output_equals_ultralytics(seed, batch, num_classes, anchors, steps, conf, iou, max_det):
    output = random_output(seed, batch, num_classes, anchors, steps)
    found = from_raw_output(output, conf, iou, max_det)
    assert_equal_with_ultralytics(output, found, conf=conf, iou=iou, max_det=max_det)


def test_full_size_output_equals_ultralytics():
    output = random_output(0, 1, 80, 8400, None)
    found = from_raw_output(output, 0.001, 0.7, 300)
    assert len(found[0].scores) == 300
    assert_equal_with_ultralytics(output, found, conf=0.001, iou=0.7, max_det=300)


def raw(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, np.float32).T[None]


def test_overlaps_are_suppressed_within_a_class_only():
    # Width 10 shifted by 2: intersection 80, union 120, so their overlap is 2 / 3.
    output = raw((10, 10, 10, 10, 0.9, 0.1), (12, 10, 10, 10, 0.8, 0.1), (12, 10, 10, 10, 0.1, 0.7))
    (found,) = from_raw_output(output, conf=0.25, iou=0.6, max_det=300)
    np.testing.assert_array_equal(found.xyxy, [[5, 5, 15, 15], [7, 5, 17, 15]])
    np.testing.assert_array_equal(found.class_ids, [0, 1])
    assert len(from_raw_output(output, conf=0.25, iou=0.7, max_det=300)[0].scores) == 3
    assert len(from_raw_output(output, conf=0.25, iou=0.7, max_det=2)[0].scores) == 2
    assert len(from_raw_output(output, conf=0.75, iou=0.7, max_det=300)[0].scores) == 2


def test_thresholds_are_exclusive_and_ties_keep_their_order():
    output = raw((10, 10, 4, 4, 0.5), (30, 10, 4, 4, 0.75), (50, 10, 4, 4, 0.75), (70, 10, 4, 4, 0.5))
    (found,) = from_raw_output(output, conf=0.5, iou=0.7, max_det=300)
    np.testing.assert_array_equal(found.xyxy[:, 0], [28, 48])


@pytest.mark.parametrize("conf", [0.25, 1.0], ids=["some", "none"])
def test_empty_boxes_suppress_nothing_and_results_keep_their_shape(conf):
    (found,) = from_raw_output(raw((10, 10, 0, 0, 0.9), (10, 10, 0, 0, 0.8)), conf, iou=0.5, max_det=300)
    n = 2 if conf < 1 else 0
    assert (found.xyxy.shape, found.scores.shape, found.class_ids.shape) == ((n, 4), (n,), (n,))
    assert (found.xyxy.dtype, found.scores.dtype, found.class_ids.dtype) == (np.float32, np.float32, np.int64)


def test_only_the_best_candidates_enter_nms(monkeypatch):
    monkeypatch.setattr(postprocess, "MAX_CANDIDATES", 2)
    output = raw((10, 10, 4, 4, 0.5), (30, 10, 4, 4, 0.75), (50, 10, 4, 4, 0.6))
    np.testing.assert_array_equal(from_raw_output(output, 0.25, 0.7, 300)[0].xyxy[:, 0], [28, 48])


def test_half_precision_output_is_computed_in_single_precision():
    output = random_output(1, 2, 3, 50, None).astype(np.float16)
    assert_equal_with_ultralytics(
        output.astype(np.float32), from_raw_output(output, 0.25, 0.5, 300), conf=0.25, iou=0.5, max_det=300
    )


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 999), rows=st.integers(1, 50), conf=thresholds, max_det=st.sampled_from([1, 5, 300]))
def test_nms_free_output_equals_ultralytics(seed, rows, conf, max_det):
    rng = np.random.default_rng(seed)
    scores = -np.sort(-rng.uniform(0, 1, (2, rows, 1)).round(1), axis=1)
    output = np.concatenate([rng.uniform(0, 640, (2, rows, 4)), scores, rng.integers(0, 80, (2, rows, 1))], 2)
    output = output.astype(np.float32)
    found = from_nms_free_output(output, conf, max_det)
    assert_equal_with_ultralytics(output, found, conf=conf, iou=0.7, max_det=max_det)


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_classes=st.sampled_from([1, 2, 80]),
    anchors=st.integers(7, 700),
    steps=st.sampled_from([None, 10]),
    conf=thresholds,
    iou=thresholds,
    dtype=st.sampled_from([np.float16, np.float32]),
)
def test_best_class_output_equals_raw_output(seed, num_classes, anchors, steps, conf, iou, dtype):
    output = random_output(seed, 2, num_classes, anchors, steps).astype(dtype)
    scores = output[:, 4:]
    best = np.stack([scores.max(1), scores.argmax(1).astype(dtype)], 1)
    reduced = np.concatenate([output[:, :4], best], 1)
    for found, expected in zip(
        from_best_class_output(reduced, conf, iou, 300), from_raw_output(output, conf, iou, 300), strict=True
    ):
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs, strict=True)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_scores_that_are_no_numbers_are_dropped(dtype):
    output = raw(*[(20 * i, 10, 4, 4, 0.9, 0.1) for i in range(5)]).astype(dtype)
    output[0, 5, 1], output[0, 5, 2], output[0, 4, 3] = np.nan, -np.nan, -1
    assert np.signbit(output[0, 5, 2])
    (found,) = from_raw_output(output, conf=0.05, iou=0.7, max_det=300)
    np.testing.assert_array_equal(found.xyxy[:, 0], [-2, 78, 58])
    assert found.class_ids.tolist() == [0, 0, 1]
