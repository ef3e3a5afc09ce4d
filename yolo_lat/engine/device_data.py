"""Data on the device in the form in which the engine asks a data loader for batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from yolo_lat.data.dataset import LatDataset
from yolo_lat.data.device.cache import DeviceCache, build_cache
from yolo_lat.data.device.loader import DeviceLoader, flat, letterboxed
from yolo_lat.data.device.plan import Augment
from yolo_lat.engine.ranks import MAIN, PLACE, RANKS
from yolo_lat.errors import UserError


def device_cache(dataset: LatDataset, args: Any, device: torch.device) -> DeviceCache:
    """Decode the images of a data set into the device's memory, or with cache=pinned into the host's if need be.

    Where several processes train, each takes every `RANKS`th image, and so a part of the memory.

    Raises:
        UserError: not enough memory, broken images, or fewer images than processes.
    """
    split = dataset.evaluated()
    if len(split.images) < RANKS:
        raise UserError(f"{split.name}: {len(split.images)} images for {RANKS} processes; use as many or fewer")
    split = replace(split, images=split.images[PLACE::RANKS])
    return build_cache(split, args.imgsz, device, spill=args.cache == "pinned", progress=MAIN)


class TrainBatches:
    """Augmented batches, an epoch each time they are iterated over.

    Attributes:
        dataset: labels and names of what the batches are made of.
        epoch: the one that comes next.
        sampler, batch_size, drop_last, num_workers: as a `DataLoader` has them.
    """

    num_workers, drop_last = 0, False

    def __init__(self, dataset: LatDataset, cache: DeviceCache, args: Any, batch: int) -> None:
        self.dataset, self.epoch = dataset, 0
        samples = -(-len(dataset) // RANKS)
        self.batch_size, self.sampler = min(batch, samples), range(samples)
        augment = Augment.from_args(args, args.cutout, args.margin)
        self.loader = DeviceLoader(cache, augment, self.batch_size, seed=args.seed, rank=PLACE, samples=samples)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.loader.set_epoch(self.epoch)
        self.epoch += 1
        return iter(self.loader)

    def labelled(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return a batch with what pictures of it show: boxes and file names as Ultralytics' batches have them."""
        files = [str(self.loader.cache.paths[i]) for i in batch["index"].tolist()]
        return batch | flat(batch) | {"im_file": files}


class ValBatches:
    """Letterboxed batches of a cache's images in their order, as the validator takes them."""

    num_workers = 0

    def __init__(self, dataset: LatDataset, cache: DeviceCache, batch: int) -> None:
        self.dataset, self.cache, self.batch_size = dataset, cache, batch

    def __len__(self) -> int:
        return -(-len(self.cache) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in letterboxed(self.cache, self.batch_size):
            yield batch | flat(batch)
