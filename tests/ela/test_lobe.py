"""The Memory Lobe: what it adds, and that the paper's form shows the future."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from yolo_lat.ela import HadamardExp, MemoryLobe, SumSquaredDistance, future_leak


def lobe(causal: bool = False, **given) -> MemoryLobe:
    torch.manual_seed(0)
    made = MemoryLobe(8, 2, causal=causal, **given).double()
    nn.init.normal_(made.value.weight)
    return made


def updates(length: int = 12) -> torch.Tensor:
    return torch.randn(2, length, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_a_model_begins_as_without() -> None:
    assert not MemoryLobe(8)(updates().float()).any()


@pytest.mark.parametrize("kernel", [HadamardExp(), SumSquaredDistance()], ids=repr)
@pytest.mark.parametrize("causal", [False, True])
def test_is_attention_over_the_updates(causal, kernel) -> None:
    made, delta = lobe(causal, kernel=kernel), updates()
    q, k, v = (f(delta).reshape(2, 12, 2, 4).transpose(1, 2) for f in (made.query, made.key, made.value))
    weights = kernel.pairwise(q, k)
    weights = weights.tril() if causal else weights
    expected = (weights @ v / weights.sum(-1, keepdim=True)).transpose(1, 2).reshape(2, 12, 8)
    torch.testing.assert_close(made(delta), expected, rtol=1e-10, atol=1e-10)


def test_the_papers_lobe_shows_the_future_and_the_causal_one_does_not() -> None:
    assert future_leak(lobe(), updates()) > 0.05
    assert future_leak(lobe(causal=True), updates()) < 1e-12


def test_a_causal_layer_leaks_by_its_lobe() -> None:
    """As in a language model: nothing but the lobe looks ahead."""

    class Layer(nn.Module):
        def __init__(self, causal: bool) -> None:
            super().__init__()
            self.own, self.lobe = nn.Linear(8, 8).double(), lobe(causal)

        def forward(self, x):
            delta = torch.tanh(self.own(x)).cumsum(1)
            return x + delta + self.lobe(delta)

    torch.manual_seed(2)
    assert future_leak(Layer(False), updates()) > 0.01
    assert future_leak(Layer(True), updates()) < 1e-12


def test_a_model_that_sees_the_future_alone_leaks_without_bound() -> None:
    assert future_leak(lambda x: x.roll(-1, 1) * torch.arange(11, -1, -1).sign()[:, None], updates()) == math.inf
    assert future_leak(lambda x: 0 * x, updates()) == 0


def test_a_leak_whose_channels_sum_to_nothing_is_seen() -> None:
    torch.manual_seed(0)
    own = nn.Linear(8, 8).double()
    leak = future_leak(lambda x: own(x) + nn.functional.layer_norm(x.flip(1), (8,)), updates())
    assert leak > 0.1


def test_a_constant_leaks_nothing_and_gradients_need_not_be_on() -> None:
    assert future_leak(torch.zeros_like, updates()) == 0
    with torch.no_grad():
        assert future_leak(lobe(), updates()) > 0.05


def test_a_leak_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="derivative of output 0 is not finite"):
        future_leak(lambda x: (0 * x).sqrt(), updates())


def test_gradients_pass_and_masks_hold() -> None:
    made, delta = lobe(), updates().requires_grad_()
    assert torch.autograd.gradcheck(made, (delta,))
    mask = torch.arange(12).expand(2, -1) < 6
    changed = delta.detach().clone()
    changed[:, 6:] = 9.0
    torch.testing.assert_close(made(changed, mask)[:, :6], made(delta, mask)[:, :6])


def test_heads_must_divide() -> None:
    with pytest.raises(ValueError, match="heads=3 does not divide the width 8"):
        MemoryLobe(8, 3)
