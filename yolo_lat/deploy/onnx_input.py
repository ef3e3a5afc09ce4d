"""An input of camera bytes: what `yolo_lat.deploy.preprocess.to_input` does, inside the graph."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto

from yolo_lat.deploy.onnx_graph import FLOATS, Editor, dims_of, set_shape


def take_bytes(model: ModelProto) -> ModelProto:
    """Turn the input (B, 3, height, width) RGB in 0..1 into (B, height, width, 3) uint8 BGR, already letterboxed.

    Planes are moved and swapped while they are bytes, a quarter of the memory of float32. The quotient is the one of
    `to_input`, bit for bit: in float16 too, for no byte over 255 lies where rounding twice would differ.
    """
    image = model.graph.input[0]
    batch, channels, height, width = dims_of(image)
    edit = Editor(model, "preprocess")
    float_type = image.type.tensor_type.elem_type
    planes = edit.node("Transpose", image.name, perm=[0, 3, 1, 2])
    rgb = edit.node("Gather", planes, edit.constant([2, 1, 0], np.int64), axis=1)
    pixels = edit.node("Div", edit.cast(rgb, float_type), edit.constant(255, FLOATS[float_type]))
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == image.name:
                node.input[index] = pixels
    for node in reversed(edit.nodes):
        model.graph.node.insert(0, node)
    set_shape(image, TensorProto.UINT8, [batch, height, width, channels])
    del model.graph.value_info[:]
    return model
