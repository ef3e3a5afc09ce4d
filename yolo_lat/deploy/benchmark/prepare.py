"""From what models are called to the ONNX files that are measured."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from yolo_lat.deploy.benchmark.contenders import input_shape
from yolo_lat.deploy.benchmark.export import ModelFile, describe_onnx, make_file
from yolo_lat.deploy.benchmark.measure import first_sentence
from yolo_lat.deploy.benchmark.plan import Cell, Entry, Plan, available_cores
from yolo_lat.deploy.benchmark.record import Trial
from yolo_lat.deploy.benchmark.settings import VARIANTS, Variant
from yolo_lat.deploy.session import SessionSettings, open_session
from yolo_lat.errors import UserError

AS_GIVEN = Variant("as given")
_PRECISIONS = {"tensor(float)": "fp32", "tensor(float16)": "fp16"}  # by the input; bytes do not tell
Key = tuple[str, int, int, str]  # model, side, batch, precision


@dataclass
class Files:
    """The ONNX files of every model, size, batch and precision.

    Attributes:
        found: each with its variants, in the declared order; `forward` measures the first.
        failed: exports that failed, as trials of a setting called export.
    """

    found: dict[Key, list[tuple[Variant, ModelFile]]] = field(default_factory=dict)
    failed: dict[Key, list[Trial]] = field(default_factory=dict)


def key_of(name: str, cell: Cell) -> Key:
    """Return what the files of a model in a cell are kept under."""
    return name, cell.imgsz, cell.batch, cell.precision


def prepare(plan: Plan, pool: Executor | None, progress: Progress) -> Files:
    """Export what is not given as .onnx; a model that cannot be exported leaves the others to be measured.

    Args:
        plan: what is to be measured.
        pool: processes that export, as `exporters` provides them.
        progress: shows a bar.

    Raises:
        UserError: an .onnx file of another size, batch or precision, or a single model that cannot be exported.
    """
    files = Files()
    jobs: list[tuple[Key, Variant, Callable[[], ModelFile | None]]] = []
    for entry, cell in _wanted(plan):
        key = key_of(entry.name, cell)
        if entry.is_onnx:
            jobs.append((key, AS_GIVEN, partial(_given, Path(entry.source), cell)))
        elif pool is not None:
            for variant in VARIANTS if "pipeline" in plan.boundary else VARIANTS[:1]:
                task = pool.submit(make_file, entry, cell, variant, plan.device, plan.seed, plan.folder)
                jobs.append((key, variant, task.result))
    bar = progress.add_task("Exporting", total=len(jobs))
    for key, variant, answer in jobs:
        progress.update(bar, description=f"Exporting {key[0]}")
        try:
            file = answer()
        except Exception as error:  # the models that can be exported are measured all the same
            if variant is AS_GIVEN or len(plan.entries) == 1:
                raise
            files.failed.setdefault(key, []).append(Trial("export", variant.name, error=first_sentence(error)))
        else:
            if file is not None:
                files.found.setdefault(key, []).append((variant, file))
        progress.advance(bar)
    for key, trials in files.failed.items():
        if trials[0].variant == VARIANTS[0].name:
            files.found.pop(key, None)
    return files


def prepared_files(plan: Plan) -> Files:
    """Return the files of a plan; see `prepare`."""
    with progress_bar() as progress, exporters(plan) as pool:
        return prepare(plan, pool, progress)


def _wanted(plan: Plan) -> Iterator[tuple[Entry, Cell]]:
    """Yield every model with every size, batch and precision, once."""
    for entry in plan.entries:
        for cell in plan.cells():
            if cell.boundary == plan.boundary[0]:
                yield entry, cell


def _given(path: Path, cell: Cell) -> ModelFile:
    """Describe a file given as .onnx, and refuse one that does not fit a cell."""
    session = open_session(path, "cpu", SessionSettings(threads=1))
    input_shape(session, cell, path)
    metadata = session.get_modelmeta().custom_metadata_map
    kind, told = session.get_inputs()[0].type, metadata.get("precision")
    for precision in ("fp32" if told == "int8" else told, _PRECISIONS.get(kind)):  # what INT8 leaves is float32
        if precision not in (None, cell.precision):
            raise UserError(
                f"{path} is {precision[:40]}, not {cell.precision}; give a file of that precision, or its own as "
                "precision="
            )
    return describe_onnx(path, metadata, cell.imgsz)


@contextmanager
def exporters(plan: Plan) -> Iterator[Executor | None]:
    """Provide processes that import torch, where a model or an evaluation needs it."""
    needy = [entry.name for entry in plan.entries if not entry.is_onnx] or ([plan.data] if plan.data else [])
    if not needy:
        yield None
        return
    if find_spec("torch") is None or find_spec("ultralytics") is None:
        raise UserError(f"{needy[0]} needs torch and Ultralytics, which are not installed; install yolo-lat[train]")
    workers = max(min(available_cores() // 2, len(plan.entries)), 1)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def progress_bar() -> Progress:
    """Return a progress display on stderr, hidden where nobody looks."""
    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    hidden = not sys.stderr.isatty()
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden)
