"""Experts in a detector: the formula position by position, the balance loss in either step, other forms, export."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import onnxruntime as ort
import pytest
import torch
import yaml
from forms import fuse, maps, settled
from quick import first
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from ultralytics.utils import DEFAULT_CFG

from yolo_lat import YOLOLAT
from yolo_lat.engine.fast_step import TrainStep, fast_optimizer
from yolo_lat.engine.static_loss import static_criterion
from yolo_lat.errors import UserError
from yolo_lat.nn import CrossScaleELA, ELABlock, ELALayer, GatedFFN, LatModel, RoutedFFN, load_model_yaml
from yolo_lat.nn.complexity import count_gflops
from yolo_lat.nn.experts import BALANCE_WEIGHT, with_balance
from yolo_lat.nn.layout import channels_last_graph

BIASES = pytest.mark.parametrize("bias", ["outer", "inner", None])
LAST = pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])


def doubles(*widths: int, size: int = 16) -> list[Tensor]:
    return [x.double() for x in maps(*widths, size=size)]


def position_by_position(ffn: RoutedFFN, x: Tensor) -> Tensor:
    """The formulas of the paper, one position and one expert at a time, before the batch norm."""
    moe, y = ffn.moe, torch.empty_like(x)
    for b, row, column in np.ndindex(x.shape[0], *x.shape[2:]):
        token = x[b, :, row, column]
        shares = (moe.labels @ (moe.query.weight @ token) / math.sqrt(len(token))).softmax(0)
        best = int(shares.argmax())
        gate, value = (token @ moe.expand[best]).chunk(2)
        made, label = (F.silu(gate) * value) @ moe.shrink[best], moe.labels[best]
        formulas = {
            "outer": shares[best] * made + label,
            "inner": shares[best] * (made + label),
            None: shares[best] * made,
        }
        y[b, :, row, column] = formulas[ffn.bias]
    return y


@LAST
@BIASES
def test_every_position_takes_one_expert_and_the_deployed_form_too(bias, last) -> None:
    x = doubles(16, size=6)[0]
    ffn = settled(RoutedFFN(16, 24, 4, bias).double(), x)
    with torch.no_grad():
        expected = ffn.norm(position_by_position(ffn, x))
        torch.testing.assert_close(ffn(x), expected, rtol=1e-9, atol=1e-9)
        with channels_last_graph(last):
            folded = fuse(ffn)
            torch.testing.assert_close(folded(x), expected, rtol=1e-9, atol=1e-9)
            folded.fold()
            assert torch.equal(folded(x), fuse(ffn)(x))  # folds once
    assert {type(m) for m in folded.modules()} <= {RoutedFFN, nn.ModuleList, nn.Conv2d, nn.Identity}


BLOCKS = {
    "ELALayer": (lambda: ELALayer(32, 4, 8, "HadamardExp", 1.0, 3), doubles(32)[0]),
    "ELABlock": (lambda: ELABlock(16, 32, 2, experts=4, bias="inner"), doubles(16)[0]),
    "CrossScaleELA": (lambda: CrossScaleELA([16, 24], 16, experts=4, bias=None), doubles(16, 24)),
    "one expert": (lambda: ELABlock(16, 16, experts=1), doubles(16)[0]),
}


@LAST
@pytest.mark.parametrize("name", BLOCKS)
def test_block_gradient_and_fused_form(name: str, last: bool) -> None:
    build, x = BLOCKS[name]
    block = settled(build().double(), x)
    y = block(x)
    sum(out.square().mean() for out in y).backward()
    idle = {n for n, p in block.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert idle == ({"layers.0.ffn.moe.query.weight"} if name == "one expert" else set())  # its share is always 1
    with channels_last_graph(last):
        folded = fuse(block)
        torch.testing.assert_close(folded(x), y, rtol=1e-8, atol=1e-8)
        if name == "CrossScaleELA":
            folded.keep_levels_apart()
            torch.testing.assert_close(folded(x), y, rtol=1e-8, atol=1e-8)


def test_feature_maps_stay_narrow_under_autocast() -> None:
    layer = ELALayer(32, 4, 8, "HadamardExp", 1.0, 3).train()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(maps(32)[0].bfloat16())
    assert y.dtype == torch.bfloat16
    assert layer.ffn.balance.dtype == torch.float32


class TestBalance:
    def test_is_appended_once_and_reaches_labels_and_queries_alone(self) -> None:
        block, losses = ELABlock(16, 16, n=2, experts=4).train(), torch.zeros(3)
        block(maps(16)[0])
        taken = sum(layer.ffn.balance for layer in block.layers)
        total = with_balance(losses, block, 5)
        assert total[:3].tolist() == [0, 0, 0]
        torch.testing.assert_close(total[3], 5 * BALANCE_WEIGHT * taken)
        assert with_balance(losses, block, 5) is losses
        total.sum().backward()
        ffn = block.layers[1].ffn
        assert ffn.moe.labels.grad.abs().sum() > 0
        assert ffn.moe.query.weight.grad.abs().sum() > 0
        assert ffn.moe.expand.grad is None

    def test_is_kept_in_training_alone_and_neither_copied_nor_stored(self) -> None:
        ffn, x = RoutedFFN(16, 8, 2), maps(16)[0]
        ffn.train()(x)
        assert ffn.balance.requires_grad
        assert copy.deepcopy(ffn).balance is None
        assert pickle.loads(pickle.dumps(ffn)).balance is None
        assert ffn.balance is not None
        ffn.eval()(x)
        assert ffn.balance is None


def content(experts: int = 4, bias: str | None = "outer", **changes) -> dict:
    """`yolo-lat-p` with experts in its cross-scale layer and, in place of a LocalBlock, an ELABlock with experts."""
    content = copy.deepcopy(load_model_yaml("yolo-lat-p"))
    content["head"][2][3] = [256, 4, 8, None, "HadamardExp", 1.0, 5, experts, bias]
    content["backbone"][7] = [-1, 1, "ELABlock", [512, 4, 8, "HadamardExp", 1.0, experts, bias]]
    return {**content, **changes}


def detector(**changes) -> LatModel:
    torch.manual_seed(0)
    model = LatModel(content(**changes), nc=4, verbose=False)
    model.args = copy.copy(DEFAULT_CFG)
    return model.train()


def batch() -> dict[str, Tensor]:
    """Two images with an object each, as Ultralytics' loss takes them and as ours does."""
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.6], [0.3, 0.6, 0.2, 0.2]])
    labels = torch.tensor([1, 3])
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    stock = {"batch_idx": torch.tensor([0.0, 1.0]), "cls": labels[:, None].float(), "bboxes": boxes}
    padded = {"boxes": boxes[:, None], "labels": labels[:, None], "valid": torch.ones(2, 1, dtype=torch.bool)}
    return {"img": images, **stock, **padded}


