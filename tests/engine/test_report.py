"""What is written out: evaluation.json is complete and plain, and the figures are pictures of something."""

import json
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image
from quick import first
from scenes import drawn, found, guesses, scene

from yolo_lat.engine import report
from yolo_lat.engine.evaluate import evaluate_detections

FIGURES = ["PR_curve", "confusion_matrix", "errors", "calibration", "per_class_AP"]
ODD_NAMES = ("猫 $x_{", "a name that is much longer than there is room for, with \\alpha and $", "")


def many(classes: int):
    rng = np.random.default_rng(0)
    rows = [(int(c), (*rng.uniform(0, 800, 2), 90, 90)) for c in rng.integers(0, classes, 200)]
    split = drawn(rows[:100], rows[100:], names=tuple(f"class {i}" for i in range(classes)))
    return split, found(*[[(c, b, rng.random()) for c, b in part] for part in (rows[:100], rows[100:])])


@pytest.fixture(scope="module")
def split():
    return replace(scene(1, classes=2), names=("cat", "dog", "absent"))


@pytest.fixture(scope="module")
def result(split):
    return evaluate_detections(split, guesses(split, 2))


def test_evaluation_json_holds_everything(split, result, tmp_path):
    about = report.about(model="best.pt", data="shapes", split="val", imgsz=[96, 96], conf=0.001, iou=0.7, max_det=300)
    assert result.write(tmp_path, split, about, plots=False) == []
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert {key: content[key] for key in about} == about
    for key in ("model", "data", "split", "imgsz", "conf", "iou", "max_det"):
        assert content[key] is not None
    for key in ("yolo_lat", "ultralytics", "pycocotools", "torch"):
        assert content[key][0].isdigit()
    assert content["images"] == len(split.images)
    assert content["numbers"] == result.numbers
    assert content["sizes"] == result.analysis.sizes
    assert [row["name"] for row in content["classes"]] == ["cat", "dog", "absent"]
    assert content["classes"][0]["AP75"] == result.analysis.classes["AP75"][0]
    assert content["classes"][2]["AP"] is None
    curves = content["pr_curves"]
    assert len(curves["recall"]) == len(curves["AP75"]["mean"]) == len(curves["AP50"]["classes"][0]) == 101
    assert np.mean(curves["AP50"]["mean"]) == pytest.approx(result.numbers["AP50"], abs=1e-12)
    assert np.mean(curves["AP75"]["mean"]) == pytest.approx(result.numbers["AP75"], abs=1e-12)
    confusion = content["confusion"]
    assert (confusion["confidence"], confusion["iou"]) == (0.25, 0.5)
    assert confusion["labels"] == ["cat", "dog", "absent", "background"]
    assert confusion["true_by_detected"] == result.analysis.confusion.tolist()
    errors = content["errors"]
    assert errors["AP50"] == pytest.approx(result.numbers["AP50"])
    assert errors["kinds"]["missed"] == {
        "count": result.analysis.errors.counts["missed"],
        "dAP50": result.analysis.errors.d_ap50["missed"],
    }
    assert content["calibration"]["D-ECE"] == result.analysis.calibration.d_ece
    assert sum(content["calibration"]["detections"]) == result.analysis.calibration.counts.sum()


def test_what_does_not_exist_is_null_and_not_nan(tmp_path):
    split = drawn([], [])
    evaluate_detections(split, []).write(tmp_path, split, report.about(), plots=False)
    text = (tmp_path / "evaluation.json").read_text()
    assert "NaN" not in text
    content = json.loads(text)
    assert content["model"] is content["errors"]["AP50"] is content["calibration"]["D-ECE"] is None
    assert content["pr_curves"]["AP50"]["mean"] == [None] * 101


def test_the_hash_is_that_of_the_truth_and_of_nothing_else(split):
    truth = split.ground_truth()
    value = report.ground_truth_hash(truth)
    assert len(value) == 32
    assert report.ground_truth_hash({**dict(reversed(truth.items())), "info": {"description": "other"}}) == value
    moved = split.images[1]
    moved = replace(moved, boxes_xywh=moved.boxes_xywh + 1e-9)
    other = replace(split, images=[split.images[0], moved, *split.images[2:]])
    assert report.ground_truth_hash(other.ground_truth()) != value
    assert report.ground_truth_hash(replace(split, names=("cat", "dog", "cow")).ground_truth()) != value


def picture(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(float)


@pytest.mark.parametrize("classes", first(2, [1, 12, 2, 21, 80]))
def test_figures_are_pictures_at_any_number_of_classes(classes, tmp_path):
    split, rows = many(classes)
    files = evaluate_detections(split, rows).write(tmp_path, split, report.about())
    assert [file.stem for file in files] == FIGURES
    for file in files:
        pixels = picture(file)
        assert min(pixels.shape[:2]) >= 200, file
        assert pixels.std() > 5, file
    assert plt.get_fignums() == []


def test_figures_show_what_was_found(split, result, tmp_path):
    nothing = evaluate_detections(split, [])
    for name, what in (("found", result), ("nothing", nothing)):
        (tmp_path / name).mkdir()
        what.write(tmp_path / name, split, report.about())
    for figure in FIGURES:
        one, other = (picture(tmp_path / name / f"{figure}.png") for name in ("found", "nothing"))
        assert one.shape != other.shape or (one != other).mean() > 0.001, figure


@pytest.mark.parametrize("names", [ODD_NAMES, ("a" * 300, "b\nc", "\x07"), ("[red]", "%s{}", "نص עברית")])
@pytest.mark.filterwarnings("error")
def test_odd_class_names_are_drawn_and_listed(split, names, tmp_path):
    odd = replace(split, names=names)
    result = evaluate_detections(odd, guesses(odd, 2))
    assert len(result.write(tmp_path, odd, report.about())) == 5
    content = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    assert tuple(row["name"] for row in content["classes"]) == names
    assert result.class_table().row_count == 3


def test_an_evaluation_of_nothing_is_drawn(tmp_path):
    split = drawn([], [])
    result = evaluate_detections(split, [])
    assert len(result.write(tmp_path, split, report.about())) == 5
    assert set(json.loads((tmp_path / "evaluation.json").read_text())["AP_by_IoU"].values()) == {None}
    assert result.iou_table().row_count == 1
    assert result.offset_table().row_count == 2
