"""Batches made on the device: drawn, and their boxes placed, many at once, while those before are trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from ultralytics.utils import LOGGER, colorstr

from yolo_lat.data.device.cache import DeviceCache
from yolo_lat.data.device.plan import Augment, Plan, draw, letterbox
from yolo_lat.data.device.render import TorchRenderer, cover_margins
from yolo_lat.data.device.targets import Targets, place, place_whole
from yolo_lat.errors import UserError

if TYPE_CHECKING:
    from yolo_lat.data.device.render_triton import TritonRenderer

Renderer = Literal["auto", "torch", "triton"]
_BOXES_AT_ONCE = 1 << 20  # places for boxes, before any is dropped, in batches drawn at once: temporaries of 16 MB
_FEWEST = 8  # places for boxes in a batch; twice as many until they suffice, so that few shapes occur


class DeviceLoader:
    """Augmented training batches of a cache, without a wait of the host for the device.

    A batch is a dictionary: `img` (B, 3, s, s) uint8 RGB, `boxes` (B, M, 4) float32 centre and size relative to the
    sample, `labels` (B, M) int64, `valid` (B, M) bool, `index` (B,) int64 images of the cache, all on the device, and
    `total`, the number of boxes. M is 8, 16, 32, ..., the first that holds every sample's boxes. `flat` gives the form
    of Ultralytics' losses.

    The order of an epoch is a function of seed and epoch, and a batch one of these, its number and the rank, on one
    kind of device: the generators of CPU and CUDA differ. The last batch of an epoch may be short. Batches are drawn
    `batches_at_once` at a time, so that a GPU has few small things to do for each.

    Attributes:
        augment: how samples are varied.
        renderer: torch or triton, what makes the pixels.
        epoch: the current one.

    Args:
        cache: images and boxes.
        augment: how to vary samples.
        batch: samples in a batch of this rank.
        seed: of everything random.
        rank: of this process, if several train; each has a cache of its own images.
        samples: of an epoch, for which the first images of its order come again if there are more than images; one of
            each image by default.
        shuffle: take images in random order.
        renderer: triton on CUDA where it is installed by default.

    Raises:
        UserError: no samples in a batch, or a renderer that cannot run.
    """

    def __init__(
        self,
        cache: DeviceCache,
        augment: Augment,
        batch: int,
        *,
        seed: int = 0,
        rank: int = 0,
        samples: int | None = None,
        shuffle: bool = True,
        renderer: Renderer = "auto",
    ) -> None:
        if batch < 1:
            raise UserError(f"batch={batch}: a batch has at least one sample; give a positive number")
        self.cache, self.augment, self.batch = cache, augment, batch
        self.seed, self.rank, self.shuffle = seed, rank, shuffle
        self.samples = len(cache) if samples is None else samples
        self.epoch = 0
        self.renderer, self._render = choose_renderer(cache, renderer)
        self._side = torch.cuda.Stream(cache.device, priority=-1) if cache.device.type == "cuda" else None
        LOGGER.info(f"{colorstr('device data:')} {len(cache)} images, rendered by {self.renderer} on {cache.device}")

    def __len__(self) -> int:
        return -(-self.samples // self.batch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.batches()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that is made next."""
        self.epoch = epoch

    def close_mosaic(self) -> None:
        """Mix no images from now on."""
        self.augment = self.augment.closed()

    @property
    def batches_at_once(self) -> int:
        """How many batches are drawn together; the fewer, the more boxes the images have."""
        parts = 3 if self.augment.mixup > 0 or self.augment.cutmix > 0 else 1
        return max(1, _BOXES_AT_ONCE // (self.batch * parts * 4 * max(self.cache.most_boxes, 1)))

    def batches(self, start: int = 0) -> Iterator[dict[str, Any]]:
        """Yield the batches of the current epoch from number `start` on; the same ones wherever it starts."""
        order = self._order()
        if self._side is not None:
            self._side.wait_stream(torch.cuda.current_stream(self.cache.device))
            order.record_stream(self._side)
        epoch, each = self.epoch, self.batches_at_once
        first = start // each
        drawn = (self._draw(order, epoch, number, each) for number in range(first, -(-len(self) // each)))
        ahead, skip = next(drawn, None), start - first * each
        while ahead is not None:
            now, ahead = ahead, next(drawn, None)
            yield from self._finish(now, skip)
            skip = 0

    def _order(self) -> Tensor:
        """Return the images of the current epoch's samples, int64 on the device."""
        count = len(self.cache)
        order = torch.arange(count)
        if self.shuffle:
            order = torch.randperm(count, generator=_generator(torch.device("cpu"), self.seed, self.epoch))
        return order.repeat(-(-self.samples // count))[: self.samples].to(self.cache.device)

    def _draw(self, order: Tensor, epoch: int, number: int, batches: int) -> _Drawn:
        """Draw a number of batches, place their boxes and ask how many there are, on the side stream."""
        with torch.cuda.stream(self._side):
            generator = _generator(self.cache.device, self.seed, epoch, number, self.rank)
            samples = self.batch * batches
            index = order[number * samples : (number + 1) * samples]
            plan = draw(self.cache, self.augment, index, generator)
            targets = place(self.cache, plan)
            render = self._render(self.cache, plan, targets.cut)
            boxes = functional.pad(targets.valid.sum(dim=1), (0, -len(index) % self.batch)).view(-1, self.batch)
            counts = torch.stack([boxes.amax(dim=1), boxes.sum(dim=1)], dim=1)
            if self._side is None:
                return _Drawn(plan, targets, render, counts, None)
            on_host = torch.empty(counts.shape, dtype=torch.int64, pin_memory=True)
            on_host.copy_(counts, non_blocking=True)
            return _Drawn(plan, targets, render, on_host, self._side.record_event())

    def _finish(self, drawn: _Drawn, skip: int) -> Iterator[dict[str, Any]]:
        """Yield what was drawn but the first `skip` batches, each rendered on the current stream when asked for."""
        plan, targets = drawn.plan, drawn.targets
        if drawn.ready is not None:
            drawn.ready.synchronize()
            current = torch.cuda.current_stream(self.cache.device)
            current.wait_event(drawn.ready)
            used = targets.boxes, targets.labels, targets.valid, targets.cut, *drawn.render.tables
            for tensor in (*plan.tensors().values(), *used):
                tensor.record_stream(current)
        for number, (most, total) in enumerate(drawn.counts.tolist()):
            if number >= skip:
                start = number * self.batch
                stop = min(start + self.batch, len(plan.index))
                rows, images = slice(start, stop), drawn.render(start, stop)
                if plan.margins:
                    cover_margins(images, plan.shown[rows])
                yield assemble(images, plan.index[rows], targets, rows, most, total)


@dataclass(frozen=True)
class _Drawn:
    """Batches without pixels; `counts`, (n, 2) int64, most boxes of a sample and all boxes, are there once `ready`."""

    plan: Plan
    targets: Targets
    render: TorchRenderer | TritonRenderer
    counts: Tensor
    ready: torch.cuda.Event | None


def letterboxed(cache: DeviceCache, batch: int, renderer: Renderer = "auto") -> Iterator[dict[str, Any]]:
    """Yield the images of a cache in order, whole and grey around, as Ultralytics validates with rect=False.

    Beside what `DeviceLoader` yields a batch has lists of what maps boxes back and names images: `ratio_pad`, gain of
    height and width and left and top padding, `ori_shape` and `resized_shape`, height and width, and `im_file`.
    """
    _, draws = choose_renderer(cache, renderer)
    s = cache.imgsz
    for start in range(0, len(cache), batch):
        rows = slice(start, min(start + batch, len(cache)))
        shapes, original, counts = cache.shapes[rows], cache.original_shapes[rows], cache.box_counts[rows]
        # Half of the rest, the smaller half to the left and above.
        padding = (s - shapes[:, ::-1]) // 2
        index = torch.arange(rows.start, rows.stop, device=cache.device)
        corner = torch.from_numpy(np.ascontiguousarray(padding)).to(cache.device, non_blocking=True)
        plan = letterbox(cache, index, corner)
        targets = place_whole(cache, plan)
        images = draws(cache, plan, targets.cut)(0, len(index))
        made = assemble(images, index, targets, slice(None), int(counts.max()), int(counts.sum()))
        gains = shapes / original
        yield made | {
            "ratio_pad": [(tuple(g), tuple(p)) for g, p in zip(gains.tolist(), padding.tolist(), strict=True)],
            "ori_shape": [tuple(shape) for shape in original.tolist()],
            "resized_shape": [(s, s)] * len(shapes),
            "im_file": [str(path) for path in cache.paths[rows]],
        }


def flat(batch: dict[str, Any]) -> dict[str, Tensor]:
    """Return the boxes of a batch as Ultralytics' losses take them.

    `cls` (n, 1) and `batch_idx` (n,), float32, and `bboxes` (n, 4) float32 centre and size, all samples' in turn.
    """
    valid = batch["valid"]
    rows = (~valid).flatten().to(torch.uint8).argsort(stable=True)[: batch["total"]]
    return {
        "cls": batch["labels"].flatten()[rows, None].float(),
        "bboxes": batch["boxes"].flatten(0, 1)[rows],
        "batch_idx": (rows // valid.shape[1]).float(),
    }


def padded(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the boxes of one of Ultralytics' batches in the form of a `DeviceLoader`'s: what `flat` does, undone."""
    owners, samples = batch["batch_idx"].long(), len(batch["img"])
    counts = owners.bincount(minlength=samples)
    places = bucket(int(counts.max()))
    valid = torch.arange(places, device=owners.device) < counts[:, None]
    order = owners.argsort(stable=True)
    boxes = batch["bboxes"].new_zeros(samples, places, 4)
    labels = owners.new_zeros(samples, places)
    boxes[valid], labels[valid] = batch["bboxes"][order], batch["cls"][order].flatten().long()
    return {"boxes": boxes, "labels": labels, "valid": valid}


def choose_renderer(cache: DeviceCache, renderer: Renderer) -> tuple[str, type[TorchRenderer] | type[TritonRenderer]]:
    """Return the name and class of what makes pixels.

    Raises:
        UserError: a renderer that is not installed, or cannot reach the pixels.
    """
    cuda, installed = cache.device.type == "cuda", find_spec("triton") is not None
    name = renderer if renderer != "auto" else "triton" if cuda and installed else "torch"
    if name == "triton":
        if not installed:
            raise UserError("renderer=triton: Triton is not installed; install it or use renderer=torch")
        from yolo_lat.data.device.render_triton import TritonRenderer

        return name, TritonRenderer
    if cuda and cache.spilled:
        raise UserError("renderer=torch: cannot read pixels that were spilled to host memory; install Triton for that")
    return name, TorchRenderer


def assemble(images: Tensor, index: Tensor, targets: Targets, rows: slice, most: int, total: int) -> dict[str, Any]:
    """Return a batch of the samples `rows`, with the places for boxes that the largest number in a sample demands.

    Args:
        images: (n, 3, s, s) uint8, their pixels.
        index: (n,) int64, the images that they are made from.
        targets: boxes, theirs in `rows`.
        rows: which samples.
        most: the largest number of boxes that one of them has.
        total: the number of boxes that all have.
    """
    places = bucket(most)
    found = {name: getattr(targets, name)[rows, :places] for name in ("boxes", "labels", "valid")}
    if missing := max(0, places - targets.valid.shape[1]):
        found["boxes"] = functional.pad(found["boxes"], (0, 0, 0, missing))
        found |= {name: functional.pad(found[name], (0, missing)) for name in ("labels", "valid")}
    return {"img": images, **found, "index": index, "total": total}


def bucket(most: int) -> int:
    """Return the smallest of 8, 16, 32, ... that is no less than `most`."""
    return max(_FEWEST, 1 << (most - 1).bit_length()) if most > 0 else _FEWEST


def _generator(device: torch.device, *numbers: int) -> torch.Generator:
    """Return a generator that is a function of `numbers`, which may be of any size."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state) >> 1)
