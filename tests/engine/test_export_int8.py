"""INT8 files: which weights and operators are integers, what they were calibrated on, and what they cost."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import yolo_lat.engine.export as export_module
from yolo_lat import YOLOLAT
from yolo_lat.engine.export_data import calibration_files
from yolo_lat.errors import UserError


def export(run, folder: Path, **arguments) -> tuple[YOLOLAT, Path]:
    shutil.copy(run.best, folder / "a.pt")
    model = YOLOLAT(folder / "a.pt")
    return model, Path(model.export(imgsz=96, data=str(run.data), **arguments))


@pytest.fixture(scope="module")
def quantised(run, tmp_path_factory):
    return export(run, tmp_path_factory.mktemp("int8"), int8=True)


def test_weights_have_a_scale_for_every_output_channel(quantised):
    graph = onnx.load(quantised[1]).graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    maker = {output: node for node in graph.node for output in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    integer = [node for node in convolutions if maker.get(node.input[1]) is not None]
    assert len(convolutions) - len(integer) == 6  # those that predict boxes and scores, on three levels
    for node in integer:
        weights, scale, zero = (constants[name] for name in maker[node.input[1]].input)
        assert weights.dtype == np.int8
        assert scale.shape == (weights.shape[0],)
        assert len(np.unique(scale)) > 1
        assert not zero.any()
        assert np.abs(weights.astype(int)).max() <= 64  # 7 bits: no overflow where there is no VNNI


def test_attention_and_decoding_stay_in_floating_point(quantised):
    graph = onnx.load(quantised[1]).graph
    rounded = {name for node in graph.node if node.op_type == "QuantizeLinear" for name in node.input}
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    assert {"Conv", "Relu", "Add"} & {made_by.get(name) for name in rounded}
    assert not {"Exp", "MatMul", "Div", "Sigmoid", "ReduceMax", "Concat"} & {made_by.get(name) for name in rounded}


def test_the_loss_of_ap_is_reported(quantised, run, caplog, tmp_path):
    model, file = quantised
    before, after = model.exported.ap
    assert file.name == "a_int8.onnx"
    assert f"AP {before:.4f} in fp32 and {after:.4f} in INT8" in str(model.exported)
    arguments = {"data": run.data, "plots": False, "project": tmp_path}
    assert YOLOLAT(run.best).val(imgsz=96, rect=False, **arguments).coco["AP"] == pytest.approx(before, abs=0.01)
    assert YOLOLAT(file).val(**arguments).coco["AP"] == pytest.approx(after, abs=0.01)
    assert 0.5 * before <= after
    assert [path.name for path in file.parent.iterdir() if path.suffix == ".onnx"] == ["a_int8.onnx"]


def test_an_integer_file_that_is_broken_is_refused(run, tmp_path, monkeypatch):
    right = export_module.quantise

    def broken(*arguments):
        model = right(*arguments)
        for tensor in model.graph.initializer:
            if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 4:
                values = numpy_helper.to_array(tensor)
                tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(values), tensor.name))
        return model

    monkeypatch.setattr(export_module, "quantise", broken)
    with pytest.raises(UserError, match=r"quantize=8: AP falls from|the int8 file differs"):
        export(run, tmp_path, quantize=8)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize(("fraction", "count"), [(None, 24), (1.0, 24), (0.5, 12), (5, 5), (1000, 24)])
def test_calibration_draws_training_images(run, fraction, count):
    files = calibration_files(str(run.data), fraction)
    assert len(files) == len(set(files)) == count
    assert {file.parent.name for file in files} == {"train"}
    assert files == calibration_files(str(run.data), fraction)


@pytest.mark.parametrize("fraction", [0, -1, [0.5], "half"])
def test_a_fraction_that_is_none(run, fraction):
    with pytest.raises(UserError, match="give a share of the training images"):
        calibration_files(str(run.data), fraction)
