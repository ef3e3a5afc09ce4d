"""Commands of yolo-lat in processes that can be killed, and what must hold of what they leave."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import multiprocessing
import os
import random
import shutil
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

LIMIT_S = 300
_JUMP_S = 0.7  # between two jumps of the clock
# Modules with a cost that a kill can tell nothing about: they are imported once, and each command is a fork.
_PRELOADED = [
    *("yolo_lat.engine.model", "yolo_lat.cli", "yolo_lat.data.convert", "yolo_lat.data.split", "torchvision"),
    *("yolo_lat.deploy.benchmark.run", "yolo_lat.data.doctor"),
]


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: its exit status, negative for a signal, None if it did not end in time.
        text: what it wrote to standard output and error.
        seconds: that it took.
    """

    status: int | None
    text: str
    seconds: float = 0.0

    @property
    def sentence(self) -> str | None:
        """What it refused, None unless it did so in one line."""
        lines = [line for line in self.text.splitlines() if line.startswith("yolo-lat: error: ")]
        whole = self.status == 2 and len(lines) == 1 and "Traceback" not in self.text
        return lines[0] if whole else None


class Commands:
    """Starts commands in forks of one process that has imported everything.

    Args:
        folder: for their output.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        self._folder, self._count = folder, 0
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_PRELOADED)

    def start(self, words: Sequence[object], folder: Path, **how: Any) -> Running:
        """Start a command in a folder; `how` goes to `_child`."""
        self._count += 1
        log = self._folder / f"{self._count}.log"
        process = self._context.Process(target=_child, args=([str(word) for word in words], folder, log), kwargs=how)
        process.start()
        return Running(process, log)

    def run(self, words: Sequence[object], folder: Path, limit: float = LIMIT_S, **how: Any) -> Ended:
        """Run a command to its end, or kill it after `limit` seconds."""
        return self.start(words, folder, **how).wait(limit)


@dataclass
class Running:
    """A command on its way."""

    process: BaseProcess
    log: Path
    begun: float = field(default_factory=time.monotonic)

    def wait(self, seconds: float = LIMIT_S) -> Ended:
        """Wait for its end, at most so long; a command that takes longer is killed and has no status."""
        self.process.join(seconds)
        late = self.process.is_alive()
        if late:
            self.process.kill()
            self.process.join()
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.is_file() else ""
        return Ended(None if late else self.process.exitcode, text, time.monotonic() - self.begun)

    def kill_after(self, seconds: float) -> bool:
        """Kill it with SIGKILL; False if it had ended before."""
        self.process.join(seconds)
        killed = self.process.is_alive()
        if killed:
            self.process.kill()
        self.process.join()
        return killed and self.process.exitcode == -9


def _child(
    words: list[str],
    folder: Path,
    log: Path,
    user: int | None = None,
    barrier: float | None = None,
    jumps: Sequence[float] = (),
) -> None:
    """Be the command.

    Args:
        words: of the command line.
        folder: working directory.
        log: file for standard output and error.
        user: number of the user to become.
        barrier: time, as `time.monotonic` has it, to begin at.
        jumps: seconds that the clock of the day is wrong by, one after the other, again and again.
    """
    os.chdir(folder)
    number = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for stream in (1, 2):
        os.dup2(number, stream)
    if user is not None:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    if barrier is not None:
        time.sleep(max(barrier - time.monotonic(), 0))
    if jumps:
        _let_clock_jump(jumps)
    from yolo_lat.cli import main

    main(words)


def _let_clock_jump(jumps: Sequence[float]) -> None:
    right, right_ns, begun = time.time, time.time_ns, time.monotonic()

    def wrong() -> float:
        return jumps[int((time.monotonic() - begun) / _JUMP_S) % len(jumps)]

    time.time = lambda: right() + wrong()
    time.time_ns = lambda: right_ns() + int(wrong() * 1e9)


def snapshot(folder: Path) -> dict[str, str]:
    """Return a hash of every file below a folder, by its path."""
    return {
        str(path.relative_to(folder)): hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def half_written(folder: Path) -> list[str]:
    """Return the files below a folder that have their final name and are not whole.

    Names that begin with a dot, or lie below one that does, or end in `.partial`, are not final.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts) or path.suffix == ".partial"
        if path.is_file() and not hidden and not _is_whole(path):
            found.append(str(name))
    return found


def _is_whole(path: Path) -> bool:
    check = _CHECKS.get(path.suffix.lower())
    if check is None:
        return True
    try:
        check(path)
    except Exception:  # of whatever kind, it cannot be read
        return False
    return True


def _check_csv(path: Path) -> None:
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    if not rows or any(len(row) != len(rows[0]) for row in rows) or not path.read_text(encoding="utf-8").endswith("\n"):
        raise ValueError("a row that is cut off")


def _check_picture(path: Path) -> None:
    from yolo_lat.data.images import image_size

    image_size(path)


def _check_pt(path: Path) -> None:
    import torch

    if path.name == "resume.pt":
        torch.load(path, map_location="cpu", weights_only=True)
        return
    from yolo_lat.engine.checkpoint import load_pt

    with zipfile.ZipFile(path) as archive:
        if archive.testzip():
            raise ValueError("damaged")
    load_pt(path)


