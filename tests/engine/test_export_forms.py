"""Every form of an ONNX export, at the size and batch of the export and at others: the results are the model's."""

import ast
import shutil
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from quick import first

import yolo_lat.engine.export as export_module
from yolo_lat import YOLOLAT
from yolo_lat.deploy.onnx_half import to_half
from yolo_lat.deploy.postprocess import from_raw_output
from yolo_lat.deploy.preprocess import letterbox, to_input
from yolo_lat.engine.export_data import check_files
from yolo_lat.errors import UserError
from yolo_lat.nn.complexity import count_gflops, count_parameters

SIZE = 96
SHARED = Path(__file__).parents[2].parent / "shared/data"
KINDS = {"raw": {}, "nms": {"nms": True, "conf": 0.005, "iou": 0.5}, "best_class": {"best_class": True}}


def exported(weights: Path, folder: Path, **arguments) -> Path:
    copy = folder / f"a{weights.suffix}"
    if not copy.exists():
        shutil.copy(weights, copy)
    return Path(YOLOLAT(copy).export(imgsz=SIZE, **arguments))


def run_file(file: Path, images: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    node = session.get_inputs()[0]
    dtype = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(uint8)": np.uint8}[node.type]
    return session.run(None, {node.name: images.astype(dtype, copy=False)})[0]


def metadata(file: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(file).metadata_props}


@pytest.fixture(scope="module")
def frames(run) -> list[np.ndarray]:
    """Letterboxed (h, w, 3) bytes at sizes other than that of the export, several of them."""
    images = [cv2.imread(str(file)) for file in sorted((run.data.parent / "images/val").iterdir())]
    return [letterbox(cv2.resize(image, (300, 200)), (64, 128)).image for image in images[:3]]


def expected_raw(run, images: np.ndarray) -> np.ndarray:
    model = YOLOLAT(run.best).model.eval()
    with torch.no_grad():
        return model(torch.from_numpy(images))[0].numpy()


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
@pytest.mark.parametrize("kind", first(1, KINDS))
def test_dynamic_files_give_the_models_results_at_other_sizes_and_batches(run, frames, tmp_path, kind, half):
    file = exported(run.best, tmp_path, dynamic=True, half=half, simplify=False, **KINDS[kind])
    found = run_file(file, to_input(frames))
    assert found.dtype == (np.float16 if half else np.float32)
    found, expected = found.astype(np.float32), expected_raw(run, to_input(frames))
    pixels, score = (2, 0.02) if half else (1e-2, 1e-4)
    if kind == "raw":
        assert found.shape == expected.shape == (3, 12, 168)
        assert np.abs(found - expected)[:, :4].max() < pixels
        assert np.abs(found - expected)[:, 4:].max() < score
    elif kind == "best_class":
        assert found.shape == (3, 6, 168)
        assert np.abs(found[:, :4] - expected[:, :4]).max() < pixels
        assert np.abs(found[:, 4] - expected[:, 4:].max(axis=1)).max() < score
        named = np.take_along_axis(expected[:, 4:], found[:, 5:].astype(int), axis=1)
        assert np.abs(named - expected[:, 4:].max(axis=1, keepdims=True)).max() < score
    else:
        assert found.shape == (3, 300, 6)
        for rows, boxes in zip(found, from_raw_output(expected, 0.005, 0.5, 300), strict=True):
            if half:  # which of two near boxes is suppressed may change
                continue
            count = len(boxes.scores)
            assert count > 3
            np.testing.assert_allclose(rows[:count, :4], boxes.xyxy, atol=pixels)
            np.testing.assert_allclose(rows[:count, 4], boxes.scores, atol=score)
            assert (rows[:count, 5] == boxes.class_ids).all()
            assert not rows[count:].any()


def test_a_suppression_without_classes_and_of_a_fixed_batch(run, frames, tmp_path):
    file = exported(run.best, tmp_path, nms=True, conf=0.005, iou=0.3, max_det=7, agnostic_nms=True, batch=2)
    images = to_input([cv2.resize(frame, (SIZE, SIZE)) for frame in frames[:2]])
    found, raw = run_file(file, images), expected_raw(run, images)
    best = np.concatenate([raw[:, :4], raw[:, 4:].max(axis=1, keepdims=True)], axis=1)
    for rows, boxes in zip(found, from_raw_output(best, 0.005, 0.3, 7), strict=True):
        np.testing.assert_allclose(rows[: len(boxes.scores), :4], boxes.xyxy, atol=1e-2)
        assert rows.shape == (7, 6)
        assert not rows[len(boxes.scores) :].any()


def normalise(model: torch.nn.Module) -> None:
    """Give an untrained model the statistics of some images, without which every box is equal."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    for branch in model.model[-1].one2one_cv3:
        torch.nn.init.normal_(branch[-1].weight, std=0.003)  # scores about a half, where no two are equal
        torch.nn.init.zeros_(branch[-1].bias)
    with torch.no_grad():
        model.train()(torch.rand(8, 3, SIZE, SIZE))
    model.eval()


@pytest.mark.parametrize("name", ["yolo26n.yaml"])
@pytest.mark.slow
def test_a_head_without_nms_returns_the_best_boxes_at_smaller_and_larger_sizes(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = YOLOLAT(name)
    normalise(model.model)
    file = Path(model.export(imgsz=SIZE, nms=False, dynamic=True, simplify=False))
    model.model.end2end = True
    for size, count in ((64, 84), (160, 300)):  # of 84 and 525 anchors
        images = np.random.default_rng(0).random((2, 3, size, size), np.float32)
        found = run_file(file, images)
        with torch.no_grad():
            expected = model.model.eval()(torch.from_numpy(images))[0].numpy()
        assert found.shape == expected.shape == (2, count, 6)
        np.testing.assert_allclose(found[..., 4], expected[..., 4], atol=1e-5)
        same = np.abs(found[..., :4] - expected[..., :4]).max(axis=-1) < 0.5
        assert same.mean() > 0.9  # nearly equal scores may swap


@pytest.mark.parametrize("half", first(1, [False, True]), ids=["fp32", "fp16"])
def test_bytes_give_bit_for_bit_what_floats_give(run, frames, tmp_path, half):
    arguments = {"dynamic": True, "half": half, "simplify": False}
    plain = run_file(exported(run.best, tmp_path, **arguments), to_input(frames))
    file = exported(run.best, tmp_path, preprocess=True, **arguments)
    assert metadata(file)["preprocessing"] == "uint8-bgr-nhwc"
    np.testing.assert_array_equal(run_file(file, np.stack(frames)), plain)


@pytest.mark.parametrize("dynamic", first(1, [False, True]), ids=["static", "dynamic"])
def test_files_for_a_gpu_and_for_a_cpu_give_the_same_results(run, frames, tmp_path, dynamic):
    photos = [cv2.imread(str(file)) for file in check_files(None)]
    sizes = [(SIZE, SIZE), (64, 128), (320, 288)] if dynamic else [(SIZE, SIZE)]
    files = []
    for target in ("gpu", "cpu"):
        (tmp_path / target).mkdir()
        arguments = {"dynamic": dynamic, "batch": 1 if dynamic else len(photos), "simplify": dynamic}
        files.append(exported(run.best, tmp_path / target, target=target, **arguments))
        assert metadata(files[-1])["target"] == target
    kinds = [[node.op_type for node in onnx.load(file).graph.node] for file in files]
    assert kinds[0] != kinds[1]
    for size in sizes:
        images = to_input([letterbox(photo, size).image for photo in photos])
        gpu, cpu = (run_file(file, images) for file in files)
        assert np.abs(gpu - cpu)[:, :4].max() < 1e-3
        assert np.abs(gpu - cpu)[:, 4:].max() < 1e-5
        expected = expected_raw(run, images)
        assert np.abs(cpu - expected)[:, :4].max() < 1e-2


def test_a_file_for_a_gpu_resizes_nothing_and_one_for_a_cpu_stems_in_one_convolution(run, tmp_path):
    graphs = {target: onnx.load(exported(run.best, tmp_path, target=target)).graph for target in ("gpu", "cpu")}
    kinds = {target: {node.op_type for node in graph.node} for target, graph in graphs.items()}
    assert "Resize" not in kinds["gpu"]
    assert "Resize" in kinds["cpu"]
    stem = next(node for node in graphs["cpu"].node if node.op_type == "Conv")
    shapes = {tensor.name: list(tensor.dims) for tensor in graphs["cpu"].initializer}
    assert stem.input[0] == "images"
    assert shapes[stem.input[1]][1:] == [3, 6, 6]


TARGETS = [({}, "gpu"), ({"target": None}, "gpu"), ({"target": "cpu"}, "cpu"), ({"half": True}, "gpu")]


@pytest.mark.parametrize(
    ("arguments", "target"),
    [({}, "gpu"), ({"target": None}, "gpu"), ({"target": "cpu"}, "cpu"), ({"half": True}, "gpu")],
)
def test_the_target_is_a_gpu_unless_given(run, tmp_path, arguments, target):
    file = exported(run.best, tmp_path, simplify=False, **arguments)
    assert metadata(file)["target"] == target


def test_an_export_leaves_the_model_without_a_target(run, tmp_path):
    shutil.copy(run.best, tmp_path / "a.pt")
    model = YOLOLAT(tmp_path / "a.pt")
    model.export(imgsz=SIZE, target="cpu", simplify=False)
    assert "target" not in vars(model.model)
    assert not model.model.is_fused()


@pytest.mark.parametrize("arguments", [{"preprocess": True}, {"best_class": True}], ids=str)
def test_forms_that_ultralytics_cannot_run_are_refused(run, tmp_path, arguments):
    file = exported(run.best, tmp_path, simplify=False, **arguments)
    with pytest.raises(
        UserError, match=r"a\.onnx: (takes bytes|returns one class).* only yolo_lat\.deploy\.OnnxDetect"
    ):
        YOLOLAT(file)


def test_half_files_are_half_throughout_and_run_in_the_engine(run, tmp_path):
    file = exported(run.best, tmp_path, quantize=16)
    graph = onnx.load(file).graph
    kinds = {t.data_type for t in graph.initializer if not t.name.endswith("/float32")}  # scales of Resize
    assert kinds == {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64}
    assert not [n for n in graph.node if n.op_type == "Cast"]
    assert [v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)] == [onnx.TensorProto.FLOAT16] * 2
    arguments = {"data": run.data, "project": tmp_path, "plots": False, "rect": False, "batch": 1}
    ap = [YOLOLAT(weights).val(imgsz=SIZE, **arguments).coco["AP"] for weights in (run.best, file)]
    assert ap[0] == pytest.approx(ap[1], abs=0.005)


def test_a_weight_beyond_float16_is_an_error(run, tmp_path):
    model = onnx.load(exported(run.best, tmp_path, simplify=False))
    tensor = next(t for t in model.graph.initializer if t.name.endswith("weight"))
    for value, wanted in ((1e5, "reaches 1e+05, and float16 ends at 65504"), (np.nan, "not finite")):
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        values = np.full(tuple(tensor.dims), value, np.float32)
        target = next(t for t in changed.graph.initializer if t.name == tensor.name)
        target.CopyFrom(numpy_helper.from_array(values, tensor.name))
        with pytest.raises(UserError, match=wanted.replace("+", r"\+")):
            to_half(changed)


@pytest.mark.slow
def test_metadata_tell_what_the_file_is_and_not_where_it_was_made(run, tmp_path):
    for arguments in ({}, {"quantize": 16, "nms": True, "data": str(run.data)}):
        file = exported(run.best, tmp_path, dynamic=True, simplify=False, **arguments)
        written = metadata(file)
        values = {
            key: ast.literal_eval(written[key]) for key in ("strides", "stride", "imgsz", "names", "args", "input")
        }
        assert values["strides"] == [8, 16, 32]
        assert values["stride"] == 32
        assert values["imgsz"] == [SIZE, SIZE]
        assert values["names"] == YOLOLAT(run.best).model.names
        assert values["args"]["nms"] is arguments.get("nms")
        assert values["input"]["padding"] == 114
        assert written["license"] == "AGPL-3.0"
        assert (written["author"], written["task"]) == ("YOLO-LAT", "detect")
        assert written["precision"] == ("fp16" if arguments else "fp32")
        deployed = YOLOLAT(run.best).model.deploy()
        assert int(written["parameters"]) == count_parameters(deployed)
        assert float(written["gflops"]) == pytest.approx(count_gflops(deployed, SIZE), abs=1e-4)
        content = file.read_bytes()
        assert str(tmp_path).encode() not in content
        assert str(run.data.parent).encode() not in content
        assert b"site-packages" not in content
    again = exported(run.best, tmp_path, dynamic=True, simplify=False, **arguments)
    assert again.read_bytes() == content


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
def test_a_conversion_that_changes_the_result_writes_nothing(run, tmp_path, monkeypatch, older, half):
    right = getattr(export_module, "to_half" if half else "_settled")

    def broken(model, *arguments):
        tensor = [t for t in model.graph.initializer if len(t.dims) == 4][-1]
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array((values + 1).astype(values.dtype), tensor.name))
        return right(model, *arguments)

    if older:
        (tmp_path / "a.onnx").write_bytes(b"older")
    monkeypatch.setattr(export_module, "to_half" if half else "_settled", broken)
    with pytest.raises(
        UserError, match=rf"the fp{16 if half else 32} file differs from PyTorch by .*nothing was written"
    ):
        exported(run.best, tmp_path, half=half, simplify=False)
    assert {path.name for path in tmp_path.iterdir()} == {"a.pt"} | ({"a.onnx"} if older else set())


@pytest.mark.parametrize(
    ("step", "kind"), [("embed_nms", "nms"), ("best_class", "best_class"), ("take_bytes", "bytes")]
)
def test_a_step_after_the_network_that_changes_the_result_writes_nothing(run, tmp_path, monkeypatch, step, kind):
    """Steps that confuse two axes of the right size: sizes for centres, a class for its neighbour, red for blue."""
    right = getattr(export_module, step)

    def broken(model, *arguments):
        model = right(model, *arguments)
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if step == "take_bytes" and values.tolist() == [2, 1, 0]:
                tensor.CopyFrom(numpy_helper.from_array(np.array([0, 1, 2]), tensor.name))
            if step == "embed_nms" and values.tolist() == [0.5]:
                tensor.CopyFrom(numpy_helper.from_array(np.array([0.9], np.float32), tensor.name))
        for node in model.graph.node:
            if step == "best_class" and node.op_type == "ArgMax":
                node.op_type = "ArgMin"
        return model

    monkeypatch.setattr(export_module, step, broken)
    arguments = {**KINDS, "bytes": {"preprocess": True}}[kind]
    with pytest.raises(UserError, match="output of the file is not that of the network in it; nothing was written"):
        exported(run.best, tmp_path, data=str(run.data), simplify=False, **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"quantize": 8}, "quantize=8 calibrates on images; give data="),
        ({"int8": True}, "quantize=8 calibrates on images; give data="),
        ({"nms": False}, "nms=False: .* has no head that works without NMS"),
        ({"end2end": True}, "end2end=True: .* has no head that works without NMS"),
        ({"best_class": True, "nms": True}, "best_class=True is for raw outputs"),
        ({"best_class": 3}, "best_class=3: must be True or False"),
        ({"preprocess": True, "format": "torchscript"}, "argument 'preprocess' is for format=onnx"),
        ({"opset": 12}, "opset=12: too old"),
        ({"target": "tpu"}, r"^target=tpu: must be gpu or cpu$"),
        ({"target": True}, r"^target=True: must be gpu or cpu$"),
        ({"target": "cpu", "format": "torchscript"}, "argument 'target' is for format=onnx"),
    ],
    ids=str,
)
def test_arguments_that_do_not_go_together(run, tmp_path, arguments, wanted):
    with pytest.raises(UserError, match=wanted):
        exported(run.best, tmp_path, **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
def test_photographs_give_the_models_boxes(run, tmp_path, half, dynamic):
    photos = sorted((SHARED / "coco_ccby/images").glob("*.jpg"))
    if not photos:
        pytest.skip(f"no {SHARED / 'coco_ccby'}; the two photographs of every export are tested all the same")
    file = exported(run.best, tmp_path, half=half, dynamic=dynamic)
    size = (160, 224) if dynamic else (SIZE, SIZE)
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    model = YOLOLAT(run.best).model.eval()
    for photo in photos:
        images = to_input([letterbox(cv2.imread(str(photo)), size).image])
        with torch.no_grad():
            expected = model(torch.from_numpy(images))[0].numpy()[0]
        (found,) = session.run(None, {"images": images.astype(np.float16 if half else np.float32)})
        away = np.abs(found[0].astype(np.float32) - expected)
        best = np.argsort(-expected[4:].max(axis=0))[: 300 if half else None]
        assert away[:4, best].max() <= (2 if half else 0.5), photo
        assert away[4:, best].max() <= (0.02 if half else 0.01), photo


@pytest.mark.parametrize("target", ["gpu", "cpu"])
def test_a_model_with_distributions_of_distances_takes_any_batch_and_size(target, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = YOLOLAT("yolo-lat-n-voc12").export(imgsz=64, dynamic=True, target=target)
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).random((3, 3, 64, 96), np.float32)
    (together,) = session.run(None, {"images": images})
    alone = [session.run(None, {"images": image[None]})[0] for image in images]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-3, atol=1e-3)
