"""What a benchmark measured: one JSON file, from which tables, figures and comparisons are made."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from yolo_lat.deploy.benchmark.plan import BOUNDARIES, PROTOCOL_ROUNDS, PROTOCOL_RUNS, Cell
from yolo_lat.errors import UserError
from yolo_lat.typed_json import read_typed, typed
from yolo_lat.unfinished import write_whole

FORMAT = "yolo-lat benchmark 1"


@dataclass(frozen=True)
class Trial:
    """A setting tried before the measurement.

    Attributes:
        setting, variant: by name.
        median_ms: over the runs of the trial; None where it failed.
        setup_s: from opening the session to the end of the first run.
        memory_mb: device memory in use that came with it; None where that is not known.
        error: why it failed.
    """

    setting: str
    variant: str
    median_ms: float | None = None
    setup_s: float | None = None
    memory_mb: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Ratio:
    """A reference's time divided by a model's, formed within each round: above 1 the model is faster."""

    median: float
    low: float
    high: float
    rounds: list[float]


@dataclass
class Result:
    """One model in one cell; times in milliseconds for a whole batch.

    Attributes:
        model: its name.
        error: why there is no measurement.
        trials: every setting tried.
        setting, variant: the choice, by name.
        provider: first of the session's providers.
        cpu_nodes: operators that a CUDA session left on the CPU, with their number; None where that is not known.
        file, sha256: the ONNX file.
        rounds_ms: median of each round.
        median_ms, p5_ms, p95_ms: over all runs of all rounds.
        ratios: by reference.
        memory_mb: memory that the session adds, as `Record.memory` says.
        detections: boxes found in an image on average, for `pipeline`.
    """

    model: str
    error: str | None = None
    trials: list[Trial] = field(default_factory=list)
    setting: str | None = None
    variant: str | None = None
    provider: str | None = None
    cpu_nodes: dict[str, int] | None = None
    file: str | None = None
    sha256: str | None = None
    rounds_ms: list[float] = field(default_factory=list)
    median_ms: float | None = None
    p5_ms: float | None = None
    p95_ms: float | None = None
    ratios: dict[str, Ratio] = field(default_factory=dict)
    memory_mb: float | None = None
    detections: float | None = None


@dataclass
class Accuracy:
    """COCO's AP and AP50 of an ONNX file from pycocotools, or why there are none.

    Attributes:
        imgsz, precision: of the file.
        AP, AP50: from 0 to 1.
        note: the images, and the form of the file, which may be another than the one that `pipeline` chose; or why
            there is no AP.
    """

    imgsz: int
    precision: str
    AP: float | None
    AP50: float | None
    note: str


@dataclass
class Model:
    """A model as deployed.

    Attributes:
        name, source: as asked for.
        weights: "random, seed 0", "trained", or "unknown", since no .onnx file tells.
        parameters: learned values after fusing, of the form that `forward` measures; None where the file does not say.
        gflops: by side in pixels, for one image; a multiplication and an addition count as two.
        accuracy: one for each size and precision.
    """

    name: str
    source: str
    weights: str
    parameters: int | None = None
    gflops: dict[str, float] = field(default_factory=dict)
    accuracy: list[Accuracy] = field(default_factory=list)

    def accuracy_text(self, cell: Cell) -> str:
        """Return the AP in a cell, or why there is none."""
        for found in self.accuracy:
            if (found.imgsz, found.precision) == (cell.imgsz, cell.precision):
                return found.note if found.AP is None else f"{found.AP:.3f}"
        return "random weights" if self.weights.startswith("random") else "not measured"

    def ap(self, cell: Cell) -> float | None:
        """Return the AP in a cell, None where there is none."""
        wanted = (cell.imgsz, cell.precision)
        return next((found.AP for found in self.accuracy if (found.imgsz, found.precision) == wanted), None)


@dataclass
class Measured:
    """The results of a cell, in the order of the rounds."""

    imgsz: int
    batch: int
    precision: str
    boundary: str
    results: list[Result]

    @property
    def cell(self) -> Cell:
        """What the results have in common."""
        return Cell(self.imgsz, self.batch, self.precision, self.boundary)


@dataclass
class Record:
    """A benchmark.

    Attributes:
        command: the command line.
        started: date and time with the offset to UTC.
        machine: hardware, driver and threads; before and after where they change.
        versions: of everything that takes part.
        how: rounds, runs, seed, references, pictures and the declared list of settings.
        memory: how memory was measured.
        models, cells: what was measured.
        complete: whether nothing is missing.
    """

    command: str
    started: str
    machine: dict[str, Any]
    versions: dict[str, str]
    how: dict[str, Any]
    memory: str
    models: list[Model] = field(default_factory=list)
    cells: list[Measured] = field(default_factory=list)
    complete: bool = False

    @property
    def deviations(self) -> list[str]:
        """What the measuring protocol asks for and this record lacks."""
        found = []
        for key, least in (("rounds", PROTOCOL_ROUNDS), ("runs", PROTOCOL_RUNS)):
            if self.how[key] < least:
                found.append(f"{key} {self.how[key]} of at least {least}")
        missing = [name for name in BOUNDARIES if name not in {cell.boundary for cell in self.cells}]
        found += [f"no {name}" for name in missing]
        if not self.complete:
            found.append("interrupted")
        return found

    def model(self, name: str) -> Model:
        """Return a model by name."""
        return next(model for model in self.models if model.name == name)

    def results(self) -> Iterator[tuple[Cell, Result]]:
        """Yield every result with its cell."""
        for measured in self.cells:
            for result in measured.results:
                yield measured.cell, result

    def save(self, path: Path) -> None:
        """Write the record; the file is whole at any time."""
        content = {"format": FORMAT, "protocol": not self.deviations, "deviations": self.deviations, **asdict(self)}
        write_whole(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_record(path: str | Path) -> Record:
    """Read what `Record.save` wrote.

    Raises:
        UserError: no such file, or another kind of file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not a file; give the json of a benchmark")
    try:
        content = read_typed(dict[str, Any], path)
        if content.pop("format", None) != FORMAT:
            raise ValueError("another format")
        for key in ("protocol", "deviations"):
            content.pop(key, None)
        record: Record = typed(Record, content)
        _check(record)
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} is no record of a benchmark ({reason}); give what json= wrote") from error
    return record


