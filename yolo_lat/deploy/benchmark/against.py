"""Two records of the same machine and versions, cell by cell: what became faster or slower."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from yolo_lat.deploy.benchmark.plan import Cell
from yolo_lat.deploy.benchmark.record import Record, Result, differences
from yolo_lat.deploy.benchmark.table import SIZE_COLUMNS, size_cells
from yolo_lat.errors import UserError


@dataclass(frozen=True)
class Change:
    """One model in one cell of two records.

    Attributes:
        model, cell: what was measured twice.
        old_ms, new_ms: medians.
        ratio: new time divided by old, below 1 is faster.
        rounds_overlap: whether the ranges of the medians of the rounds share a value.
        runs_overlap: whether the ranges from p5 to p95 share a value.
    """

    model: str
    cell: Cell
    old_ms: float
    new_ms: float
    ratio: float
    rounds_overlap: bool
    runs_overlap: bool


def compare_records(old: Record, new: Record, old_name: str | Path, new_name: str | Path) -> list[Change]:
    """Return what two records have both measured.

    Args:
        old: the earlier record.
        new: the later one.
        old_name: of the file, for messages.
        new_name: likewise.

    Raises:
        UserError: they ran on other hardware or versions, or have nothing in common.
    """
    if found := differences(old, new):
        raise UserError(
            f"{old_name} and {new_name} cannot be compared, they differ in {'; '.join(found)}; measure both alike"
        )
    before = {(cell, result.model): result for cell, result in old.results() if result.median_ms}
    after = {(cell, result.model): result for cell, result in new.results() if result.median_ms}
    changes = [_change(key[1], key[0], before[key], after[key]) for key in after if key in before]
    if not changes:
        raise UserError(f"{old_name} and {new_name} have no model and cell in common; measure the same ones")
    return changes


def _change(model: str, cell: Cell, old: Result, new: Result) -> Change:
    was, now = old.median_ms or 0.0, new.median_ms or 0.0
    rounds = _overlap((min(old.rounds_ms), max(old.rounds_ms)), (min(new.rounds_ms), max(new.rounds_ms)))
    runs = _overlap((old.p5_ms or 0, old.p95_ms or 0), (new.p5_ms or 0, new.p95_ms or 0))
    return Change(model, cell, was, now, now / was, rounds, runs)


def _overlap(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return max(a[0], b[0]) <= min(a[1], b[1])


def change_table(changes: list[Change], new: Record) -> Table:
    """Return one row for each model and cell; sizes and accuracy are those of the new record."""
    table = Table(
        "model", title="Against the older record", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for column in (*SIZE_COLUMNS, "cell", "old ms", "new ms", "new / old", "ranges of rounds", "p5 to p95"):
        table.add_column(column, justify="left" if column == "cell" else "right")
    words = {True: "overlap", False: "apart"}
    for change in changes:
        table.add_row(
            escape(change.model),
            *size_cells(new.model(change.model), change.cell),
            str(change.cell),
            f"{change.old_ms:.3f}",
            f"{change.new_ms:.3f}",
            f"{change.ratio:.3f}",
            words[change.rounds_overlap],
            words[change.runs_overlap],
        )
    return table
