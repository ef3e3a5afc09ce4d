"""The mixture of experts against a loop over tokens, and what routing may and may not do."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812

from yolo_lat.ela import LabelMoE

BIASES = pytest.mark.parametrize("bias", ["outer", "inner", None])


def mixture(seed: int = 0, **given) -> LabelMoE:
    torch.manual_seed(seed)
    return LabelMoE(6, 10, **given).double()


def tokens(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def one_by_one(moe: LabelMoE, x: torch.Tensor) -> torch.Tensor:
    """The formulas of the docstring, a token at a time."""
    rows = []
    for token in x.reshape(-1, x.shape[-1]):
        shares = (moe.labels @ moe.query(token) / math.sqrt(len(token))).softmax(-1)
        total = torch.zeros_like(token)
        for share, expert in zip(*shares.topk(moe.k), strict=True):
            gate, value = (token @ moe.expand[expert]).chunk(2)
            made = (F.silu(gate) * value) @ moe.shrink[expert]
            label = moe.labels[expert]
            total = (
                total
                + {
                    "outer": share * made + label,
                    "inner": share * (made + label),
                    None: share * made,
                }[moe.bias]
            )
        rows.append(total)
    return torch.stack(rows).reshape(x.shape)


@BIASES
@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("shape", [(1,), (7,), (2, 9), (2, 3, 4)])
def test_is_the_loop_over_tokens(bias, k, shape) -> None:
    moe, x = mixture(k=k, bias=bias), tokens(*shape)
    y, balance, routing = moe(x)
    torch.testing.assert_close(y, one_by_one(moe, x), rtol=1e-10, atol=1e-10)
    assert routing.experts.min() >= 0
    assert 0 < balance <= 4 + 1e-9


@BIASES
def test_gradients_are_those_of_the_loop(bias) -> None:
    moe, x = mixture(k=2, bias=bias), tokens(5).requires_grad_()
    parameters = [x, *moe.parameters()]
    found, expected = (torch.autograd.grad(y.square().sum(), parameters) for y in (moe(x).y, one_by_one(moe, x)))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 5), st.floats(0.2, 3), st.integers(0, 5))
def test_routing_keeps_its_promises(count, experts, k, capacity, seed) -> None:
    k = min(k, experts)
    moe, x = mixture(seed, experts=experts, k=k, capacity=capacity), tokens(count, seed=seed)
    with torch.no_grad():
        y, balance, routing = moe(x)
        chosen = mixture(seed, experts=experts, k=k)(x).routing.experts  # the same one, dropless
    assert all(len(set(row)) == k for row in chosen.tolist())  # distinct experts
    torch.testing.assert_close(routing.load.sum(), torch.ones((), dtype=torch.float64))
    places = math.ceil(capacity * count * k / experts)
    for expert in range(experts):
        wanting = int((chosen == expert).sum())
        assert int((routing.experts == expert).sum()) == min(wanting, places)
    assert torch.equal(routing.experts[routing.experts >= 0], chosen[routing.experts >= 0])
    assert float(balance) > 0
    assert y.isfinite().all()


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 30), st.integers(0, 5))
def test_the_order_of_tokens_does_not_matter_without_capacity(count, seed) -> None:
    moe, x = mixture(seed, k=2), tokens(count, seed=seed)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(moe(x[order]).y, moe(x).y[order], rtol=1e-10, atol=1e-10)


def test_dropped_tokens_get_nothing_from_the_expert_that_is_full() -> None:
    moe, x = mixture(experts=2, k=1, capacity=0.5), tokens(16)
    y, _, routing = moe(x)
    dropped = routing.experts[:, 0] < 0
    assert 0 < dropped.sum() < 16
    assert not y[dropped].any()
    torch.testing.assert_close(y[~dropped], one_by_one(moe, x)[~dropped], rtol=1e-10, atol=1e-10)


def test_the_balance_loss_is_one_where_all_are_equally_busy_and_grows_with_preference() -> None:
    moe = mixture(experts=4, k=4)
    torch.nn.init.zeros_(moe.query.weight)
    torch.testing.assert_close(moe(tokens(50)).balance, torch.ones((), dtype=torch.float64))
    moe = mixture(experts=4, k=1)
    with torch.no_grad():
        moe.query.weight.copy_(torch.eye(6) * 100)
        moe.labels.copy_(torch.eye(4, 6))
    one_sided = torch.eye(1, 6, dtype=torch.float64).repeat(20, 1)
    assert moe(one_sided).balance > 3.9


def test_the_balance_loss_spreads_the_load() -> None:
    moe, x = mixture(experts=4, k=1), tokens(200)
    with torch.no_grad():
        moe.labels[0] += 3 * moe.query(x).mean(0)
    before = float(moe(x).routing.load.max())
    optimizer = torch.optim.Adam([moe.labels, moe.query.weight], lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        moe(x).balance.backward()
        optimizer.step()
    assert float(moe(x).routing.load.max()) < min(before, 0.45)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bias": "none"}, "bias='none' is unknown"),
        ({"k": 5}, "k=5 experts a token out of 4"),
        ({"k": 0}, "k=0 experts"),
        ({"capacity": 0}, "capacity=0 leaves no places"),
    ],
)
def test_errors(given, message) -> None:
    with pytest.raises(ValueError, match=message):
        LabelMoE(6, 10, **given)
