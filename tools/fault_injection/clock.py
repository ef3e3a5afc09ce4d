"""A clock of the day that jumps, as one that is set by hand or over the network."""

from __future__ import annotations

import csv
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from fault_injection.commands import TRAIN, Commands, Ended, Material, Tally, empty, expect, half_written, same_tensors

_DAY_S, _YEAR_S = 86_400.0, 31_557_600.0
JUMPS: dict[str, tuple[float, ...]] = {
    "three days back": (0, -3 * _DAY_S),
    "a year ahead": (0, _YEAR_S),
    "twenty years back": (0, -20 * _YEAR_S),
    "to and fro": (0, _YEAR_S, -_DAY_S, 3600, -10 * _YEAR_S, 5),
}
_ABSURD = re.compile(r"-\d+ day|-\d+:\d\d|-\d+\.\d+ hours|\bnan\b|\binf\b")
_HOURS = 0.0025  # nine seconds
Clock = Callable[[Commands, Material, Path], Tally]


def train(commands: Commands, material: Material, folder: Path) -> Tally:
    """Training: the same weights, and speeds and times that can be."""
    tally = Tally("the clock jumps under train")
    words = ["train", "model=yolo-lat-p", f"data={material.data}", "epochs=4", *TRAIN, "name=run"]
    whole = empty(folder / "whole")
    expect(commands.run([*words, f"project={whole}"], folder), 0)
    for name, jumps in JUMPS.items():
        place = empty(folder / "run")
        ended = commands.run([*words, f"project={place}"], folder, jumps=jumps)
        problems = _ended(ended) + half_written(place) + _columns(place / "run/results.csv")
        if ended.status == 0 and not same_tensors(*(p / "run/weights/last.safetensors" for p in (place, whole))):
            problems.append("other weights")
        problems += [f"says {text}" for text in _ABSURD.findall(ended.text)]
        tally.add(name, *problems)
    return tally


def train_hours(commands: Commands, material: Material, folder: Path) -> Tally:
    """Training for `time=` hours: as long as asked for, whatever the clock says."""
    tally = Tally(f"the clock jumps under train time={_HOURS}")
    words = ["train", "model=yolo-lat-p", f"data={material.data}", "epochs=1000", *TRAIN, f"time={_HOURS}", "name=run"]
    for name, jumps in JUMPS.items():
        place = empty(folder / "run")
        ended = commands.run([*words, f"project={place}"], folder, jumps=jumps, limit=60)
        problems = _ended(ended) + half_written(place)
        seconds = ended.seconds
        if ended.status == 0 and not 0.6 * _HOURS * 3600 < seconds < 3 * _HOURS * 3600 + 20:
            problems.append(f"took {seconds:.1f} s in place of {_HOURS * 3600:.0f} s")
        tally.add(name, *problems)
    return tally


def demo(commands: Commands, material: Material, folder: Path) -> Tally:
    """The demo: the same lines, and a speed that can be."""
    tally = Tally("the clock jumps under demo")
    source = empty(folder / "pictures")
    for number in range(20):
        for image in sorted(material.images.iterdir())[:4]:
            shutil.copy(image, source / f"{number:03d}-{image.name}")
    words = ["demo", f"model={material.onnx}", f"source={source}", "show=False", "imgsz=64", "name=run"]
    whole = empty(folder / "whole")
    expect(commands.run([*words, f"project={whole}"], folder), 0)
    right = (whole / "run/detections.jsonl").read_text(encoding="utf-8")
    for name, jumps in JUMPS.items():
        place = empty(folder / "run")
        ended = commands.run([*words, f"project={place}"], folder, jumps=jumps)
        problems = _ended(ended) + half_written(place)
        if ended.status == 0 and (place / "run/detections.jsonl").read_text(encoding="utf-8") != right:
            problems.append("other lines")
        speeds = [float(text) for text in re.findall(r"(-?[\d.]+) FPS", ended.text)]
        problems += [f"says {speed} FPS" for speed in speeds if not 0 < speed < 1e5]
        tally.add(name, *problems)
    return tally


def _ended(ended: Ended) -> list[str]:
    return [] if ended.status == 0 else [f"exit status {ended.status}: {ended.text[-600:]}"]


def _columns(file: Path) -> list[str]:
    """Return what cannot be in a results.csv: numbers that are none, and times and speeds below 0 or beyond a day."""
    if not file.is_file():
        return ["no results.csv"]
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    problems, times = [], [float(row["time"]) for row in rows]
    for row in rows:
        problems += [f"{key} is {value}" for key, value in row.items() if not math.isfinite(float(value))]
        timed = {key: float(value) for key, value in row.items() if key == "time" or key.startswith("speed/")}
        problems += [f"{key} is {value}" for key, value in timed.items() if not 0 <= value < _DAY_S]
    return problems + ([] if times == sorted(times) else ["times that go back"])


CLOCKS: dict[str, Clock] = {"train": train, "train time=": train_hours, "demo": demo}
