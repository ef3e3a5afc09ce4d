"""Samples are a function of seed, epoch and position."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler
from ultralytics.cfg import get_cfg
from ultralytics.data.build import InfiniteDataLoader

from yolo_lat.data.dataset import LatDataset, build_dataset
from yolo_lat.data.order import Pool, SampleKeys, SampleOrder
from yolo_lat.data.reader import read_split
from yolo_lat.data.registry import load_dataset

COUNT = st.integers(1, 50)


@given(COUNT, st.integers(0, 2**40), st.integers(0, 1000))
def test_an_epoch_has_every_image_once(count, seed, epoch) -> None:
    order = SampleOrder(count, 4, seed)
    keys = range(epoch * count, (epoch + 1) * count)
    images = [order.image(key) for key in keys]
    assert sorted(images) == list(range(count))
    assert images == order.images(epoch).tolist() == SampleOrder(count, 7, seed, workers=3).images(epoch).tolist()


def test_epochs_and_seeds_differ_and_without_shuffling_they_do_not() -> None:
    order = SampleOrder(100, 4, 0)
    assert order.images(0).tolist() != order.images(1).tolist() != SampleOrder(100, 4, 1).images(1).tolist()
    assert SampleOrder(5, 4, 0, shuffle=False).images(3).tolist() == [0, 1, 2, 3, 4]


@given(COUNT, st.integers(1, 20), st.integers(1, 4), st.integers(0, 60))
def test_the_pool_holds_what_one_of_workers_in_turn_made_last(count, batch, workers, number) -> None:
    """Played through from the start: every worker keeps the images of its last eight batches."""
    order = SampleOrder(count, batch, 7, workers=workers)
    batches = -(-count // batch)
    made: list[list[list[int]]] = [[] for _ in range(workers)]
    for past in range(number):
        epoch, place = divmod(past, batches)
        first = epoch * count + place * batch
        keys = range(first, min(first + batch, (epoch + 1) * count))
        made[past % workers].append([order.image(key) for key in keys])
    epoch, place = divmod(number, batches)
    expected = [image for one in made[number % workers][-8:] for image in one]
    assert order.recent(epoch * count + place * batch) == expected


def test_randomness_is_the_keys_own_and_leaves_none_behind() -> None:
    order = SampleOrder(10, 2, 5)
    drawn = []
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    for key in (3, 4, 3):
        with order.randomness(key):
            drawn.append((random.random(), float(np.random.rand())))  # noqa: NPY002
    assert drawn[0] == drawn[2] != drawn[1]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002


def test_keys_go_on_from_epoch_to_epoch() -> None:
    keys = SampleKeys(SampleOrder(5, 2, 0))
    batches = BatchSampler(keys, 2, drop_last=False)
    assert [list(batches), list(batches)] == [[[0, 1], [2, 3], [4]], [[5, 6], [7, 8], [9]]]
    keys.epoch = 1
    assert next(iter(batches)) == [5, 6]
    assert len(keys) == 5


def test_a_pool_takes_nothing_in() -> None:
    pool = Pool([1, 2])
    pool.append(3)
    assert list(pool) == [1, 2]


@pytest.fixture
def dataset(shapes) -> LatDataset:
    split = read_split(load_dataset(str(shapes)), "train", progress=False)
    hyp = get_cfg(overrides={"imgsz": 64, "mosaic": 1.0, "mixup": 0.5})
    hyp.augmentations = None
    made = build_dataset(split, hyp, 4, 32)
    made.order = SampleOrder(len(made), 4, 11, workers=2)
    return made


def images(loader: InfiniteDataLoader, epochs: int) -> list[torch.Tensor]:
    return [batch["img"] for _ in range(epochs) for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_that_starts_later_makes_the_same_batches(dataset, workers) -> None:
    """The first has decoded other images by then, in the same or other processes."""

    def loader(epoch: int) -> InfiniteDataLoader:
        keys = SampleKeys(dataset.order)
        keys.epoch = epoch
        return InfiniteDataLoader(
            dataset=dataset, batch_size=4, sampler=keys, num_workers=workers, collate_fn=dataset.collate_fn
        )

    through, late = loader(0), loader(2)
    expected, found = images(through, 4)[2 * len(through) :], images(late, 2)
    for made in (through, late):
        made.close()
    assert len(expected) == len(found) > 4
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert not torch.equal(expected[0], expected[len(through)])


def test_no_more_images_are_kept_than_the_pool_and_partners(dataset) -> None:
    for number in range(5 * len(dataset) // 4):
        dataset.__getitems__(list(range(4 * number, 4 * number + 4)))
        kept = {i for i, image in enumerate(dataset.ims) if image is not None}
        partners = 2 * 4 * 4  # of mixup, with their mosaics, may come from anywhere
        assert len(kept) <= len(set(dataset.buffer)) + partners
        assert kept <= dataset._decoded


@given(COUNT, st.integers(1, 20), st.integers(1, 6), st.integers(0, 3))
def test_processes_make_the_samples_of_one(count, batch, ranks, epoch) -> None:
    order = SampleOrder(count, batch * ranks, 0)
    whole = [list(part) for part in BatchSampler(range(count), batch * ranks, drop_last=False)]
    keys = [SampleKeys(order, rank, ranks) for rank in range(ranks)]
    for sampler in keys:
        sampler.epoch = epoch
    shares = [[list(part) for part in BatchSampler(sampler, batch, drop_last=False)] for sampler in keys]
    assert {len(share) for share in shares} == {len(whole)}
    for number, expected in enumerate(whole):
        parts = [[key - epoch * count for key in share[number]] for share in shares]
        assert len({len(part) for part in parts}) == 1
        assert {position for part in parts for position in part} == set(expected)
        assert sum(map(len, parts)) - len(expected) < ranks
        images = order.images(epoch)[expected].tolist()
        assert all(order.batch_of(key) == images for share in shares for key in share[number])