@pytest.mark.parametrize("end2end", [False, True])
def test_the_balance_loss_is_part_of_ultralytics_step_and_of_ours(end2end) -> None:
    model, data = detector(end2end=end2end), batch()
    alone = model.init_criterion()(model(data["img"]), data)[0].sum()
    balance = sum(m.balance for m in model.modules() if isinstance(m, RoutedFFN))
    losses, _ = model(data)
    torch.testing.assert_close(losses.sum(), alone + 2 * BALANCE_WEIGHT * balance)
    losses.sum().backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = TrainStep(model, static_criterion(model), optimizer, None, None, None, capture=False)
    step.step(data, update=False)
    torch.testing.assert_close(step.loss, losses.sum())
    for n, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[n], rtol=1e-3, atol=1e-4)


def test_validation_adds_no_balance_loss() -> None:
    model, data = detector().eval(), batch()
    with torch.no_grad():
        losses, _ = model.loss(data, model(data["img"]))
    assert losses.shape == (3,)


def test_it_learns() -> None:
    model, data = detector(), batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.002)
    router = model.model[10].ffn.moe.query.weight
    before, seen = router.detach().clone(), []
    for _ in range(12):
        loss = model(data)[0].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(float(loss.detach()))
    assert seen[-1] < 0.8 * seen[0]
    assert not torch.equal(router, before)


