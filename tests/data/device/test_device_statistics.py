"""Samples from the device are distributed as Ultralytics' own, and the tool that shows it runs."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from device_samples import cached, generator, write_split
from quick import first
from ultralytics.data.augment import RandomPerspective

from yolo_lat.data.device.plan import Augment, compose, draw, invert

ROOT = Path(__file__).resolve().parents[3]
TOOL = ROOT / "tools/augmentation_statistics.py"
MANY = {
    "mosaic": 0.6,
    "mixup": 0.4,
    "cutmix": 0.5,
    "degrees": 20,
    "shear": 8,
    "perspective": 0.0008,
    "flipud": 0.3,
    "scale": 0.3,
    "translate": 0.25,
    "hsv_h": 0.2,
    "bgr": 0.3,
}


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("augmentation_statistics", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("settings", first(1, [{}, MANY, {"mosaic": 0.0}]), ids=["default", "many", "no mosaic"])
def test_samples_are_distributed_as_ultralytics(tmp_path, tool, settings):
    split = write_split(tmp_path, 40, seed=1)
    settings = {"imgsz": 64, **settings}
    host = tool.measure(tool.host_samples(split, 800, settings))
    device = tool.measure(tool.device_samples(split, 800, settings))
    deviations = {name: tool.deviation(host[name], device[name]) for name in host}
    # Of 60 differences the largest exceeds four standard errors in one of 250 trials.
    assert max(deviations.values()) < 4, deviations


@pytest.mark.slow
def test_the_comparison_sees_small_changes(tmp_path, tool):
    split = write_split(tmp_path, 40, seed=1)
    plain = tool.measure(tool.device_samples(split, 800, {"imgsz": 64}))
    other = tool.measure(tool.device_samples(split, 800, {"imgsz": 64, "scale": 0.2, "hsv_v": 0.1}, seed=1))
    assert tool.deviation(plain["box side"], other["box side"]) > 4
    assert tool.deviation(plain["red mean"], other["red mean"]) > 4


def test_the_ratio_of_mixup_is_beta(cache):
    ratio = draw(cache, Augment(mixup=1), torch.zeros(20_000, dtype=torch.int64), generator(0)).ratio.double()
    assert ratio.mean().item() == pytest.approx(0.5, abs=0.002)
    assert ratio.var().item() == pytest.approx(1 / (4 * 65), rel=0.05)  # of beta(32, 32)
    plain = draw(cache, Augment(mixup=0.25), torch.zeros(20_000, dtype=torch.int64), generator(0))
    assert ((plain.ratio < 1) == plain.mixup).all()
    assert plain.mixup.double().mean().item() == pytest.approx(0.25, abs=0.02)


def test_matrices_are_ultralytics(monkeypatch):
    warp = RandomPerspective(1, 1, 1, 1, 1)
    numbers = torch.rand((50, 8), generator=generator(0), dtype=torch.float64) - 0.5
    for row in numbers.tolist():
        px, py, angle, scale, sx, sy, tx, ty = row
        drawn = [px / 500, py / 500, angle * 80, 1 + scale, sx * 30, sy * 30, 0.5 + tx / 2, 0.5 + ty / 2]
        chance = iter(drawn)
        monkeypatch.setattr("random.uniform", lambda *_, chance=chance: next(chance))
        expected, _ = warp._compute_affine_matrix(torch.empty(192, 128, 3), (96, 96))
        monkeypatch.undo()
        made = compose(
            torch.tensor([128, 192]),
            *(torch.tensor(value, dtype=torch.float64) for value in (drawn[3], drawn[2], drawn[4:6], drawn[:2])),
            torch.tensor(drawn[6:]) * 96,
        )
        torch.testing.assert_close(made, torch.from_numpy(expected).double(), rtol=1e-5, atol=2e-4)
        torch.testing.assert_close(made @ invert(made), torch.eye(3, dtype=torch.float64))


def test_cutouts_lie_inside_and_have_their_share(tmp_path):
    cache = cached(write_split(tmp_path, 2), 64)
    cutout = draw(cache, Augment(cutout=0.5), torch.zeros(5000, dtype=torch.int64), generator(0)).cutout
    size = cutout[:, 2:] - cutout[:, :2]
    assert (cutout >= 0).all()
    assert (cutout <= 64).all()
    assert (size > 0).any(1).double().mean().item() == pytest.approx(0.5, abs=0.03)
    area = size.prod(1)[size.prod(1) > 0] / 64**2
    assert 0.01 < area.min() < area.max() <= 0.2


def test_margins_are_of_each_edge_and_have_their_share(tmp_path):
    cache = cached(write_split(tmp_path, 2), 64)
    index = torch.zeros(5000, dtype=torch.int64)
    plan, without = (draw(cache, Augment(margin=share), index, generator(0)) for share in (0.5, 0))
    margins = torch.cat([plan.shown[:, :2], 64 - plan.shown[:, 2:]], dim=1)
    assert margins.unique().tolist() == list(range(7))  # up to a tenth of 64
    assert (margins > 0).any(1).double().mean().item() == pytest.approx(0.5 * (1 - 7**-4), abs=0.03)
    covered = margins[(margins > 0).any(1)].double()
    assert covered.mean(0).tolist() == pytest.approx([3, 3, 3, 3], abs=0.2)
    assert torch.corrcoef(covered.T).fill_diagonal_(0).abs().max() < 0.1
    assert torch.equal(without.shown, torch.tensor([0, 0, 64, 64], dtype=torch.int32).expand(5000, 4))
    assert torch.equal(plan.matrix, without.matrix)  # all else is drawn as without
    assert torch.equal(plan.cutout, without.cutout)


@pytest.mark.slow
def test_the_tool_writes_its_record_and_figure(shapes, tmp_path):
    out = tmp_path / "statistics.json"
    command = [sys.executable, str(TOOL), str(out), str(shapes), "64", "30"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert record["samples"] == 30
    assert "box side" in done.stdout
    assert all(len(row["host"]) == len(row["device"]) == 5 for row in record["statistics"].values())
    assert out.with_suffix(".png").stat().st_size > 10_000
