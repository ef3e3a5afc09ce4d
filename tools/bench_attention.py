"""Time causal attention over long sequences: exact linear attention, softmax, Performer and flash-linear-attention.

    python tools/bench_attention.py OUT.json [--device cuda|cpu] [--lengths 8192,16384] [--heads 4] [--width 64]
    python tools/bench_attention.py draw OUT.json FIGURE.png

for example

    python tools/bench_attention.py docs/results/attention-h200.json --device cuda --commit abc1234

All methods get the same q, k and v, (batch, heads, length, width), bfloat16 on CUDA and float32 on a CPU. "forward" and
"forward+backward" are whole sequences, "decode" is one more token after `length` of them, written into the cache or the
state. Softmax runs on whichever backend of `scaled_dot_product_attention` is fastest for the shape, Performer (FAVOR+,
Choromanski et al., 2021) with `--features` random features through the causal form of this package, and
flash-linear-attention's `chunk_linear_attn` where that package is installed. Methods take turns in at least 5 rounds of
`--calls` calls; times are milliseconds a call, median and range over rounds. On CUDA they are of a replayed CUDA graph,
with the time of a launch from Python beside it. A call that would take longer than `--limit` seconds is left out, which
the record says. Bytes are what has to be kept to decode the next token.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bench_ela
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from yolo_lat.deploy.benchmark.environment import describe_machine, state, versions
from yolo_lat.ela import HadamardExp, LogKernel, causal_attention, ela_state, ela_step_

ROUNDS = 5
LENGTHS = "8192,16384,32768,65536,131072"
PASSES = ("forward", "forward+backward", "decode")
BACKENDS = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
Call = Callable[[], Any]


class FavorPlus(LogKernel):
    """Performer's positive orthogonal random features: E[phi(q)·phi(k)] = exp(q·k / sqrt(D)).

    log phi_m(x) = w_m·x - ||x||²/2 with x scaled by D^(-1/4) (Choromanski et al., 2021, lemma 1); a constant factor
    cancels in attention.
    """

    geometry = "what softmax attends to, approximately"

    def __init__(self, width: int, features: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        blocks = []
        for _ in range(-(-features // width)):
            square = torch.randn(width, width, generator=generator)
            directions = torch.linalg.qr(square).Q
            blocks.append(directions * torch.randn(width, width, generator=generator).norm(dim=1, keepdim=True))
        self.directions = torch.cat(blocks)[:features].to(device)

    def log_phi(self, q: Tensor) -> Tensor:
        """Map (..., L, D) to (..., L, features)."""
        q = q / q.shape[-1] ** 0.25
        return q @ self.directions.T.to(q.dtype) - q.square().sum(-1, keepdim=True) / 2

    def log_psi(self, k: Tensor) -> Tensor:
        """Return the same map."""
        return self.log_phi(k)

    def pairwise(self, q: Tensor, k: Tensor) -> Tensor:
        """Return exp(q·k / sqrt(D)), which the features approximate."""
        return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).exp()


@dataclass
class Method:
    """A way to attend: its three passes on given tensors, and the bytes it keeps.

    Attributes:
        attend: maps q, k, v of a sequence to y.
        prepare: maps k, v of a prompt to what decodes one more token from it, and the bytes kept.
        quadratic: whether the work of a sequence grows with the square of its length.
        note: what the record says of it.
    """

    attend: Callable[[Tensor, Tensor, Tensor], Tensor]
    prepare: Callable[[Tensor, Tensor], tuple[Callable[[Tensor, Tensor, Tensor], Tensor], int]] | None
    quadratic: bool = False
    note: dict[str, str] = field(default_factory=dict)


def methods(args: argparse.Namespace, device: torch.device) -> dict[str, Method]:
    """Return what is compared, by name."""
    found = {"ela": linear(HadamardExp()), "softmax": softmax()}
    found[f"performer, {args.features} features"] = linear(FavorPlus(args.width, args.features, device))
    if device.type == "cuda":
        try:
            from fla.ops.linear_attn import chunk_linear_attn  # type: ignore[import-not-found]
        except ImportError:
            Console(stderr=True).print("flash-linear-attention is not installed and left out")
        else:

            def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                q, k, v = (x.transpose(1, 2) for x in (q.softmax(-1), k.softmax(-1), v))
                return chunk_linear_attn(q, k, v, normalize=True)[0].transpose(1, 2)

            found["flash-linear-attention"] = Method(attend, None, note={"features": "softmax of q and of k"})
    return found


def linear(kernel: LogKernel) -> Method:
    """Exact linear attention with a kernel."""

    def prepare(k: Tensor, v: Tensor) -> tuple[Callable[[Tensor, Tensor, Tensor], Tensor], int]:
        kept = ela_state(k, v, kernel)
        tensors = [x for x in (kept.S, kept.C, kept.log_scale) if x is not None]
        return lambda q, k, v: ela_step_(q, k, v, kept), sum(x.numel() * x.element_size() for x in tensors)

    return Method(lambda q, k, v: causal_attention(q, k, v, kernel)[0], prepare)


def softmax() -> Method:
    """Softmax attention with a cache of keys and values."""

    def prepare(k: Tensor, v: Tensor) -> tuple[Callable[[Tensor, Tensor, Tensor], Tensor], int]:
        keys, values = (torch.cat([x, torch.zeros_like(x[:, :, :1])], dim=2) for x in (k, v))

        def decode(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys[:, :, -1:], values[:, :, -1:] = k, v
            return scaled_dot_product_attention(q, keys, values)

        return decode, 2 * k.numel() * k.element_size()

    return Method(lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True), prepare, quadratic=True)


def cases(method: Method, inputs: list[Tensor], name: str) -> tuple[Call, int | None]:
    """Return a call of a pass, and the bytes kept if it decodes."""
    q, k, v = inputs
    if name == "decode":
        assert method.prepare is not None
        with torch.no_grad():
            decode, kept = method.prepare(k, v)
        token = [x[:, :, :1].clone() for x in inputs]
        return torch.no_grad()(lambda: decode(*token)), kept
    if name == "forward":
        return torch.no_grad()(lambda: method.attend(q, k, v)), None
    leaves = [x.detach().requires_grad_() for x in inputs]
    dy = torch.randn_like(v)
    return lambda: torch.autograd.grad(method.attend(*leaves), leaves, dy), None


def fastest_backend(build: Callable[[], Call], timed: Callable[[Call, int], float]) -> tuple[SDPBackend | None, str]:
    """Return the backend of softmax attention that is fastest for what `build` returns."""
    times: dict[SDPBackend, float] = {}
    for backend in BACKENDS:
        try:
            with sdpa_kernel(backend):
                call = build()
                timed(call, 3)
                times[backend] = timed(call, 10)
        except RuntimeError:  # the backend does not take this shape or pass
            continue
    best = min(times, key=lambda backend: times[backend])
    return best, best.name


def cpu_time(call: Call, calls: int) -> float:
    """Milliseconds a call, by the clock."""
    began = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - began) * 1000 / calls


def captured(call: Call) -> Call:
    """Return the same work as a replayed CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def measure(args: argparse.Namespace, length: int, name: str, seconds: dict[tuple[str, str], float]) -> Iterator[Any]:
    """Yield an entry for every method at one length and pass."""
    device = torch.device(args.device)
    cuda = device.type == "cuda"
    timed = bench_ela.timed if cuda else cpu_time
    generator = torch.Generator(device).manual_seed(length)
    shape = (args.batch, args.heads, length, args.width)
    dtype = torch.bfloat16 if cuda else torch.float32
    inputs = [torch.randn(shape, dtype=dtype, device=device, generator=generator) for _ in range(3)]
    calls: dict[str, tuple[Call, Call | None]] = {}
    entries: dict[str, dict[str, Any]] = {}
    for label, method in methods(args, device).items():
        if name == "decode" and method.prepare is None:
            continue
        entry: dict[str, Any] = {"method": label, "length": length, "pass": name, **method.note}
        entries[label] = entry
        expected = seconds.get((label, name), 0.0) * (4 if method.quadratic and name != "decode" else 2)
        if expected > args.limit:
            entry["left_out"] = f"a call would take about {expected:.0f} s"
            seconds[label, name] = expected
            continue
        backend = None
        if cuda and method.quadratic:
            backend, entry["backend"] = fastest_backend(lambda m=method: cases(m, inputs, name)[0], timed)
        with sdpa_kernel(backend) if backend else nullcontext():
            call, kept = cases(method, inputs, name)
            timed(call, 1)
            seconds[label, name] = timed(call, 1) / 1000
            if kept is not None:
                entry["kept_bytes"] = kept
            calls[label] = (call, captured(call) if cuda else None)
            entry["backend_context"] = backend
    times: dict[str, list[float]] = {label: [] for label in calls}
    launched: dict[str, list[float]] = {label: [] for label in calls}
    counts = {
        label: max(1, min(args.calls, int(args.round_seconds / max(seconds[label, name], 1e-6)))) for label in calls
    }
    for _ in range(ROUNDS):
        for label, (call, graph) in calls.items():
            backend = entries[label]["backend_context"]
            times[label].append(timed(graph or call, counts[label]))
            if graph:
                with sdpa_kernel(backend) if backend else nullcontext():
                    launched[label].append(timed(call, counts[label]))
    for label, entry in entries.items():
        entry.pop("backend_context", None)
        if label in times:
            entry |= summary(times[label]) | {"calls_per_round": counts[label]}
            if "softmax" in times:
                ratios = [a / b for a, b in zip(times["softmax"], times[label], strict=True)]
                entry["softmax_over_this"] = summary(ratios)
        if launched.get(label):
            entry["from_python"] = summary(launched[label])
        yield entry


