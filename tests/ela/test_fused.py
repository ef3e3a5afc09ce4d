"""The fused form of exact linear attention against the quadratic form in float64 and against the plain form.

Triton's interpreter runs the kernels where there is no GPU. It has to be switched on before Triton is imported, and
would then be on for every other module, so `test_kernels_in_the_interpreter` runs `TestOperators` in its own process.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from yolo_lat.ela import HadamardExp, ModulatedDot, choose_form, ela_form, ela_state, exact_linear_attention, fused

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CUDA = torch.cuda.is_available() and not INTERPRETED
DEVICE = torch.device("cuda" if CUDA else "cpu")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Of the largest magnitude. One rounding costs 6e-8, 5e-4 and 4e-3; the interpreter cuts bfloat16 off instead, 8e-3.
BOUND = {torch.float32: 1e-5, torch.float16: 1.5e-3, torch.bfloat16: 1.2e-2}
SLOW = pytest.mark.slow
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)

Results = list[Tensor]


def tokens(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0, seed: int = 0) -> Tensor:
    x = scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x.to(DEVICE, dtype)


def triple(
    lq: int, lk: int, d: int, dv: int, dtype: torch.dtype = torch.float32, batch: int = 1, heads: int = 2, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (lq, d), (lk, d), (lk, dv)
    q, k, v = (tokens(batch, heads, *shape, dtype=dtype, seed=seed + i) for i, shape in enumerate(shapes))
    return q, k, v


def quadratic(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = HadamardExp().pairwise(q, k)
    return weights @ v / weights.sum(-1, keepdim=True)


def quadratic_by_logarithms(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same where sum_d exp(q_d + k_d) leaves float64."""
    return (q.unsqueeze(-2) + k.unsqueeze(-3)).logsumexp(-1).softmax(-1) @ v


def with_gradients(function, inputs: tuple[Tensor, ...], dy: Tensor | None = None) -> Results:
    """The output and the gradients of all inputs, for a fixed gradient of the output."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    y = function(*leaves)
    dy = tokens(*y.shape, seed=99) if dy is None else dy
    return [y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype))]


def exact(function, inputs: tuple[Tensor, ...]) -> Results:
    """The oracle's results in float64, for the gradient of the output that inputs of that dtype get."""
    doubles = tuple(x.double() for x in inputs)
    y = function(*doubles)
    return with_gradients(function, doubles, tokens(*y.shape, seed=99).to(inputs[0].dtype).double())


def attend(form: fused.Form):
    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with ela_form(form):
            return exact_linear_attention(q, k, v)

    return function


def assert_near(results: Results, oracle: Results, bound: float, floor: float = 0.05) -> None:
    """Compare in units of the largest magnitude, or of `floor`, if all are smaller: gradients are differences."""
    errors = {}
    for name, result, expected in zip(("y", "dq", "dk", "dv"), results, oracle, strict=False):
        assert result.shape == expected.shape
        assert result.isfinite().all(), f"{name} is not finite"
        errors[name] = float((result.double() - expected).abs().max() / expected.abs().max().clamp_min(floor))
    assert max(errors.values()) < bound, errors


def channels_first(x: Tensor) -> Tensor:
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


