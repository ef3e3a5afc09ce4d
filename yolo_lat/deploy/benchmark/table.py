"""A record as tables for the terminal: no speed without parameters, GFLOPs and accuracy beside it."""

from __future__ import annotations

from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from yolo_lat.deploy.benchmark.plan import Cell
from yolo_lat.deploy.benchmark.record import Measured, Model, Record, Result
from yolo_lat.deploy.benchmark.settings import VARIANTS

_WITHOUT_NMS = {variant.name for variant in VARIANTS if variant.head}
SIZE_COLUMNS = ("parameters", "GFLOPs", "AP")


def tables(record: Record) -> Group:
    """Return one table for each size, batch and precision, with a head that says what was measured where."""
    parts: list[Table | str] = [escape(line) for line in heading(record)]
    cells = sorted(record.cells, key=lambda m: (m.imgsz, m.batch, m.precision, m.boundary))
    for _, group in groupby(cells, key=lambda m: (m.imgsz, m.batch, m.precision)):
        parts.append(_table(record, list(group)))
    parts += [
        escape(f"failed, {cell}: {result.model}: {result.error}") for cell, result in record.results() if result.error
    ]
    parts += [escape(line) for line in trial_lines(record)]
    return Group(*parts)


def heading(record: Record) -> list[str]:
    """Return lines on the machine, the versions and the procedure."""
    machine, how, versions = record.machine, record.how, record.versions
    threads = f"{machine['threads']} threads of {machine['cpu']} ({machine['cores']} cores)"
    where = [threads] if machine["device"] == machine["cpu"] else [machine["device"], f"driver {machine['driver']}"]
    shown = [f"{key} {versions[key]}" for key in ("onnxruntime", "cuda", "torch", "ultralytics") if key in versions]
    if commits := versions.get("commit"):
        shown.append("commit " + " and ".join(commit[:12] for commit in commits.split(", ")))
    dirty = " with changes" if versions.get("dirty") == "yes" else ""
    lines = [
        f"{', '.join(where)}; {', '.join(shown)}{dirty}",
        f"{how['rounds']} interleaved rounds of {how['runs']} runs, pictures: {how['pictures']}; ratios: reference's "
        "time / model's, median and range over rounds; ms for a whole batch",
    ]
    if record.deviations:
        lines.append(f"not by protocol: {', '.join(record.deviations)}")
    return lines


def _table(record: Record, group: list[Measured]) -> Table:
    cell = group[0].cell
    title = f"{cell.imgsz} px, batch {cell.batch}, {cell.precision}"
    title += f" (not by protocol: {', '.join(record.deviations)})" if record.deviations else ""
    table = Table("model", title=escape(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    references = record.how["references"]
    columns = (*SIZE_COLUMNS, "boundary", "median ms", "p5 - p95", *(f"x {escape(name)}" for name in references))
    for column in columns:
        table.add_column(column, justify="left" if column == "boundary" else "right")
    table.add_column("MiB", justify="right")
    names = [result.model for result in group[0].results]
    for name in names:
        model = record.model(name)
        for place, measured in enumerate(group):
            result = next(result for result in measured.results if result.model == name)
            own = (escape(name), *size_cells(model, cell)) if place == 0 else ("", "", "", "")
            last = place == len(group) - 1
            table.add_row(*own, measured.boundary, *_time_cells(result, references), end_section=last)
    return table


def size_cells(model: Model, cell: Cell) -> tuple[str, str, str]:
    """Return parameters, GFLOPs and accuracy, which every speed stands beside."""
    gflops = model.gflops.get(str(cell.imgsz))
    return (
        "-" if model.parameters is None else f"{model.parameters / 1e6:.2f} M",
        "-" if gflops is None else f"{gflops:.2f}",
        model.accuracy_text(cell),
    )


def ratio_cell(result: Result, reference: str) -> str:
    """Return how many times as fast as a reference a model is, with the range over rounds."""
    if reference == result.model:
        return "1"
    found = result.ratios.get(reference)
    return "-" if found is None else f"{found.median:.2f} ({found.low:.2f}-{found.high:.2f})"


def _time_cells(result: Result, references: list[str]) -> list[str]:
    if result.error is not None or result.median_ms is None:
        return ["failed"]
    memory = "" if result.memory_mb is None else f"{result.memory_mb:.0f}"
    spread = f"{result.p5_ms:.3f} - {result.p95_ms:.3f}"
    return [f"{result.median_ms:.3f}", spread, *(ratio_cell(result, name) for name in references), memory]


def trial_lines(record: Record) -> list[str]:
    """Return what each model chose, out of what."""
    names = ", ".join(setting["name"] for setting in record.how["settings"])
    lines = [f"declared settings: {names}; tried: {record.how['search']}"]
    lines.append(f"memory: {record.memory}")
    for cell, result in record.results():
        if result.setting is None:
            continue
        tried = ", ".join(
            f"{trial.setting}/{trial.variant} " + ("failed" if trial.median_ms is None else f"{trial.median_ms:.3f}")
            for trial in result.trials
        )
        lines.append(f"{cell}: {result.model} chose {result.setting}/{result.variant} out of {tried}")
    if any(result.variant in _WITHOUT_NMS for _, result in record.results()):
        lines.append("parameters, GFLOPs and AP are those of raw output, also of models that chose an NMS-free form")
    if any(result.detections == 0 for _, result in record.results()):
        lines.append("a pipeline without detections, as random weights have, suppresses nothing: its last step is free")
    return lines
