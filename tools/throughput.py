"""How many images a second each way of feeding a GPU trains, and how busy it keeps the GPU.

    python tools/throughput.py OUT.json DATA.yaml IMGSZ BATCH [--models a,b] [--ways a,b] [--epochs N] [--rounds N]

for example

    python tools/throughput.py docs/results/throughput.json voc12.yaml 320 64

Ways: `ultralytics` is its own trainer, loop and loader as they are, `ultralytics-ram` the same with cache=ram, `device`
is cache=device and `device-graph` that with cuda_graph=True. Each training has a process of its own; in every round all
of them take their turn. An epoch's time runs from its start to that of the next, so loading and checkpoints are in it
and a loader gains nothing by loading between epochs; nothing is validated. Images a second are those of all epochs but
the first and last together. GPU busy is the mean of what nvidia-smi samples in these: the share of time in which any
kernel ran.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

WAYS = ("ultralytics", "ultralytics-ram", "device", "device-graph")
MODELS = ("yolov8n", "yolo-lat-n", "yolo-lat-p")


def main() -> None:
    """Run every training and write what came out."""
    parser = make_parser(__doc__, WAYS)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    if given.epochs < 3:
        parser.error(f"--epochs {given.epochs}: the first and the last do not count; give 3 or more")
    with tempfile.TemporaryDirectory() as work:
        stock = Path(work, "stock")
        from yolo_lat.data.convert import convert

        stock_data = convert(given.data, stock, "yolo", crowd="drop", outside="clip", progress=False)
        runs = []
        for number in range(given.rounds):
            for model in given.models.split(","):
                for way in given.ways.split(","):
                    data = stock_data if way.startswith("ultralytics") else given.data
                    row = {"model": model, "way": way, "round": number}
                    row |= measure(given, model, way, str(data), Path(work, f"{number}-{model}-{way}"))
                    runs.append(row)
                    print(json.dumps({k: v for k, v in row.items() if k != "epochs_s"}), flush=True)
                    save(given, runs)
    table(runs)


def make_parser(about: str | None, ways: tuple[str, ...]) -> argparse.ArgumentParser:
    """Return a parser of what to train, in which ways, on what."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("data")
    parser.add_argument("imgsz", type=int)
    parser.add_argument("batch", type=int)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--ways", default=",".join(ways))
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", default="0")
    parser.add_argument("--commit")
    return parser


def measure(given: argparse.Namespace, model: str, way: str, data: str, folder: Path) -> dict[str, Any]:
    """Train once, in a process of its own."""
    folder.mkdir()
    job = {
        "model": model,
        "way": way,
        "data": data,
        "imgsz": given.imgsz,
        "batch": given.batch,
        "epochs": given.epochs,
        "workers": given.workers,
        "device": given.device,
        "folder": str(folder),
    }
    busy: list[tuple[float, float]] = []
    sampler = threading.Thread(target=sample_gpu, args=(given.device, busy, stop := threading.Event()), daemon=True)
    if given.device != "cpu":
        sampler.start()
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import throughput; throughput.train({job!r})"
    )
    with (folder / "log").open("wb") as log:
        status = subprocess.run([sys.executable, "-c", code], stdout=log, stderr=log, check=False).returncode
    stop.set()
    if status:
        return {"error": (folder / "log").read_text(errors="replace")[-1500:]}
    found = json.loads((folder / "epochs.json").read_text())
    starts = found["starts"]
    within = [share for when, share in busy if starts[1] <= when <= starts[-1]]
    return {
        "images_per_s": round(found["images"] * (len(starts) - 2) / (starts[-1] - starts[1]), 1),
        "gpu_busy": round(statistics.mean(within), 3) if within else None,
        "peak_memory_gib": found["peak_memory_gib"],
        "epochs_s": [round(b - a, 4) for a, b in pairwise(starts)],
    }


