"""What an exported file says of itself; values are Python literals or single words, as Ultralytics reads them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import ultralytics
from onnx import ModelProto

from yolo_lat import __version__
from yolo_lat.deploy.onnx_detector import UINT8_INPUT
from yolo_lat.deploy.preprocess import PADDING_GREY

if TYPE_CHECKING:
    from yolo_lat.engine.export import OnnxOptions, Trace

_QUANTIZE = {"fp32": None, "fp16": 16, "int8": 8}
_LETTERBOX = {"letterbox": "centred", "padding": PADDING_GREY}
_FLOAT_INPUT = {**_LETTERBOX, "colour": "RGB", "scale": "1/255", "layout": "NCHW"}
_BYTE_INPUT = {**_LETTERBOX, "colour": "BGR", "scale": "1", "layout": "NHWC"}


def metadata_of(trace: Trace, options: OnnxOptions, precision: str, finished: bool = False) -> dict[str, Any]:
    """Return the metadata of a file; nothing in it tells of the machine or the hour of the export.

    Args:
        trace: the traced network.
        options: what the file is to be.
        precision: fp32, fp16 or int8.
        finished: whether the output and the input are those of `options` already.
    """
    args, network = trace.args, trace.network
    inside = {"conf": args.conf, "iou": args.iou, "max_det": args.max_det} if options.nms else {}
    kept = {key: getattr(args, key) for key in ("batch", "dynamic", "simplify", "opset")}
    strides = [int(stride) for stride in network.stride]
    takes_bytes = finished and options.preprocess
    nms = options.nms if finished else options.nms and None
    return {
        "description": f"{trace.file.stem}: a detector of {len(trace.names)} classes, exported by YOLO-LAT",
        "author": "YOLO-LAT",
        "version": __version__,
        "ultralytics": ultralytics.__version__,
        "license": "AGPL-3.0",
        "stride": max(strides),
        "strides": strides,
        "task": "detect",
        "head": type(trace.head).__name__,
        "batch": args.batch,
        "imgsz": list(trace.imgsz),
        "names": trace.names,
        "args": {
            **kept,
            "quantize": _QUANTIZE[precision],
            "nms": nms,
            "data": Path(options.data).name if options.data else None,
            "fraction": options.fraction,
            **(inside if finished else {}),
        },
        "channels": 3,
        "end2end": options.nms is False,
        "parameters": trace.parameters,
        "gflops": round(trace.gflops, 4),
        "precision": precision,
        "target": options.target,
        "output": options.output if finished else "nms-free" if options.nms is False else "raw",
        **({"preprocessing": UINT8_INPUT, "input": _BYTE_INPUT} if takes_bytes else {"input": _FLOAT_INPUT}),
    }


def write_metadata(model: ModelProto, metadata: dict[str, Any]) -> None:
    """Replace a model's metadata."""
    del model.metadata_props[:]
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=str(value))
    model.producer_name, model.producer_version = "yolo-lat", __version__
