"""The fused causal form against the definition in float64 and against the plain form, and decoding in place.

As in `test_fused`, the kernels run in Triton's interpreter where there is no GPU, in a process of its own. Splits are
as short as the kernels allow there, so that a few hundred tokens make many of them.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fused import (
    BOUND,
    CUDA,
    DEVICE,
    DTYPES,
    EACH_DTYPE,
    INTERPRETED,
    Results,
    assert_near,
    channels_first,
    every_second,
    exact,
    heads_inside,
    one_for_all_heads,
    run_interpreted,
    tokens,
    triple,
    with_gradients,
)
from torch import Tensor

from yolo_lat.ela import (
    KERNELS,
    ELAState,
    HadamardExp,
    ModulatedDot,
    causal_attention,
    causal_fused,
    ela_form,
    ela_state,
    ela_step_,
    fused,
)


def definition(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """On every pair, in logarithms, so that large ones stay finite."""
    logs = (q.unsqueeze(-2) + k.unsqueeze(-3)).logsumexp(-1)
    earlier = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    return logs.masked_fill(~earlier, -torch.inf).softmax(-1) @ v


def attend(form: fused.Form):
    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with ela_form(form):
            return causal_attention(q, k, v)[0]

    return function


def self_attention(length: int, d: int, dv: int, dtype: torch.dtype = torch.float32, **options: int):
    return triple(length, length, d, dv, dtype, **options)


def steep(length: int, d: int, dv: int, dtype: torch.dtype, jump: float = 60.0, scale: float = 3.0):
    """Queries and keys of a large spread; keys from the middle on are larger by `jump`."""
    q, k, v = (x.double() for x in self_attention(length, d, dv, heads=1))
    q, k = scale * q, scale * k
    k[:, :, length // 2 :] += jump
    return q.to(dtype), k.to(dtype), v.to(dtype)


def sums(state: ELAState) -> tuple[Tensor, Tensor, Tensor]:
    assert state.log_scale is not None
    return state.S, state.C, state.log_scale


def empty_state(heads: int, d: int, dv: int) -> ELAState:
    k, v = tokens(1, heads, 1, d), tokens(1, heads, 1, dv)
    with ela_form("plain"):
        return ela_state(k, v, mask=torch.zeros(1, 1, dtype=torch.bool, device=DEVICE))


def assert_all_near(found, expected, bound: float) -> None:
    """Compare each with its own largest magnitude."""
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert float((a.double() - b).abs().max()) < bound * float(b.abs().max().clamp_min(0.05))


class TestOperators:
    """What the kernels compute, wherever they run: on a GPU, or in the interpreter."""

    __test__ = CUDA or INTERPRETED
    pytestmark = [pytest.mark.gpu] if CUDA else []

    @pytest.fixture(autouse=True)
    def _short_splits(self, monkeypatch) -> None:
        monkeypatch.setattr(fused, "_FEWEST_TOKENS", 1)

    @EACH_DTYPE
    @pytest.mark.parametrize(
        ("length", "d", "dv"),
        [
            (1, 8, 16),
            (17, 5, 12),
            (67, 12, 5),
            *(
                pytest.param(*sizes, marks=pytest.mark.slow)
                for sizes in (
                    *((length, 16, 16) for length in (15, 16, 31, 32, 33, 63, 64, 65, 129)),
                    *((130, d, dv) for d, dv in ((64, 64), (64, 12), (33, 12), (5, 64))),
                )
            ),
        ],
        ids=lambda n: str(n),
    )
    def test_equals_the_definition(self, length: int, d: int, dv: int, dtype: torch.dtype) -> None:
        inputs = self_attention(length, d, dv, dtype, heads=1 if length > 60 else 2)
        results = with_gradients(attend("fused"), inputs)
        assert [x.dtype for x in results] == [dtype] * 4
        assert_near(results, exact(definition, inputs), BOUND[dtype])
        plain = with_gradients(attend("plain"), inputs)
        assert_near(results, [x.double() for x in plain], BOUND[dtype])

    @pytest.mark.slow
    def test_many_splits(self) -> None:
        """More of them than the scan takes at once."""
        inputs = self_attention(16 * 16 + 3, 5, 20, heads=1)
        assert fused._division(inputs[0], 5, 20)[0] == 17 > causal_fused._TILE
        assert_near(with_gradients(attend("fused"), inputs), exact(definition, inputs), BOUND[torch.float32])

    @pytest.mark.slow
    @pytest.mark.parametrize("tokens_of_a_split", [64, 256])
    def test_splits_of_many_blocks(self, tokens_of_a_split: int, monkeypatch) -> None:
        monkeypatch.setattr(fused, "_FEWEST_TOKENS", tokens_of_a_split)
        for dtype in DTYPES.values():
            inputs = self_attention(300, 12, 16, dtype, heads=1)
            assert_near(with_gradients(attend("fused"), inputs), exact(definition, inputs), BOUND[dtype])

    @pytest.mark.parametrize(
        ("dtype", "jump"),
        [*((dtype, 60.0) for dtype in DTYPES.values()), (torch.float32, -300.0)],
        ids=[*DTYPES, "fp32, down"],
    )
    def test_steep_logits(self, dtype: torch.dtype, jump: float) -> None:
        """Keys jump up amid a block: the weights of what came before are e⁻⁶⁰, in float16 as well. Or they fall."""
        inputs = steep(70, 8, 16, dtype, jump)
        assert_near(with_gradients(attend("fused"), inputs), exact(definition, inputs), BOUND[dtype])

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("dtype", "limit", "bound"),
        # As in test_fused: what large logarithms are known to.
        [(torch.float32, 1e4, 2e-3), (torch.float16, 3e4, 5e-3), (torch.bfloat16, 3e4, 2e-2)],
        ids=["fp32", "fp16", "bf16"],
    )
    @pytest.mark.parametrize("where", ["above", "below", "drift", "one feature"])
    def test_extreme_logits(self, dtype: torch.dtype, limit: float, bound: float, where: str) -> None:
        q, k, v = (x.double() for x in self_attention(70, 8, 16))
        if where in ("above", "below"):
            q, k = (x / 8 + (limit if where == "above" else -limit) for x in (q, k))
        elif where == "drift":  # from block to block, in every direction
            k += limit * torch.sin(torch.arange(70, device=DEVICE, dtype=torch.float64) // 32 + 1)[:, None]
        else:
            q[..., 3], k[..., 5] = -limit, -limit
        inputs = q.to(dtype), k.to(dtype), v.to(dtype)
        assert_near(with_gradients(attend("fused"), inputs), exact(definition, inputs), bound, floor=2.0)

    @pytest.mark.parametrize(
        ("dtype", "bound"),
        [
            pytest.param(torch.float32, 1e-4, marks=pytest.mark.slow, id="fp32"),
            pytest.param(torch.float16, 1.5e-3, id="fp16"),
            pytest.param(torch.bfloat16, 1.5e-2, id="bf16"),
        ],
    )
    def test_values_with_a_large_common_part(self, dtype: torch.dtype, bound: float) -> None:
        """Gradients of queries and keys come from differences of values, a hundredth here of the values themselves."""
        q, k, v = self_attention(140, 8, 16, dtype, heads=1)
        inputs = q, k, (v + 64).to(dtype)
        assert_near(with_gradients(attend("fused"), inputs), exact(definition, inputs), bound)

    @pytest.mark.slow
    def test_values_at_the_ends_of_float16(self) -> None:
        q, k, v = self_attention(80, 8, 16, torch.float16)
        v = torch.where(v > 0, 65504.0, -65504.0).half()
        assert_near([attend("fused")(q, k, v)], [definition(q.double(), k.double(), v.double())], BOUND[torch.float16])

    @pytest.mark.parametrize(
        "layout",
        [
            channels_first,
            *(pytest.param(f, marks=pytest.mark.slow) for f in (heads_inside, every_second, one_for_all_heads)),
        ],
    )
    def test_any_strides(self, layout) -> None:
        """With results that do not depend on them, channels first where the input is."""
        inputs = tuple(layout(x) for x in self_attention(48, 8, 16))
        assert not any(x.is_contiguous() for x in inputs)
        results = with_gradients(attend("fused"), inputs, every_second(tokens(1, 2, 48, 16, seed=99)))
        assert_near(results, exact(definition, inputs), BOUND[torch.float32])
        if layout is channels_first:
            assert [x.stride(2) for x in results] == [1] * 4

    @pytest.mark.parametrize(
        ("dtype", "cuts"),
        [
            (torch.float32, (40,)),
            pytest.param(torch.float32, (1, 33), marks=pytest.mark.slow),
            pytest.param(torch.float16, (1, 40), marks=pytest.mark.slow),
            pytest.param(torch.bfloat16, (69,), marks=pytest.mark.slow),
        ],
        ids=str,
    )
    def test_parts_are_the_whole(self, dtype: torch.dtype, cuts: tuple[int, ...]) -> None:
        """States handed from part to part, and the last one's use, with gradients through all of them."""
        later = tokens(1, 1, 7, 8, dtype=dtype, seed=50)
        inputs = (*self_attention(70, 8, 16, dtype, heads=1), later)

        def whole(q: Tensor, k: Tensor, v: Tensor, later: Tensor) -> Tensor:
            logs = (later.unsqueeze(-2) + k.unsqueeze(-3)).logsumexp(-1)
            return torch.cat([definition(q, k, v), logs.softmax(-1) @ v], dim=2)

        def in_parts(q: Tensor, k: Tensor, v: Tensor, later: Tensor) -> Tensor:
            found, state = [], None
            with ela_form("fused"):
                for start, end in zip((0, *cuts), (*cuts, 70), strict=True):
                    y, state = causal_attention(*(x[:, :, start:end] for x in (q, k, v)), state=state)
                    found.append(y)
                return torch.cat([*found, state.query(later)], dim=2)

        assert_all_near(with_gradients(in_parts, inputs), exact(whole, inputs), 1.5 * BOUND[dtype])

    @pytest.mark.parametrize(
        "used",
        [(0, 1, 2), *(pytest.param((i,), marks=pytest.mark.slow) for i in range(3))],
        ids=["all", "y", "S", "C"],
    )
    def test_states_and_their_gradients_are_those_of_the_plain_form(self, used: tuple[int, ...]) -> None:
        q, k, v = self_attention(40, 8, 16)
        earlier = self_attention(30, 8, 16, seed=20)
        S, C, log_scale = sums(ela_state(*earlier[1:]))
        given = q, k, v, 1.5 * S, 1.5 * C
        weights = [tokens(*shape, seed=30 + i) for i, shape in enumerate(((1, 2, 40, 16), S.shape, C.shape))]

        def run(form: fused.Form, dtype: torch.dtype) -> Results:
            leaves = [x.to(dtype).requires_grad_() for x in given]
            state = ELAState(leaves[3], leaves[4], HadamardExp(), log_scale.to(dtype))
            with ela_form(form):
                y, after = causal_attention(*leaves[:3], state=state)
            assert not after.log_scale.requires_grad
            outputs = [y, after.S, after.C]
            loss = sum((outputs[i] * weights[i].to(dtype)).sum() for i in used)
            grads = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
            return [x.detach() for x in (*outputs, after.log_scale, *grads)]

        assert_all_near(run("fused", torch.float32), run("plain", torch.float64), 1e-5)

    def test_a_state_of_no_tokens_changes_nothing(self) -> None:
        q, k, v = self_attention(20, 8, 16)
        with ela_form("fused"):
            y, after = causal_attention(q, k, v, state=empty_state(2, 8, 16))
            assert torch.equal(y, causal_attention(q, k, v)[0])
        torch.testing.assert_close(sums(after), sums(ela_state(k, v)))

    @EACH_DTYPE
    def test_a_step_at_a_time_gives_the_same(self, dtype: torch.dtype) -> None:
        """With new states and in place; and in place means that nothing moves."""
        q, k, v = (every_second(x) for x in steep(6, 12, 5, dtype, jump=20.0))
        expected = definition(q.double(), k.double(), v.double())
        state, standing = empty_state(1, 12, 5), empty_state(1, 12, 5)
        places = [x.data_ptr() for x in sums(standing)]
        found, found_in_place = [], []
        with ela_form("fused"):
            for i in range(6):
                token = tuple(x[:, :, i : i + 1] for x in (q, k, v))
                before, copies = state, [x.clone() for x in sums(state)]
                y, state = causal_attention(*token, state=state)
                assert all(torch.equal(a, b) for a, b in zip(sums(before), copies, strict=True))
                found.append(y)
                found_in_place.append(ela_step_(*token, standing))
                assert all(torch.equal(a, b) for a, b in zip(sums(standing), sums(state), strict=True))
            _, end = causal_attention(q, k, v)
        assert [x.data_ptr() for x in sums(standing)] == places
        assert_near([torch.cat(found, dim=2)], [expected], BOUND[dtype])
        assert torch.equal(torch.cat(found, dim=2), torch.cat(found_in_place, dim=2))
        assert_all_near(sums(state), [x.double() for x in sums(end)], BOUND[dtype])

    def test_steps_in_place_of_states_with_gaps(self) -> None:
        """Such as one of many in a larger tensor, of which nothing else changes."""
        q, k, v = self_attention(1, 8, 16)
        room = [tokens(1, 2, 8, 16, 3, seed=7), 1 + tokens(1, 2, 8, 3, seed=8).abs(), tokens(1, 2, 8, 3, seed=9)]
        before = [x.clone() for x in room]
        state, copy = (
            ELAState(S[..., 1], C[..., 1], HadamardExp(), scale[..., 1])
            for S, C, scale in (room, [x + 0 for x in room])
        )
        with ela_form("fused"):
            y = ela_step_(q, k, v, state)
        with ela_form("plain"):
            torch.testing.assert_close(y, ela_step_(q, k, v, copy))
        torch.testing.assert_close(sums(state), sums(copy))
        for x, old in zip(room, before, strict=True):
            assert torch.equal(x[..., ::2], old[..., ::2])

    @pytest.mark.slow
    def test_a_step_to_learn_from_takes_the_form_with_gradients(self) -> None:
        inputs = self_attention(1, 8, 16)
        with ela_form("fused"):
            state = ela_state(*self_attention(5, 8, 16, seed=9)[1:])
            leaves = [x.clone().requires_grad_() for x in inputs]
            y, _ = causal_attention(*leaves, state=state)
            torch.testing.assert_close(y.detach(), causal_attention(*inputs, state=state)[0])
        grads = torch.autograd.grad(y.square().sum(), leaves)
        assert all(x.abs().max() > 1e-3 for x in grads)

    @pytest.mark.slow
    @given(data=st.data())
    @settings(max_examples=8, deadline=None)
    def test_any_shapes(self, data: st.DataObject) -> None:
        length, d, dv = data.draw(st.integers(1, 80)), data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
        batch, heads = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))
        inputs = self_attention(length, d, dv, batch=batch, heads=heads, seed=data.draw(st.integers(0, 1000)))
        if data.draw(st.booleans()):
            inputs = tuple(channels_first(x) for x in inputs)
        results, oracle = with_gradients(attend("fused"), inputs), exact(definition, inputs)
        for result, expected in zip(results, oracle, strict=True):
            torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=2e-6)

    def test_no_token_sees_a_later_one(self) -> None:
        q, k, v = self_attention(50, 8, 16, heads=1)
        y = attend("fused")(q, k, v)
        for x, value in ((q, 2.0), (k, 30.0), (v, -7.0)):
            x[:, :, 37:] = value
        changed = attend("fused")(q, k, v)
        torch.testing.assert_close(changed[:, :, :37], y[:, :, :37], rtol=1e-5, atol=1e-6)
        assert (changed[:, :, 37:] - y[:, :, 37:]).abs().max() > 1

    @pytest.mark.parametrize("length", [24, 56], ids=["first block", "later block"])
    def test_a_rise_that_no_float_holds_ends_nothing(self, length: int) -> None:
        """Tokens ahead of it in a block of 16 see what is before the block alone; all else is finite and right."""
        inputs = q, k, v = steep(length, 8, 16, torch.float32, jump=500.0, scale=1.0)
        (y, *gradients), (expected, *_) = with_gradients(attend("fused"), inputs), exact(definition, inputs)
        assert all(x.isfinite().all() for x in (y, *gradients))
        rise = length // 2
        start = rise // 16 * 16
        vanishing = slice(start, rise)
        logs = (q[:, :, vanishing].unsqueeze(-2) + k[:, :, :start].unsqueeze(-3)).logsumexp(-1)
        expected[:, :, vanishing] = logs.softmax(-1) @ v[:, :, :start]  # 0 in the first block
        torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)
        dq, _, dv = gradients
        assert not dq[:, :, vanishing].any()
        assert not dv[:, :, vanishing].any()

    def test_same_bits_each_time(self) -> None:
        inputs = self_attention(70, 8, 16, torch.bfloat16, heads=1)
        first, second = (with_gradients(attend("fused"), inputs) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    @pytest.mark.parametrize(
        "rules",
        [
            ("test_schema", "test_autograd_registration", "test_faketensor"),
            pytest.param(("test_aot_dispatch_dynamic",), marks=pytest.mark.slow),
        ],
        ids=["eager", "compiled"],
    )
    def test_operators_keep_torchs_rules(self, rules: tuple[str, ...]) -> None:
        q, k, v = (channels_first(x) for x in self_attention(17, 3, 2, heads=1))
        state = tuple(x.clone() for x in sums(ela_state(k, v)))
        y, log_Z, *_, S_before, C_before, m_before = causal_fused.causal_op(q, k, v, None, None, None)
        saved = y, log_Z, S_before, C_before, m_before, tokens(1, 1, 17, 2)
        torch.library.opcheck(causal_fused.causal_backward_op, (q, k, v, *saved, *state), test_utils=rules)
        token = tuple(x[:, :, :1] for x in (q, k, v))
        torch.library.opcheck(causal_fused.step_op, (*token, *state), test_utils=rules)
        torch.library.opcheck(causal_fused.step_in_place_op, (*token, *state), test_utils=rules)
        S, C, log_scale = state
        leaves = (x.requires_grad_() for x in (q, k, v, S, C))
        torch.library.opcheck(causal_fused.causal_op, (*leaves, log_scale), test_utils=rules)

    def test_second_derivatives_are_refused(self) -> None:
        leaves = [x.requires_grad_() for x in self_attention(4, 8, 16)]
        (dq,) = torch.autograd.grad(attend("fused")(*leaves).square().sum(), leaves[0], create_graph=True)
        with pytest.raises(RuntimeError, match="no autograd formula"):
            dq.sum().backward()

    @pytest.mark.slow
    def test_what_is_kept_for_gradients(self, monkeypatch) -> None:
        """The inputs, y, log Z, and sums for every split, of which there are few."""
        monkeypatch.setattr(fused, "_FEWEST_TOKENS", 256)
        q, k, v = (x.requires_grad_() for x in self_attention(300, 8, 16, heads=1))
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
            y = attend("fused")(q, k, v)
        known = {x.data_ptr() for x in (q, k, v, y)}
        assert known <= {x.data_ptr() for x in kept}
        assert sum(x.numel() for x in kept if x.data_ptr() not in known) == 300 + 2 * (8 * 16 + 2 * 8) + 8

    @pytest.mark.slow
    def test_offsets_beyond_32_bits(self) -> None:
        """The third head lies 2³¹ elements behind the first, in memory that is never touched in between."""
        inputs = self_attention(20, 8, 16, torch.float16, heads=3)
        far = []
        for x in inputs:
            room = torch.empty(2**31 + x[0, 0].numel(), dtype=x.dtype, device=DEVICE)
            far.append(room.as_strided(x.shape, (0, 2**30, x.shape[3], 1)).copy_(x))
            del room
        assert torch.equal(attend("fused")(*far), attend("fused")(*inputs))

    @pytest.mark.slow
    def test_compiled(self) -> None:
        """In one graph, with the same result; and compiled anew when the setting changes."""
        torch.compiler.reset()
        compiled = torch.compile(lambda *x: causal_attention(*x)[0], fullgraph=True, backend="aot_eager")
        inputs = tuple(channels_first(x) for x in self_attention(30, 8, 16))

        def within(form: fused.Form) -> Results:
            with ela_form(form):
                return with_gradients(compiled, inputs)

        for form in ("fused", "plain", "fused"):
            expected = with_gradients(attend(form), inputs)
            assert all(torch.equal(a, b) for a, b in zip(within(form), expected, strict=True))

    @pytest.mark.slow
    def test_compiled_steps(self) -> None:
        torch.compiler.reset()
        compiled = torch.compile(ela_step_, fullgraph=True, backend="aot_eager")
        q, k, v = self_attention(4, 8, 16)
        state, other = empty_state(2, 8, 16), empty_state(2, 8, 16)
        with ela_form("fused"):
            for i in range(4):
                token = tuple(x[:, :, i : i + 1] for x in (q, k, v))
                assert torch.equal(compiled(*token, state), ela_step_(*token, other))
        assert all(torch.equal(a, b) for a, b in zip(sums(state), sums(other), strict=True))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"kernel": ModulatedDot()}, "only the kernel HadamardExp is fused, and this is ModulatedDot"),
            ({"mask": torch.ones(1, 5, dtype=torch.bool)}, "a mask hides tokens"),
            ({"segments": torch.zeros(1, 5, dtype=torch.long)}, "sequences are packed"),
            ({"k": torch.zeros(1, 2, 5, 8).half()}, "queries are torch.float32, keys torch.float16 and values"),
            ({"v": torch.zeros(1, 2, 5, 65)}, "only widths from 1 to 64 are fused, and heads have 8 and 65"),
            ({"state": torch.float64}, "only states in float32 are fused, and this is torch.float64"),
        ],
        ids=["kernel", "mask", "segments", "dtypes", "width", "state"],
    )
    def test_what_is_not_fused_is_refused_or_plain(self, change, message: str) -> None:
        q, k, v = self_attention(5, 8, 16)
        if "state" in change:
            with ela_form("plain"):
                change = {"state": ela_state(k.to(change["state"]), v.to(change["state"]))}
        arguments = {"q": q, "k": k, "v": v} | change
        arguments = {name: x.to(DEVICE) if isinstance(x, Tensor) else x for name, x in arguments.items()}
        with ela_form("fused"), pytest.raises(ValueError, match=f"impossible since {message}"):
            causal_attention(**arguments)
        with ela_form("plain"):
            expected, _ = causal_attention(**arguments)
        assert torch.equal(causal_attention(**arguments)[0], expected)

    def test_states_that_do_not_fit_are_refused(self) -> None:
        q, k, v = self_attention(5, 8, 16)
        with (
            ela_form("fused"),
            pytest.raises(ValueError, match=r"values .1, 2, 5, 16. do not fit a state .1, 2, 8, 12."),
        ):
            causal_attention(q, k, v, state=ela_state(k, v[..., :12].contiguous()))


