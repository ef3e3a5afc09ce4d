# mypy: allow-untyped-defs
"""Triton kernels of exact linear attention with `HadamardExp`; `fused.py` launches them and has the formulas.

All of them stream tokens (B, H, L, width) of any strides through tiles of BLOCK tokens and keep everything else in
registers. Widths are padded to powers of two of at least 16 (DP, DVP), as matrix products want them. Reductions over
tokens end in one partial result for each split of L; a second kernel combines the splits in a fixed order, so that
results do not depend on which program finishes first.

HALF says that the tokens are float16 or bfloat16. Products then take operands of that type and sum in float32. For
float32 tokens products are float32 throughout, without TF32.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _probe():
    pass


INTERPRETED = not isinstance(_probe, triton.JITFunction)  # whether TRITON_INTERPRET was set when this was imported
_INTERPRETED = tl.constexpr(INTERPRETED)


@triton.jit
def _exp(x):
    """Return exp(x) of float32, with results below 2⁻¹²⁶ flushed to 0, which saves three instructions of five."""
    x = x * 1.4426950408889634
    if _INTERPRETED:
        return tl.exp2(x)
    return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)


@triton.jit
def _unit(x):
    """Return x over its largest magnitude, which the narrow range of float16 asks for, and that magnitude."""
    size = tl.max(tl.abs(x))
    size = tl.where(size == 0, 1.0, size)
    return x / size, size


@triton.jit
def _dot(a, b, HALF: tl.constexpr, dtype: tl.constexpr):
    """Multiply matrices with float32 sums, operands rounded to the tokens' dtype where that is a half precision."""
    if HALF:
        a, b = a.to(dtype), b.to(dtype)
    if _INTERPRETED or not HALF:  # the interpreter cannot multiply bfloat16
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b)


@triton.jit
def _times(index, stride, ALIGN: tl.constexpr):
    """Multiply in 64 bits, as B·H·L·D may exceed 2³¹, and tell the compiler that a stride is a multiple of ALIGN.

    Triton finds multiples of 16 by itself, which rows of 8 are not, and turns a stride of 1 into a constant.
    """
    if isinstance(stride, tl.tensor):
        stride = stride // ALIGN * ALIGN
    return index.to(tl.int64) * stride


@triton.jit
def _head(pointer, batch, head, stride_b, stride_h, ALIGN: tl.constexpr):
    return pointer + _times(batch, stride_b, ALIGN) + _times(head, stride_h, ALIGN)


@triton.jit
def _at(pointer, rows, columns, stride_row, stride_column, ALIGN: tl.constexpr):
    return pointer + _times(rows, stride_row, ALIGN)[:, None] + _times(columns, stride_column, ALIGN)[None, :]


@triton.jit
def _log_sums(C, log_scale):
    """Return log(sum_j psi_jd), -inf for a sum of 0."""
    return tl.where(C == 0, float("-inf"), log_scale + tl.log(tl.where(C == 0, 1.0, C)))


@triton.jit
def _shares(q, log_sums):
    """Return p_id = phi_id C_d / sum_d phi_id C_d, the share of feature d in the output of token i; 0 if all C are."""
    logits = q + log_sums[None, :]
    top = tl.max(logits, 1)
    p = _exp(logits - tl.where(top == float("-inf"), 0.0, top)[:, None])
    total = tl.sum(p, 1)
    return p * (1.0 / tl.where(total == 0, 1.0, total))[:, None]


@triton.jit
def _means(S, C, D: tl.constexpr):
    """Return U_d = S_d / C_d, the mean value as feature d weighs tokens, less the centre of all D; and the centre.

    Means over many tokens differ little from one another, and half precision keeps their difference only if what they
    have in common is taken out before.
    """
    U = S * (1.0 / tl.where(C == 0, 1.0, C))[:, None]
    centre = tl.sum(U, 0) / D
    return U - centre[None, :], centre


