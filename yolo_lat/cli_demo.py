"""What the mode for videos, pictures and live streams does."""

from __future__ import annotations

import json
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from yolo_lat.cli_run import require, trust_if_asked
from yolo_lat.errors import UserError

_SIGTERM_STATUS = 128 + signal.SIGTERM


def _demo(options: dict[str, Any]) -> None:
    folder = options.pop("resume", None)
    if folder is None:
        require("demo", options, "model", "source")
    elif other := sorted(options.keys() - {"show", "device", "trust"}):
        raise UserError(f"resume= goes on as the run began; leave {other[0]}= out")
    from yolo_lat.demo.session import DemoOptions, resume_demo, run_demo

    trust_if_asked(options.pop("trust", False), [options["model"] if folder is None else _model_of(folder)])
    for key in ("device", "zones"):
        if options.get(key) is not None:
            options[key] = str(options[key])
    if folder is None:
        model, source = str(options.pop("model")), str(options.pop("source"))
        done = run_demo(DemoOptions(model, source, **options))
    else:
        done = resume_demo(str(folder), **options)
    way_on = f"to go on: yolo-lat demo resume={shlex.quote(str(done.folder))}" if done.unfinished else ""
    if done.signal == signal.SIGINT:
        raise KeyboardInterrupt(*filter(None, [way_on]))
    if way_on:
        print(way_on)
    if done.signal:
        raise SystemExit(_SIGTERM_STATUS)


def _model_of(folder: Any) -> Any:
    """Return the model of an unfinished run, None where there is none, of which its continuation complains."""
    try:
        return json.loads(Path(folder, "run.json").read_text(encoding="utf-8"))["options"]["model"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


RUN_DEMO: dict[str, Callable[[dict[str, Any]], None]] = {"demo": _demo}
