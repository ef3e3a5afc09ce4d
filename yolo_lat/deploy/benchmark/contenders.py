"""What is timed: one model behind one boundary, opened with one setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort

from yolo_lat.deploy.benchmark.images import Pictures
from yolo_lat.deploy.benchmark.plan import Cell
from yolo_lat.deploy.benchmark.settings import Setting
from yolo_lat.deploy.onnx_detector import OnnxDetector
from yolo_lat.deploy.runner import Runner
from yolo_lat.deploy.session import open_session
from yolo_lat.errors import UserError

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# Arithmetic on shapes, which ONNX Runtime leaves on the CPU on purpose; anything else there would count as the GPU's.
_SHAPE_OPERATORS = {
    *("Shape", "Size", "Gather", "Slice", "Concat", "Squeeze", "Unsqueeze", "Reshape", "Cast", "Constant", "Identity"),
    *("ConstantOfShape", "Range", "Expand", "Where", "Equal", "Add", "Sub", "Mul", "Div", "Mod", "Floor", "Ceil"),
    *("Min", "Max", "ReduceProd"),
}
_PIPELINE_BATCHES = 16


class Contender(Protocol):
    """A model that can be run over and over on changing inputs."""

    provider: str

    def prepare(self, turn: int) -> None:
        """Lay out the input of a run; not timed."""

    def run(self) -> None:
        """Do the timed work; it is done when this returns."""


class Forward:
    """The `forward` boundary: a tensor on the device in, the raw output of the head on the device out.

    Args:
        path: the ONNX file.
        device: "cpu" or "cuda:N".
        setting: how to open the session.
        threads: CPU threads.
        cell: what is measured.
        pictures: inputs are made of them.

    Raises:
        UserError: a file that does not fit the cell, or another provider than the device's.
    """

    def __init__(self, path: Path, device: str, setting: Setting, threads: int, cell: Cell, pictures: Pictures) -> None:
        session = open_session(path, device, setting.session(threads))
        self.provider = check_provider(session, device, path)
        shape = input_shape(session, cell, path)
        self._runner = Runner(session, device, shape)
        self._pool = pictures.inputs(shape, self._runner.input.dtype)

    def prepare(self, turn: int) -> None:
        """Copy the next input of the pool to the device."""
        np.copyto(self._runner.input, self._pool[turn % len(self._pool)])
        self._runner.upload()

    def run(self) -> None:
        """Run the network."""
        self._runner.run()


class Pipeline:
    """The `pipeline` boundary: decoded pictures in host memory in, boxes in host memory out.

    Args:
        path: the ONNX file.
        device: "cpu" or "cuda:N".
        setting: how to open the session.
        threads: CPU threads.
        cell: what is measured.
        pictures: inputs are chosen from them.

    Attributes:
        boxes, images: how many boxes were found in how many images.

    Raises:
        UserError: a file that does not fit the cell, or another provider than the device's.
    """

    def __init__(self, path: Path, device: str, setting: Setting, threads: int, cell: Cell, pictures: Pictures) -> None:
        self._detector = OnnxDetector(
            path, device, imgsz=cell.imgsz, max_batch=cell.batch, settings=setting.session(threads)
        )
        session = self._detector._session
        self.provider = check_provider(session, device, path)
        input_shape(session, cell, path)
        order = pictures.batches(cell.batch, _PIPELINE_BATCHES)
        self._pool = [[pictures.images_bgr[number] for number in numbers] for numbers in order]
        self._batch = self._pool[0]
        self.boxes = self.images = 0

    def prepare(self, turn: int) -> None:
        """Choose the next pictures of the pool."""
        self._batch = self._pool[turn % len(self._pool)]

    def run(self) -> None:
        """Detect."""
        found = self._detector(self._batch)
        self.boxes += sum(map(len, found))
        self.images += len(found)


CONTENDERS: dict[str, type[Forward] | type[Pipeline]] = {"forward": Forward, "pipeline": Pipeline}


def check_provider(session: ort.InferenceSession, device: str, path: Path) -> str:
    """Return the first provider of a session.

    Raises:
        UserError: it is not that of the device.
    """
    provider, wanted = session.get_providers()[0], _PROVIDERS[device.partition(":")[0]]
    if provider != wanted:
        raise UserError(f"{path} runs on {provider}, not on {wanted} as device={device} asks; mend the installation")
    return str(provider)


def input_shape(session: ort.InferenceSession, cell: Cell, path: Path) -> tuple[int, ...]:
    """Return the shape of the input in a cell.

    Raises:
        UserError: the file is fixed to another shape.
    """
    node = session.get_inputs()[0]
    pixels_last = len(node.shape) == 4 and node.shape[3] == 3
    side = (cell.imgsz, cell.imgsz)
    shape = (cell.batch, *side, 3) if pixels_last else (cell.batch, 3, *side)
    fits = len(node.shape) == 4 and all(
        axis == size for axis, size in zip(node.shape, shape, strict=True) if isinstance(axis, int)
    )
    if not fits:
        raise UserError(
            f"{path} takes {list(node.shape)}, not the {list(shape)} of {cell}; export it for that size and batch, or "
            "give its own as imgsz= and batch="
        )
    return shape


def cpu_nodes(path: Path, device: str) -> dict[str, int] | None:
    """Return the operators that a CUDA session leaves on the CPU, with their number.

    None on the CPU, and where ONNX Runtime is too old to tell.

    Raises:
        UserError: there is more among them than arithmetic on shapes.
    """
    if device == "cpu" or not hasattr(ort.InferenceSession, "get_provider_graph_assignment_info"):
        return None
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    number = device.partition(":")[2]
    providers: list[Any] = [("CUDAExecutionProvider", {"device_id": number}), "CPUExecutionProvider"]
    session = ort.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    found: dict[str, int] = {}
    for part in session.get_provider_graph_assignment_info():
        if part.ep_name == "CPUExecutionProvider":
            for node in part.get_nodes():
                found[node.op_type] = found.get(node.op_type, 0) + 1
    if heavy := sorted(found.keys() - _SHAPE_OPERATORS):
        raise UserError(
            f"{path}: ONNX Runtime runs {', '.join(heavy)} of it on the CPU although device={device}; such a time is "
            "no speed of the GPU and is not reported"
        )
    return found
