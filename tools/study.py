"""Run a study: many trainings that differ in one thing, several at once, over as many sittings as it takes.

    python tools/study.py run STUDY.yaml STATE DATA [--seconds 540] [--at-once 4] [--devices 0,1]
    python tools/study.py collect STUDY.yaml STATE docs/results/study-NAME.json

STUDY.yaml declares the runs (tools/studies has some):

    name: stem
    data: {voc12: {imgsz: 320}}            # sets, with keys that go with them
    recipe: {cfg: small, epochs: 60}       # keys of every run
    seeds: [0, 1, 2]
    runs:
      p: {model: yolo-lat-p}
      patch: {model: patch-stem.yaml}      # YAMLs beside the study's file are found

DATA holds a folder for each set with images/train, images/val and annotations/train.json, val.json. STATE keeps a
folder a run: carry it to another machine and the study goes on there. `run` starts what is missing, each on the device
that has fewest, goes on with what was interrupted (exactly, from resume.pt), and after `--seconds` stops what still
runs. Runs of one seed come before those of the next, so that a study that is cut short has whole rows. `collect`
writes the twelve COCO numbers of every finished run and how far the others are, and prints mean and standard deviation
over seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from recipe_runs import write_data_yaml

SHOWN = ("AP", "AP50", "AP75", "APs", "APm", "APl")
KEPT = {"args.yaml", "results.csv", "metrics.json", "weights"}


@dataclass(frozen=True, eq=False)
class Run:
    """One training of a study.

    Attributes:
        key: its name, and that of its folder.
        row: of the table that it belongs to, run and data set.
        options: of `yolo-lat train`; the data set by its name.
    """

    key: str
    row: tuple[str, str]
    options: dict[str, Any]

    def folder(self, state: Path) -> Path:
        """Return where the run lives."""
        return state / self.key

    def is_done(self, state: Path) -> bool:
        """Whether the run has its final numbers."""
        return (self.folder(state) / "done.json").is_file()


@dataclass(frozen=True)
class Sitting:
    """A run's process, the device that it has and when it began, in seconds since the epoch."""

    process: subprocess.Popen[bytes]
    device: str
    begun: float


