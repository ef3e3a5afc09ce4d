"""Bidirectional exact linear attention (ELA) and its state.

For a kernel k(q, k) = phi(q)·psi(k), attention over L tokens

    y_i = sum_j k(q_i, k_j) v_j / sum_j k(q_i, k_j)

is reordered into two sums that do not depend on the query (paper, section 1):

    S = sum_j psi(k_j) v_jᵀ   (D_phi, Dv)        C = sum_j psi(k_j)   (D_phi)        y_i = phi(q_i) S / phi(q_i) C

The cost is O(L·D_phi·Dv). Nothing is approximated: the result equals the quadratic form to rounding. Being sums over
tokens, the states of several token sets add up to the state of their union.

What is written out here is the plain form. `yolo_lat.ela.fused` computes the same in fewer steps on CUDA.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from yolo_lat.ela.compiling import assume_constant_result
from yolo_lat.ela.fused import choose_form, query_op, state_op
from yolo_lat.ela.kernels import HadamardExp, Kernel, LogKernel


def _accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Half precisions sum in float32: 6,400 tokens overflow float16 and lose bfloat16's 8 bits."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def wide(x: Tensor) -> Tensor:
    """Return a tensor in the dtype that its sums are formed in."""
    return x.to(_accumulation_dtype(x.dtype))


def no_autocast(device: str) -> AbstractContextManager[Any]:
    """Keep autocast from narrowing the sums again; devices without autocast (meta) need nothing."""
    return torch.autocast(device, enabled=False) if _has_autocast(device) else nullcontext()


@assume_constant_result
def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)


@dataclass(frozen=True)
class ELAState:
    """Everything that attention needs to know of a set of keys and values, in a size that does not grow with it.

    Attributes:
        S: (B, H, D_phi, Dv) sums of psi(k_j) v_jᵀ; float32, or float64 for float64 inputs.
        C: (B, H, D_phi) sums of psi(k_j).
        kernel: the kernel whose psi made the sums.
        log_scale: (B, H, D_phi) for a `LogKernel`, else None: S and C are stored divided by exp(log_scale), the largest
            feature seen, so that they neither overflow nor vanish. A constant for autograd: no output depends on it.
    """

    S: Tensor
    C: Tensor
    kernel: Kernel
    log_scale: Tensor | None = None

    def __add__(self, other: ELAState) -> ELAState:
        """Return the state of both token sets together.

        Raises:
            ValueError: the states come from different kernels, or have other shapes.
        """
        if type(self.kernel) is not type(other.kernel):
            raise ValueError(f"cannot add ELA states of different kernels: {self.kernel} and {other.kernel}")
        if self.S.shape != other.S.shape:
            raise ValueError(f"cannot add ELA states of shapes {tuple(self.S.shape)} and {tuple(other.S.shape)}")
        if self.log_scale is None or other.log_scale is None:
            return ELAState(self.S + other.S, self.C + other.C, self.kernel)
        scale = torch.maximum(self.log_scale, other.log_scale)
        a, b = (self.log_scale - scale).exp(), (other.log_scale - scale).exp()
        S = a.unsqueeze(-1) * self.S + b.unsqueeze(-1) * other.S
        return ELAState(S, a * self.C + b * other.C, self.kernel, scale)

    def query(self, q: Tensor) -> Tensor:
        """Attend from queries q (B, H, Lq, D) to all tokens of the state; returns (B, H, Lq, Dv) in q's dtype.

        Where the weights sum to zero (no token, all masked, or a kernel that is zero for every key) the output is 0.

        Raises:
            ValueError: other batches, heads or features than the state's.
        """
        if q.dim() != 4 or q.shape[:2] != self.S.shape[:2]:
            raise ValueError(f"queries {tuple(q.shape)} do not fit a state {tuple(self.S.shape)} in batch or heads")
        if self._fused(q):
            assert self.log_scale is not None
            return query_op(q, self.S, self.C, self.log_scale)
        with no_autocast(q.device.type):
            if isinstance(self.kernel, LogKernel) and self.log_scale is not None:
                logits = self._fitting(self.kernel.log_phi(wide(q))) + self.log_scale.unsqueeze(-2)
                features = (logits - logits.amax(-1, keepdim=True)).exp()
            else:
                features = self._fitting(self.kernel.phi(wide(q)))
            total = features @ self.C.unsqueeze(-1)
            y = features @ self.S / torch.where(total == 0, 1, total)
        return y.to(q.dtype)

    def _fitting(self, features: Tensor) -> Tensor:
        """Return the features of queries, (B, H, Lq, D_phi), unless the state has sums of others."""
        if features.shape[-1] != self.S.shape[-2]:
            raise ValueError(f"queries of {features.shape[-1]} features do not fit a state {tuple(self.S.shape)}")
        return features

    def _fused(self, q: Tensor) -> bool:
        obstacle = None
        if q.shape[-1] != self.S.shape[-2]:
            obstacle = f"queries {tuple(q.shape)} do not fit a state {tuple(self.S.shape)}"
        elif self.S.dtype != torch.float32:
            obstacle = f"only states in float32 are fused, and this is {self.S.dtype}"
        elif q.numel() == 0:
            obstacle = "there are no queries"
        widths = self.S.shape[-2], self.S.shape[-1]
        return choose_form(self.kernel, q.device, q.dtype, widths, obstacle).form == "fused"


def ela_state(k: Tensor, v: Tensor, kernel: Kernel | None = None, mask: Tensor | None = None) -> ELAState:
    """Sum keys and values into an `ELAState`.

    Args:
        k: keys (B, H, L, D).
        v: values (B, H, L, Dv).
        kernel: defaults to `HadamardExp()`.
        mask: (B, L) bool, True for tokens that count; None counts all.

    Raises:
        ValueError: shapes that do not belong together.
    """
    kernel = kernel or HadamardExp()
    if k.dim() != 4 or v.dim() != 4 or k.shape[:3] != v.shape[:3]:
        raise ValueError(f"k and v must be (B, H, L, D) and (B, H, L, Dv), got {tuple(k.shape)} and {tuple(v.shape)}")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != (k.shape[0], k.shape[2])):
        raise ValueError(f"mask must be bool (B, L), got {mask.dtype} {tuple(mask.shape)} for k {tuple(k.shape)}")
    if _sums_fused(k, v, kernel, mask):
        S, C, log_scale = state_op(k, v)
        return ELAState(S, C, kernel, log_scale)
    hidden = None if mask is None else ~mask[:, None, :, None]
    with no_autocast(k.device.type):
        k, v = wide(k), wide(v)
        log_scale = None
        if isinstance(kernel, LogKernel):
            logits = kernel.log_psi(k)
            # The smallest finite number, not -inf: a set whose tokens are all hidden must not turn into NaN.
            least = torch.finfo(logits.dtype).min / 4
            if hidden is not None:
                logits = logits.masked_fill(hidden, least)
            if k.shape[2]:
                peak = logits.detach().amax(-2, keepdim=True).clamp_min(least)
            else:
                peak = logits.new_full((*logits.shape[:2], 1, logits.shape[-1]), least)
            features, log_scale = (logits - peak).exp(), peak.squeeze(-2)
        else:
            features = kernel.psi(k)
        if hidden is not None:
            features = features.masked_fill(hidden, 0)
        return ELAState(features.transpose(-1, -2) @ v, features.sum(-2), kernel, log_scale)


def _sums_fused(k: Tensor, v: Tensor, kernel: Kernel, mask: Tensor | None) -> bool:
    obstacle = None
    if mask is not None:
        obstacle = "a mask hides tokens"
    elif k.dtype != v.dtype:
        obstacle = f"keys are {k.dtype} and values {v.dtype}"
    elif k.numel() == 0 or v.numel() == 0:
        obstacle = "there are no tokens"
    return choose_form(kernel, k.device, k.dtype, (k.shape[-1], v.shape[-1]), obstacle).form == "fused"


def exact_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kernel: Kernel | None = None,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """Exact linear attention, y_i = sum_j k(q_i, k_j) v_j / sum_j k(q_i, k_j), in O(Lq + Lk).

    Args:
        q: queries (B, H, Lq, D).
        k: keys (B, H, Lk, D).
        v: values (B, H, Lk, Dv).
        kernel: defaults to `HadamardExp()`.
        mask: (B, Lk) bool, True for keys that count; None counts all.
        causal: sum over j <= i only; Lq and Lk are then equal. `yolo_lat.ela.causal_attention` does more.

    Returns:
        (B, H, Lq, Dv) in q's dtype. float16 and bfloat16 inputs are summed in float32, also under autocast.

    Raises:
        ValueError: shapes that do not belong together.
    """
    if causal:
        from yolo_lat.ela.causal import causal_attention  # it builds on this module

        return causal_attention(q, k, v, kernel, mask=mask)[0]
    state = ela_state(k, v, kernel, mask)
    if q.dim() != 4 or q.shape[:2] != k.shape[:2] or q.shape[-1] != k.shape[-1]:
        raise ValueError(f"q must be (B, H, Lq, D) with k's B, H and D, got {tuple(q.shape)} for k {tuple(k.shape)}")
    return state.query(q)