@triton.jit
def state_kernel(
    k,
    v,
    S,
    C,
    peak,
    k_b,
    k_h,
    k_l,
    k_d,
    v_b,
    v_h,
    v_l,
    v_d,
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
    """Sum a split's tokens into S (B·H, splits, D, DV), C and peak (B·H, splits, D), peak being the largest key."""
    program = tl.program_id(0)
    sequence = program // splits
    first = (program % splits) * tokens
    L = L // ALIGN_L * ALIGN_L  # changes nothing, see _times
    k = _head(k, sequence // H, sequence % H, k_b, k_h, ALIGN)
    v = _head(v, sequence // H, sequence % H, v_b, v_h, ALIGN)
    d, e, block = tl.arange(0, DP), tl.arange(0, DVP), tl.arange(0, BLOCK)

    top = tl.full((DP,), -1e38, tl.float32)  # finite, so that a feature without a finite key gives exp(-inf), not NaN
    total = tl.zeros((DP, 16), tl.float32)
    weighted = tl.zeros((DP, DVP), tl.float32)
    ones = tl.full((BLOCK, 16), 1.0, tl.float32)
    for start in range(first, tl.minimum(first + tokens, L), BLOCK):
        rows = start + block
        inside = rows[:, None] < L
        keep_k, keep_v = inside & (d[None, :] < D), inside & (e[None, :] < DV)
        keys = tl.load(_at(k, rows, d, k_l, k_d, ALIGN), mask=keep_k, other=float("-inf")).to(tl.float32)
        values = tl.load(_at(v, rows, e, v_l, v_d, ALIGN), mask=keep_v, other=0.0)
        new_top = tl.maximum(top, tl.max(keys, 0))
        psi = tl.trans(_exp(keys - new_top[None, :]))
        rescale = _exp(top - new_top)[:, None]
        # C as a product too, so that it sums the very numbers, rounded or not, that weigh the values in S.
        total = total * rescale + _dot(psi, ones, HALF, values.dtype)
        weighted = weighted * rescale + _dot(psi, values, HALF, values.dtype)
        top = new_top

    row = program.to(tl.int64) * D + d
    tl.store(peak + row, top, mask=d < D)
    tl.store(C + row, tl.max(total, 1), mask=d < D)  # its columns are equal
    tl.store(S + row[:, None] * DV + e[None, :], weighted, mask=(d[:, None] < D) & (e[None, :] < DV))


@triton.jit
def combine_state_kernel(
    S_parts,
    C_parts,
    peaks,
    S,
    C,
    log_scale,
    splits,
    D: tl.constexpr,
    DV: tl.constexpr,
    DVP: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Add the partial sums of one feature of one head, on the scale of the largest of their peaks."""
    row = tl.program_id(0).to(tl.int64)
    split, e = tl.arange(0, SPLITS), tl.arange(0, DVP)
    part = (row // D * splits + split) * D + row % D
    exists = split < splits
    tops = tl.load(peaks + part, mask=exists, other=float("-inf"))
    top = tl.max(tops, 0)
    weight = _exp(tops - top)
    sums = tl.load(S_parts + part[:, None] * DV + e[None, :], mask=exists[:, None] & (e[None, :] < DV), other=0.0)
    tl.store(log_scale + row, top)
    tl.store(C + row, tl.sum(weight * tl.load(C_parts + part, mask=exists, other=0.0), 0))
    tl.store(S + row * DV + e, tl.sum(weight[:, None] * sums, 0), mask=e < DV)


@triton.jit
def state_backward_kernel(
    k,
    v,
    S,
    C,
    log_scale,
    dS,
    dC,
    dk,
    dv,
    k_b,
    k_h,
    k_l,
    k_d,
    v_b,
    v_h,
    v_l,
    v_d,
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
    """Write dk = psi (v dSᵀ + dC) and dv = psi dS for a split's tokens."""
    program = tl.program_id(0)
    sequence = program // splits
    first = (program % splits) * tokens
    L = L // ALIGN_L * ALIGN_L  # changes nothing, see _times
    k = _head(k, sequence // H, sequence % H, k_b, k_h, ALIGN)
    v = _head(v, sequence // H, sequence % H, v_b, v_h, ALIGN)
    dk = _head(dk, sequence // H, sequence % H, dk_b, dk_h, ALIGN)
    dv = _head(dv, sequence // H, sequence % H, dv_b, dv_h, ALIGN)
    d, e, block = tl.arange(0, DP), tl.arange(0, DVP), tl.arange(0, BLOCK)
    row = sequence.to(tl.int64) * D + d
    entry = row[:, None] * DV + e[None, :]
    known = (d[:, None] < D) & (e[None, :] < DV)

    scale = tl.load(log_scale + row, mask=d < D, other=0.0)
    grad = tl.load(dS + entry, mask=known, other=0.0)
    _, centre = _means(tl.load(S + entry, mask=known, other=0.0), tl.load(C + row, mask=d < D, other=0.0), D)
    operand, size = _unit(grad)
    if HALF:
        operand = operand.to(v.dtype.element_ty)
    # v dSᵀ and dC nearly cancel where values have a large part in common; what rounding dS does to that is undone.
    lost = tl.sum((grad - operand.to(tl.float32) * size) * centre[None, :], 1)
    bias = tl.load(dC + row, mask=d < D, other=0.0) + lost
    for start in range(first, tl.minimum(first + tokens, L), BLOCK):
        rows = start + block
        inside = rows[:, None] < L
        keep_k, keep_v = inside & (d[None, :] < D), inside & (e[None, :] < DV)
        keys = tl.load(_at(k, rows, d, k_l, k_d, ALIGN), mask=keep_k, other=float("-inf")).to(tl.float32)
        values = tl.load(_at(v, rows, e, v_l, v_d, ALIGN), mask=keep_v, other=0.0)
        psi = _exp(keys - scale[None, :])
        slope = _dot(values, tl.trans(operand), HALF, values.dtype) * size + bias[None, :]
        tl.store(_at(dk, rows, d, dk_l, dk_d, ALIGN), (psi * slope).to(dk.dtype.element_ty), mask=keep_k)
        change = _dot(psi, operand, HALF, values.dtype) * size
        tl.store(_at(dv, rows, e, dv_l, dv_d, ALIGN), change.to(dv.dtype.element_ty), mask=keep_v)


@triton.jit
def query_kernel(
    q,
    S,
    C,
    log_scale,
    y,
    q_b,
    q_h,
    q_l,
    q_d,
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
    """Write y = p U for a split's tokens."""
    program = tl.program_id(0)
    sequence = program // splits
    first = (program % splits) * tokens
    L = L // ALIGN_L * ALIGN_L  # changes nothing, see _times
    q = _head(q, sequence // H, sequence % H, q_b, q_h, ALIGN)
    y = _head(y, sequence // H, sequence % H, y_b, y_h, ALIGN)
    d, e, block = tl.arange(0, DP), tl.arange(0, DVP), tl.arange(0, BLOCK)
    row = sequence.to(tl.int64) * D + d
    known = (d[:, None] < D) & (e[None, :] < DV)

    weights = tl.load(C + row, mask=d < D, other=0.0)
    log_sums = _log_sums(weights, tl.load(log_scale + row, mask=d < D, other=0.0))
    U, centre = _means(tl.load(S + row[:, None] * DV + e[None, :], mask=known, other=0.0), weights, D)
    operand, size = _unit(U)
    if HALF:
        operand = operand.to(q.dtype.element_ty)
    for start in range(first, tl.minimum(first + tokens, L), BLOCK):
        rows = start + block
        inside = rows[:, None] < L
        queries = tl.load(_at(q, rows, d, q_l, q_d, ALIGN), mask=inside & (d[None, :] < D), other=0.0)
        p = _shares(queries.to(tl.float32), log_sums)
        result = _dot(p, operand, HALF, queries.dtype) * size + centre[None, :]
        tl.store(_at(y, rows, e, y_l, y_d, ALIGN), result.to(y.dtype.element_ty), mask=inside & (e[None, :] < DV))


@triton.jit
def query_backward_kernel(
    q,
    S,
    C,
    log_scale,
    dy,
    dq,
    dU,
    column_sums,
    q_b,
    q_h,
    q_l,
    q_d,
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
    """Write dq, and a split's sums dU = sum_i p_iᵀ dy_i (B·H, splits, D, DV) and sum_i dq_i (B·H, splits, D)."""
    program = tl.program_id(0)
    sequence = program // splits
    first = (program % splits) * tokens
    L = L // ALIGN_L * ALIGN_L  # changes nothing, see _times
    q = _head(q, sequence // H, sequence % H, q_b, q_h, ALIGN)
    dy = _head(dy, sequence // H, sequence % H, dy_b, dy_h, ALIGN)
    dq = _head(dq, sequence // H, sequence % H, dq_b, dq_h, ALIGN)
    d, e, block = tl.arange(0, DP), tl.arange(0, DVP), tl.arange(0, BLOCK)
    row = sequence.to(tl.int64) * D + d
    known = (d[:, None] < D) & (e[None, :] < DV)

    weights = tl.load(C + row, mask=d < D, other=0.0)
    log_sums = _log_sums(weights, tl.load(log_scale + row, mask=d < D, other=0.0))
    U, _ = _means(tl.load(S + row[:, None] * DV + e[None, :], mask=known, other=0.0), weights, D)
    operand, size = _unit(U)
    if HALF:
        operand = operand.to(q.dtype.element_ty)
    operand = tl.trans(operand)
    weighted = tl.zeros((DP, DVP), tl.float32)
    total = tl.zeros((BLOCK, DP), tl.float32)
    for start in range(first, tl.minimum(first + tokens, L), BLOCK):
        rows = start + block
        inside = rows[:, None] < L
        queries = tl.load(_at(q, rows, d, q_l, q_d, ALIGN), mask=inside & (d[None, :] < D), other=0.0)
        grad = tl.load(_at(dy, rows, e, dy_l, dy_d, ALIGN), mask=inside & (e[None, :] < DV), other=0.0)
        p = _shares(queries.to(tl.float32), log_sums)
        slope = _dot(grad, operand, HALF, queries.dtype) * size
        change = p * (slope - tl.sum(p * slope, 1)[:, None])
        tl.store(_at(dq, rows, d, dq_l, dq_d, ALIGN), change.to(dq.dtype.element_ty), mask=inside & (d[None, :] < D))
        weighted += _dot(tl.trans(p), grad, HALF, queries.dtype)
        total += change

    part = program.to(tl.int64) * D + d
    tl.store(column_sums + part, tl.sum(total, 0), mask=d < D)
    tl.store(dU + part[:, None] * DV + e[None, :], weighted, mask=known)


@triton.jit
def combine_query_backward_kernel(
    dU_parts,
    column_sums,
    S,
    C,
    dS,
    dC,
    splits,
    D: tl.constexpr,
    DV: tl.constexpr,
    DVP: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Turn the partial sums of one feature of one head into dS = dU / C and dC = (sum_i dq_i - dU·S / C) / C."""
    row = tl.program_id(0).to(tl.int64)
    split, e = tl.arange(0, SPLITS), tl.arange(0, DVP)
    part = (row // D * splits + split) * D + row % D
    exists = split < splits
    sums = tl.load(dU_parts + part[:, None] * DV + e[None, :], mask=exists[:, None] & (e[None, :] < DV), other=0.0)
    dU = tl.sum(sums, 0)
    total = tl.sum(tl.load(column_sums + part, mask=exists, other=0.0), 0)
    weight = tl.load(C + row)
    inverse = tl.where(weight == 0, 0.0, 1.0 / weight)
    U = tl.load(S + row * DV + e, mask=e < DV, other=0.0) * inverse
    tl.store(dS + row * DV + e, dU * inverse, mask=e < DV)
    tl.store(dC + row, (total - tl.sum(dU * U, 0)) * inverse)
