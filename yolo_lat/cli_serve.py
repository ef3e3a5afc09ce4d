"""What the mode that answers over HTTP does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from yolo_lat.cli_run import require


def _serve(options: dict[str, Any]) -> None:
    require("serve", options, "model")
    from yolo_lat.deploy.session import device_name
    from yolo_lat.serve.server import run
    from yolo_lat.serve.settings import ServeSettings

    given = {key: value for key, value in options.items() if value is not None}
    given["model"] = Path(str(given["model"]))
    if "device" in given:
        given["device"] = device_name(given["device"])
    run(ServeSettings(**given))


RUN_SERVE: dict[str, Callable[[dict[str, Any]], None]] = {"serve": _serve}
