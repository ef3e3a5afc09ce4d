"""What a training step is made of: time, kernels, and how often the host waits for the GPU.

    python tools/profile_step.py OUT.json DATA.yaml IMGSZ BATCH [--models a,b] [--ways a,b] [--steps 20]

The ways are those of throughput.py. Each training has a process of its own. Its fifth epoch is timed, by when all
graphs have been captured, a step's time being the mean, loading included; the last steps of the sixth are recorded with
PyTorch's profiler, which slows the host. "busy" is the share of the timed steps in which kernels ran, by the profiler's
durations; "waits" are synchronisations, calls in which the host stands until the GPU is done; "items" are numbers read
from tensors.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import throughput

WAITS = {"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"}
LAUNCHES = {"cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch"}
KERNELS_SHOWN = 12
TIMED, PROFILED = 5, 6  # epochs


def main() -> None:
    """Profile every training and write what came out."""
    parser = throughput.make_parser(__doc__, ("ultralytics-ram", "device", "device-graph"))
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        from yolo_lat.data.convert import convert

        stock_data = convert(given.data, Path(work, "stock"), "yolo", crowd="drop", outside="clip", progress=False)
        runs = []
        for model in given.models.split(","):
            for way in given.ways.split(","):
                data = str(stock_data if way.startswith("ultralytics") else given.data)
                runs.append({"model": model, "way": way, **measure(given, model, way, data, Path(work))})
                print(_line(runs[-1]), flush=True)
                throughput.save(given, runs, "python tools/profile_step.py")


def measure(given: argparse.Namespace, model: str, way: str, data: str, work: Path) -> dict[str, Any]:
    """Train for six epochs in a process of its own and return what the profiler saw."""
    folder = work / f"{model}-{way}"
    folder.mkdir()
    job = {key: getattr(given, key) for key in ("imgsz", "batch", "workers", "device", "steps")}
    job |= {"model": model, "way": way, "data": data, "epochs": PROFILED, "folder": str(folder)}
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import profile_step as p; p.train({job!r})"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, errors="replace")
    if done.returncode:
        return {"error": done.stderr[-1500:]}
    found: dict[str, Any] = json.loads((folder / "profile.json").read_text(encoding="utf-8"))
    return found


def train(job: dict[str, Any]) -> None:
    """Train as a job says; time an epoch and profile the last steps of the next."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    model, options = throughput.prepare(job)
    cuda, steps = job["device"] != "cpu", job["steps"]
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    profiler = profile(activities=activities)
    times: list[float] = []
    seen: list[int] = []  # an entry for each batch of the epoch so far

    def now() -> float:
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def start(trainer: Any) -> None:
        seen.clear()
        if trainer.epoch + 1 == TIMED:
            times.append(now())

    def step(trainer: Any) -> None:
        batches = len(trainer.train_loader)
        if steps >= batches:
            raise SystemExit(f"an epoch has {batches} steps, too few to profile {steps}")
        seen.append(batches)
        left = batches - len(seen)
        if trainer.epoch + 1 == TIMED and not left:
            times.append((now() - times[0]) / batches)
        elif trainer.epoch + 1 == PROFILED and left == steps:
            now()
            profiler.start()
        elif trainer.epoch + 1 == PROFILED and not left:
            now()
            profiler.stop()

    model.add_callback("on_train_epoch_start", start)
    model.add_callback("on_train_batch_end", step)
    model.train(**options)
    Path(job["folder"], "profile.json").write_text(json.dumps(summary(profiler, times[1], steps)), encoding="utf-8")


def summary(profiler: Any, seconds: float, steps: int) -> dict[str, Any]:
    """Return times in milliseconds and counts, each for one step."""
    from torch.autograd import DeviceType

    kernels, calls = Counter[str](), Counter[str]()
    spans = []
    for event in profiler.events():
        if event.device_type == DeviceType.CUDA:
            spans.append((event.time_range.start, event.time_range.end))
            kernels[event.name] += event.time_range.elapsed_us()
        else:
            calls[event.name] += 1
    kernel_ms = covered(spans) / 1e3 / steps
    step_ms = seconds * 1e3
    return {
        "step_ms": round(step_ms, 3),
        "kernels_ms": round(kernel_ms, 3),
        "busy": round(min(kernel_ms / step_ms, 1), 3),
        "kernels": round(len(spans) / steps, 1),
        "launches": round(sum(calls[name] for name in LAUNCHES) / steps, 1),
        "waits": round(sum(calls[name] for name in WAITS) / steps, 2),
        "items": round(calls["aten::_local_scalar_dense"] / steps, 2),
        "longest_kernels_ms": {n[:120]: round(t / 1e3 / steps, 4) for n, t in kernels.most_common(KERNELS_SHOWN)},
    }


def covered(spans: list[tuple[float, float]]) -> float:
    """Return the length of the union of intervals."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(stop - max(start, end), 0)
        end = max(end, stop)
    return total


def _line(run: dict[str, Any]) -> str:
    if "error" in run:
        return f"{run['model']} {run['way']}: failed: {run['error']}"
    numbers = " ".join(f"{key} {run[key]}" for key in ("step_ms", "kernels_ms", "busy", "launches", "waits", "items"))
    return f"{run['model']} {run['way']}: {numbers}"


if __name__ == "__main__":
    main()
