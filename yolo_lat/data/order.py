"""Which sample comes when, and with which random numbers: a function of seed, epoch and position alone.

A training that goes on from a checkpoint then sees what it would have seen without the interruption, whichever worker
process makes a sample and whatever that process made before.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch.utils.data import Sampler

_RECENT_BATCHES = 8  # Ultralytics' mosaic draws from as many; images of these batches are still decoded


@dataclass(frozen=True)
class SampleOrder:
    """The samples of a training, numbered by key: epoch times `count` plus the position in the epoch.

    Attributes:
        count: images, and so samples an epoch.
        batch: samples in a batch, of all processes together if several train.
        seed: of the order and of every sample.
        shuffle: draw a new order each epoch; otherwise the images come in theirs.
        workers: processes that make batches in turn.
    """

    count: int
    batch: int
    seed: int
    shuffle: bool = True
    workers: int = 1

    def images(self, epoch: int) -> np.ndarray:
        """Return the order of an epoch, (count,) int64 image indices."""
        return _permutation(self.count, self.seed, epoch) if self.shuffle else np.arange(self.count)

    def image(self, key: int) -> int:
        """Return the image that a sample begins with."""
        epoch, position = divmod(key, self.count)
        return int(self.images(epoch)[position])

    def recent(self, key: int) -> list[int]:
        """Return the images of the batches that the maker of this sample's batch made last, oldest first.

        Workers take batches in turn, so they are every `workers`th batch before this one; at the start of a training
        there are none.
        """
        batches = -(-self.count // self.batch)
        epoch, position = divmod(key, self.count)
        now = epoch * batches + position // self.batch
        found: list[int] = []
        for past in range(now - self.workers * _RECENT_BATCHES, now, self.workers):
            if past >= 0:
                past_epoch, number = divmod(past, batches)
                found += self.images(past_epoch)[number * self.batch : (number + 1) * self.batch].tolist()
        return found

    def batch_of(self, key: int) -> list[int]:
        """Return the images that the samples of a sample's batch begin with."""
        epoch, position = divmod(key, self.count)
        start = position - position % self.batch
        return [int(i) for i in self.images(epoch)[start : start + self.batch]]

    def share(self, rank: int, ranks: int) -> list[int]:
        """Return the positions in an epoch that one of several processes makes samples of: its part of every batch.

        Each part of a batch is as long as the others; where the last one cannot be divided, its first samples come
        again.
        """
        mine: list[int] = []
        for start in range(0, self.count, self.batch):
            size = min(self.batch, self.count - start)
            each = -(-size // ranks)
            mine += [start + (rank * each + i) % size for i in range(each)]
        return mine

    @contextmanager
    def randomness(self, key: int) -> Iterator[None]:
        """Seed Python's and NumPy's global generators for a sample, and put them back afterwards."""
        states = random.getstate(), np.random.get_state()  # noqa: NPY002  what Ultralytics draws from
        random.seed(f"{self.seed} {key}")
        np.random.seed(random.getrandbits(32))  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


@lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


class SampleKeys(Sampler[int]):
    """Yields the keys of one epoch each time it is iterated over, and those of the next the time after.

    Args:
        order: of the samples.
        rank, ranks: which of several processes this one is.

    Attributes:
        epoch: the one that comes next; a data loader that prefetches is ahead of the training.
    """

    def __init__(self, order: SampleOrder, rank: int = 0, ranks: int = 1) -> None:
        self.order, self.epoch = order, 0
        self.positions = order.share(rank, ranks)

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[int]:
        first, self.epoch = self.epoch * self.order.count, self.epoch + 1
        return (first + position for position in self.positions)


class Pool(list[int]):
    """The images that a mosaic may draw from; Ultralytics' data set adds every image that it decodes, in vain."""

    def append(self, index: int) -> None:
        """Leave the pool as it is."""
