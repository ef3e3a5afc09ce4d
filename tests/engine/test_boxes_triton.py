"""The kernels of boxes and their losses give what the plain form gives: interpreted, compiled, on a GPU."""

import importlib.util
import sys
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quick import first
from test_static_loss import Head, assert_equal, evaluate, halved, objects, pair, predictions

from yolo_lat.engine import static_loss
from yolo_lat.engine.static_loss import StaticDetectionLoss

pytest.importorskip("triton")
from yolo_lat.engine import boxes_triton, pairs_triton


def loaded(name: str, file: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def interpreted():
    """A copy of the module with its kernels run by Triton's interpreter on the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        pairs = loaded("pairs_interpreted", pairs_triton.__file__)
        patch.setitem(sys.modules, pairs_triton.__name__, pairs)
        module = loaded("boxes_interpreted", boxes_triton.__file__)
        yield module


def both(criterion, preds, batch, kernels, monkeypatch) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Losses and gradients with kernels and without."""
    plain = evaluate(criterion, preds, batch)
    with monkeypatch.context() as patch:
        patch.setattr(static_loss, "_box_kernels", lambda raw: kernels)
        return evaluate(criterion, preds, batch), plain


@pytest.mark.parametrize("topk2", [None, 1])
@pytest.mark.parametrize("reg_max", first(2, [1, 16, 8]))
def test_losses_and_gradients_are_those_of_the_plain_form(interpreted, reg_max, topk2, monkeypatch):
    torch.manual_seed(0)
    _, criterion = pair(3, reg_max, topk2)
    found, expected = both(criterion, predictions(2, 3, reg_max), objects(2, 8, 3), interpreted, monkeypatch)
    assert_equal(found, expected, tolerance=1e-5)


@given(seed=st.integers(0, 2**31), reg_max=st.sampled_from([1, 4]), spread=st.floats(0.01, 6))
@settings(max_examples=15, deadline=None)
def test_any_boxes(interpreted, seed, reg_max, spread):
    torch.manual_seed(seed)
    _, criterion = pair(2, reg_max)
    with pytest.MonkeyPatch.context() as patch:
        preds, batch = predictions(1, 2, reg_max, spread), objects(2, 5, 2)
        batch = {name: value[:1] for name, value in batch.items()}
        assert_equal(*both(criterion, preds, batch, interpreted, patch), tolerance=2e-5)


@pytest.mark.parametrize("reg_max", first(1, [1, 16]))
def test_predictions_in_bfloat16_are_widened_first(interpreted, reg_max, monkeypatch):
    torch.manual_seed(1)
    _, criterion = pair(3, reg_max)
    found, expected = both(criterion, halved(predictions(2, 3, reg_max)), objects(2, 5, 3), interpreted, monkeypatch)
    assert found[2].dtype == torch.bfloat16
    assert_equal(found[:2], expected[:2], tolerance=1e-5)
    assert_equal(found[2:], expected[2:], tolerance=2**-8)


def test_any_strides(interpreted):
    """A head may give its predictions anchor by anchor."""
    torch.manual_seed(2)
    raw = torch.randn(2, 150, 64).transpose(1, 2)
    centres, strides = torch.rand(150, 2) * 40, torch.full((150, 1), 8.0)
    found = interpreted.decode(raw, centres, strides)
    assert torch.equal(found, interpreted.decode(raw.contiguous(), centres, strides))
    expected = StaticDetectionLoss(Head(1, 16)).bbox_decode(centres, raw.transpose(1, 2)) * 8
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_what_lies_in_the_background_has_no_gradient(interpreted, monkeypatch):
    _, criterion = pair(2, 1)
    preds, batch = predictions(2, 2, 1), objects(2, 4, 2)
    preds["boxes"][1] = float("inf")  # the second image has no objects
    found, _ = both(criterion, preds, batch, interpreted, monkeypatch)
    assert found[2].isfinite().all()
    assert not found[2][1].any()
    assert found[2][0].any()


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("bins", [1, 16])
def test_the_kernels_compile_for_a_gpu(bins, backward):
    from triton import compile as compile_for
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    pointers = {"raw": "*bf16", "gradient": "*bf16" if backward else "*fp32", "foreground": "*u8"}
    pointers |= dict.fromkeys(("centres", "strides", "targets", "weights", "image_size", "losses", "slopes"), "*fp32")
    sizes = dict.fromkeys(("anchors", "of_sample", "of_channel", "of_anchor"), "i32")
    constants = {"BINS": bins, "BLOCK": boxes_triton.BLOCK, "BACKWARD": backward}
    names = boxes_triton.losses_kernel.arg_names
    signature = {name: (pointers | sizes | dict.fromkeys(constants, "constexpr"))[name] for name in names}
    compiled = compile_for(
        ASTSource(boxes_triton.losses_kernel, signature, constants), target=GPUTarget("cuda", 90, 32)
    )
    assert "losses_kernel" in compiled.asm["ptx"]
    signature = {
        name: (pointers | sizes | {"boxes": "*fp32", "BINS": "constexpr", "BLOCK": "constexpr"})[name]
        for name in boxes_triton.decode_kernel.arg_names
    }
    del constants["BACKWARD"]
    source = ASTSource(boxes_triton.decode_kernel, signature, constants)
    assert "decode_kernel" in compile_for(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("reg_max", [1, 16])
def test_on_a_gpu_the_loss_takes_the_kernels(reg_max, dtype, monkeypatch):
    torch.manual_seed(3)
    criterion = StaticDetectionLoss(Head(12, reg_max, device="cuda"))
    preds, batch = predictions(16, 12, reg_max, device="cuda"), objects(16, 16, 12, device="cuda")
    preds = preds if dtype is torch.float32 else halved(preds)
    assert static_loss._box_kernels(preds["boxes"]) is boxes_triton
    found = evaluate(criterion, preds, batch)
    monkeypatch.setattr(static_loss, "_box_kernels", lambda raw: None)
    expected = evaluate(criterion, preds, batch)
    assert_equal(found[:2], expected[:2], tolerance=1e-5)
    assert_equal(found[2:], expected[2:], tolerance=1e-4 if dtype is torch.float32 else 2**-8)
