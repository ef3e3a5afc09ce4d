"""Make the README's table of speeds from the recorded benchmarks.

    python tools/readme_table.py                      prints it
    python tools/readme_table.py --write README.md    puts it between the markers of the file
    python tools/readme_table.py --check README.md    exits with 1 unless the file has it

Reads docs/results/benchmark-*.json; records of one machine that `yolo-lat benchmark record=` can join are one part.
"""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

from yolo_lat.deploy.benchmark.plan import BOUNDARIES, Cell
from yolo_lat.deploy.benchmark.record import Measured, Record, differences, read_record, read_records
from yolo_lat.deploy.benchmark.table import heading, ratio_cell, size_cells

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- benchmark:begin -->", "<!-- benchmark:end -->"


def main(words: list[str], results: Path = ROOT / "docs/results") -> None:
    """Print, write or check the table, as `words` say."""
    table = make_table(sorted(results.glob("benchmark-*.json")))
    if not words:
        print(table)
        return
    if len(words) != 2 or words[0] not in ("--write", "--check"):
        sys.exit(__doc__)
    file = Path(words[1])
    text = file.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        sys.exit(f"{file}: needs {BEGIN} and {END}, each once, where the table is to be")
    before, _, rest = text.partition(BEGIN)
    updated = f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}"
    if words[0] == "--write":
        file.write_text(updated, encoding="utf-8")
    elif updated != text:
        sys.exit(f"{file}: its table is not that of the records; run: python tools/readme_table.py --write {file}")


def make_table(files: list[Path]) -> str:
    """Return the records as Markdown: one table for each machine, size, batch and precision."""
    if not files:
        sys.exit(
            "no docs/results/benchmark-*.json; measure with yolo-lat benchmark json=docs/results/benchmark-NAME.json"
        )
    parts = []
    for record, names in joined(files):
        parts.append("  \n".join(heading(record)) + "  \nmeasured by " + ", ".join(f"`{c}`" for c in names))
        cells = sorted(record.cells, key=lambda m: (m.imgsz, m.batch, m.precision, m.boundary))
        for _, group in groupby(cells, key=lambda m: (m.imgsz, m.batch, m.precision)):
            parts.append(markdown(record, list(group)))
    return "\n\n".join(parts)


def joined(files: list[Path]) -> list[tuple[Record, list[str]]]:
    """Return the records with their commands, those of one machine, versions and procedure as one."""
    groups: list[list[Path]] = []
    for file in files:
        record = read_record(file)
        for group in groups:
            other = read_record(group[0])
            if not differences(record, other) and record.how == other.how:
                group.append(file)
                break
        else:
            groups.append([file])
    return [(record, record.command.splitlines()) for record in map(read_records, groups)]


def markdown(record: Record, group: list[Measured]) -> str:
    """Return one table: a row a model, `forward` and beside it `pipeline`."""
    cell = group[0].cell
    by_boundary = {measured.boundary: {r.model: r for r in measured.results} for measured in group}
    references = record.how["references"]
    columns = ["model", "parameters", "GFLOPs", "AP"]
    for boundary in BOUNDARIES:
        columns += [f"{boundary}, ms", *(f"times faster than {name}" for name in references)]
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
