"""The tool records what validation finds with votes and without, and how sure the difference is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import box_votes  # noqa: E402

from yolo_lat import YOLOLAT  # noqa: E402


def call(monkeypatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["box_votes.py", *words])
    box_votes.main()


def test_what_is_recorded_is_what_validation_finds(run, monkeypatch, tmp_path, capsys) -> None:
    out, model = tmp_path / "out.json", str(run.best)
    call(monkeypatch, model, str(run.data), str(out), "--imgsz", "96", "--overlaps", "0.5,1")
    found = json.loads(out.read_text(encoding="utf-8"))["AP"][model]
    assert list(found) == ["without", "0.5", "1"]
    words = {"imgsz": 96, "device": "cpu", "plots": False, "verbose": False, "project": tmp_path}
    voted = YOLOLAT(model).val(data=run.data, box_vote=0.5, **words)
    assert {name: found["0.5"][name] for name in ("AP", "AP50", "AP75")} == {
        name: pytest.approx(voted.coco[name]) for name in ("AP", "AP50", "AP75")
    }
    difference = found["0.5"]["difference"]
    assert difference["value"] == pytest.approx(found["0.5"]["AP"] - found["without"]["AP"])
    assert difference["value"] != 0
    assert found["1"]["difference"]["value"] == 0  # nothing overlaps by more than 1
    assert f"0.5: {found['0.5']['AP']:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize(("model", "overlaps"), [("yolo-lat-q", "0.8"), ("yolo-lat-p", "x"), ("yolo-lat-p", "2")])
def test_what_cannot_be_used_is_one_sentence(run, monkeypatch, tmp_path, capsys, model, overlaps) -> None:
    out = tmp_path / "out.json"
    with pytest.raises(SystemExit, match="2"):
        call(monkeypatch, model, str(run.data), str(out), "--imgsz", "96", "--overlaps", overlaps)
    error = capsys.readouterr().err
    assert error.startswith("box_votes: ")
    assert error.count("\n") == 1
    assert not out.exists()
