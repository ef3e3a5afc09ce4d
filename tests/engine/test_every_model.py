"""Every model YAML: exported, the graph computes what the model computes; saved, it comes back bit for bit."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch
from quick import first

from yolo_lat import YOLOLAT
from yolo_lat.nn import model_names

SMALL = [name for name in model_names() if name.endswith(("-p", "-n"))]
REST = [name for name in model_names() if name not in SMALL]


def exercise(name: str, folder, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    torch.manual_seed(0)
    model = YOLOLAT(name)
    model.save("a.safetensors")
    again = YOLOLAT("a.safetensors")
    states = model.model.state_dict(), again.model.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))
    assert again.model.yaml["scale"] == model.model.yaml["scale"]

    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = again.model.eval()(images)[0].numpy()
    session = ort.InferenceSession(again.export(imgsz=64, simplify=False), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"images": images.numpy()})
    np.testing.assert_allclose(output, expected, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("name", first(3, SMALL))
def test_export_and_reload(name, tmp_path, monkeypatch) -> None:
    exercise(name, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", REST)
def test_export_and_reload_of_larger_ones(name, tmp_path, monkeypatch) -> None:
    exercise(name, tmp_path, monkeypatch)
