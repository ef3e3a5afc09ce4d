"""Arguments that Ultralytics would change, ignore or trip over: one sentence each, before anything is written."""

import pytest
import torch

from yolo_lat import YOLOLAT
from yolo_lat.errors import UserError


@pytest.fixture
def detector(run):
    return YOLOLAT(run.best)


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("mode", ["train", "val", "predict", "export", "info"])
@pytest.mark.parametrize(
    ("imgsz", "wanted"),
    [(100, "use 96 or 128"), (31, "use 32 or 64"), ("abc", "use 640 or 672"), (0, "use 32 or 64"), (64.0, "64 or 96")],
)
def test_an_image_size_that_does_not_fit_the_stride_names_its_neighbours(detector, run, mode, imgsz, wanted):
    arguments = {} if mode in ("export", "info") else {"source": "x.jpg"} if mode == "predict" else {"data": run.data}
    message = refusal(getattr(detector, mode), imgsz=imgsz, **arguments)
    assert message.startswith(f"imgsz={imgsz} is not a multiple of the model's stride 32")
    assert wanted in message


def test_training_and_validation_take_one_image_size(detector, run):
    for mode in (detector.train, detector.val):
        assert "give one number" in refusal(mode, data=run.data, imgsz=[64, 96])
    assert "give one number or two" in refusal(detector.predict, "x.jpg", imgsz=[64, 96, 96])
    image = torch.zeros(1, 3, 64, 96)
    assert detector.predict(image, imgsz=[64, 96], device="cpu", verbose=False)[0].orig_shape == (64, 96)


def test_an_onnx_of_one_size_runs_at_that_size_only(onnx_file, dynamic_onnx_file):
    photo = torch.zeros(96, 96, 3, dtype=torch.uint8).numpy()
    assert "is exported for [96, 96] alone" in refusal(YOLOLAT(onnx_file).predict, photo, imgsz=64)
    YOLOLAT(onnx_file).predict(photo, imgsz=96, verbose=False)
    assert "multiple of the model's stride 32" in refusal(YOLOLAT(dynamic_onnx_file).predict, photo, imgsz=70)


@pytest.mark.parametrize("device", [0, "0", [0, 1], "cuda:0", "0,foo", "foo"])
@pytest.mark.parametrize("mode", ["train", "val", "predict", "export"])
def test_a_device_that_is_not_there_is_refused(detector, run, monkeypatch, mode, device):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    arguments = {} if mode == "export" else {"source": "x.jpg"} if mode == "predict" else {"data": run.data}
    assert f"device={device}: " in refusal(getattr(detector, mode), device=device, **arguments)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has an Apple GPU")
def test_apple_gpus_are_refused_elsewhere(detector):
    assert "device=mps" in refusal(detector.predict, "x.jpg", device="mps")


@pytest.mark.parametrize("below", ["", "/below/it"])
def test_a_run_folder_that_is_a_file_is_refused(detector, run, tmp_path, below):
    (tmp_path / "taken").touch()
    place = f"{tmp_path}/taken{below}"
    for mode in (detector.train, detector.val):
        assert f"project={place}: {tmp_path}/taken is a file" in refusal(mode, data=run.data, project=place)


@pytest.mark.parametrize("mode", ["train", "export", "info", "save"])
def test_an_exported_model_only_predicts_and_validates(onnx_file, mode):
    arguments = {"data": "shapes"} if mode == "train" else {}
    assert "static.onnx can only be run and validated" in refusal(getattr(YOLOLAT(onnx_file), mode), **arguments)


def test_data_is_one_data_set(detector, tmp_path):
    assert "data is missing" in refusal(YOLOLAT("yolo-lat-p").train)
    assert "must be one data YAML" in refusal(detector.train, data=["a.yaml", "b.yaml"])


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"format": "foo"}, "format=foo: unknown; use one of torchscript, onnx"),
        ({"format": "onx"}, "did you mean 'onnx'?"),
        ({"format": "torchscript", "opset": 17}, "argument 'opset' is not supported for format='torchscript'"),
        ({"format": "ncnn", "nms": True, "dynamic": True}, "argument 'dynamic' is not supported"),
    ],
)
def test_export_refuses_what_it_cannot_do(detector, arguments, wanted):
    assert wanted in refusal(detector.export, **arguments)
