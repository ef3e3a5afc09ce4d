"""Validation: the numbers are pycocotools', every image counts, and other data's classes are refused."""

import contextlib
import io
import itertools
import json

import pytest
import yaml
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from ultralytics.utils import nms

from yolo_lat import YOLOLAT
from yolo_lat.engine.evaluate import COCO_NUMBERS
from yolo_lat.errors import UserError

VAL = {"imgsz": 96, "device": "cpu", "plots": False, "verbose": False, "workers": 0}


@pytest.fixture
def detector(run):
    return YOLOLAT(run.best)


def official(annotations, predictions) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(str(predictions)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


@pytest.mark.parametrize("batch", [1, 8])
def test_metrics_are_those_of_pycocotools_on_the_files(detector, run, tmp_path, batch):
    metrics = detector.val(data=run.data, project=tmp_path, batch=batch, **VAL)
    stats = official(run.data.parent / "annotations/val.json", tmp_path / "val/predictions.json")
    written = json.loads((tmp_path / "val/metrics.json").read_text())
    assert list(written) == list(metrics.coco) == list(COCO_NUMBERS)
    assert list(written.values()) == pytest.approx(stats, abs=1e-12)
    assert list(metrics.coco.values()) == pytest.approx(stats, abs=1e-12)
    assert metrics.box.map == pytest.approx(stats[0], abs=1e-12)
    assert metrics.box.map50 == pytest.approx(stats[1], abs=1e-12)
    assert stats[0] > 0.001


def test_val_repeats_what_training_found(detector, run, tmp_path):
    metrics = detector.val(project=tmp_path, batch=8, **VAL)  # data and split are those of training
    assert metrics.coco == pytest.approx(run.metrics.coco, abs=1e-4)


def test_other_splits_and_txt_labels(detector, run, txt_data, tmp_path):
    on_train = detector.val(data=run.data, split="train", project=tmp_path, **VAL).coco
    on_txt = detector.val(data=txt_data, split="train", project=tmp_path, **VAL).coco
    # The JSON's areas are those of the visible pixels, so only numbers over all sizes are comparable.
    for name in ("AP", "AP50", "AR100"):
        assert on_txt[name] == pytest.approx(on_train[name], abs=1e-9)
    assert on_train["AP"] > 0.001


def test_onnx_scores_as_the_weights_do(detector, run, onnx_file, dynamic_onnx_file, tmp_path):
    expected = detector.val(data=run.data, project=tmp_path, batch=1, rect=False, **VAL).coco["AP"]
    for file in (onnx_file, dynamic_onnx_file):
        found = YOLOLAT(file).val(data=run.data, project=tmp_path, batch=1, rect=False, **VAL).coco["AP"]
        assert found == pytest.approx(expected, abs=0.01)
        assert found > 0.001


def test_one_class_training_is_measured_as_one_class(run, tmp_path):
    metrics = YOLOLAT(run.best).val(data=run.data, single_cls=True, project=tmp_path, **VAL)
    truth = json.loads((run.data.parent / "annotations/val.json").read_text())
    truth["categories"] = truth["categories"][:1]
    for row in truth["annotations"]:
        row["category_id"] = 1
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    stats = official(tmp_path / "truth.json", tmp_path / "val/predictions.json")
    assert list(metrics.coco.values()) == pytest.approx(stats, abs=1e-12)
    assert stats[0] > 0.001
    assert metrics.result.class_ap.shape == (1, 10)
    assert metrics.box.map == pytest.approx(metrics.coco["AP"], abs=1e-12)


def clock(monkeypatch):
    """Make Ultralytics' suppression believe that every look at the clock costs an hour."""
    ticks = itertools.count(step=3600)
    monkeypatch.setattr(nms, "time", type("Clock", (), {"time": staticmethod(lambda: float(next(ticks)))}))


def test_a_slow_machine_loses_no_detections_in_validation(detector, run, tmp_path, monkeypatch):
    arguments = {"data": run.data, "batch": 8, "conf": 0.001, **VAL}
    expected = detector.val(project=tmp_path / "a", **arguments).coco
    clock(monkeypatch)
    assert detector.val(project=tmp_path / "b", **arguments).coco == expected
    predictions = json.loads((tmp_path / "b/val/predictions.json").read_text())
    assert len({row["image_id"] for row in predictions}) == 8


def test_a_slow_machine_loses_no_detections_in_prediction(detector, run, tmp_path, monkeypatch):
    arguments = {"source": run.data.parent / "images/val", "batch": 8, "conf": 0.001, "device": "cpu", "verbose": False}
    expected = [len(result) for result in detector.predict(imgsz=96, **arguments)]
    clock(monkeypatch)
    assert [len(result) for result in detector.predict(imgsz=96, **arguments)] == expected
    assert min(expected) > 0


def test_ultralytics_itself_would_lose_them(detector, run, monkeypatch):
    from ultralytics.models.yolo.detect import DetectionPredictor

    clock(monkeypatch)
    arguments = {"source": run.data.parent / "images/val", "batch": 8, "conf": 0.001, "device": "cpu", "verbose": False}
    assert 0 in [len(r) for r in detector.predict(predictor=DetectionPredictor, imgsz=96, **arguments)]


@pytest.mark.parametrize("names", [["circle", "square"], [*"abcdefgh"]], ids=["fewer", "others"])
def test_data_with_other_classes_is_refused_and_leaves_no_folder(detector, onnx_file, txt_data, tmp_path, names):
    root = txt_data.parent
    content = {"path": str(root), "train": "images/train", "val": "images/val", "names": names}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(content))
    for model in (detector, YOLOLAT(onnx_file)):
        with pytest.raises(UserError, match=rf"other\.yaml: its {len(names)} classes are not the model's 8.*circle"):
            model.val(data=tmp_path / "other.yaml", project=tmp_path / "runs", **VAL)
    assert not (tmp_path / "runs").exists()


def test_broken_data_leave_no_folder(detector, txt_data, tmp_path):
    content = yaml.safe_load(txt_data.read_text())
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_bytes(b"no image")
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(content | {"val": str(tmp_path / "images")}))
    with pytest.raises(UserError, match=r"images/a\.jpg: broken image"):
        detector.val(data=tmp_path / "data.yaml", project=tmp_path / "runs", **VAL)
    assert not (tmp_path / "runs").exists()


def test_data_must_be_given_to_a_model_that_was_never_trained(tmp_path):
    with pytest.raises(UserError, match="data is missing"):
        YOLOLAT("yolo-lat-p").val()
    with pytest.raises(UserError, match="has no split 'test'"):
        YOLOLAT("yolo-lat-p").val(data=_tiny(tmp_path), split="test")


def _tiny(folder):
    (folder / "a.yaml").write_text(yaml.safe_dump({"path": ".", "train": ".", "val": ".", "names": ["a"]}))
    return folder / "a.yaml"
