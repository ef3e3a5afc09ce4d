"""What a lesion leaves of attention, and that a model which gets nothing from attention loses nothing by any."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import attention_lesions  # noqa: E402

from yolo_lat import YOLOLAT  # noqa: E402
from yolo_lat.data.reader import read_split  # noqa: E402
from yolo_lat.data.registry import load_dataset  # noqa: E402
from yolo_lat.errors import UserError  # noqa: E402
from yolo_lat.nn import CrossScaleELA, LatModel, load_model_yaml  # noqa: E402


@pytest.fixture
def layer() -> CrossScaleELA:
    torch.manual_seed(0)
    return CrossScaleELA([8, 8], 8, heads=2, key_dim=4, local=0).eval()


def given(layer: CrossScaleELA, change) -> tuple[torch.Tensor, torch.Tensor]:
    """What attention gives the layer for two images, as it is and as changed."""
    seen = []
    x = torch.randn(2, 8, 6, 1, generator=torch.Generator().manual_seed(1))
    original = layer.attention.attend(layer.attention.qkv(x))[0]
    with attention_lesions.replaced([layer], lambda y, index: seen.append(change(y, index)) or seen[-1]):
        layer.attention.attend(layer.attention.qkv(x))
    return original, seen[0]


def test_one_for_all_leaves_the_mean_over_positions(layer) -> None:
    original, changed = given(layer, lambda y, _: attention_lesions.over_positions(y).expand_as(y))
    assert original.std(2).min() > 1e-4
    torch.testing.assert_close(changed, original.mean(2, keepdim=True).expand_as(original))


def test_the_layer_is_as_before_afterwards(layer) -> None:
    levels = [torch.randn(1, 8, 4, 4), torch.randn(1, 8, 2, 2)]
    before = layer(levels)
    with attention_lesions.replaced([layer], lambda y, _: y * 0):
        assert not torch.equal(layer(levels)[0], before[0])
    torch.testing.assert_close(layer(levels), before, rtol=0, atol=0)


@pytest.mark.parametrize("silent", [True, False], ids=["values of zero", "as trained"])
def test_who_loses_what(run, monkeypatch, tmp_path, capsys, silent) -> None:
    layers = []

    def loaded(name: str) -> YOLOLAT:
        model = YOLOLAT(name)
        layers.extend(module for module in model.model.modules() if isinstance(module, CrossScaleELA))
        for layer in layers if silent else ():
            torch.nn.init.zeros_(layer.attention.qkv.bn.weight)
            torch.nn.init.zeros_(layer.attention.qkv.bn.bias)
        return model

    monkeypatch.setattr(attention_lesions, "YOLOLAT", loaded)
    out = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", ["attention_lesions.py", str(run.best), str(run.data), str(out), "--imgsz", "96"])
    attention_lesions.main()
    found = json.loads(out.read_text(encoding="utf-8"))["AP"][str(run.best)]
    assert list(found) == ["whole", "own level", "one for all", "constant"]
    assert found["whole"] > 0.001
    assert (len(set(found.values())) == 1) == silent
    assert f"whole: {found['whole']:.4f}" in capsys.readouterr().out
    assert all(layer.across for layer in layers)


def test_a_model_without_attention_is_refused(shapes, tmp_path) -> None:
    content = load_model_yaml("yolo-lat-p")
    content["head"][2][3].append({"attention": "none"})
    split = read_split(load_dataset(shapes), "val", progress=False)
    with pytest.raises(UserError, match="bare has no cross-scale attention; name a model that has"):
        attention_lesions.lesions("bare", LatModel(content, nc=8, verbose=False).eval(), split, split, 64, 8)


def test_what_cannot_be_used_is_one_sentence(shapes, monkeypatch, tmp_path, capsys) -> None:
    out = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", ["attention_lesions.py", "yolo-lat-q", str(shapes), str(out)])
    with pytest.raises(SystemExit, match="2"):
        attention_lesions.main()
    error = capsys.readouterr().err
    assert error.startswith("attention_lesions: no model 'yolo-lat-q'; ")
    assert error.count("\n") == 1
    assert not out.exists()
