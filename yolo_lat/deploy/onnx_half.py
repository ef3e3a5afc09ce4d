"""An ONNX model in float16 throughout: weights, arithmetic, input and output.

What stays float32 is what the standard's operators do not take in float16, such as the scales of Resize; the schemas
of the installed `onnx` say so, and conversions are put around it.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from yolo_lat.deploy.onnx_graph import opset
from yolo_lat.errors import UserError

_MAX, _TINY = float(np.finfo(np.float16).max), float(np.finfo(np.float16).smallest_subnormal)


def to_half(model: ModelProto) -> ModelProto:
    """Convert a float32 model, in place.

    Raises:
        UserError: a weight that is not finite or too large for float16.
    """
    graph, version = model.graph, opset(model)
    wide = _float_tensors(model)
    constants = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    kept: dict[str, TensorProto] = {}
    nodes: list[NodeProto] = []
    for node in graph.node:
        before, after = [], []
        takes, gives = _takes_half(node, version)
        for index, name in enumerate(node.input):
            if name in wide and not takes[min(index, len(takes) - 1)]:
                node.input[index] = f"{name}/float32"
                if name in constants:
                    kept[name] = constants[name]
                else:
                    before.append(_cast(name, node.input[index], TensorProto.FLOAT))
        for index, name in enumerate(node.output):
            if name in wide and not gives[min(index, len(gives) - 1)]:
                node.output[index] = f"{name}/float32"
                after.append(_cast(node.output[index], name, TensorProto.FLOAT16))
        _convert_attributes(node)
        known = {made.output[0] for made in nodes if made.op_type == "Cast"}
        nodes += [*(cast for cast in before if cast.output[0] not in known), node, *after]
    for name, tensor in kept.items():
        copy = graph.initializer.add()
        copy.CopyFrom(tensor)
        copy.name = f"{name}/float32"
    for name, tensor in constants.items():
        tensor.CopyFrom(_half(tensor, name))
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    unused = [tensor for tensor in graph.initializer if tensor.name not in used]
    for tensor in unused:
        graph.initializer.remove(tensor)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    del graph.value_info[:]
    return model


def _float_tensors(model: ModelProto) -> set[str]:
    """Return the names of all tensors in float32."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    names = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    return names | {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}


def _takes_half(node: NodeProto, version: int) -> tuple[list[bool], list[bool]]:
    """Return whether the standard lets each input and each output of a node be float16."""
    schema = onnx.defs.get_schema(node.op_type, version, node.domain)
    allowed = {rule.type_param_str: set(rule.allowed_type_strs) for rule in schema.type_constraints}

    def fits(parameter: onnx.defs.OpSchema.FormalParameter) -> bool:
        return "tensor(float16)" in allowed.get(parameter.type_str, {parameter.type_str})

    return [fits(parameter) for parameter in schema.inputs], [fits(parameter) for parameter in schema.outputs]


def _convert_attributes(node: NodeProto) -> None:
    """Convert the tensors and element types that a node itself holds."""
    for attribute in node.attribute:
        if attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(_half(attribute.t, node.output[0]))
        elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16


def _half(tensor: TensorProto, name: str) -> TensorProto:
    """Return a float32 tensor in float16; what would vanish becomes the smallest number, so that an epsilon guards."""
    values = numpy_helper.to_array(tensor)
    if not np.isfinite(values).all():
        raise UserError(f"weight {name} has values that are not finite; the model is broken, train it again")
    largest = float(np.abs(values).max(initial=0))
    if largest > _MAX:
        raise UserError(f"weight {name} reaches {largest:.4g}, and float16 ends at {_MAX:.0f}; export in float32")
    half = values.astype(np.float16)
    half = np.where((half == 0) & (values != 0), np.copysign(np.float16(_TINY), values), half).astype(np.float16)
    return numpy_helper.from_array(half, tensor.name)


def _cast(source: str, target: str, to: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], f"{target}/Cast", to=to)
