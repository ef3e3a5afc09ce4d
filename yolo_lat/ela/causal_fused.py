"""Causal exact linear attention with `HadamardExp` in fused kernels: many tokens at once, and one more.

With a_id = exp(q_id) / Z_i, Z_i being the sum of all weights of token i,

    S_i = sum_{j<=i} exp(k_j) v_jᵀ       Z_i = sum_d exp(q_id) C_id
    C_i = sum_{j<=i} exp(k_j)            y_i = sum_d a_id S_id

S_i for every token would be a tensor (L, D, Dv). Three launches form none: sequences are cut into splits, each of which
is summed (`state_kernel`); a scan puts in place of the sums of a split those of all splits before it, and of a given
state; from there on every split is gone through in blocks, whose own tokens are seen by their pairs. Sums are held on
the scale of the largest k_jd so far, as `ELAState` holds them.

Gradients, from dy on, take three launches too, in the opposite direction:

    r_i = dy_i·y_i                       dq_id = a_id (S_id·dy_i - C_id r_i)
    A_j = sum_{i>=j} a_i dy_iᵀ           dk_jd = exp(k_jd) (A_jd·v_j - B_jd)
    B_j = sum_{i>=j} a_i r_i             dv_j = sum_d exp(k_jd) A_jd

A and B are held on the scale of the largest log a_id to come. No weight a_id exp(k_jd), j <= i, exceeds 1. Gradients of
the last state, S_L exp(-m) and C_L exp(-m), are where A and B begin, and they end as gradients of the state given:

    A_{L+1} = exp(-m) dS      B_{L+1} = -exp(-m) dC      dS_0 = exp(m_0) A_1      dC_0 = -exp(m_0) B_1

Where a feature's logarithms rise by more than 80 within a block of 16 or, in half precision, 32 tokens, those of the
block ahead of the rise see only what is before the block, nothing if it is the first, and pass no gradient on.

m and m_0 count as constants, for the reason given in `fused.py`. Of the tokens' size only log Z is kept besides q, k, v
and y, and the sums before every split, which are a fraction of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from yolo_lat.ela.fused import _division, _kernels, _Launch, _like, _power_of_two, _sums

_MAX_SPLITS = 512  # of a sequence: the scan goes through them one tile after another
_TILE = 16  # splits that the scan takes at once

Sums = tuple[Tensor, Tensor, Tensor]  # S, C and their logarithmic scale, or A, B and theirs


def attend(q: Tensor, k: Tensor, v: Tensor, state: Sums | None) -> tuple[Tensor, Sums]:
    """Attend causally from q to k and v (B, H, L, any) of one dtype, L >= 1, and what a float32 state holds.

    Returns y (B, H, L, Dv) and the state after the last token. One token that nothing is to be learnt from is a step.
    """
    inputs = (q, k, v, *(state or ()))
    if state is not None and q.shape[2] == 1 and not (torch.is_grad_enabled() and any(x.requires_grad for x in inputs)):
        y, *after = step_op(q, k, v, *state)
    else:
        y, _, *after = causal_op(q, k, v, *(state or (None, None, None)))[:5]
    S, C, log_scale = after
    return y, (S, C, log_scale)


def _causal_kernels() -> Any:
    from yolo_lat.ela import causal_triton  # late, as in fused.py

    return causal_triton


def _plan(*tensors: Tensor) -> _Launch:
    """Plan for tensors (B, H, L, any), the first as wide as keys and the last as values."""
    return _Launch.over(tensors[0].shape[3], tensors[-1].shape[3], *tensors, most_splits=_MAX_SPLITS)


def _pairs_constants(plan: _Launch) -> dict[str, int | bool]:
    """Return the constants of kernels that form pairs: smaller blocks and more warps keep all of it in registers."""
    block = 32 if plan.constants["HALF"] else 16
    return plan.constants | {"BLOCK": block, "num_warps": 4 if plan.constants["DP"] == 16 else 8}


def _room(x: Tensor, value_dim: int, *places: int) -> Sums:
    """Return room for sums over tokens like x (B, H, L, D) at so many places."""
    rows = *places, x.shape[3]
    return _sums(x, *rows, value_dim), _sums(x, *rows), _sums(x, *rows)


def _scan(parts: Sums, first: tuple[Tensor | None, ...], total: Sums, plan: _Launch, reverse: bool) -> None:
    """Replace the sums of every split by those ahead of it, `first` among them, and write the sums of everything."""
    given = first[0] is not None
    ahead = [x.contiguous() for x in first if x is not None] if given else total  # unread in the latter case
    _causal_kernels().scan_kernel[(total[1].numel(),)](
        *(*parts, *ahead, *total, plan.splits),
        **{name: plan.constants[name] for name in ("D", "DV", "DVP")},
        TILE=_TILE,
        GIVEN=given,
        REVERSE=reverse,
        num_warps=1,  # in one warp all is read before anything is replaced
    )


@torch.library.custom_op("yolo_lat::ela_causal", mutates_args=())
def causal_op(
    q: Tensor, k: Tensor, v: Tensor, S_first: Tensor | None, C_first: Tensor | None, first: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Attend causally from q (B, H, L, D) to k and v (B, H, L, Dv), L >= 1, after a float32 state or none.

    Returns:
        y in q's dtype; float32 log Z (B, H, L), infinite where no key has a weight; S, C and log_scale after the last
        token; and the same before every split, (B·H, splits, D, Dv) and twice (B·H, splits, D), for the gradients.
    """
    batch, heads, length, _ = q.shape
    value_dim = v.shape[3]
    y, log_Z = _like(q, value_dim), _sums(q, batch, heads, length)
    plan = _plan(q, k, v, y)
    total, parts = _room(q, value_dim, batch, heads), _room(q, value_dim, batch * heads, plan.splits)
    sizes = heads, length, plan.splits, plan.tokens
    strides = (stride for x in (q, k, v, y) for stride in x.stride())
    with torch.cuda.device_of(q):
        _kernels().state_kernel[plan.grid](k, v, *parts, *k.stride(), *v.stride(), *sizes, **plan.constants)
        _scan(parts, (S_first, C_first, first), total, plan, reverse=False)
        _causal_kernels().causal_kernel[plan.grid](
            *(q, k, v, *parts, y, log_Z, *strides, *sizes), **_pairs_constants(plan)
        )
    return y, log_Z, *total, *parts