def summary(values: list[float]) -> dict[str, Any]:
    """Return the median over rounds and the range."""
    return {"median": statistics.median(values), "range": [min(values), max(values)]}


def run(args: argparse.Namespace) -> None:
    """Measure, write after every length and pass, and print."""
    torch.set_num_threads(args.threads or torch.get_num_threads())
    place = "cpu" if args.device == "cpu" else "cuda:0"
    record: dict[str, Any] = {
        "command": "python tools/bench_attention.py " + shlex.join(sys.argv[1:]),
        "machine": describe_machine(place, torch.get_num_threads()),
        "state_before": state(place),
        "versions": versions(args.commit),
        "batch": args.batch,
        "heads": args.heads,
        "width": args.width,
        "dtype": "float32" if args.device == "cpu" else "bfloat16",
        "rounds": ROUNDS,
        "results": [],
    }
    seconds: dict[tuple[str, str], float] = {}
    console = Console()
    for length in map(int, args.lengths.split(",")):
        for name in PASSES:
            with console.status(f"{name}, {length} tokens"):
                record["results"] += measure(args, length, name, seconds)
            args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    console.print(table(record))


def table(record: dict[str, Any]) -> Table:
    """Return a row for every method and pass."""
    lengths = sorted({entry["length"] for entry in record["results"]})
    shown = Table("pass", "method", *(f"{length // 1024}k" for length in lengths))
    keys = dict.fromkeys((entry["pass"], entry["method"]) for entry in record["results"])
    for name, method in keys:
        cells = []
        for length in lengths:
            entry = next(
                (e for e in record["results"] if (e["pass"], e["method"], e["length"]) == (name, method, length)), {}
            )
            ratio = f" ({entry['softmax_over_this']['median']:.1f}x)" if "softmax_over_this" in entry else ""
            cells.append(f"{entry['median']:.3f} ms{ratio}" if "median" in entry else "left out")
        shown.add_row(name, method, *cells)
    return shown


