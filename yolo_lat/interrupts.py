"""Ending on Ctrl-C or SIGTERM at a place of one's own choice."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def first_signal(stop: threading.Event) -> Iterator[list[int]]:
    """Let the first Ctrl-C or SIGTERM set `stop`; the list that is yielded holds its number then.

    A second one acts as usual. In another thread than the main one, which alone may do this, nothing changes.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        stop.set()
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield caught
    finally:
        restore()
