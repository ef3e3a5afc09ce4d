"""Measure the fused form of exact linear attention against the plain one on a CUDA device.

    python tools/bench_ela.py OUT.json [COMMIT]

Times are milliseconds a call: the median over rounds and the range, each round timing both forms in turn with CUDA
events around 50 calls. "graph" is the same work replayed from a CUDA graph, which leaves out what Python takes to
launch it. The floor is the time in which a plain copy of memory moves as many bytes as attention has to read and
write once: q, k, v and y forward; q, k, v, dy, dq, dk and dv backward. Below the size of the cache, 50 MB on an H100,
work can be faster. Peak memory is that of forward and backward together, beyond the inputs. Errors are the largest
differences from float64 over the largest magnitude, on the first head: of the outputs of 64 queries from the
quadratic form, and of all gradients from the plain form. COMMIT is for a copy of the tree without its history.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yolo_lat.ela import HadamardExp, ela_form, exact_linear_attention
from yolo_lat.ela.fused import Form

ROUNDS, CALLS, REPLAYS = 5, 50, 20
FORMS: tuple[Form, Form] = ("plain", "fused")
DTYPE = torch.bfloat16
# (B, H, L, D, Dv): large maps, and the heads of the models for images of 320 and 640 pixels.
SHAPES = ((32, 4, 6400, 16, 16), (32, 4, 25600, 16, 16), (32, 4, 2000, 8, 16), (32, 4, 8400, 8, 16))
LAYOUTS = ("rows", "channels first")


def main() -> None:
    """Measure, record and print."""
    if len(sys.argv) not in (2, 3) or not torch.cuda.is_available():
        print("bench_ela.py needs a file to write and a CUDA device; run it on a machine with a GPU", file=sys.stderr)
        sys.exit(2)
    bandwidth = copy_bandwidth()
    results = [measure(shape, layout, bandwidth) for shape in SHAPES for layout in LAYOUTS]
    record = about("bench_ela.py", bandwidth) | {"calls_per_round": CALLS, "results": results}
    Path(sys.argv[1]).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{record['gpu']}, copies at {bandwidth / 1e9:.0f} GB/s; ms a call, from a CUDA graph in brackets")
    print(f"{'B-H-L-D-Dv, layout':<34}{'pass':<18}{'plain':>16}{'fused':>16}{'ratio':>7}{'floor':>14}{'memory':>8}")
    for result in results:
        for name, times in result["passes"].items():
            cells = [f"{times[form]['median_ms']:.3f} ({times[form]['graph_ms']:.3f})" for form in FORMS]
            shares = f"{times['share_of_floor']:.0%} ({times['share_of_floor_in_graph']:.0%})"
            memory = result["peak_memory_mb"]["fused"] / result["peak_memory_mb"]["plain"]
            print(
                f"{result['shape'] + ', ' + result['layout']:<34}{name:<18}{cells[0]:>16}{cells[1]:>16}"
                f"{times['ratio']['median']:>7.2f}{shares:>14}{memory:>8.0%}"
            )


def about(tool: str, bandwidth: float) -> dict[str, Any]:
    """Return what a record says of where and how its numbers were measured."""
    return {
        "command": f"python tools/{tool} OUT.json",
        "commit": sys.argv[2] if len(sys.argv) == 3 else _output(["git", "rev-parse", "HEAD"]),
        "gpu": torch.cuda.get_device_name(),
        "driver": _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "triton")},
        "dtype": str(DTYPE),
        "rounds": ROUNDS,
        "copy_bandwidth_gb_per_s": bandwidth / 1e9,
    }


def copy_bandwidth() -> float:
    """Bytes a second of a copy of 1 GiB, read and written."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    milliseconds = min(timed(lambda: target.copy_(source), 20) for _ in range(ROUNDS))
    return 2 * source.numel() / (milliseconds / 1e3)


