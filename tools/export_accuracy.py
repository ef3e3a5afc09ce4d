"""Average precision of a trained model in PyTorch and in every precision of its export, on the same images.

    python tools/export_accuracy.py OUT.json DATA IMGSZ WEIGHTS [WEIGHTS ...]

for example

    python tools/export_accuracy.py docs/results/export-voc12.json voc12.yaml 320 voc12-p.safetensors

DATA is a data YAML or a name; its training images calibrate INT8, its validation split is what is scored. Everything
runs on the CPU. The record also says how far the boxes of each file lie from PyTorch's on real pictures, as its export
found.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnxruntime

from yolo_lat import YOLOLAT

PRECISIONS: dict[str, dict[str, Any]] = {"fp32": {}, "fp16": {"quantize": 16}, "int8": {"quantize": 8}}


def main() -> None:
    """Export, evaluate, record."""
    if len(sys.argv) < 5 or not sys.argv[3].isdigit():
        sys.exit(__doc__)
    out, data, imgsz, weights = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4:]
    record = {
        "command": " ".join(["python tools/export_accuracy.py", *sys.argv[1:]]),
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
        "cpu_threads": "as Ultralytics chooses",
        "python": platform.python_version(),
        "versions": {
            "onnxruntime": onnxruntime.__version__,  # of whichever of its packages is installed
            **{name: version(name) for name in ("torch", "ultralytics", "onnx", "pycocotools")},
        },
        "models": [examine(Path(path), data, imgsz) for path in weights],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for model in record["models"]:
        print(model["weights"], f"pytorch {model['pytorch']['AP']:.4f}", end="")
        print("".join(f", {name} {model[name]['coco']['AP']:.4f}" for name in PRECISIONS))


def examine(weights: Path, data: str, imgsz: int) -> dict[str, Any]:
    """Return the twelve numbers of one checkpoint and of its exports."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copy(weights, folder))
        row: dict[str, Any] = {"weights": weights.name, "pytorch": evaluate(copy, data, imgsz, folder)}
        for name, arguments in PRECISIONS.items():
            model = YOLOLAT(copy)
            source = {"data": data} if name == "int8" else {}
            file = Path(model.export(imgsz=imgsz, **arguments, **source))
            found = model.exported.differences
            row[name] = {
                "coco": evaluate(file, data, imgsz, folder),
                "bytes": file.stat().st_size,
                "best_300_boxes_px": float(found.top_boxes.max()),
                "best_300_scores": float(found.top_scores.max()),
            }
    return row


def evaluate(model: Path, data: str, imgsz: int, folder: str) -> dict[str, float]:
    """Return the twelve numbers on the validation split, one image a batch and every image square."""
    arguments = {"imgsz": imgsz, "batch": 1, "rect": False, "plots": False, "device": "cpu", "project": folder}
    return dict(YOLOLAT(model).val(data=data, **arguments).coco)


if __name__ == "__main__":
    main()
