"""How fast a training runs, and what it waits for."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

import torch

from yolo_lat.engine.ranks import RANKS


class Throughput:
    """Counts the images of an epoch, its time, and how much of that the loop waited for data.

    Attributes:
        images: of the epoch so far, those of other processes that train along included.
        waited: seconds in which the loop waited for batches.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._training = self._first = time.perf_counter()
        self.start_epoch()

    def start_epoch(self) -> None:
        """Begin to count anew."""
        self.images, self.waited = 0, 0.0
        self._begin = time.perf_counter()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def watch(self, batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the batches of an epoch, and count them."""
        source = iter(batches)
        while True:
            asked = time.perf_counter()
            batch = next(source, None)
            self.waited += time.perf_counter() - asked
            if batch is None:
                return
            self.images += len(batch["img"]) * RANKS
            yield batch

    def finish_epoch(self) -> None:
        """Wait for the device, so that the epoch's time is that of its work and not of queueing it."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds = time.perf_counter() - self._begin

    def columns(self) -> dict[str, float]:
        """Return what results.csv takes of a finished epoch.

        Images a second of training, loading included and validation not; the share of that time in which the loop
        waited for data; and the most memory that tensors took on the GPU, GiB.
        """
        return {
            "speed/images_per_s": round(self.images / self.seconds, 1),
            "speed/data_wait": round(self.waited / self.seconds, 4),
            "speed/gpu_memory_gib": round(self.memory(), 3),
        }

    def memory(self) -> float:
        """Return the most memory that tensors took on the GPU in this epoch, GiB; 0 on a CPU."""
        return torch.cuda.max_memory_allocated(self._device) / 2**30 if self._device.type == "cuda" else 0.0

    def line(self) -> str:
        """Return images a second and the share of waiting, so far in this epoch."""
        seconds = max(time.perf_counter() - self._begin, 1e-9)
        return f"{self.images / seconds:.0f} img/s, {self.waited / seconds:.0%} waiting for data"

    def remaining(self, done: float, total: float) -> str:
        """Return how long `total` epochs take yet, after `done` of them since the training began, as h:mm:ss."""
        if done <= 0:
            return "-"
        spent = time.perf_counter() - self._training
        return str(timedelta(seconds=round(spent / done * (total - done))))
