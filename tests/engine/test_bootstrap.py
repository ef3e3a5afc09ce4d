"""Weighted images against pycocotools: with every count one, and on data in which images really occur several times."""

import contextlib
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from yolo_lat.data.labels import DetectionSplit, ImageLabels
from yolo_lat.engine import bootstrap
from yolo_lat.engine.bootstrap import match_detections, paired_difference, percentile_interval, resample_images
from yolo_lat.engine.evaluate import COCO_NUMBERS

CATEGORIES = (3, 7, 11, 20)
IMAGES = 7


def scene(seed: int, crowds: float = 0.0, classes: int = 4, images: int = IMAGES) -> DetectionSplit:
    """Random boxes of all three COCO sizes, image ids out of order; classes from `classes` on have no ground truth."""
    rng = np.random.default_rng(seed)
    labels = []
    for number in range(images):
        n = int(rng.integers(0, 14))
        boxes = np.concatenate([rng.uniform(0, 300, (n, 2)), rng.uniform(5, 200, (n, 2))], axis=1)
        areas = boxes[:, 2] * boxes[:, 3] * rng.uniform(0.4, 1, n)
        kinds = rng.integers(0, classes, n)
        image_id = 1000 - 13 * number
        crowd = rng.random(n) < crowds
        labels.append(ImageLabels(Path(f"{number}.jpg"), image_id, 640, 480, kinds, boxes, areas, crowd))
    return DetectionSplit("scene", ("a", "b", "c", "d"), CATEGORIES, labels)


def guesses(split: DetectionSplit, seed: int, spare: int = 4, noise: float = 6.0, scores: int = 0) -> list[dict]:
    """Detections near the ground truth and `spare` false ones an image, with `scores` different scores or all."""
    rng = np.random.default_rng(seed)
    rows = []
    for image in split.images:
        boxes = image.boxes_xywh + rng.normal(0, noise, image.boxes_xywh.shape)
        boxes = np.concatenate([boxes, rng.uniform(5, 200, (spare, 4))])
        kinds = np.concatenate([image.class_ids, rng.integers(0, len(CATEGORIES), spare)])
        for box, kind in zip(boxes, kinds, strict=True):
            score = float(rng.integers(1, scores + 1) / scores if scores else rng.random())
            row = {"image_id": image.image_id, "category_id": CATEGORIES[kind], "bbox": box.tolist(), "score": score}
            rows.append(row)
    return rows


def pycocotools(split: DetectionSplit, detections: list[dict]) -> np.ndarray:
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = COCO(), COCO()
        truth.dataset = split.ground_truth()
        truth.createIndex()
        found.dataset = truth.dataset | {"annotations": []}
        found.createIndex()
        if detections:
            found = truth.loadRes([dict(row) for row in detections])
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return np.where(evaluation.stats == -1, np.nan, evaluation.stats)


def repeated(split: DetectionSplit, detections: list[dict], counts: np.ndarray) -> tuple[DetectionSplit, list[dict]]:
    """Data in which each image, by rising id, is there as often as its count says, copies under ids of their own."""
    images, rows = [], []
    for image, count in zip(sorted(split.images, key=lambda image: image.image_id), counts, strict=True):
        for copy in range(count):
            image_id = image.image_id * 100 + copy
            images.append(replace(image, image_id=image_id))
            rows += [row | {"image_id": image_id} for row in detections if row["image_id"] == image.image_id]
    return replace(split, images=images), rows


SCENES = {
    "plain": ({}, {}),
    "crowds": ({"crowds": 0.4}, {}),
    "many": ({}, {"spare": 600}),
    "equal-scores": ({"crowds": 0.2}, {"scores": 3}),
    "absent": ({"classes": 2}, {}),
    "crude": ({}, {"noise": 40.0}),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SCENES)
def test_counts_of_one_give_the_numbers_of_pycocotools(name, seed):
    case, how = SCENES[name]
    split = scene(seed, **case)
    detections = guesses(split, seed + 50, **how)
    found = match_detections(split, detections).numbers(np.ones((1, IMAGES), dtype=int))
    assert found.shape == (1, len(COCO_NUMBERS))
    np.testing.assert_allclose(found[0], pycocotools(split, detections), atol=1e-12, rtol=0)
    assert 0 < found[0, 0] < 1


def test_the_scenes_reach_what_they_are_named_for():
    # Otherwise the comparison above would prove nothing about these cases.
    split = scene(0)
    many = guesses(split, 50, **SCENES["many"][1])
    assert max(sum(r["image_id"] == i.image_id and r["category_id"] == 3 for r in many) for i in split.images) > 100
    numbers = pycocotools(split, many)
    assert len(set(numbers[6:9])) == 3  # the caps of 1, 10 and 100 differ
    assert any(image.crowd.any() for image in scene(0, crowds=0.4).images)
    scores = [row["score"] for row in guesses(split, 50, scores=3)]
    assert len(set(scores)) == 3


