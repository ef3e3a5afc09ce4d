"""What Prometheus reads: counts, durations and sizes of one server."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Metrics of one server, in a registry of its own.

    Args:
        waiting: returns how many pictures wait for a batch.
        busy: returns how many are being decoded, wait or run.
    """

    def __init__(self, waiting: Callable[[], int], busy: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "yolo_lat_requests",
            "Requests by path and status; 499 is a client that went away",
            ("path", "status"),
            registry=self._registry,
        )
        self.seconds = Histogram(
            "yolo_lat_request_seconds",
            "Seconds from a request's head to the end of its answer",
            ("path",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._batch = Histogram("yolo_lat_batch_size", "Pictures of a batch", buckets=_ITEMS, registry=self._registry)
        self._inference = Histogram(
            "yolo_lat_inference_seconds",
            "Seconds of a batch in network and suppression",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.in_flight = Gauge("yolo_lat_in_flight", "Requests being answered", registry=self._registry)
        for name, text, value in (
            ("yolo_lat_queue_length", "Pictures that wait for a batch", waiting),
            ("yolo_lat_pictures", "Pictures being decoded, waiting or running, which queue= limits", busy),
        ):
            Gauge(name, text, registry=self._registry).set_function(value)

    def observe_batch(self, items: int, milliseconds: float) -> None:
        """Count a batch."""
        self._batch.observe(items)
        self._inference.observe(milliseconds / 1000)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)
