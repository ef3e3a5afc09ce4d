"""Exact linear attention against the quadratic form, its oracle, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from yolo_lat.ela import KERNELS, HadamardExp, Kernel, LogKernel, ela_state, exact_linear_attention, get_kernel

ALL = pytest.mark.parametrize("name", sorted(KERNELS))


def quadratic(q: Tensor, k: Tensor, v: Tensor, kernel: Kernel, mask: Tensor | None = None) -> Tensor:
    """The definition: y_i = sum_j k(q_i, k_j) v_j / sum_j k(q_i, k_j), in float64, a query at a time for memory."""
    q, k, v = q.double(), k.double(), v.double()
    rows = []
    for i in range(q.shape[2]):
        weights = kernel.pairwise(q[:, :, i : i + 1], k)
        if mask is not None:
            weights = weights * mask[:, None, None, :]
        rows.append(weights @ v / weights.sum(-1, keepdim=True))
    return torch.cat(rows, dim=2)


def tokens(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def relative_error(y: Tensor, oracle: Tensor) -> float:
    return float((y.double() - oracle).abs().max() / oracle.abs().max())


@ALL
@pytest.mark.parametrize("length", [1, 2, 3, 7, 64, 100, 1024, 6400], ids=lambda n: f"L{n}")
def test_equals_quadratic_form(name: str, length: int) -> None:
    kernel = get_kernel(name)
    q, k, v = tokens(2, 3, 5, 16), tokens(2, 3, length, 16, seed=1), tokens(2, 3, length, 7, seed=2)
    assert relative_error(exact_linear_attention(q, k, v, kernel), quadratic(q, k, v, kernel)) < 1e-12


@ALL
@pytest.mark.parametrize("length", [1, 5, 257, 6400], ids=lambda n: f"L{n}")
def test_masked_equals_quadratic_form(name: str, length: int) -> None:
    kernel = get_kernel(name)
    q, k, v = tokens(2, 2, 5, 8), tokens(2, 2, length, 8, seed=1), tokens(2, 2, length, 3, seed=2)
    mask = torch.rand(2, length, generator=torch.Generator().manual_seed(3)) < 0.6
    mask[:, 0] = True
    assert relative_error(exact_linear_attention(q, k, v, kernel, mask), quadratic(q, k, v, kernel, mask)) < 1e-12


@ALL
def test_hidden_tokens_have_no_influence(name: str) -> None:
    kernel = get_kernel(name)
    q, k, v = tokens(1, 2, 4, 8), tokens(1, 2, 9, 8, seed=1), tokens(1, 2, 9, 3, seed=2)
    mask = torch.tensor([[True] * 5 + [False] * 4])
    louder = k.clone()
    louder[:, :, 5:] += 50
    expected = exact_linear_attention(q, k[:, :, :5], v[:, :, :5], kernel)
    torch.testing.assert_close(exact_linear_attention(q, louder, v, kernel, mask), expected)
    nothing = exact_linear_attention(q, k, v, kernel, torch.zeros_like(mask))
    assert torch.equal(nothing, torch.zeros_like(nothing))


@ALL
def test_gradients(name: str) -> None:
    kernel = get_kernel(name)
    inputs = [t.requires_grad_() for t in (tokens(1, 2, 3, 4), tokens(1, 2, 5, 4, seed=1), tokens(1, 2, 5, 3, seed=2))]
    assert torch.autograd.gradcheck(lambda q, k, v: exact_linear_attention(q, k, v, kernel), inputs)


@ALL
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("limit", [1.0, 5.0, 20.0], ids=lambda x: f"logits{x:g}")
def test_half_precision_at_6400_tokens(name: str, dtype: torch.dtype, limit: float) -> None:
    kernel = get_kernel(name)
    q, k = (limit * (2 * torch.rand(1, 4, n, 16, generator=torch.Generator().manual_seed(n)) - 1) for n in (32, 6400))
    q, k, v = q.to(dtype), k.to(dtype), tokens(1, 4, 6400, 16, seed=2).to(dtype)
    y = exact_linear_attention(q, k, v, kernel)
    assert y.dtype == dtype
    assert torch.isfinite(y).all()
    assert relative_error(y, quadratic(q, k, v, kernel)) < 1e-2


@pytest.mark.parametrize("offset", [-1e4, 1e4], ids=["far below", "far above"])
def test_hadamard_exp_shifts_are_free(offset: float) -> None:
    q, k, v = tokens(1, 2, 6, 8), tokens(1, 2, 50, 8, seed=1), tokens(1, 2, 50, 4, seed=2)
    expected = exact_linear_attention(q, k, v)
    torch.testing.assert_close(exact_linear_attention(q + offset, k, v), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(exact_linear_attention(q, k + offset, v), expected, rtol=1e-9, atol=1e-9)


@ALL
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_permutation_equivariance(name: str, data: st.DataObject) -> None:
    kernel = get_kernel(name)
    length, seed = data.draw(st.integers(1, 40)), data.draw(st.integers(0, 1000))
    q, k, v = tokens(1, 2, length, 4, seed=seed), tokens(1, 2, length, 4, seed=seed + 1), tokens(1, 2, length, 3)
    order = torch.randperm(length, generator=torch.Generator().manual_seed(seed))
    y = exact_linear_attention(q, k, v, kernel)
    permuted = exact_linear_attention(q[:, :, order], k[:, :, order], v[:, :, order], kernel)
    torch.testing.assert_close(permuted, y[:, :, order], rtol=1e-10, atol=1e-10)


@ALL
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_states_add(name: str, data: st.DataObject) -> None:
    """The state of several token sets is the sum of their states, whatever their scales and the order of summing."""
    kernel = get_kernel(name)
    lengths = data.draw(st.lists(st.integers(1, 30), min_size=2, max_size=4))
    scales = data.draw(st.lists(st.sampled_from([0.1, 1.0, 10.0]), min_size=len(lengths), max_size=len(lengths)))
    sets = [
        (tokens(1, 2, n, 4, scale=s, seed=i), tokens(1, 2, n, 3, seed=100 + i))
        for i, (n, s) in enumerate(zip(lengths, scales, strict=True))
    ]
    q = tokens(1, 2, 6, 4, seed=7)
    together = exact_linear_attention(q, torch.cat([k for k, _ in sets], 2), torch.cat([v for _, v in sets], 2), kernel)
    states = [ela_state(k, v, kernel) for k, v in sets]
    for order in (states, states[::-1]):
        total = order[0]
        for state in order[1:]:
            total = total + state
        torch.testing.assert_close(total.query(q), together, rtol=1e-9, atol=1e-9)


@ALL
@given(scale=st.sampled_from([1e-3, 1.0, 1e2]), seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_output_lies_within_the_values(name: str, scale: float, seed: int) -> None:
    """Weights are non-negative and sum to one, so no output leaves the range of the values."""
    q, k = tokens(1, 1, 5, 4, scale=scale, seed=seed), tokens(1, 1, 9, 4, scale=scale, seed=seed + 1)
    v = tokens(1, 1, 9, 3, seed=seed + 2)
    y = exact_linear_attention(q, k, v, get_kernel(name))
    slack = 1e-9
    assert (y <= v.amax(2, keepdim=True) + slack).all()
    assert (y >= v.amin(2, keepdim=True) - slack).all()


def test_autocast_does_not_narrow_the_sums() -> None:
    q, k, v = (tokens(1, 2, n, 8, seed=n).float() for n in (10, 6400, 6400))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = exact_linear_attention(q, k, v)
    assert relative_error(y, quadratic(q, k, v, HadamardExp())) < 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
def test_on_cuda_at_25600_tokens(name: str, dtype: torch.dtype) -> None:
    kernel = get_kernel(name)
    q, k = (20 * (2 * torch.rand(1, 4, n, 16, generator=torch.Generator().manual_seed(n)) - 1) for n in (16, 25600))
    q, k, v = q.to(dtype), k.to(dtype), tokens(1, 4, 25600, 16, seed=2).to(dtype)
    y = exact_linear_attention(q.cuda(), k.cuda(), v.cuda(), kernel).cpu()
    assert torch.isfinite(y).all()
    assert relative_error(y, quadratic(q, k, v, kernel)) < (1e-2 if dtype != torch.float32 else 1e-3)


@pytest.mark.parametrize(
    ("q", "k", "v", "mask", "message"),
    [
        ((1, 2, 3, 4), (1, 2, 3), (1, 2, 3, 4), None, "k and v must be"),
        ((1, 2, 3, 4), (1, 2, 5, 4), (1, 2, 6, 4), None, "k and v must be"),
        ((1, 2, 3, 5), (1, 2, 3, 4), (1, 2, 3, 4), None, "q must be"),
        ((1, 3, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4), None, "q must be"),
        ((1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4), (1, 2), "mask must be"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(q, k, v, mask, message) -> None:
    hidden = None if mask is None else torch.ones(*mask, dtype=torch.bool)
    with pytest.raises(ValueError, match=message):
        exact_linear_attention(torch.zeros(*q), torch.zeros(*k), torch.zeros(*v), mask=hidden)


@ALL
def test_without_tokens_and_with_keys_of_no_weight_nothing_comes_out(name: str) -> None:
    kernel, (q, k, v) = get_kernel(name), (torch.randn(1, 2, n, 4) for n in (3, 5, 5))
    assert torch.equal(ela_state(k[:, :, :0], v[:, :, :0], kernel).query(q), torch.zeros(1, 2, 3, 4))
    if isinstance(kernel, LogKernel):
        weightless = torch.full_like(k, -math.inf)
        assert torch.equal(ela_state(weightless, v, kernel).query(q), torch.zeros(1, 2, 3, 4))
        some = torch.cat([k, weightless], dim=2), torch.cat([v, v], dim=2)
        torch.testing.assert_close(exact_linear_attention(q, *some, kernel), exact_linear_attention(q, k, v, kernel))


def test_queries_of_other_heads_are_refused() -> None:
    state = ela_state(torch.zeros(1, 2, 5, 4), torch.zeros(1, 2, 5, 3))
    for shape in ((1, 1, 5, 4), (3, 2, 5, 4), (2, 5, 4)):
        with pytest.raises(ValueError, match=r"do not fit a state \(1, 2, 4, 3\) in batch or heads"):
            state.query(torch.zeros(shape))


@ALL
def test_queries_of_another_width_are_refused(name: str) -> None:
    state = ela_state(torch.rand(1, 2, 5, 4), torch.rand(1, 2, 5, 3), get_kernel(name))
    assert state.query(torch.rand(1, 2, 6, 4)).shape == (1, 2, 6, 3)
    with pytest.raises(ValueError, match=r"features do not fit a state \(1, 2, \d+, 3\)"):
        state.query(torch.rand(1, 2, 6, 5))
    with pytest.raises(ValueError, match=r"features do not fit a state \(1, 2, \d+, 3\)"):
        state.query(torch.rand(1, 2, 6, 1))


def test_states_of_different_kernels_do_not_add() -> None:
    k, v = tokens(1, 1, 3, 4), tokens(1, 1, 3, 2)
    with pytest.raises(ValueError, match="different kernels"):
        ela_state(k, v, get_kernel("ModulatedDot")) + ela_state(k, v, HadamardExp())


@pytest.mark.parametrize("kernel", ["HadamardExp", "ModulatedDot"])
@pytest.mark.parametrize(("batch", "heads", "width"), [(1, 3, 2), (2, 1, 2), (2, 3, 1)])
def test_states_of_different_shapes_do_not_add(kernel, batch, heads, width) -> None:
    whole = ela_state(tokens(2, 3, 5, 4), tokens(2, 3, 5, 2), get_kernel(kernel))
    other = ela_state(tokens(batch, heads, 5, 4), tokens(batch, heads, 5, width), get_kernel(kernel))
    with pytest.raises(ValueError, match=r"cannot add ELA states of shapes \(2, 3, \d+, 2\) and"):
        whole + other
