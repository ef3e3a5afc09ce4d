"""How fast a GPU could run an ONNX graph at best, if moving its tensors were all the work.

    python tools/memory_floor.py MODEL.onnx GB_PER_S

for example

    python tools/memory_floor.py runs/benchmark/models/yolo-lat-p-640px-b32-fp16-raw-output.onnx 3000

counts the bytes of the tensors that every operator reads and writes, and what only the input and the output of the
whole graph are. The first is the floor of ONNX Runtime's way, one kernel an operator, each tensor through the memory;
the second that of one kernel for everything. Reshapes move nothing, and transpositions stand apart: where convolutions
run channels last, ONNX Runtime cancels most of them. The graph needs fixed shapes.
"""

from __future__ import annotations

import sys
from collections import Counter
from math import prod

import onnx
from onnx import TensorProto, helper, shape_inference

FREE = {"Reshape", "Unsqueeze", "Squeeze", "Flatten", "Constant", "Identity"}


def main() -> None:
    """Count and print."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    graph = shape_inference.infer_shapes(onnx.load(sys.argv[1])).graph
    rate = float(sys.argv[2]) * 1e9
    sizes = tensor_bytes(graph)
    moved: Counter[str] = Counter()
    for node in graph.node:
        if node.op_type not in FREE:
            moved[node.op_type] += sum(sizes.get(name, 0) for name in (*node.input, *node.output))
    ends = sum(sizes[value.name] for value in (*graph.input, *graph.output))
    for kind, count in sorted(moved.items(), key=lambda item: (item[0] != "Transpose", -item[1])):
        print(f"{kind:<12}{count / 1e6:>9.1f} MB{1e3 * count / rate:>9.3f} ms")
    total = sum(moved.values()) - moved["Transpose"]
    print(f"{'all others':<12}{total / 1e6:>9.1f} MB{1e3 * total / rate:>9.3f} ms")
    print(f"{'ends alone':<12}{ends / 1e6:>9.1f} MB{1e3 * ends / rate:>9.3f} ms")


def tensor_bytes(graph: onnx.GraphProto) -> dict[str, int]:
    """Return the size of every tensor of a graph."""
    found = {}
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type
        dims = [dim.dim_value for dim in kind.shape.dim]
        if not all(dims):
            sys.exit(f"{value.name} has no fixed shape; export the model without dynamic=true")
        found[value.name] = prod(dims) * helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
    for weight in graph.initializer:
        if weight.data_type != TensorProto.STRING:
            found[weight.name] = prod(weight.dims) * helper.tensor_dtype_to_np_dtype(weight.data_type).itemsize
    return found


if __name__ == "__main__":
    main()
