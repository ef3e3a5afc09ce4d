"""Which launch of the fused forward pass is fastest: tiles, warps, stages and programs, for two lengths and layouts.

    python tools/tune_ela.py OUT.json [COMMIT]

Times are microseconds of a replay from a CUDA graph, batch 32, 4 heads of width 16, bfloat16, as bench_ela.py measures
them; the share is that of the time in which one large copy moves q, k, v and y once. "copies" are as many bytes moved
by two plain copies at this size, one for each pass over the tokens: what launching and filling the GPU twice costs by
itself. The first launch is how fused.py does it, and "kernel_us" what each of its kernels takes, by PyTorch's profiler.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import bench_ela
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from yolo_lat.ela import fused

LENGTHS = (6400, 25600)


class Launch(NamedTuple):
    """Tokens of a tile, warps and pipeline stages of a program, programs aimed at, and the fewest tokens of one."""

    block: int
    warps: int
    stages: int
    programs: int
    fewest_tokens: int


OURS = Launch(64, 1, 3, 2112, 256)
PROGRAMS = ((2112, 256), (1056, 256), (3168, 256), (4224, 128), (4224, 192), (4224, 256), (4224, 512), (8448, 128))


def main() -> None:
    """Measure, record and print, the best for the shorter length first."""
    if len(sys.argv) not in (2, 3) or not torch.cuda.is_available():
        print("tune_ela.py needs a file to write and a CUDA device; run it on a machine with a GPU", file=sys.stderr)
        sys.exit(2)
    bandwidth = bench_ela.copy_bandwidth()
    generator = torch.Generator("cuda").manual_seed(0)
    inputs = {
        (n, layout): [bench_ela.draw((32, 4, n, 16), layout, generator) for _ in "qkv"]
        for n, layout in product(LENGTHS, bench_ela.LAYOUTS)
    }
    floors = {n: 4e6 * inputs[n, "rows"][0].nbytes / bandwidth for n in LENGTHS}
    copies = {n: 1e3 * bench_ela.replayed(two_copies(inputs[n, "rows"][0])) for n in LENGTHS}
    rows = [row for launch in launches() for row in measure(launch, inputs, floors)]
    kernels = {layout: kernel_times(inputs[LENGTHS[0], layout]) for layout in bench_ela.LAYOUTS}
    record = bench_ela.about("tune_ela.py", bandwidth) | {"floor_us": floors, "copies_us": copies}
    record |= {"kernel_us": kernels, "launches": rows}
    Path(sys.argv[1]).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"us of the floor: {floors}, of two copies: {copies}")
    print("shares of the floor: block, warps, stages, programs, fewest tokens, layout")
    for row in sorted(rows, key=lambda row: -row["share"][LENGTHS[0]]):
        print(*(f"{share:.3f}" for share in row["share"].values()), *row["launch"].values(), row["layout"])


def launches() -> Iterator[Launch]:
    """Yield what is tried: ours first, and no tile that leaves a warp fewer than 32 tokens or more than 128."""
    yield OURS
    for block, warps, stages, programs in product((64, 128, 32, 256), (1, 2, 4), (3, 2, 4), PROGRAMS):
        launch = Launch(block, warps, stages, *programs)
        if launch != OURS and 32 <= block // warps <= 128:
            yield launch


@contextmanager
def launching(launch: Launch) -> Iterator[None]:
    """Let the fused kernels be launched that way."""
    over = fused._Launch.over

    def plan(*args: Any, **keys: Any) -> fused._Launch:
        made = over(*args, **keys)
        made.constants.update(num_warps=launch.warps, num_stages=launch.stages)
        return made

    def division(x: Tensor, _: int, __: int, most_splits: int | None = None) -> tuple[int, int, int]:
        splits = -(-launch.programs // (x.shape[0] * x.shape[1]))
        tokens = max(-(-x.shape[2] // min(splits, most_splits or splits)), launch.fewest_tokens)
        tokens = -(-tokens // launch.block) * launch.block
        return -(-x.shape[2] // tokens), tokens, launch.block

    with patch.object(fused._Launch, "over", plan), patch.object(fused, "_division", division):
        yield


def measure(
    launch: Launch, inputs: dict[tuple[int, str], list[Tensor]], floors: dict[int, float]
) -> Iterator[dict[str, Any]]:
    """Yield what a launch takes in each layout; nothing for one that does not fit onto the GPU."""
    for layout in bench_ela.LAYOUTS:
        times = {}
        try:
            with launching(launch):
                for n in LENGTHS:
                    call = bench_ela.forward("fused", inputs[n, layout])
                    bench_ela.timed(call, 3)
                    times[n] = 1e3 * bench_ela.replayed(call)
        except RuntimeError as error:
            print(f"{launch}, {layout}: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        share = {n: floors[n] / times[n] for n in LENGTHS}
        yield {"launch": launch._asdict(), "layout": layout, "us": times, "share": share}


def kernel_times(inputs: list[Tensor]) -> dict[str, float]:
    """Return the mean microseconds of each kernel of the forward pass."""
    call = bench_ela.forward("fused", inputs)
    bench_ela.timed(call, 3)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        bench_ela.timed(call, bench_ela.REPLAYS)
    return {e.key: e.self_device_time_total / e.count for e in seen.key_averages() if e.self_device_time_total}


def two_copies(source: Tensor) -> Callable[[], list[Tensor]]:
    """Return two copies of a tensor as large as q, which move what attention moves: four times its size."""
    targets = [torch.empty_like(source) for _ in range(2)]
    return lambda: [target.copy_(source) for target in targets]


if __name__ == "__main__":
    main()
