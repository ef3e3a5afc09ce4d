"""The ONNX detector against Ultralytics on real photos, and every way in which it refuses its input."""

import contextlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hand_made_onnx import COLOURS, NAMES, colour_detector, fixed_output, raw_output, save
from onnx import TensorProto, helper
from onnxruntime.transformers.float16 import convert_float_to_float16
from ultralytics import YOLO
from ultralytics.utils import ASSETS

from yolo_lat.deploy import Detections, OnnxDetector, onnx_detector
from yolo_lat.deploy.preprocess import letterbox, to_input
from yolo_lat.deploy.runner import Runner
from yolo_lat.deploy.session import SessionSettings, open_session
from yolo_lat.errors import UserError

PHOTOS = [cv2.imread(str(ASSETS / name)) for name in ("bus.jpg", "zidane.jpg")]
SIZE = 320


def lively_model(yaml: str) -> YOLO:
    """A random network whose normalisation fits the photos and whose scores straddle the threshold of 0.25."""
    torch.manual_seed(0)
    model = YOLO(yaml)
    for module in model.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # statistics become those of the one batch below
    photos = torch.from_numpy(to_input([letterbox(photo, (SIZE, SIZE)).image for photo in PHOTOS]))
    head = model.model.model[-1]
    with torch.no_grad():
        model.model.train()(photos)
        for level in [*head.cv3, *getattr(head, "one2one_cv3", [])]:
            level[-1].bias.fill_(-2)
    model.model.eval()
    return model


def export(model: YOLO, path: Path, **arguments) -> Path:
    with contextlib.chdir(path.parent):  # the exporter writes into the working directory
        return Path(model.export(format="onnx", imgsz=SIZE, opset=18, **arguments)).rename(path)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Exported file and the torch predictions on the photos, for each kind of export."""
    folder = tmp_path_factory.mktemp("onnx")
    v8, v26 = lively_model("yolov8n.yaml"), lively_model("yolo26n.yaml")
    files = {
        "static": export(v8, folder / "static.onnx", dynamic=False),
        # Unsimplified files are quicker to make, and leave more axes of the output without a size.
        "dynamic": export(v8, folder / "dynamic.onnx", dynamic=True, simplify=False),
        "embedded-nms": export(v8, folder / "embedded.onnx", dynamic=True, nms=True, simplify=False),
        "nms-free": export(v26, folder / "nms-free.onnx", dynamic=False, nms=False),
        "nms-free-dynamic": export(v26, folder / "nms-free-dynamic.onnx", dynamic=True, nms=False, simplify=False),
    }
    settings = {"imgsz": SIZE, "rect": False, "conf": 0.25, "iou": 0.7, "verbose": False}
    v8_results = [result.boxes for result in v8.predict(PHOTOS, **settings)]
    v26_results = [result.boxes for result in v26.predict(PHOTOS, nms=False, **settings)]
    return {kind: (file, v26_results if "free" in kind else v8_results) for kind, file in files.items()}


def assert_close(found: Detections, expected, pixels: float = 0.5, score: float = 0.01) -> None:
    """Compare with Ultralytics' boxes or with other detections, whatever the order of boxes that score the same."""
    if isinstance(expected, Detections):
        boxes, scores, classes = expected.boxes_xyxy, expected.scores, expected.class_ids
    else:
        boxes, scores, classes = (values.numpy() for values in (expected.xyxy, expected.conf, expected.cls))
    assert len(found) == len(boxes) > 5
    same = abs(found.boxes_xyxy[:, None] - boxes).max(-1) <= pixels
    same &= abs(found.scores[:, None] - scores) <= score
    same &= found.class_ids[:, None] == classes
    assert same.any(0).all()
    assert same.any(1).all()
    assert (np.diff(found.scores) <= 0).all()