def heads_inside(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def every_second(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=-1).repeat_interleave(3, dim=-2)[..., ::3, ::2]


def one_for_all_heads(x: Tensor) -> Tensor:
    return x[:, :1].expand_as(x)


class TestOperators:
    """What the kernels compute, wherever they run: on a GPU, or in the interpreter."""

    __test__ = CUDA or INTERPRETED
    pytestmark = [pytest.mark.gpu] if CUDA else []

    @EACH_DTYPE
    @pytest.mark.parametrize(
        ("lq", "lk", "d", "dv"),
        [
            pytest.param(1, 1, 8, 16, marks=SLOW),
            (1, 3, 16, 8),
            (65, 64, 16, 16),
            pytest.param(5, 700, 8, 16, marks=SLOW),
            pytest.param(300, 7, 12, 33, marks=SLOW),
            (17, 100, 33, 12),
            pytest.param(33, 63, 64, 64, marks=SLOW),
        ],
        ids=lambda n: str(n),
    )
    def test_equals_the_quadratic_form(self, lq: int, lk: int, d: int, dv: int, dtype: torch.dtype) -> None:
        inputs = triple(lq, lk, d, dv, dtype, heads=1 if lq + lk > 300 else 2)
        results = with_gradients(attend("fused"), inputs)
        assert [x.dtype for x in results] == [dtype] * 4
        assert_near(results, exact(quadratic, inputs), BOUND[dtype])
        plain = with_gradients(attend("plain"), inputs)
        assert_near(results, [x.double() for x in plain], BOUND[dtype])

    def test_states_are_those_of_the_plain_form(self) -> None:
        k, v = (x.requires_grad_() for x in triple(1, 600, 12, 16, torch.float16)[1:])
        with ela_form("fused"):
            state = ela_state(k, v)
        with ela_form("plain"):
            expected = ela_state(k, v)
        assert state.log_scale is not None
        assert torch.equal(state.log_scale, expected.log_scale)
        assert not state.log_scale.requires_grad
        assert not expected.log_scale.requires_grad
        for name in ("S", "C"):
            assert getattr(state, name).dtype == torch.float32
            assert getattr(state, name).requires_grad
            torch.testing.assert_close(getattr(state, name), getattr(expected, name), rtol=1e-3, atol=1e-2)

    @pytest.mark.parametrize("layout", [channels_first, heads_inside, every_second, one_for_all_heads])
    @pytest.mark.parametrize(("length", "d"), [pytest.param(80, 8, marks=SLOW), (75, 16)], ids=["L80-D8", "L75-D16"])
    def test_any_strides(self, layout, length: int, d: int) -> None:
        """With results that do not depend on them, channels first where the input is."""
        inputs = tuple(layout(x) for x in triple(length, length, d, 16))
        assert not any(x.is_contiguous() for x in inputs)
        results = with_gradients(attend("fused"), inputs)
        assert_near(results, exact(quadratic, inputs), BOUND[torch.float32])
        if layout is channels_first:
            assert [x.stride(2) for x in results] == [1] * 4

    @SLOW
    def test_gradients_of_any_strides(self) -> None:
        inputs = triple(40, 40, 8, 16)
        dy = tokens(1, 2, 40, 16, seed=99)
        expected = with_gradients(attend("fused"), inputs, dy)
        for turned in (channels_first(dy), every_second(dy)):
            assert_near(with_gradients(attend("fused"), inputs, turned), [x.double() for x in expected], 1e-6)
        total = with_gradients(lambda *x: attend("fused")(*x).sum(), inputs, torch.ones((), device=DEVICE))
        single = with_gradients(attend("fused"), inputs, torch.ones_like(dy))
        assert all(torch.equal(a, b) for a, b in zip(total[1:], single[1:], strict=True))

    @pytest.mark.parametrize(
        ("dtype", "limit", "bound"),
        # A float32 near 1e4 is known to 5e-4, one near 6e4 to 2e-3, and so are the weights of features that compete.
        [
            pytest.param(torch.float32, 1e4, 2e-3, marks=SLOW),
            pytest.param(torch.float16, 3e4, 5e-3, marks=SLOW),
            (torch.bfloat16, 3e4, 2e-2),
        ],
        ids=["fp32", "fp16", "bf16"],
    )
    @pytest.mark.parametrize("where", ["above", "below", "both", "one feature", "one token"])
    def test_extreme_logits(self, dtype: torch.dtype, limit: float, bound: float, where: str) -> None:
        q, k, v = (x.double() for x in triple(9, 70, 8, 16))
        if where in ("above", "below"):
            q, k = (x / 8 + (limit if where == "above" else -limit) for x in (q, k))
        elif where == "both":
            q, k = (limit * torch.tanh(x) for x in (q, k))
        elif where == "one feature":
            q[..., 3], k[..., 5] = -limit, -limit
        else:
            q[..., 4, :], k[..., 7, 2] = -limit, limit
        inputs = q.to(dtype), k.to(dtype), v.to(dtype)
        assert_near(with_gradients(attend("fused"), inputs), exact(quadratic_by_logarithms, inputs), bound, floor=2.0)

    @pytest.mark.parametrize(
        ("dtype", "bound"), [(torch.float32, 1e-4), (torch.float16, 1.5e-3), (torch.bfloat16, 1.5e-2)], ids=DTYPES
    )
    def test_values_with_a_large_common_part(self, dtype: torch.dtype, bound: float) -> None:
        """Gradients of queries and keys come from differences of values, a hundredth here of the values themselves."""
        q, k, v = triple(60, 60, 8, 16, dtype)
        inputs = q, k, (v + 64).to(dtype)
        assert_near(with_gradients(attend("fused"), inputs), exact(quadratic, inputs), bound)

    def test_values_at_the_ends_of_float16(self) -> None:
        """Seven features see the largest number and one the smallest, 2¹⁷ apart, where float16 ends at 2¹⁶."""
        k = torch.tensor([[9.0] * 7 + [-9.0], [-9.0] * 7 + [9.0]], device=DEVICE, dtype=torch.float16)[None, None]
        v = torch.tensor([[65504.0], [-65504.0]], device=DEVICE, dtype=torch.float16).expand(1, 1, 2, 16)
        inputs = tokens(1, 1, 20, 8, dtype=torch.float16, scale=2), k, v
        assert_near([attend("fused")(*inputs)], [quadratic(*(x.double() for x in inputs))], BOUND[torch.float16])

    @SLOW
    def test_values_below_the_normal_numbers_of_float16(self) -> None:
        q, k, v = triple(40, 400, 8, 16)
        inputs = q.half(), k.half(), (1e-4 * v).half()
        dy = 1e4 * tokens(1, 2, 40, 16, seed=99)
        results = with_gradients(attend("fused"), inputs, dy)
        oracle = with_gradients(quadratic, tuple(x.double() for x in inputs), dy.half().double())
        assert_near(results[1:3], oracle[1:3], BOUND[torch.float16])

    def test_summed_states(self) -> None:
        """The state of all sets together, whichever form summed each of them, with gradients."""
        sets = [
            (tokens(1, 2, n, 8, scale=scale, seed=n), tokens(1, 2, n, 16, seed=n + 1))
            for n, scale in ((70, 1.0), (3, 5.0), (40, 0.1))
        ]
        q = tokens(1, 2, 20, 8, seed=7)
        flat = q, *(x for pair in sets for x in pair)

        def together(q: Tensor, *pairs: Tensor) -> Tensor:
            return quadratic(q, torch.cat(pairs[::2], 2), torch.cat(pairs[1::2], 2))

        def summed(*forms: fused.Form):
            def function(q: Tensor, *pairs: Tensor) -> Tensor:
                states = []
                for form, k, v in zip(forms, pairs[::2], pairs[1::2], strict=True):
                    with ela_form(form):
                        states.append(ela_state(k, v))
                with ela_form("fused"):
                    return (states[0] + states[1] + states[2]).query(q)

            return function

        oracle = exact(together, flat)
        for forms in (("fused",) * 3, ("fused", "plain", "fused"), ("plain",) * 3):
            results = with_gradients(summed(*forms), flat)
            for result, expected in zip(results, oracle, strict=True):
                torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-5)

    def test_states_without_tokens_add_nothing(self) -> None:
        q, k, v = triple(9, 20, 8, 16)
        nothing = ela_state(k, v, mask=torch.zeros(1, 20, dtype=torch.bool, device=DEVICE))
        with ela_form("fused"):
            assert torch.equal(nothing.query(q), torch.zeros(1, 2, 9, 16, device=DEVICE))
            both = (ela_state(k, v) + nothing).query(q)
        torch.testing.assert_close(both, attend("plain")(q, k, v))

    def test_no_tokens_and_no_queries(self) -> None:
        q, k, v = triple(4, 0, 8, 16)
        with pytest.raises(ValueError, match="there are no tokens"):
            attend("fused")(q, k, v)
        _, k, v = triple(4, 5, 8, 16)
        with pytest.raises(ValueError, match="there are no queries"):
            attend("fused")(q[:, :, :0], k, v)
        assert attend("auto")(q[:, :, :0], k, v).shape == (1, 2, 0, 16)

    @SLOW
    @given(data=st.data())
    @settings(max_examples=6, deadline=None)
    def test_any_shapes(self, data: st.DataObject) -> None:
        lq, lk = data.draw(st.integers(1, 80)), data.draw(st.integers(1, 80))
        d, dv = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
        batch, heads = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))
        inputs = triple(lq, lk, d, dv, batch=batch, heads=heads, seed=data.draw(st.integers(0, 1000)))
        if data.draw(st.booleans()):
            inputs = tuple(channels_first(x) for x in inputs)
        results, oracle = with_gradients(attend("fused"), inputs), exact(quadratic, inputs)
        for result, expected in zip(results, oracle, strict=True):
            torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=2e-6)

    @pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=SLOW)], ids=["fp32", "bf16"])
    def test_same_bits_each_time(self, dtype: torch.dtype) -> None:
        inputs = triple(600, 600, 8, 16, dtype, heads=1)
        first, second = (with_gradients(attend("fused"), inputs) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    @SLOW
    def test_operators_keep_torchs_rules(self) -> None:
        q, k, v = (x.requires_grad_() for x in triple(30, 40, 8, 16))
        k = channels_first(k.detach()).requires_grad_()
        S, C, log_scale = (x.detach() for x in fused.state_op(k, v))
        torch.library.opcheck(fused.state_op, (k, v))
        torch.library.opcheck(fused.query_op, (q, S.requires_grad_(), C.requires_grad_(), log_scale))
        sums = S.detach(), C.detach(), log_scale
        torch.library.opcheck(fused.state_backward_op, (k.detach(), v.detach(), *sums, *sums[:2]))
        torch.library.opcheck(fused.query_backward_op, (q.detach(), *sums, tokens(1, 2, 30, 16)))

    def test_second_derivatives_are_refused(self) -> None:
        leaves = [x.requires_grad_() for x in triple(4, 5, 8, 16)]
        (dq,) = torch.autograd.grad(attend("fused")(*leaves).square().sum(), leaves[0], create_graph=True)
        with pytest.raises(RuntimeError, match="no autograd formula"):
            dq.sum().backward()

    def test_nothing_of_the_tokens_size_is_kept(self) -> None:
        q, k, v = (x.requires_grad_() for x in triple(300, 300, 8, 16, heads=1))
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
            attend("fused")(q, k, v)
        own = [x for x in kept if x.data_ptr() not in {t.data_ptr() for t in (q, k, v)}]
        assert {t.data_ptr() for t in (q, k, v)} <= {x.data_ptr() for x in kept}
        assert 0 < max(x.numel() for x in own) <= 8 * 16

    @SLOW
    def test_offsets_beyond_32_bits(self) -> None:
        """The third head lies 2³¹ elements behind the first, in memory that is never touched in between."""
        inputs = triple(20, 20, 8, 16, torch.float16, heads=3)
        far = []
        for x in inputs:
            room = torch.empty(2**31 + x[0, 0].numel(), dtype=x.dtype, device=DEVICE)
            far.append(room.as_strided(x.shape, (0, 2**30, x.shape[3], 1)).copy_(x))
            del room
        assert torch.equal(attend("fused")(*far), attend("fused")(*inputs))

    def test_compiled(self) -> None:
        """In one graph, with the same result; and compiled anew when the setting changes."""
        torch.compiler.reset()
        compiled = torch.compile(exact_linear_attention, fullgraph=True, backend="aot_eager")
        inputs = tuple(channels_first(x) for x in triple(30, 40, 8, 16))

        def within(form: fused.Form) -> Results:
            with ela_form(form):
                return with_gradients(compiled, inputs)

        for form in ("fused", "plain", "fused"):
            expected = with_gradients(attend(form), inputs)
            assert all(torch.equal(a, b) for a, b in zip(within(form), expected, strict=True))

    def test_autocast_leaves_inputs_as_they_are(self) -> None:
        inputs = triple(30, 40, 8, 16)
        expected = attend("fused")(*inputs)
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
            assert torch.equal(attend("fused")(*inputs), expected)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"kernel": ModulatedDot()}, "only the kernel HadamardExp is fused, and this is ModulatedDot"),
            ({"mask": torch.ones(1, 5, dtype=torch.bool)}, "a mask hides tokens"),
            ({"k": torch.zeros(1, 2, 5, 8).half()}, "keys are torch.float16 and values torch.float32"),
            ({"k": torch.zeros(1, 2, 5, 65)}, "only widths from 1 to 64 are fused, and heads have 65 and 16"),
        ],
        ids=["kernel", "mask", "dtypes", "width"],
    )
    def test_what_is_not_fused_is_refused_or_plain(self, change, message: str) -> None:
        _, k, v = triple(1, 5, 8, 16)
        arguments = {"k": k, "v": v} | change
        arguments = {name: x.to(DEVICE) if isinstance(x, Tensor) else x for name, x in arguments.items()}
        with ela_form("fused"), pytest.raises(ValueError, match=f"impossible since {message}; ela_form"):
            ela_state(**arguments)
        with ela_form("plain"):
            expected = ela_state(**arguments)
        assert torch.equal(ela_state(**arguments).S, expected.S)

    def test_queries_that_do_not_fit_are_refused(self) -> None:
        q, k, v = triple(4, 5, 8, 16)
        with ela_form("fused"):
            state = ela_state(k, v)
            with pytest.raises(ValueError, match="do not fit a state"):
                state.query(q[..., :6])
            with pytest.raises(ValueError, match="do not fit a state"):
                state.query(q[:, :1])
        with ela_form("plain"):
            wide = ela_state(k.double(), v.double())
        with ela_form("fused"), pytest.raises(ValueError, match="only states in float32"):
            wide.query(q)


