"""Where a model's time goes: per operator and per row of its YAML, from ONNX Runtime's profiler."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from yolo_lat.deploy.benchmark.contenders import input_shape
from yolo_lat.deploy.benchmark.environment import command_line, describe_machine, versions
from yolo_lat.deploy.benchmark.export import ModelFile
from yolo_lat.deploy.benchmark.plan import Plan
from yolo_lat.deploy.benchmark.prepare import prepared_files
from yolo_lat.deploy.session import SessionSettings, open_session
from yolo_lat.errors import UserError
from yolo_lat.unfinished import write_whole

MEANING = {
    "cpu": "time of each operator on the CPU, with what the profiler adds to each",
    "cuda": "time of each operator with CUDA_LAUNCH_BLOCKING=1, launch and wait included, without CUDA graph: right in "
    "proportion, more in sum than a run that does not wait after each kernel",
}
_LAYER = re.compile(r"/model\.(\d+)/")
_SUFFIX = "_kernel_time"
_FORMAT = "yolo-lat profile 1"


@dataclass(frozen=True)
class Cost:
    """What one kind of operator, or one layer, costs.

    Attributes:
        name: of the operator, or the layer's row and module.
        calls: operators executed in one run.
        ms: their time in one run, mean over the runs.
        share: of the time of all operators, 0 to 1.
    """

    name: str
    calls: int
    ms: float
    share: float


@dataclass(frozen=True)
class Parts:
    """The time of a run, taken apart; operators and layers each sum to `nodes_ms`.

    Attributes:
        operators: dearest first.
        layers: in the order of the YAML.
        nodes_ms: all operators of one run, mean over the runs.
        run_ms: one run with the profiler on, mean over the runs.
    """

    operators: list[Cost]
    layers: list[Cost]
    nodes_ms: float
    run_ms: float


@dataclass(frozen=True)
class Profile:
    """A model's time, taken apart.

    Attributes:
        model: its name.
        imgsz, batch, precision: of the input.
        parameters, gflops: as deployed, None where unknown.
        operators, layers: the costs, each in sum `nodes_ms`; layers in the order of the YAML.
        nodes_ms: all operators of one run, mean over the runs.
        run_ms: one run with the profiler on, mean over the runs.
        plain_ms: median of runs without profiler, with launches that do not wait.
        runs: how many were profiled.
        meaning: what the times of operators are.
        command, machine, versions: as in a record of a benchmark.
    """

    model: str
    imgsz: int
    batch: int
    precision: str
    parameters: int | None
    gflops: float | None
    operators: list[Cost]
    layers: list[Cost]
    nodes_ms: float
    run_ms: float
    plain_ms: float
    runs: int
    meaning: str
    command: str
    machine: dict[str, Any]
    versions: dict[str, str]

    def save(self, path: Path) -> None:
        """Write everything as JSON."""
        content = {"format": _FORMAT, **asdict(self)}
        write_whole(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def profile_model(plan: Plan, layout: bool) -> Profile:
    """Profile the only model of a plan, at its only size, batch and precision.

    Args:
        plan: `runs` runs are profiled after `warmup`.
        layout: on CUDA, run convolutions channels last and with their bias.

    Raises:
        UserError: several models, sizes, batches or precisions, or a session that fails.
    """
    several = {"models": plan.entries, "imgsz": plan.imgsz, "batch": plan.batch, "precision": plan.precision}
    for key, values in several.items():
        if len(values) != 1:
            raise UserError(f"{'model' if key == 'models' else key}= has {len(values)} values; profile one at a time")
    machine = describe_machine(plan.device, plan.threads)
    files = prepared_files(plan)
    ((_, file),) = next(iter(files.found.values()))
    events, run_median = _run(plan, file, layout)
    kind = plan.device.partition(":")[0]
    parts = take_apart(events, plan.warmup, plan.runs, file.layers, kind)
    return Profile(
        model=plan.entries[0].name,
        imgsz=plan.imgsz[0],
        batch=plan.batch[0],
        precision=plan.precision[0],
        parameters=file.parameters,
        gflops=file.gflops,
        operators=parts.operators,
        layers=parts.layers,
        nodes_ms=parts.nodes_ms,
        run_ms=parts.run_ms,
        plain_ms=run_median,
        runs=plan.runs,
        meaning=MEANING[kind],
        command=command_line(),
        machine=machine,
        versions=versions(),
    )


def take_apart(events: list[dict[str, Any]], warmup: int, runs: int, layers: tuple[str, ...], kind: str) -> Parts:
    """Sum the events of ONNX Runtime's profiler by operator and by layer.

    Args:
        events: as its file has them; times in microseconds.
        warmup: runs to leave out at the beginning.
        runs: runs after them.
        layers: names of the rows of the model's YAML; may be empty.
        kind: cpu or cuda.
    """
    first = sorted(event["ts"] for event in events if event["name"] == "model_run")[warmup]
    later = [event for event in events if event["ts"] >= first]
    nodes = [event for event in later if event["cat"] == "Node" and event["name"].endswith(_SUFFIX)]
    by_layer = _costs(nodes, runs, lambda event: _layer_name(event["name"], layers))
    return Parts(
        operators=_costs(nodes, runs, lambda event: _operator_name(event, kind)),
        layers=sorted(by_layer, key=lambda cost: _position(cost.name)),
        nodes_ms=sum(event["dur"] for event in nodes) / 1e3 / runs,
        run_ms=sum(event["dur"] for event in later if event["name"] == "model_run") / 1e3 / runs,
    )


def _run(plan: Plan, file: ModelFile, layout: bool) -> tuple[list[dict[str, Any]], float]:
    """Return the events of a profiled session and the median of one that is not, each in a fresh process."""
    (cell,) = plan.cells()
    session = open_session(Path(file.path), "cpu", SessionSettings(threads=1))
    arguments = {
        "path": file.path,
        "device": plan.device,
        "threads": plan.threads,
        "shape": input_shape(session, cell, Path(file.path)),
        "warmup": plan.warmup,
        "runs": plan.runs,
        "layout": layout,
    }
    plain = _child({**arguments, "profile": None}, {})
    with tempfile.TemporaryDirectory() as folder:
        answer = _child({**arguments, "profile": str(Path(folder) / "profile")}, {"CUDA_LAUNCH_BLOCKING": "1"})
        events = json.loads(Path(answer["file"]).read_text(encoding="utf-8"))
    return events, plain["median_ms"]


def _child(arguments: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    words = [sys.executable, "-m", "yolo_lat.deploy.benchmark.profiled", json.dumps(dict(arguments))]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ | environment)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(
            f"{arguments['path']} cannot be run on {arguments['device']}: {reason.partition(': ')[2] or reason}"
        )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _operator_name(event: Mapping[str, Any], kind: str) -> str:
    operator, provider = event["args"]["op_name"], event["args"].get("provider", "")
    return f"{operator} (on the CPU)" if kind == "cuda" and provider == "CPUExecutionProvider" else operator


def _layer_name(name: str, layers: tuple[str, ...]) -> str:
    """Return the row of the YAML that a node belongs to, with its module; nodes that ONNX Runtime adds have none."""
    found = _LAYER.search(name)
    if found is None:
        return "between layers"
    row = int(found[1])
    return f"{row} {layers[row]}" if row < len(layers) else str(row)


def _position(layer: str) -> int:
    number = layer.partition(" ")[0]
    return int(number) if number.isdecimal() else sys.maxsize


def _costs(nodes: list[dict[str, Any]], runs: int, name_of: Callable[[dict[str, Any]], str]) -> list[Cost]:
    """Sum nodes by a name, dearest first."""
    sums: dict[str, list[float]] = {}
    for event in nodes:
        entry = sums.setdefault(name_of(event), [0, 0.0])
        entry[0] += 1
        entry[1] += event["dur"] / 1e3
    total = sum(ms for _, ms in sums.values()) or 1.0
    costs = [Cost(name, round(calls / runs), ms / runs, ms / total) for name, (calls, ms) in sums.items()]
    return sorted(costs, key=lambda cost: -cost.ms)