@pytest.mark.parametrize("kind", ["static", "dynamic", "embedded-nms", "nms-free", "nms-free-dynamic"])
def test_detections_equal_those_of_torch(models, kind):
    file, expected = models[kind]
    detector = OnnxDetector(file, conf=0.25, iou=0.7, threads=1)
    found = detector(PHOTOS)  # of two sizes, and more than a static model takes at once
    for ours, theirs, photo in zip(found, expected, PHOTOS, strict=True):
        assert_close(ours, theirs)
        assert_close(detector(photo), ours, pixels=1e-2, score=1e-4)
    assert len(set(found[0].class_ids.tolist())) > 2
    assert found[0].names[0] == "0"  # what a YAML without names gets
    assert detector.imgsz == (SIZE, SIZE)


def recorded_batches(monkeypatch) -> list[int]:
    """The batch size of every run from now on."""
    batches, run = [], Runner.run
    monkeypatch.setattr(Runner, "run", lambda self: batches.append(self.input.shape[0]) or run(self))
    return batches


def test_dynamic_model_takes_another_size_and_a_list_as_one_batch(models, monkeypatch):
    detector, batches = OnnxDetector(models["dynamic"][0], imgsz=(256, 384)), recorded_batches(monkeypatch)
    for found, photo in zip(detector(PHOTOS), PHOTOS, strict=True):
        assert_close(detector(photo), found)
    assert batches == [2, 1, 1]
    assert {runner.input.shape[1:] for runner in detector._pool._idle} == {(3, 256, 384)}


def test_threads_bounds_the_cpu_threads(models):
    session = OnnxDetector(models["static"][0], threads=1)._session
    assert session.get_session_options().intra_op_num_threads == 1


def test_conf_iou_and_max_det_are_applied(models):
    file = models["static"][0]
    everything = OnnxDetector(file, conf=0.2, iou=1.0)(PHOTOS[1])
    confident = OnnxDetector(file, conf=0.3, iou=1.0)(PHOTOS[1])
    sparse = OnnxDetector(file, conf=0.2, iou=0.1)(PHOTOS[1])
    assert 300 > len(everything) > max(len(confident), len(sparse)) > 0
    assert confident.scores.min() > 0.3
    assert len(OnnxDetector(file, max_det=3)(PHOTOS[1])) == 3
    assert len(OnnxDetector(file, conf=1.0)(PHOTOS[1])) == 0
    assert OnnxDetector(file)([]) == []


def test_half_precision_model_gets_half_precision_input(models, tmp_path):
    file, expected = models["static"]
    half = convert_float_to_float16(onnx.load(file))
    onnx.save(half, tmp_path / "half.onnx")
    assert half.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT16
    found, expected = OnnxDetector(tmp_path / "half.onnx")(PHOTOS[0]), expected[0]
    # Half precision moves scores across the threshold and boxes across each other: compare box by box.
    distance = abs(found.boxes_xyxy[:, None] - expected.xyxy.numpy()).max(-1).min(0)
    assert (distance < 5).mean() > 0.9
    assert found.scores.dtype == np.float32


def test_threads_share_one_detector(models):
    detector = OnnxDetector(models["static"][0], threads=1)
    expected = detector(PHOTOS)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(detector, PHOTOS * 6))
    for ours, theirs in zip(found, expected * 6, strict=True):
        np.testing.assert_array_equal(ours.boxes_xyxy, theirs.boxes_xyxy)