@pytest.mark.gpu
class TestOnCuda:
    """What only a GPU can show: its own arithmetic, many programs, memory, compilation, graphs."""

    __test__ = CUDA

    @EACH_DTYPE
    @pytest.mark.parametrize("length", [6400, 25600, 102400], ids=lambda n: f"L{n}")
    @pytest.mark.parametrize("layout", [torch.clone, channels_first], ids=["rows", "channels first"])
    def test_long_sequences(self, length: int, dtype: torch.dtype, layout) -> None:
        """Against the plain form in float64, itself tested against the quadratic one; and that for a few queries."""
        inputs = tuple(layout(x) for x in triple(length, length, 8, 16, dtype, batch=2, heads=4))
        results = with_gradients(attend("fused"), inputs)
        assert_near(results, exact(attend("plain"), inputs), BOUND[dtype])
        q, k, v = (x.double() for x in inputs)
        some = slice(0, length, length // 8)
        oracle = quadratic(q[:1, :1, some], k[:1, :1], v[:1, :1])
        assert_near([results[0][:1, :1, some]], [oracle], BOUND[dtype])

    @EACH_DTYPE
    def test_many_heads(self, dtype: torch.dtype) -> None:
        inputs = triple(1600, 1600, 16, 16, dtype, batch=32, heads=4)
        assert_near(with_gradients(attend("fused"), inputs), exact(attend("plain"), inputs), BOUND[dtype])

    def test_auto_is_fused(self) -> None:
        inputs = triple(100, 100, 8, 16, torch.float16)
        assert torch.equal(attend("auto")(*inputs), attend("fused")(*inputs))
        assert choose_form(HadamardExp(), DEVICE, torch.float16, (8, 16)).form == "fused"

    def test_exports_take_the_plain_form(self) -> None:
        class Attention(torch.nn.Module):
            def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                return exact_linear_attention(q, k, v)

        inputs = triple(100, 100, 8, 16)
        assert "yolo_lat.ela" not in str(torch.export.export(Attention(), inputs).graph)
        assert "yolo_lat::ela" not in str(torch.jit.trace(Attention(), inputs).graph)

    @EACH_DTYPE
    def test_compiled_by_inductor(self, dtype: torch.dtype) -> None:
        compiled = torch.compile(exact_linear_attention, fullgraph=True)
        inputs = tuple(channels_first(x) for x in triple(500, 700, 8, 16, dtype))
        expected = with_gradients(attend("fused"), inputs)
        assert_near(with_gradients(compiled, inputs), [x.double() for x in expected], BOUND[dtype])

    def test_autocast_in_training(self) -> None:
        """Outputs are of autocast's dtype, and gradients are those of float64 to its rounding."""
        linear = torch.nn.Linear(16, 16, device=DEVICE)
        x, dy = tokens(2, 4, 900, 16), tokens(2, 4, 900, 16, seed=99)
        with torch.autocast("cuda", dtype=torch.float16):
            q = linear(x)
            y = exact_linear_attention(q, q, q)
        assert y.dtype == torch.float16
        y.backward(dy.to(y.dtype))
        found, twin = linear.weight.grad.double(), copy.deepcopy(linear).double()
        twin.zero_grad()
        q = twin(x.double())
        exact_linear_attention(q, q, q).backward(dy.double())
        expected = twin.weight.grad
        assert float((found - expected).abs().max()) < 0.01 * float(expected.abs().max())

    def test_captured_in_a_cuda_graph(self) -> None:
        static = [x.requires_grad_() for x in triple(900, 900, 8, 16, torch.bfloat16)]
        dy = tokens(1, 2, 900, 16, dtype=torch.bfloat16, seed=99)

        def step() -> Results:
            y = exact_linear_attention(*static)
            return [y, *torch.autograd.grad(y, static, dy)]

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        fresh = triple(900, 900, 8, 16, torch.bfloat16, seed=50)
        with torch.no_grad():
            for old, new in zip(static, fresh, strict=True):
                old.copy_(new)
        graph.replay()
        expected = with_gradients(attend("fused"), fresh, dy)
        assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))

    def test_memory_is_that_of_results_and_gradients(self) -> None:
        inputs = [x.requires_grad_() for x in triple(25600, 25600, 16, 16, torch.bfloat16, batch=8, heads=4)]
        dy = torch.ones_like(inputs[0])
        size = dy.numel() * dy.element_size()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        y = attend("fused")(*inputs)
        torch.autograd.grad(y, inputs, dy)
        assert torch.cuda.max_memory_allocated() - before < 4.5 * size  # y, dq, dk, dv, and the sums of the splits