def measure(shape: tuple[int, int, int, int, int], layout: str, bandwidth: float) -> dict[str, Any]:
    """Time both forms on one shape and layout, with their memory and errors."""
    batch, heads, length, key_dim, value_dim = shape
    generator = torch.Generator("cuda").manual_seed(0)
    widths = (key_dim, key_dim, value_dim)
    inputs = [draw((batch, heads, length, width), layout, generator).requires_grad_() for width in widths]
    dy = torch.randn_like(inputs[2])
    q, _, v = (x.numel() * x.element_size() for x in inputs)
    moved = {"forward": 2 * q + 2 * v, "forward+backward": (2 * q + 2 * v) + (4 * q + 3 * v)}
    passes = {}
    for name, least in moved.items():
        calls = {form: forward(form, inputs) if name == "forward" else _both(form, inputs, dy) for form in FORMS}
        times = interleaved(calls)
        ratios = [plain / fused for plain, fused in zip(times["plain"], times["fused"], strict=True)]
        floor = least / bandwidth * 1e3
        graph = {form: replayed(calls[form]) for form in FORMS}
        entry: dict[str, Any] = {form: _summary(times[form]) | {"graph_ms": graph[form]} for form in FORMS}
        passes[name] = entry | {
            "ratio": {"median": statistics.median(ratios), "range": [min(ratios), max(ratios)]},
            "floor_ms": floor,
            "share_of_floor": floor / statistics.median(times["fused"]),
            "share_of_floor_in_graph": floor / graph["fused"],
        }
    return {
        "shape": "-".join(map(str, shape)),
        "layout": layout,
        "passes": passes,
        "peak_memory_mb": {form: peak_memory(_both(form, inputs, dy)) for form in FORMS},
        "errors": {form: errors(form, inputs, dy) for form in FORMS},
    }


def draw(shape: tuple[int, int, int, int], layout: str, generator: torch.Generator) -> Tensor:
    """Return random tokens (B, H, L, D) that lie in memory as `layout` says."""
    batch, heads, length, width = shape
    sizes = shape if layout == "rows" else (batch, heads, width, length)
    x = torch.randn(sizes, dtype=DTYPE, device="cuda", generator=generator)
    return x if layout == "rows" else x.transpose(2, 3)


def forward(form: Form, inputs: list[Tensor]) -> Callable[[], Tensor]:
    """Return the forward pass of q, k and v."""

    def call() -> Tensor:
        with ela_form(form), torch.no_grad():
            return exact_linear_attention(*inputs)

    return call


def _both(form: Form, inputs: list[Tensor], dy: Tensor) -> Callable[[], list[Tensor]]:
    def call() -> list[Tensor]:
        with ela_form(form):
            y = exact_linear_attention(*inputs)
        return [y, *torch.autograd.grad(y, inputs, dy)]

    return call


def timed(call: Callable[[], Any], calls: int) -> float:
    """Milliseconds a call."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / calls


def interleaved(calls: dict[Form, Callable[[], Any]]) -> dict[Form, list[float]]:
    """Milliseconds a call, for each round, after a warm-up that compiles what has to be compiled."""
    for call in calls.values():
        timed(call, 5)
    times: dict[Form, list[float]] = {form: [] for form in calls}
    for _ in range(ROUNDS):
        for form, call in calls.items():
            times[form].append(timed(call, CALLS))
    return times


def replayed(call: Callable[[], Any]) -> float:
    """Milliseconds of one replay of the call from a CUDA graph, the median over rounds."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()
    graph.replay()
    median = statistics.median(timed(graph.replay, REPLAYS) for _ in range(ROUNDS))
    del kept
    return median


def peak_memory(call: Callable[[], Any]) -> float:
    """Megabytes allocated at most during the call, beyond what was before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = call()
    peak = torch.cuda.max_memory_allocated() - before
    del kept
    return peak / 1e6


def errors(form: Form, inputs: list[Tensor], dy: Tensor) -> dict[str, float]:
    """Relative errors of y, dq, dk and dv on the first head."""
    head = [x[:1, :1].detach().requires_grad_() for x in inputs]
    results = _both(form, head, dy[:1, :1])()
    doubles = [x.detach().double().requires_grad_() for x in head]
    exact = _both("plain", doubles, dy[:1, :1].double())()
    some = slice(0, None, -(-doubles[0].shape[2] // 64))
    weights = HadamardExp().pairwise(doubles[0][:, :, some], doubles[1]).detach()
    results[0], exact[0] = results[0][:, :, some], weights @ doubles[2] / weights.sum(-1, keepdim=True)
    pairs = zip(("y", "dq", "dk", "dv"), results, exact, strict=True)
    return {
        name: float((a.detach().double() - b.detach()).abs().max() / b.detach().abs().max()) for name, a, b in pairs
    }


def _summary(times: list[float]) -> dict[str, Any]:
    return {"median_ms": statistics.median(times), "range_ms": [min(times), max(times)]}


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