def _check_safetensors(path: Path) -> None:
    from yolo_lat.engine.checkpoint import load_safetensors

    load_safetensors(path)


def _check_onnx(path: Path) -> None:
    import onnx

    onnx.checker.check_model(onnx.load(path))


def _check_yaml(path: Path) -> None:
    import yaml

    text = path.read_text(encoding="utf-8")
    if not yaml.safe_load(text) or not text.endswith("\n"):
        raise ValueError("empty or cut off")


def _check_parquet(path: Path) -> None:
    import pyarrow.parquet as pq

    pq.read_table(path)


def _check_rows(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):
        raise ValueError("a row that is cut off")
    for line in text.splitlines():
        list(map(float, line.split()))


_CHECKS: dict[str, Callable[[Path], Any]] = {
    ".json": lambda path: json.loads(path.read_text(encoding="utf-8")),
    ".jsonl": lambda path: [json.loads(line) for line in io.StringIO(path.read_text(encoding="utf-8"))],
    ".csv": _check_csv,
    ".txt": _check_rows,
    ".yaml": _check_yaml,
    ".pt": _check_pt,
    ".safetensors": _check_safetensors,
    ".onnx": _check_onnx,
    ".parquet": _check_parquet,
    **dict.fromkeys((".jpg", ".png", ".jpeg"), _check_picture),
}


@dataclass(frozen=True)
class Material:
    """What all faults work on, made once: a small data set with COCO JSON, a detector trained on it for a moment.

    Attributes:
        folder: that holds it.
    """

    folder: Path

    @property
    def data(self) -> Path:
        """The YAML of the data set."""
        return self.folder / "shapes/data.yaml"

    @property
    def images(self) -> Path:
        """The folder of its validation images."""
        return self.folder / "shapes/images/val"

    @property
    def weights(self) -> Path:
        """The detector."""
        return self.folder / "best.safetensors"

    @property
    def onnx(self) -> Path:
        """The detector, exported for any batch."""
        return self.folder / "dynamic.onnx"


TRAIN = ("imgsz=64", "batch=8", "nbs=8", "device=cpu", "workers=0", "plots=False", "seed=3", "verbose=False")


def make_material(folder: Path, commands: Commands, train: int = 24, val: int = 24) -> Material:
    """Draw the data set, train for an epoch and export."""
    from yolo_lat.data.shapes import ShapesConfig, generate

    material = Material(folder)
    generate(folder / "shapes", ShapesConfig(train, val, 96), progress=False)
    words = ["train", "model=yolo-lat-p", f"data={material.data}", "epochs=1", *TRAIN, f"project={folder}", "name=made"]
    expect(commands.run(words, folder), 0)
    shutil.copy(folder / "made/weights/best.safetensors", material.weights)
    shutil.copy(material.weights, folder / "dynamic.safetensors")
    expect(commands.run(["export", f"model={folder}/dynamic.safetensors", "imgsz=64", "dynamic=True"], folder), 0)
    return material


def expect(ended: Ended, status: int) -> Ended:
    """Return how a command ended.

    Raises:
        RuntimeError: otherwise than expected, with what it wrote.
    """
    if ended.status != status:
        raise RuntimeError(f"exit status {ended.status} in place of {status}: {ended.text[-3000:]}")
    return ended


def empty(folder: Path) -> Path:
    """Make a folder anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


@dataclass
class Tally:
    """What came of a fault.

    Attributes:
        what: it, in words.
        tried: how often.
        outcomes: what happened, with how often.
        missed: tries at which the command had ended before, not counted above.
        lost: what was lost or half-written, one text each; nothing, where all is well.
    """

    what: str
    tried: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    missed: int = 0
    lost: list[str] = field(default_factory=list)

    def add(self, outcome: str, *problems: str) -> None:
        """Count one try."""
        self.tried += 1
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        self.lost += problems

    def miss(self, *problems: str) -> None:
        """Count a try that came too late."""
        self.missed += 1
        self.lost += problems

    def count(self, met: bool, outcome: str, *problems: str) -> None:
        """Count a try, or one that came too late unless it `met` the command at work."""
        if met:
            self.add(outcome, *problems)
        else:
            self.miss(*problems)

    def row(self) -> dict[str, Any]:
        """Return it as the record has it."""
        return {
            "what": self.what,
            "tried": self.tried,
            "outcomes": dict(sorted(self.outcomes.items())),
            **({"came too late": self.missed} if self.missed else {}),
            "lost": self.lost,
        }


def moments(count: int, seconds: float, seed: object) -> list[float]:
    """Return random moments of a run of so many seconds, one in each of `count` parts of it, in random order."""
    rng = random.Random(str(seed))
    found = [seconds * (place + rng.random()) / count for place in range(count)]
    rng.shuffle(found)
    return found


def same_tensors(one: Path, other: Path) -> bool:
    """Whether two safetensors hold the same, bit for bit."""
    from safetensors.torch import load_file

    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(bool((first[key] == second[key]).all()) for key in first)


def metrics_of(results: Path) -> list[dict[str, str]]:
    """Return the rows of a results.csv without times and speeds."""
    with results.open(encoding="utf-8", newline="") as stream:
        return [{k: v for k, v in row.items() if not k.startswith(("time", "speed"))} for row in csv.DictReader(stream)]