@pytest.mark.gpu
class TestOnCuda:
    """What only a GPU can show: its own arithmetic, TF32 and bfloat16 among it, splits as they are, graphs, memory."""

    __test__ = CUDA

    @EACH_DTYPE
    @pytest.mark.parametrize("length", [300, 8192, 131072], ids=lambda n: f"L{n}")
    @pytest.mark.parametrize("layout", [torch.clone, channels_first], ids=["rows", "channels first"])
    def test_long_sequences(self, length: int, dtype: torch.dtype, layout) -> None:
        """Against the plain form in float64, itself tested against the definition."""
        inputs = tuple(layout(x) for x in self_attention(length, 16, 16, dtype, batch=2, heads=2))
        assert_near(with_gradients(attend("fused"), inputs), exact(attend("plain"), inputs), BOUND[dtype])

    @EACH_DTYPE
    @pytest.mark.parametrize(("d", "dv"), [(8, 16), (16, 64), (32, 32), (64, 16), (64, 64)], ids=str)
    def test_all_sizes_of_tiles(self, d: int, dv: int, dtype: torch.dtype) -> None:
        inputs = self_attention(1000, d, dv, dtype, batch=4, heads=8)
        assert_near(with_gradients(attend("fused"), inputs), exact(attend("plain"), inputs), BOUND[dtype])

    def test_auto_is_fused(self) -> None:
        inputs = self_attention(100, 8, 16, torch.float16)
        assert torch.equal(attend("auto")(*inputs), attend("fused")(*inputs))

    @EACH_DTYPE
    def test_compiled_by_inductor(self, dtype: torch.dtype) -> None:
        compiled = torch.compile(lambda *x: causal_attention(*x)[0], fullgraph=True)
        inputs = self_attention(700, 8, 16, dtype)
        expected = with_gradients(attend("fused"), inputs)
        assert_near(with_gradients(compiled, inputs), [x.double() for x in expected], BOUND[dtype])

    @EACH_DTYPE
    def test_steps_replayed_from_a_cuda_graph(self, dtype: torch.dtype) -> None:
        """A graph captured once, replayed for every token, gives what the parallel form gives."""
        q, k, v = self_attention(40, 64, 64, dtype, batch=2, heads=4)
        static = [x[:, :, :1].clone() for x in (q, k, v)]
        _, state = causal_attention(*static)
        graph = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # what the kernel is compiled by
            ela_step_(*static, ELAState(*(x.clone() for x in sums(state)[:2]), HadamardExp(), sums(state)[2].clone()))
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            y = ela_step_(*static, state)
        found = []
        for i in range(1, 40):
            for old, new in zip(static, (q, k, v), strict=True):
                old.copy_(new[:, :, i : i + 1])
            graph.replay()
            found.append(y.clone())
        expected = definition(q.double(), k.double(), v.double())
        assert_near([torch.cat(found, dim=2)], [expected[:, :, 1:]], BOUND[dtype])

    def test_memory_is_that_of_results_and_gradients(self) -> None:
        inputs = [x.requires_grad_() for x in self_attention(25600, 16, 16, torch.bfloat16, batch=8, heads=4)]
        dy = torch.ones_like(inputs[0])
        size = dy.numel() * dy.element_size()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        y = attend("fused")(*inputs)
        torch.autograd.grad(y, inputs, dy)
        # y, dq, dk, dv; log Z and r, an eighth each; the sums of splits, before and after.
        assert torch.cuda.max_memory_allocated() - before < 5 * size


