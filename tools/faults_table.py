"""Write the table of docs/results/faults.json into docs/robustness.md.

python tools/faults_table.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GUIDE, RECORD = ROOT / "docs/robustness.md", ROOT / "docs/results/faults.json"
MARKS = ("<!-- faults:begin -->\n", "<!-- faults:end -->")
TITLES = {
    "fuzz": "bytes",
    "kill": "kill -9",
    "disk": "full disk",
    "places": "no right to write",
    "clock": "clock",
    "pairs": "two at once",
}


def main() -> None:
    GUIDE.write_text(
        with_table(GUIDE.read_text(encoding="utf-8"), table(json.loads(RECORD.read_text()))), encoding="utf-8"
    )


def table(record: dict[str, Any]) -> str:
    """Return one row for each fault and command."""
    lines = ["| fault | of | tried | what came of it | lost |", "|---|---|---|---|---|"]
    for part, rows in record["parts"].items():
        for name, row in rows.items():
            came = ", ".join(f"{what} {count:,}" for what, count in row["outcomes"].items())
            lines.append(f"| {TITLES[part]} | {name} | {row['tried']:,} | {came} | {len(row['lost']) or 'nothing'} |")
    return "\n".join(lines) + "\n"


def with_table(text: str, rows: str) -> str:
    """Return the guide with other rows."""
    return re.sub(f"{MARKS[0]}.*?{MARKS[1]}", lambda _: f"{MARKS[0]}{rows}{MARKS[1]}", text, flags=re.DOTALL)


if __name__ == "__main__":
    main()
