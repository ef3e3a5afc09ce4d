"""The breakdown of errors, on scenes with one error each and by its laws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import drawn, found, guesses, scene

from yolo_lat.engine import analysis as analysis_module
from yolo_lat.engine.evaluate import evaluate_detections
from yolo_lat.engine.tide import ERRORS, average_precision, classify, mended_ap50

BOX, FAR, ELSEWHERE = (100, 100, 100, 100), (600, 600, 100, 100), (300, 800, 100, 100)
HALF = (160, 100, 100, 100)  # IoU 0.25 with BOX
TRUTH = [(0, BOX), (1, FAR)]
RIGHT = [(0, BOX, 0.9), (1, FAR, 0.9)]

# name of the only error, detections, and what AP50 gains when it is mended: AP50 is the mean of two classes
ONE_ERROR = {
    "classification": ([(1, BOX, 0.95), (1, FAR, 0.9)], 0.5 + 0.25),
    "localisation": ([(0, HALF, 0.9), (1, FAR, 0.9)], 0.5),
    "both": ([*RIGHT, (1, HALF, 0.95)], 0.25),
    "duplicate": ([*RIGHT, (0, BOX, 0.8)], 0),
    "background": ([*RIGHT, (0, ELSEWHERE, 0.95)], 0.25),
    "missed": ([(1, FAR, 0.9)], 0),
}


def errors_of(truth, *rows):
    return evaluate_detections(drawn(truth), found(list(rows[0]))).analysis.errors


@pytest.mark.parametrize("kind", ERRORS)
def test_one_error_of_each_kind_is_named_and_valued(kind):
    rows, gain = ONE_ERROR[kind]
    errors = errors_of(TRUTH, rows)
    assert errors.counts == {name: int(name == kind) for name in ERRORS}
    expected = {name: gain if name == kind else 0 for name in ERRORS}
    assert errors.d_ap50 == pytest.approx(expected, abs=1e-12)


def test_a_missed_box_costs_what_recall_it_takes():
    errors = errors_of([(0, BOX), (0, FAR)], [(0, BOX, 0.9)])
    assert errors.ap50 == pytest.approx(51 / 101)
    assert errors.counts["missed"] == 1
    assert errors.d_ap50["missed"] == pytest.approx(50 / 101)


def test_only_the_best_of_several_errors_is_mended_onto_a_box():
    rows = [(0, HALF, 0.9), (0, (150, 100, 100, 100), 0.8), (0, (40, 100, 100, 100), 0.7)]
    errors = errors_of([(0, BOX)], rows)
    assert errors.counts["localisation"] == 3
    assert errors.counts["missed"] == 0
    assert errors.d_ap50["localisation"] == pytest.approx(1)
    ranked = errors_of([(0, BOX)], [(0, HALF, 0.9), (0, FAR, 0.8), (0, HALF, 0.7)])
    assert ranked.d_ap50["localisation"] == pytest.approx(1)  # ahead of the false positive


def test_an_error_on_a_box_that_is_found_disappears():
    errors = errors_of([(0, BOX)], [(0, HALF, 0.95), (0, BOX, 0.9)])
    assert (errors.counts["localisation"], errors.ap50) == (1, pytest.approx(0.5))
    assert errors.d_ap50["localisation"] == pytest.approx(0.5)


def test_an_error_on_a_box_that_is_found_finds_no_other_box():
    errors = errors_of([(0, BOX), (0, FAR)], [(0, HALF, 0.95), (0, BOX, 0.9)])
    assert errors.ap50 == pytest.approx(51 / 2 / 101)
    assert errors.d_ap50["localisation"] == pytest.approx(51 / 2 / 101)  # one of two boxes, at full precision


@pytest.mark.parametrize("width", [50, 60, 90])
def test_a_second_detection_is_a_duplicate_however_well_it_fits(width):
    rows = [(0, BOX, 0.9), (0, (100, 100, width, 100), 0.8)]
    assert errors_of([(0, BOX)], rows).counts == dict.fromkeys(ERRORS, 0) | {"duplicate": 1}


def test_precedence_is_that_of_the_authors():
    # overlaps its own class's box a little and another's fully: misplaced, not misnamed
    assert errors_of([(0, HALF), (1, BOX)], [(0, BOX, 0.9)]).counts["localisation"] == 1
    # a second look at a box of its class that also fits one of another class: misnamed, no duplicate
    rows = [(0, BOX, 0.9), (0, BOX, 0.8)]
    assert errors_of([(0, BOX), (1, BOX)], rows).counts["classification"] == 1


def test_bounds_of_the_ious():
    wide = (0, 0, 100, 100)
    assert errors_of([(0, wide)], [(0, (0, 0, 50, 100), 0.9)]).counts == dict.fromkeys(ERRORS, 0)  # 0.5 is found
    assert errors_of([(0, wide)], [(0, (0, 0, 49, 100), 0.9)]).counts["localisation"] == 1
    assert errors_of([(0, wide)], [(0, (0, 0, 10, 100), 0.9)]).counts["localisation"] == 1  # 0.1
    assert errors_of([(0, wide)], [(0, (0, 0, 9, 100), 0.9)]).counts["background"] == 1
    assert errors_of([(1, wide)], [(0, (0, 0, 11, 100), 0.9)]).counts["both"] == 1


def test_crowds_are_neither_missed_nor_errors():
    crowd = (0, (0, 0, 500, 500), True)
    assert errors_of([crowd, (1, FAR)], [(0, BOX, 0.9), (1, FAR, 0.9)]).counts == dict.fromkeys(ERRORS, 0)
    assert errors_of([crowd], [(1, BOX, 0.9)]).counts["background"] == 1


def test_perfect_detections_have_nothing_to_gain():
    split = scene(4)
    rows = [
        {key: row[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
        for row in split.ground_truth()["annotations"]
    ]
    errors = evaluate_detections(split, rows).analysis.errors
    assert set(errors.counts.values()) == {0}
    assert set(errors.d_ap50.values()) == {0.0}


@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([0, 3, 120]))
@settings(max_examples=30, deadline=None)
def test_laws(seed, crowds, spare):
    split = scene(seed, crowds=crowds)
    kept = []
    real = analysis_module.matching
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analysis_module, "matching", lambda *given: kept.append(real(*given)) or kept[0])
        result = evaluate_detections(split, guesses(split, seed + 1, spare))
    m, errors = kept[0], result.analysis.errors
    if result.numbers["AP50"] < 0:
        assert np.isnan(errors.ap50)
        return
    assert errors.ap50 == pytest.approx(result.numbers["AP50"], abs=1e-12)
    assert min(errors.d_ap50.values()) >= -1e-12
    wrong = m.judged & (m.match < 0)
    assert sum(errors.counts.values()) - errors.counts["missed"] == wrong.sum()
    assert errors.counts["missed"] <= (m.counted & ~m.found).sum()
    kind, target = classify(m)
    assert ((kind >= 0) == wrong).all()
    # With every error mended each class is perfect, unless all of its boxes were missed and none is left to find.
    everything = mended_ap50(m, kind, target, tuple(ERRORS))
    pointed = m.found.copy()
    pointed[target[np.isin(kind, [0, 1])]] = True
    classes = np.unique(m.true_label[m.counted])
    assert everything == pytest.approx(np.mean([pointed[m.counted & (m.true_label == c)].any() for c in classes]))


def test_average_precision_of_known_lists():
    assert average_precision(np.array([True, True]), 2) == pytest.approx(1)
    assert average_precision(np.array([False, True]), 1) == pytest.approx(0.5)
    assert average_precision(np.array([True, False, True]), 2) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert average_precision(np.array([], dtype=bool), 3) == 0
    assert average_precision(np.array([False]), 0) == 0