def train(job: dict[str, Any]) -> None:
    """Train as a job says and write when its epochs began."""
    import torch

    starts: list[float] = []
    cuda = job["device"] != "cpu"

    def start(_: Any) -> None:
        if cuda:
            torch.cuda.synchronize()
        starts.append(time.time())

    model, options = prepare(job)
    model.add_callback("on_train_epoch_start", start)
    model.train(**options)
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else None
    images = len(model.trainer.train_loader.dataset)
    content = {"starts": starts, "images": images, "peak_memory_gib": peak and round(peak, 3)}
    Path(job["folder"], "epochs.json").write_text(json.dumps(content))


def prepare(job: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the model that a job names and the arguments of its training."""
    from ultralytics.models.yolo.detect import DetectionTrainer
    from ultralytics.utils import RANK

    from yolo_lat import YOLOLAT
    from yolo_lat.nn import LatModel, load_model_yaml

    class Stock(DetectionTrainer):
        """Ultralytics' trainer, which builds any model that we know."""

        def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> LatModel:
            content = cfg if isinstance(cfg, dict) else load_model_yaml(cfg)
            return LatModel(content, nc=self.data["nc"], ch=self.data["channels"], verbose=verbose and RANK == -1)

    model = YOLOLAT(job["model"] if job["model"].startswith("yolo-lat") else f"{job['model']}.yaml")
    way, stock = job["way"], job["way"].startswith("ultralytics")
    ours = {} if stock else {"cache": "device", "cuda_graph": way == "device-graph"}
    options = {key: job[key] for key in ("data", "epochs", "imgsz", "batch", "device", "workers")}
    options |= {"trainer": Stock if stock else None, "project": job["folder"]}
    options |= {"val": False, "plots": False, "close_mosaic": 0}
    return model, options | ({"cache": "ram"} if way == "ultralytics-ram" else ours)


def sample_gpu(gpu: str, samples: list[tuple[float, float]], stop: threading.Event) -> None:
    """Note a GPU's utilisation, 0 to 1, five times a second until told to stop."""
    from yolo_lat.deploy.benchmark.environment import smi_name

    query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
    command = ["nvidia-smi", "-i", smi_name(int(gpu)), *query]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            samples.append((time.time(), float(line.split(",")[0]) / 100))
            if stop.is_set():
                process.terminate()
                return


def save(given: argparse.Namespace, runs: list[dict[str, Any]], command: str = "python tools/throughput.py") -> None:
    """Write the record as far as it is."""
    import torch

    commit = given.commit or _output(["git", "rev-parse", "HEAD"])
    record = {
        "command": " ".join([command, *sys.argv[1:]]),
        "commit": commit,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "driver": _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "ultralytics", "numpy")},
        "runs": runs,
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def table(runs: list[dict[str, Any]]) -> None:
    """Print images a second, median over rounds, and the ratio to Ultralytics' way."""
    from rich.console import Console
    from rich.table import Table

    shown = Table("model", "way", "images/s", "x ultralytics", "GPU busy", "peak GiB", title="Training throughput")
    speed = {key: statistics.median(v) for key, v in _grouped(runs, "images_per_s").items()}
    busy, memory = _grouped(runs, "gpu_busy"), _grouped(runs, "peak_memory_gib")
    for key, value in speed.items():
        base = speed.get((key[0], "ultralytics"))
        shares = [b for b in busy[key] if b is not None]
        shown.add_row(
            *key,
            f"{value:.0f}",
            f"{value / base:.2f}" if base else "-",
            f"{statistics.mean(shares):.0%}" if shares else "-",
            str(memory[key][0]),
        )
    for run in runs:
        if "error" in run:
            shown.add_row(run["model"], run["way"], "failed", "-", "-", "-")
    Console(width=100).print(shown)


def _grouped(runs: list[dict[str, Any]], name: str) -> dict[tuple[str, str], list[Any]]:
    found: dict[tuple[str, str], list[Any]] = {}
    for run in runs:
        if "error" not in run:
            found.setdefault((run["model"], run["way"]), []).append(run[name])
    return found


def _output(command: list[str]) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


if __name__ == "__main__":
    main()
