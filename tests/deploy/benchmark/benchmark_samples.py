"""Small detectors as ONNX files, made without torch, and a record made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from yolo_lat.deploy.benchmark.record import Accuracy, Measured, Model, Ratio, Record, Result, Trial

SIDE = 96
NAMES = {0: "a", 1: "b", 2: "c"}
METADATA = {"task": "detect", "names": NAMES, "stride": 32, "imgsz": [SIDE, SIDE], "batch": 1, "args": {}}


def write_detector(path: Path, batch: int = 1, layers: int = 1) -> Path:
    """A patch convolution to three classes, after `layers` convolutions that only cost time."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "images"
    for i in range(layers):
        weights.append(numpy_helper.from_array(rng.normal(0, 0.1, (3, 3, 3, 3)).astype(np.float32), f"w{i}"))
        name = f"/model.{i}/conv/Conv"
        nodes.append(helper.make_node("Conv", [last, f"w{i}"], [f"{name}_output_0"], name, pads=[1, 1, 1, 1]))
        last = f"{name}_output_0"
    weights.append(numpy_helper.from_array(rng.normal(0, 0.01, (7, 3, 32, 32)).astype(np.float32), "w"))
    weights.append(numpy_helper.from_array(np.array([batch, 7, -1]), "shape"))
    maps = f"/model.{layers}/cv/Conv_output_0"
    nodes.append(helper.make_node("Conv", [last, "w"], [maps], f"/model.{layers}/cv/Conv", strides=[32, 32]))
    nodes.append(helper.make_node("Sigmoid", [maps], ["scores"], f"/model.{layers}/Sigmoid"))
    nodes.append(helper.make_node("Reshape", ["scores", "shape"], ["output0"], f"/model.{layers}/Reshape"))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "detector",
        [value("images", TensorProto.FLOAT, [batch, 3, SIDE, SIDE])],
        [value("output0", TensorProto.FLOAT, [batch, 7, (SIDE // 32) ** 2])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {key: str(value) for key, value in METADATA.items()})
    onnx.save(model, path)
    return path


def make_record(factor: float = 1.0, **machine: object) -> Record:
    """A record of two models in two cells; `factor` multiplies the times of the first."""
    models = [
        Model("ours", "ours.pt", "trained", 300_000, {"320": 0.4}, [Accuracy(320, "fp16", 0.25, 0.4, "coco val")]),
        Model("yolo26n", "yolo26n.yaml", "random, seed 0", 2_400_000, {"320": 1.4}),
    ]
    cells = []
    for boundary, base in (("forward", 1.0), ("pipeline", 3.0)):
        results = []
        for name, scale in (("ours", factor), ("yolo26n", 4.0)):
            rounds = [base * scale * wobble for wobble in (0.99, 1.0, 1.0, 1.01, 1.02)]
            ratio = Ratio(4 / scale, 4 / scale, 4 / scale, [4 / scale] * 5)
            results.append(
                Result(
                    name,
                    trials=[Trial("default", "raw output", 1.0, 0.1), Trial("graph", "raw output", error="no graph")],
                    setting="default",
                    variant="raw output",
                    provider="CUDAExecutionProvider",
                    rounds_ms=rounds,
                    median_ms=rounds[2],
                    p5_ms=rounds[0],
                    p95_ms=rounds[-1],
                    ratios={"yolo26n": ratio},
                )
            )
        cells.append(Measured(320, 1, "fp16", boundary, results))
    base_machine = {"device": "GPU A", "driver": "1", "cpu": "C", "cores": 8, "threads": 2}
    how = {"rounds": 5, "runs": 50, "references": ["yolo26n"], "pictures": "2, shipped", "search": "every setting"}
    how |= {"settings": [{"name": "default"}, {"name": "graph"}]}
    versions = {"onnxruntime": "1.31.1", "cuda": "13.0", "cudnn": "9"}
    started = "2026-01-01T00:00:00+00:00"
    return Record("yolo-lat benchmark", started, base_machine | machine, versions, how, "peak", models, cells, True)