@pytest.mark.skipif(INTERPRETED, reason="this process is the interpreter's")
def test_kernels_in_the_interpreter() -> None:
    run_interpreted(__file__)


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this process is the interpreter's")
def test_more_of_the_kernels_in_the_interpreter() -> None:
    run_interpreted(__file__, "-m", "slow")


@pytest.mark.skipif(INTERPRETED, reason="this process is the interpreter's")
@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("step_kernel", True),
        ("scan_kernel", True),
        ("causal_kernel", True),
        *(
            pytest.param(name, flags, marks=pytest.mark.slow)
            for name, flags in (
                ("scan_kernel", False),
                ("causal_kernel", False),
                ("causal_query_backward_kernel", True),
                ("causal_query_backward_kernel", False),
                ("causal_key_backward_kernel", True),
                ("causal_key_backward_kernel", False),
            )
        ),
    ],
)
def test_kernels_compile_for_a_gpu(name: str, flags: bool) -> None:
    """For compute capability 9.0, without one, from tokens in rows; `flags` are HALF, GIVEN and REVERSE."""
    pytest.importorskip("triton")
    from triton import compile as compile_for
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from yolo_lat.ela import causal_triton

    kernel = getattr(causal_triton, name)
    known = {"D": 12, "DV": 16, "DP": 16, "DVP": 16, "BLOCK": 32 if flags else 16, "ALIGN": 4, "ALIGN_L": 1, "TILE": 16}
    known |= dict.fromkeys(("HALF", "GIVEN", "REVERSE"), flags)
    of_tokens = "q", "k", "v", "y", "dy", "dq", "dk", "dv"
    known |= {f"{x}_d": 1 for x in of_tokens}
    constants = {x: known[x] for x in kernel.arg_names if x in known}
    types = dict.fromkeys(kernel.arg_names, "*fp32")
    types |= {
        x: "i32" for x in types if x in ("H", "L", "splits", "tokens") or x[-2:] in ("_b", "_h", "_l", "_d", "_e")
    }
    types |= {x: "*bf16" for x in types if flags and x in of_tokens}
    source = ASTSource(kernel, types | dict.fromkeys(constants, "constexpr"), constants)
    assert name in compile_for(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4}).asm["ptx"]