def test_torch_and_ultralytics_are_never_imported(models):
    script = (
        "import sys, cv2; from yolo_lat.deploy import OnnxDetector\n"
        f"image = cv2.imread({str(ASSETS / 'bus.jpg')!r})\n"
        f"found = OnnxDetector({str(models['static'][0])!r})(image); found.draw(image)\n"
        "loaded = {name.partition('.')[0] for name in sys.modules} & {'torch', 'torchvision', 'ultralytics'}\n"
        "assert not loaded, loaded\n"
        "print(len(found))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) == len(models["static"][1][0])


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or "CUDAExecutionProvider" not in ort.get_available_providers(), reason="no CUDA"
)
@pytest.mark.parametrize("cuda_graph", [False, True], ids=["plain", "graph"])
@pytest.mark.parametrize("kind", ["static", "dynamic", "nms-free"])
def test_cuda_equals_cpu(models, kind, cuda_graph):
    file = models[kind][0]
    on_gpu, on_cpu = OnnxDetector(file, device="cuda:0", cuda_graph=cuda_graph), OnnxDetector(file)
    for images in (PHOTOS, PHOTOS[1:], PHOTOS * 2 + PHOTOS[:1]):
        for ours, theirs in zip(on_gpu(images), on_cpu(images), strict=True):
            assert_close(ours, theirs)


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or "CUDAExecutionProvider" not in ort.get_available_providers(), reason="no CUDA"
)
@pytest.mark.parametrize("cuda_graph", [False, True], ids=["plain", "graph"])
def test_threads_share_one_detector_on_cuda(models, cuda_graph):
    detector = OnnxDetector(models["dynamic"][0], device="cuda:0", cuda_graph=cuda_graph)
    lists = [PHOTOS, PHOTOS[:1], PHOTOS * 2, PHOTOS[1:]] * 5
    expected = [detector(images) for images in lists]
    with ThreadPoolExecutor(2) as pool:
        for ours, theirs in zip(pool.map(detector, lists), expected, strict=True):
            for one, other in zip(ours, theirs, strict=True):
                assert_close(one, other, pixels=1e-2, score=1e-4)


def coloured(seed: int, height: int = 64, width: int = 64) -> np.ndarray:
    """Blocks of 8 px, each mostly of one colour."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 60, (-(-height // 8), -(-width // 8), 3), np.uint8)
    np.put_along_axis(blocks, rng.integers(0, 3, (*blocks.shape[:2], 1)), rng.integers(90, 250, (1, 1, 1)), axis=2)
    return np.kron(blocks, np.ones((8, 8, 1), np.uint8))[:height, :width]


def assert_equal(found: Detections, expected: Detections) -> None:
    for field in ("boxes_xyxy", "scores", "class_ids"):
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field), strict=True)


def test_the_colour_detector_finds_colours(tmp_path):
    """What the tests below rely on: its boxes follow the image."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[8:16, 24:32], image[40:48, 0:8] = (0, 0, 255), (204, 0, 0)
    found = OnnxDetector(colour_detector(tmp_path / "m.onnx"))(image)
    np.testing.assert_array_equal(found.boxes_xyxy, [[23, 7, 33, 17], [0, 39, 9, 49]])
    assert [found.names[i] for i in found.class_ids.tolist()] == ["red", "blue"]
    np.testing.assert_allclose(found.scores, [1, 0.8], rtol=1e-6)


