"""Run a study: many trainings that differ in one thing, several at once, over as many sittings as it takes.

    python tools/study.py run STUDY.yaml STATE DATA [--seconds 540] [--at-once 4] [--devices 0,1] [--known RECORD.json]
    python tools/study.py collect STUDY.yaml STATE docs/results/study-NAME.json [--latency BENCHMARK.json]
    python tools/study.py draw docs/results/study-NAME.json docs/images
    python tools/study.py table docs/results/study-NAME.json [--epochs 50,100,150] [--data voc12] [--runs n-base,26n]
    python tools/study.py models STUDY.yaml FOLDER
    python tools/study.py sizes STUDY.yaml [--imgsz 320] [--classes 80]

STUDY.yaml declares the runs (tools/studies has some):

    name: stem
    data: {voc12: {imgsz: 320}}            # sets, with keys that go with them
    recipe: {cfg: small, epochs: 60}       # keys of every run
    seeds: [0, 1, 2]
    models: {p: yolo-lat-p}                # of runs that name none, each of which becomes one of every model
    runs:
      base: {}
      patch: {change: {rows.0: [-1, 1, Conv, [128, 4, 4, 0]]}}     # see study_models.py
      none: {change: {CrossScaleELA.3.3: {attention: none}}}       # of all its rows, whichever they are
      v8n: {model: yolov8n.yaml, against: p-base}  # compared with that; others with the first of their model

DATA holds a folder for each set with images/train, images/val and annotations/train.json, val.json. STATE keeps a
folder a run: carry it to another machine and the study goes on there. `run` starts what is missing, each on the device
that has fewest, goes on with what was interrupted (exactly, from resume.pt), and after `--seconds` stops what still
runs. Runs of one seed come before those of the next, so that a study that is cut short has whole rows. Small models at
once can share a GPU by NVIDIA's MPS, `nvidia-cuda-mps-control -d` before; a training that is killed then takes the
others of that GPU with it, so let all who start runs there stop at the same time. `collect` writes the twelve COCO
numbers of every finished run, the size of its model, its curve and how far those are that began, joins times that
`yolo-lat benchmark` measured, and prints mean and standard deviation over seeds. What STATE lacks it takes from the
record that it replaces and from those given as `--known`, of any study: a run is known by the fingerprint of its keys,
its recipe and its model's YAML, whatever run and model are called. `run` leaves out what is done in a `--known`
record, so that a study goes on where its STATE is lost. Neither sees that code has changed, whose commit each row
names: leave out records from before a change that matters. `draw` makes figures of what `collect` wrote, `table`
Markdown. `models` writes the changed models and prints the `models=` of a benchmark of all; `sizes` prints parameters
and GFLOPs as deployed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from recipe_runs import write_data_yaml
from study_models import changed_model, write_model
from study_record import (
    describe_run,
    git_commit,
    how_far,
    make_record,
    markdown_curves,
    markdown_table,
    print_table,
    read_known,
    read_rows,
    save_record,
    size_of,
)

from yolo_lat.engine.recipe import find_recipe, read_recipe
from yolo_lat.errors import UserError

FINGERPRINT = "fingerprint"  # file in the folder of a run
KEPT = {"args.yaml", "results.csv", "metrics.json", "weights"}


@dataclass(frozen=True, eq=False)
class Run:
    """One training of a study.

    Attributes:
        key: its name, and that of its folder.
        row: of the table that it belongs to, run and data set.
        options: of `yolo-lat train`; model and data set by their names.
        change: of the model's YAML, values by path.
        against: the run that it is compared with; the first one of its model unless named.
    """

    key: str
    row: tuple[str, str]
    options: dict[str, Any]
    change: dict[str, Any] = field(default_factory=dict)
    against: str | None = None

    @cached_property
    def fingerprint(self) -> str:
        """Of all that decides the run's numbers but data and code: keys, and the content of recipe and model."""
        recipe = read_recipe(find_recipe(self.options["cfg"])) if "cfg" in self.options else {}
        keys = {key: value for key, value in self.options.items() if key != "model" and value is not None}
        told = [keys, recipe, changed_model(self.options["model"], self.change)]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def folder(self, state: Path) -> Path:
        """Return where the run lives."""
        return state / self.key

    def is_done(self, state: Path) -> bool:
        """Whether the run has its final numbers."""
        return (self.folder(state) / "done.json").is_file()

    def check_state(self, state: Path) -> None:
        """Refuse a folder of another run that had this one's name, before its study was changed.

        Raises:
            UserError: the folder notes another fingerprint.
        """
        folder = self.folder(state)
        told = None
        if (note := folder / FINGERPRINT).is_file():
            told = note.read_text(encoding="utf-8").strip()
        elif (done := folder / "done.json").is_file():
            told = json.loads(done.read_text(encoding="utf-8")).get("fingerprint")
        if told not in (None, self.fingerprint):
            raise UserError(
                f"{folder} holds a run with other keys, recipe or model than the study has by that name; move it away"
            )


