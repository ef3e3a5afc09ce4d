"""How fast the demo runs: frames a second, milliseconds of each stage, time from capture to display."""

from __future__ import annotations

import time
from collections import deque
from statistics import quantiles

_STAGES = ("read", "detect", "write")


class Stats:
    """Rates over the last two seconds or so, and over the whole run.

    Attributes:
        frames: frames that came out at the end.
        delays_s: time from capture to display, or to the file, of the latest frames, seconds.
    """

    def __init__(self) -> None:
        self.frames, self.began_s = 0, time.monotonic()
        self._times: deque[float] = deque(maxlen=60)
        self._recent = {stage: deque[float](maxlen=30) for stage in _STAGES}
        self._sums = dict.fromkeys(_STAGES, 0.0)
        self.delays_s: deque[float] = deque(maxlen=10_000)

    def add(self, read_ms: float, detect_ms: float, write_ms: float, delay_s: float) -> None:
        """Count a frame that was shown or written `delay_s` seconds after it was captured."""
        self.frames += 1
        self._times.append(time.monotonic())
        self.delays_s.append(delay_s)
        for stage, value in zip(_STAGES, (read_ms, detect_ms, write_ms), strict=True):
            self._recent[stage].append(value)
            self._sums[stage] += value

    @property
    def fps(self) -> float:
        """Frames a second of the last frames."""
        span = self._times[-1] - self._times[0] if len(self._times) > 1 else 0.0
        return (len(self._times) - 1) / span if span else 0.0

    def recent_ms(self) -> dict[str, float]:
        """Return the mean milliseconds of each stage in the last frames."""
        return {stage: sum(values) / max(len(values), 1) for stage, values in self._recent.items()}

    def delays_ms(self) -> dict[str, float]:
        """Return the median and the 95th percentile of the time from capture to display of the latest frames."""
        if len(self.delays_s) < 2:
            return {}
        cuts = quantiles(self.delays_s, n=20)
        return {"median": round(1e3 * cuts[9], 2), "p95": round(1e3 * cuts[18], 2)}

    def whole(self) -> dict[str, float]:
        """Return frames, seconds, frames a second and mean milliseconds of the whole run."""
        seconds = time.monotonic() - self.began_s
        stages = {f"{stage}_ms": round(total / max(self.frames, 1), 3) for stage, total in self._sums.items()}
        return {"frames": self.frames, "seconds": round(seconds, 3), "fps": round(self.frames / seconds, 2), **stages}