@pytest.mark.parametrize("batch", ["batch", 2], ids=["dynamic", "fixed"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_bytes_in_and_best_class_out_change_nothing(tmp_path, dtype, batch):
    images = [coloured(1), coloured(2, 50, 100), coloured(3, 200, 40)]
    plain = OnnxDetector(colour_detector(tmp_path / "m.onnx", batch, dtype))(images)
    assert all(len(found) > 5 for found in plain)
    assert len({found.class_ids.tobytes() for found in plain}) == 3
    for takes_bytes, best_class in ((True, False), (False, True), (True, True)):
        path = colour_detector(tmp_path / "other.onnx", batch, dtype, takes_bytes, best_class)
        for found, expected in zip(OnnxDetector(path)(images), plain, strict=True):
            if dtype is np.float16 and takes_bytes:  # ONNX Runtime joins steps of the graph and rounds fewer times
                assert_close(found, expected, pixels=0, score=1e-3)
            else:
                assert_equal(found, expected)


def test_a_list_runs_in_parts_no_larger_than_allowed(tmp_path, monkeypatch):
    images = [coloured(seed) for seed in range(35)]
    whole = OnnxDetector(colour_detector(tmp_path / "m.onnx"))
    parts = OnnxDetector(tmp_path / "m.onnx", max_batch=4)
    alone = [whole(image) for image in images]
    batches = recorded_batches(monkeypatch)
    for detector, expected in ((whole, [32, 3]), (parts, [4] * 8 + [3])):
        for found, image_alone in zip(detector(images), alone, strict=True):
            assert_equal(found, image_alone)
        assert batches == expected
        batches.clear()


@pytest.mark.parametrize(
    ("metadata", "batches"),
    [({}, [3]), ({"args": "{'nms': True}"}, [1, 1, 1]), ({"args": "{'nms': True}", "output": "nms"}, [3])],
    ids=["raw", "unrolled-nms", "our-nms"],
)
def test_suppression_inside_the_graph_may_fix_the_batch(tmp_path, monkeypatch, metadata, batches):
    model = onnx.load(colour_detector(tmp_path / "m.onnx"))
    helper.set_model_props(model, COLOURS | metadata | {"preprocessing": "{'colour': 'RGB', 'scale': '1/255'}"})
    onnx.save(model, tmp_path / "m.onnx")
    detector, found = OnnxDetector(tmp_path / "m.onnx"), recorded_batches(monkeypatch)
    detector([coloured(seed) for seed in range(3)])
    assert found == batches


def test_a_cuda_graph_is_made_for_few_batch_sizes(tmp_path, monkeypatch):
    """On the CPU, with what decides about batches told that there is a graph."""
    monkeypatch.setattr(onnx_detector, "open_session", lambda path, device, settings: open_session(path, device))
    images = [coloured(seed) for seed in range(20)]
    path = colour_detector(tmp_path / "m.onnx")
    detector, alone = OnnxDetector(path, cuda_graph=True, max_batch=12), OnnxDetector(path)
    expected = [alone(image) for image in images]
    batches = recorded_batches(monkeypatch)
    for count, runs in ((1, [1]), (2, [2]), (3, [4]), (5, [8]), (8, [8]), (9, [12]), (12, [12]), (20, [12, 8])):
        for found, image_alone in zip(detector(images[:count]), expected, strict=False):
            assert_equal(found, image_alone)
        assert batches == runs
        batches.clear()


@pytest.mark.parametrize("kind", [{}, {"takes_bytes": True}, {"batch": 2}], ids=["float", "bytes", "fixed"])
def test_threads_with_lists_of_every_length_get_their_own_results(tmp_path, kind):
    detector = OnnxDetector(colour_detector(tmp_path / "m.onnx", **kind), threads=1)
    lists = [[coloured(10 * i + j, 40 + 7 * i, 90 - 5 * j) for j in range(1 + i % 6)] for i in range(12)]
    expected = [[detector(image) for image in images] for images in lists]
    assert len({found.boxes_xyxy.tobytes() + found.scores.tobytes() for row in expected for found in row}) > 30
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(detector, lists * 20))
    for found, wanted in zip(results, expected * 20, strict=True):
        for ours, theirs in zip(found, wanted, strict=True):
            assert_equal(ours, theirs)


def test_boxes_come_back_in_pixels_of_the_original(tmp_path):
    detector = OnnxDetector(fixed_output(tmp_path / "m.onnx", raw_output(), NAMES))
    found = detector(np.zeros((128, 256, 3), np.uint8))  # a quarter of its size, 16 pixels of grey above and below
    np.testing.assert_allclose(found.boxes_xyxy, [[108, 24, 148, 104]])
    assert (found.scores.tolist(), found.class_ids.tolist()) == ([np.float32(0.9)], [1])
    assert found.names == {0: "cat", 1: "dog"}


def test_a_fixed_batch_is_filled_up(tmp_path):
    path = fixed_output(tmp_path / "m.onnx", raw_output(batch=2), NAMES, input_shape=(2, 3, 64, 64))
    widths = [np.diff(found.boxes_xyxy[0, [0, 2]]).item() for found in OnnxDetector(path)([PHOTOS[0][:64, :64]] * 3)]
    assert widths == [10, 20, 10]


def test_a_list_needs_a_result_for_each_image(tmp_path):
    path = fixed_output(tmp_path / "m.onnx", raw_output(), NAMES, input_shape=("batch", 3, 64, 64))
    assert len(OnnxDetector(path)([PHOTOS[0]])) == 1
    with pytest.raises(UserError, match=r"m\.onnx takes 2 images at once and answers for 1; pass them one by one"):
        OnnxDetector(path)(PHOTOS)
    assert len(OnnxDetector(path, max_batch=1)(PHOTOS)) == 2


@pytest.mark.parametrize("names", [{}, {"names": "['0', '1']"}], ids=["none", "list"])
def test_names_default_to_numbers_and_may_be_a_list(tmp_path, names):
    detector = OnnxDetector(fixed_output(tmp_path / "m.onnx", raw_output(), names))
    assert detector.names == {0: "0", 1: "1"}


def test_ids_of_names_may_be_texts_and_names_numbers(tmp_path):
    path = fixed_output(tmp_path / "m.onnx", raw_output(), NAMES | {"names": "{'0': 7, '1': 'dog'}"})
    assert OnnxDetector(path).names == {0: "7", 1: "dog"}


@pytest.mark.parametrize("names", ["{'a': 'cat', 'b': 'dog'}", "{0: b'cat', 1: {1, 2}}", "{True: 'a', 0.5: 'b'}"])
def test_names_that_are_none_are_refused(tmp_path, names):
    path = fixed_output(tmp_path / "m.onnx", raw_output(), NAMES | {"names": names})
    with pytest.raises(UserError, match=r"metadata 'names' of .*m\.onnx are no texts by number; export the model"):
        OnnxDetector(path)


def test_foreign_nms_free_model_needs_no_metadata(tmp_path):
    rows = np.array([[[8, 16, 24, 32, 0.8, 7], [0, 0, 9, 9, 0.1, 3]]], np.float32)
    image = np.zeros((64, 64, 3), np.uint8)
    found = OnnxDetector(fixed_output(tmp_path / "m.onnx", rows, {}))(image)
    np.testing.assert_array_equal(found.boxes_xyxy, [[8, 16, 24, 32]])
    assert found.class_ids.tolist() == [7]
    assert found.draw(image).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": None}, "path=None: must name an .onnx file, such as best.onnx"),
        ({"device": None}, "device=None: must be cpu, cuda or cuda:N"),
        ({"device": 0}, "device=0: must be cpu, cuda or cuda:N"),
        ({"device": "gpu"}, "device 'gpu' is unknown; pass 'cpu'"),
        ({"device": "cuda:x"}, "device 'cuda:x' is unknown"),
        ({"conf": 1.5}, "conf=1.5 is no threshold"),
        ({"iou": -0.1}, "iou=-0.1 is no threshold"),
        ({"conf": "high"}, "conf=high is no threshold; pass a number from 0 to 1"),
        ({"iou": float("nan")}, "iou=nan is no threshold"),
        ({"iou": True}, "iou=True is no threshold"),
        ({"max_det": 0}, "max_det=0 is out of range; pass a whole number from 1 to"),
        ({"max_det": None}, "max_det=None is out of range"),
        ({"max_det": 2.5}, r"max_det=2\.5 is out of range"),
        ({"threads": 0}, "threads=0 is out of range"),
        ({"threads": "many"}, "threads=many is out of range"),
        ({"threads": 2**31}, "threads=2147483648 is out of range"),
        ({"max_batch": 0}, "max_batch=0 is out of range"),
        ({"cuda_graph": True}, "cuda_graph=True has no meaning on device 'cpu'"),
        ({"threads": 2, "settings": SessionSettings()}, "settings= is given beside threads="),
        ({"imgsz": 128}, r"imgsz=128 does not fit .*m\.onnx, whose input is fixed at \(64, 64\)"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_unusable_arguments_are_refused(tmp_path, arguments, message):
    path = fixed_output(tmp_path / "m.onnx", raw_output(), NAMES)
    assert len(OnnxDetector(path, imgsz=64)(PHOTOS[0])) == 1
    with pytest.raises(UserError, match=message):
        OnnxDetector(**{"path": path, **arguments})


@pytest.mark.parametrize("imgsz", [100, 0, -32, (64, 50), (64, 64, 64), 64.0, "64"], ids=str)
def test_sizes_off_the_stride_are_refused(tmp_path, imgsz):
    path = fixed_output(tmp_path / "m.onnx", raw_output(), NAMES, input_shape=("batch", 3, "height", "width"))
    assert OnnxDetector(path, imgsz=(96, 64)).imgsz == (96, 64)
    with pytest.raises(UserError, match=r"does not fit .*m\.onnx; pass one or two positive multiples of 32"):
        OnnxDetector(path, imgsz=imgsz)


def test_dynamic_model_without_a_size_asks_for_one(tmp_path):
    path = fixed_output(tmp_path / "m.onnx", raw_output(), {}, input_shape=("batch", 3, "height", "width"))
    with pytest.raises(UserError, match=r"m\.onnx has a dynamic input .*; pass imgsz="):
        OnnxDetector(path)
    assert OnnxDetector(path, imgsz=96).imgsz == (96, 96)


def test_a_size_that_the_graph_cannot_run_is_refused(tmp_path):
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ("batch", 3, "height", "width"))
    output = helper.make_tensor_value_info("output0", TensorProto.FLOAT, (1, 6, 2048))
    shape = helper.make_node("Constant", [], ["shape"], value_ints=[1, 6, 2048])
    save(tmp_path / "m.onnx", [shape, helper.make_node("Reshape", ["images", "shape"], ["output0"])], [images],
         [output], NAMES)  # fmt: skip
    assert len(OnnxDetector(tmp_path / "m.onnx", imgsz=64, conf=1)(PHOTOS[0])) == 0
    with pytest.raises(
        UserError, match=r"m\.onnx: the model cannot run on an input of shape \(1, 3, 96, 96\) .*export it again"
    ):
        OnnxDetector(tmp_path / "m.onnx", imgsz=96)


def test_missing_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no\.onnx is not a file"):
        OnnxDetector(tmp_path / "no.onnx")
    with pytest.raises(UserError, match="is not a file"):
        OnnxDetector(tmp_path)
    whole = fixed_output(tmp_path / "whole.onnx", raw_output(), NAMES).read_bytes()
    for content in (b"", b"no model", whole[: len(whole) // 2], ASSETS.joinpath("bus.jpg").read_bytes()):
        tmp_path.joinpath("bad.onnx").write_bytes(content)
        with pytest.raises(UserError, match=r"^onnxruntime .* cannot open .*bad\.onnx on cpu \(.+\); .*$"):
            OnnxDetector(tmp_path / "bad.onnx")


@pytest.mark.parametrize(
    ("output_shape", "metadata"),
    [
        ((1, 300, 84), {}),
        ((1, 300, 84), NAMES),
        ((1, 85, 84), NAMES),
        ((1, 4, 84), {}),
        ((6, 84), NAMES),
        ((1, 6, 84), NAMES | {"task": "pose"}),
        ((1, 7, 84), NAMES | {"output": "best-class"}),
    ],
    ids=["rows-last", "rows-last-named", "other-classes", "no-classes", "flat", "pose", "best-class"],
)
def test_foreign_outputs_are_refused(tmp_path, output_shape, metadata):
    path = fixed_output(tmp_path / "m.onnx", np.zeros(output_shape, np.float32), metadata)
    with pytest.raises(UserError, match=r"m\.onnx has task .* and outputs of shape \[\(.*export a detection model"):
        OnnxDetector(path)


@pytest.mark.parametrize(
    ("input_shape", "input_type", "preprocessing"),
    [
        ((1, 1, 64, 64), TensorProto.FLOAT, None),
        ((1, 64, 64), TensorProto.FLOAT, None),
        ((1, 3, 64, 64), TensorProto.UINT8, None),
        ((1, 64, 64, 3), TensorProto.UINT8, None),
        ((1, 3, 64, 64), TensorProto.UINT8, "uint8-bgr-nhwc"),
        ((1, 64, 64, 3), TensorProto.FLOAT, "uint8-bgr-nhwc"),
        ((1, 64, 64, 3), TensorProto.UINT8, "uint8-rgb-nhwc"),
    ],
    ids=["grey", "rank", "uint8", "unnamed-bytes", "bytes-first", "float-last", "rgb"],
)
def test_foreign_inputs_are_refused(tmp_path, input_shape, input_type, preprocessing):
    metadata = NAMES | ({"preprocessing": preprocessing} if preprocessing else {})
    path = fixed_output(tmp_path / "m.onnx", raw_output(), metadata, input_shape, input_type)
    with pytest.raises(UserError, match=r"m\.onnx takes .*, not one float image batch"):
        OnnxDetector(path)


def test_unreadable_metadata_is_refused(tmp_path):
    path = fixed_output(tmp_path / "m.onnx", raw_output(), NAMES | {"names": "cat, dog and so on"})
    with pytest.raises(UserError, match=r"metadata 'names' of .*m\.onnx is no Python literal"):
        OnnxDetector(path)


def test_unusable_images_are_named(tmp_path):
    detector = OnnxDetector(fixed_output(tmp_path / "m.onnx", raw_output(), NAMES))
    with pytest.raises(UserError, match=r"^image is None"):
        detector(None)
    with pytest.raises(UserError, match=r"^images\[1\] is float64"):
        detector([PHOTOS[0], PHOTOS[0] / 255])


def detections(**changes) -> Detections:
    fields = {
        "boxes_xyxy": np.array([[20, 0, 90, 60], [150, 85, 158, 110]], np.float32),
        "scores": np.array([0.9, 0.5], np.float32),
        "class_ids": np.array([0, 1]),
        "names": {0: "cat"},
    }
    return Detections(**(fields | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"boxes_xyxy": np.zeros((1, 4), np.float32)},
        {"boxes_xyxy": np.zeros((2, 4))},
        {"boxes_xyxy": [[0, 0, 1, 1]] * 2},
        {"scores": np.zeros((2, 1), np.float32)},
        {"class_ids": np.zeros(2, np.float32)},
    ],
    ids=["count", "dtype", "list", "shape", "float-ids"],
)
def test_detections_validate_their_arrays(changes):
    assert len(detections()) == 2
    with pytest.raises(UserError, match=rf"Detections\.{next(iter(changes))} is .*; for 2 scores pass"):
        detections(**changes)


def test_draw_marks_boxes_and_leaves_the_image_alone():
    image = np.zeros((120, 160, 3), np.uint8)
    canvas = detections().draw(image)
    assert not image.any()
    assert canvas.shape == image.shape
    assert not canvas[50, 50].any()  # within a box, away from its label
    assert canvas[1, 40].any()  # the label of a box at the top edge stays in the image,
    assert canvas[80, 140].any()  # and so does that of a box at the right edge
    alone = [row(0).draw(image), row(1).draw(image)]
    np.testing.assert_array_equal(canvas, np.maximum(*alone))
    assert (alone[0][60, 90] != alone[1][110, 158]).any()
    with pytest.raises(UserError, match="image is None"):
        detections().draw(None)


def row(index: int) -> Detections:
    whole = detections()
    parts = (values[index : index + 1] for values in (whole.boxes_xyxy, whole.scores, whole.class_ids))
    return Detections(*parts, whole.names)


def test_draw_puts_the_best_box_on_top_of_any_memory_layout():
    image = np.zeros((120, 160, 3), np.uint8)
    same_place = detections(boxes_xyxy=detections().boxes_xyxy[[0, 0]])
    np.testing.assert_array_equal(same_place.draw(image)[60, 90], row(0).draw(image)[60, 90])
    np.testing.assert_array_equal(detections().draw(image[:, ::-1]), detections().draw(image))
