"""Exact linear attention with `HadamardExp` in fused kernels, and the choice between this form and the plain one.

Two operators, `yolo_lat::ela_state` and `yolo_lat::ela_query`, read every token once and store nothing of its size but
results and gradients. With the sums of paper, section 1, held on the scale of each feature's largest key m_d,

    psi_jd = exp(k_jd - m_d)      S = sum_j psi_j v_jᵀ      C = sum_j psi_j      log_scale = m

the output is a mean of D means, U_d = S_d / C_d being the mean of the values as feature d weighs the tokens:

    p_i = softmax_d(q_i + m + log C)      y_i = sum_d p_id U_d

Gradients, from dy on:

    r_i = sum_d p_id (dy_i·U_d)      dq_id = p_id (dy_i·U_d - r_i)      dU_d = sum_i p_id dy_i
    dS_d = dU_d / C_d                dC_d = (sum_i dq_id - dU_d·U_d) / C_d
    dk_jd = psi_jd (dS_d·v_j + dC_d)                    dv_j = sum_d psi_jd dS_d

m counts as a constant there, as it does in the plain form and in the sum of two states. Adding c_d to m_d turns S_d and
C_d into exp(-c_d) S_d and exp(-c_d) C_d and leaves U_d and m_d + log C_d as they were: y does not depend on m, so its
derivatives by m along the three ways (psi, the sum of states, p) add up to 0 and are left out of all three.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from yolo_lat.ela.compiling import assume_constant_result
from yolo_lat.ela.kernels import HadamardExp, Kernel

Form = Literal["auto", "plain", "fused"]
MAX_WIDTH = 64  # of a head's keys and of its values: wider tiles do not fit into registers
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_CAPABILITY = (8, 0)  # the first with matrix products of bfloat16

# Of one launch; fixed numbers, not those of the device, so that sums are split alike everywhere.
_PROGRAMS = 2112  # 16 for each of an H100's 132 multiprocessors
_FEWEST_TOKENS = 256  # of a program that reduces: its partial sums then are a twentieth of what it reads
_MAX_SPLITS = 256  # what a combining kernel holds at once


class _Switch:
    """What `ela_form` set. torch.compile compiles anew when an object's attribute has changed."""

    form: Form = "auto"


_switch = _Switch()


@contextmanager
def ela_form(form: Form) -> Iterator[None]:
    """Choose how exact linear attention is computed inside a `with` block; results agree to rounding.

    A switch of the process, as those of `torch.backends`: other threads see it too.

    Args:
        form: "plain" is made of torch's own operators and works everywhere; "fused" runs the fused kernels or raises
            ValueError; "auto", the default outside any such block, takes the fused kernels wherever they apply.

    Raises:
        ValueError: another name.
    """
    if form not in get_args(Form):
        raise ValueError(f"unknown form '{form}' of exact linear attention; use one of {', '.join(get_args(Form))}")
    before, _switch.form = _switch.form, form
    try:
        yield
    finally:
        _switch.form = before


class FormChoice(NamedTuple):
    """The form that a call takes, and why in a few words."""

    form: Literal["plain", "fused"]
    reason: str


def choose_form(
    kernel: Kernel, device: torch.device, dtype: torch.dtype, widths: tuple[int, ...] = (), obstacle: str | None = None
) -> FormChoice:
    """Say which form exact linear attention takes for such inputs under the present setting of `ela_form`.

    Args:
        kernel: the kernel of the features.
        device: where q, k and v lie.
        dtype: of q, k and v.
        widths: D and Dv, as far as they are known.
        obstacle: what else the caller knows to stand in the way of the fused kernels.

    Raises:
        ValueError: the setting is "fused" and the fused kernels do not apply; says what stands in the way.
    """
    setting = _switch.form
    if setting == "plain":
        return FormChoice("plain", "ela_form('plain') is set")
    if setting == "auto" and device.type != "cuda":
        return FormChoice("plain", f"the device is {device.type}, and the fused kernels need CUDA")
    obstacle = obstacle or _obstacle(kernel, dtype, widths) or _missing(device.type, device.index)
    if obstacle is None:
        return FormChoice("fused", "the fused kernels apply")
    if setting == "fused":
        raise ValueError(f"ela_form('fused') is impossible since {obstacle}; ela_form('auto') takes the plain form")
    return FormChoice("plain", obstacle)


def _obstacle(kernel: Kernel, dtype: torch.dtype, widths: tuple[int, ...]) -> str | None:
    """Say what keeps the fused kernels from such inputs on any machine, None if nothing does."""
    if type(kernel) is not HadamardExp:
        return f"only the kernel HadamardExp is fused, and this is {type(kernel).__name__}"
    if dtype not in _DTYPES:
        return f"only float16, bfloat16 and float32 are fused, and this is {dtype}"
    if not all(1 <= width <= MAX_WIDTH for width in widths):
        return f"only widths from 1 to {MAX_WIDTH} are fused, and heads have {' and '.join(map(str, widths))}"
    if torch.jit.is_tracing() or torch.onnx.is_in_onnx_export() or _exporting():
        return "the model is being exported to where the fused kernels do not exist"
    return None