@pytest.mark.skipif(INTERPRETED, reason="this process is the interpreter's")
class TestStep:
    """Decoding in place in the plain form, which every kernel has."""

    @pytest.mark.parametrize("name", sorted(KERNELS))
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
    def test_a_step_at_a_time_gives_the_same(self, name: str, dtype: torch.dtype) -> None:
        kernel = KERNELS[name]()
        q, k, v = (x.cpu() for x in self_attention(30, 5, 4, dtype))
        expected, end = causal_attention(q, k, v, kernel)
        state = ela_state(k[:, :, :1], v[:, :, :1], kernel)
        tensors = [x for x in (state.S, state.C, state.log_scale) if x is not None]
        places = [x.data_ptr() for x in tensors]
        found = [expected[:, :, :1]]
        found += [ela_step_(*(x[:, :, i : i + 1] for x in (q, k, v)), state) for i in range(1, 30)]
        bound = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 1e-2}[dtype]
        torch.testing.assert_close(torch.cat(found, dim=2), expected, rtol=bound, atol=bound)
        torch.testing.assert_close(state.query(q), end.query(q), rtol=bound, atol=bound)
        assert [x.data_ptr() for x in tensors] == places

    @pytest.mark.parametrize("wanted", range(4), ids=["q", "k", "v", "S"])
    def test_gradients_are_refused(self, wanted: int) -> None:
        q, k, v = (x.cpu() for x in self_attention(1, 8, 16))
        state = ela_state(k, v)
        (q, k, v, state.S)[wanted].requires_grad_()
        with pytest.raises(ValueError, match=r"ela_step_ has no gradient; call it under torch\.no_grad"):
            ela_step_(q, k, v, state)
        with torch.no_grad():
            assert ela_step_(q, k, v, state).shape == (1, 2, 1, 16)

    def test_what_does_not_fit_is_refused(self) -> None:
        q, k, v = (x.cpu() for x in self_attention(2, 8, 16))
        state = ela_state(k, v)
        with pytest.raises(ValueError, match=r"a step takes one token, got v .1, 2, 2, 16."):
            ela_step_(q, k, v, state)
        with pytest.raises(ValueError, match=r"values .1, 1, 1, 16. do not fit a state .1, 2, 8, 16."):
            ela_step_(*(x[:, :1, :1] for x in (q, k, v)), state)
        with pytest.raises(ValueError, match="q and k must be"):
            ela_step_(q[:, :, :1, :5], k[:, :, :1], v[:, :, :1], state)

    def test_shared_memory_is_refused(self) -> None:
        q, k, v = (x.cpu().expand(3, -1, -1, -1) for x in self_attention(1, 8, 16))
        one = ela_state(k[:1], v[:1])
        shared = ELAState(
            one.S.expand(3, -1, -1, -1), one.C.expand(3, -1, -1), one.kernel, one.log_scale.expand(3, -1, -1)
        )
        with pytest.raises(ValueError, match="heads share memory"):
            ela_step_(q, k, v, shared)


