"""Kernels and the checker that judges them."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from yolo_lat.ela import KERNELS, Kernel, check_kernel, exact_linear_attention, get_kernel, register_kernel

ALL = pytest.mark.parametrize("name", sorted(KERNELS))


@ALL
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-3, 8.0), dim=st.integers(1, 24))
@settings(max_examples=40, deadline=None)
def test_feature_maps_equal_the_kernel(name: str, seed: int, scale: float, dim: int) -> None:
    kernel = get_kernel(name)
    generator = torch.Generator().manual_seed(seed)
    q, k = (scale * torch.randn(2, n, dim, dtype=torch.float64, generator=generator) for n in (5, 7))
    exact = kernel.pairwise(q, k)
    largest = exact.abs().amax(-1, keepdim=True).clamp_min(1e-300)  # opposed directions weigh nothing
    error = (kernel.phi(q) @ kernel.psi(k).transpose(-1, -2) - exact).abs() / largest
    assert error.max() < 1e-12
    assert (exact >= -1e-9 * exact.abs().max()).all()


@ALL
def test_the_papers_kernels_meet_its_criteria(name: str) -> None:
    report = check_kernel(get_kernel(name))
    assert report.ok, str(report)
    assert 0 < report.discrimination < report.softmax_discrimination
    assert report.geometry != "not stated"


def test_geometry_is_measured() -> None:
    correlation = {name: check_kernel(get_kernel(name)).correlations for name in KERNELS}
    assert correlation["SumSquaredDistance"]["cosine"] > 0.5
    assert correlation["DiffSquaredDistance"]["cosine"] < -0.5
    assert correlation["ModulatedDot"]["key length"] > 0.5
    assert correlation["HadamardExp"]["cosine"] > 0.2


class Cubic(Kernel):
    """An odd power of the dot product: decomposable, but negative for opposed vectors."""

    def phi(self, q: Tensor) -> Tensor:
        return torch.einsum("...a,...b,...c->...abc", q, q, q).flatten(-3)

    psi = phi

    def pairwise(self, q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.transpose(-1, -2)) ** 3


class Truncated(Cubic):
    """Feature maps that drop a feature: no longer equal to the kernel."""

    def phi(self, q: Tensor) -> Tensor:
        return super().phi(q)[..., 1:]

    psi = phi


class Rectified(Kernel):
    """Zero for every key of some queries, which must not hide what is wrong with the others."""

    def phi(self, q: Tensor) -> Tensor:
        return q.relu()[..., 1:]

    psi = phi

    def pairwise(self, q: Tensor, k: Tensor) -> Tensor:
        return q.relu() @ k.relu().transpose(-1, -2)


class NotANumber(Cubic):
    """Nothing, at a large scale."""

    def phi(self, q: Tensor) -> Tensor:
        return super().phi(q) if q.std() < 3 else super().phi(q) * math.nan

    psi = phi


class Constant(Kernel):
    """One weight for every pair: nothing to attend to."""

    def phi(self, q: Tensor) -> Tensor:
        return torch.ones_like(q[..., :1])

    psi = phi

    def pairwise(self, q: Tensor, k: Tensor) -> Tensor:
        return torch.ones(*q.shape[:-1], k.shape[-2], dtype=q.dtype)


class Disagreeing(Constant):
    """Two maps of different width."""

    def psi(self, k: Tensor) -> Tensor:
        return torch.ones_like(k[..., :2])


@pytest.mark.parametrize(
    ("kernel", "failed"), [(Cubic(), "non_negative"), (Truncated(), "decomposable"), (Constant(), "discriminative")]
)
def test_checker_names_the_criterion_that_fails(kernel: Kernel, failed: str) -> None:
    report = check_kernel(kernel, head_dim=4)
    assert not report.ok
    assert not getattr(report, failed)
    assert f"{failed.replace('_', '-'):<15}NO" in str(report)


@pytest.mark.parametrize("kernel", [Rectified(), NotANumber()], ids=lambda kernel: type(kernel).__name__)
@pytest.mark.parametrize("dim", [2, 4, 8])
def test_checker_is_not_deceived_by_zeros_and_what_is_no_number(kernel: Kernel, dim: int) -> None:
    report = check_kernel(kernel, head_dim=dim)
    assert not report.decomposable
    assert 0 <= report.discrimination <= 1
    assert all(map(math.isfinite, report.correlations.values()))


@pytest.mark.parametrize("spread", [1.0, 0.1, 0.01, 0.001])
@pytest.mark.parametrize(("name", "sign"), [("DiffSquaredDistance", 1), ("SumSquaredDistance", -1)])
def test_squared_distances_lose_what_their_docstring_says(name: str, sign: int, spread: float) -> None:
    kernel, eps = get_kernel(name), torch.finfo(torch.float32).eps
    generator = torch.Generator().manual_seed(0)
    base = 4 * torch.nn.functional.normalize(torch.randn(8, generator=generator), dim=0)
    q, k = (side * base + spread * torch.randn(1, 1, 200, 8, generator=generator) for side in (1, sign))
    v = torch.rand(1, 1, 200, 3, generator=generator)
    weights = kernel.pairwise(q.double(), k.double())
    exact = weights @ v.double() / weights.sum(-1, keepdim=True)
    error = (exact_linear_attention(q, k, v, kernel) - exact).abs().amax(-1)
    squares = q.square().sum(-1).amax() + k.square().sum(-1).amax()
    assert (error < 8 * eps * squares / weights.mean(-1)).all()


def test_checker_refuses_maps_of_different_width() -> None:
    with pytest.raises(ValueError, match="phi has 1 features and psi 2"):
        check_kernel(Disagreeing())


def test_registered_kernel_is_found_by_name() -> None:
    @register_kernel
    class SquaredCosine(Cubic):
        def phi(self, q: Tensor) -> Tensor:
            return torch.einsum("...a,...b->...ab", q, q).flatten(-2)

        psi = phi

        def pairwise(self, q: Tensor, k: Tensor) -> Tensor:
            return (q @ k.transpose(-1, -2)) ** 2

    try:
        kernel = get_kernel("SquaredCosine")
        assert check_kernel(kernel, head_dim=4).ok
        q = torch.randn(1, 1, 5, 4, dtype=torch.float64)
        weights = kernel.pairwise(q, q)
        expected = weights @ q / weights.sum(-1, keepdim=True)
        torch.testing.assert_close(exact_linear_attention(q, q, q, kernel), expected)
        with pytest.raises(ValueError, match="registered already"):
            register_kernel(type("SquaredCosine", (Cubic,), {}))
    finally:
        del KERNELS["SquaredCosine"]


def test_unknown_kernel_names_the_known() -> None:
    with pytest.raises(ValueError, match=r"unknown kernel 'Softmax'; known: .*HadamardExp"):
        get_kernel("Softmax")


def test_ela_needs_torch_alone() -> None:
    code = (
        "import sys, yolo_lat.ela; extra = 'torch._dynamo', 'ultralytics', 'cv2', 'yolo_lat.nn', 'yolo_lat.engine'; "
        "print([module for module in extra if module in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
