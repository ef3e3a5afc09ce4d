"""What a server may be told, checked once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from yolo_lat.errors import UserError

LOWEST_CONF = 0.01  # below it, thousands of boxes of every picture enter suppression and hold up the other requests
MOST_DET = 1000
_WHOLE: dict[str, tuple[int, int]] = {
    "port": (0, 65535),
    "max_det": (1, MOST_DET),
    "max_batch": (1, 256),
    "queue": (1, 10_000),
    "workers": (1, 64),
    "threads": (1, 1024),
}
_OPEN = ("max_batch", "threads", "box_vote")  # None for what is found best, or for no votes
_NUMBERS: dict[str, tuple[float, float]] = {
    "conf": (LOWEST_CONF, 1),
    "iou": (0, 1),
    "box_vote": (0, 1),
    "wait_ms": (0, 1000),
    "timeout": (0.1, 600),
    "max_mb": (0.001, 200),
    "max_megapixels": (0.001, 89),  # Pillow warns of decompression bombs above
}


@dataclass(frozen=True)
class ServeSettings:
    """How to serve one model.

    Attributes:
        model: the `.onnx` file.
        host: address to listen on; others than this machine reach anything but a loopback address.
        port: TCP port, 0 for one that is free.
        device: "cpu", "cuda" or "cuda:N"; CUDA is used or refused.
        imgsz: input size in pixels, for a model of dynamic size.
        threads: CPU threads of one inference; None for ONNX Runtime's choice, one per physical core.
        conf, iou, max_det: thresholds of requests that name none.
        box_vote: overlap from which boxes vote on those that suppression keeps, for all requests; None for no votes.
        max_batch: most pictures to run at once; None for the batch that the model is fixed to, or else what a
            measurement at the start finds best.
        wait_ms: how long a picture waits for others that are on their way, to share its batch, milliseconds.
        queue: most pictures being decoded, waiting or running; further ones are refused.
        timeout: seconds for a body to arrive, and again for its picture to be answered.
        max_mb: largest body, 10^6 bytes.
        max_megapixels: largest picture, 10^6 pixels.
        workers: threads that decode and encode pictures.

    Raises:
        UserError: a value outside its range, or a model that is no `.onnx` file.
    """

    model: Path
    host: str = "127.0.0.1"
    port: int = 8000
    device: str = "cpu"
    imgsz: int | Sequence[int] | None = None
    threads: int | None = None
    conf: float = 0.25
    iou: float = 0.7
    max_det: int = 300
    box_vote: float | None = None
    max_batch: int | None = None
    wait_ms: float = 4
    queue: int = 64
    timeout: float = 10
    max_mb: float = 20
    max_megapixels: float = 50
    workers: int = 2

    def __post_init__(self) -> None:
        if self.model.suffix.lower() != ".onnx":
            raise UserError(
                f"model={self.model} is no .onnx file; make one of weights: yolo-lat export model=best.pt dynamic=true"
            )
        for kinds, ranges in ((int, _WHOLE), ((int, float), _NUMBERS)):
            for name, (low, high) in ranges.items():
                value = getattr(self, name)
                if name in _OPEN and value is None:
                    continue
                if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
                    whole = "whole " if kinds is int else ""
                    raise UserError(f"{name}={value} is out of range; pass a {whole}number from {low} to {high}")

    @property
    def max_bytes(self) -> int:
        """Bytes of the largest body."""
        return round(self.max_mb * 1e6)

    @property
    def max_pixels(self) -> int:
        """Pixels of the largest picture."""
        return round(self.max_megapixels * 1e6)
