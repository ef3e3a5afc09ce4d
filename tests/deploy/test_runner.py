"""Bound buffers against `session.run`, the pool that lends them, and CUDA graphs against runs without."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hand_made_onnx import COLOURS, colour_detector, fixed_output, raw_output, save
from onnx import TensorProto, helper

from yolo_lat.deploy import runner as runner_module
from yolo_lat.deploy.runner import KEPT, Runner, RunnerPool
from yolo_lat.deploy.session import SessionSettings, open_session
from yolo_lat.errors import UserError

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available() or "CUDAExecutionProvider" not in ort.get_available_providers(), reason="no CUDA"
)
KINDS = {
    "float32": {},
    "float16": {"dtype": np.float16},
    "uint8": {"takes_bytes": True},
    "fixed": {"batch": 3},
    "best-class": {"best_class": True},
}


def noise(shape: tuple[int, ...], dtype: np.dtype, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    return values if dtype == np.uint8 else (values / 255).astype(dtype)


def assert_runs_like_the_session(path: Path, device: str, settings: SessionSettings, tolerance: float) -> None:
    """Two inputs one after the other in the same buffers, against `session.run` on the CPU."""
    reference = open_session(path)
    node = reference.get_inputs()[0]
    shape = tuple(side if isinstance(side, int) else 3 for side in node.shape)
    runner = Runner(open_session(path, device, settings), device, shape)
    address = runner.input.ctypes.data
    found = []
    for seed in range(2):
        runner.input[:] = noise(shape, runner.input.dtype, seed)
        runner.upload()
        runner.run()
        found.append(runner.outputs())
    assert runner.input.ctypes.data == address
    for seed, outputs in enumerate(found):
        expected = reference.run(None, {node.name: noise(shape, runner.input.dtype, seed)})
        assert len(outputs) == len(expected) == 1
        assert outputs[0].dtype == expected[0].dtype
        np.testing.assert_allclose(outputs[0], expected[0], rtol=0, atol=tolerance)
    assert (found[0][0] != found[1][0]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_bound_runs_equal_those_of_the_session(tmp_path, kind):
    assert_runs_like_the_session(colour_detector(tmp_path / "m.onnx", **KINDS[kind]), "cpu", SessionSettings(), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_of_its_own_changes_nothing(tmp_path, monkeypatch, kind):
    """The steps around a CUDA graph, on the CPU, which runs the same whatever the number of the graph."""
    numbers, options = [], runner_module._graph_options
    monkeypatch.setattr(runner_module, "is_cuda_graph", lambda session: True)
    monkeypatch.setattr(runner_module, "_graph_options", lambda number: numbers.append(number) or options(number))
    path = colour_detector(tmp_path / "m.onnx", **KINDS[kind])
    for _ in range(2):
        assert_runs_like_the_session(path, "cpu", SessionSettings(), 0)
    assert numbers[::2] == [-1, -1]
    assert 0 < numbers[1] < numbers[3]
    session = open_session(path)
    runner = Runner(
        session, "cpu", tuple(side if isinstance(side, int) else 2 for side in session.get_inputs()[0].shape)
    )
    addresses = [value.data_ptr() for value in runner._binding.get_outputs()]
    runner.run()
    assert [value.data_ptr() for value in runner._binding.get_outputs()] == addresses


def several_outputs(path: Path) -> Path:
    """Outputs of an open shape, a fixed one, and one that depends on the values of the image."""
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ("batch", 3, 4, 4))
    outputs = [
        helper.make_tensor_value_info("double", TensorProto.FLOAT, ("batch", 3, 4, 4)),
        helper.make_tensor_value_info("least", TensorProto.FLOAT, (1, 1, 1, 1)),
        helper.make_tensor_value_info("places", TensorProto.INT64, (4, "found")),
    ]
    nodes = [
        helper.make_node("Add", ["images", "images"], ["double"]),
        helper.make_node("ReduceMin", ["images"], ["least"], keepdims=1),
        helper.make_node("NonZero", ["images"], ["places"]),
    ]
    return save(path, nodes, [images], outputs, {})


def test_outputs_keep_the_order_of_the_model_and_may_change_their_shape(tmp_path):
    runner = Runner(open_session(several_outputs(tmp_path / "m.onnx")), "cpu", (2, 3, 4, 4))
    for count in (96, 5, 0, 30):
        runner.input[:] = 0
        runner.input.reshape(-1)[:count] = 0.5
        runner.run()
        double, least, places = runner.outputs()
        np.testing.assert_array_equal(double, runner.input * 2)
        assert least.item() == runner.input.min()
        assert places.shape == (4, count)


def test_a_shape_that_the_model_does_not_take_is_refused(tmp_path):
    runner = Runner(open_session(fixed_output(tmp_path / "m.onnx", raw_output(), COLOURS)), "cpu", (2, 3, 64, 64))
    with pytest.raises(UserError, match=r"^the model cannot run on an input of shape \(2, 3, 64, 64\) \(.+\); use"):
        runner.run()


def test_a_graph_that_cannot_be_captured_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(runner_module, "is_cuda_graph", lambda session: True)
    session = open_session(fixed_output(tmp_path / "m.onnx", raw_output(), COLOURS))
    with pytest.raises(
        UserError, match=r"^no CUDA graph can be captured for an input of shape \(2, .*leave cuda_graph"
    ):
        Runner(session, "cpu", (2, 3, 64, 64))


def test_a_model_whose_shapes_depend_on_the_image_has_no_graph(tmp_path, monkeypatch):
    monkeypatch.setattr(runner_module, "is_cuda_graph", lambda session: True)
    session = open_session(several_outputs(tmp_path / "m.onnx"))
    with pytest.raises(UserError, match=r"\(the shape of its output 'places' depends on the image\).*leave cuda_graph"):
        Runner(session, "cpu", (1, 3, 4, 4))


def test_outputs_that_are_no_numbers_are_refused(tmp_path):
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, (1, 3, 4, 4))
    result = helper.make_tensor_value_info("large", TensorProto.BOOL, (1, 3, 4, 4))
    path = save(
        tmp_path / "m.onnx", [helper.make_node("Greater", ["images", "images"], ["large"])], [images], [result], {}
    )
    with pytest.raises(UserError, match=r"'large' of the model is a tensor\(bool\)"):
        Runner(open_session(path), "cpu", (1, 3, 4, 4))


@pytest.fixture
def session(tmp_path):
    return open_session(colour_detector(tmp_path / "m.onnx"), settings=SessionSettings(threads=1))


def test_the_pool_lends_again_what_came_back(session):
    pool = RunnerPool(session, "cpu")
    with pool.lend((1, 3, 64, 64)) as first, pool.lend((1, 3, 64, 64)) as second, pool.lend((2, 3, 64, 64)) as other:
        assert len({id(first), id(second), id(other)}) == 3
        assert other.input.shape == (2, 3, 64, 64)
    with pool.lend((1, 3, 64, 64)) as again:
        assert again in (first, second)
    with pytest.raises(ZeroDivisionError), pool.lend((2, 3, 64, 64)) as failed:
        1 / 0  # noqa: B018
    assert failed is other
    with pool.lend((2, 3, 64, 64)) as fresh:
        assert fresh is not failed


def test_the_pool_keeps_a_few(session):
    pool = RunnerPool(session, "cpu")
    for batch in range(1, 3 * KEPT):
        with pool.lend((batch, 3, 64, 64)):
            pass
    assert [runner.input.shape[0] for runner in pool._idle] == list(range(2 * KEPT, 3 * KEPT))


def test_a_cuda_graph_is_lent_to_one_thread_at_a_time_and_kept(session, monkeypatch):
    monkeypatch.setattr(runner_module, "is_cuda_graph", lambda session: True)
    pool, inside, most, made = RunnerPool(session, "cpu"), [], [], set()
    gate = threading.Event()

    def use(batch: int) -> None:
        with pool.lend((batch, 3, 64, 64)) as runner:
            inside.append(batch)
            made.add(id(runner))
            most.append(len(inside))
            gate.wait(0.005)
            inside.remove(batch)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(use, [*range(1, KEPT + 3)] * 3))
    assert max(most) == 1
    assert len(made) == len(pool._idle) == KEPT + 2


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cuda_graph", [False, True], ids=["plain", "graph"])
def test_cuda_buffers_and_graphs_equal_the_session(tmp_path, kind, cuda_graph):
    path, tolerance = colour_detector(tmp_path / "m.onnx", **KINDS[kind]), 2e-3 if kind == "float16" else 1e-5
    assert_runs_like_the_session(path, "cuda:0", SessionSettings(cuda_graph=cuda_graph), tolerance)


@pytest.mark.gpu
@needs_cuda
def test_graphs_of_several_shapes_keep_apart(tmp_path):
    path = colour_detector(tmp_path / "m.onnx")
    session, reference = open_session(path, "cuda:0", SessionSettings(cuda_graph=True)), open_session(path)
    runners = [Runner(session, "cuda:0", (batch, 3, 64, 64)) for batch in (1, 4, 2, 4)]
    for turn in range(3):
        for index, runner in enumerate(runners):
            runner.input[:] = noise(runner.input.shape, runner.input.dtype, 10 * turn + index)
            runner.upload()
        for runner in runners:
            runner.run()
        for runner in runners:
            (expected,) = reference.run(None, {"images": runner.input})
            np.testing.assert_allclose(runner.outputs()[0], expected, rtol=0, atol=1e-5)
