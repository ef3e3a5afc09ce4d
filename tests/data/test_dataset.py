"""What the trainer is given for what was annotated."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from ultralytics.cfg import get_cfg

from yolo_lat.data.dataset import LatDataset
from yolo_lat.data.labels import DetectionSplit, ImageLabels


def labels(path: Path, number: int, rows: list[tuple[int, list[float], bool]]) -> ImageLabels:
    """An image of 80x40 px with rows of (class, box x y w h in px, crowd)."""
    cv2.imwrite(str(path), np.full((40, 80, 3), 99, np.uint8))
    boxes = np.array([box for _, box, _ in rows], dtype=np.float64).reshape(-1, 4)
    return ImageLabels(
        path,
        number,
        80,
        40,
        np.array([class_id for class_id, _, _ in rows], dtype=np.int64),
        boxes,
        boxes[:, 2] * boxes[:, 3],
        np.array([crowd for _, _, crowd in rows], dtype=bool),
    )


@pytest.fixture
def split(tmp_path):
    rows = [
        (1, [20, 10, 40, 20], False),
        (0, [-10, -10, 30, 30], False),
        (2, [70, 30, 30, 30], False),
        (0, [0, 0, 80, 40], True),
        (0, [5, 5, 0, 9], False),
        (0, [90, 5, 9, 9], False),
    ]
    images = [labels(tmp_path / "0.png", 5, rows), *(labels(tmp_path / f"{i}.png", 5 + i, []) for i in range(1, 10))]
    return DetectionSplit("test", ("a", "b", "c"), (3, 4, 9), images)


def build(split, **kwargs) -> LatDataset:
    settings = {"imgsz": 64, "augment": False, "hyp": get_cfg(), "batch_size": 2, "rect": False, "stride": 32}
    return LatDataset(split, data={"names": dict(enumerate(split.names)), "channels": 3}, **(settings | kwargs))


def test_boxes_are_clipped_and_relative_and_the_untrainable_left_out(split):
    label = build(split).labels[0]
    assert label["cls"].ravel().tolist() == [1, 0, 2]
    expected = [[0.5, 0.5, 0.5, 0.5], [0.125, 0.25, 0.25, 0.5], [0.9375, 0.875, 0.125, 0.25]]
    np.testing.assert_allclose(label["bboxes"], expected, rtol=1e-6)
    assert label["bboxes"].dtype == np.float32
    assert label["shape"] == (40, 80)


def test_an_item_is_letterboxed_with_its_boxes(split):
    item = build(split)[0]
    assert tuple(item["img"].shape) == (3, 64, 64)
    # 80x40 becomes 64x32 in the middle of 64x64, so y shrinks by two and moves by a quarter.
    np.testing.assert_allclose(item["bboxes"][0], [0.5, 0.5, 0.5, 0.25], atol=1e-6)


def test_images_without_boxes_stay(split):
    dataset = build(split)
    assert len(dataset) == 10
    assert dataset.labels[3]["bboxes"].shape == (0, 4)


@pytest.mark.parametrize(("fraction", "kept"), [(1.0, 10), (0.5, 5), (0.01, 1), (3, 3), (99, 10)])
def test_fraction_keeps_the_first_images_in_training_and_evaluation(split, fraction, kept):
    dataset = build(split, fraction=fraction)
    assert len(dataset.labels) == kept
    evaluated = dataset.evaluated()
    assert list(evaluated.images) == list(split.images[:kept])
    assert evaluated.category_ids == (3, 4, 9)


def test_one_class_is_evaluated_as_one_class(split):
    dataset = build(split, single_cls=True)
    assert set(dataset.labels[0]["cls"].ravel().tolist()) == {0}
    truth = dataset.evaluated().ground_truth()
    assert truth["categories"] == [{"id": 3, "name": "item"}]
    assert {row["category_id"] for row in truth["annotations"]} == {3}
    assert len(truth["annotations"]) == 6


def test_no_cache_is_written_beside_the_data(split, tmp_path):
    build(split)[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(image.path.name for image in split.images)
