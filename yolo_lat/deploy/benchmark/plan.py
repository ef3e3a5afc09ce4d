"""What a benchmark is asked to measure, checked before anything runs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from yolo_lat.deploy.benchmark.settings import Setting, find_settings
from yolo_lat.deploy.session import device_name, parse_device
from yolo_lat.errors import UserError, nearest
from yolo_lat.pretrained import find_pretrained, pretrained_names
from yolo_lat.resources import model_names

BOUNDARIES = ("forward", "pipeline")
PRECISIONS = ("fp32", "fp16")
_LARGEST = 100_000  # side or batch; the bytes of both together can still be counted
PROTOCOL_ROUNDS, PROTOCOL_RUNS = 5, 50
BASELINES = tuple(f"yolo{version}{scale}" for version in ("v8", "11", "12", "26") for scale in "nsmlx")
_WEIGHTS = (".pt", ".safetensors")


@dataclass(frozen=True)
class Entry:
    """A model to measure.

    Attributes:
        name: what tables call it.
        source: what `YOLOLAT` opens, or an .onnx file.
    """

    name: str
    source: str

    @property
    def is_onnx(self) -> bool:
        """Whether the file is measured as it is, without an export."""
        return Path(self.source).suffix.lower() == ".onnx"

    @property
    def is_trained(self) -> bool:
        """Whether the weights are more than an initialisation, or may be, as in an .onnx file."""
        return self.is_onnx or Path(self.source).suffix.lower() in _WEIGHTS

    def weights(self, seed: int) -> str:
        """Return what is known of the weights; random ones are made from `seed`."""
        if self.is_onnx:
            return "unknown"
        return "trained" if self.is_trained else f"random, seed {seed}"


@dataclass(frozen=True)
class Cell:
    """What is the same for all models of one comparison: side in pixels, images a batch, precision and boundary."""

    imgsz: int
    batch: int
    precision: str
    boundary: str

    def __str__(self) -> str:
        return f"{self.boundary}, {self.imgsz} px, batch {self.batch}, {self.precision}"


@dataclass(frozen=True)
class Plan:
    """Everything that decides what is measured, and how often.

    Attributes:
        entries: the models, in the order of each round.
        device: "cpu" or "cuda:N".
        imgsz: sides in pixels.
        batch: images a batch.
        precision: of `PRECISIONS`.
        boundary: of `BOUNDARIES`.
        references: names of models that ratios are formed to.
        rounds, runs: timed runs are counted as runs in each round for each model.
        warmup: runs before the first round; a tenth of them, at least one, precedes each block of a round.
        trial: timed runs that a setting is chosen by.
        threads: CPU threads of each inference and of OpenCV.
        settings: what models choose from.
        exhaustive: try every setting; otherwise layouts with a CUDA graph, then the best of them without.
        data, source: where the pictures come from: a data set's validation images, or a folder.
        seed: of random weights and of the order of the pictures.
        folder: for exported files.
        commit: of the code, for a copy whose git history does not tell it.
    """

    entries: tuple[Entry, ...]
    device: str
    imgsz: tuple[int, ...]
    batch: tuple[int, ...]
    precision: tuple[str, ...]
    boundary: tuple[str, ...]
    references: tuple[str, ...]
    rounds: int
    runs: int
    warmup: int
    trial: int
    threads: int
    settings: tuple[Setting, ...]
    exhaustive: bool
    data: str | None
    source: str | None
    seed: int
    folder: Path
    commit: str | None

    def cells(self) -> Iterator[Cell]:
        """Yield what is measured, `forward` before `pipeline`, whose settings follow from it."""
        for imgsz, batch, precision, boundary in product(self.imgsz, self.batch, self.precision, self.boundary):
            yield Cell(imgsz, batch, precision, boundary)


def make_plan(
    models: Any,
    device: Any = "cpu",
    imgsz: Any = 640,
    batch: Any = 1,
    precision: Any = None,
    boundary: Any = BOUNDARIES,
    reference: Any = None,
    rounds: Any = PROTOCOL_ROUNDS,
    runs: Any = PROTOCOL_RUNS,
    warmup: Any = 10,
    trial: Any = 20,
    threads: Any = None,
    settings: Any = None,
    data: Any = None,
    source: Any = None,
    seed: Any = 0,
    folder: Any = "runs/benchmark/models",
    commit: Any = None,
) -> Plan:
    """Check the arguments of `yolo-lat benchmark` and return them typed; lists may be written with commas.

    Raises:
        UserError: a value that cannot be used.
    """
    place = _device(device)
    entries = tuple(_entry(text) for text in _texts(models))
    names = [entry.name for entry in entries]
    if not entries or len(set(names)) < len(names):
        problem = "two models have one name" if entries else "no model is given"
        raise UserError(f"models={models}: {problem}; give NAME=PATH, names or files, each once, with commas between")
    references = tuple(_texts(reference)) if reference is not None else _usual_references(names)
    for name in references:
        if name not in names:
            raise UserError(
                f"reference={name} is not among the models{nearest(name, names) or ''}; use some of {', '.join(names)}"
            )
    wanted = precision if precision is not None else ("fp32" if place == "cpu" else "fp16")
    precisions = _choices("precision", wanted, PRECISIONS)
    if place == "cpu" and "fp16" in precisions:
        raise UserError("precision=fp16 is not for device=cpu, which computes it in float32; use precision=fp32")
    return Plan(
        entries=entries,
        device=place,
        imgsz=_numbers("imgsz", imgsz),
        batch=_numbers("batch", batch),
        precision=precisions,
        boundary=tuple(sorted(_choices("boundary", boundary, BOUNDARIES))),
        references=references,
        rounds=_number("rounds", rounds),
        runs=_number("runs", runs),
        warmup=_number("warmup", warmup),
        trial=_number("trial", trial),
        threads=_number("threads", available_cores() if threads is None else threads),
        settings=find_settings(place, tuple(_texts(settings))),
        exhaustive=settings is not None,
        data=None if data is None else str(data),
        source=None if source is None else str(source),
        seed=_number("seed", seed, least=0),
        folder=Path(folder),
        commit=None if commit is None else str(commit),
    )


def available_cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _device(device: Any) -> str:
    try:
        number = parse_device(device_name(str(device).strip().lower()))
    except UserError:
        raise UserError(f"device={device} is unknown; give cpu, or the number of one CUDA device such as 0") from None
    return "cpu" if number is None else f"cuda:{number}"


def _entry(text: str) -> Entry:
    """Read `name`, `path` or `NAME=PATH`."""
    label, equals, path = text.partition("=")
    source = (path if equals else text).strip()
    if shipped := find_pretrained(source):
        return Entry(label.strip() if equals else source, str(shipped.checked()))
    suffix = Path(source).suffix.lower()
    if suffix in (*_WEIGHTS, ".onnx", ".yaml", ".yml"):
        if suffix not in (".yaml", ".yml") and not Path(source).is_file():
            raise UserError(f"models={text}: {source} is not a file; correct the path")
        return Entry(label.strip() if equals else Path(source).stem, source)
    known = [*model_names(), *pretrained_names(), *BASELINES]
    if source not in known:
        hint = nearest(source, known) or f"; known names are {', '.join(known)}"
        raise UserError(f"no model '{source}'{hint}")
    return Entry(label.strip() if equals else source, f"{source}.yaml")


def _usual_references(names: list[str]) -> tuple[str, ...]:
    """Return the two models that headlines compare with, as far as they are measured."""
    return tuple(name for name in ("yolo26n", "yolo12n") if name in names)


def _texts(value: Any) -> Iterator[str]:
    """Yield the parts of a list, a tuple, or a text with commas."""
    if value is None:
        return
    parts: Iterable[Any] = value if isinstance(value, list | tuple) else str(value).strip("[]() ").split(",")
    yield from (text for part in parts if (text := str(part).strip()))


def _choices(key: str, value: Any, allowed: tuple[str, ...]) -> tuple[str, ...]:
    chosen = tuple(dict.fromkeys(_texts(value)))
    for text in chosen or ("",):
        if text not in allowed:
            raise UserError(f"{key}={text} is unknown{nearest(text, allowed)}; use {' or '.join(allowed)}")
    return chosen


def _numbers(key: str, value: Any) -> tuple[int, ...]:
    found = tuple(dict.fromkeys(_number(key, text) for text in _texts(value)))
    if not found:
        raise UserError(f"{key}={value} has no number; give whole numbers from 1")
    return found


def _number(key: str, value: Any, least: int = 1) -> int:
    text = str(value).strip()
    most = _LARGEST if key in ("imgsz", "batch") else 2**31 - 1
    if not text.isdecimal() or len(text) > 10 or not least <= int(text) <= most:
        raise UserError(f"{key}={value} is not a whole number from {least} to {most}; give one")
    return int(text)
