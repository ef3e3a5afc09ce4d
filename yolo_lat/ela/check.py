"""Judge a kernel by the paper's four criteria: decomposable, discriminative, non-negative, geometric (section 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from yolo_lat.ela.kernels import Kernel

# float64 leaves about 1e-16 a product; a kernel that is "equal" only to 1e-9 approximates.
DECOMPOSITION_TOLERANCE = 1e-10
_SCALES = (0.1, 1.0, 4.0)


@dataclass(frozen=True)
class KernelReport:
    """What `check_kernel` measured, in float64.

    Attributes:
        kernel: the kernel's class name.
        head_dim: D, the width of a query.
        feature_dim: D_phi, the width of its features; bounds the rank of the attention matrix.
        decomposition_error: largest |phi·psi - k| over the largest |k| of its row.
        discrimination: 1 - H/log L, H the entropy of a row of the attention matrix over L keys: 0 spreads evenly over
            all keys, 1 picks one key.
        softmax_discrimination: the same figure for softmax(q·k/sqrt(D)) on the same tokens, for comparison.
        minimum: smallest k found, over its row's largest; negative breaks the criterion.
        geometry: what the kernel says of itself.
        correlations: Pearson correlation of attention weights with "cosine", "distance" and "key length".
    """

    kernel: str
    head_dim: int
    feature_dim: int
    decomposition_error: float
    discrimination: float
    softmax_discrimination: float
    minimum: float
    geometry: str
    correlations: dict[str, float]

    @property
    def decomposable(self) -> bool:
        """Whether phi·psi equals the kernel to rounding."""
        return self.decomposition_error < DECOMPOSITION_TOLERANCE

    @property
    def non_negative(self) -> bool:
        """Whether no pair gave a negative weight, beyond rounding."""
        return self.minimum > -DECOMPOSITION_TOLERANCE

    @property
    def discriminative(self) -> bool:
        """Whether the weights differ from an even spread at all (more than 0.1% of the entropy)."""
        return self.discrimination > 1e-3

    @property
    def ok(self) -> bool:
        """Whether the three criteria that have a threshold hold."""
        return self.decomposable and self.non_negative and self.discriminative

    def __str__(self) -> str:
        def line(name: str, passed: bool, text: str) -> str:
            return f"  {name:<15}{'yes' if passed else 'NO':<5}{text}"

        measured = ", ".join(f"{name} {value:+.2f}" for name, value in self.correlations.items())
        softmax = self.softmax_discrimination
        return "\n".join(
            [
                f"{self.kernel}: D = {self.head_dim}, D_phi = {self.feature_dim}",
                line("decomposable", self.decomposable, f"relative error {self.decomposition_error:.1e}"),
                line("discriminative", self.discriminative, f"{self.discrimination:.3f} (softmax: {softmax:.3f})"),
                line("non-negative", self.non_negative, f"smallest relative weight {self.minimum:.1e}"),
                f"  {'geometry':<15}attends to {self.geometry}; correlation with {measured}",
            ]
        )


def _discrimination(weights: Tensor) -> float:
    p = weights.clamp_min(0)
    p = p[p.sum(-1) > 0]  # queries that have a key
    if not len(p):
        return 0.0
    p = p / p.sum(-1, keepdim=True)
    return float(1 - torch.special.entr(p).sum(-1).mean() / math.log(p.shape[-1]))


def _correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.expand_as(a).flatten()]))[0, 1])


def check_kernel(kernel: Kernel, head_dim: int = 16, tokens: int = 256, seed: int = 0) -> KernelReport:
    """Measure a kernel against the four criteria on normally distributed queries and keys.

    Decomposition and sign are searched at three scales (standard deviations 0.1, 1 and 4) and on opposed and equal
    pairs; discrimination and geometry are measured at standard deviation 1.

    Raises:
        ValueError: phi and psi disagree on their width, or `pairwise` returns another shape than (Lq, Lk).
    """
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(tokens, head_dim, dtype=torch.float64, generator=generator) for _ in range(2))
    k = torch.cat([k, q[:8], -q[:8]])  # the pairs at which distances vanish and cosines turn
    phi, psi, weights = kernel.phi(q), kernel.psi(k), kernel.pairwise(q, k)
    if phi.shape[-1] != psi.shape[-1]:
        raise ValueError(f"{kernel}: phi has {phi.shape[-1]} features and psi {psi.shape[-1]}; they must agree")
    if weights.shape != (len(q), len(k)):
        raise ValueError(f"{kernel}: pairwise returned {tuple(weights.shape)} for {len(q)} queries and {len(k)} keys")

    error, minimum = 0.0, math.inf
    for scale in _SCALES:
        exact = kernel.pairwise(scale * q, scale * k)
        largest = exact.abs().amax(-1, keepdim=True)
        largest = torch.where(largest == 0, largest.max(), largest).clamp_min(torch.finfo(torch.float64).tiny)
        linear = kernel.phi(scale * q) @ kernel.psi(scale * k).T
        # What is no number fails; Python's max and min would pass over it.
        error = max(error, float(((linear - exact).abs() / largest).nan_to_num(nan=math.inf).max()))
        minimum = min(minimum, float((exact / largest).nan_to_num(nan=-math.inf).min()))

    total = weights.sum(-1, keepdim=True)
    share = weights / torch.where(total == 0, 1, total)
    return KernelReport(
        kernel=type(kernel).__name__,
        head_dim=head_dim,
        feature_dim=phi.shape[-1],
        decomposition_error=error,
        discrimination=_discrimination(weights),
        softmax_discrimination=_discrimination((q @ k.T / math.sqrt(head_dim)).softmax(-1)),
        minimum=minimum,
        geometry=kernel.geometry,
        correlations={
            "cosine": _correlation(share, F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).T),
            "distance": _correlation(share, torch.cdist(q, k)),
            "key length": _correlation(share, k.norm(dim=-1)[None]),
        },
    )
