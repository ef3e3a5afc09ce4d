"""Batches: what goes in comes out, together, in order, and without what nobody waits for any more."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import wait_until

from yolo_lat.serve.batcher import Batcher


class Doubling:
    """Doubles numbers, when `gate` lets it."""

    def __init__(self) -> None:
        self.gate, self.batches = threading.Event(), list[list[int]]()

    def __call__(self, numbers: list[int]) -> list[int]:
        self.gate.wait(60)
        self.batches.append(numbers)
        if -1 in numbers:
            raise ArithmeticError("minus one")
        return [2 * number for number in numbers]


@pytest.fixture
def doubling():
    doubling = Doubling()
    yield doubling
    doubling.gate.set()


def test_what_waits_while_a_batch_runs_is_the_next_batch(doubling):
    seen: list[int] = []
    batcher = Batcher(doubling, max_batch=3, wait_ms=0, observe=lambda items, ms: seen.append(items))
    first = batcher.submit(1)
    wait_until(lambda: batcher.waiting == 0)
    others = [batcher.submit(number) for number in range(2, 7)]
    doubling.gate.set()
    assert [f.result(60).result for f in (first, *others)] == [2, 4, 6, 8, 10, 12]
    assert doubling.batches == [[1], [2, 3, 4], [5, 6]]
    assert [f.result().batch for f in (first, *others)] == [1, 3, 3, 3, 2, 2]
    batcher.close()
    assert seen == [1, 3, 2]


def test_a_full_batch_does_not_wait(doubling):
    doubling.gate.set()
    batcher = Batcher(doubling, max_batch=2, wait_ms=120_000)
    pair = [batcher.submit(1), batcher.submit(2)]
    assert [f.result(60).batch for f in pair] == [2, 2]
    batcher.close()


def test_a_lone_item_waits_no_longer_than_told(doubling):
    doubling.gate.set()
    batcher = Batcher(doubling, max_batch=2, wait_ms=200)
    lone = batcher.submit(3).result(60)
    assert lone.batch == 1
    assert 200 <= lone.wait_ms < 30_000
    batcher.close()


def test_nobody_waits_for_what_is_not_coming(doubling):
    doubling.gate.set()
    batcher = Batcher(doubling, max_batch=2, wait_ms=120_000, coming=lambda: 0)
    assert batcher.submit(1).result(60).batch == 1
    batcher.close()


def test_cancelled_items_are_left_out(doubling):
    batcher = Batcher(doubling, max_batch=8, wait_ms=0)
    first = batcher.submit(1)
    wait_until(lambda: batcher.waiting == 0)
    gone, kept = batcher.submit(2), batcher.submit(3)
    assert gone.cancel()
    doubling.gate.set()
    assert (first.result(60).result, kept.result(60).result) == (2, 6)
    batcher.close()
    assert doubling.batches == [[1], [3]]


def test_an_error_reaches_its_batch_and_the_thread_goes_on(doubling):
    doubling.gate.set()
    batcher = Batcher(doubling, max_batch=1, wait_ms=0)
    bad, good = batcher.submit(-1), batcher.submit(4)
    with pytest.raises(ArithmeticError):
        bad.result(60)
    assert good.result(60).result == 8
    assert batcher.alive
    batcher.close()


def test_closing_runs_what_waits_and_takes_nothing_more(doubling):
    batcher = Batcher(doubling, max_batch=2, wait_ms=60_000)
    waiting = batcher.submit(1)
    doubling.gate.set()
    batcher.close()
    assert waiting.result(0).result == 2
    assert not batcher.alive
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(2)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 99), st.booleans()), max_size=30), st.integers(1, 5))
def test_results_equal_those_without_batches(items, max_batch):
    """Items that are not cancelled get what they would alone; batches are no larger than allowed, and in order."""
    doubling = Doubling()
    batcher = Batcher(doubling, max_batch, wait_ms=0)
    futures = [batcher.submit(number) for number, _ in items]
    cancelled = [future.cancel() for future, (_, cancel) in zip(futures, items, strict=True) if cancel]
    doubling.gate.set()
    batcher.close()
    kept = [(f, number) for f, (number, _) in zip(futures, items, strict=True) if not f.cancelled()]
    assert len(kept) + sum(cancelled) == len(items)
    assert all(f.result(0).result == 2 * number for f, number in kept)
    assert [number for batch in doubling.batches for number in batch] == [number for _, number in kept]
    assert all(1 <= len(batch) <= max_batch for batch in doubling.batches)
