"""The mixture of experts against a loop over tokens, and what routing may and may not do."""

from __future__ import annotations

import copy
import itertools
import math
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from yolo_lat.ela import LabelMoE, Routing, routing_table

BIASES = pytest.mark.parametrize("bias", ["outer", "inner", None])
needs_groups = pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch multiplies no groups of other sizes")


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


def narrow(dtype: torch.dtype, **given) -> tuple[LabelMoE, torch.Tensor]:
    """A mixture of widths that `F.grouped_mm` takes, and tokens of which one expert is nobody's first choice."""
    torch.manual_seed(0)
    moe = LabelMoE(8, 16, **given)
    x = torch.randn(2, 11, 8)
    with torch.no_grad():
        moe.labels[1] = moe.labels[[0, 2, 3]].mean(0)  # never the one that suits best
    return moe.to(dtype), x.to(dtype)


@needs_groups
@BIASES
@pytest.mark.parametrize("k", [1, 3])
def test_groups_of_different_sizes_are_the_loop_over_tokens_with_its_gradients(bias, k) -> None:
    moe, x = narrow(torch.float32, bias=bias, k=k)
    wide = copy.deepcopy(moe).double()
    results = []
    with patch.object(LabelMoE, "_batched", side_effect=AssertionError("not in groups")):
        y, _, routing = moe(x.requires_grad_())
    for network, tokens, made in ((moe, x, y), (wide, x, one_by_one(wide, x.double()))):
        results.append([made, *torch.autograd.grad(made.square().sum(), [tokens, *network.parameters()])])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), expected.double(), rtol=1e-4, atol=1e-5)
    assert routing.experts.min() >= 0
    assert k > 1 or routing.load.min() == 0


@needs_groups
@pytest.mark.parametrize("autocast", [False, True])
def test_groups_in_bfloat16(autocast) -> None:
    moe, x = narrow(torch.float32 if autocast else torch.bfloat16)
    expected = one_by_one(copy.deepcopy(moe).double(), x.double())
    batched = patch.object(LabelMoE, "_batched", side_effect=AssertionError("not in groups"))
    with batched, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y, balance, _ = moe(x)
    near = (y - expected).abs().amax(-1) < 0.05  # but where rounding exchanges two experts that suit as well
    assert near.double().mean() > 0.9
    (y.float().square().sum() + balance).backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in moe.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_mixture_gives_the_same(dtype) -> None:
    moe, x = narrow(dtype)
    torch.compiler.reset()
    y = torch.compile(moe, backend="eager")(x).y
    torch.testing.assert_close(y, moe(x).y, rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-2)


class NoWaits(TorchDispatchMode):
    """Refuse operations that read values, for which the host would wait for a GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        assert not name.endswith(("_local_scalar_dense", "nonzero", "bincount", "equal")), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("capacity", [pytest.param(None, marks=needs_groups), 1.5])
def test_groups_and_places_are_found_without_reading_values(capacity) -> None:
    moe, x = narrow(torch.bfloat16, capacity=capacity, k=2)
    with NoWaits():
        y, balance, _ = moe(x)
        (y.sum() + balance).backward()
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoWaits():
        mixture()(tokens(5))


def test_without_a_projection_the_token_is_the_query() -> None:
    moe, x = mixture(project=False, k=2), tokens(9)
    assert set(moe.state_dict()) == {"labels", "expand", "shrink"}
    torch.testing.assert_close(moe(x).y, one_by_one(moe, x), rtol=1e-10, atol=1e-10)
    alike = LabelMoE(6, 10)
    assert sum(p.numel() for p in alike.parameters()) - sum(p.numel() for p in moe.parameters()) == 36


def test_operations_without_values_are_those_of_one_expert_a_token() -> None:
    moe = LabelMoE(6, 10).to("meta")
    with FlopCounterMode(display=False) as counter:
        moe(torch.empty(20, 6, device="meta"))
    assert counter.get_total_flops() == 2 * 20 * (6 * 6 + 6 * 4 + 6 * 20 + 10 * 6)


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


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 5), st.none() | st.floats(0.2, 3), st.integers(0, 5))
def test_the_table_shares_out_what_each_group_sent(count, experts, k, capacity, seed) -> None:
    moe = mixture(seed, experts=experts, k=min(k, experts), capacity=capacity)
    with torch.no_grad():
        routing = moe(tokens(count, seed=seed)).routing
    groups = torch.randint(0, 4, (count,), generator=torch.Generator().manual_seed(seed))
    table = routing_table(routing, groups, 5)
    sent = torch.stack([(routing.experts[groups == group] >= 0).sum() for group in range(5)])
    assert table.shape == (5, experts)
    torch.testing.assert_close(table.sum(1), (sent > 0).float())
    for group, expert in itertools.product(range(5), range(experts)):
        expected = int((routing.experts[groups == group] == expert).sum())
        assert float(table[group, expert] * sent[group]) == pytest.approx(expected, abs=1e-4)


def test_a_table_by_hand() -> None:
    routing = Routing(torch.tensor([[0], [2], [2], [-1], [1]]), torch.ones(5, 1), torch.full((3,), 1 / 3))
    found = routing_table(routing, torch.tensor([0, 0, 0, 1, 2]))
    torch.testing.assert_close(found, torch.tensor([[1 / 3, 0, 2 / 3], [0, 0, 0], [0, 1, 0]]))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([0, 1], r"groups of shape \(2,\) must be one for each of 3 tokens"),
        ([0, -1, 1], "groups from -1 to 1 must lie in 0 to 1"),
        ([0, 1, 2], "groups from 0 to 2 must lie in 0 to 1"),
    ],
)
def test_groups_that_do_not_fit(groups, message) -> None:
    routing = Routing(torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, 1), torch.ones(1))
    with pytest.raises(ValueError, match=message):
        routing_table(routing, torch.tensor(groups), 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bias": "none"}, "bias='none' is unknown"),
        ({"k": 5}, "k=5 experts a token out of 4"),
        ({"k": 0}, "k=0 experts"),
        ({"k": True}, "k=True experts"),
        ({"capacity": 0}, "capacity=0 leaves no places"),
        ({"capacity": float("nan")}, "capacity=nan leaves no places"),
    ],
)
def test_errors(given, message) -> None:
    with pytest.raises(ValueError, match=message):
        LabelMoE(6, 10, **given)


@pytest.mark.parametrize("capacity", [None, 1.0])
def test_no_tokens_have_no_shares(capacity) -> None:
    with pytest.raises(ValueError, match=r"x of shape \(2, 0, 6\) has no token"):
        LabelMoE(6, 10, capacity=capacity)(torch.zeros(2, 0, 6))
