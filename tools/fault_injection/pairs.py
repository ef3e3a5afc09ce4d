"""Two processes that do the same in one folder at the same moment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fault_injection.commands import (
    TRAIN,
    Commands,
    Ended,
    Material,
    Tally,
    empty,
    expect,
    half_written,
    metrics_of,
    same_tensors,
    snapshot,
)
from fault_injection.kill import rows_of

Pair = Callable[[Commands, Material, Path, int], Tally]
_SLOW = 4  # pairs of what takes seconds are fewer by this factor


def _at_once(commands: Commands, words: list[str], folder: Path) -> list[Ended]:
    """Start a command twice at the same moment; returns how both ended."""
    barrier = time.monotonic() + 0.3  # both forks are there by then
    pair = [commands.start(words, folder, barrier=barrier) for _ in range(2)]
    return [running.wait() for running in pair]


def _judge(pair: list[Ended]) -> tuple[str, list[str]]:
    """Return in words how two commands ended, and what is wrong with that: one has to do its work."""
    done = sum(ended.status == 0 for ended in pair)
    problems = [
        f"exit status {ended.status}: {ended.text[-600:]}"
        for ended in pair
        if ended.status != 0 and ended.sentence is None
    ]
    problems += [] if done else ["neither did its work"]
    return {0: "both refused", 1: "one refused", 2: "both done"}[done], problems


def _apart(pair: list[Ended], runs: list[Path]) -> list[str]:
    """Return what is wrong with the number of folders: each of those that did their work has one."""
    done = sum(ended.status == 0 for ended in pair)
    return [] if done == len(runs) else [f"{done} runs in {len(runs)} folders"]


def train(commands: Commands, material: Material, folder: Path, count: int) -> Tally:
    """Two trainings of the same project and name, with other seeds, so that files that are mixed can be told."""
    return _trainings(commands, material, folder, count, exist_ok=False)


def train_exist_ok(commands: Commands, material: Material, folder: Path, count: int) -> Tally:
    """Two trainings into the same folder."""
    return _trainings(commands, material, folder, count, exist_ok=True)


def _trainings(commands: Commands, material: Material, folder: Path, count: int, exist_ok: bool) -> Tally:
    tally = Tally(f"two train of the same project and name at once{', exist_ok=True' if exist_ok else ''}")

    def command(place: Path) -> list[str]:
        words = ["train", "model=yolo-lat-p", f"data={material.data}", "epochs=2", *TRAIN, f"exist_ok={exist_ok}"]
        return [*words, f"project={place}", "name=run"]

    whole = empty(folder / "whole")
    expect(commands.run(command(whole), folder), 0)
    right = whole / "run"
    for _ in range(max(count // _SLOW, 1)):
        place = empty(folder / "pair")
        ended = _at_once(commands, command(place), folder)
        outcome, problems = _judge(ended)
        runs = sorted(place.iterdir())
        problems += half_written(place) + _apart(ended, runs)
        for run in runs:
            try:
                if not same_tensors(run / "weights/last.safetensors", right / "weights/last.safetensors"):
                    problems.append("other weights")
                if metrics_of(run / "results.csv") != metrics_of(right / "results.csv"):
                    problems.append("other rows in results.csv")
            except Exception as error:
                problems.append(f"{type(error).__name__}: {error}")
        tally.add(f"{outcome}, {len(runs)} folders", *problems)
    return tally


def predict(commands: Commands, material: Material, folder: Path, count: int) -> Tally:
    """Two predictions of the same project and name."""
    tally = Tally("two predict of the same project and name at once")
    saved = ("save_txt=True", "conf=0.000001", "max_det=3", "device=cpu", "imgsz=64")

    def command(place: Path) -> list[str]:
        words = ["predict", f"model={material.weights}", f"source={material.images}", *saved]
        return [*words, f"project={place}", "name=run"]

    whole = empty(folder / "whole")
    expect(commands.run(command(whole), folder), 0)
    right = snapshot(whole / "run")
    for _ in range(max(count // 2, 1)):
        place = empty(folder / "pair")
        ended = _at_once(commands, command(place), folder)
        outcome, problems = _judge(ended)
        runs = sorted(place.iterdir())
        problems += _apart(ended, runs) + [f"{run.name} has other files" for run in runs if snapshot(run) != right]
        tally.add(f"{outcome}, {len(runs)} folders", *problems)
    return tally


def export(commands: Commands, material: Material, folder: Path, count: int) -> Tally:
    """Two exports of the same weights."""
    tally = Tally("two export of the same model at once")
    place = empty(folder / "pair")
    shutil.copy(material.weights, place / "a.safetensors")
    words = ["export", f"model={place / 'a.safetensors'}", "imgsz=64"]
    expect(commands.run(words, folder), 0)
    right = snapshot(place)
    for _ in range(max(count // 2, 1)):
        (place / "a.onnx").unlink()
        outcome, problems = _judge(_at_once(commands, words, folder))
        tally.add(outcome, *problems, *([] if snapshot(place) == right else ["another file, or something left behind"]))
    return tally


def convert(commands: Commands, material: Material, folder: Path, count: int) -> Tally:
    """Two conversions into the same folder."""
    tally = Tally("two data convert into the same directory at once")
    whole = empty(folder / "whole")
    words = ["data", "convert", f"data={material.data}", "format=yolo"]
    expect(commands.run([*words, f"directory={whole / 'new'}"], folder), 0)
    right = snapshot(whole)
    for _ in range(count):
        place = empty(folder / "pair")
        outcome, problems = _judge(_at_once(commands, [*words, f"directory={place / 'new'}"], folder))
        tally.add(outcome, *problems, *([] if snapshot(place) == right else ["another tree, or something left behind"]))
    return tally


def record(commands: Commands, material: Material, folder: Path, count: int) -> Tally:
    """Two checks of data that write the same files."""
    tally = Tally("two data check with the same json= at once")
    place = empty(folder / "pair")
    words = [
        "data",
        "check",
        f"data={material.data}",
        "workers=1",
        f"json={place / 'c.json'}",
        f"sheet={place / 'c.png'}",
    ]
    expect(commands.run(words, folder), 0)
    right = snapshot(place)
    for _ in range(max(count // 2, 1)):
        empty(place)
        outcome, problems = _judge(_at_once(commands, words, folder))
        tally.add(outcome, *problems, *([] if snapshot(place) == right else ["another file, or something left behind"]))
    return tally


def collection(commands: Commands, material: Material, folder: Path, count: int) -> Tally:
    """Two runs over a collection of the same name, then two that go on with one run."""
    tally = Tally("two predict engine=ray of the same name at once, and two that go on with one run")
    words = ["predict", "engine=ray", f"model={material.onnx}", f"source={material.images}", "workers=1"]
    whole = empty(folder / "whole")
    for line in _processes(folder, [*words, f"project={whole}", "name=run"], 1):
        expect(line, 0)
    right = rows_of(whole / "run")
    for number in range(max(count // (2 * _SLOW), 1)):
        place = empty(folder / "pair")
        if number % 2:  # a run that was stopped behind its list of inputs
            shutil.copytree(whole / "run", place / "run")
            for name in ("summary.json", "detections.json", "failed.csv"):
                (place / "run" / name).unlink()
            empty(place / "run/detections")
        more = ["resume"] if number % 2 else []
        ended = _processes(folder, [*words, f"project={place}", "name=run", *more], 2)
        outcome, problems = _judge(ended)
        runs = sorted(place.iterdir())
        problems += _apart(ended, runs) + [f"{run.name} has other rows" for run in runs if rows_of(run) != right]
        tally.add(f"{'resume' if number % 2 else 'new'}: {outcome}, {len(runs)} folders", *problems)
    return tally


def _processes(folder: Path, words: list[str], count: int) -> list[Ended]:
    """Run a command several times at once in processes of its own, as Ray starts others."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "yolo_lat", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started = [subprocess.Popen(command, cwd=folder, env=environment, **pipes) for _ in range(count)]
    texts = [process.communicate(timeout=600)[0] for process in started]
    return [Ended(process.returncode, text) for process, text in zip(started, texts, strict=True)]


def demo(commands: Commands, material: Material, folder: Path, count: int) -> Tally:
    """Two demos that go on with one run, and two of the same name."""
    tally = Tally("two demo of the same name at once")
    words = ["demo", f"model={material.onnx}", f"source={material.images}", "show=False", "imgsz=64"]
    whole = empty(folder / "whole")
    expect(commands.run([*words, f"project={whole}", "name=run"], folder), 0)
    right = (whole / "run/detections.jsonl").read_text(encoding="utf-8")
    for _ in range(max(count // 2, 1)):
        place = empty(folder / "pair")
        ended = _at_once(commands, [*words, f"project={place}", "name=run"], folder)
        outcome, problems = _judge(ended)
        runs = sorted(place.iterdir())
        problems += _apart(ended, runs) + [
            f"{run.name} has other lines"
            for run in runs
            if (run / "detections.jsonl").read_text(encoding="utf-8") != right
        ]
        tally.add(f"{outcome}, {len(runs)} folders", *problems, *half_written(place))
    return tally


PAIRS: dict[str, Pair] = {
    **{"train": train, "train exist_ok=True": train_exist_ok, "predict": predict, "export": export},
    **{"data convert": convert, "data check json=": record, "demo": demo, "predict engine=ray": collection},
}
