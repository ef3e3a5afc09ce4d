"""ONNX files of a trained model: the boxes of the detector without torch are those of the model itself."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch

from yolo_lat import YOLOLAT
from yolo_lat.deploy import OnnxDetector
from yolo_lat.errors import UserError

LOW = {"conf": 0.005, "iou": 0.5, "device": "cpu", "verbose": False, "rect": False}


@pytest.fixture(scope="module")
def photos(run) -> list[np.ndarray]:
    """Images of the kind that the detector was trained on, wide, high and enlarged, so that it finds something."""
    files = sorted((run.data.parent / "images/val").iterdir())
    sizes = [(300, 200), (170, 330), (640, 480), (96, 96)]
    return [cv2.resize(cv2.imread(str(file)), size) for file, size in zip(files, sizes, strict=False)]


def assert_same(found, boxes, pixels: float = 0.5, score: float = 0.01) -> int:
    """Every box has its twin on the other side, whatever the order; at the threshold one may miss its twin."""
    sure = boxes.conf.numpy() > LOW["conf"] + 1e-4
    same = abs(found.boxes_xyxy[:, None] - boxes.xyxy.numpy()).max(-1) <= pixels
    same &= abs(found.scores[:, None] - boxes.conf.numpy()) <= score
    same &= found.class_ids[:, None] == boxes.cls.numpy()
    assert same[:, sure].any(0).all()
    assert same[found.scores > LOW["conf"] + 1e-4].any(1).all()
    return sure.sum()


def compare(run, file, photos, imgsz: int) -> None:
    detector, model = OnnxDetector(file, conf=LOW["conf"], iou=LOW["iou"], imgsz=imgsz), YOLOLAT(run.best)
    assert sum(assert_same(detector(p), model.predict(p, imgsz=imgsz, **LOW)[0].boxes) for p in photos) > 10


@pytest.mark.parametrize("kind", ["onnx_file", "dynamic_onnx_file"])
def test_onnx_gives_the_boxes_of_the_model(run, kind, photos, request):
    compare(run, request.getfixturevalue(kind), photos, 96)


@pytest.mark.parametrize("imgsz", [192, 256])
def test_dynamic_onnx_gives_the_boxes_of_the_model_at_another_size(run, dynamic_onnx_file, photos, imgsz):
    compare(run, dynamic_onnx_file, photos, imgsz)
    detector = OnnxDetector(dynamic_onnx_file, conf=0.05, imgsz=imgsz)
    for alone, together in zip(map(detector, photos), detector(photos), strict=True):
        np.testing.assert_allclose(together.boxes_xyxy, alone.boxes_xyxy, atol=1e-2)


@pytest.mark.parametrize("kind", ["onnx_file", "dynamic_onnx_file"])
def test_the_engine_runs_the_file(run, kind, photos, request):
    model, exported = YOLOLAT(run.best), YOLOLAT(request.getfixturevalue(kind))
    for photo in photos:
        (result,) = exported.predict(photo, imgsz=96, **LOW)
        expected = model.predict(photo, imgsz=96, **LOW)[0].boxes
        assert len(result) == pytest.approx(len(expected), abs=1)
        np.testing.assert_allclose(result.boxes.conf[:3].numpy(), expected.conf[:3].numpy(), atol=0.01)
        np.testing.assert_allclose(result.boxes.xyxy[:3].numpy(), expected.xyxy[:3].numpy(), atol=0.5)
        assert result.names == model.names


def test_the_file_runs_at_the_size_it_was_exported_for_unless_told(dynamic_onnx_file, photos):
    model = YOLOLAT(dynamic_onnx_file)
    model.predict(photos[0], **LOW)
    assert list(model.predictor.imgsz) == [96, 96]


def test_opset_and_place(run, tmp_path):
    shutil.copy(run.best, tmp_path / "a.pt")
    assert YOLOLAT(tmp_path / "a.pt").export(imgsz=96, simplify=False) == str(tmp_path / "a.onnx")
    model = onnx.load(tmp_path / "a.onnx")
    assert model.opset_import[0].version == 18
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 96, 96]
    YOLOLAT(tmp_path / "a.pt").export(imgsz=[64, 96], opset=17, batch=2, simplify=False)
    model = onnx.load(tmp_path / "a.onnx")
    assert model.opset_import[0].version == 17
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [2, 3, 64, 96]


def test_safetensors_export_beside_themselves(run, photos, tmp_path):
    shutil.copy(run.safetensors, tmp_path / "a.safetensors")
    file = YOLOLAT(tmp_path / "a.safetensors").export(imgsz=96, simplify=False)
    assert file == str(tmp_path / "a.onnx")
    compare(run, file, photos, 96)


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("wrote", [False, True])
def test_an_export_that_fails_leaves_nothing_but_an_older_file(run, tmp_path, monkeypatch, older, wrote):
    shutil.copy(run.best, tmp_path / "a.pt")
    if older:
        (tmp_path / "a.onnx").write_bytes(b"older")

    def fail(model, images, file, **_):
        if wrote:
            Path(file).write_bytes(b"half a fi")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(OSError, match="No space"):
        YOLOLAT(tmp_path / "a.pt").export(imgsz=96)
    assert {path.name for path in tmp_path.iterdir()} == {"a.pt"} | ({"a.onnx"} if older else set())
    assert not older or (tmp_path / "a.onnx").read_bytes() == b"older"


@pytest.mark.parametrize("older", [False, True])
def test_an_export_to_another_format_leaves_no_half_file(run, tmp_path, monkeypatch, older):
    shutil.copy(run.best, tmp_path / "a.pt")
    if older:
        (tmp_path / "a.torchscript").write_bytes(b"older")

    def fail(*_, **__):
        (tmp_path / "a.torchscript").write_bytes(b"half a fi")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.jit, "trace", fail)
    with pytest.raises(OSError, match="No space"):
        YOLOLAT(tmp_path / "a.pt").export(imgsz=96, format="torchscript")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_a_format_whose_package_is_missing_is_the_users_to_mend(run, tmp_path, monkeypatch):
    shutil.copy(run.best, tmp_path / "a.pt")

    def missing(*_, **__):
        raise ModuleNotFoundError("No module named 'onnxslim'")

    monkeypatch.setattr(torch.onnx, "export", missing)
    with pytest.raises(UserError, match="format=onnx: No module named 'onnxslim'; install that package first"):
        YOLOLAT(tmp_path / "a.pt").export(imgsz=96)
