"""Kernels that factor into finite feature maps: k(q, k) = phi(q) · psi(k).

The four kernels of the paper (section 1, table of kernels) as small stateless objects. Each states the kernel twice: as
feature maps, which make attention linear in the number of tokens, and as the direct pairwise formula, which is the
definition that the feature maps are tested against. Write your own by subclassing `Kernel` (or `LogKernel`, when the
features are exponentials) and let `yolo_lat.ela.check_kernel` judge it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


class Kernel(ABC):
    """A kernel with finite feature maps, the only thing exact linear attention needs to know.

    Attributes:
        geometry: what a query attends to, in a few words; shown by `check_kernel`.
    """

    geometry: ClassVar[str] = "not stated"

    @abstractmethod
    def phi(self, q: Tensor) -> Tensor:
        """Map queries (..., L, D) to features (..., L, D_phi)."""

    @abstractmethod
    def psi(self, k: Tensor) -> Tensor:
        """Map keys (..., L, D) to features (..., L, D_phi)."""

    @abstractmethod
    def pairwise(self, q: Tensor, k: Tensor) -> Tensor:
        """Return k(q_i, k_j) as (..., Lq, Lk) by its definition, without `phi` and `psi`; needs O(Lq·Lk·D) memory."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class LogKernel(Kernel):
    """A kernel whose features are positive, given by their logarithms.

    Attention then subtracts the largest logarithm before it exponentiates, which changes nothing in the result (the
    factor cancels between numerator and denominator, paper section 1) and rules out overflow in every precision.
    """

    @abstractmethod
    def log_phi(self, q: Tensor) -> Tensor:
        """Map queries (..., L, D) to the logarithms of their features (..., L, D_phi)."""

    @abstractmethod
    def log_psi(self, k: Tensor) -> Tensor:
        """Map keys (..., L, D) to the logarithms of their features (..., L, D_phi)."""

    def phi(self, q: Tensor) -> Tensor:
        """Return exp(log_phi(q)), which overflows where its logarithm is large; attention does not use it."""
        return self.log_phi(q).exp()

    def psi(self, k: Tensor) -> Tensor:
        """Return exp(log_psi(k)), which overflows where its logarithm is large; attention does not use it."""
        return self.log_psi(k).exp()


class HadamardExp(LogKernel):
    """k(q, k) = sum_d exp(q_d) exp(k_d), the default of the paper; D_phi = D."""

    geometry = "keys whose strong features are strong in the query too"

    def log_phi(self, q: Tensor) -> Tensor:
        """Return q itself: phi(q) = exp(q)."""
        return q

    def log_psi(self, k: Tensor) -> Tensor:
        """Return k itself: psi(k) = exp(k)."""
        return k

    def pairwise(self, q: Tensor, k: Tensor) -> Tensor:
        """Return sum_d exp(q_d + k_d), (..., Lq, Lk)."""
        return (q.unsqueeze(-2) + k.unsqueeze(-3)).exp().sum(-1)


class _SquaredDistance(Kernel):
    """k(q, k) = ||q + sign·k||², expanded into D + 2 features; `sign` is what its two subclasses differ in.

    The expansion cancels where the sum is small: with eps the precision of the sums, a weight is off by about
    eps (||q||² + ||k||²), and can come out negative. Attention is then off by that over the mean weight of its row: in
    float32 by 0.5% of the values' range where all distances are 1% of the vectors' length, and by all of it at 0.1%.
    """

    sign: ClassVar[int]

    def phi(self, q: Tensor) -> Tensor:
        """Return [q, ||q||², 1], (..., L, D + 2)."""
        norm = q.square().sum(-1, keepdim=True)
        return torch.cat([q, norm, torch.ones_like(norm)], dim=-1)

    def psi(self, k: Tensor) -> Tensor:
        """Return [2·sign·k, 1, ||k||²], (..., L, D + 2)."""
        norm = k.square().sum(-1, keepdim=True)
        return torch.cat([2 * self.sign * k, torch.ones_like(norm), norm], dim=-1)

    def pairwise(self, q: Tensor, k: Tensor) -> Tensor:
        """Return ||q_i + sign·k_j||², (..., Lq, Lk)."""
        return (q.unsqueeze(-2) + self.sign * k.unsqueeze(-3)).square().sum(-1)


class SumSquaredDistance(_SquaredDistance):
    """k(q, k) = ||q + k||², the paper's summation squared Euclidean kernel; D_phi = D + 2.

    Inexact where queries are nearly opposed to all keys, since the square is expanded (by about
    eps (||q||² + ||k||²) a weight).
    """

    geometry = "long keys that point the query's way"
    sign = 1


class DiffSquaredDistance(_SquaredDistance):
    """k(q, k) = ||q - k||², the paper's subtraction squared Euclidean kernel; D_phi = D + 2.

    Inexact where queries are nearly equal to all keys, since the square is expanded (by about eps (||q||² + ||k||²) a
    weight).
    """

    geometry = "keys far from the query, those opposed to it most"
    sign = -1


class ModulatedDot(Kernel):
    """k(q, k) = (cos(q, k) + 1) (||q||² + 1) (||k||² + 1), the paper's example of building a kernel; D_phi = D + 1.

    A zero vector has no direction: its cosine counts as 0.
    """

    geometry = "keys in the query's direction, weighted by their length"

    def phi(self, q: Tensor) -> Tensor:
        """Return (||q||² + 1) [q/||q||, 1], (..., L, D + 1)."""
        norm = q.square().sum(-1, keepdim=True)
        return (norm + 1) * torch.cat([F.normalize(q, dim=-1), torch.ones_like(norm)], dim=-1)

    def psi(self, k: Tensor) -> Tensor:
        """Return the same map as `phi`: the kernel is symmetric."""
        return self.phi(k)

    def pairwise(self, q: Tensor, k: Tensor) -> Tensor:
        """Return (cos + 1)(||q_i||² + 1)(||k_j||² + 1), (..., Lq, Lk)."""
        cosine = F.cosine_similarity(q.unsqueeze(-2), k.unsqueeze(-3), dim=-1)
        return (cosine + 1) * (q.square().sum(-1)[..., :, None] + 1) * (k.square().sum(-1)[..., None, :] + 1)


KERNELS: dict[str, type[Kernel]] = {
    kernel.__name__: kernel for kernel in (HadamardExp, SumSquaredDistance, DiffSquaredDistance, ModulatedDot)
}


def register_kernel(kernel: type[Kernel]) -> type[Kernel]:
    """Make a kernel class known by its name to `get_kernel` and so to model YAMLs; usable as a decorator.

    Raises:
        ValueError: a different class of that name is registered already.
    """
    name = kernel.__name__
    if KERNELS.setdefault(name, kernel) is not kernel:
        raise ValueError(f"a kernel named '{name}' is registered already; give yours another class name")
    return kernel


def get_kernel(name: str) -> Kernel:
    """Return the kernel registered under `name`.

    Raises:
        ValueError: no kernel has that name.
    """
    if name not in KERNELS:
        raise ValueError(f"unknown kernel '{name}'; known: {', '.join(sorted(KERNELS))}")
    return KERNELS[name]()
