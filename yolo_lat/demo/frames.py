"""One picture on its way through the demo, and what went wrong on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, eq=False)
class Frame:
    """A decoded picture, upright.

    Attributes:
        image_bgr: (H, W, 3) uint8.
        index: its number in the source from 0; a live source also counts frames that nobody looked at.
        time_s: presentation time in seconds after the first frame; of a live source, when it arrived.
        captured_s: `time.monotonic()` when it was decoded.
        name: the file it came from, for pictures.
    """

    image_bgr: np.ndarray
    index: int
    time_s: float
    captured_s: float
    name: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.image_bgr.shape[1], self.image_bgr.shape[0]


@dataclass
class Faults:
    """What a source survived: each kind is counted always, and told when it is news.

    Attributes:
        tell: takes one sentence for the user.
        counts: how often each kind happened: "corrupt packets", "reconnects", ...
    """

    tell: Callable[[str], None] = print
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, message: str = "") -> None:
        """Count one more of a kind; its first is told."""
        self.counts[kind] += 1
        if message and self.counts[kind] == 1:
            self.tell(message)
