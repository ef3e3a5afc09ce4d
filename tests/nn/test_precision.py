"""Losses do not follow autocast into half precision."""

import pytest
import torch
from ultralytics.cfg import get_cfg

from yolo_lat.nn import LatModel, load_model_yaml
from yolo_lat.nn.precision import widened

BATCH = {
    "batch_idx": torch.tensor([0.0, 0.0, 1.0]),
    "cls": torch.tensor([[0.0], [2.0], [1.0]]),
    "bboxes": torch.tensor([[0.8, 0.8, 0.2, 0.3], [0.3, 0.4, 0.5, 0.5], [0.9, 0.1, 0.1, 0.1]]),
}


@pytest.mark.parametrize("name", ["yolo-lat-p", "yolov8n.yaml", "yolo26n.yaml"])
def test_a_loss_under_autocast_is_that_of_the_rounded_predictions(name):
    torch.manual_seed(0)
    model = LatModel(load_model_yaml(name), nc=3, verbose=False).train()
    model.args = get_cfg()
    batch = {"img": torch.rand(2, 3, 128, 128), **BATCH}
    with torch.autocast("cpu", torch.bfloat16):
        predictions = model(batch["img"])
        losses, named = model.loss(batch, predictions)
        assert torch.is_autocast_enabled("cpu")
    expected, _ = model.init_criterion()(widened(predictions), batch)
    assert losses.dtype == torch.float32
    assert all(value.dtype == torch.float32 for value in named.values())
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=1e-6)
    losses.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_only_half_precision_is_widened_and_feature_maps_are_shapes():
    one, two, three = torch.rand(2, 4).half(), torch.rand(3).double(), torch.rand(2, 8, 5, 7).bfloat16()
    found = widened(({"boxes": one, "feats": [three]}, [two, "text"]))
    assert found[0]["boxes"].dtype == torch.float32
    assert torch.equal(found[0]["boxes"], one.float())
    assert found[1] == [two, "text"]
    assert (found[0]["feats"][0].shape, found[0]["feats"][0].dtype) == (three.shape, torch.float32)
    assert found[0]["feats"][0].untyped_storage().nbytes() == 4
