"""A real server on a free port of the loopback address, in a thread of the test, and what tests ask of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from yolo_lat.serve.app import Service
from yolo_lat.serve.detector import Frame, ServedDetector
from yolo_lat.serve.server import Server, bind
from yolo_lat.serve.settings import ServeSettings


class Gated(ServedDetector):
    """A detector that waits for `gate` before each batch, and remembers how many frames each had.

    `entered` is set as soon as the first batch waits there.
    """

    def __init__(self, settings: ServeSettings) -> None:
        super().__init__(settings)
        self.gate, self.entered, self.batches = threading.Event(), threading.Event(), list[int]()
        self.fails: Exception | None = None

    def detect(self, frames: list[Frame]) -> list[Any]:
        self.entered.set()
        self.gate.wait(60)
        self.batches.append(len(frames))
        if self.fails:
            raise self.fails
        return super().detect(frames)


@dataclass(frozen=True)
class Running:
    """A server that runs, and a client of it."""

    service: Service
    server: Server
    client: httpx.Client
    port: int

    def detect(self, content: bytes, **query: Any) -> httpx.Response:
        return self.client.post("/detect", content=content, params=query)

    def metrics(self) -> dict[str, float]:
        """Samples by name and labels, those of more than one label as name{a=x,b=y}."""
        families = text_string_to_metric_families(self.client.get("/metrics").text)
        return {
            sample.name
            + ("{" + ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items())) + "}")
            * bool(sample.labels): sample.value
            for family in families
            for sample in family.samples
        }


@contextmanager
def serving(
    model: Path, make: Callable[[ServeSettings], ServedDetector] = ServedDetector, **settings: Any
) -> Iterator[Running]:
    """Serve a model while the context lasts."""
    given = ServeSettings(model, port=0, **{"threads": 1, "max_batch": 8, **settings})
    with bind(given.host, given.port) as listener:
        port = listener.getsockname()[1]
        service = Service(make(given), given)
        server = Server(service, listener)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        wait_until(lambda: server.started)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield Running(service, server, client, port)
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive(), "the server does not end"


def wait_until(true: Callable[[], bool], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.005)


def squares(seed: int, size: tuple[int, int] = (48, 80)) -> np.ndarray:
    """A BGR picture of random red, green and blue blocks, large enough to be found after scaling to 64 px."""
    rng = np.random.default_rng(seed)
    cells = np.zeros((size[0] // 8, size[1] // 8, 3), np.uint8)
    for _ in range(6):
        cells[rng.integers(cells.shape[0]), rng.integers(cells.shape[1]), rng.integers(3)] = rng.integers(120, 256)
    return cells.repeat(8, 0).repeat(8, 1)


def encoded(image_bgr: np.ndarray, suffix: str = ".png") -> bytes:
    done, content = cv2.imencode(suffix, image_bgr)
    assert done
    return content.tobytes()