@pytest.mark.skipif(INTERPRETED, reason="this process is the interpreter's")
class TestShapes:
    """What fakes promise, for sizes that nobody computes."""

    @pytest.mark.parametrize(("length", "heads", "splits"), [(1, 4, 1), (257, 4, 2), (2**20, 4, 512), (8192, 256, 9)])
    def test_of_all_results(self, length: int, heads: int, splits: int) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode():
            q, k, v = (torch.empty(1, heads, length, n, dtype=torch.float16) for n in (12, 12, 20))
            y, log_Z, *rest = causal_fused.causal_op(q, k, v, None, None, None)
            assert (y.shape, y.dtype) == (v.shape, torch.float16)
            assert (log_Z.shape, log_Z.dtype) == ((1, heads, length), torch.float32)
            total, parts = (1, heads, 12), (heads, splits, 12)
            assert [tuple(x.shape) for x in rest] == [(*total, 20), total, total, (*parts, 20), parts, parts]
            *gradients, A, B, scale = causal_fused.causal_backward_op(q, k, v, y, log_Z, *rest[3:], y, None, None, None)
            assert [x.shape for x in gradients] == [q.shape, k.shape, v.shape]
            assert [tuple(x.shape) for x in (A, B, scale)] == [(*total, 20), total, total]