def draw(args: argparse.Namespace) -> None:
    """Draw time against length, a panel for each pass."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    record = json.loads(args.out.read_text())
    figure, panels = plt.subplots(1, len(PASSES) + 1, figsize=(17, 4), layout="constrained")
    labels = list(dict.fromkeys(entry["method"] for entry in record["results"]))
    for panel, name in zip(panels, (*PASSES, "kept"), strict=True):
        for number, label in enumerate(labels):
            key = "kept_bytes" if name == "kept" else "median"
            wanted = "decode" if name == "kept" else name
            mine = [e for e in record["results"] if (e["method"], e["pass"]) == (label, wanted) and key in e]
            values = [entry[key] / (2**20 if name == "kept" else 1) for entry in mine]
            panel.plot([entry["length"] for entry in mine], values, "o-", label=label, color=f"C{number}")
        panel.set(xscale="log", yscale="log", xlabel="tokens", title=name)
        panel.set_ylabel("MiB kept to decode" if name == "kept" else "ms")
    panels[0].legend(fontsize=8)
    figure.savefig(args.figure, dpi=110)


def main() -> None:
    """Read the command line."""
    drawing = sys.argv[1:2] == ["draw"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    if drawing:
        parser.add_argument("mode")
        parser.add_argument("out", type=Path)
        parser.add_argument("figure", type=Path)
        draw(parser.parse_args())
        return
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--lengths", default=LENGTHS)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--calls", type=int, default=50)
    parser.add_argument("--round-seconds", type=float, default=2.0, help="fewer calls where a round would take longer")
    parser.add_argument("--limit", type=float, default=20.0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--commit")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print(
            "bench_attention.py: torch sees no CUDA device; run it on a machine with one, or with --device cpu",
            file=sys.stderr,
        )
        sys.exit(2)
    run(args)


if __name__ == "__main__":
    main()
