"""Moving the images moves the boxes back: what finds the shapes wherever they lie has the same AP at every shift."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import grid_shift  # noqa: E402

from yolo_lat.data.reader import read_split  # noqa: E402
from yolo_lat.data.registry import load_dataset  # noqa: E402


class Centred(torch.nn.Module):
    """Finds what is not grey, as one box of class 0."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = []
        for seen in (x - 114 / 255).abs().amax(1) > 1e-3:
            rows, columns = (seen.any(axis).nonzero().flatten() for axis in (1, 0))
            (top, bottom), (left, right) = ((at.min(), at.max() + 1) for at in (rows, columns))
            found.append(torch.stack([left + right, top + bottom, (right - left) * 2, (bottom - top) * 2]) / 2)
        scores = torch.zeros(len(x), 2)
        scores[:, 0] = 0.9
        return torch.cat([torch.stack(found), scores], 1)[..., None]


@pytest.mark.parametrize("shift", [0, 5, 32])
def test_boxes_come_back_to_the_image(shapes, monkeypatch, shift) -> None:
    split = read_split(load_dataset(shapes), "val", progress=False)
    found: list[dict] = []
    evaluated = SimpleNamespace(numbers={"AP": 0.5})
    monkeypatch.setattr(grid_shift, "evaluate_detections", lambda _, rows, **keys: found.extend(rows) or evaluated)
    assert grid_shift.evaluate(Centred(), split, 64, shift, 3) == 0.5
    assert [row["image_id"] for row in found] == [image.image_id for image in split.images]
    for row, image in zip(found, split.images, strict=True):
        assert row["bbox"] == pytest.approx([0, 0, image.width, image.height], abs=2 * image.width / 64)


def test_models_and_shifts_are_recorded(run, monkeypatch, tmp_path, capsys) -> None:
    out, model = tmp_path / "out.json", str(run.best)
    monkeypatch.setattr(
        sys, "argv", ["grid_shift.py", model, str(run.data), str(out), "--imgsz", "96", "--shifts", "0,32"]
    )
    grid_shift.main()
    found = json.loads(out.read_text(encoding="utf-8"))["AP"][model]
    assert list(found) == ["0", "32"]
    assert min(found.values()) > 0.001
    assert f"{model} 0 px: {found['0']:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "shift"),
    [("yolo-lat-q", "0"), ("yolo-lat-p", "0"), ("yolo-lat-p-voc12", "33"), ("yolo-lat-p-voc12", "x")],
)
def test_what_cannot_be_used_is_one_sentence(shapes, monkeypatch, tmp_path, capsys, model, shift) -> None:
    words = [model, str(shapes), str(tmp_path / "out.json"), "--imgsz", "64", "--shifts", shift]
    monkeypatch.setattr(sys, "argv", ["grid_shift.py", *words])
    with pytest.raises(SystemExit, match="2"):
        grid_shift.main()
    error = capsys.readouterr().err
    assert error.startswith("grid_shift: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out.json").exists()
