"""Make the tables of speeds in README.md and docs/speed.md from the recorded benchmarks.

    python tools/readme_table.py            prints them
    python tools/readme_table.py --write    puts them between the markers of the two files
    python tools/readme_table.py --check    exits with 1 unless the files have them

Reads docs/results/benchmark-*.json; records of one machine that `yolo-lat benchmark record=` can join are one part.
docs/speed.md gets every cell, the README those of one size and of models that ship, in the lowest precision that the
machine was measured in.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from yolo_lat.deploy.benchmark.plan import BOUNDARIES, Cell
from yolo_lat.deploy.benchmark.record import Measured, Record, Result, differences, read_record, read_records
from yolo_lat.deploy.benchmark.table import heading, ratio_cell, size_cells
from yolo_lat.resources import model_names

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- benchmark:begin -->", "<!-- benchmark:end -->"
SHORT_SIZE = 640  # px, of the README's table


def main(words: list[str], root: Path = ROOT) -> None:
    """Print, write or check the tables, as `words` say."""
    files = sorted((root / "docs/results").glob("benchmark-*.json"), key=lambda file: file.stem)
    if not files:
        sys.exit(
            "no docs/results/benchmark-*.json; measure with yolo-lat benchmark json=docs/results/benchmark-NAME.json"
        )
    parts = joined(files)
    tables = {root / "README.md": short_table(parts), root / "docs/speed.md": full_tables(parts)}
    if not words:
        print("\n\n".join(tables.values()))
    elif words in (["--write"], ["--check"]):
        for file, table in tables.items():
            put(table, file, words == ["--write"])
    else:
        sys.exit(__doc__)


def put(table: str, file: Path, write: bool) -> None:
    """Put a table between the markers of a file, or leave with 1 unless it stands there."""
    text = file.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        sys.exit(f"{file}: needs {BEGIN} and {END}, each once, where the table is to be")
    before, _, rest = text.partition(BEGIN)
    updated = f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}"
    if write:
        file.write_text(updated, encoding="utf-8")
    elif updated != text:
        sys.exit(f"{file}: its table is not that of the records; run: python tools/readme_table.py --write")


def short_table(parts: list[tuple[Record, list[str]]]) -> str:
    """Return one table of all machines: a row a model, a column for each batch and boundary of a machine.

    Candidates and models of former times are left out, and records that have no other of ours or none of this size.
    Records of one machine that cannot be joined share columns: each model has the time of the first that measured it,
    and its ratio to the reference in the same rounds.
    """
    reference = parts[0][0].how["references"][0]
    names = {name for name in model_names() if "-first-" not in name}
    columns, sizes, lines = dict[str, dict[str, str]](), dict[str, list[str]](), []
    for record, _ in parts:
        cpu = record.machine["device"] == record.machine["cpu"]
        precisions = {measured.precision for measured in record.cells}
        precision = "fp16" if "fp16" in precisions else "fp32"
        shown = list(chosen(record, precision))
        if not shown or names.isdisjoint(model.name for model in record.models):
            continue
        place = "CPU" if cpu else record.machine["device"].removeprefix("NVIDIA ").split()[0]
        lines.append(f"{place}: {heading(record)[0]}; {precision}")
        for measured in shown:
            column = columns.setdefault(f"{place}, batch {measured.batch}, {measured.boundary}", {})
            for result in measured.results:
                if result.model in names or re.match(r"yolo(?!-lat)", result.model):
                    sizes.setdefault(result.model, size_cells(record.model(result.model), measured.cell))
                    column.setdefault(result.model, short_cell(result, reference))
    titles = ["model", "parameters", "GFLOPs", "AP", *columns]
    rows = [[name, *sizes[name], *(column.get(name, "-") for column in columns.values())] for name in sizes]
    table = "\n".join("| " + " | ".join(row) + " |" for row in [titles, ["---"] * len(titles), *rows])
    lines = [f"{SHORT_SIZE} px; ms for a whole batch, and how many times as fast as {reference}", *lines]
    return table + "\n\n" + "  \n".join(lines)


def chosen(record: Record, precision: str) -> Iterator[Measured]:
    """Yield what the README shows of a record, smaller batches and `forward` first."""
    for measured in sorted(record.cells, key=lambda m: (m.batch, BOUNDARIES.index(m.boundary))):
        if (measured.imgsz, measured.precision) == (SHORT_SIZE, precision):
            yield measured


def short_cell(result: Result, reference: str) -> str:
    """Return the time and the ratio."""
    if result.median_ms is None:
        return "failed"
    ratio = 1.0 if result.model == reference else result.ratios[reference].median
    return f"{result.median_ms:.{2 if result.median_ms < 10 else 1}f} ms, {ratio:.2f}x"


def full_tables(parts: list[tuple[Record, list[str]]]) -> str:
    """Return the records as Markdown: one table for each machine, size, batch and precision."""
    texts = []
    for record, commands in parts:
        texts.append("  \n".join(heading(record)) + "\n\n```console\n" + "\n".join(commands) + "\n```")
        cells = sorted(record.cells, key=lambda m: (m.imgsz, m.batch, m.precision, m.boundary))
        for _, group in groupby(cells, key=lambda m: (m.imgsz, m.batch, m.precision)):
            texts.append(markdown(record, list(group)))
    return "\n\n".join(texts)


def joined(files: list[Path]) -> list[tuple[Record, list[str]]]:
    """Return records with their commands, those of one machine, versions and procedure as one, unless cells repeat."""
    groups: list[dict[Path, Record]] = []
    for file in files:
        record = read_record(file)
        for group in groups:
            if all(_go_together(record, other) for other in group.values()):
                group[file] = record
                break
        else:
            groups.append({file: record})
    return [(record, record.command.splitlines()) for record in (read_records(list(group)) for group in groups)]


def _go_together(record: Record, other: Record) -> bool:
    """Whether two records are of one machine and procedure, and of different cells."""
    cells = {measured.cell for measured in record.cells}
    alike = not differences(record, other) and record.how == other.how
    return alike and cells.isdisjoint(measured.cell for measured in other.cells)


def markdown(record: Record, group: list[Measured]) -> str:
    """Return one table: a row a model, `forward` and beside it `pipeline`."""
    cell = group[0].cell
    by_boundary = {measured.boundary: {r.model: r for r in measured.results} for measured in group}
    references = record.how["references"]
    columns = ["model", "parameters", "GFLOPs", "AP"]
    for boundary in BOUNDARIES:
        columns += [f"{boundary}, ms", *(f"times as fast as {name}" for name in references)]
    rows = [columns, ["---"] * len(columns)]
    for result in group[0].results:
        row = [result.model, *size_cells(record.model(result.model), cell)]
        for boundary in BOUNDARIES:
            found = by_boundary.get(boundary, {}).get(result.model)
            if found is None or found.median_ms is None:
                row += ["failed" if found else "not measured", *["-"] * len(references)]
            else:
                row += [f"{found.median_ms:.3f}", *(ratio_cell(found, name) for name in references)]
        rows.append(row)
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return f"**{title(cell)}**\n\n" + "\n".join(lines)


def title(cell: Cell) -> str:
    """Return what the models of a table have in common."""
    return f"{cell.imgsz} px, batch {cell.batch}, {cell.precision}"


if __name__ == "__main__":
    main(sys.argv[1:])