def test_a_cuda_graph_does_not_go_with_experts() -> None:
    model = detector()
    optimizer = fast_optimizer(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    with pytest.raises(UserError, match="cuda_graph=True does not go with experts"):
        TrainStep(model, static_criterion(model), optimizer, None, None, None, capture=True)


def test_without_experts_parameters_keep_their_names() -> None:
    layer = ELALayer(16, 4, 8, "HadamardExp", 1.0)
    assert type(layer.ffn) is GatedFFN
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    ffn = {f"{part}.{name}" for part in ("expand", "out") for name in ["conv.weight", *(f"bn.{n}" for n in norm)]}
    assert set(layer.ffn.state_dict()) == ffn
    stock = content(0)
    stock["head"][2][3], stock["backbone"][7][3] = [256, 4, 8], [512, 4, 8]
    torch.manual_seed(0)
    off = LatModel(content(0), verbose=False).state_dict()
    torch.manual_seed(0)
    plain = LatModel(stock, verbose=False).state_dict()
    assert off.keys() == plain.keys()
    assert all(torch.equal(off[key], plain[key]) for key in off)


def test_operations_are_those_of_one_expert_in_training_and_of_all_once_deployed() -> None:
    def gflops(experts: int, deployed: bool) -> float:
        model = detector(experts=experts)
        return count_gflops(model.deploy() if deployed else model, 128)

    counts = {key: gflops(*key) for key in ((1, False), (4, False), (1, True), (4, True))}
    block, cross = (4 * 4, 128), (8 * 8 + 4 * 4, 64)  # positions and width, which the hidden width equals
    labels = sum(3 * 2 * positions * width for positions, width in (block, cross)) / 1e9  # three more to compare with
    assert counts[4, False] - counts[1, False] == pytest.approx(labels, rel=1e-6)
    experts = sum(3 * 2 * positions * 3 * width**2 for positions, width in (block, cross)) / 1e9
    assert counts[4, True] - counts[1, True] == pytest.approx(experts + 2 * labels, rel=1e-6)


@pytest.mark.parametrize(
    ("experts", "bias", "message"),
    [
        (4, "None", r"row 10 \(CrossScaleELA\): .*bias='None' is unknown; use 'outer', 'inner' or None"),
        (-1, "outer", "experts=-1 must be a whole number from 0"),
        ("two", "outer", r"row 7 \(ELABlock\): cannot be built"),
    ],
)
def test_rows_that_cannot_be(experts, bias, message) -> None:
    model = content(experts, bias)
    if message.startswith("row 10"):
        model["backbone"][7][3] = [512]
    with pytest.raises(UserError, match=message):
        LatModel(model, verbose=False)


@pytest.mark.parametrize("bias", first(1, ["outer", "inner", None]))
def test_saved_it_comes_back_and_exported_the_graph_computes_the_same(bias, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    stored = {key: value for key, value in content(bias=bias).items() if key not in ("scale", "yaml_file")}
    (tmp_path / "experts.yaml").write_text(yaml.safe_dump(stored))
    torch.manual_seed(0)
    model = YOLOLAT("experts.yaml", scale="p")
    model.model.train()(torch.rand(4, 3, 64, 64))  # statistics that are not those of a new batch norm
    model.save("a.safetensors")
    again = YOLOLAT("a.safetensors")
    states = model.model.state_dict(), again.model.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = again.model.eval()(images)[0].numpy()
    for target, dynamic in (("gpu", False), ("cpu", True)):
        file = again.export(imgsz=64, simplify=False, target=target, dynamic=dynamic)
        session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
        (output,) = session.run(None, {"images": images.numpy()})
        np.testing.assert_allclose(output, expected, rtol=1e-3, atol=1e-2)
