"""The twelve numbers against pycocotools called by hand, in the cases where evaluators differ."""

import io
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from scenes import CATEGORIES, drawn, found, guesses, official, scene, unlabelled

from yolo_lat.data.labels import DetectionSplit, ImageLabels
from yolo_lat.data.reader import read_split
from yolo_lat.data.registry import load_dataset
from yolo_lat.engine.evaluate import COCO_NUMBERS, evaluate_detections, evaluate_predictions
from yolo_lat.errors import UserError


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
    assert result.analysis.names == ("a", "b", "c")


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
        ([ROW | {"score": 10**40}], "entry 0: bbox [1, 2, 3, 4], score 1000"),
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


def edge_areas(split: DetectionSplit, values: tuple[float, ...]) -> DetectionSplit:
    rng = np.random.default_rng(0)
    images = [replace(image, areas=rng.choice(values, len(image.areas))) for image in split.images]
    return replace(split, images=images)


def flat(split: DetectionSplit) -> DetectionSplit:
    """Half of the boxes without width."""
    images = [replace(i, boxes_xywh=i.boxes_xywh * [1, 1, n % 2, 1]) for n, i in enumerate(split.images)]
    return replace(split, images=images)


def equal_scores(rows: list[dict]) -> list[dict]:
    return [row | {"score": round(row["score"] * 3) / 3} for row in rows]


def exact(split: DetectionSplit) -> list[dict]:
    keys = ("image_id", "category_id", "bbox")
    return [{key: row[key] for key in keys} | {"score": 0.5} for row in split.ground_truth()["annotations"]]


ODD = {
    "plain": lambda s: (scene(s), guesses(scene(s), s)),
    "no detections": lambda s: (scene(s), []),
    "no images": lambda s: (replace(scene(s), images=[]), []),
    "no ground truth": lambda s: (drawn([], []), found([(0, (1, 2, 30, 40), 0.5)], [])),
    "crowds": lambda s: (scene(s, crowds=True), guesses(scene(s, crowds=True), s)),
    "more than 100": lambda s: (scene(s), guesses(scene(s), s, 450)),
    "equal scores": lambda s: (scene(s), equal_scores(guesses(scene(s), s, 450))),
    "equal scores and overlaps": lambda s: (scene(s, crowds=True), 2 * exact(scene(s, crowds=True))),
    "absent class": lambda s: (scene(s, classes=2), guesses(scene(s, classes=2), s)),
    "areas on bounds": lambda s: (edge_areas(scene(s), (0, 1024, 9216, 1e10)), exact(scene(s))),
    "areas out of range": lambda s: (edge_areas(scene(s), (-5, 0, 5000, 1e11)), guesses(scene(s), s)),
    "flat truth": lambda s: (flat(scene(s)), exact(flat(scene(s)))),
    "flat detections": lambda s: (scene(s), exact(flat(scene(s)))),
    "inverted": lambda s: (scene(s), [row | {"bbox": [9, 9, -5, 20]} for row in guesses(scene(s), s)]),
    "odd scores": lambda s: (scene(s), [row | {"score": 4 - 9 * row["score"]} for row in guesses(scene(s), s)]),
    "unsorted categories": lambda s: (replace(scene(s), category_ids=(11, 3, 7)), guesses(scene(s), s)),
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("case", ODD)
def test_the_fast_evaluation_finds_the_same(case, seed):
    split, rows = ODD[case](seed)
    slow, fast = evaluate_detections(split, rows), evaluate_detections(split, rows, fast=True)
    assert fast.numbers == pytest.approx(slow.numbers, abs=1e-9)
    np.testing.assert_allclose(fast.class_ap, slow.class_ap, atol=1e-9)
    with pytest.raises(ValueError, match="fast evaluation"):
        fast.class_table()


def test_the_fast_evaluation_finds_the_same_on_a_run(run):
    rows = json.loads((run.folder / "predictions.json").read_text())
    split = read_split(load_dataset(run.data), "val")
    slow, fast = evaluate_detections(split, rows), evaluate_detections(split, rows, fast=True)
    assert fast.numbers == pytest.approx(slow.numbers, abs=1e-9)
    np.testing.assert_allclose(fast.class_ap, slow.class_ap, atol=1e-9)
    assert slow.numbers["AP"] > 0.001


def test_classes_keep_their_order_when_category_ids_are_not_sorted():
    split = replace(drawn([(0, (0, 0, 50, 50)), (1, (100, 0, 50, 50))]), category_ids=(9, 2, 5))
    rows = [{"image_id": 1, "category_id": 9, "bbox": [0, 0, 50, 50], "score": 0.5}]
    result = evaluate_detections(split, rows)
    assert result.class_ap[:, 0].tolist() == pytest.approx([1, 0, np.nan], nan_ok=True)
    assert result.analysis.classes["AP50"].tolist() == pytest.approx([1, 0, np.nan], nan_ok=True)
    assert result.analysis.classes["detections"].tolist() == [1, 0, 0]


def test_tables_show_classes_and_errors():
    split = replace(scene(0, classes=2), names=("[bold]a", "b", "c"))
    result = evaluate_detections(split, guesses(split, 1))
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(result.class_table(), result.iou_table(), result.offset_table(), result.error_table())
    text = console.export_text()
    assert f"{result.analysis.offsets.mean[0]:.2f}" in text
    assert f"{result.analysis.iou_ap['0.95']:.3f}" in text
    assert "[bold]a" in text
    assert "nan" not in text
    assert all(name in text for name in ("AR100", "localisation", "missed", "dAP50"))


@pytest.mark.parametrize("plots", [True, False])
def test_predictions_from_anywhere_are_written_out_too(run, tmp_path, plots):
    rows = run.folder / "predictions.json"
    result = evaluate_predictions(rows, run.data, save_dir=tmp_path / "a/b", plots=plots)
    content = json.loads((tmp_path / "a/b/evaluation.json").read_text())
    assert content["numbers"] == result.numbers == json.loads((tmp_path / "a/b/metrics.json").read_text())
    assert content["predictions"] == str(rows)
    assert content["data"] == str(run.data)
    assert content["model"] is content["imgsz"] is None
    assert len(list((tmp_path / "a/b").glob("*.png"))) == (5 if plots else 0)
    theirs = json.loads((run.folder / "evaluation.json").read_text())
    assert content["ground_truth"] == theirs["ground_truth"]
    assert content["errors"] == theirs["errors"]


def test_a_split_without_annotations_is_refused(shapes, tmp_path):
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(UserError, match="has no annotations to evaluate against"):
        evaluate_predictions(tmp_path / "a.json", unlabelled(shapes, tmp_path), "test")
