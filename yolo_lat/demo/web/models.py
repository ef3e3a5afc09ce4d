"""What the page has to know about an ONNX file, read where it can be read: from its metadata and its session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime as ort

from yolo_lat.deploy.onnx_detector import UINT8_INPUT, OnnxDetector
from yolo_lat.deploy.session import ORT_ERRORS, first_line
from yolo_lat.errors import UserError

_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}


def describe(path: Path) -> dict[str, Any]:
    """Return what the page needs to run a detector, as values for JSON.

    Keys: `bytes`; `input` with `name`, `dtype` (float32, float16 or uint8) and `channels_last`; `output` with `name`
    and `kind`, the metadata of that name or None; `imgsz`, (height, width) in pixels; `dynamic`, whether it takes other
    sizes; `stride`; `names`, class names by id.

    Raises:
        UserError: a file that `OnnxDetector` refuses, that is not complete in itself, or that takes no single picture.
    """
    detector = OnnxDetector(path)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    try:  # from memory, as the page does, where no second file of weights is at hand
        session = ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except ORT_ERRORS as error:
        raise UserError(
            f"{path} cannot be opened from memory ({first_line(error)}), as the page has to; "
            "save it as one file that holds its weights"
        ) from error
    node, output = session.get_inputs()[0], session.get_outputs()[0]
    metadata = session.get_modelmeta().custom_metadata_map
    channels_last = metadata.get("preprocessing") == UINT8_INPUT
    batch, *image = node.shape
    sides = image[:2] if channels_last else image[1:]
    if isinstance(batch, int) and batch != 1:
        raise UserError(
            f"{path} takes {batch} pictures at a time and the page shows one; export it with batch=1 or dynamic=true"
        )
    return {
        "bytes": path.stat().st_size,
        "input": {"name": node.name, "dtype": _DTYPES[node.type], "channels_last": channels_last},
        "output": {"name": output.name, "kind": metadata.get("output")},
        "imgsz": list(detector.imgsz),
        "dynamic": not all(isinstance(side, int) for side in sides),
        "stride": detector.stride,
        "names": {str(class_id): name for class_id, name in detector.names.items()},
    }