@causal_op.register_fake
def _empty_causal(
    q: Tensor, k: Tensor, v: Tensor, *_: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, heads, length, key_dim = q.shape
    value_dim = v.shape[3]
    splits = _division(q, key_dim, value_dim, _MAX_SPLITS)[0]
    total, parts = _room(q, value_dim, batch, heads), _room(q, value_dim, batch * heads, splits)
    return _like(q, value_dim), _sums(q, batch, heads, length), *total, *parts


@torch.library.custom_op("yolo_lat::ela_causal_backward", mutates_args=())
def causal_backward_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    y: Tensor,
    log_Z: Tensor,
    S_before: Tensor,
    C_before: Tensor,
    m_before: Tensor,
    dy: Tensor,
    A_last: Tensor | None,
    B_last: Tensor | None,
    last: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return dq, dk and dv in the inputs' dtypes and order of axes, and float32 A_1, B_1 and their scale.

    A_last, B_last and last are A and B after the last token and their scale, None for none.
    """
    batch, heads, length, key_dim = q.shape
    value_dim = v.shape[3]
    dq, dk, dv = _like(q, key_dim), _like(k, key_dim), _like(v, value_dim)
    plan = _plan(q, k, v, y, dy, dq, dk, dv)
    total, parts = _room(q, value_dim, batch, heads), _room(q, value_dim, batch * heads, plan.splits)
    r = torch.empty_like(log_Z)
    sizes = heads, length, plan.splits, plan.tokens
    constants = _pairs_constants(plan)
    query_strides = (stride for x in (q, k, v, y, dy, dq) for stride in x.stride())
    key_strides = (stride for x in (q, k, v, dy, dk, dv) for stride in x.stride())
    with torch.cuda.device_of(q):
        _causal_kernels().causal_query_backward_kernel[plan.grid](
            *(q, k, v, y, log_Z, dy, S_before, C_before, m_before, dq, r, *parts, *query_strides, *sizes), **constants
        )
        _scan(parts, (A_last, B_last, last), total, plan, reverse=True)
        _causal_kernels().causal_key_backward_kernel[plan.grid](
            *(q, k, v, log_Z, dy, r, *parts, dk, dv, *key_strides, *sizes), **constants
        )
    return dq, dk, dv, *total


@causal_backward_op.register_fake
def _empty_causal_gradients(
    q: Tensor, k: Tensor, v: Tensor, *_: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _like(q, q.shape[3]), _like(k, k.shape[3]), _like(v, v.shape[3]), *_room(q, v.shape[3], *q.shape[:2])


def _save_causal(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    y, log_Z, _, _, log_scale, *before = output
    ctx.save_for_backward(*inputs[:3], y, log_Z, *before, log_scale, inputs[5])
    ctx.mark_non_differentiable(log_Z, log_scale, *before)
    ctx.set_materialize_grads(False)


def _causal_gradients(
    ctx: Any, dy: Tensor | None, _: None, dS: Tensor | None, dC: Tensor | None, *rest: None
) -> tuple[Tensor | None, ...]:
    *saved, log_scale, first = ctx.saved_tensors
    y = saved[3]
    after: tuple[Tensor | None, ...] = None, None, None
    if dS is not None or dC is not None:
        dS = y.new_zeros(*log_scale.shape, y.shape[3], dtype=torch.float32) if dS is None else dS
        after = dS, torch.zeros_like(log_scale) if dC is None else -dC, -log_scale
    dy = torch.zeros_like(y) if dy is None else dy
    dq, dk, dv, A, B, scale = causal_backward_op(*saved, dy, *after)
    if first is None:
        return dq, dk, dv, None, None, None
    scale = (first + scale).exp()
    return dq, dk, dv, scale.unsqueeze(-1) * A, -scale * B, None


causal_op.register_autograd(_causal_gradients, setup_context=_save_causal)


def _launch_step(q: Tensor, k: Tensor, v: Tensor, old: Sums, new: Sums) -> Tensor:
    """Write the state after one more token over `new`, of the strides of `old`, and return y."""
    batch, heads, _, key_dim = q.shape
    value_dim = v.shape[3]
    y = q.new_empty(batch, heads, 1, value_dim)
    dp, dvp = (max(16, _power_of_two(n)) for n in (key_dim, value_dim))
    strides = (stride for x in (q, k, v) for axis, stride in enumerate(x.stride()) if axis != 2)
    with torch.cuda.device_of(q):
        _causal_kernels().step_kernel[(batch * heads,)](
            *(q, k, v, *old, y, *new, *strides, *(stride for x in old for stride in x.stride()), heads),
            **{"D": key_dim, "DV": value_dim, "DP": dp, "DVP": dvp, "num_warps": min(dp * dvp // 256, 4)},
        )
    return y


@torch.library.custom_op("yolo_lat::ela_step", mutates_args=())
def step_op(
    q: Tensor, k: Tensor, v: Tensor, S: Tensor, C: Tensor, log_scale: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attend from q (B, H, 1, D) to k, v (B, H, 1, Dv) and a float32 state; returns y and the state with them added."""
    old = S.contiguous(), C.contiguous(), log_scale.contiguous()
    new = torch.empty_like(old[0]), torch.empty_like(old[1]), torch.empty_like(old[2])
    return _launch_step(q, k, v, old, new), *new


@step_op.register_fake
def _empty_step(
    q: Tensor, k: Tensor, v: Tensor, S: Tensor, C: Tensor, log_scale: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _empty_step_output(q, k, v), _sums(q, *S.shape), _sums(q, *C.shape), _sums(q, *C.shape)


@torch.library.custom_op("yolo_lat::ela_step_", mutates_args=("S", "C", "log_scale"))
def step_in_place_op(q: Tensor, k: Tensor, v: Tensor, S: Tensor, C: Tensor, log_scale: Tensor) -> Tensor:
    """Do what `step_op` does, and leave the new state in the memory of the old one, whatever its strides are."""
    return _launch_step(q, k, v, (S, C, log_scale), (S, C, log_scale))


@step_in_place_op.register_fake
def _empty_step_output(q: Tensor, k: Tensor, v: Tensor, *_: Tensor) -> Tensor:
    return q.new_empty(*q.shape[:3], v.shape[3])
