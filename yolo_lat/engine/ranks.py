"""Several processes that train one model together: who they are, what they share, and what becomes of them.

torchrun starts them and tells each its place in the environment; torch.distributed carries what they exchange, by NCCL
between GPUs and gloo between CPUs. Every function here does nothing, or the obvious, in a process that trains alone.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from ultralytics.utils import LOCAL_RANK, RANK, WORLD_SIZE
from ultralytics.utils.torch_utils import parse_device

from yolo_lat.engine.rank_watch import RankWatch
from yolo_lat.errors import UserError

T = TypeVar("T")

RANKS = WORLD_SIZE if RANK != -1 else 1
PLACE = max(RANK, 0)  # of this process among the `RANKS`
MAIN = RANK in {-1, 0}  # the process that writes
_PATIENCE = timedelta(hours=3)  # that others may evaluate or decode for; one that ends is noticed at once
_POLL = 0.02  # seconds
_watch: RankWatch | None = None


def join(device: Any) -> torch.device | None:
    """Meet the other processes; returns this one's device, None where there are no others.

    Args:
        device: the training argument: nothing, "cpu", or the numbers of this machine's GPUs in the order of its ranks.

    Raises:
        UserError: fewer GPUs than processes on this machine.
    """
    global _watch
    if RANKS == 1:
        return None
    mine = _own_device(device)
    if not dist.is_initialized():
        if mine.type == "cuda":
            torch.cuda.set_device(mine)
            # To register the memory of a CUDA graph all processes would have to replay it for the first time at once.
            os.environ.setdefault("NCCL_GRAPH_REGISTER", "0")
        # What is no tensor of the GPU travels by gloo.
        backend = "cpu:gloo,cuda:nccl" if mine.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=_fresh_store(), rank=RANK, world_size=RANKS, timeout=_PATIENCE)
        _watch = RankWatch(RANK, RANKS, LOCAL_RANK == 0, os.environ["MASTER_ADDR"], from_main)
    return mine


def _fresh_store() -> dist.Store:
    """Return a store without what processes that ended have left there.

    torchrun keeps its store when it starts processes again, and where those of before could be reached still stands
    in it (https://github.com/pytorch/pytorch/issues/167288 shows what comes of that). So all agree on a new prefix: the
    first one says it together with what it has read of the others, until each has found its own word there.
    """
    shared, _, _ = next(dist.rendezvous("env://"))
    word, others = secrets.token_hex(8), range(1, RANKS)
    if RANK != 0:
        shared.set(f"hello/{RANK}", word)
        prefix, heard = json.loads(shared.get("agreed"))
        while heard[RANK - 1] != word:
            time.sleep(_POLL)
            prefix, heard = json.loads(shared.get("agreed"))
        shared.set(f"heard/{RANK}", prefix)
        return dist.PrefixStore(prefix, shared)
    while True:
        heard = [shared.get(f"hello/{rank}").decode() for rank in others]
        shared.set("agreed", json.dumps([word, heard]))
        keys = [f"heard/{rank}" for rank in others]
        if shared.check(keys) and all(shared.get(key).decode() == word for key in keys):
            return dist.PrefixStore(word, shared)
        time.sleep(_POLL)


def leave() -> None:
    """Part from the other processes, which have come to the same place; not to be called after an error."""
    global _watch
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        if _watch is not None:
            _watch.close()
            _watch = None
        dist.destroy_process_group()


def give_up() -> None:
    """End the other processes without a word; to be called before an error that concerns them all is told."""
    if _watch is not None and MAIN:
        _watch.give_up()


def expect_end(hint: str) -> None:
    """Tell what a user can do if another process should end before its time."""
    if _watch is not None:
        _watch.hint = hint


def _own_device(device: Any) -> torch.device:
    wanted = parse_device(device) if device not in (None, "") else ""
    if wanted == "cpu" or not (wanted or torch.cuda.is_available()):
        return torch.device("cpu")
    numbers = wanted.split(",") if wanted else [str(i) for i in range(torch.cuda.device_count())]
    here = int(os.environ.get("LOCAL_WORLD_SIZE", RANKS))
    if len(numbers) < here:
        raise UserError(
            f"device={device or ''}: {len(numbers)} GPUs for the {here} processes on this machine; start as many "
            "processes as there are GPUs (torchrun --nproc-per-node), or name more of them"
        )
    return torch.device("cuda", int(numbers[LOCAL_RANK]))


def from_main(value: T) -> T:
    """Return what the first process gives."""
    if RANKS == 1:
        return value
    said: list[Any] = [value if MAIN else None]
    dist.broadcast_object_list(said, 0)
    return said[0]


def copy_from_main(tensors: Sequence[Tensor]) -> None:
    """Fill tensors, of any dtype, with what they hold in the first process."""
    if RANKS > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def sum_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Replace floating tensors, the same ones in each process, by their sums over processes; one message for all."""
    if RANKS == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)])


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Return the mean of a tensor over processes."""
    if RANKS == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total / RANKS


@contextmanager
def main_file(path: Path) -> Iterator[Path]:
    """Yield a file of the first process, which other machines may not see: there a copy, that is removed again."""
    content = from_main(path.read_bytes() if MAIN and RANKS > 1 else None)
    if MAIN or content is None:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, path.name)
        copy.write_bytes(content)
        yield copy


def own_share(count: int, group: int, size: int) -> list[list[int]]:
    """Divide batches between processes: each takes its part of every group of samples that one process would take.

    Args:
        count: samples.
        group: samples that one process would take at once.
        size: samples in a batch of this process.

    Returns:
        The batches of this process, each within a group, so that samples keep what they share with their group.
    """
    batches = []
    for start in range(0, count, group):
        members = range(start, min(start + group, count))
        each = -(-len(members) // RANKS)
        mine = members[PLACE * each : (PLACE + 1) * each]
        batches += [list(mine[i : i + size]) for i in range(0, len(mine), size)]
    return batches
