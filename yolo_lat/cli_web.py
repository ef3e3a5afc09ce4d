"""What the mode for the page in the browser does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from yolo_lat.cli_run import require, value_of
from yolo_lat.errors import UserError
from yolo_lat.interrupts import first_signal

_LOOK_EVERY = 0.5  # seconds; a signal that another thread gets wakes nobody


def _demo_web(options: dict[str, Any]) -> None:
    require("demo web", options, "model")
    host, port, conf = (value_of("demo web", options, key) for key in ("host", "port", "conf"))
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
        raise UserError(f"port={port} is no port; pass a number from 0, for any that is free, to 65535")
    if isinstance(conf, bool) or not isinstance(conf, int | float):
        raise UserError(f"conf={conf} is no threshold; pass a number from 0.01 to 1")
    if output := options.get("output"):
        if other := sorted(options.keys() & {"host", "port", "open"}):
            raise UserError(f"output= writes a folder and serves nothing; leave {other[0]}= out")
        if Path(str(output)).exists():
            raise UserError(f"output={output} exists already; name a new folder or remove that one")
    from yolo_lat.demo.web.server import PageServer, is_loopback
    from yolo_lat.demo.web.site import build_site, write_site

    site = build_site(_paths(options["model"]), float(conf))
    if output:
        folder = write_site(site, str(output))
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        print(f"{folder}: {len(site)} files, {size / 1e6:.1f} MB; docs/web.md says what a web host has to send")
        return
    stop = threading.Event()
    with PageServer(site, str(host), port) as server, first_signal(stop):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(f"{server.url} (Ctrl-C ends it)", flush=True)
        if not is_loopback(server.server_address[0]):
            print("other machines reach it; browsers give them no camera and one thread, since it is no https")
        if options.get("open"):
            import webbrowser

            webbrowser.open(server.url)
        while not stop.wait(_LOOK_EVERY):
            pass
        server.shutdown()
    print("ended")


def _paths(model: Any) -> list[str]:
    """Return the files that `model=a.onnx,b.onnx` or `model=[a.onnx, b.onnx]` names."""
    words = model if isinstance(model, list | tuple) else str(model).split(",")
    return [str(word).strip() for word in words if str(word).strip()]


RUN_WEB: dict[str, Callable[[dict[str, Any]], None]] = {"demo web": _demo_web}