def main() -> None:
    """Run or collect, as the first word says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    run = modes.add_parser("run")
    collect = modes.add_parser("collect")
    for mode in (run, collect):
        mode.add_argument("study", type=Path)
        mode.add_argument("state", type=Path)
    run.add_argument("data", type=Path)
    run.add_argument("--seconds", type=float, default=float("inf"))
    run.add_argument("--at-once", type=int, default=4)
    run.add_argument("--devices", default="0", help="GPU indices with commas between, or cpu")
    run.add_argument("--only", default="", help="words that a run's name must have one of, with commas between")
    collect.add_argument("out", type=Path)
    given = parser.parse_args()
    runs = read_study(given.study)
    if given.mode == "run":
        carry_out(runs, given)
    else:
        write_results(runs, given)


def read_study(file: Path) -> list[Run]:
    """Return the runs that a study declares, those of one seed together."""
    study = yaml.safe_load(file.read_text(encoding="utf-8"))
    missing = {"name", "data", "recipe", "seeds", "runs"} - study.keys()
    if missing:
        sys.exit(f"{file}: lacks {', '.join(sorted(missing))}")
    runs = []
    for seed, (data, of_data), (name, own) in product(study["seeds"], study["data"].items(), study["runs"].items()):
        options = {**study["recipe"], **of_data, **own, "data": data, "seed": seed}
        beside = file.parent / str(options["model"])
        if beside.is_file():
            options["model"] = str(beside.resolve())
        runs.append(Run(f"{study['name']}-{name}-{data}-{seed}", (name, data), options))
    return runs


def carry_out(runs: list[Run], given: argparse.Namespace) -> None:
    """Start what is missing, as many at once as may be, until nothing is or time is over."""
    given.state.mkdir(parents=True, exist_ok=True)
    words = [word for word in given.only.split(",") if word]
    waiting = [r for r in runs if not r.is_done(given.state) and (not words or any(w in r.key for w in words))]
    print(f"{len(waiting)} of {len(runs)} runs to do", flush=True)
    end, running = time.time() + given.seconds, dict[Run, Sitting]()
    while (waiting or running) and time.time() < end:
        while waiting and len(running) < given.at_once:
            run, busy = waiting.pop(0), [sitting.device for sitting in running.values()]
            device = min(given.devices.split(","), key=busy.count)
            running[run] = Sitting(start(run, given, device), device, time.time())
        time.sleep(0.5)
        for run in [run for run, sitting in running.items() if sitting.process.poll() is not None]:
            sitting = running.pop(run)
            finish(run, given.state, sitting.process.returncode, time.time() - sitting.begun)
    for run, sitting in running.items():
        sitting.process.kill()
        sitting.process.wait()
        print(f"{run.key}: stopped at epoch {epochs_done(run.folder(given.state))}, goes on next time", flush=True)


def start(run: Run, given: argparse.Namespace, device: str) -> subprocess.Popen[bytes]:
    """Start a run, or go on with it if it was interrupted."""
    folder = run.folder(given.state).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    last = folder / "train/weights/last.pt"
    if last.with_name("resume.pt").is_file():
        mend_paths(last, folder, given.data, device)
        words = [f"resume={last}", f"device={device}"]
    else:
        data = write_data_yaml(folder, (given.data / run.options["data"]).resolve())
        cores = max((os.cpu_count() or 1) // given.at_once, 1)
        options = {"workers": cores, "plots": False, **run.options, "data": data, "device": device}
        options |= {"project": folder, "name": "train", "exist_ok": True}
        words = [f"{key}={value}" for key, value in options.items()]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-m", "yolo_lat", "train", *words], stdout=log, stderr=log)


def mend_paths(last: Path, folder: Path, data_root: Path, device: str) -> None:
    """Let a checkpoint of another machine find its data and folder on this one."""
    import torch

    checkpoint = torch.load(last, map_location="cpu", weights_only=False)
    old = checkpoint["train_args"]
    data = write_data_yaml(folder, (data_root / Path(old["data"]).stem).resolve())
    old |= {"data": str(data), "project": str(folder), "save_dir": str(folder / "train"), "device": device}
    checkpoint["ema"].args = old
    torch.save(checkpoint, last)


def finish(run: Run, state: Path, status: int, seconds: float) -> None:
    """Note how a run ended, and keep of its files what the study needs."""
    folder = run.folder(state)
    if status:
        log = (folder / "log").read_text(errors="replace").strip().splitlines()
        print(f"{run.key}: failed with status {status}: {log[-1] if log else ''}", flush=True)
        return
    train = folder / "train"
    numbers = json.loads((train / "metrics.json").read_text(encoding="utf-8"))
    for file in train.iterdir():
        if file.name not in KEPT and file.is_file():
            file.unlink()
    for file in (train / "weights").glob("*.pt"):
        file.unlink()  # their weights stay as safetensors
    content = {
        "coco": numbers,
        "epochs": epochs_done(folder),
        "gpu": gpu_name(),
        "seconds_of_last_sitting": round(seconds),
    }
    (folder / "done.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"{run.key}: AP {numbers['AP']:.4f}, {seconds:.0f} s", flush=True)


def epochs_done(folder: Path) -> int:
    """Return how many epochs results.csv has."""
    file = folder / "train/results.csv"
    return len(file.read_text(encoding="utf-8").splitlines()) - 1 if file.is_file() else 0


def gpu_name() -> str | None:
    """Return the name of the GPU, None without one."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def write_results(runs: list[Run], given: argparse.Namespace) -> None:
    """Write every finished run into one record and print the table."""
    rows = []
    for run in runs:
        row: dict[str, Any] = {"run": run.row[0], "data": run.row[1], "seed": run.options["seed"]}
        row["options"] = {k: Path(v).name if k == "model" else v for k, v in run.options.items()}
        if run.is_done(given.state):
            row |= json.loads((run.folder(given.state) / "done.json").read_text(encoding="utf-8"))
        else:
            row["unfinished"] = f"{epochs_done(run.folder(given.state))} epochs"
        rows.append(row)
    record = {
        "command": f"python tools/study.py run {given.study} STATE DATA",
        "commit": _output(["git", "rev-parse", "HEAD"]),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "ultralytics", "pycocotools", "numpy")},
        "runs": rows,
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(record, indent=1, default=str) + "\n", encoding="utf-8")
    print_table(rows)


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print mean and standard deviation over seeds."""
    from rich.console import Console
    from rich.table import Table

    table = Table("run", "data", "seeds", *SHOWN)
    for name, data in dict.fromkeys((row["run"], row["data"]) for row in rows):
        found = [row["coco"] for row in rows if (row["run"], row["data"]) == (name, data) and "coco" in row]
        cells = []
        for number in SHOWN:
            values = [coco[number] for coco in found]
            spread = f" +- {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.4f}{spread}" if values else "-")
        table.add_row(name, data, str(len(found)), *cells)
    Console(width=140).print(table)


def _output(command: list[str]) -> str | None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


if __name__ == "__main__":
    main()
