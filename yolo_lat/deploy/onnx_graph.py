"""Editing ONNX graphs of detectors: adding nodes and constants, and finding the parts of the head."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from yolo_lat.errors import UserError

FLOATS = {TensorProto.FLOAT: np.dtype(np.float32), TensorProto.FLOAT16: np.dtype(np.float16)}


class Editor:
    """Adds nodes and constants to the main graph of a model, in place.

    Args:
        model: what is edited.
        prefix: begins the name of everything that is added.

    Attributes:
        float_type: element type of the graph's output, float32 or float16.
    """

    def __init__(self, model: ModelProto, prefix: str) -> None:
        self.graph, self.prefix, self._added = model.graph, prefix, 0
        self.float_type = self.graph.output[0].type.tensor_type.elem_type
        self.opset = opset(model)
        self.nodes: list[NodeProto] = []

    def constant(self, values: Any, dtype: Any) -> str:
        """Add an initializer; returns its name."""
        name = self._name("constant")
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def node(self, op: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Add a node with one output to `nodes`; returns the output's name."""
        name = output or self._name(op)
        self.nodes.append(helper.make_node(op, list(inputs), [name], f"{self.prefix}/{op}_{self._added}", **attributes))
        return name

    def cast(self, tensor: str, to: int) -> str:
        """Add a conversion of element type."""
        return self.node("Cast", tensor, to=to)

    def reduce(self, op: str, tensor: str, axis: int, keepdims: bool = False) -> str:
        """Add a reduction over one axis; opset 18 made the axes of most an input, 13 those of ReduceSum."""
        if self.opset >= (13 if op == "ReduceSum" else 18):
            return self.node(op, tensor, self.constant([axis], np.int64), keepdims=int(keepdims))
        return self.node(op, tensor, axes=[axis], keepdims=int(keepdims))

    def _name(self, op: str) -> str:
        self._added += 1
        return f"{self.prefix}/{op}_{self._added}_output"


def opset(model: ModelProto) -> int:
    """Return the version of the standard operators that a model uses."""
    return max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def set_shape(value: onnx.ValueInfoProto, elem_type: int, dims: list[int | str]) -> None:
    """Declare a graph input or output: a number is a fixed size, a word the name of a size that varies."""
    value.CopyFrom(helper.make_tensor_value_info(value.name, elem_type, dims))


def dims_of(value: onnx.ValueInfoProto) -> list[int | str]:
    """Return the declared sizes of a graph input or output, names where they vary."""
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in value.type.tensor_type.shape.dim]


def raw_head(model: ModelProto) -> tuple[NodeProto, str, str]:
    """Find where a raw output (B, 4 + classes, anchors) is put together.

    Returns:
        The last node, and the names of its (B, 4, anchors) boxes and (B, classes, anchors) scores.

    Raises:
        UserError: the graph ends otherwise.
    """
    wanted = model.graph.output[0].name
    for node in model.graph.node:
        if wanted in node.output and node.op_type == "Concat" and len(node.input) == 2:
            return node, *node.input
    raise UserError("the graph does not end in boxes beside scores; export it without nms, best_class and preprocess")
