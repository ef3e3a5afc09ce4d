"""What is derived from an evaluation: it agrees with the twelve numbers, and with scenes whose answer is plain."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import drawn, found, guesses, scene

from yolo_lat.engine.analysis import calibration
from yolo_lat.engine.evaluate import evaluate_detections

BOX, FAR = (100, 100, 100, 100), (600, 600, 100, 100)
CASES = [{}, {"crowds": True}, {"classes": 2}]


def analysed(split, rows):
    return evaluate_detections(split, rows).analysis


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES, ids=["plain", "crowds", "absent"])
def test_the_mean_over_classes_is_the_number_of_all(seed, case):
    split = scene(seed, images=12, **case)
    result = evaluate_detections(split, guesses(split, seed + 9))
    for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100"):
        assert np.nanmean(result.analysis.classes[name]) == pytest.approx(result.numbers[name], abs=1e-12)
        assert result.analysis.classes[name].shape == (3,)
    np.testing.assert_allclose(result.analysis.classes["AP"], result.class_ap.mean(axis=1), atol=1e-12)
    assert list(result.analysis.iou_ap) == [f"{iou / 100:.2f}" for iou in range(50, 100, 5)]
    by_iou = np.array(list(result.analysis.iou_ap.values()))
    np.testing.assert_allclose(by_iou, np.nanmean(result.class_ap, axis=0), atol=1e-12)
    assert by_iou.mean() == pytest.approx(result.numbers["AP"], abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES, ids=["plain", "crowds", "absent"])
def test_the_area_under_a_curve_is_its_ap(seed, case):
    split = scene(seed, images=12, **case)
    analysis = analysed(split, guesses(split, seed + 9))
    for name, curves in analysis.precision.items():
        assert curves.shape == (3, 101)
        np.testing.assert_allclose(curves.mean(axis=1), analysis.classes[name], atol=1e-12)
        assert (np.diff(curves[~np.isnan(curves).any(axis=1)], axis=1) <= 0).all()
    assert analysis.recall.tolist() == pytest.approx([i / 100 for i in range(101)])


@given(st.lists(st.tuples(st.integers(0, 2), *[st.floats(40, 150)] * 2), min_size=1, max_size=9), st.data())
@settings(max_examples=30, deadline=None)
def test_boxes_that_all_lie_beside_their_objects_alike_say_how_far(objects, data):
    left, top, right, bottom = data.draw(st.tuples(*[st.floats(-3, 3)] * 4))
    boxes = [(label, (200 * (n % 3) + 10, 200 * (n // 3) + 10, w, h)) for n, (label, w, h) in enumerate(objects)]
    split = drawn(boxes)
    beside = [(label, (x + left, y + top, w + right - left, h + bottom - top), 0.5) for label, (x, y, w, h) in boxes]
    offsets = analysed(split, found(beside)).offsets
    assert offsets.boxes == len(boxes)
    np.testing.assert_allclose(offsets.mean, (left, top, right, bottom), atol=1e-9)
    np.testing.assert_allclose(offsets.spread, 0, atol=1e-9)


def test_offsets_are_those_of_boxes_that_found_something():
    split = drawn([(0, BOX), (0, FAR)])
    near, missed = (0, (102, 99, 100, 104), 0.9), (0, (300, 300, 50, 50), 0.9)
    offsets = analysed(split, found([near, missed])).offsets
    assert (offsets.boxes, offsets.mean.tolist()) == (1, [2, -1, 2, 3])
    nothing = analysed(split, found([missed])).offsets
    assert nothing.boxes == 0
    assert np.isnan(nothing.mean).all()


@given(st.integers(0, 10_000), st.sampled_from(CASES))
@settings(max_examples=30, deadline=None)
def test_confusions_add_up_and_counts_are_those_of_the_ground_truth(seed, case):
    split = scene(seed, **case)
    rows = guesses(split, seed + 1)
    analysis = analysed(split, rows)
    truth = split.ground_truth()["annotations"]
    for number, category in enumerate(split.category_ids):
        boxes = [row for row in truth if row["category_id"] == category and not row["iscrowd"]]
        assert analysis.confusion[number].sum() == analysis.classes["boxes"][number] == len(boxes)
        assert analysis.classes["images"][number] == len({row["image_id"] for row in boxes})
        ours = [row for row in rows if row["category_id"] == category]
        assert analysis.classes["detections"][number] == len(ours)
        confident = sum(row["score"] >= 0.25 for row in ours)
        assert analysis.confusion[:, number].sum() <= confident
        if "crowds" not in case:
            assert analysis.confusion[:, number].sum() == confident
    assert analysis.confusion[-1, -1] == 0
    sizes = [np.sqrt(row["area"]) for row in truth if not row["iscrowd"]]
    assert list(analysis.sizes.values()) == np.histogram(sizes, [0, 32, 96, 1e5])[0].tolist()


def confusion(truth, rows):
    return analysed(drawn(*truth), found(*rows)).confusion.tolist()


def test_confusions_of_scenes_with_a_plain_answer():
    nothing = [[0, 0, 0, 0]] * 3
    right = [[1, 0, 0, 0], *nothing]
    assert confusion([[(0, BOX)]], [[(0, BOX, 0.9)]]) == right
    assert confusion([[(0, BOX)]], [[(1, BOX, 0.9)]]) == [[0, 1, 0, 0], *nothing]
    assert confusion([[(0, BOX)]], [[]]) == [[0, 0, 0, 1], *nothing]
    assert confusion([[]], [[(2, BOX, 0.9)]]) == [*nothing, [0, 0, 1, 0]]
    assert confusion([[(0, BOX)]], [[(0, FAR, 0.9)]]) == [[0, 0, 0, 1], *nothing[1:], [1, 0, 0, 0]]
    # below the confidence, on it, and twice the same box
    assert confusion([[(0, BOX)]], [[(0, BOX, 0.249)]]) == [[0, 0, 0, 1], *nothing]
    assert confusion([[(0, BOX)]], [[(0, BOX, 0.25)]]) == right
    assert confusion([[(0, BOX)]], [[(0, BOX, 0.9), (1, BOX, 0.8)]]) == [[1, 0, 0, 0], *nothing[1:], [0, 1, 0, 0]]
    assert confusion([[(0, BOX)]], [[(0, BOX, 0.8), (1, BOX, 0.9)]]) == [[0, 1, 0, 0], *nothing[1:], [1, 0, 0, 0]]
    # the same place in another image is another place
    assert confusion([[(0, BOX)], []], [[], [(0, BOX, 0.9)]]) == [[0, 0, 0, 1], *nothing[1:], [1, 0, 0, 0]]


def test_confusion_prefers_the_larger_overlap_and_then_its_own_class():
    shifted = (120, 100, 100, 100)  # IoU 2/3 with BOX
    two = [(0, BOX), (1, shifted)]
    assert confusion([two], [[(0, shifted, 0.9), (0, BOX, 0.8)]])[:2] == [[1, 0, 0, 0], [1, 0, 0, 0]]
    for first, second in ((0, 1), (1, 0)):
        alike = [(first, BOX), (second, BOX)]
        assert confusion([alike], [[(1, BOX, 0.9), (0, BOX, 0.8)]])[:2] == [[1, 0, 0, 0], [0, 1, 0, 0]]


def test_detections_on_a_crowd_of_their_class_are_left_out_of_the_confusion():
    crowd = (0, (0, 0, 500, 500), True)
    assert not np.any(confusion([[crowd]], [[(0, BOX, 0.9), (0, BOX, 0.8)]]))
    assert confusion([[crowd]], [[(1, BOX, 0.9), (0, FAR, 0.8)]])[-1] == [1, 1, 0, 0]
    assert confusion([[crowd, (1, BOX)]], [[(0, BOX, 0.9)]])[1] == [1, 0, 0, 0]


def test_detections_past_the_hundredth_do_not_take_part():
    rows = [(0, (5 * i, 700, 4, 4), 0.9 - i / 1000) for i in range(120)]
    analysis = analysed(drawn([(0, BOX)]), found(rows))
    assert analysis.confusion[-1, 0] == analysis.calibration.counts.sum() == 100
    assert analysis.classes["detections"][0] == 120


@pytest.mark.parametrize("bins", [10, 15])
def test_calibrated_scores_have_no_calibration_error(bins):
    parts = np.arange(1, bins)  # in bin i of n, (2 i + 1) of every 2 n are right, which is the bin's centre
    score = np.repeat((2 * parts + 1) / (2 * bins), 2 * bins)
    right = np.concatenate([np.arange(2 * bins) < 2 * i + 1 for i in parts])
    result = calibration(score, right, bins)
    assert result.d_ece == pytest.approx(0, abs=1e-12)
    assert result.d_ece_confident == pytest.approx(0, abs=1e-12)
    assert result.counts.tolist() == [0] + [2 * bins] * (bins - 1)
    np.testing.assert_allclose(result.precision[1:], result.score[1:])
    assert np.isnan(result.precision[0])


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=60), st.integers(1, 20))
@settings(deadline=None)
def test_calibration_error_is_that_of_its_definition(rows, bins):
    score, right = np.array([r[0] for r in rows]), np.array([r[1] for r in rows], dtype=bool)
    result = calibration(score, right, bins)
    assert result.counts.sum() == len(rows)
    for part, error in ((score >= 0, result.d_ece), (score >= 0.25, result.d_ece_confident)):
        expected = 0.0
        for low, high in zip(result.edges[:-1], result.edges[1:], strict=True):
            inside = part & (score <= high) & ((score > low) | (low == 0))
            if inside.any():
                expected += inside.sum() / part.sum() * abs(right[inside].mean() - score[inside].mean())
        assert error == pytest.approx(expected if part.any() else np.nan, abs=1e-9, nan_ok=True)
        assert np.isnan(error) or 0 <= error <= 1


def test_calibration_counts_what_coco_judges():
    crowd = (0, (0, 0, 500, 500), True)
    rows = [(0, BOX, 0.9), (0, BOX, 0.8), (0, FAR, 0.7), (1, FAR, 0.6)]
    result = analysed(drawn([(1, FAR), crowd]), found(rows)).calibration
    assert result.counts.sum() == 2  # the two on the crowd are neither right nor wrong
    assert np.nansum(result.precision * result.counts) == 1
    assert result.d_ece == pytest.approx((0.7 + 0.4) / 2)


def test_nothing_at_all_is_analysed():
    split = dataclasses.replace(drawn([], []), images=[])
    analysis = analysed(split, [])
    assert np.isnan(analysis.classes["AP"]).all()
    assert analysis.confusion.sum() == 0
    assert np.isnan(analysis.errors.ap50)
    assert np.isnan(analysis.calibration.d_ece)
    assert set(analysis.sizes.values()) == {0}
