"""Causal attention: parallel, recurrent and quadratic forms agree, whatever length, chunks and sequences are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from yolo_lat.ela import (
    KERNELS,
    HadamardExp,
    SumSquaredDistance,
    causal_attention,
    ela_state,
    exact_linear_attention,
)

NAMES = pytest.mark.parametrize("name", sorted(KERNELS))


def tokens(length: int, batch: int = 2, dtype: torch.dtype = torch.float64, seed: int = 0, scale: float = 1.0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, 3, length, 5), (batch, 3, length, 5), (batch, 3, length, 4))
    q, k, v = (torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes)
    return (scale * q).to(dtype), (scale * k).to(dtype), v.to(dtype)


def quadratic(
    q: Tensor, k: Tensor, v: Tensor, kernel, segments: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """The definition, on every pair; 0 where a query sees nothing."""
    q, k, v = q.double(), k.double(), v.double()
    if isinstance(kernel, HadamardExp):  # in logarithms, so that large ones stay finite
        logs = torch.logsumexp(q.unsqueeze(-2) + k.unsqueeze(-3), dim=-1)
    else:
        logs = kernel.pairwise(q, k).log()
    earlier = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril()
    if segments is not None:
        earlier = earlier & (segments[:, None, :, None] == segments[:, None, None, :])
    if mask is not None:
        earlier = earlier & mask[:, None, None, :]
    return logs.masked_fill(~earlier, -torch.inf).softmax(-1).nan_to_num(0) @ v


@NAMES
@pytest.mark.parametrize(
    ("length", "chunk"), [(1, 64), (2, 2), (63, 64), (64, 64), (65, 64), (130, 16), (257, 4), (100, 3)]
)
def test_the_parallel_form_is_the_definition(name, length, chunk) -> None:
    kernel, (q, k, v) = KERNELS[name](), tokens(length)
    y, _ = causal_attention(q, k, v, kernel, chunk=chunk)
    torch.testing.assert_close(y, quadratic(q, k, v, kernel), rtol=1e-10, atol=1e-10)


@NAMES
@pytest.mark.parametrize("length", [1000, pytest.param(4096, marks=pytest.mark.slow)])
def test_long_sequences(name, length) -> None:
    kernel, (q, k, v) = KERNELS[name](), (x[:, :1] for x in tokens(length, batch=1))
    torch.testing.assert_close(causal_attention(q, k, v, kernel)[0], quadratic(q, k, v, kernel), rtol=1e-10, atol=1e-10)


@NAMES
def test_a_step_at_a_time_gives_the_same(name) -> None:
    kernel, (q, k, v) = KERNELS[name](), tokens(70)
    expected, end = causal_attention(q, k, v, kernel, chunk=8)
    state = None
    for i in range(70):
        token = ela_state(k[:, :, i : i + 1], v[:, :, i : i + 1], kernel)
        state = token if state is None else state + token
        torch.testing.assert_close(state.query(q[:, :, i : i + 1]), expected[:, :, i : i + 1], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(state.query(q), end.query(q), rtol=1e-10, atol=1e-10)
    assert end.S.shape == (2, 3, kernel.psi(k).shape[-1], 4)  # whatever the length


@NAMES
@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(2, 9))
def test_prefill_in_parts_gives_the_same(name, lengths, chunk) -> None:
    kernel, (q, k, v) = KERNELS[name](), tokens(sum(lengths))
    expected, end = causal_attention(q, k, v, kernel, chunk=chunk)
    state, found, start = None, [], 0
    for length in lengths:
        part = slice(start, start + length)
        y, state = causal_attention(q[:, :, part], k[:, :, part], v[:, :, part], kernel, state, chunk=chunk)
        found.append(y)
        start += length
    torch.testing.assert_close(torch.cat(found, dim=2), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(state.query(q), end.query(q), rtol=1e-9, atol=1e-9)


@NAMES
@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(2, 9), st.integers(0, 3))
def test_packed_sequences_do_not_see_one_another(name, lengths, chunk, seed) -> None:
    kernel, (q, k, v) = KERNELS[name](), tokens(sum(lengths), seed=seed)
    segments = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).expand(2, -1)
    y, end = causal_attention(q, k, v, kernel, segments=segments, chunk=chunk)
    torch.testing.assert_close(y, quadratic(q, k, v, kernel, segments), rtol=1e-10, atol=1e-10)
    tail = lengths[-1]
    alone = causal_attention(q[:, :, -tail:], k[:, :, -tail:], v[:, :, -tail:], kernel, chunk=chunk)[1]
    torch.testing.assert_close(end.query(q), alone.query(q), rtol=1e-9, atol=1e-9)


@NAMES
@pytest.mark.parametrize("chunk", [4, 64])
def test_masked_keys_do_not_count(name, chunk) -> None:
    kernel, (q, k, v) = KERNELS[name](), tokens(50)
    mask = torch.rand(2, 50, generator=torch.Generator().manual_seed(2)) > 0.5
    mask[0, :9] = mask[1] = False
    y, end = causal_attention(q, k, v, kernel, mask=mask, chunk=chunk)
    torch.testing.assert_close(y, quadratic(q, k, v, kernel, mask=mask), rtol=1e-10, atol=1e-10)
    assert not y[0, :, :9].any()
    assert not y[1].any()
    torch.testing.assert_close(end.query(q), ela_state(k, v, kernel, mask).query(q), rtol=1e-10, atol=1e-10)


def test_the_one_function_of_attention_is_causal_on_demand() -> None:
    q, k, v = tokens(20)
    mask = torch.arange(20).expand(2, -1) != 5
    found = exact_linear_attention(q, k, v, mask=mask, causal=True)
    assert torch.equal(found, causal_attention(q, k, v, mask=mask)[0])
    assert not torch.allclose(found, exact_linear_attention(q, k, v, mask=mask))


def test_sequences_of_a_batch_may_differ() -> None:
    q, k, v = tokens(30)
    segments = torch.stack([torch.arange(30) // 7, torch.arange(30) // 11])
    y, _ = causal_attention(q, k, v, segments=segments, chunk=4)
    torch.testing.assert_close(y, quadratic(q, k, v, HadamardExp(), segments), rtol=1e-10, atol=1e-10)


def test_the_first_sequence_goes_on_from_the_state_and_others_do_not() -> None:
    q, k, v = tokens(40)
    _, state = causal_attention(q[:, :, :16], k[:, :, :16], v[:, :, :16])
    segments = (torch.arange(24) >= 10).long().expand(2, -1)
    y, _ = causal_attention(*(x[:, :, 16:] for x in (q, k, v)), state=state, segments=segments, chunk=4)
    whole = torch.cat([torch.zeros(16), segments[0]]).expand(2, -1)
    torch.testing.assert_close(y, quadratic(q, k, v, HadamardExp(), whole)[:, :, 16:], rtol=1e-10, atol=1e-10)


@NAMES
def test_gradients_are_those_of_the_definition(name) -> None:
    kernel = KERNELS[name]()
    inputs = [x[:1, :1].requires_grad_() for x in tokens(11)]
    found, expected = (
        torch.autograd.grad(y.square().sum(), inputs)
        for y in (causal_attention(*inputs, kernel, chunk=3)[0], quadratic(*inputs, kernel))
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
    assert torch.autograd.gradcheck(lambda *x: causal_attention(*x, kernel, chunk=4)[0], inputs)


@NAMES
def test_no_token_sees_a_later_one(name) -> None:
    q, k, v = tokens(50)
    y, _ = causal_attention(q, k, v, KERNELS[name](), chunk=8)
    k[:, :, 30:], v[:, :, 30:], q[:, :, 30:] = 3.0, -7.0, 2.0
    changed, _ = causal_attention(q, k, v, KERNELS[name](), chunk=8)
    torch.testing.assert_close(changed[:, :, :30], y[:, :, :30], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(changed[:, :, 30:], y[:, :, 30:])


@pytest.mark.parametrize("rise", [0.0, 1e3, -1e3, 1e6])
def test_logits_may_drift_without_end(rise) -> None:
    """Keys that grow or shrink from chunk to chunk, far beyond what an exponential holds."""
    q, k, v = tokens(200)
    k = k + rise * (torch.arange(200, dtype=torch.float64) // 8)[:, None]
    y, state = causal_attention(q, k, v, chunk=8)
    # What logarithms of this size lose to rounding, both forms do.
    bound = max(1e-9, 1e-13 * abs(rise))
    torch.testing.assert_close(y, quadratic(q, k, v, HadamardExp()), rtol=bound, atol=bound)
    assert all(x.isfinite().all() for x in (state.S, state.C, state.log_scale))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_half_precisions_are_summed_in_float32(dtype, bound) -> None:
    q, k, v = tokens(6400, batch=1, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = causal_attention(q, k, v)
    assert y.dtype == dtype
    assert state.S.dtype == torch.float32
    wanted, _ = causal_attention(*(x.double() for x in (q, k, v)))
    assert (y.double() - wanted).abs().max() < bound * wanted.abs().max()


@pytest.mark.slow
def test_a_million_tokens_in_one_piece_and_in_parts() -> None:
    q, k, v = (x[:, :1] for x in tokens(2**20, batch=1, dtype=torch.float32))
    y, end = causal_attention(q, k, v)
    state, found = None, []
    for start in range(0, 2**20, 2**16):
        part = slice(start, start + 2**16)
        out, state = causal_attention(q[:, :, part], k[:, :, part], v[:, :, part], state=state)
        found.append(out)
    torch.testing.assert_close(torch.cat(found, dim=2), y, rtol=1e-4, atol=1e-5)
    late = slice(2**20 - 64, 2**20)
    exact = ela_state(k.double(), v.double())
    torch.testing.assert_close(
        end.query(q[:, :, late]).double(), exact.query(q[:, :, late].double()), rtol=1e-4, atol=1e-5
    )


class TestErrors:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda q, k, v: (q[:, :, :3], k, v), "q and k must be .* got .2, 3, 3, 5."),
            (lambda q, k, v: (q[:, :, :0], k[:, :, :0], v[:, :, :0]), "with L from 1"),
            (lambda q, k, v: (q, k, v[0]), "v .B, H, L, Dv."),
        ],
    )
    def test_shapes(self, change, message) -> None:
        with pytest.raises(ValueError, match=message):
            causal_attention(*change(*tokens(5)))

    def test_segments_state_and_chunk(self) -> None:
        q, k, v = tokens(5)
        size = (q.shape[0], 5)
        with pytest.raises(ValueError, match="segments must be"):
            causal_attention(q, k, v, segments=torch.zeros(5, dtype=torch.long))
        with pytest.raises(ValueError, match=r"segments must be integer \(B, L\), got torch.float32"):
            causal_attention(q, k, v, segments=torch.zeros(size))
        for dtype in (torch.long, torch.float32):
            with pytest.raises(ValueError, match=r"mask must be bool \(B, L\), got torch"):
                causal_attention(q, k, v, mask=torch.ones(size, dtype=dtype))
        for state in (ela_state(k[:1], v[:1]), ela_state(k[:, :1], v[:, :1]), ela_state(k, v[..., :1])):
            for length in (1, 5):
                with pytest.raises(ValueError, match="do not fit a state"), torch.no_grad():
                    causal_attention(*(x[:, :, :length] for x in (q, k, v)), state=state)
        with pytest.raises(ValueError, match=r"made with SumSquaredDistance.* cannot go on with HadamardExp"):
            causal_attention(q, k, v, state=ela_state(k, v, SumSquaredDistance()))
        with pytest.raises(ValueError, match="chunk=1 leaves nothing"):
            causal_attention(q, k, v, chunk=1)
