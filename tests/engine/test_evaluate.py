"""The twelve numbers against pycocotools called by hand, in the cases where evaluators differ."""

import contextlib
import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from yolo_lat.data.labels import DetectionSplit, ImageLabels
from yolo_lat.engine.evaluate import COCO_NUMBERS, evaluate_detections, evaluate_predictions
from yolo_lat.errors import UserError

CATEGORIES = (3, 7, 11)


def official(truth: dict, detections: list[dict], folder: Path) -> dict[str, float]:
    """The twelve numbers from files, as pycocotools' own example computes them."""
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "found.json").write_text(json.dumps(detections))
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO(str(folder / "truth.json"))
        evaluation = COCOeval(gt, gt.loadRes(str(folder / "found.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(COCO_NUMBERS, evaluation.stats.tolist(), strict=True))


def scene(seed: int, images: int = 6, crowds: bool = False, classes: int = 3) -> DetectionSplit:
    """Random boxes of all three COCO sizes; the third class is without ground truth where `classes` is 2."""
    rng = np.random.default_rng(seed)
    labels = []
    for number in range(images):
        n = int(rng.integers(0, 9))
        boxes = np.concatenate([rng.uniform(0, 300, (n, 2)), rng.uniform(5, 200, (n, 2))], axis=1)
        areas = boxes[:, 2] * boxes[:, 3] * rng.uniform(0.4, 1, n)
        crowd = rng.random(n) < (0.4 if crowds else 0)
        labels.append(
            ImageLabels(Path(f"{number}.jpg"), 100 + number, 640, 480, rng.integers(0, classes, n), boxes, areas, crowd)
        )
    return DetectionSplit("scene", ("a", "b", "c"), CATEGORIES, labels)


def guesses(split: DetectionSplit, seed: int, spare: int = 3) -> list[dict]:
    """Detections near the ground truth, some of the wrong class, and `spare` false ones an image."""
    rng = np.random.default_rng(seed)
    rows = []
    for image in split.images:
        boxes = image.boxes_xywh + rng.normal(0, 4, image.boxes_xywh.shape)
        boxes = np.concatenate([boxes, rng.uniform(5, 200, (spare, 4))])
        classes = np.concatenate([image.class_ids, rng.integers(0, 3, spare)])
        for box, class_id in zip(boxes, classes, strict=True):
            if rng.random() < 0.1:
                class_id = rng.integers(0, 3)
            row = {"image_id": image.image_id, "category_id": CATEGORIES[class_id], "bbox": box.tolist()}
            rows.append(row | {"score": float(rng.random())})
    return rows


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("case", "spare"),
    [({}, 3), ({"crowds": True}, 3), ({}, 450), ({"classes": 2}, 3)],
    ids=["plain", "crowds", "many", "absent"],
)
def test_numbers_are_those_of_pycocotools(tmp_path, seed, case, spare):
    split = scene(seed, **case)
    detections = guesses(split, seed + 50, spare)
    result = evaluate_detections(split, detections)
    expected = official(split.ground_truth(), detections, tmp_path)
    assert result.numbers == pytest.approx(expected, abs=1e-12)
    assert 0 < result.numbers["AP"] < 1
    assert np.nanmean(result.class_ap) == pytest.approx(expected["AP"], abs=1e-12)
    assert result.class_ap.shape == (3, 10)
    assert np.isnan(result.class_ap[2]).all() == (case.get("classes") == 2)


def test_the_cap_of_100_detections_and_crowds_matter_in_these_scenes():
    # Otherwise the comparison above would prove nothing about them.
    split = scene(0)
    many = guesses(split, 50, 450)
    best = sorted(many, key=lambda row: -row["score"])
    kept = []
    for image, category in itertools.product(split.images, CATEGORIES):
        kept += [r for r in best if (r["image_id"], r["category_id"]) == (image.image_id, category)][:100]
    assert evaluate_detections(split, many).numbers == evaluate_detections(split, kept).numbers
    assert len(kept) < len(many)
    crowded = scene(1, crowds=True)
    uncrowded = [
        ImageLabels(i.path, i.image_id, i.width, i.height, i.class_ids, i.boxes_xywh, i.areas, i.crowd & False)
        for i in crowded.images
    ]
    plain = DetectionSplit(crowded.name, crowded.names, crowded.category_ids, uncrowded)
    detections = guesses(crowded, 51)
    assert evaluate_detections(crowded, detections).numbers != evaluate_detections(plain, detections).numbers


def test_no_detections_are_zero_and_missing_sizes_minus_one():
    numbers = evaluate_detections(scene(0), []).numbers
    assert set(numbers.values()) == {0.0}
    empty = DetectionSplit("none", ("a",), (1,), scene(0, images=2).images[:0])
    assert set(evaluate_detections(empty, []).numbers.values()) == {-1.0}


def test_ground_truth_as_detections_is_perfect_and_the_input_is_left_alone():
    split = scene(3)
    rows = [
        {key: row[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
        for row in split.ground_truth()["annotations"]
    ]
    before = json.dumps(rows)
    assert evaluate_detections(split, rows).numbers["AP"] == pytest.approx(1)
    assert json.dumps(rows) == before


def test_table_and_file_show_the_numbers(tmp_path):
    result = evaluate_detections(scene(0), [])
    result.save(tmp_path / "metrics.json")
    assert json.loads((tmp_path / "metrics.json").read_text()) == result.numbers
    assert list(result.numbers) == list(COCO_NUMBERS)
    assert result.table().row_count == 12


def test_predictions_of_a_run_score_as_the_run_did(run):
    result = evaluate_predictions(run.folder / "predictions.json", run.data)
    assert result.numbers == pytest.approx(run.metrics.coco, abs=1e-12)


def test_other_keys_of_predictions_are_ignored(run, tmp_path):
    rows = json.loads((run.folder / "predictions.json").read_text())
    for row in rows:
        row |= {"caption": "a shape", "segmentation": [], "id": 5}
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert evaluate_predictions(tmp_path / "rows.json", run.data).numbers["AP"] == run.metrics.coco["AP"]


ROW = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('[{"image_id": 1},\n]', "line 2: not valid JSON"),
        ("", "line 1: not valid JSON"),
        ({"annotations": []}, "not COCO results"),
        ([ROW, 5], "entry 1: lacks image_id"),
        ([ROW, {key: ROW[key] for key in ("image_id", "bbox", "score")}], "entry 1: lacks"),
        ([ROW | {"image_id": 999}], "entry 0: image_id 999 is not in"),
        ([ROW | {"image_id": [1]}], "entry 0: image_id [1] is not in"),
        ([ROW | {"category_id": 0}], "entry 0: category_id 0 is not in"),
        ([ROW | {"bbox": [1, 2, 3]}], "entry 0: bbox [1, 2, 3]"),
        ([ROW | {"bbox": [1, 2, 3, "4"]}], "entry 0: bbox"),
        ([ROW | {"bbox": [1, 2, 3, float("nan")]}], "entry 0: bbox"),
        ([ROW | {"score": None}], "entry 0: bbox [1, 2, 3, 4], score None"),
    ],
)
def test_malformed_predictions_are_refused_with_their_place(shapes, tmp_path, content, problem):
    file = tmp_path / "found.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError) as caught:
        evaluate_predictions(file, shapes)
    assert str(caught.value).startswith(str(file))
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_predictions_are_refused(shapes, tmp_path):
    with pytest.raises(UserError, match=r"predictions=.*nope\.json: no such file"):
        evaluate_predictions(tmp_path / "nope.json", shapes)


def test_predictions_for_an_empty_list_are_zero(shapes, tmp_path):
    (tmp_path / "none.json").write_text("[]")
    assert evaluate_predictions(tmp_path / "none.json", shapes).numbers["AP"] == 0