_HOW = {"rounds": int, "runs": int, "references": list[str], "pictures": str, "search": str}
_MACHINE = {"device": str, "cpu": str, "cores": int, "threads": int}


def _check(record: Record) -> None:
    """Raise ValueError for a record of the right types that nobody can show or compare."""
    for name, given, kinds in (("how", record.how, _HOW), ("machine", record.machine, _MACHINE)):
        for key, kind in kinds.items():
            if key not in given:
                raise ValueError(f"{name} lacks {key}")
            typed(kind, given[key], f"{name}.{key}")
    if record.machine["device"] != record.machine["cpu"]:
        typed(str, record.machine.get("driver"), "machine.driver")
    for setting in typed(list[dict[str, Any]], record.how.get("settings"), "how.settings"):
        typed(str, setting.get("name"), "how.settings.name")
    names = {model.name for model in record.models}
    together: dict[tuple[int, int, str], list[str]] = defaultdict(list)
    for cell, result in record.results():
        if result.model not in names:
            raise ValueError(f"no model {result.model[:40]}")
        if result.median_ms is not None and None in (result.p5_ms, result.p95_ms):
            raise ValueError("a median without p5_ms and p95_ms")
        together[cell.imgsz, cell.batch, cell.precision].append(result.model)
    for measured in record.cells:
        models = [result.model for result in measured.results]
        if set(models) != set(together[measured.imgsz, measured.batch, measured.precision]) or not models:
            raise ValueError("cells that go together have other models")


def read_records(paths: Sequence[str | Path]) -> Record:
    """Read one record, or several of the same machine and versions as one.

    Raises:
        UserError: no record, records that differ in what they ran on or in how they measured, or a cell in two.
    """
    first, *others = [read_record(path) for path in paths]
    for path, other in zip(paths[1:], others, strict=True):
        if found := differences(first, other):
            raise UserError(f"{paths[0]} and {path} do not go together: {'; '.join(found)}; measure both alike")
        for key in ("rounds", "runs", "references"):
            if first.how[key] != other.how[key]:
                raise UserError(f"{paths[0]} and {path} differ in {key}; measure both alike")
        known = {measured.cell for measured in first.cells}
        for measured in other.cells:
            if measured.cell in known:
                raise UserError(f"{paths[0]} and {path} both have {measured.cell}; leave one of them out")
        models = {model.name: model for model in first.models}
        for model in other.models:
            if model.name in models:
                models[model.name].gflops |= model.gflops
                known_ap = models[model.name].accuracy
                known_ap += [found for found in model.accuracy if found not in known_ap]
            else:
                first.models.append(model)
        first.cells += other.cells
        first.command += f"\n{other.command}"
        commits = [text for text in (first.versions.get("commit"), other.versions.get("commit")) if text]
        if commits:
            first.versions["commit"] = ", ".join(dict.fromkeys(", ".join(commits).split(", ")))
        first.complete &= other.complete
    return first


_SAME_MACHINE = ("device", "driver", "cpu", "cores", "threads")
_SAME_VERSIONS = ("onnxruntime", "cuda", "cudnn")


def differences(old: Record, new: Record) -> list[str]:
    """Return in words what two records ran on and do not share, as far as it decides speed."""
    pairs = [(key, old.machine.get(key), new.machine.get(key)) for key in _SAME_MACHINE]
    pairs += [(key, old.versions.get(key), new.versions.get(key)) for key in _SAME_VERSIONS]
    return [f"{key} {was} and {now}" for key, was, now in pairs if was != now]
