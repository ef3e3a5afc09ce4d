"""A sheet has a row for each image, the annotations first, and a column for each model."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import side_by_side  # noqa: E402


def run(monkeypatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["side_by_side.py", *words])
    side_by_side.main()


def test_rows_and_columns(monkeypatch, shapes, tmp_path) -> None:
    out = tmp_path / "sheet.png"
    models = "yolo-lat-p-voc12,yolo-lat-n-voc12"
    run(monkeypatch, models, str(shapes), str(out), "--images", "2", "--side", "96", "--conf", "0.001")
    height, width = cv2.imread(str(out)).shape[:2]
    assert width == 3 * (96 + 4) + 4
    assert height > 2 * 96


@pytest.mark.parametrize(
    ("model", "data", "out"),
    [
        ("yolo-lat-q", "shapes.yaml", "a.png"),
        ("yolo-lat-p", "nothing", "a.png"),
        ("yolo-lat-p", "shapes.yaml", "a.txt"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(monkeypatch, shapes, capsys, model, data, out) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, model, data.replace("shapes.yaml", str(shapes)), out)
    error = capsys.readouterr().err
    assert error.startswith("side_by_side: ")
    assert error.count("\n") == 1
