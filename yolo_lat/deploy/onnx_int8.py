"""Static INT8 quantisation of a detector's convolutions, for ONNX Runtime on a CPU."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from yolo_lat.deploy.preprocess import letterbox, to_input
from yolo_lat.errors import UserError

# What runs in integers; attention, the decoding of boxes and the scores' sigmoid stay in floating point.
QUANTISED = ("Conv", "Relu", "Add")


class CalibrationImages(CalibrationDataReader):
    """Images through the pre-processor that serves everywhere, in batches.

    Args:
        files: image files.
        size: height and width of the input, pixels.
        batch: images a run; the last batch is filled up with its first image.
        input_name: of the graph.

    Raises:
        UserError: on reading, an image that cannot be decoded.
    """

    def __init__(self, files: Sequence[Path], size: tuple[int, int], batch: int, input_name: str) -> None:
        self.files, self.size, self.batch, self.input_name = files, size, batch, input_name
        self._batches = self._read()

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next feed, None after the last."""
        return next(self._batches, None)

    def _read(self) -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, len(self.files), self.batch):
            images = [read_image(file, self.size) for file in self.files[start : start + self.batch]]
            images += images[:1] * (self.batch - len(images))
            yield {self.input_name: to_input(images)}


def read_image(file: Path, size: tuple[int, int]) -> np.ndarray:
    """Return an image file letterboxed to (height, width), (h, w, 3) uint8 BGR.

    Raises:
        UserError: it cannot be decoded.
    """
    image = cv2.imread(str(file))
    if image is None:
        raise UserError(f"{file}: broken image; replace or remove it")
    return letterbox(image, size).image


def quantise(source: Path, target: Path, images: CalibrationImages) -> ModelProto:
    """Quantise a float32 file: weights symmetric to int8 by output channel, activations to uint8 by range (QDQ form).

    Ranges are the smallest and largest value of an image's activations, averaged over the images: one unusual image
    then costs the others no resolution. Weights use 7 of their 8 bits: processors without VNNI add two products in 16
    bits, which full weights overflow, and the file must compute the same anywhere. The last convolutions, which predict
    boxes and scores, stay float32.

    Returns:
        The content of `target`, which is written.
    """
    with _quiet():
        quantize_static(
            source,
            target,
            images,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTISED),
            nodes_to_quantize=_between_convolutions(onnx.load(source)),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"WeightSymmetric": True, "ActivationSymmetric": False, "CalibMovingAverage": True},
        )
    return onnx.load(target)


def _between_convolutions(model: ModelProto) -> list[str]:
    """Return the names of the convolutions that feed another one, and of the other nodes to quantise between them."""
    graph = model.graph
    made_by = {output: node for node in graph.node for output in node.output}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    stack = [node for node in graph.node if node.op_type == "Conv" and not _is_expectation(node, weights)]
    found: dict[str, NodeProto] = {}
    while stack:
        for name in stack.pop().input:
            maker = made_by.get(name)
            if maker is not None and maker.output[0] not in found:
                found[maker.output[0]] = maker
                stack.append(maker)
    return sorted(node.name for node in found.values() if node.op_type in QUANTISED)


def _is_expectation(node: NodeProto, weights: dict[str, TensorProto]) -> bool:
    """Return whether a convolution has the weights 0, 1, 2, ...: the mean of a box side's distribution, in heads."""
    values = numpy_helper.to_array(weights[node.input[1]]).ravel() if node.input[1] in weights else np.empty(0)
    return len(values) > 1 and np.array_equal(values, np.arange(len(values)))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the advice that the quantiser prints and logs."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.root.setLevel(level)
