# mypy: allow-untyped-defs
"""Triton kernels of causal attention with `HadamardExp`; `causal_fused.py` launches them and has the formulas.

They build on those of `triton_kernels.py` and keep to its conventions. A sequence is cut into splits, one program each,
which goes through its tokens in blocks: what came before a block is read in a state (S, C, m), held on the scale exp(m)
of each feature's largest logarithm so far, and the block itself by its pairs, exp(q_i + c)·exp(k_j - c), c being what
is largest in the block. Those two factors span e^±80, which float16 does not, so that half precisions multiply them as
TF32, whose mantissa is float16's.
"""

from __future__ import annotations

import triton
import triton.language as tl

from yolo_lat.ela.triton_kernels import _INTERPRETED, _at, _dot, _exp, _head, _log_sums, _means, _unit

_LOWEST = tl.constexpr(-1e38)  # the scale of no tokens at all; finite, so that differences are never NaN


@triton.jit
def _dot_wide(a, b, HALF: tl.constexpr):
    """Multiply float32 matrices whose entries a half precision cannot hold."""
    if _INTERPRETED or not HALF:
        return tl.dot(a, b, input_precision="ieee")
    return tl.dot(a, b, input_precision="tf32")


@triton.jit
def _operand(x, HALF: tl.constexpr, dtype: tl.constexpr):
    """Return a matrix over its largest magnitude, rounded to the tokens' dtype, and that magnitude."""
    operand, size = _unit(x)
    if HALF:
        operand = operand.to(dtype)
    return operand, size


@triton.jit
def _peak(logs):
    """Return the largest logarithm of each feature in a block, and the block's features on that scale."""
    peak = tl.maximum(tl.max(logs, 0), _LOWEST)
    return peak, _exp(logs - peak[None, :])


@triton.jit
def _extend(S, C, m, features, peak, values, counts, HALF: tl.constexpr):
    """Add a block to sums: S of features times values, C of features times counts, m the largest logarithm."""
    top = tl.maximum(m, peak)
    fade = _exp(m - top)
    psi = features * _exp(peak - top)[None, :]
    if HALF:
        psi = psi.to(values.dtype)
    S = S * fade[:, None] + _dot(tl.trans(psi), values, HALF, values.dtype)
    # C is a sum of the very numbers, rounded or not, that weigh the values in S.
    C = C * fade + tl.sum(psi.to(tl.float32) * counts[:, None], 0)
    return S, C, top


