"""Causal exact linear attention: every token attends to itself and those before it, in O(L).

The state after token i is S_i = sum_{j<=i} psi_j v_jᵀ, C_i = sum_{j<=i} psi_j (paper, section 1), and y_i is what query
i reads in it. A state for every token would be a tensor (L, D_phi, Dv). The parallel form needs none: tokens go in
chunks, a query attends to the tokens of its chunk by their pairs and to everything before by one state,

    y_i = (sum_{j<=i in chunk} (phi_i·psi_j) v_j + phi_i S) / (sum_{j<=i in chunk} phi_i·psi_j + phi_i·C),

S and C from the chunks before. Those states are prefix sums over chunks, formed the same way one level up, in groups of
chunks, and groups of groups, so that a million tokens take four levels and no loop over tokens.

For a `LogKernel` a sum up to chunk n is held on the scale exp(m_n), m_n the largest logarithm so far: weights of what
came earlier are exp(m_t - m_n) <= 1. Nothing overflows whatever L is, and what is new is never scaled away. Within one
chunk logarithms of a feature may rise by 80 before the tokens ahead of the rise vanish in float32.

What is written out here is the plain form. `yolo_lat.ela.causal_fused` computes the same in fewer steps on CUDA.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from yolo_lat.ela import causal_fused
from yolo_lat.ela.attention import ELAState, ela_state, no_autocast, wide
from yolo_lat.ela.fused import choose_form
from yolo_lat.ela.kernels import HadamardExp, Kernel, LogKernel

CHUNK = 64  # tokens whose pairs are formed, and states that are summed at once


@dataclass(frozen=True)
class _Sums:
    """Sums over tokens at N places: S (B, H, N, D_phi, Dv) and C (B, H, N, D_phi), both divided by exp(m).

    `last` (B, 1, N) is the sequence that they belong to; sums of another one have no share in what follows. Kernels
    without logarithms have m = 0.
    """

    S: Tensor
    C: Tensor
    m: Tensor
    last: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> _Sums:
        """Return what a function that leaves the other axes alone makes of each."""
        return _Sums(*(function(x) for x in (self.S, self.C, self.m, self.last)))

    def shifted(self, first: _Sums) -> _Sums:
        """Return what stands one place earlier, `first` at the first."""
        pairs = zip((first.S, first.C, first.m, first.last), (self.S, self.C, self.m, self.last), strict=True)
        return _Sums(*(torch.cat([a, b[:, :, :-1]], dim=2) for a, b in pairs))

    def after(self, ahead: _Sums) -> _Sums:
        """Add at every place what came ahead of it, where that is of the same sequence."""
        same = (ahead.last == self.last).unsqueeze(-1)
        m = torch.where(same, torch.maximum(ahead.m, self.m), self.m)
        a, b = (ahead.m.minimum(m) - m).exp() * same, (self.m - m).exp()
        return _Sums(a.unsqueeze(-1) * ahead.S + b.unsqueeze(-1) * self.S, a * ahead.C + b * self.C, m, self.last)


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kernel: Kernel | None = None,
    state: ELAState | None = None,
    segments: Tensor | None = None,
    mask: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, ELAState]:
    """Attend causally, y_i = sum_{j<=i} k(q_i, k_j) v_j / sum_{j<=i} k(q_i, k_j), in the parallel form.

    Args:
        q: queries (B, H, L, D).
        k: keys (B, H, L, D).
        v: values (B, H, L, Dv).
        kernel: defaults to `HadamardExp()`.
        state: of tokens before these, as an earlier call returned it; None for none.
        segments: (B, L) integers, packed sequences: tokens attend within their own, which must be contiguous. The first
            segment goes on from `state`.
        mask: (B, L) bool, True for keys that count; None counts all. Where no key counts yet y is 0.
        chunk: tokens whose pairs are formed; a matter of speed, and of the plain form alone.

    Returns:
        y (B, H, L, Dv) in q's dtype, and the state after the last token (of its segment), from which decoding goes on:
        `state + ela_state(k_next, v_next)`, then `.query(q_next)`. Half precisions are summed in float32.

    Raises:
        ValueError: shapes or dtypes that do not belong together, or a state of another kernel, batch or heads.
    """
    kernel = kernel or HadamardExp()
    _check(q, k, v, kernel, state, chunk)
    for name, given, kind in (("segments", segments, "integer"), ("mask", mask, "bool")):
        if given is None:
            continue
        fits = given.dtype == torch.bool if kind == "bool" else not (given.is_floating_point() or given.is_complex())
        if not fits or given.shape != (k.shape[0], k.shape[2]):
            got = f"{given.dtype} {tuple(given.shape)}"
            raise ValueError(f"{name} must be {kind} (B, L), got {got} for k {tuple(k.shape)}")
    if _fused(q, k, v, kernel, state, mask, segments):
        y, (S, C, log_scale) = causal_fused.attend(q, k, v, None if state is None else _sums(state))
        return y, ELAState(S, C, kernel, log_scale)
    batch, heads, length, width = v.shape
    if length == 1 and segments is None and mask is None and not torch.is_grad_enabled():  # a step of decoding
        token = ela_state(k, v, kernel)
        state = token if state is None else state + token
        return state.query(q), state
    chunk = min(chunk, max(length, 2))
    places = -(-length // chunk)
    with no_autocast(q.device.type):
        logarithmic = isinstance(kernel, LogKernel)
        if isinstance(kernel, LogKernel):
            phi, psi = kernel.log_phi(wide(q)), kernel.log_psi(wide(k))
        else:
            phi, psi = kernel.phi(wide(q)), kernel.psi(wide(k))
        least = float(torch.finfo(psi.dtype).min / 4) if logarithmic else 0.0  # the scale of no tokens at all

        def cut(x: Tensor) -> Tensor:
            return F.pad(x, (0, 0, 0, places * chunk - length)).reshape(batch, heads, places, chunk, x.shape[-1])

        counts = torch.ones_like(k[:, 0, :, 0], dtype=torch.bool) if mask is None else mask
        counts = F.pad(counts, (0, places * chunk - length)).reshape(batch, 1, places, chunk)
        f, g, values = cut(phi), cut(psi).masked_fill(~counts.unsqueeze(-1), least), cut(wide(v))
        ids = torch.zeros_like(k[:, 0, :, 0], dtype=torch.long) if segments is None else segments.long()
        ids = torch.cat([ids, ids[:, -1:].expand(batch, places * chunk - length)], dim=1)
        ids = ids.reshape(batch, 1, places, chunk)
        first = _first(state, g, width, ids[..., 0, :1], least)

        # A chunk leaves the sums of its last sequence to those that follow.
        stays = (counts & (ids == ids[..., -1:])).unsqueeze(-1)
        own = g.detach().masked_fill(~stays, least).amax(-2) if logarithmic else torch.zeros_like(g[..., 0, :])
        kept = ((g - own.unsqueeze(-2)).exp() if logarithmic else g) * stays
        local = _Sums(kept.transpose(-1, -2) @ values, kept.sum(-2), own, ids[..., -1])
        prefix = _prefix(local, first, chunk, least)
        before = prefix.shifted(first)

        # Its queries read what came before and its own tokens, all on one scale.
        m = before.m
        if logarithmic:
            m = torch.maximum(before.m, g.detach().amax(-2))
            logits = f + m.unsqueeze(-2)
            f, g = (logits - logits.detach().amax(-1, keepdim=True)).exp(), (g - m.unsqueeze(-2)).exp()
        fade = (before.m - m).exp()
        seen = (ids.unsqueeze(-1) == ids.unsqueeze(-2)) & counts.unsqueeze(-2)
        pairs = (f @ g.transpose(-1, -2) * seen).tril()
        goes_on = f * (ids == before.last.unsqueeze(-1)).unsqueeze(-1)
        total = pairs.sum(-1, keepdim=True) + goes_on @ (fade * before.C).unsqueeze(-1)
        y = (pairs @ values + goes_on @ (fade.unsqueeze(-1) * before.S)) / torch.where(total == 0, 1, total)
        y = y.reshape(batch, heads, places * chunk, width)[:, :, :length].to(q.dtype)
    S, C, m = prefix.S[:, :, -1], prefix.C[:, :, -1], prefix.m[:, :, -1]
    return y, ELAState(S, C, kernel, m if logarithmic else None)


def ela_step_(q: Tensor, k: Tensor, v: Tensor, state: ELAState) -> Tensor:
    """Add one token to a state in place and attend from it, y = sum_j k(q, k_j) v_j / sum_j k(q, k_j).

    The state's tensors stay where they are in memory, so that a CUDA graph of this function can be replayed token by
    token. No gradient passes through it.

    Args:
        q: query (B, H, 1, D).
        k: key (B, H, 1, D).
        v: value (B, H, 1, Dv).
        state: of the tokens so far, of any kernel. Decoding from nothing on starts with that of a token under a mask of
            False.

    Returns:
        y (B, H, 1, Dv) in q's dtype, the token itself being attended to as well.

    Raises:
        ValueError: shapes that do not belong together, a state whose heads share memory, or a gradient asked for.
    """
    kernel, S = state.kernel, state.S
    _check(q, k, v, kernel, state, CHUNK)
    sums = [x for x in (S, state.C, state.log_scale) if x is not None]
    if k.shape[2] != 1:
        raise ValueError(f"a step takes one token, got v {tuple(v.shape)}")
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, *sums)):
        raise ValueError("ela_step_ has no gradient; call it under torch.no_grad(), or causal_attention in its place")
    if any(stride == 0 < size - 1 for x in sums for size, stride in zip(x.shape, x.stride(), strict=True)):
        raise ValueError("the state's heads share memory, as after expand(), and a step in place needs a clone of them")
    if _fused(q, k, v, kernel, state):
        return causal_fused.step_in_place_op(q, k, v, *_sums(state))
    after = state + ela_state(k, v, kernel)
    for old, new in zip(sums, (after.S, after.C, after.log_scale), strict=False):
        assert new is not None
        old.copy_(new)
    return after.query(q)


def _fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kernel: Kernel,
    state: ELAState | None,
    mask: Tensor | None = None,
    segments: Tensor | None = None,
) -> bool:
    obstacle = None
    if mask is not None:
        obstacle = "a mask hides tokens"
    elif segments is not None:
        obstacle = "sequences are packed"
    elif not q.dtype == k.dtype == v.dtype:
        obstacle = f"queries are {q.dtype}, keys {k.dtype} and values {v.dtype}"
    elif k.numel() == 0 or v.numel() == 0:
        obstacle = "there are no tokens"
    elif state is not None and state.S.dtype != torch.float32:
        obstacle = f"only states in float32 are fused, and this is {state.S.dtype}"
    elif state is not None and state.S.shape != (*k.shape[:2], k.shape[3], v.shape[3]):
        obstacle = f"keys {tuple(k.shape)} and values {tuple(v.shape)} do not fit a state {tuple(state.S.shape)}"
    return choose_form(kernel, k.device, k.dtype, (k.shape[3], v.shape[3]), obstacle).form == "fused"


def _sums(state: ELAState) -> causal_fused.Sums:
    assert state.log_scale is not None
    return state.S, state.C, state.log_scale


def _check(q: Tensor, k: Tensor, v: Tensor, kernel: Kernel, state: ELAState | None, chunk: int) -> None:
    if k.dim() != 4 or v.dim() != 4 or q.shape != k.shape or k.shape[:3] != v.shape[:3] or not k.shape[2]:
        raise ValueError(
            f"q and k must be (B, H, L, D) and v (B, H, L, Dv) with L from 1, got {tuple(q.shape)}, {tuple(k.shape)} "
            f"and {tuple(v.shape)}"
        )
    if state is not None and type(state.kernel) is not type(kernel):
        raise ValueError(f"the state was made with {state.kernel} and cannot go on with {kernel}")
    S = None if state is None else state.S
    if S is not None and (S.dim() != 4 or (*S.shape[:2], S.shape[3]) != (*v.shape[:2], v.shape[3])):
        raise ValueError(f"keys {tuple(k.shape)} and values {tuple(v.shape)} do not fit a state {tuple(S.shape)}")
    if chunk < 2:
        raise ValueError(f"chunk={chunk} leaves nothing to do at once; use 2 or more, such as {CHUNK}")


def _first(state: ELAState | None, g: Tensor, width: int, sequence: Tensor, least: float) -> _Sums:
    """Return the sums before the first chunk, at one place."""
    batch, heads, features = *g.shape[:2], g.shape[-1]
    if state is None:
        S = g.new_zeros(batch, heads, 1, features, width)
        return _Sums(S, S[..., 0], torch.full_like(S[..., 0], least), sequence)
    m = torch.zeros_like(state.C) if state.log_scale is None else state.log_scale.detach()
    S, C, m = (x.unsqueeze(2).to(g.dtype) for x in (state.S, state.C, m))
    return _Sums(S, C, m, sequence)


def _prefix(local: _Sums, first: _Sums, group: int, least: float) -> _Sums:
    """Return at every place the sums up to and including it, `first` among them.

    In a group every place weighs those up to it, by (g, g) weights for each feature; what came before a group is a
    prefix sum over groups, formed by this function again.
    """
    count = local.C.shape[2]
    groups = -(-count // group)
    missing = groups * group - count

    def split(x: Tensor, fill: float = 0.0) -> Tensor:
        padded = torch.cat([x, torch.full_like(x[:, :, -1:], fill).expand(-1, -1, missing, *x.shape[3:])], dim=2)
        return padded.reshape(*x.shape[:2], groups, group, *x.shape[3:])

    last = torch.cat([local.last, local.last[..., -1:].expand(-1, -1, missing)], dim=2)
    last = last.reshape(*last.shape[:2], groups, group)
    S, C, m = split(local.S), split(local.C), split(local.m, least)
    seen = (last.unsqueeze(-1) == last.unsqueeze(-2)).tril().unsqueeze(-1)  # (B, 1, G, n, t, 1)
    top = m.unsqueeze(3).masked_fill(~seen, least).amax(4) if least else m
    weights = (m.unsqueeze(3) - top.unsqueeze(4)).masked_fill(~seen, -torch.inf).exp()
    S = torch.einsum("bhgntd,bhgtdv->bhgndv", weights, S)
    within = _Sums(S, torch.einsum("bhgntd,bhgtd->bhgnd", weights, C), top, last)
    ahead = first.map(lambda x: x.unsqueeze(2))
    if groups > 1:
        ends = _Sums(within.S[:, :, :, -1], within.C[:, :, :, -1], within.m[:, :, :, -1], within.last[..., -1])
        ahead = _prefix(ends, first, group, least).shifted(first).map(lambda x: x.unsqueeze(3))
    return within.after(ahead).map(lambda x: x.flatten(2, 3)[:, :, :count])
