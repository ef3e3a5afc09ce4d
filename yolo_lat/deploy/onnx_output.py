"""What an exported detector returns: the raw output of its head, the best class of every box, or detections.

Each function changes a model whose output is (B, 4 + classes, anchors): centre x, centre y, width, height in input
pixels, then the classes' scores.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto

from yolo_lat.deploy.onnx_graph import Editor, dims_of, raw_head, set_shape
from yolo_lat.deploy.postprocess import CLASS_OFFSET
from yolo_lat.errors import UserError

_EXACT_IDS = 2048  # whole numbers that float16 tells apart


def best_class(model: ModelProto) -> ModelProto:
    """Keep each box's best class: the output becomes (B, 6, anchors), 4 box values, the score and the class's number.

    Raises:
        UserError: a float16 graph with more classes than float16 can number.
    """
    _, boxes, scores = raw_head(model)
    batch, rows, anchors = dims_of(model.graph.output[0])
    edit = Editor(model, "best_class")
    if edit.float_type == TensorProto.FLOAT16 and isinstance(rows, int) and rows - 4 > _EXACT_IDS:
        raise UserError(
            f"best_class=True: float16 numbers {_EXACT_IDS} classes and the model has {rows - 4}; export it in float32"
        )
    score, ids = _best(edit, scores, edit.float_type)
    return _ended(model, edit, edit.node("Concat", boxes, score, ids, axis=1), [batch, 6, anchors])


def embed_nms(
    model: ModelProto, conf: float, iou: float, max_det: int, agnostic: bool = False, dynamic: bool = False
) -> ModelProto:
    """Suppress inside the graph, for any batch and size: the output becomes (B, max_det, 6), zeros after the last box.

    Rows are x1, y1, x2, y2 in input pixels, score and class number, best first, as Ultralytics' `nms=True` returns
    them: each box with its best class alone, if that scores above `conf`, and without those that overlap a better one
    of their class, or with `agnostic` of any class, by more than `iou`. Suppression computes in float32.
    """
    _, boxes, scores = raw_head(model)
    batch = dims_of(model.graph.output[0])[0]
    edit = Editor(model, "nms")
    boxes, scores = edit.cast(boxes, TensorProto.FLOAT), edit.cast(scores, TensorProto.FLOAT)
    score, ids = _best(edit, scores, TensorProto.FLOAT)
    apart = boxes
    if not agnostic:  # classes are moved apart, as in `yolo_lat.deploy.postprocess`
        offset = edit.constant(np.array([[[CLASS_OFFSET], [CLASS_OFFSET], [0], [0]]]), np.float32)
        apart = edit.node("Add", boxes, edit.node("Mul", ids, offset))
    chosen = edit.node(
        "NonMaxSuppression",
        edit.node("Transpose", apart, perm=[0, 2, 1]),
        score,
        edit.constant([max_det], np.int64),
        edit.constant([iou], np.float32),
        edit.constant([conf], np.float32),
        center_point_box=1,
    )  # (n, 3) image, 0, anchor: image by image, each best first
    image, anchor = (edit.node("Gather", chosen, edit.constant(column, np.int64), axis=1) for column in (0, 2))
    rows = edit.node("Concat", *_corners(edit, boxes), score, ids, axis=1)
    picked = edit.node("GatherND", edit.node("Transpose", rows, perm=[0, 2, 1]), _pairs(edit, image, anchor))
    output = edit.node(
        "ScatterND", _zeros(edit, boxes, max_det), _pairs(edit, image, _rank(edit, boxes, image)), picked
    )
    output = edit.cast(output, edit.float_type)
    return _ended(model, edit, output, [batch if dynamic else int(batch), max_det, 6])


def flexible_top_k(model: ModelProto, max_det: int, agnostic: bool = False) -> ModelProto:
    """Let a head that needs no NMS return min(max_det, anchors) boxes at every size.

    Ultralytics' exporter writes the number for the size of the export into the graph.
    """
    nodes = [node for node in model.graph.node if node.op_type == "TopK"][-1 if agnostic else -2 :]
    edit = Editor(model, "top_k")
    shape = edit.node("Shape", nodes[0].input[0])
    anchors = edit.node("Gather", shape, edit.constant([1], np.int64), axis=0)
    most = edit.node("Min", anchors, edit.constant([max_det], np.int64))
    for node in nodes:
        node.input[1] = most
    place = list(model.graph.node).index(nodes[0])
    for offset, node in enumerate(edit.nodes):
        model.graph.node.insert(place + offset, node)
    batch = dims_of(model.graph.output[0])[0]
    set_shape(model.graph.output[0], edit.float_type, [batch, "detections", 6])
    del model.graph.value_info[:]
    return model


def _best(edit: Editor, scores: str, float_type: int) -> tuple[str, str]:
    """Add the best score and its class number, (B, 1, anchors) each, of (B, classes, anchors) scores."""
    ids = edit.cast(edit.node("ArgMax", scores, axis=1, keepdims=1), float_type)
    return edit.reduce("ReduceMax", scores, 1, keepdims=True), ids


def _corners(edit: Editor, boxes: str) -> tuple[str, str]:
    """Add the upper left and lower right corners, (B, 2, anchors) each, of (B, 4, anchors) centres and sizes."""
    axis = edit.constant([1], np.int64)
    bounds = [edit.constant([end], np.int64) for end in (0, 2, 4)]
    centre, size = (edit.node("Slice", boxes, bounds[i], bounds[i + 1], axis) for i in range(2))
    half = edit.node("Div", size, edit.constant(2, np.float32))
    return edit.node("Sub", centre, half), edit.node("Add", centre, half)


def _pairs(edit: Editor, first: str, second: str) -> str:
    """Add the (n, 2) pairs of two (n,) indices."""
    axis = edit.constant([1], np.int64)
    return edit.node("Concat", *(edit.node("Unsqueeze", index, axis) for index in (first, second)), axis=1)


def _images(edit: Editor, boxes: str) -> str:
    """Add the batch size, (1,)."""
    return edit.node("Gather", edit.node("Shape", boxes), edit.constant([0], np.int64), axis=0)


def _zeros(edit: Editor, boxes: str, max_det: int) -> str:
    shape = edit.node("Concat", _images(edit, boxes), edit.constant([max_det, 6], np.int64), axis=0)
    return edit.node("Expand", edit.constant([[[0]]], np.float32), shape)


def _rank(edit: Editor, boxes: str, image: str) -> str:
    """Add the place of every row within its image, for (n,) image numbers in rising order."""
    zero, one = edit.constant(0, np.int64), edit.constant(1, np.int64)
    axis = edit.constant([0], np.int64)

    def count(length: str) -> str:
        return edit.node("Range", zero, edit.node("Squeeze", length, axis), one)

    numbers = edit.node("Unsqueeze", count(_images(edit, boxes)), edit.constant([1], np.int64))
    before = edit.cast(edit.node("Less", edit.node("Unsqueeze", image, axis), numbers), TensorProto.INT64)
    start = edit.node("Gather", edit.reduce("ReduceSum", before, 1), image, axis=0)
    return edit.node("Sub", count(edit.node("Shape", image)), start)


def _ended(model: ModelProto, edit: Editor, output: str, dims: list[int | str]) -> ModelProto:
    """Replace the node that makes the graph's output by the edited nodes, of which `output` is the result."""
    graph = model.graph
    graph.node.remove(raw_head(model)[0])
    edit.node("Identity", output, output=graph.output[0].name)
    graph.node.extend(edit.nodes)
    set_shape(graph.output[0], edit.float_type, dims)
    del graph.value_info[:]
    return model
