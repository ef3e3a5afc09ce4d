"""The weights that are drawn are those of the model's attention."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import attention_maps  # noqa: E402

from yolo_lat import YOLOLAT  # noqa: E402
from yolo_lat.deploy.preprocess import letterbox, to_input  # noqa: E402
from yolo_lat.errors import UserError  # noqa: E402
from yolo_lat.nn import CrossScaleELA  # noqa: E402
from yolo_lat.nn.attention import merge_heads, split_heads  # noqa: E402

NAME = "yolo-lat-p-voc12"


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (90, 160, 3), dtype=np.uint8)


def test_the_weights_give_the_models_output(picture) -> None:
    weights, cells, size, boxed = attention_maps.attention_of(NAME, picture, [(0.0, 0.0), (0.99, 0.6)], 0.25)
    assert size == (12, 20)  # 320 x 192 pixels at stride 16, six rows of which are padding above and below
    assert cells == [0, int((0.6 * 180 + 6) / 192 * 12) * 20 + 19]
    assert boxed.shape == picture.shape
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))

    network = YOLOLAT(NAME).model.float().eval()
    layer = next(m for m in network.modules() if isinstance(m, CrossScaleELA))
    seen = {}
    layer.attention.qkv.register_forward_hook(lambda _, __, qkv: seen.update(qkv=qkv))
    with torch.no_grad():
        network(torch.from_numpy(to_input([letterbox(picture, (320, 320), 32).image])))
        y, v = layer.attention.attend(seen["qkv"])
        values = split_heads(v, layer.attention.heads)
        torch.testing.assert_close(merge_heads(weights[None] @ values, y.shape[2:]), y, rtol=1e-4, atol=1e-4)


def test_a_figure_is_drawn(picture, tmp_path, monkeypatch, capsys) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    words = [NAME, str(tmp_path / "a.png"), str(tmp_path / "maps.jpg"), "--points", "0.5,0.5"]
    monkeypatch.setattr(sys, "argv", ["attention_maps.py", *words])
    attention_maps.main()
    assert cv2.imread(str(tmp_path / "maps.jpg")).shape[1] > 500
    assert capsys.readouterr().out.startswith("total variation by head: 0.")


@pytest.mark.parametrize("text", ["0.5", "a,b", "1.2,0", "0.1,0.2,0.3"])
def test_points_that_are_none(text) -> None:
    with pytest.raises(UserError, match="give x,y as shares of width and height"):
        attention_maps.parse_point(text)


def test_what_cannot_be_drawn(picture, tmp_path) -> None:
    with pytest.raises(UserError, match="no picture, and no video with a frame 0"):
        attention_maps.read_picture(tmp_path / "none.jpg", 0)
    with pytest.raises(UserError, match=r"model=yolo-lat-paper-n has no cross-scale ELA"):
        attention_maps.attention_of("yolo-lat-paper-n", picture, [(0.5, 0.5)], 0.25)