@triton.jit
def scan_kernel(
    S_parts,
    C_parts,
    peaks,
    S_first,
    C_first,
    first,
    S,
    C,
    m,
    splits,
    D: tl.constexpr,
    DV: tl.constexpr,
    DVP: tl.constexpr,
    TILE: tl.constexpr,
    GIVEN: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """Replace the sums of every split by those of all splits ahead of it, for one feature of one head.

    Ahead are the splits before it, or those behind it if REVERSE, and what S_first, C_first and first hold if GIVEN.
    The sums of everything go to S, C and m.
    """
    row = tl.program_id(0).to(tl.int64)
    n, e = tl.arange(0, TILE), tl.arange(0, DVP)
    top = tl.full((), _LOWEST, tl.float32)
    total = tl.zeros((), tl.float32)
    weighted = tl.zeros((DVP,), tl.float32)
    if GIVEN:
        top = tl.load(first + row)
        total = tl.load(C_first + row)
        weighted = tl.load(S_first + row * DV + e, mask=e < DV, other=0.0)
    ahead = n[:, None] > n[None, :]
    for start in range(0, splits, TILE):
        place = start + n
        exists = place < splits
        split = splits - 1 - place if REVERSE else place
        part = (row // D * splits + split) * D + row % D
        entry = part[:, None] * DV + e[None, :]
        known = exists[:, None] & (e[None, :] < DV)
        tops = tl.load(peaks + part, mask=exists, other=_LOWEST)
        totals = tl.load(C_parts + part, mask=exists, other=0.0)
        sums = tl.load(S_parts + entry, mask=known, other=0.0)

        level = tl.maximum(top, tl.max(tl.where(ahead, tops[None, :], _LOWEST), 1))
        weights = _exp(tl.where(ahead, tops[None, :] - level[:, None], float("-inf")))
        fade = _exp(top - level)
        tl.store(peaks + part, level, mask=exists)
        tl.store(C_parts + part, tl.sum(weights * totals[None, :], 1) + fade * total, mask=exists)
        tl.store(S_parts + entry, _dot_wide(weights, sums, False) + fade[:, None] * weighted[None, :], mask=known)

        new_top = tl.maximum(top, tl.max(tops, 0))
        weight, fade = _exp(tops - new_top), _exp(top - new_top)
        total = total * fade + tl.sum(weight * totals, 0)
        weighted = weighted * fade + tl.sum(weight[:, None] * sums, 0)
        top = new_top
    tl.store(m + row, top)
    tl.store(C + row, total)
    tl.store(S + row * DV + e, weighted, mask=e < DV)


@triton.jit
def causal_kernel(
    q,
    k,
    v,
    S_before,
    C_before,
    m_before,
    y,
    log_Z,
    q_b,
    q_h,
    q_l,
    q_d,
    k_b,
    k_h,
    k_l,
    k_d,
    v_b,
    v_h,
    v_l,
    v_d,
    y_b,
    y_h,
    y_l,
    y_d,
    H,
    L,
    splits,
    tokens,
    D: tl.constexpr,
    DV: tl.constexpr,
    DP: tl.constexpr,
    DVP: tl.constexpr,
    BLOCK: tl.constexpr,
    ALIGN: tl.constexpr,
    ALIGN_L: tl.constexpr,
    HALF: tl.constexpr,
):
    """Write y and log Z for a split's tokens, from the sums before that split."""
    program = tl.program_id(0)
    sequence = program // splits
    first = (program % splits) * tokens
    L = L // ALIGN_L * ALIGN_L  # changes nothing, see _times
    q = _head(q, sequence // H, sequence % H, q_b, q_h, ALIGN)
    k = _head(k, sequence // H, sequence % H, k_b, k_h, ALIGN)
    v = _head(v, sequence // H, sequence % H, v_b, v_h, ALIGN)
    y = _head(y, sequence // H, sequence % H, y_b, y_h, ALIGN)
    log_Z += sequence.to(tl.int64) * L
    d, e, block = tl.arange(0, DP), tl.arange(0, DVP), tl.arange(0, BLOCK)
    part = program.to(tl.int64) * D + d
    known = (d[:, None] < D) & (e[None, :] < DV)

    m = tl.load(m_before + part, mask=d < D, other=_LOWEST)
    C = tl.load(C_before + part, mask=d < D, other=0.0)
    S = tl.load(S_before + part[:, None] * DV + e[None, :], mask=known, other=0.0)
    ones = tl.full((BLOCK,), 1.0, tl.float32)
    seen = block[:, None] >= block[None, :]
    for start in range(first, tl.minimum(first + tokens, L), BLOCK):
        rows = start + block
        inside = rows[:, None] < L
        keep_k, keep_v = inside & (d[None, :] < D), inside & (e[None, :] < DV)
        queries = tl.load(_at(q, rows, d, q_l, q_d, ALIGN), mask=keep_k, other=0.0).to(tl.float32)
        keys = tl.load(_at(k, rows, d, k_l, k_d, ALIGN), mask=keep_k, other=float("-inf")).to(tl.float32)
        values = tl.load(_at(v, rows, e, v_l, v_d, ALIGN), mask=keep_v, other=0.0)

        peak, g = _peak(keys)
        own = queries + peak[None, :]
        own_top = tl.max(own, 1)
        f = _exp(own - own_top[:, None])
        pairs = tl.where(seen, _dot_wide(f, tl.trans(g), HALF), 0.0)
        weight = tl.sum(pairs, 1)
        counts = weight > 1e-37  # what is less has vanished beside keys to come, and so are factors beyond e^85
        logits = queries + _log_sums(C, m)[None, :]
        own_level = tl.where(counts, own_top + tl.log(tl.where(counts, weight, 1.0)), float("-inf"))
        level = tl.maximum(tl.max(logits, 1), own_level)
        level = tl.where(level == float("-inf"), 0.0, level)
        p = _exp(logits - level[:, None])
        share, scale = tl.sum(p, 1), _exp(tl.where(counts, own_top - level, float("-inf")))
        total = share + weight * scale
        inverse = 1.0 / tl.where(total == 0, 1.0, total)
        # An infinite sum makes every weight 0 in the backward pass, where those factors would overflow.
        log_total = tl.where(counts, level + tl.log(tl.where(counts, total, 1.0)), float("inf"))

        U, centre = _means(S, C, D)
        operand, size = _operand(U, HALF, values.dtype)
        result = _dot(p * inverse[:, None], operand, HALF, values.dtype) * size
        result += (share * inverse)[:, None] * centre[None, :]
        result += _dot(pairs * (scale * inverse)[:, None], values, HALF, values.dtype)
        tl.store(_at(y, rows, e, y_l, y_d, ALIGN), result.to(y.dtype.element_ty), mask=keep_v)
        tl.store(log_Z + rows, log_total, mask=rows < L)
        S, C, m = _extend(S, C, m, g, peak, values, ones, HALF)


@triton.jit
def causal_query_backward_kernel(
    q,
    k,
    v,
    y,
    log_Z,
    dy,
    S_before,
    C_before,
    m_before,
    dq,
    r,
    A_parts,
    B_parts,
    peaks,
    q_b,
    q_h,
    q_l,
    q_d,
    k_b,
    k_h,
    k_l,
    k_d,
    v_b,
    v_h,
    v_l,
    v_d,
    y_b,
    y_h,
    y_l,
    y_d,
    dy_b,
    dy_h,
    dy_l,
    dy_d,
    dq_b,
    dq_h,
    dq_l,
    dq_d,
    H,
    L,
    splits,
    tokens,
    D: tl.constexpr,
    DV: tl.constexpr,
    DP: tl.constexpr,
    DVP: tl.constexpr,
    BLOCK: tl.constexpr,
    ALIGN: tl.constexpr,
    ALIGN_L: tl.constexpr,
    HALF: tl.constexpr,
):
    """Write dq and r for a split's tokens, and the split's own A (B·H, splits, D, DV), B and peak (B·H, splits, D)."""
    program = tl.program_id(0)
    sequence = program // splits
    first = (program % splits) * tokens
    L = L // ALIGN_L * ALIGN_L  # changes nothing, see _times
    q = _head(q, sequence // H, sequence % H, q_b, q_h, ALIGN)
    k = _head(k, sequence // H, sequence % H, k_b, k_h, ALIGN)
    v = _head(v, sequence // H, sequence % H, v_b, v_h, ALIGN)
    y = _head(y, sequence // H, sequence % H, y_b, y_h, ALIGN)
    dy = _head(dy, sequence // H, sequence % H, dy_b, dy_h, ALIGN)
    dq = _head(dq, sequence // H, sequence % H, dq_b, dq_h, ALIGN)
    log_Z += sequence.to(tl.int64) * L
    r += sequence.to(tl.int64) * L
    d, e, block = tl.arange(0, DP), tl.arange(0, DVP), tl.arange(0, BLOCK)
    part = program.to(tl.int64) * D + d
    known = (d[:, None] < D) & (e[None, :] < DV)

    m = tl.load(m_before + part, mask=d < D, other=_LOWEST)
    C = tl.load(C_before + part, mask=d < D, other=0.0)
    S = tl.load(S_before + part[:, None] * DV + e[None, :], mask=known, other=0.0)
    top = tl.full((DP,), _LOWEST, tl.float32)
    B = tl.zeros((DP,), tl.float32)
    A = tl.zeros((DP, DVP), tl.float32)
    ones = tl.full((BLOCK,), 1.0, tl.float32)
    seen = block[:, None] >= block[None, :]
    for start in range(first, tl.minimum(first + tokens, L), BLOCK):
        rows = start + block
        inside = rows[:, None] < L
        keep_k, keep_v = inside & (d[None, :] < D), inside & (e[None, :] < DV)
        queries = tl.load(_at(q, rows, d, q_l, q_d, ALIGN), mask=keep_k, other=float("-inf")).to(tl.float32)
        keys = tl.load(_at(k, rows, d, k_l, k_d, ALIGN), mask=keep_k, other=float("-inf")).to(tl.float32)
        values = tl.load(_at(v, rows, e, v_l, v_d, ALIGN), mask=keep_v, other=0.0)
        grad = tl.load(_at(dy, rows, e, dy_l, dy_d, ALIGN), mask=keep_v, other=0.0)
        wide_grad = grad.to(tl.float32)
        outputs = tl.load(_at(y, rows, e, y_l, y_d, ALIGN), mask=keep_v, other=0.0).to(tl.float32)
        logs = queries - tl.load(log_Z + rows, mask=rows < L, other=float("inf"))[:, None]

        U, centre = _means(S, C, D)
        operand, size = _operand(U, HALF, values.dtype)
        # Slopes are taken from r on, as they are small in comparison where values have a large part in common.
        change_of_y = tl.sum(wide_grad * outputs, 1)
        slope = _dot(grad, tl.trans(operand), HALF, values.dtype) * size
        slope += (tl.sum(wide_grad * centre[None, :], 1) - change_of_y)[:, None]
        own_slope = _dot(grad, tl.trans(values), HALF, values.dtype) - change_of_y[:, None]
        peak, g = _peak(keys)
        p = _exp(logs + _log_sums(C, m)[None, :])
        f = _exp(logs + peak[None, :])
        change = p * slope + f * _dot_wide(tl.where(seen, own_slope, 0.0), g, HALF)
        if HALF:
            # y was rounded; the sum of dq over features, which is 0, tells how much that changed r.
            error = tl.sum(change, 1)
            change -= (p + f * _dot_wide(tl.where(seen, 1.0, 0.0), g, HALF)) * error[:, None]
            change_of_y += error
        tl.store(_at(dq, rows, d, dq_l, dq_d, ALIGN), change.to(dq.dtype.element_ty), mask=keep_k)
        tl.store(r + rows, change_of_y, mask=rows < L)
        S, C, m = _extend(S, C, m, g, peak, values, ones, HALF)
        peak, w = _peak(logs)
        A, B, top = _extend(A, B, top, w, peak, grad, change_of_y, HALF)

    tl.store(peaks + part, top, mask=d < D)
    tl.store(B_parts + part, B, mask=d < D)
    tl.store(A_parts + part[:, None] * DV + e[None, :], A, mask=known)


@triton.jit
def causal_key_backward_kernel(
    q,
    k,
    v,
    log_Z,
    dy,
    r,
    A_after,
    B_after,
    top_after,
    dk,
    dv,
    q_b,
    q_h,
    q_l,
    q_d,
    k_b,
    k_h,
    k_l,
    k_d,
    v_b,
    v_h,
    v_l,
    v_d,
    dy_b,
    dy_h,
    dy_l,
    dy_d,
    dk_b,
    dk_h,
    dk_l,
    dk_d,
    dv_b,
    dv_h,
    dv_l,
    dv_d,
    H,
    L,
    splits,
    tokens,
    D: tl.constexpr,
    DV: tl.constexpr,
    DP: tl.constexpr,
    DVP: tl.constexpr,
    BLOCK: tl.constexpr,
    ALIGN: tl.constexpr,
    ALIGN_L: tl.constexpr,
    HALF: tl.constexpr,
):
    """Write dk and dv for a split's tokens, last block first, from the sums A, B and their scale after that split."""
    program = tl.program_id(0)
    sequence = program // splits
    first = (program % splits) * tokens
    L = L // ALIGN_L * ALIGN_L  # changes nothing, see _times
    q = _head(q, sequence // H, sequence % H, q_b, q_h, ALIGN)
    k = _head(k, sequence // H, sequence % H, k_b, k_h, ALIGN)
    v = _head(v, sequence // H, sequence % H, v_b, v_h, ALIGN)
    dy = _head(dy, sequence // H, sequence % H, dy_b, dy_h, ALIGN)
    dk = _head(dk, sequence // H, sequence % H, dk_b, dk_h, ALIGN)
    dv = _head(dv, sequence // H, sequence % H, dv_b, dv_h, ALIGN)
    log_Z += sequence.to(tl.int64) * L
    r += sequence.to(tl.int64) * L
    d, e, block = tl.arange(0, DP), tl.arange(0, DVP), tl.arange(0, BLOCK)
    part = program.to(tl.int64) * D + d
    known = (d[:, None] < D) & (e[None, :] < DV)

    top = tl.load(top_after + part, mask=d < D, other=_LOWEST)
    B = tl.load(B_after + part, mask=d < D, other=0.0)
    A = tl.load(A_after + part[:, None] * DV + e[None, :], mask=known, other=0.0)
    seen = block[:, None] <= block[None, :]  # the key is the row here
    blocks = tl.cdiv(tl.minimum(tokens, L - first), BLOCK)
    for step in range(blocks):
        start = first + (blocks - 1 - step) * BLOCK
        rows = start + block
        inside = rows[:, None] < L
        keep_k, keep_v = inside & (d[None, :] < D), inside & (e[None, :] < DV)
        queries = tl.load(_at(q, rows, d, q_l, q_d, ALIGN), mask=keep_k, other=float("-inf")).to(tl.float32)
        keys = tl.load(_at(k, rows, d, k_l, k_d, ALIGN), mask=keep_k, other=float("-inf")).to(tl.float32)
        values = tl.load(_at(v, rows, e, v_l, v_d, ALIGN), mask=keep_v, other=0.0)
        grad = tl.load(_at(dy, rows, e, dy_l, dy_d, ALIGN), mask=keep_v, other=0.0)
        change_of_y = tl.load(r + rows, mask=rows < L, other=0.0)
        logs = queries - tl.load(log_Z + rows, mask=rows < L, other=float("inf"))[:, None]

        operand, size = _operand(A, HALF, values.dtype)
        # v Aᵀ and B nearly cancel where values have a large part in common; what rounding A does to that is undone.
        centre = tl.sum(values.to(tl.float32), 0) / tl.minimum(BLOCK, L - start)
        lost = tl.sum((A - operand.to(tl.float32) * size) * centre[None, :], 1)
        p = _exp(keys + top[None, :])
        slope = _dot(values, tl.trans(operand), HALF, values.dtype) * size + (lost - B)[None, :]
        peak, w = _peak(logs)
        f = _exp(keys + peak[None, :])
        pairs = tl.where(seen, _dot_wide(f, tl.trans(w), HALF), 0.0)
        own_slope = _dot(values, tl.trans(grad), HALF, values.dtype) - change_of_y[None, :]
        change = p * slope + f * _dot_wide(tl.where(seen, own_slope, 0.0), w, HALF)
        tl.store(_at(dk, rows, d, dk_l, dk_d, ALIGN), change.to(dk.dtype.element_ty), mask=keep_k)
        change = _dot(p, operand, HALF, values.dtype) * size + _dot(pairs, grad, HALF, values.dtype)
        tl.store(_at(dv, rows, e, dv_l, dv_d, ALIGN), change.to(dv.dtype.element_ty), mask=keep_v)
        A, B, top = _extend(A, B, top, w, peak, grad, change_of_y, HALF)


@triton.jit
def step_kernel(
    q,
    k,
    v,
    S,
    C,
    m,
    y,
    new_S,
    new_C,
    new_m,
    q_b,
    q_h,
    q_d,
    k_b,
    k_h,
    k_d,
    v_b,
    v_h,
    v_d,
    S_b,
    S_h,
    S_d,
    S_e,
    C_b,
    C_h,
    C_d,
    m_b,
    m_h,
    m_d,
    H,
    D: tl.constexpr,
    DV: tl.constexpr,
    DP: tl.constexpr,
    DVP: tl.constexpr,
):
    """Add one token to the state of one head and attend from it; y (B·H, DV) is contiguous.

    The new sums have the strides of the old ones and may be the same memory.
    """
    sequence = tl.program_id(0)
    batch, head = sequence // H, sequence % H
    d, e = tl.arange(0, DP), tl.arange(0, DVP)
    keep, keep_v = d < D, e < DV
    known = keep[:, None] & keep_v[None, :]
    query = tl.load(_head(q, batch, head, q_b, q_h, 1) + d * q_d, mask=keep, other=0.0).to(tl.float32)
    key = tl.load(_head(k, batch, head, k_b, k_h, 1) + d * k_d, mask=keep, other=float("-inf")).to(tl.float32)
    value = tl.load(_head(v, batch, head, v_b, v_h, 1) + e * v_d, mask=keep_v, other=0.0).to(tl.float32)
    scale = tl.load(_head(m, batch, head, m_b, m_h, 1) + d * m_d, mask=keep, other=_LOWEST)
    total = tl.load(_head(C, batch, head, C_b, C_h, 1) + d * C_d, mask=keep, other=0.0)
    weighted = tl.load(_at(_head(S, batch, head, S_b, S_h, 1), d, e, S_d, S_e, 1), mask=known, other=0.0)

    top = tl.maximum(scale, key)
    fade, psi = _exp(scale - top), _exp(key - top)
    total = total * fade + psi
    weighted = weighted * fade[:, None] + psi[:, None] * value[None, :]
    logits = query + _log_sums(total, top)
    level = tl.max(logits, 0)
    level = tl.where(level == float("-inf"), 0.0, level)
    weight = _exp(query + top - level)
    share = tl.sum(weight * total, 0)
    result = tl.sum(weight[:, None] * weighted, 0) / tl.where(share == 0, 1.0, share)

    tl.store(y + sequence.to(tl.int64) * DV + e, result.to(y.dtype.element_ty), mask=keep_v)
    tl.debug_barrier()  # every thread has read what the others now write
    tl.store(_head(new_m, batch, head, m_b, m_h, 1) + d * m_d, top, mask=keep)
    tl.store(_head(new_C, batch, head, C_b, C_h, 1) + d * C_d, total, mask=keep)
    tl.store(_at(_head(new_S, batch, head, S_b, S_h, 1), d, e, S_d, S_e, 1), weighted, mask=known)
