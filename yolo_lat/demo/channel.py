"""The bounded queue between two stages of the demo."""

from __future__ import annotations

from collections import deque
from threading import Condition
from typing import Generic, TypeVar

T = TypeVar("T")


class Channel(Generic[T]):
    """A queue of at most `size` items that waits when it is full, or drops its oldest item to hold the newest.

    Args:
        size: most items to hold.
        newest: drop the oldest item rather than wait, as for a live source.

    Attributes:
        dropped: items that gave way to newer ones.
    """

    def __init__(self, size: int, newest: bool = False) -> None:
        self._items: deque[T] = deque()
        self._size, self._newest, self._closed = size, newest, False
        self._changed = Condition()
        self.dropped = 0

    def put(self, item: T) -> bool:
        """Add an item; False when the channel is closed and nobody will take it."""
        with self._changed:
            if self._newest and len(self._items) == self._size:
                self._items.popleft()
                self.dropped += 1
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._size)
            if self._closed:
                return False
            self._items.append(item)
            self._changed.notify_all()
            return True

    def get(self, count: int = 1, timeout: float | None = None) -> list[T]:
        """Wait for `count` items and take them; fewer at the end, none when all are taken or the time is over."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._closed or len(self._items) >= count, timeout):
                return []
            taken = [self._items.popleft() for _ in range(min(count, len(self._items)))]
            self._changed.notify_all()
            return taken

    def close(self) -> None:
        """Let no more items in; those inside may still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def finished(self) -> bool:
        """Whether the channel is closed and empty."""
        with self._changed:
            return self._closed and not self._items
