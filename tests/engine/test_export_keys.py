"""What an argument of an export does to the format asked for, or one sentence where it would do nothing."""

import shutil

import pytest
import torch
from ultralytics.engine.exporter import export_formats

from yolo_lat import YOLOLAT
from yolo_lat.engine.arguments import check_export
from yolo_lat.errors import UserError

FORMATS = export_formats()["Argument"][1:]
CALIBRATED = ("edgetpu", "imx", "axelera", "deepx", "qnn", "hailo", "xilinx")  # whatever is asked for
DATA = {"data": "my.yaml"}
INT8 = {"quantize": 8, **DATA}


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    """Let every format be there to be chosen."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def formats_that_take(**arguments) -> set[str]:
    """Return the formats that take some arguments, data to calibrate on with those that need some."""
    return {form for form in FORMATS if takes(form, arguments)}


def takes(form: str, arguments: dict[str, object]) -> bool:
    try:
        check_export({"format": form, **(DATA if form in CALIBRATED else {}), **arguments})
    except UserError:
        return False
    return True


def refusal(**arguments) -> str:
    with pytest.raises(UserError) as caught:
        check_export(arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_format_exports_with_nothing_more_than_its_name():
    assert formats_that_take() == set(FORMATS)


@pytest.mark.parametrize(
    ("arguments", "formats"),
    [
        ({"dynamic": True}, "torchscript onnx openvino engine coreml mnn"),
        ({"optimize": True}, "deepx"),
        ({"workspace": 4}, "engine"),
        ({"opset": 17}, "onnx engine saved_model pb edgetpu mnn rknn deepx qnn ascend xilinx"),
        ({"simplify": False}, "onnx engine mnn rknn deepx qnn hailo ascend xilinx"),
        ({"quantize": 16}, "torchscript onnx openvino engine coreml coreai mnn ncnn rknn ascend"),
        ({"half": True}, "torchscript onnx openvino engine coreml coreai mnn ncnn rknn ascend"),
        (INT8, "onnx openvino engine saved_model edgetpu litert imx rknn axelera deepx hailo xilinx"),
        ({"int8": True, **DATA}, "onnx openvino engine saved_model edgetpu litert imx rknn axelera deepx hailo xilinx"),
        (DATA, f"onnx {' '.join(CALIBRATED)}"),
        ({"nms": True}, "torchscript onnx openvino engine coreml saved_model mnn imx ascend"),
        ({"nms": True, "conf": 0.1}, "torchscript onnx openvino engine coreml saved_model mnn imx ascend"),
        ({"conf": 0.1}, "imx hailo"),
        ({"iou": 0.5}, "imx hailo openvino"),
        ({"max_det": 10}, "imx axelera"),
        ({"agnostic_nms": True}, "imx axelera"),
        ({"name": "chip"}, "rknn qnn hailo ascend xilinx"),
        ({"batch": 4}, "torchscript onnx openvino engine coreml coreai saved_model pb litert paddle mnn ncnn rknn"
        " executorch axelera qnn ascend"),
        ({"split": "train"}, "imx edgetpu axelera deepx qnn hailo xilinx"),
        ({"split": "train", **INT8}, "openvino engine saved_model edgetpu litert imx rknn axelera deepx hailo xilinx"),
        ({"preprocess": True}, "onnx"),
    ],
    ids=str,
)  # fmt: skip
def test_arguments_are_refused_where_they_would_change_nothing(arguments, formats):
    assert formats_that_take(**arguments) == set(formats.split())


def test_a_head_without_nms_is_refused_where_the_exporter_would_take_the_other():
    without = {"rknn", "ncnn", "executorch", "paddle", "imx", "edgetpu", "qnn"}
    assert formats_that_take(nms=False) == formats_that_take(end2end=True) == set(FORMATS) - without
    assert formats_that_take(nms=False, max_det=10) == set(FORMATS) - without
    assert "litert" not in formats_that_take(nms=False, quantize=8, **DATA)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"format": "openvino", **DATA}, "data=my.yaml: is for calibration; add quantize=8, or drop data"),
        ({"format": "onnx", "fraction": 0.5}, "fraction=0.5: is for calibration; add quantize=8, or drop fraction"),
        ({"format": "engine", "quantize": 8}, "quantize=8 calibrates on images; give data= a data YAML or the name of"),
        ({"format": "hailo"}, "format=hailo calibrates on images; give data= a data YAML or the name of a data set"),
        ({"format": "onnx", "split": "train", **INT8}, "split=train: format=onnx calibrates on training images; leave"),
        ({"format": "openvino", "split": "test"}, "split=test: format=openvino calibrates on nothing; leave it out"),
        ({"format": "ncnn", "nms": True}, "nms=True: format=ncnn has no suppression inside; leave it out"),
        (
            {"format": "ncnn", "nms": False},
            "nms=False: format=ncnn cannot hold the head that needs no NMS; leave it out",
        ),
        ({"format": "onnx", "conf": 0.1}, "conf=0.1: is for a suppression inside; add nms=True, or drop conf"),
        ({"format": "ncnn", "iou": 0.1}, "iou=0.1: is for a suppression inside; format=ncnn has none, so drop iou"),
        (
            {"format": "onnx", "max_det": 9},
            "max_det=9: is for a file that returns final boxes, and this one leaves them",
        ),
        ({"format": "onnx", "name": "a"}, "name=a: is a processor, which format=onnx does not ask for; leave it out"),
        ({"format": "engine", "device": "cpu"}, "format=engine: TensorRT builds for a GPU, on that GPU; choose one"),
    ],
    ids=str,
)
def test_the_sentence_says_what_would_make_sense(arguments, wanted):
    assert refusal(**arguments).startswith(wanted)


def test_a_gpu_that_is_not_there_builds_no_engine(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert refusal(format="engine").startswith("format=engine: TensorRT builds for a GPU")


def test_what_the_exporter_itself_asserts_is_one_sentence(run, tmp_path):
    weights = shutil.copy(run.best, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"^format=coreml: batch sizes > 1 are not supported without 'dynamic=True'"):
        YOLOLAT(weights).export(format="coreml", batch=2, imgsz=64, device="cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_what_is_written_obeys_the_arguments(run, tmp_path):
    weights = shutil.copy(run.best, tmp_path / "a.pt")
    file = YOLOLAT(weights).export(format="torchscript", imgsz=64, device="cpu", nms=True, max_det=7, batch=2)
    assert torch.jit.load(file)(torch.zeros(2, 3, 64, 64)).shape == (2, 7, 6)