@dataclass(frozen=True)
class Sitting:
    """A run's process, the device that it has, when it began, in seconds since the epoch, and at which commit."""

    process: subprocess.Popen[bytes]
    device: str
    begun: float
    commit: str | None


def main() -> None:
    """Run or collect, as the first word says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    run = modes.add_parser("run")
    collect = modes.add_parser("collect")
    models = modes.add_parser("models")
    sizes = modes.add_parser("sizes")
    draw = modes.add_parser("draw")
    table = modes.add_parser("table")
    for mode in (run, collect, models, sizes):
        mode.add_argument("study", type=Path)
    for mode in (run, collect):
        mode.add_argument("state", type=Path)
        mode.add_argument("--known", type=Path, nargs="+", default=[], help="records to take finished runs from")
    run.add_argument("data", type=Path)
    run.add_argument("--seconds", type=float, default=float("inf"))
    run.add_argument("--at-once", type=int, default=4)
    run.add_argument("--devices", default="0", help="GPU indices with commas between, or cpu")
    run.add_argument("--only", default="", help="words that a run's name must have one of, with commas between")
    run.add_argument("--commit", help="of the code, where git does not tell it")
    collect.add_argument("out", type=Path)
    collect.add_argument("--latency", type=Path, nargs="+", default=[], help="records of yolo-lat benchmark")
    for mode in (draw, table):
        mode.add_argument("record", type=Path)
    table.add_argument("--epochs", type=epochs, help="what runs had come to by these, with commas between")
    table.add_argument("--data", default="", help="sets with commas between, in place of all")
    table.add_argument("--runs", default="", help="runs with commas between, in place of all")
    for mode in (draw, models):
        mode.add_argument("folder", type=Path)
    sizes.add_argument("--imgsz", type=int, default=320)
    sizes.add_argument("--classes", type=int, default=80)
    given = parser.parse_args()
    try:
        act(given)
    except UserError as error:
        print(f"study: {error}", file=sys.stderr)
        sys.exit(2)


def act(given: argparse.Namespace) -> None:
    """Do what the words ask for."""
    if given.mode == "draw":
        from study_figures import draw_study

        print(*draw_study(given.record, given.folder), sep="\n")
        return
    if given.mode == "table":
        rows = chosen_rows(read_rows(given.record), given.runs, given.data)
        print(markdown_curves(rows, given.epochs) if given.epochs else markdown_table(rows))
        return
    runs = read_study(given.study)
    if given.mode in ("run", "collect"):
        for run in runs:
            run.check_state(given.state)
    if given.mode == "run":
        carry_out(runs, given)
    elif given.mode == "models":
        write_models(runs, given.folder)
    elif given.mode == "sizes":
        print_sizes(runs, given.imgsz, given.classes)
    else:
        write_results(runs, given)


def epochs(text: str) -> list[int]:
    """Read the numbers of epochs, with commas between."""
    return [int(word) for word in text.split(",")]


def chosen_rows(rows: list[dict[str, Any]], runs: str, data: str) -> list[dict[str, Any]]:
    """Return the rows of some runs and sets, whose names have commas between, all where none is named.

    Raises:
        UserError: no row has such a name.
    """
    for key, names in (("run", runs), ("data", data)):
        wanted = [name for name in names.split(",") if name]
        known = {row[key] for row in rows}
        if unknown := sorted(set(wanted) - known):
            raise UserError(f"the record has no {key} {unknown[0]}; it has {', '.join(sorted(known))}")
        rows = [row for row in rows if not wanted or row[key] in wanted]
    return rows


def read_study(file: Path) -> list[Run]:
    """Return the runs that a study declares, those of one seed together.

    Raises:
        UserError: a key is missing, or a run has no model.
    """
    study = yaml.safe_load(file.read_text(encoding="utf-8"))
    missing = {"name", "data", "recipe", "seeds", "runs"} - study.keys()
    if missing:
        raise UserError(f"{file}: lacks {', '.join(sorted(missing))}; add it")
    models = study.get("models", {})
    bare = {name: own for name, own in study["runs"].items() if "model" not in own}
    if bare and not models:
        raise UserError(f"{file}, run {min(bare)}: names no model, and neither does the study; add model or models")
    declared = {f"{n}-{name}": {**own, "model": models[n]} for n, (name, own) in product(models, bare.items())}
    declared |= {name: own for name, own in study["runs"].items() if "model" in own}
    runs = []
    for seed, (data, of_data), (name, own) in product(study["seeds"], study["data"].items(), declared.items()):
        options = {**study["recipe"], **of_data, **own, "data": data, "seed": seed}
        change, against = options.pop("change", {}), options.pop("against", None)
        runs.append(Run(f"{study['name']}-{name}-{data}-{seed}", (name, data), options, change, against))
    return runs


def carry_out(runs: list[Run], given: argparse.Namespace) -> None:
    """Start what is missing, as many at once as may be, until nothing is or time is over."""
    given.state.mkdir(parents=True, exist_ok=True)
    words = [word for word in given.only.split(",") if word]
    done = {fingerprint for fingerprint, found in read_known(given.known).items() if "coco" in found}
    waiting = [run for run in runs if not words or any(word in run.key for word in words)]
    waiting = [run for run in waiting if not run.is_done(given.state) and run.fingerprint not in done]
    print(f"{len(waiting)} of {len(runs)} runs to do", flush=True)
    end, running = time.time() + given.seconds, dict[Run, Sitting]()
    while (waiting or running) and time.time() < end:
        while waiting and len(running) < given.at_once:
            run, busy = waiting.pop(0), [sitting.device for sitting in running.values()]
            device = min(given.devices.split(","), key=busy.count)
            commit = given.commit or git_commit()  # now, as there may be others by the end
            running[run] = Sitting(start(run, given, device), device, time.time(), commit)
        time.sleep(0.5)
        for run in [run for run, sitting in running.items() if sitting.process.poll() is not None]:
            sitting = running.pop(run)
            finish(run, given, sitting)
    for run, sitting in running.items():
        sitting.process.kill()
        sitting.process.wait()
        print(f"{run.key}: stopped at epoch {epochs_done(run.folder(given.state))}, goes on next time", flush=True)


def start(run: Run, given: argparse.Namespace, device: str) -> subprocess.Popen[bytes]:
    """Start a run, or go on with it if it was interrupted."""
    folder = run.folder(given.state).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FINGERPRINT).write_text(run.fingerprint + "\n", encoding="utf-8")
    last = folder / "train/weights/last.pt"
    if last.with_name("resume.pt").is_file():
        mend_paths(last, folder, given.data, device)
        words = [f"resume={last}", f"device={device}"]
    else:
        data = write_data_yaml(folder, (given.data / run.options["data"]).resolve())
        cores = max((os.cpu_count() or 1) // given.at_once, 1)
        options = {"workers": cores, "plots": False, **run.options, "data": data, "device": device}
        if run.change:
            options["model"] = write_model(run.options["model"], run.change, folder / "model.yaml")
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


def finish(run: Run, given: argparse.Namespace, ended: Sitting) -> None:
    """Note how a run ended, and keep of its files what the study needs."""
    folder, seconds = run.folder(given.state), time.time() - ended.begun
    if status := ended.process.returncode:
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
        **size_of(train / "weights/best.safetensors", run.options["imgsz"]),
        "gpu": gpu_name(),
        "fingerprint": run.fingerprint,
        "commit": ended.commit,
        "at_once": given.at_once,
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
    """Write what every run has come to into one record and print the table."""
    rows = []
    known = read_known([*([given.out] if given.out.is_file() else []), *given.known])
    for run in runs:
        found = describe_run(run.folder(given.state)) if run.folder(given.state).is_dir() else {}
        found = max(found, known.get(run.fingerprint, {}), key=how_far)
        if found:
            row: dict[str, Any] = {"run": run.row[0], "data": run.row[1], "seed": run.options["seed"]}
            row |= {"options": run.options, "fingerprint": run.fingerprint}
            row |= {key: value for key, value in (("change", run.change), ("against", run.against)) if value}
            rows.append(row | found)
    record = make_record(f"python tools/study.py run {given.study} STATE DATA", rows, given.latency)
    save_record(record, given.out)
    print_table(rows)


def write_models(runs: list[Run], folder: Path) -> None:
    """Write the changed models of a study and print what a benchmark takes them all by."""
    words = {}
    for run in runs:
        if run.row[0] not in words:
            model = run.options["model"]
            words[run.row[0]] = write_model(model, run.change, folder / f"{run.row[0]}.yaml") if run.change else model
    print(",".join(f"{name}={source}" for name, source in words.items()))


def print_sizes(runs: list[Run], imgsz: int, classes: int) -> None:
    """Print a Markdown table of the models of a study as deployed, before any training."""
    from yolo_lat.engine.table import count_deployed
    from yolo_lat.nn import LatModel, load_model_yaml

    print(f"| run | parameters | GFLOPs at {imgsz} px |", "|---|---|---|", sep="\n")
    for name, run in {run.row[0]: run for run in runs}.items():
        with TemporaryDirectory() as folder:
            file = write_model(run.options["model"], run.change, Path(folder) / "model.yaml")
            parameters, gflops = count_deployed(LatModel(load_model_yaml(file), nc=classes, verbose=False), imgsz)
        print(f"| {name} | {parameters:,} | {gflops:.3f} |")


if __name__ == "__main__":
    main()
