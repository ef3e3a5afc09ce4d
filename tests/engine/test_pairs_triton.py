"""The kernel that compares objects with anchors gives what the plain form gives: interpreted, compiled, on a GPU."""

import importlib.util
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from yolo_lat.engine import static_loss
from yolo_lat.engine.static_loss import StaticAssigner

pytest.importorskip("triton")
from yolo_lat.engine import pairs_triton


@pytest.fixture(scope="module")
def interpreted():
    """A copy of the module with its kernel run by Triton's interpreter on the CPU, in few large programs."""
    spec = importlib.util.spec_from_file_location("pairs_interpreted", pairs_triton.__file__)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        spec.loader.exec_module(module)
        module.BLOCK = 128
        yield module


def assigner(**options) -> StaticAssigner:
    return StaticAssigner(10, 5, 0.5, 6.0, [8, 16, 32], 1e-9, None, **options)


def pairs(seed: int, batch: int = 2, count: int = 3, anchors: int = 150, device: str = "cpu") -> tuple:
    """Scores, boxes, centres, labels, objects and which of them are valid; boxes near objects, some the same."""
    generator = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    corners = some(batch, count, 2) * 200
    objects = torch.cat([corners, corners + some(batch, count, 2) * 90 + 1], -1)
    chosen = torch.randint(count, (batch, anchors), generator=generator)
    boxes = objects.gather(1, chosen[..., None].expand(-1, -1, 4)) + (some(batch, anchors, 4) - 0.5) * 20
    boxes[:, ::7] = objects[:, :1]
    scores = some(batch, 5, anchors).transpose(1, 2)
    labels = torch.randint(5, (batch, count), generator=generator)
    valid = some(batch, count, 1) < 0.8
    made = scores, boxes, some(anchors, 2) * 260, labels, objects, valid
    return tuple(x.to(device) for x in made)


def assert_same(found: tuple, expected: tuple) -> None:
    inside, metric, overlaps = found
    assert torch.equal(inside, expected[0])
    torch.testing.assert_close(overlaps, expected[2], rtol=2e-5, atol=2e-6)
    torch.testing.assert_close(metric, expected[1].float(), rtol=1e-3, atol=2e-6)


@given(seed=st.integers(0, 2**31), count=st.integers(1, 4), anchors=st.integers(1, 300))
@settings(max_examples=15, deadline=None)
def test_the_kernel_equals_the_plain_form(interpreted, seed, count, anchors):
    data = pairs(seed, 2, count, anchors)
    plain = assigner()._compare(*data)
    assert_same(interpreted.compare(*data, 16.0, 0.5, 6.0), plain)


def test_boxes_without_height_or_width(interpreted):
    scores, boxes, centres, labels, objects, valid = pairs(0)
    boxes[:, :50, 3] = boxes[:, :50, 1]
    boxes[:, 50:100, 2] = boxes[:, 50:100, 0]
    boxes[:, 100:, 2:] = boxes[:, 100:, :2] - 3
    data = scores, boxes, centres, labels, objects, valid
    assert_same(interpreted.compare(*data, 16.0, 0.5, 6.0), assigner()._compare(*data))


def test_exponents_are_those_of_the_assigner(interpreted):
    data = pairs(1)
    other = assigner()
    other.alpha, other.beta = 1.0, 2.0
    assert_same(interpreted.compare(*data, 16.0, 1.0, 2.0), other._compare(*data))


def test_overlaps_are_at_most_one(interpreted):
    scores, boxes, centres, labels, objects, valid = pairs(2)
    boxes[:] = objects[:, :1]
    _, _, overlaps = interpreted.compare(scores, boxes, centres, labels, objects, valid, 16.0, 0.5, 6.0)
    assert overlaps.max() == pytest.approx(1, abs=1e-6)
    assert overlaps.max() <= 1
    assert math.isfinite(float(overlaps.min()))


def test_the_kernel_compiles_for_a_gpu():
    from triton import compile as compile_for
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    pointers = dict.fromkeys(("scores", "boxes", "centres", "objects", "metric", "overlaps"), "*fp32")
    pointers |= {"labels": "*i64", "valid": "*u8", "inside": "*u8", "smallest": "fp32"}
    sizes = dict.fromkeys(("count", "anchors", "of_sample", "of_anchor", "of_class"), "i32")
    constants = {"ALPHA": 0.5, "BETA": 6.0, "BLOCK": pairs_triton.BLOCK}
    source = ASTSource(pairs_triton.compare_kernel, pointers | sizes | dict.fromkeys(constants, "constexpr"), constants)
    assert "compare_kernel" in compile_for(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_the_assigner_takes_the_kernel(monkeypatch):
    data = pairs(3, 16, 16, 8400, "cuda")
    found = assigner()._compare(*data)
    monkeypatch.setattr(static_loss, "has_kernels", lambda device: False)
    expected = assigner()._compare(*data)
    assert (found[0] != expected[0]).float().mean() < 1e-5  # a centre on an edge, where the last bit decides
    same = found[0] == expected[0]
    torch.testing.assert_close(found[2][same], expected[2][same], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1][same], expected[1][same].float(), rtol=2e-3, atol=1e-5)
