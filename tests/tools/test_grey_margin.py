"""A margin that nothing is scaled for changes no box of what minds only the image; one that it minds is seen."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from test_grid_shift import Centred

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import grey_margin  # noqa: E402

from yolo_lat.data.labels import DetectionSplit, image_labels  # noqa: E402
from yolo_lat.errors import UserError  # noqa: E402


class Shrinking(Centred):
    """Makes boxes smaller, by a pixel for every four of the input's beyond 64."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = super().forward(x)
        found[:, 2:4] -= (x.shape[-1] - 64) / 4
        return found


@pytest.fixture(scope="module")
def split(shapes) -> DetectionSplit:
    """Images that are one object each, all of the same class."""
    from yolo_lat.data.reader import read_split
    from yolo_lat.data.registry import load_dataset

    read = read_split(load_dataset(shapes), "val", progress=False)
    whole = [
        image_labels(im.path, im.image_id, (im.width, im.height), [0], [(0, 0, im.width, im.height)], [False])
        for im in read.images
    ]
    return DetectionSplit("whole val", ("a", "b"), (1, 2), whole)


def test_boxes_are_measured_at_every_margin(split) -> None:
    for margin in (0, 16):
        found = grey_margin.evaluate(Centred(), split, 64, margin, 3)
        assert found["AP"] > 0.9
        assert (found["width"], found["height"]) == pytest.approx((0, 0), abs=3)
    widths = [grey_margin.evaluate(Shrinking(), split, 64, margin, 3)["width"] for margin in (0, 16)]
    ratio = split.images[0].width / 64
    assert widths[1] - widths[0] == pytest.approx(-8 * ratio, rel=0.2)


def test_a_margin_at_which_nothing_is_found_is_refused(split) -> None:
    with pytest.raises(UserError, match=r"^with 64 px of grey no object is found; give trained weights"):
        grey_margin.evaluate(Shrinking(), split, 64, 64, 3)


def test_models_and_margins_are_recorded(run, monkeypatch, tmp_path, capsys) -> None:
    out, model = tmp_path / "out.json", str(run.best)
    words = ["grey_margin.py", model, str(run.data), str(out), "--imgsz", "96", "--margins", "0,16"]
    monkeypatch.setattr(sys, "argv", words)
    grey_margin.main()
    told = json.loads(out.read_text(encoding="utf-8"))
    assert list(told["AP"][model]) == ["0", "16"]
    assert told["command"].endswith(" OUT.json --imgsz 96 --margins 0,16")
    assert all(set(found) == {"AP", "AP75", "width", "height"} for found in told["AP"][model].values())
    assert f"{model} 16 px: AP " in capsys.readouterr().out


@pytest.mark.parametrize("word", ["8", "-16", "wide", ""])
def test_a_margin_that_leaves_no_multiple_of_the_stride_is_refused(run, monkeypatch, tmp_path, capsys, word) -> None:
    words = ["grey_margin.py", str(run.best), str(run.data), str(tmp_path / "out.json"), f"--margins={word}"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        grey_margin.main()
    assert ended.value.code == 2
    assert (
        capsys.readouterr().err
        == f"grey_margin: --margins has '{word}'; give multiples of 16 pixels with commas between\n"
    )
