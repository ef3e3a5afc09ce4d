"""YOLO-LAT: real-time object detection with exact linear attention (ELA) and Hyper-Links.

Importing the package costs milliseconds: `YOLOLAT` and everything that needs torch are loaded on first use, so that
`yolo_lat.deploy` runs on machines without torch.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo_lat.errors import UserError

if TYPE_CHECKING:
    from yolo_lat.engine.model import YOLOLAT

__version__ = "0.1.0"
__all__ = ["YOLOLAT", "__version__"]

# Ultralytics reads these once, at its own import: no downloads, no pip runs and no telemetry unless the user asks, and
# settings of our own, so that those of plain Ultralytics stay as they are.
_CONFIG = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "yolo-lat"
for _name, _value in {"YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "0", "YOLO_CONFIG_DIR": str(_CONFIG)}.items():
    os.environ.setdefault(_name, _value)

# What each extra installs, and what comes with that, by the names of the modules.
_EXTRAS = {
    "train": {
        *("torch", "torchvision", "ultralytics", "cloudpickle", "pycocotools", "safetensors", "onnx", "onnxslim"),
        *("matplotlib", "faster_coco_eval", "lap", "psutil"),
    },
    "serve": {"fastapi", "uvicorn", "python_multipart", "prometheus_client", "starlette", "pydantic"},
    "demo": {"av", "supervision", "scipy"},
    "ray": {"ray", "pyarrow", "pandas"},
}


def missing_package(error: ModuleNotFoundError) -> UserError | None:
    """Return what to tell a user whose light install lacks a package of an extra, None for other modules."""
    package = (error.name or "").partition(".")[0]
    extra = next((name for name, modules in _EXTRAS.items() if package in modules), None)
    if extra is None:
        return None
    return UserError(f"this needs {package}, which is not installed; run: pip install 'yolo-lat[{extra}]'")


def __getattr__(name: str) -> Any:
    if name == "YOLOLAT":
        try:
            from yolo_lat.engine.model import YOLOLAT
        except ModuleNotFoundError as error:
            raise (missing_package(error) or error) from None

        return YOLOLAT
    raise AttributeError(f"module 'yolo_lat' has no attribute {name!r}")
