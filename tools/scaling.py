"""How many images a second one and several processes train, and whether they learn the same.

    python tools/scaling.py OUT.json DATA.yaml IMGSZ BATCH [--models a,b] [--processes 1,2] [--epochs N] [--rounds N]

for example

    python tools/scaling.py docs/results/scaling-h100.json voc12.yaml 320 128 --processes 1,2

Every process has a GPU, or with `--device cpu` a share of the cores. BATCH is that of one process. The kinds of runs
take turns: `graph` has BATCH in each process, with cache=device and cuda_graph, `speed` the same without graphs; `host`
and `sync` have BATCH in all of them together and draw the samples of one process, so that they should learn the same,
`sync` with sync_bn. `graph` and `sync` are for GPUs. Images a second are results.csv's, the median of all epochs but
the first, without validation; curves are its training losses.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from throughput import make_parser, save

KINDS = ("graph", "speed", "host", "sync")
ON_DEVICE = {"graph", "speed"}


def main() -> None:
    """Run every training and write what came out."""
    parser = make_parser(__doc__, KINDS)
    parser.set_defaults(models="yolo-lat-n")
    parser.add_argument("--processes", default="1,2")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work:
        for number in range(given.rounds):
            for model in given.models.split(","):
                for kind in given.ways.split(","):
                    for processes in map(int, given.processes.split(",")):
                        run = {"model": model, "kind": kind, "processes": processes, "round": number}
                        run |= measure(given, model, kind, processes, Path(work, f"{len(runs)}"))
                        runs.append(run)
                        print(json.dumps({k: v for k, v in run.items() if k != "losses"}), flush=True)
                        save(given, runs, "python tools/scaling.py")
    show(runs)


def measure(given: argparse.Namespace, model: str, kind: str, processes: int, folder: Path) -> dict[str, Any]:
    """Train once and return images a second and losses, or the end of what it said."""
    options = {
        "model": model,
        "data": given.data,
        "imgsz": given.imgsz,
        "batch": given.batch * (processes if kind in ON_DEVICE else 1),
        "epochs": given.epochs,
        "workers": max(given.workers // processes, 1),
        "project": folder,
        "name": "run",
        "val_period": given.epochs,
        "plots": False,
        "cache": "device" if kind in ON_DEVICE else "ram",
        "cuda_graph": kind == "graph",
        "sync_bn": kind == "sync" and processes > 1,
    }
    if given.device == "cpu":
        options["device"] = "cpu"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "yolo_lat", "train"]
    words = [f"{key}={value}" for key, value in options.items()]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": done.stderr[-1500:]}
    with (folder / "run/results.csv").open(encoding="utf-8") as file:
        rows = [{key.strip(): value for key, value in row.items()} for row in csv.DictReader(file)]
    return {
        "images_per_s": statistics.median(float(row["speed/images_per_s"]) for row in rows[1:]),
        "losses": [[float(v) for k, v in row.items() if k.startswith("train/")] for row in rows],
    }


def show(runs: list[dict[str, Any]]) -> None:
    """Print speeds, their ratio to one process, and how far losses are from those of one process."""
    table = Table("model", "kind", "processes", "images/s", "x one", "losses differ by", title="Several processes")
    good = [run for run in runs if "error" not in run]
    for model, kind, processes in dict.fromkeys((run["model"], run["kind"], run["processes"]) for run in good):
        own, one = (
            [r for r in good if (r["model"], r["kind"], r["processes"]) == (model, kind, n)] for n in (processes, 1)
        )
        speed = statistics.median(run["images_per_s"] for run in own)
        ratio = speed / statistics.median(run["images_per_s"] for run in one) if one else None
        far = difference(own[0]["losses"], one[0]["losses"]) if one and kind not in ON_DEVICE else None
        cells = (f"{speed:.0f}", f"{ratio:.2f}" if ratio else "-", f"{far:.2%}" if far is not None else "-")
        table.add_row(model, kind, str(processes), *cells)
    for run in runs:
        if "error" in run:
            table.add_row(run["model"], run["kind"], str(run["processes"]), "failed", "-", "-")
    Console(width=100).print(table)


def difference(losses: list[list[float]], others: list[list[float]]) -> float:
    """Return the largest difference between sums of losses of an epoch, relative to the others'."""
    return max(abs(sum(a) - sum(b)) / sum(b) for a, b in zip(losses, others, strict=True))


if __name__ == "__main__":
    main()
