"""The guide has the table of the record, which has what it promises."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from fault_injection.targets import TARGETS  # noqa: E402
from faults_table import GUIDE, RECORD, table, with_table  # noqa: E402


def test_the_table_of_the_guide_is_that_of_the_record() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert with_table(text, table(record)) == text
    assert table(record) in text


def test_the_record_has_a_million_executions_fifty_kills_and_no_loss() -> None:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    parts = record["parts"]
    assert parts["fuzz"].keys() == TARGETS.keys()
    assert record["executions"] == sum(row["tried"] for row in parts["fuzz"].values()) >= 1_000_000
    assert all(row["tried"] >= 50 for name, row in parts["kill"].items() if name != "predict engine=ray")
    assert parts.keys() == {"fuzz", "kill", "disk", "places", "clock", "pairs"}
    lost = [
        f"{part}, {name}: {loss}" for part, rows in parts.items() for name, row in rows.items() for loss in row["lost"]
    ]
    assert record["lost"] == lost == []
    assert f"Of {record['tries of other faults']} kills" in (ROOT / "README.md").read_text(encoding="utf-8")
    for rows in parts.values():
        for row in rows.values():
            assert row.keys() >= {"command", "seed", "machine", "versions", "date", "seconds"}
            assert sum(row["outcomes"].values()) == row["tried"] > 0
