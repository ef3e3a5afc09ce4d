"""Running one session on buffers that are made once: nothing is allocated or bound anew from image to image."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import onnxruntime as ort

from yolo_lat.deploy.session import ORT_ERRORS, first_line, parse_device
from yolo_lat.errors import UserError

DTYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}
KEPT = 4  # idle runners of a pool; one of batch 32 at 640 px in float32 holds about 0.25 GB

# A run on bound buffers raises RuntimeError where another raises an error of ONNX Runtime.
_RUN_ERRORS: tuple[type[Exception], ...] = (RuntimeError, *ORT_ERRORS)
# ONNX Runtime replays the graph that it captured under the same number, with the addresses of that time.
_graph_numbers = itertools.count(1)


class Runner:
    """Input and outputs of one session, bound for one input shape; for one thread at a time.

    On the CPU the session reads `input` and writes its outputs in place. On CUDA both lie on the device, and `upload`
    and `outputs` copy. Outputs whose shape the model leaves open are allocated by ONNX Runtime at each run, from memory
    that it keeps, since their shape may depend on the image.

    A session opened with `cuda_graph=True` captures its kernels in the constructor, for this runner alone, and replays
    them in `run`; the shapes of its outputs are then those of the first run. No other thread may use such a session
    meanwhile.

    Args:
        session: a session with one input, as `open_session` returns it.
        device: the device that it was opened on.
        input_shape: four sizes, in the model's order.

    Attributes:
        input: array of `input_shape` and the model's input dtype on the host, for the caller to fill; zeros at first.

    Raises:
        UserError: an input or output that is no plain tensor of numbers, or a CUDA graph that cannot be captured.

    Example:
        >>> runner = Runner(open_session(Path("model.onnx")), "cpu", (1, 3, 640, 640))
        >>> runner.input[:] = image
        >>> runner.upload()
        >>> runner.run()
        >>> (output,) = runner.outputs()
    """

    def __init__(self, session: ort.InferenceSession, device: str, input_shape: tuple[int, ...]) -> None:
        device_id = parse_device(device)
        self._device = ("cpu", 0) if device_id is None else ("cuda", device_id)
        self._session, self._binding = session, session.io_binding()
        self._options: ort.RunOptions | None = None
        node = session.get_inputs()[0]
        self.input = np.zeros(input_shape, _dtype(node))
        self._bound_input = ort.OrtValue.ortvalue_from_numpy(self.input, *self._device)
        self._binding.bind_ortvalue_input(node.name, self._bound_input)
        self._open_outputs: list[str] = []
        for output in session.get_outputs():
            if all(isinstance(side, int) for side in output.shape):
                self._bind_output(output, output.shape)
            else:
                # Bound here too, so that the outputs come back in the order of the model.
                self._binding.bind_output(output.name, *self._device)
                self._open_outputs.append(output.name)
        if is_cuda_graph(session):
            self._capture()

    def upload(self) -> None:
        """Copy `input` to the device; nothing to do on the CPU."""
        if self._device[0] != "cpu":
            self._bound_input.update_inplace(self.input)

    def run(self) -> None:
        """Execute the model on the bound buffers; returns when the outputs are there.

        Raises:
            UserError: the model cannot run on this input shape.
        """
        for name in self._open_outputs:
            self._binding.bind_output(name, *self._device)
        try:
            self._session.run_with_iobinding(self._binding, self._options)
            self._binding.synchronize_outputs()
        except _RUN_ERRORS as error:
            raise UserError(
                f"the model cannot run on an input of shape {self.input.shape} ({first_line(error)}); "
                "use the image size and batch it was exported for, or export it again"
            ) from error

    def outputs(self) -> list[np.ndarray]:
        """Return copies of the outputs of the last run, on the host."""
        return self._binding.copy_outputs_to_cpu()

    def _bind_output(self, node: ort.NodeArg, shape: list[int]) -> None:
        value = ort.OrtValue.ortvalue_from_shape_and_type(shape, _dtype(node), *self._device)
        self._binding.bind_ortvalue_output(node.name, value)

    def _capture(self) -> None:
        """Run without a graph to learn the shapes of open outputs, fix those, and run until the graph is captured."""
        try:
            self._options = _graph_options(-1)
            shapes = self._open_shapes()
            self.input[:] = np.random.default_rng(0).uniform(0, 2, self.input.shape)  # bytes become 0 and 1
            others = self._open_shapes()
            self.input[:] = 0
            self.upload()
            for node in self._session.get_outputs():
                if node.name in shapes:
                    if shapes[node.name] != others[node.name]:
                        raise UserError(f"the shape of its output '{node.name}' depends on the image")
                    self._bind_output(node, shapes[node.name])
            self._open_outputs = []
            self._options = _graph_options(next(_graph_numbers))
            for _ in range(2):  # the first warms up and captures, the second replays
                self.run()
        except UserError as error:
            raise UserError(
                f"no CUDA graph can be captured for an input of shape {self.input.shape} "
                f"({first_line(error.__cause__ or error)}); export the model with fixed sizes and without nms=True, "
                "or leave cuda_graph out"
            ) from error

    def _open_shapes(self) -> dict[str, list[int]]:
        """Return the shapes that open outputs have for the present input."""
        self.upload()
        self.run()
        pairs = zip(self._session.get_outputs(), self._binding.get_outputs(), strict=True)
        return {node.name: value.shape() for node, value in pairs if node.name in self._open_outputs}


class RunnerPool:
    """Runners of one session for several threads, made on demand and used again.

    At most `KEPT` idle runners are kept. A session with a CUDA graph has one for each input shape and lends one at a
    time; since a captured graph cannot be given back, all are kept, and the caller bounds the number of shapes.

    Args:
        session: a session with one input.
        device: the device that it was opened on.
    """

    def __init__(self, session: ort.InferenceSession, device: str) -> None:
        self._session, self._device = session, device
        self._cuda_graph = is_cuda_graph(session)
        self._turn = threading.Lock() if self._cuda_graph else nullcontext()
        self._guard = threading.Lock()
        self._idle: list[Runner] = []

    @contextmanager
    def lend(self, input_shape: tuple[int, ...]) -> Iterator[Runner]:
        """Lend a runner for an input shape; one whose use ends in an error is not used again."""
        with self._turn:
            runner = self._take(input_shape) or Runner(self._session, self._device, input_shape)
            yield runner
            with self._guard:
                self._idle.append(runner)
                if not self._cuda_graph:
                    del self._idle[:-KEPT]

    def _take(self, input_shape: tuple[int, ...]) -> Runner | None:
        with self._guard:
            for runner in reversed(self._idle):
                if runner.input.shape == input_shape:
                    self._idle.remove(runner)
                    return runner
        return None


def is_cuda_graph(session: ort.InferenceSession) -> bool:
    """Return whether a session was opened to run as a CUDA graph."""
    options = session.get_provider_options().get("CUDAExecutionProvider", {})
    return options.get("enable_cuda_graph") == "1"


def _graph_options(number: int) -> ort.RunOptions:
    """Return the options of a run that captures or replays the graph of this number; -1 for a run without a graph."""
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(number))
    return options


def _dtype(node: ort.NodeArg) -> type[np.generic]:
    if node.type not in DTYPES:
        raise UserError(
            f"'{node.name}' of the model is a {node.type}; only {', '.join(DTYPES)} can be bound to buffers"
        )
    return DTYPES[node.type]