@pytest.mark.parametrize("name", ["plain", "crowds", "many", "absent", "crude"])
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 1000), counts=arrays(np.int64, IMAGES, elements=st.integers(0, 4)))
def test_counts_are_copies_of_images(name, seed, counts):
    # Exact as far as floats are: scores are distinct, so the copies of a detection follow each other in the order of
    # scores. After some of them precision is no higher than after all, and interpolation looks to the right.
    case, how = SCENES[name]
    how = how | ({"spare": 120} if name == "many" else {})
    split = scene(seed, **case)
    detections = guesses(split, seed + 50, **how)
    found = match_detections(split, detections).numbers(counts[None])
    np.testing.assert_allclose(found[0], pycocotools(*repeated(split, detections, counts)), atol=1e-12, rtol=0)


@pytest.mark.parametrize("seed", range(4))
def test_equal_scores_keep_the_order_of_pycocotools(seed):
    # Which copy of two tied images comes first is open when images are repeated; here all copies of the one with the
    # lower id do, as if scores were distinct and in the order that pycocotools gives to tied ones.
    split = scene(seed, images=20)
    detections = guesses(split, seed + 50, scores=4)
    ordered = sorted(detections, key=lambda row: (-row["score"], row["image_id"]))
    distinct = [row | {"score": 1 - place / len(ordered)} for place, row in enumerate(ordered)]
    counts = np.random.default_rng(seed).integers(0, 4, 20)
    found = match_detections(split, detections).numbers(counts[None])[0]
    np.testing.assert_allclose(found, pycocotools(*repeated(split, distinct, counts)), atol=1e-12, rtol=0)


def test_a_batch_is_its_rows_and_counts_scale(monkeypatch):
    split = scene(1, crowds=0.2)
    matches = match_detections(split, guesses(split, 51))
    counts = np.random.default_rng(1).integers(0, 3, (9, IMAGES))
    together = matches.numbers(counts)
    alone = [matches.numbers(row[None]) for row in counts]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-14, rtol=0)
    np.testing.assert_allclose(together, matches.numbers(counts * 5), atol=1e-14, rtol=0)
    monkeypatch.setattr(bootstrap, "_CELLS", 40)  # a few resamples at once
    np.testing.assert_allclose(together, matches.numbers(counts), atol=1e-14, rtol=0)


def test_no_images_no_detections_and_no_truth():
    split = scene(0)
    matches = match_detections(split, [])
    np.testing.assert_array_equal(matches.numbers(np.ones((1, IMAGES), dtype=int)), np.zeros((1, 12)))
    assert np.isnan(matches.numbers(np.zeros((1, IMAGES), dtype=int))).all()
    bare = replace(split, images=[replace(split.images[0], crowd=np.ones(len(split.images[0].crowd), dtype=bool))])
    nothing = match_detections(replace(split, images=[]), [])
    assert np.isnan(nothing.numbers(np.ones((1, 0), dtype=int))).all()
    assert np.isnan(match_detections(bare, guesses(bare, 1)).numbers(np.ones((1, 1), dtype=int))).all()


def test_images_are_counted_by_rising_id():
    split = scene(3)
    matches = match_detections(split, guesses(split, 53))
    assert matches.image_ids.tolist() == sorted(image.image_id for image in split.images)


def test_draws_depend_on_seed_and_images_alone():
    counts = np.concatenate(list(resample_images(30, 250, 4)))
    assert counts.shape == (250, 30)
    assert set(counts.sum(axis=1)) == {30}
    np.testing.assert_array_equal(counts, np.concatenate(list(resample_images(30, 250, 4, batch=7))))
    np.testing.assert_array_equal(counts[:110], np.concatenate(list(resample_images(30, 110, 4))))
    assert (counts != np.concatenate(list(resample_images(30, 250, 5)))).any()
    # The counts of an image are binomial (30, 1/30): mean 1, variance 29/30; 7500 of them fix both to some percent.
    assert counts.mean() == 1
    assert counts.var() == pytest.approx(29 / 30, rel=0.1)
    assert np.abs(counts.mean(axis=0) - 1).max() < 0.3


def test_intervals_leave_out_resamples_without_ground_truth_and_rounding():
    resampled = np.array([np.nan, *np.arange(101)])
    found = percentile_interval(40, resampled, 0.9)
    assert (found.value, found.low, found.high, found.resamples) == pytest.approx((40, 5, 95, 101))
    assert percentile_interval(np.nan, resampled[:1], 0.9).resamples == 0
    gap = paired_difference(-1e-16, np.array([np.nan, 1e-16, -1e-16, 0.5, -0.25]), 0.9)
    assert (gap.value, gap.better, gap.worse, gap.resamples, gap.excludes_zero) == (0, 1, 1, 4, False)
    assert paired_difference(1, np.array([0.5, 1]), 0.9).excludes_zero
    assert paired_difference(-1, np.array([-0.5, -1]), 0.9).excludes_zero
