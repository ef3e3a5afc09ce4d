"""Requests that come one by one, run together by one thread."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Done(NamedTuple, Generic[Result]):
    """The result of one item, and how it came about.

    Attributes:
        result: what `run` returned for it.
        wait_ms: milliseconds it waited before its batch began.
        run_ms: milliseconds its batch took.
        batch: items of its batch.
    """

    result: Result
    wait_ms: float
    run_ms: float
    batch: int


@dataclass(eq=False)
class _Waiting(Generic[Item, Result]):
    item: Item
    since: float = field(default_factory=time.perf_counter)
    future: Future[Done[Result]] = field(default_factory=Future)


class Batcher(Generic[Item, Result]):
    """One thread that runs waiting items in batches, first come, first served.

    A batch begins when `max_batch` items wait, when no more are coming, or when the first of them has waited for
    `wait_ms`; what comes while a batch runs waits for the next. An item whose future was cancelled is left out.

    Args:
        run: computes the results of 1 to `max_batch` items, in their order; called from the one thread only.
        max_batch: most items of a batch.
        wait_ms: how long the first item waits for others, milliseconds.
        observe: called after each batch with its number of items and its milliseconds.
        coming: returns how many items are on their way; the thread asks before it waits for them.

    Example:
        >>> batcher = Batcher(lambda numbers: [2 * n for n in numbers], max_batch=8, wait_ms=1)
        >>> batcher.submit(21).result().result
        42
        >>> batcher.close()
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Sequence[Result]],
        max_batch: int,
        wait_ms: float,
        observe: Callable[[int, float], None] = lambda items, ms: None,
        coming: Callable[[], int] = lambda: 1,
    ) -> None:
        self._run, self._max_batch, self._wait = run, max_batch, wait_ms / 1000
        self._observe, self._coming = observe, coming
        self._waiting: deque[_Waiting[Item, Result]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="inference", daemon=True)
        self._thread.start()

    def submit(self, item: Item) -> Future[Done[Result]]:
        """Queue an item; its future also brings the exception of `run`.

        Raises:
            RuntimeError: the batcher is closed.
        """
        waiting: _Waiting[Item, Result] = _Waiting(item)
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            self._waiting.append(waiting)
            self._changed.notify()
        return waiting.future

    def close(self) -> None:
        """Run what waits, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    @property
    def waiting(self) -> int:
        """Items that wait for a batch."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether the thread takes items."""
        return self._thread.is_alive() and not self._closed

    def _work(self) -> None:
        while batch := self._next_batch():
            begun = time.perf_counter()
            try:
                results = self._run([waiting.item for waiting in batch])
            except Exception as error:  # it belongs to those who wait for this batch; the thread goes on
                for waiting in batch:
                    waiting.future.set_exception(error)
                continue
            run_ms = (time.perf_counter() - begun) * 1000
            self._observe(len(batch), run_ms)
            for waiting, result in zip(batch, results, strict=True):
                waiting.future.set_result(Done(result, (begun - waiting.since) * 1000, run_ms, len(batch)))

    def _next_batch(self) -> list[_Waiting[Item, Result]]:
        """Wait for items that are still wanted and return them; an empty list once closed and done."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return []
                until = self._waiting[0].since + self._wait
                while len(self._waiting) < self._max_batch and self._coming() and not self._closed:
                    left = until - time.perf_counter()
                    if left <= 0:
                        break
                    self._changed.wait(left)
                batch: list[_Waiting[Item, Result]] = []
                while self._waiting and len(batch) < self._max_batch:
                    waiting = self._waiting.popleft()
                    if waiting.future.set_running_or_notify_cancel():
                        batch.append(waiting)
                if batch:
                    return batch
