"""Timing: choosing a setting by a short trial, then interleaved rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from subprocess import SubprocessError

import numpy as np

from yolo_lat.deploy.benchmark.contenders import Contender
from yolo_lat.deploy.benchmark.record import Ratio, Trial
from yolo_lat.deploy.benchmark.settings import Setting, Variant
from yolo_lat.deploy.session import ORT_ERRORS
from yolo_lat.errors import UserError

FAILURES: tuple[type[Exception], ...] = (
    UserError,
    MemoryError,
    RuntimeError,
    SubprocessError,
    *ORT_ERRORS,
)
Clock = Callable[[], int]


def timed(contender: Contender, turns: Iterable[int], clock: Clock = time.perf_counter_ns) -> list[float]:
    """Run a contender once for each turn and return the times in milliseconds."""
    times = []
    for turn in turns:
        contender.prepare(turn)
        start = clock()
        contender.run()
        times.append((clock() - start) / 1e6)
    return times


class Search:
    """Trials of one model in one cell; the best contender so far stays open, the others are closed.

    Args:
        open_contender: opens the model with a setting, in a variant.
        warmup: runs before the timed ones.
        runs: timed runs of each trial.
        memory_mb: tells how much of the device's memory is in use, None where that cannot be told.

    Attributes:
        trials: what was tried, in order.
        best: the contender with the smallest median; None while all failed.
        choice: its setting and variant.
    """

    def __init__(
        self,
        open_contender: Callable[[Setting, Variant], Contender],
        warmup: int,
        runs: int,
        memory_mb: Callable[[], float | None] = lambda: None,
    ) -> None:
        self._open, self._warmup, self._runs, self._memory_mb = open_contender, warmup, runs, memory_mb
        self.trials: list[Trial] = []
        self.best: Contender | None = None
        self.choice: tuple[Setting, Variant] | None = None
        self._least = float("inf")

    def attempt(self, setting: Setting, variant: Variant) -> None:
        """Try one setting and keep its contender if none was faster."""
        try:
            before = self._memory_mb()
            start = time.perf_counter()
            contender = self._open(setting, variant)
            timed(contender, [0])
            setup = time.perf_counter() - start
            timed(contender, range(self._warmup))
            found = median(timed(contender, range(self._runs)))
            after = self._memory_mb()
        except FAILURES as error:
            self.trials.append(Trial(setting.name, variant.name, error=first_sentence(error)))
            return
        grown = None if before is None or after is None else round(after - before, 1)
        self.trials.append(Trial(setting.name, variant.name, round(found, 5), round(setup, 3), grown))
        if found < self._least:
            self._least, self.best, self.choice = found, contender, (setting, variant)

    def settings(self, settings: Sequence[Setting], variant: Variant, exhaustive: bool) -> None:
        """Try settings: all, or those with a CUDA graph first and then the best layout without one.

        A session takes seconds to open on CUDA, and one that captured a graph only replays it.
        """
        graphs = [setting for setting in settings if setting.cuda_graph]
        for setting in settings if exhaustive else graphs:
            self.attempt(setting, variant)
        if exhaustive:
            return
        rest = [setting for setting in settings if not setting.cuda_graph]
        if self.choice:
            layout = self.choice[0].prefer_nhwc, self.choice[0].fuse_conv_bias
            rest = [setting for setting in rest if (setting.prefer_nhwc, setting.fuse_conv_bias) == layout]
        for setting in rest:
            self.attempt(setting, variant)


def first_sentence(error: BaseException) -> str:
    """Return an error as one line."""
    line = " ".join(str(error).split())
    return line if isinstance(error, UserError) else f"{type(error).__name__}: {line}"[:400]


def interleave(
    contenders: Mapping[str, Contender],
    rounds: int,
    runs: int,
    warmup: int,
    clock: Clock = time.perf_counter_ns,
    block_done: Callable[[], None] = lambda: None,
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Time contenders in turns, A B C A B C: each round gives every contender a block of runs.

    Args:
        contenders: by name, in the order of a round.
        rounds: how often every contender has its turn.
        runs: timed runs of a contender in a round.
        warmup: untimed runs of each before the first round; a tenth of them, at least one, precedes every block.
        clock: nanoseconds.
        block_done: called after each block.

    Returns:
        Times in milliseconds, (rounds, runs) for each name; and an error for each that failed, which leaves the rounds.
    """
    left, errors = dict(contenders), dict[str, str]()
    times: dict[str, list[list[float]]] = {name: [] for name in contenders}
    for number in range(-1, rounds):
        for name, contender in list(left.items()):
            try:
                if number < 0:
                    timed(contender, range(warmup), clock)
                else:
                    timed(contender, range(max(warmup // 10, 1)), clock)
                    times[name].append(timed(contender, range(number * runs, (number + 1) * runs), clock))
            except FAILURES as error:
                errors[name] = first_sentence(error)
                del left[name], times[name]
            block_done()
    return {name: np.array(found) for name, found in times.items()}, errors


def ratio(reference_ms: np.ndarray, model_ms: np.ndarray) -> Ratio:
    """Return how many times as fast as the reference a model is, formed within each round.

    Args:
        reference_ms: (rounds, runs) milliseconds.
        model_ms: (rounds, runs) milliseconds of the same rounds.
    """
    each = np.median(reference_ms, axis=1) / np.median(model_ms, axis=1)
    median_, low, high = (round(float(value), 4) for value in (np.median(each), each.min(), each.max()))
    return Ratio(median_, low, high, each.round(4).tolist())
