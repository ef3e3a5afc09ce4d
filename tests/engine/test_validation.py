"""Validation: the numbers are pycocotools', every image counts, and other data's classes are refused."""

import contextlib
import errno
import gc
import io
import itertools
import json
import shutil
from zipfile import ZipFile

import numpy as np
import pytest
import yaml
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scenes import unlabelled
from small_training import SIZE, TRAIN
from ultralytics import YOLO
from ultralytics.utils import ROOT, nms

from yolo_lat import YOLOLAT
from yolo_lat.data.shapes import CLASSES
from yolo_lat.engine import validator
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


def test_python_looks_for_cycles_again_afterwards(detector, run, tmp_path, monkeypatch):
    seen, counted = [], []
    detector.add_callback("on_val_batch_start", lambda _: seen.append(gc.isenabled()))
    detector.val(data=run.data, project=tmp_path, **VAL)
    assert seen
    assert not any(seen)
    assert gc.isenabled()
    monkeypatch.setattr(validator, "evaluate_detections", lambda *_, **__: counted.append(1) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        detector.val(data=run.data, project=tmp_path, **VAL)
    assert counted
    assert gc.isenabled()


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


@pytest.mark.parametrize("chosen", [[2, 5], 2])
def test_chosen_classes_are_measured_on_their_own(run, tmp_path, chosen):
    everything = YOLOLAT(run.best).val(data=run.data, project=tmp_path, **VAL)
    metrics = YOLOLAT(run.best).val(data=run.data, classes=chosen, project=tmp_path, name="some", **VAL)
    ids = [2, 5] if chosen == [2, 5] else [2]
    expected = everything.result.class_ap
    assert np.nanmean(expected[ids]) == pytest.approx(metrics.coco["AP"], abs=1e-12)
    assert np.isnan(np.delete(metrics.result.class_ap, ids, axis=0)).all()
    found = json.loads((tmp_path / "some/predictions.json").read_text())
    assert {row["category_id"] for row in found} == {i + 1 for i in ids}


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


def test_classes_in_another_order_are_told_from_others(detector, txt_data, tmp_path):
    content = yaml.safe_load(txt_data.read_text()) | {"path": str(txt_data.parent)}
    content["names"] = [*detector.names.values()][::-1]
    (tmp_path / "turned.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(
        UserError, match="not the model's 8 in this order; validate on data with the same names in this"
    ):
        detector.val(data=tmp_path / "turned.yaml", **VAL)


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


FIGURES = {"PR_curve", "confusion_matrix", "errors", "calibration", "per_class_AP"}
WRITTEN = {"predictions.json", "metrics.json", "evaluation.json"}


def check_written(folder, metrics, model, data):
    """The files are there, agree with what was returned, and none of Ultralytics' own metric plots is among them."""
    assert {file.name for file in folder.glob("*.json")} == WRITTEN
    content = json.loads((folder / "evaluation.json").read_text())
    assert content["numbers"] == metrics.coco == json.loads((folder / "metrics.json").read_text())
    assert (content["model"], content["data"], content["split"]) == (str(model), str(data), "val")
    assert content["images"] == 8
    assert len(content["ground_truth"]) == 32
    assert content["ground_truth"] == report_hash(data)
    assert content["confusion"]["true_by_detected"] == metrics.confusion_matrix.matrix.T.tolist()
    return content


def report_hash(data) -> str:
    from yolo_lat.data.reader import read_split
    from yolo_lat.data.registry import load_dataset
    from yolo_lat.engine.report import ground_truth_hash

    return ground_truth_hash(read_split(load_dataset(data), "val").ground_truth())


def test_val_writes_the_evaluation_and_its_figures(detector, run, tmp_path):
    metrics = detector.val(data=run.data, project=tmp_path, conf=0.002, iou=0.6, max_det=200, **VAL | {"plots": True})
    content = check_written(tmp_path / "val", metrics, run.best, run.data)
    assert [content[key] for key in ("imgsz", "conf", "iou", "max_det")] == [SIZE, 0.002, 0.6, 200]
    assert {file.stem for file in (tmp_path / "val").glob("*.png")} == FIGURES
    assert {"val_batch0_labels.jpg", "val_batch0_pred.jpg"} <= {file.name for file in (tmp_path / "val").iterdir()}
    assert metrics.result.class_table().row_count == 8
    assert metrics.result.error_table().row_count == 6


def test_two_validations_that_find_the_same_name_free_have_folders_of_their_own(detector, run, tmp_path, monkeypatch):
    monkeypatch.setattr(validator, "get_save_dir", lambda args: tmp_path / "val")
    for _ in range(2):
        detector.val(data=run.data, project=tmp_path, **VAL)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["val", "val-2"]
    assert all((tmp_path / name / "metrics.json").is_file() for name in ("val", "val-2"))


def test_val_without_plots_draws_nothing(detector, run, tmp_path):
    metrics = detector.val(data=run.data, project=tmp_path, **VAL)
    check_written(tmp_path / "val", metrics, run.best, run.data)
    assert not list((tmp_path / "val").glob("*.[pj][np]g"))


def test_training_evaluates_its_best_weights_in_full(run):
    content = check_written(run.folder, run.metrics, run.best, run.data)
    assert content["numbers"]["AP"] > 0.001


def test_epochs_are_evaluated_fast_and_the_end_by_pycocotools(shapes, tmp_path, monkeypatch):
    evaluations = []

    def recorded(split, detections, fast=False):
        evaluations.append(fast)
        return real(split, detections, fast)

    real = validator.evaluate_detections
    monkeypatch.setattr(validator, "evaluate_detections", recorded)
    metrics = YOLOLAT("yolo-lat-p").train(
        data=shapes, epochs=2, project=tmp_path, name="train", **TRAIN | {"plots": True}
    )
    assert evaluations == [True, True, False]
    check_written(tmp_path / "train", metrics, tmp_path / "train/weights/best.pt", shapes)
    # results.png are the curves of training
    assert {file.stem for file in (tmp_path / "train").glob("*.png")} == FIGURES | {"results"}


def test_one_class_is_evaluated_in_full_as_one_class(run, tmp_path):
    metrics = YOLOLAT(run.best).val(data=run.data, single_cls=True, project=tmp_path, **VAL)
    content = json.loads((tmp_path / "val/evaluation.json").read_text())
    assert content["confusion"]["labels"] == ["item", "background"]
    assert content["classes"][0]["AP"] == pytest.approx(metrics.coco["AP"])
    assert metrics.confusion_matrix.matrix.shape == (2, 2)


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """Ultralytics' own YOLOv8n for eight classes, untrained, as plain Ultralytics saves and exports it."""
    folder = tmp_path_factory.mktemp("stock")
    content = yaml.safe_load((ROOT / "cfg/models/v8/yolov8.yaml").read_text())
    (folder / "yolov8n.yaml").write_text(yaml.safe_dump(content | {"nc": len(CLASSES)}))
    model = YOLO(folder / "yolov8n.yaml")
    model.model.names = dict(enumerate(CLASSES))
    model.save(folder / "stock.pt")
    YOLO(folder / "stock.pt").export(format="onnx", imgsz=SIZE)
    return folder


@pytest.mark.parametrize("file", ["stock.pt", "stock.onnx"])
def test_stock_models_write_the_same(stock, shapes, tmp_path, file):
    metrics = YOLOLAT(stock / file).val(data=shapes, project=tmp_path, **VAL)
    check_written(tmp_path / "val", metrics, stock / file, shapes)


@pytest.mark.parametrize(("conf", "warned"), [(None, "0.25"), (0.001, None), (0.01, "0.01")], ids=str)
def test_a_suppression_inside_that_loses_detections_is_warned_of(run, tmp_path, caplog, conf, warned):
    shutil.copy(run.best, tmp_path / "best.pt")
    file = YOLOLAT(tmp_path / "best.pt").export(imgsz=SIZE, nms=True, **({} if conf is None else {"conf": conf}))
    caplog.clear()
    YOLOLAT(file).val(data=run.data, project=tmp_path, batch=1, rect=False, **VAL)
    warnings = [record.message for record in caplog.records if "has a suppression" in record.message]
    assert len(warnings) == (warned is not None)
    assert all(f"of confidence {warned} inside" in message for message in warnings)


def test_thresholds_that_a_file_has_inside_cannot_be_given_anew(run, tmp_path):
    shutil.copy(run.best, tmp_path / "best.pt")
    detector = YOLOLAT(YOLOLAT(tmp_path / "best.pt").export(imgsz=SIZE, nms=True, conf=0.3, iou=0.9))
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    for keys, inside in (({"iou": 0.1}, "iou=0.9"), ({"agnostic_nms": True}, "False"), ({"conf": 0.1}, "conf=0.3")):
        with pytest.raises(UserError, match=rf"^{next(iter(keys))}=.*: the file suppresses inside, at .*{inside}; exp"):
            detector.predict(image, **keys)
    with pytest.raises(UserError, match=r"^iou=0\.1: the file suppresses inside, at iou=0\.9; export with yours$"):
        detector.val(data=run.data, project=tmp_path, iou=0.1, **VAL)
    with pytest.raises(UserError, match="conf=high"):
        detector.predict(image, conf="high")
    for keys in ({}, {"iou": 0.9, "conf": 0.5}):
        assert len(detector.predict(image, verbose=False, **keys)) == 1
        assert len(detector.track(image, verbose=False, **keys)) == 1


def test_onnx_that_needs_no_suppression_writes_the_same(run, tmp_path):
    shutil.copy(run.best, tmp_path / "best.pt")
    file = YOLOLAT(tmp_path / "best.pt").export(imgsz=SIZE, nms=True, conf=0.001)
    metrics = YOLOLAT(file).val(data=run.data, project=tmp_path, **VAL)
    check_written(tmp_path / "val", metrics, file, run.data)
    assert metrics.coco["AP"] > 0.0005


def test_a_split_without_annotations_becomes_a_submission(detector, run, tmp_path):
    data = unlabelled(run.data, tmp_path)
    expected = detector.val(data=run.data, project=tmp_path / "a", **VAL)
    submission = detector.val(data=data, split="test", project=tmp_path / "b", **VAL)
    folder = tmp_path / "b/val"
    name = "detections_held_back-test_best_results"
    assert (submission.results, submission.archive) == (folder / f"{name}.json", folder / f"{name}.zip")
    with ZipFile(submission.archive) as archive:
        assert archive.namelist() == [f"{name}.json"]
        assert archive.read(f"{name}.json") == submission.results.read_bytes()
    rows = json.loads(submission.results.read_text())
    ours = json.loads((tmp_path / "a/val/predictions.json").read_text())
    assert len(rows) == len(ours) > 0
    for row, our in zip(rows, ours, strict=True):
        assert list(row) == ["image_id", "category_id", "bbox", "score"]
        assert row["bbox"] == pytest.approx(our["bbox"], abs=6e-4)
        assert row | {"bbox": 0} == our | {"bbox": 0}
    assert len({row["image_id"] for row in rows}) == 8
    assert {file.name for file in folder.iterdir()} == {f"{name}.json", f"{name}.zip", "data.yaml"}
    with pytest.raises(UserError, match=r"held_back test has no annotations.*submit .*results\.zip to the evaluation"):
        _ = submission.coco
    stats = official(run.data.parent / "annotations/val.json", submission.results)
    assert stats == pytest.approx(list(expected.coco.values()), abs=0.01)


def test_an_archive_that_cannot_be_written_whole_is_not_there(detector, run, tmp_path, monkeypatch):
    def full(archive, *args):
        archive.fp.write(b"a part")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ZipFile, "write", full)
    with pytest.raises(OSError, match="No space left"):
        detector.val(data=unlabelled(run.data, tmp_path), split="test", project=tmp_path, **VAL)
    assert {file.suffix for file in (tmp_path / "val").iterdir()} == {".json", ".yaml"}


def test_a_submission_for_coco_has_the_name_that_its_server_asks_for(detector, run, tmp_path, monkeypatch):
    data = unlabelled(run.data, tmp_path)
    real = validator.load_dataset
    monkeypatch.setattr("yolo_lat.engine.model.load_dataset", lambda name: real(data if name == "coco" else name))
    monkeypatch.setattr(validator, "load_dataset", lambda name: real(data if name == "coco" else name))
    submission = detector.val(data="coco", split="test", project=tmp_path, **VAL)
    assert submission.archive.name == "detections_test-dev2017_best_results.zip"


def test_a_submission_says_where_it_is_and_who_evaluates_it(detector, run, tmp_path, caplog):
    data = unlabelled(run.data, tmp_path)
    with caplog.at_level("INFO", logger="ultralytics"):
        validator.LOGGER.propagate = True
        try:
            submission = detector.val(data=data, split="test", project=tmp_path, **VAL)
        finally:
            validator.LOGGER.propagate = False
    message = next(line for line in caplog.messages if "has no annotations" in line)
    assert str(submission.archive) in message
    assert "on 8 images" in message
    assert "COCO evaluation server" in message