def _exporting() -> bool:
    # torch 2.6 cannot tell torch.export from torch.compile, and only the plain form serves both.
    return _export_flag() if hasattr(torch.compiler, "is_exporting") else torch.compiler.is_compiling()


@assume_constant_result
def _export_flag() -> bool:
    """Whether torch.export is at work; inside of what torch 2.11 compiles, is_exporting itself would say yes."""
    return torch.compiler.is_exporting()


@assume_constant_result
def _missing(device_type: str, index: int | None) -> str | None:
    """Say what the machine lacks, None if nothing."""
    return _looked_up(device_type, index)


@cache
def _looked_up(device_type: str, index: int | None) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device_type != "cuda":
        return None if _kernels().INTERPRETED else f"the device is {device_type}, and the fused kernels need CUDA"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if torch.version.hip is not None or torch.cuda.get_device_capability(index) < _CAPABILITY:
        return "the GPU is none of NVIDIA's of compute capability 8.0 or later"
    return None


def _kernels() -> Any:
    """Import the kernels, late: Triton is there on Linux only, and takes a while to import."""
    from yolo_lat.ela import triton_kernels

    return triton_kernels


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _division(x: Tensor, key_dim: int, value_dim: int, most_splits: int | None = None) -> tuple[int, int, int]:
    """Return how many splits the tokens of x (B, H, L, any) go in, and the tokens of a split and of a block."""
    narrow = max(key_dim, value_dim) <= 16
    block = 64 if x.dtype != torch.float32 else 32 if narrow else 16  # float32 products keep both operands in registers
    splits = -(-_PROGRAMS // (x.shape[0] * x.shape[1]))
    splits = min(splits, most_splits) if most_splits else splits
    tokens = max(-(-x.shape[2] // splits), _FEWEST_TOKENS)
    tokens = -(-tokens // block) * block
    return -(-x.shape[2] // tokens), tokens, block


class _Launch(NamedTuple):
    """How a kernel goes over the tokens of all sequences: `splits` programs a sequence, `tokens` each."""

    splits: int
    tokens: int
    grid: tuple[int]
    constants: dict[str, int | bool]

    @classmethod
    def over(cls, key_dim: int, value_dim: int, *tensors: Tensor, most_splits: int | None = None) -> _Launch:
        """Plan for tensors (B, H, L, any), from shapes and strides alone.

        Tiles hold 64 tokens of half precision, so that a row of channels-first tokens is a cache line of 128 bytes, and
        one warp per 16x16 sums: products over tokens are not shared out among warps, each would compute all of them.
        """
        x = tensors[0]
        half = x.dtype != torch.float32
        dp, dvp = (max(16, _power_of_two(n)) for n in (key_dim, value_dim))
        sequences, length = x.shape[0] * x.shape[1], x.shape[2]
        splits, tokens, block = _division(x, key_dim, value_dim, most_splits)
        constants: dict[str, int | bool] = {
            "D": key_dim,
            "DV": value_dim,
            "DP": dp,
            "DVP": dvp,
            "BLOCK": block,
            "ALIGN": 1 if _kernels().INTERPRETED else math.gcd(16, *(n for t in tensors for n in t.stride() if n != 1)),
            "ALIGN_L": math.gcd(16, length),
            "HALF": half,
            "num_warps": min(dp * dvp // 256, 4 if half else 8),
            "num_stages": 3,
        }
        return cls(splits, tokens, (sequences * splits,), constants)

    @property
    def combining(self) -> dict[str, int]:
        """Constants of the kernel that combines the splits."""
        names = ("D", "DV", "DVP")
        return {name: self.constants[name] for name in names} | {"SPLITS": _power_of_two(self.splits)}


def _like(x: Tensor, width: int) -> Tensor:
    """Return an empty (B, H, L, width) of x's dtype, channels first in memory if x lies so."""
    batch, heads, length, _ = x.shape
    if x.stride(2) == 1 and x.stride(3) != 1:
        return x.new_empty(batch, heads, width, length).transpose(2, 3)
    return x.new_empty(batch, heads, length, width)


def _sums(x: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=x.device)


@torch.library.custom_op("yolo_lat::ela_state", mutates_args=())
def state_op(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum k (B, H, L, D) and v (B, H, L, Dv) into S (B, H, D, Dv), C and log_scale (B, H, D), all float32; L >= 1."""
    batch, heads, length, key_dim = k.shape
    plan = _Launch.over(key_dim, v.shape[3], k, v, most_splits=_MAX_SPLITS)
    parts = batch * heads * plan.splits, key_dim
    S_parts, C_parts, peaks = _sums(k, *parts, v.shape[3]), _sums(k, *parts), _sums(k, *parts)
    S, C, log_scale = _empty_state(k, v)
    with torch.cuda.device_of(k):
        _kernels().state_kernel[plan.grid](
            *(k, v, S_parts, C_parts, peaks, *k.stride(), *v.stride(), heads, length, plan.splits, plan.tokens),
            **plan.constants,
        )
        _kernels().combine_state_kernel[(batch * heads * key_dim,)](
            S_parts, C_parts, peaks, S, C, log_scale, plan.splits, **plan.combining
        )
    return S, C, log_scale


@state_op.register_fake
def _empty_state(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, _, key_dim = k.shape
    return (
        _sums(k, batch, heads, key_dim, v.shape[3]),
        _sums(k, batch, heads, key_dim),
        _sums(k, batch, heads, key_dim),
    )


@torch.library.custom_op("yolo_lat::ela_state_backward", mutates_args=())
def state_backward_op(
    k: Tensor, v: Tensor, S: Tensor, C: Tensor, log_scale: Tensor, dS: Tensor, dC: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of k and v, in their dtypes and order of axes in memory."""
    dk, dv = _like(k, k.shape[3]), _like(v, v.shape[3])
    plan = _Launch.over(k.shape[3], v.shape[3], k, v, dk, dv)
    sums = (x.contiguous() for x in (S, C, log_scale, dS, dC))
    strides = (stride for x in (k, v, dk, dv) for stride in x.stride())
    with torch.cuda.device_of(k):
        _kernels().state_backward_kernel[plan.grid](
            *(k, v, *sums, dk, dv, *strides, k.shape[1], k.shape[2], plan.splits, plan.tokens), **plan.constants
        )
    return dk, dv


@state_backward_op.register_fake
def _empty_state_gradients(k: Tensor, v: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    return _like(k, k.shape[3]), _like(v, v.shape[3])


def _save_state(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[2])


def _state_gradients(ctx: Any, dS: Tensor, dC: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor]:
    return state_backward_op(*ctx.saved_tensors, dS, dC)


state_op.register_autograd(_state_gradients, setup_context=_save_state)


@torch.library.custom_op("yolo_lat::ela_query", mutates_args=())
def query_op(q: Tensor, S: Tensor, C: Tensor, log_scale: Tensor) -> Tensor:
    """Attend from q (B, H, L, D), L >= 1, to the tokens of a float32 state; returns (B, H, L, Dv) in q's dtype."""
    y = _like(q, S.shape[3])
    plan = _Launch.over(q.shape[3], S.shape[3], q, y)
    sums = (x.contiguous() for x in (S, C, log_scale))
    with torch.cuda.device_of(q):
        _kernels().query_kernel[plan.grid](
            *(q, *sums, y, *q.stride(), *y.stride(), q.shape[1], q.shape[2], plan.splits, plan.tokens),
            **plan.constants,
        )
    return y


@query_op.register_fake
def _empty_output(q: Tensor, S: Tensor, C: Tensor, log_scale: Tensor) -> Tensor:
    return _like(q, S.shape[3])


@torch.library.custom_op("yolo_lat::ela_query_backward", mutates_args=())
def query_backward_op(q: Tensor, S: Tensor, C: Tensor, log_scale: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, in its dtype and order of axes in memory, and of S and C, in float32."""
    batch, heads, length, key_dim = q.shape
    value_dim = S.shape[3]
    dq = _like(q, key_dim)
    plan = _Launch.over(key_dim, value_dim, q, dy, dq, most_splits=_MAX_SPLITS)
    parts = batch * heads * plan.splits, key_dim
    dU_parts, column_sums = _sums(q, *parts, value_dim), _sums(q, *parts)
    S, C, log_scale = S.contiguous(), C.contiguous(), log_scale.contiguous()
    dS, dC = torch.empty_like(S), torch.empty_like(C)
    strides = (stride for x in (q, dy, dq) for stride in x.stride())
    with torch.cuda.device_of(q):
        _kernels().query_backward_kernel[plan.grid](
            *(q, S, C, log_scale, dy, dq, dU_parts, column_sums, *strides, heads, length, plan.splits, plan.tokens),
            **plan.constants,
        )
        _kernels().combine_query_backward_kernel[(batch * heads * key_dim,)](
            dU_parts, column_sums, S, C, dS, dC, plan.splits, **plan.combining
        )
    return dq, dS, dC


@query_backward_op.register_fake
def _empty_query_gradients(
    q: Tensor, S: Tensor, C: Tensor, log_scale: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _like(q, q.shape[3]), _sums(q, *S.shape), _sums(q, *C.shape)


def _save_query(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _query_gradients(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    return *query_backward_op(*ctx.saved_tensors, dy), None


query_op.register_autograd(_query_gradients, setup_context=_save_query)
