"""The static loss against Ultralytics': values, gradients, padding, and that the host never waits for the device."""

from __future__ import annotations

import functools
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from ultralytics.cfg import get_cfg
from ultralytics.utils.loss import E2ELoss, v8DetectionLoss
from ultralytics.utils.metrics import bbox_iou
from ultralytics.utils.tal import TaskAlignedAssigner

from yolo_lat.engine import static_loss
from yolo_lat.engine.static_loss import (
    StaticAssigner,
    StaticDetectionLoss,
    StaticE2ELoss,
    pairwise_ciou,
    static_criterion,
)
from yolo_lat.errors import UserError
from yolo_lat.nn.model import LatModel
from yolo_lat.nn.zoo import load_model_yaml

SIZE = (96, 128)  # height, width
STRIDES = (8, 16, 32)
WAITS = {"aten::nonzero", "aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::equal"}
VALUE_SHAPED = ("aten::unique", "aten::_unique", "aten::masked_select", "aten::bincount", "aten::repeat_interleave")


class NoWaits(TorchDispatchMode):
    """Refuse operations that wait for a device or whose shapes depend on values, or that touch other devices."""

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.only = torch.device(device)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        assert name not in WAITS, name
        assert not name.startswith(VALUE_SHAPED), name
        if name in {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}:
            assert all(i is None or i.dtype == torch.int64 for i in args[1]), f"{name} with a mask"
        found = func(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, found)):
            assert not isinstance(value, torch.Tensor) or value.device.type == self.only.type, f"{name} on {value}"
        return found


class Head(nn.Module):
    """As much of a detection model as a loss reads."""

    def __init__(self, nc: int, reg_max: int, class_weights=None, device: str = "cpu") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, device=device))
        self.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5, epochs=5)
        self.model = [SimpleNamespace(stride=torch.tensor(STRIDES, dtype=torch.float32), nc=nc, reg_max=reg_max)]
        self.class_weights = class_weights


@functools.cache
def model(name: str, nc: int) -> LatModel:
    torch.manual_seed(nc)
    found = LatModel(load_model_yaml(name), nc=nc, verbose=False)
    found.args = get_cfg()
    return found.train()


