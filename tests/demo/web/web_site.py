"""A site of the page for tests: a stand-in for onnxruntime-web where the real one was not built, and a server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from yolo_lat.demo.web.server import PageServer
from yolo_lat.demo.web.site import RUNTIMES, Asset


def stand_in(folder: Path) -> Path:
    """Write files of the names of onnxruntime-web's, of one byte each, and its texts."""
    folder.mkdir()
    for name in [name for names in RUNTIMES.values() for name in names]:
        (folder / name).write_bytes(b" ")
    for name in ("LICENSE", "NOTICE", "ThirdPartyNotices.txt"):
        (folder / name).write_text(name)
    return folder


@contextmanager
def serving(site: dict[str, Asset], host: str = "127.0.0.1") -> Iterator[PageServer]:
    with PageServer(site, host, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
