"""YOLO-LAT: real-time object detection with exact linear attention (ELA) and Hyper-Links.

Importing the package costs milliseconds: `YOLOLAT` and everything that needs torch are loaded on first use, so that
`yolo_lat.deploy` runs on machines without torch.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yolo_lat.engine.model import YOLOLAT

__version__ = "0.1.0"
__all__ = ["YOLOLAT", "__version__"]

# Ultralytics reads these once, at its own import: no downloads, no pip runs and no telemetry unless the user asks, and
# settings of our own, so that those of plain Ultralytics stay as they are.
_CONFIG = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "yolo-lat"
for _name, _value in {"YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "0", "YOLO_CONFIG_DIR": str(_CONFIG)}.items():
    os.environ.setdefault(_name, _value)


def __getattr__(name: str) -> Any:
    if name == "YOLOLAT":
        from yolo_lat.engine.model import YOLOLAT

        return YOLOLAT
    raise AttributeError(f"module 'yolo_lat' has no attribute {name!r}")