def predictions(batch: int, nc: int, reg_max: int, spread: float = 1.0, device: str = "cpu") -> dict:
    levels = [torch.zeros(batch, 1, SIZE[0] // s, SIZE[1] // s, device=device) for s in STRIDES]
    anchors = sum(level[0].numel() for level in levels)
    boxes = torch.randn(batch, 4 * reg_max, anchors, device=device) * spread + (2 if reg_max == 1 else 0)
    return {"boxes": boxes, "scores": torch.randn(batch, nc, anchors, device=device) * 2 - 2, "feats": levels}


def objects(batch: int, count: int, nc: int, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Random objects, padded; the first image has a duplicate, a speck and one that covers all, the last has none."""
    sides = torch.rand(batch, count, 2, device=device) ** 2 * 0.9 + 0.01
    boxes = torch.cat([sides / 2 + torch.rand(batch, count, 2, device=device) * (1 - sides), sides], -1)
    valid = torch.rand(batch, count, device=device) < 0.7
    if count >= 4:
        boxes[0, 1] = boxes[0, 0]
        boxes[0, 2, 2:] = 1e-3
        boxes[0, 3] = 0.5
        boxes[0, 3, 2:] = 1.0
        valid[0, :4] = True
    valid[-1] = False
    return {"boxes": boxes, "labels": torch.randint(nc, (batch, count), device=device), "valid": valid}


def listed(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Turn the padded form into Ultralytics'."""
    image, row = batch["valid"].nonzero(as_tuple=True)
    return {"batch_idx": image, "cls": batch["labels"][image, row].float(), "bboxes": batch["boxes"][image, row]}


def evaluate(criterion, preds: dict, batch: dict) -> list[torch.Tensor]:
    """Return losses, named losses and the gradients of the predictions, branch by branch."""
    leaves = {}

    def fresh(part: dict) -> dict:
        made = {k: v if k == "feats" else v.detach().clone().requires_grad_() for k, v in part.items()}
        leaves.update({(id(part), k): v for k, v in made.items() if k != "feats"})
        return made

    preds = fresh(preds) if "boxes" in preds else {name: fresh(part) for name, part in preds.items()}
    loss, items = criterion(preds, batch)
    loss.sum().backward()
    return [loss.detach(), torch.stack(list(items.values())), *(leaf.grad for leaf in leaves.values())]


def assert_equal(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float = 2e-6) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.isfinite().all()
        scale = float(other.abs().max()) or 1.0
        torch.testing.assert_close(one.to(other.dtype), other, rtol=10 * tolerance, atol=tolerance * scale)


@contextmanager
def default_dtype(dtype: torch.dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def pair(nc: int, reg_max: int, topk2: int | None = None, **head):
    arguments = (10, None) if topk2 is None else (7, topk2)
    found = Head(nc, reg_max, **head)
    return v8DetectionLoss(found, *arguments), StaticDetectionLoss(found, *arguments)


@pytest.mark.parametrize("nc", [1, 3, 80])
@pytest.mark.parametrize("name", ["yolov8n.yaml", "yolo26n.yaml", "yolo-lat-p"])
def test_losses_and_gradients_are_those_of_ultralytics(name, nc):
    torch.manual_seed(1)
    network, batch = model(name, nc), objects(2, 6, nc)
    preds = network(torch.rand(2, 3, 64, 96))
    stock, static = network.init_criterion(), static_criterion(network)
    assert_equal(evaluate(static, preds, batch), evaluate(stock, preds, listed(batch)))


def test_parameters_get_the_same_gradients():
    torch.manual_seed(2)
    network, batch, image = model("yolo-lat-p", 3), objects(2, 6, 3), torch.rand(2, 3, 64, 64)
    gradients = []
    for criterion, form in ((static_criterion(network), batch), (network.init_criterion(), listed(batch))):
        network.zero_grad()
        criterion(network(image), form)[0].sum().backward()
        gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    assert_equal(*gradients, tolerance=1e-5)


@pytest.mark.parametrize("topk2", [None, 1, 3])
@pytest.mark.parametrize("reg_max", [1, 8, 16])
@pytest.mark.parametrize("weighted", [False, True])
def test_every_branch_of_the_loss(reg_max, topk2, weighted):
    torch.manual_seed(3)
    stock, static = pair(5, reg_max, topk2, class_weights=torch.rand(5) + 0.5 if weighted else None)
    for count in (1, 4, 40):
        preds, batch = predictions(3, 5, reg_max), objects(3, count, 5)
        assert_equal(evaluate(static, preds, batch), evaluate(stock, preds, listed(batch)))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(1, 12),
    nc=st.sampled_from([1, 3, 80]),
    reg_max=st.sampled_from([1, 16]),
    topk2=st.sampled_from([None, 1]),
    spread=st.floats(0, 6),
)
def test_any_targets(seed, count, nc, reg_max, topk2, spread):
    torch.manual_seed(seed)
    stock, static = pair(nc, reg_max, topk2)
    preds, batch = predictions(2, nc, reg_max, spread), objects(2, count, nc)
    assert_equal(evaluate(static, preds, batch), evaluate(stock, preds, listed(batch)))


@pytest.mark.parametrize("reg_max", [1, 16])
def test_double_precision_is_the_oracle(reg_max):
    torch.manual_seed(4)
    preds, batch = predictions(3, 3, reg_max), objects(3, 8, 3)
    single = evaluate(pair(3, reg_max)[1], preds, batch)
    with default_dtype(torch.float64):
        stock, static = pair(3, reg_max)
        preds = {k: [v.double() for v in value] if k == "feats" else value.double() for k, value in preds.items()}
        batch["boxes"] = batch["boxes"].double()
        oracle = evaluate(stock, preds, listed(batch))
        assert_equal(evaluate(static, preds, batch), oracle, tolerance=1e-14)
    assert_equal(single, oracle, tolerance=5e-6)


def halved(preds: dict) -> dict:
    return {k: [v.bfloat16() for v in value] if k == "feats" else value.bfloat16() for k, value in preds.items()}


@pytest.mark.parametrize("reg_max", [1, 16])
def test_autocast_leaves_the_loss_in_float32(reg_max):
    """Of the predictions that the network rounded, value and gradients are those without autocast."""
    torch.manual_seed(5)
    stock, static = pair(3, reg_max)
    preds, batch = halved(predictions(2, 3, reg_max)), objects(2, 5, 3)
    with torch.autocast("cpu", torch.bfloat16):
        found = evaluate(static, preds, batch)
    widened = {k: v if k == "feats" else v.float() for k, v in preds.items()} | {"feats": predictions(2, 3, 1)["feats"]}
    expected = evaluate(stock, widened, listed(batch))
    assert_equal(found[:2], expected[:2])
    assert_equal(found[2:], expected[2:], tolerance=2**-8)  # gradients are rounded again where the network takes them


def test_in_bfloat16_a_box_far_to_the_right_would_move():
    """As it does where Ultralytics computes under autocast, and not here: sides there lie on multiples of 4 px."""
    stock, static = pair(1, 1)
    levels = [torch.zeros(1, 1, 640 // s, 640 // s, dtype=torch.bfloat16) for s in STRIDES]
    anchors = sum(level[0].numel() for level in levels)
    distances = torch.full((1, 4, anchors), 1.25, dtype=torch.bfloat16)
    preds = {"boxes": distances, "scores": torch.zeros(1, 1, anchors, dtype=torch.bfloat16), "feats": levels}
    near = 8 * 78.5  # the anchor in the last column but one, 1.25 strides from each side of its box
    batch = {
        "boxes": torch.tensor([[[near / 640, near / 640, 20 / 640, 20 / 640]]]),
        "labels": torch.zeros(1, 1, dtype=torch.int64),
        "valid": torch.ones(1, 1, dtype=torch.bool),
    }
    with torch.autocast("cpu", torch.bfloat16):
        _, loss, _ = static.get_assigned_targets_and_loss(preds, batch)
        _, other, _ = stock.get_assigned_targets_and_loss(preds, listed(batch))
    exact = {k: v if k == "feats" else v.float() for k, v in preds.items()}
    exact["feats"] = [level.float() for level in levels]
    _, expected, _ = stock.get_assigned_targets_and_loss(exact, listed(batch))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert (other[0] - expected[0]).abs() > 0.1 * expected[0]


@pytest.mark.parametrize("reg_max", [1, 16])
def test_padding_changes_nothing(reg_max):
    torch.manual_seed(6)
    static = pair(4, reg_max, 1)[1]
    preds, batch = predictions(2, 4, reg_max), objects(2, 5, 4)
    more = {
        "boxes": torch.full((2, 20, 4), torch.nan),
        "labels": torch.full((2, 20), -7),
        "valid": torch.zeros(2, 20, dtype=torch.bool),
    }
    places = torch.tensor([3, 4, 9, 12, 19])  # padding before, between and after
    for name, value in batch.items():
        more[name][:, places] = value
    for found, expected in zip(evaluate(static, preds, more), evaluate(static, preds, batch), strict=True):
        assert torch.equal(found, expected)


def test_a_conflict_without_any_overlap_is_settled_as_without_padding():
    centres = torch.tensor([[20.0, 20.0], [28.0, 20.0]])
    given = torch.full((1, 2, 3), 0.5), torch.tensor([[[90.0, 90.0, 95.0, 95.0]] * 2]), centres
    gt = torch.tensor([[[0.0, 0.0, 24.0, 40.0], [0.0, 0.0, 40.0, 40.0], [0.0, 0.0, 48.0, 48.0]]])
    labels, padding = torch.tensor([[[0], [1], [2]]]), torch.zeros(1, 2, 4)
    assigner = StaticAssigner(topk=2, num_classes=3, stride=list(STRIDES))
    alone = assigner(*given, labels, gt, torch.ones(1, 3, 1))
    mask = torch.tensor([[[0.0], [1.0], [1.0], [1.0], [0.0]]])
    rows = torch.cat([padding[:, :1], gt, padding[:, :1]], 1)
    padded = assigner(*given, torch.cat([labels[:, :1], labels, labels[:, :1]], 1), rows, mask)
    assert alone[3].all()
    for found, expected in zip(padded[:4], alone[:4], strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(padded[4], alone[4] + 1)


def test_a_box_that_ultralytics_takes_for_padding_is_none():
    torch.manual_seed(13)
    stock, static = pair(3, 16)
    preds, batch = predictions(2, 3, 16), objects(2, 4, 3)
    batch["boxes"][0, 2] = torch.tensor([0.0, 0.0, 0.2, 0.2])  # its corners cancel
    assert_equal(evaluate(static, preds, batch), evaluate(stock, preds, listed(batch)))


def test_a_batch_without_objects_has_a_class_loss_alone():
    torch.manual_seed(7)
    stock, static = pair(3, 16)
    preds, batch = predictions(2, 3, 16), objects(2, 2, 3)
    batch["valid"][:] = False
    found = evaluate(static, preds, batch)
    assert found[0][0] == found[0][2] == 0 < found[0][1]
    assert_equal(found, evaluate(stock, preds, listed(batch)))


@pytest.mark.parametrize("reg_max", [1, 16])
def test_degenerate_boxes_are_as_with_ultralytics(reg_max):
    torch.manual_seed(8)
    stock, static = pair(2, reg_max)
    preds, batch = predictions(2, 2, reg_max), objects(2, 3, 2)
    preds["boxes"] = torch.where(torch.rand_like(preds["boxes"]) < 0.5, 0.0, preds["boxes"] * 40)
    assert_equal(evaluate(static, preds, batch), evaluate(stock, preds, listed(batch)))


@pytest.mark.parametrize("reg_max", [1, 16])
@pytest.mark.parametrize("value", [-1e-7, torch.inf, torch.nan])  # a height of 0 once epsilon is added, and worse
def test_boxes_in_the_background_have_finite_gradients(reg_max, value):
    distances = torch.randn(1, 2, 4 * reg_max)
    if reg_max == 1:  # the distances are the box
        distances[0, 1] = value
    distances.requires_grad_()
    boxes = torch.tensor([[[0.0, 0.0, 2.0, 3.0], [0.0, 0.0, 1.0, value]]], requires_grad=True)
    scores = torch.tensor([[[0.7], [0.0]]])
    losses = static_loss.StaticBboxLoss(reg_max)(
        distances,
        boxes,
        torch.tensor([[0.5, 0.5], [1.5, 0.5]]),
        torch.tensor([[[0.0, 0.5, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]]]),
        scores,
        scores.sum(),
        torch.tensor([[True, False]]),
        torch.tensor([64.0, 64.0]),
        torch.tensor([[8.0], [8.0]]),
    )
    sum(losses).backward()
    for tensor in (*losses, distances.grad, boxes.grad):
        assert tensor.isfinite().all()
    assert boxes.grad[0, 0].any()
    assert not boxes.grad[0, 1].any()
    assert not distances.grad[0, 1].any()


def test_metrics_are_the_same_however_many_rows_are_compared_at_once(monkeypatch):
    torch.manual_seed(9)
    static = pair(3, 16)[1]
    preds, batch = predictions(2, 3, 16), objects(2, 11, 3)
    expected = evaluate(static, preds, batch)
    monkeypatch.setattr(static_loss, "_PAIRS_AT_ONCE", 1300)
    for found, other in zip(evaluate(static, preds, batch), expected, strict=True):
        assert torch.equal(found, other)


@pytest.mark.parametrize(("topk", "topk2"), [(10, None), (7, 1), (13, 4)])
def test_assignments_are_those_of_ultralytics(topk, topk2):
    torch.manual_seed(10)
    arguments = {"topk": topk, "num_classes": 4, "alpha": 0.5, "beta": 6.0, "stride": list(STRIDES), "topk2": topk2}
    centres = torch.cartesian_prod(torch.arange(16) * 8 + 4.0, torch.arange(12) * 8 + 4.0)
    boxes = torch.cat([centres - 20, centres + 20], -1) + torch.randn(3, len(centres), 4) * 8
    batch = objects(3, 9, 4)
    count = batch["valid"].sum(1)
    batch["valid"] = torch.arange(9) < count.unsqueeze(1)  # Ultralytics' padding comes last
    xy, wh = batch["boxes"].chunk(2, -1)
    gt = torch.cat([xy - wh / 2, xy + wh / 2], -1) * torch.tensor([128.0, 96.0, 128.0, 96.0])
    mask = batch["valid"].unsqueeze(-1)
    given = (
        torch.rand(3, len(centres), 4),
        boxes,
        centres,
        (batch["labels"].unsqueeze(-1) * mask).float(),
        gt * mask,
        mask.float(),
    )
    found, expected = StaticAssigner(**arguments)(*given), TaskAlignedAssigner(**arguments)(*given)
    assert expected[3].any()
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_a_validation_before_a_training_leaves_nothing_that_gradients_cannot_use():
    torch.manual_seed(12)
    static = pair(3, 16)[1]
    preds, batch = predictions(2, 3, 16), objects(2, 5, 3)
    with torch.inference_mode():
        static(preds, batch)
    preds = {key: value.requires_grad_() if key != "feats" else value for key, value in preds.items()}
    loss, _ = static(preds, batch)
    loss.sum().backward()
    assert preds["boxes"].grad.isfinite().all()


def test_pairwise_ciou_is_that_of_the_boxes_one_by_one():
    torch.manual_seed(11)
    one, other = (torch.rand(2, n, 4).cumsum(-1) * 10 for n in (5, 7))
    one[0, 0], other[1, 3] = one[0, 0, 0], other[1, 3, 1]  # without extent
    expected = bbox_iou(one.unsqueeze(2), other.unsqueeze(1), xywh=False, CIoU=True).squeeze(-1)
    torch.testing.assert_close(pairwise_ciou(one, other), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("reg_max", [1, 16])
def test_the_end_to_end_loss(reg_max):
    torch.manual_seed(12)
    head = Head(3, reg_max)
    stock, static, plain = E2ELoss(head), StaticE2ELoss(head), E2ELoss(head, loss_fn=StaticDetectionLoss)
    branches = {name: predictions(2, 3, reg_max) for name in ("one2many", "one2one")}
    batch = objects(2, 5, 3)
    gains = (static.o2m, static.o2o)
    for _ in range(7):  # beyond the last epoch
        expected = evaluate(stock, branches, listed(batch))
        assert_equal(evaluate(static, branches, batch), expected)
        assert_equal(evaluate(plain, branches, batch), expected)
        for criterion in (stock, static, plain):
            criterion.update()
        assert static.updates == stock.updates
        assert (static.o2m, static.o2o) == gains
        assert static.o2m is gains[0]
        assert static.o2o is gains[1]
        assert [float(gain) for gain in gains] == pytest.approx([stock.o2m, stock.o2o])


@pytest.mark.parametrize("reg_max", [1, 16])
@pytest.mark.parametrize("end2end", [False, True])
def test_the_host_never_waits(reg_max, end2end):
    head = Head(3, reg_max, class_weights=torch.ones(3))
    criterion = StaticE2ELoss(head) if end2end else StaticDetectionLoss(head)
    preds, batch = predictions(2, 3, reg_max), objects(2, 5, 3)
    with NoWaits():
        evaluate(criterion, {"one2many": preds, "one2one": preds} if end2end else preds, batch)


def test_ultralytics_loss_would_be_caught_waiting():
    stock, _ = pair(3, 16)
    preds, batch = predictions(2, 3, 16), listed(objects(2, 5, 3))
    with NoWaits(), pytest.raises(AssertionError, match=r"aten::_?(unique|nonzero)"):
        evaluate(stock, preds, batch)


@pytest.mark.parametrize("reg_max", [1, 16])
@pytest.mark.parametrize("end2end", [False, True])
def test_nothing_is_copied_from_the_host(reg_max, end2end):
    head = Head(3, reg_max, device="meta")
    criterion = StaticE2ELoss(head) if end2end else StaticDetectionLoss(head)
    preds = predictions(2, 3, reg_max, device="meta")
    batch = {
        "boxes": torch.rand(2, 5, 4, device="meta"),
        "labels": torch.zeros(2, 5, dtype=torch.int64, device="meta"),
        "valid": torch.ones(2, 5, dtype=torch.bool, device="meta"),
    }
    preds = {"one2many": preds, "one2one": preds} if end2end else preds
    leaves = [v.requires_grad_() for part in preds.values() if isinstance(part, dict) for v in tree_leaves(part)]
    leaves += [preds[k].requires_grad_() for k in ("boxes", "scores") if k in preds]
    with NoWaits("meta"):
        criterion(preds, batch)[0].sum().backward()
    assert any(leaf.grad is not None for leaf in leaves)


def test_a_model_with_another_loss_is_refused():
    class Odd(nn.Module):
        def init_criterion(self):
            return nn.CrossEntropyLoss()

    with pytest.raises(UserError, match="Odd trains with CrossEntropyLoss"):
        static_criterion(Odd())