@pytest.mark.skipif(INTERPRETED, reason="this process is the interpreter's")
def test_kernels_in_the_interpreter() -> None:
    run_interpreted(__file__)


@SLOW
@pytest.mark.skipif(INTERPRETED, reason="this process is the interpreter's")
def test_more_of_the_kernels_in_the_interpreter() -> None:
    run_interpreted(__file__, "-m", "slow")


def run_interpreted(file: str, *selection: str) -> None:
    """Run the operators' tests of a file on the CPU, in Triton's interpreter."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=short", "-k", "TestOperators", file]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    run = subprocess.run(
        [*command, *selection],
        cwd=Path(__file__).parents[2],
        env=environment | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]


@pytest.mark.skipif(INTERPRETED, reason="this process is the interpreter's")
class TestChoice:
    """Which form is taken, told without a kernel being run."""

    def test_other_devices_are_plain(self) -> None:
        choice = choose_form(HadamardExp(), torch.device("cpu"), torch.float32, (8, 16))
        assert choice == ("plain", "the device is cpu, and the fused kernels need CUDA")

    def test_fused_is_refused_on_other_devices(self) -> None:
        k, v = torch.zeros(1, 2, 5, 8), torch.zeros(1, 2, 5, 16)
        with ela_form("fused"), pytest.raises(ValueError, match="since the device is cpu, and the fused kernels need"):
            ela_state(k, v)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
    def test_without_a_cuda_device(self) -> None:
        choice = choose_form(HadamardExp(), torch.device("cuda"), torch.float32, (8, 16))
        assert choice == ("plain", "torch sees no CUDA device")

    def test_settings_nest_and_end(self) -> None:
        device = torch.device("cuda")
        with ela_form("plain"):
            assert choose_form(HadamardExp(), device, torch.float64).reason == "ela_form('plain') is set"
            with ela_form("fused"), pytest.raises(ValueError, match=r"this is torch\.float64; ela_form"):
                choose_form(HadamardExp(), device, torch.float64)
            assert choose_form(HadamardExp(), device, torch.float64).reason == "ela_form('plain') is set"
        assert choose_form(HadamardExp(), device, torch.float64).reason.endswith("this is torch.float64")

    def test_unknown_forms_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"unknown form 'fast' .* use one of auto, plain, fused"), ela_form("fast"):
            pass

    def test_subclasses_of_the_kernel_are_not_fused(self) -> None:
        class Sharper(HadamardExp):
            def log_psi(self, k: Tensor) -> Tensor:
                return 2 * k

        choice = choose_form(Sharper(), torch.device("cuda"), torch.float32)
        assert choice == ("plain", "only the kernel HadamardExp is fused, and this is Sharper")

    def test_without_triton(self) -> None:
        code = """
            import sys
            sys.modules["triton"] = None
            import torch
            from yolo_lat.ela import HadamardExp, choose_form, ela_form, exact_linear_attention
            print(choose_form(HadamardExp(), torch.device("cuda"), torch.float32, (8, 16)))
            print(exact_linear_attention(*3 * [torch.ones(1, 1, 2, 3)]).sum())
            with ela_form("fused"):
                choose_form(HadamardExp(), torch.device("cuda"), torch.float32)
        """
        run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
        assert run.stdout.splitlines() == [
            "FormChoice(form='plain', reason='Triton is not installed')",
            "tensor(6.)",
        ]
        assert run.stderr.splitlines()[-1] == (
            "ValueError: ela_form('fused') is impossible since Triton is not installed; "
            "ela_form('auto') takes the plain form"
        )

    @pytest.mark.parametrize("how", ["torch.jit.trace", "torch.export", "torch.onnx.export"])
    def test_exports_are_plain(self, how: str, tmp_path) -> None:
        seen = []

        class Model(torch.nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                seen.append(choose_form(HadamardExp(), torch.device("cuda"), torch.float32, (8, 16)))
                return 2 * x

        x = torch.zeros(2)
        if how == "torch.jit.trace":
            torch.jit.trace(Model(), x, check_trace=False)
        elif how == "torch.export":
            torch.export.export(Model(), (x,), strict=False)
        else:
            torch.onnx.export(Model(), (x,), tmp_path / "model.onnx", dynamo=False)
        assert seen[-1] == ("plain", "the model is being exported to where the fused kernels do not exist")
