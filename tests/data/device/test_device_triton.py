"""The kernel gives what the plain form gives: interpreted here, compiled for a GPU without one."""

import importlib

import pytest
import torch
from device_samples import EVERYTHING, cached, generator, write_split

from yolo_lat.data.device.loader import DeviceLoader, flat
from yolo_lat.data.device.plan import Augment, draw, letterbox
from yolo_lat.data.device.render import render
from yolo_lat.data.device.targets import place

pytest.importorskip("triton")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def interpreted(monkeypatch):
    """The module with its kernel run by Triton's interpreter on the CPU, in few large programs."""
    import yolo_lat.data.device.render_triton as module

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    importlib.reload(module)
    monkeypatch.setattr(module, "BLOCK", 1024)
    yield module
    monkeypatch.undo()
    importlib.reload(module)


def same(made: torch.Tensor, expected: torch.Tensor) -> bool:
    """Apart here and there, where a product's last bit decides: by one grey level, or by a step of the hue's 180."""
    difference = (made.int() - expected.int()).abs()
    return bool((difference > 0).float().mean() < 0.01 and (difference > 1).float().mean() < 0.0005)


def test_the_kernel_equals_the_plain_form(tmp_path, interpreted):
    cache = cached(write_split(tmp_path, 6, sides=(20, 60)), 32)
    for seed, augment in enumerate((Augment(), EVERYTHING, Augment(mosaic=0, mixup=1, cutout=1))):
        plan = draw(cache, augment, torch.arange(6), generator(seed))
        cut = place(cache, plan).cut
        assert same(interpreted.render_triton(cache, plan, cut), render(cache, plan, cut))


def test_whole_images_are_copied_exactly(tmp_path, interpreted):
    cache = cached(write_split(tmp_path, 3, sides=(20, 60)), 32)
    plan = letterbox(cache, torch.arange(3), torch.tensor([[0, 0], [3, 1], [0, 9]]))
    cut = torch.zeros((3, 4), dtype=torch.int32)
    assert torch.equal(interpreted.render_triton(cache, plan, cut), render(cache, plan, cut))


@pytest.mark.parametrize("mixes", [False, True])
def test_the_kernel_compiles_for_cuda(mixes):
    from triton import compile as compile_for
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from yolo_lat.data.device.render_triton import BLOCK, render_kernel

    pointers = {"out": "*u8", "pixels": "*u8", "tiles": "*i64", "frames": "*i32", "inverse": "*fp32"}
    signature = {**pointers, "tones": "*fp32", "marks": "*i32", "start": "i32", "s": "i32"}
    constants = {"PARTS": 3, "MIXES": mixes, "CUTS": mixes, "COLOURS": True, "PERSPECTIVE": mixes, "BLOCK": BLOCK}
    source = ASTSource(render_kernel, signature | dict.fromkeys(constants, "constexpr"), constants)
    compiled = compile_for(source, target=GPUTarget("cuda", 90, 32))
    assert "render_kernel" in compiled.asm["ptx"]


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("spill", [False, True])
def test_on_a_gpu_the_kernel_equals_the_plain_form(split, cache, spill):
    on_gpu = cached(split, cache.imgsz, "cuda", budget=10 if spill else None, spill=spill)
    loader = DeviceLoader(on_gpu, EVERYTHING, 5, seed=3)
    assert loader.renderer == "triton"
    from yolo_lat.data.device.render_triton import render_triton

    plan = draw(on_gpu, EVERYTHING, torch.arange(12, device="cuda"), torch.Generator("cuda").manual_seed(0))
    cut = place(on_gpu, plan).cut
    made = render_triton(on_gpu, plan, cut)
    on_cpu = type(plan)(plan.imgsz, *(t.cpu() for t in plan.tensors().values()), True, True, True, True)
    assert same(made.cpu(), render(cache, on_cpu, cut.cpu()))


@pytest.mark.gpu
@needs_cuda
def test_on_a_gpu_batches_are_the_same_again_and_do_not_wait(split, cache):
    on_gpu = cached(split, cache.imgsz, "cuda")
    loader = DeviceLoader(on_gpu, EVERYTHING, 5, seed=3)
    first = list(loader)
    batches = loader.batches()
    next(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = next(batches)
        boxes = flat(again)["bboxes"]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(again[key], first[1][key]) for key in ("img", "boxes", "labels", "valid", "index"))
    assert len(boxes) == again["total"]
    resumed = next(loader.batches(1))
    assert torch.equal(resumed["img"], again["img"])
