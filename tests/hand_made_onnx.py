"""Small ONNX models made by hand: outputs fixed in the file, and detectors of colours whose boxes follow the image."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

NAMES = {"names": "{0: 'cat', 1: 'dog'}", "stride": "32", "imgsz": "[64, 64]", "task": "detect"}
COLOURS = NAMES | {"names": "{0: 'red', 1: 'green', 2: 'blue'}"}


def save(path, nodes, inputs, outputs, metadata, initializers=()) -> Path:
    graph = helper.make_graph(nodes, "hand-made", inputs, outputs, initializer=list(initializers))
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


def fixed_output(path, output, metadata, input_shape=(1, 3, 64, 64), input_type=TensorProto.FLOAT) -> Path:
    images = helper.make_tensor_value_info("images", input_type, input_shape)
    result = helper.make_tensor_value_info("output0", TensorProto.FLOAT, output.shape)
    node = helper.make_node("Constant", [], ["output0"], value=onnx.numpy_helper.from_array(output))
    return save(path, [node], [images], [result], metadata)


def raw_output(num_classes: int = 2, batch: int = 1) -> np.ndarray:
    """One box a batch element, of the last class, centred at (32, 32), as wide as 10 times its place in the batch."""
    output = np.zeros((batch, 4 + num_classes, 84), np.float32)
    output[:, :4, 5] = 32, 32, 0, 20
    output[:, 2, 5] = 10 * np.arange(1, batch + 1)
    output[:, -1, 5] = 0.9
    return output


def colour_detector(
    path: Path,
    batch: int | str = "batch",
    dtype: type[np.generic] = np.float32,
    takes_bytes: bool = False,
    best_class: bool = False,
) -> Path:
    """A detector for 64 px: each of the 64 cells of 8 by 8 pixels is a box that scores as red, green and blue it is.

    Args:
        path: the file.
        batch: images per batch, a word for any number.
        dtype: of the network inside, float32 or float16.
        takes_bytes: input (B, 64, 64, 3) uint8 BGR rather than (B, 3, 64, 64).
        best_class: output (B, 6, 64) rather than (B, 7, 64).
    """
    proto = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    centres = np.stack(np.meshgrid(np.arange(8), np.arange(8))).reshape(2, 64) * 8 + 4
    constants = {
        "boxes": np.concatenate([centres, np.full((2, 64), 10)])[None].astype(dtype),
        "nothing": np.zeros(1, dtype),
        "full": np.array(255, dtype),
        "rgb": np.array([2, 1, 0]),
        "flat": np.array([0, 3, 64]),
        "classes": np.array([1]),
    }
    node = helper.make_node
    nodes = [
        node("AveragePool", ["planes"], ["cells"], kernel_shape=[8, 8], strides=[8, 8]),
        node("Reshape", ["cells", "flat"], ["scores"]),
        node("ReduceMax", ["scores", "classes"], ["best"], keepdims=1),
        node("Mul", ["best", "nothing"], ["zeros"]),
        node("Add", ["zeros", "boxes"], ["spread"]),
    ]
    if best_class:
        nodes += [
            node("ArgMax", ["scores"], ["ids"], axis=1, keepdims=1),
            node("Cast", ["ids"], ["float_ids"], to=proto),
            node("Concat", ["spread", "best", "float_ids"], ["output0"], axis=1),
        ]
    else:
        nodes += [node("Concat", ["spread", "scores"], ["output0"], axis=1)]
    if takes_bytes:
        nodes = [
            node("Transpose", ["images"], ["bgr"], perm=[0, 3, 1, 2]),
            node("Gather", ["bgr", "rgb"], ["swapped"], axis=1),
            node("Cast", ["swapped"], ["floats"], to=proto),
            node("Div", ["floats", "full"], ["planes"]),
            *nodes,
        ]
        images = helper.make_tensor_value_info("images", TensorProto.UINT8, (batch, 64, 64, 3))
    else:
        nodes.insert(0, node("Identity", ["images"], ["planes"]))
        images = helper.make_tensor_value_info("images", proto, (batch, 3, 64, 64))
    result = helper.make_tensor_value_info("output0", proto, (batch, 6 if best_class else 7, 64))
    metadata = COLOURS | ({"preprocessing": "uint8-bgr-nhwc"} if takes_bytes else {})
    metadata |= {"output": "best-class"} if best_class else {}
    initializers = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    return save(path, nodes, [images], [result], metadata, initializers)
