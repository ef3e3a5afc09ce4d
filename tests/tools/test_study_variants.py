"""Every model that a study trains: it builds with the parameters it should have, learns, and its exports compute it."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quick import first
from small_training import TRAIN
from ultralytics.utils import DEFAULT_CFG

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import study  # noqa: E402
from study_models import write_model  # noqa: E402

from yolo_lat import YOLOLAT  # noqa: E402
from yolo_lat.nn import LatModel, load_model_yaml  # noqa: E402
from yolo_lat.nn.complexity import count_parameters  # noqa: E402
from yolo_lat.nn.cross_scale import CrossScaleELA  # noqa: E402

P, N, FIRST_P = 286_164, 1_924_000, 261_236  # parameters as trained, 80 classes
PARAMETERS_OF_P = {
    "kernels": {"HadamardExp": P, "SumSquaredDistance": P, "DiffSquaredDistance": P, "ModulatedDot": P},
    "links": {
        **{"base": P, "linear": P - 8_192, "sum": P - 16_640, "gated": P - 16_512},
        **{"residual": P + 4_224, "transformer": P + 4_160},
    },
    "attention": {
        **dict.fromkeys(("cross-scale", "per-level", "softmax", "area", "ela-p5", "softmax-p5"), P),
        **{"none": P - 8_448, "mean": P - 4_224},
        **{"gated": P - 16_512, "gated-none": P - 24_960, "gated-mean": P - 20_736},
    },
    "block": {
        **{"base": P, "local-0": P - 3_456, "local-3": P - 2_048, "local-7": P + 3_072, "heads-2": P - 2_112},
        **{"heads-8": P + 4_224, "key-4": P - 2_112, "key-16": P + 4_224, "key-32": P + 12_672, "no-gate": P - 64},
        **{"lobe": P + 12_672, "experts-4": P + 40_960, "at-p5": P - 1_728, "at-p4": P - 1_728, "at-p3": P - 1_728},
        "at-p3-p4-p5": P + 1_728,
    },
    "parts": {
        **{"base": FIRST_P, "patch-stem": FIRST_P - 1_920, "dense-p3": 325_364, "stride-4-block": 262_676},
        **{"no-p4-block": 249_236, "two-p4-blocks": 273_236, "no-attention": 236_660},
        "attention-at-p3": FIRST_P + 1_728,
    },
}
PARAMETERS_OF_N = {
    "kernels": {"HadamardExp": N, "SumSquaredDistance": N, "DiffSquaredDistance": N, "ModulatedDot": N},
    "links": {
        **{"base": N, "linear": N + 33_024, "sum": N - 256, "concat": N + 49_152},
        **{"residual": N + 16_640, "transformer": N + 16_512},
    },
    "attention": {
        **dict.fromkeys(("cross-scale", "per-level", "softmax", "area", "ela-p5", "softmax-p5"), N),
        **{"none": N - 24_960, "mean": N - 8_320},
    },
    "block": {
        **{"base": N, "local-0": N - 6_912, "local-3": N - 4_096, "local-7": N + 6_144, "heads-2": N - 4_160},
        **{"heads-8": N + 8_320, "key-4": N - 4_160, "key-16": N + 8_320, "key-32": N + 24_960, "no-gate": N - 128},
        **{"lobe": N + 49_920, "experts-4": N + 163_840, "at-p5": N - 3_456, "at-p4": N - 3_456, "at-p3": N - 3_456},
        "at-p3-p4-p5": N + 3_456,
    },
}
PARAMETERS = {("p", name): found for name, found in PARAMETERS_OF_P.items()}
PARAMETERS |= {("n", name): found for name, found in PARAMETERS_OF_N.items()}
CHANGED = {
    f"{name}:{run.row[0]}": run
    for name in (*PARAMETERS_OF_P, "growth", "screen", "growth-p", "image-size")
    for run in study.read_study(ROOT / f"tools/studies/{name}.yaml")
    if run.change
}
TRAINED = CHANGED | {
    f"baselines:{run.row[0]}": run
    for run in study.read_study(ROOT / "tools/studies/baselines.yaml")
    if run.row[0] in ("as-published", "yolo26n")
}
OF_P = {key: run for key, run in CHANGED.items() if ":p-" in key and not key.startswith("image-size")}
BUILT = OF_P | {key: run for key, run in CHANGED.items() if key.startswith("block:n-at-")}
EXPORTED = BUILT | {key: run for key, run in CHANGED.items() if key.startswith("growth")}


def build(run: study.Run, folder: Path, nc: int = 80) -> LatModel:
    torch.manual_seed(0)
    file = write_model(run.options["model"], run.change, folder / "model.yaml")
    return LatModel(load_model_yaml(file), nc=nc, verbose=False)


def batch(size: int = 64) -> dict[str, Any]:
    return {
        "img": torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)),
        "batch_idx": torch.tensor([0.0, 1.0]),
        "cls": torch.tensor([[1.0], [3.0]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.6], [0.3, 0.6, 0.2, 0.2]]),
    }


@pytest.mark.parametrize(("model", "name"), PARAMETERS)
def test_each_variant_has_its_parameters(model: str, name: str, tmp_path) -> None:
    runs = {run.row[0]: run for run in study.read_study(ROOT / f"tools/studies/{name}.yaml")}
    names = (f"yolo-lat-{model}", f"yolo-lat-first-{model}")
    of_model = {key: run for key, run in runs.items() if run.options["model"] in names}
    found = {key.removeprefix(f"{model}-"): count_parameters(build(run, tmp_path)) for key, run in of_model.items()}
    assert found == PARAMETERS[model, name]


@pytest.mark.parametrize("place", ["p5", "p4", "p3", "p3-p4-p5"])
@pytest.mark.parametrize("name", ["p", "n"])
def test_attention_sits_where_its_name_says_and_the_head_gets_all_levels(name: str, place: str, tmp_path) -> None:
    run = CHANGED[f"block:{name}-at-{place}"]
    assert (run.options["model"], run.against) == (f"yolo-lat-{name}", f"{name}-base")
    model = build(run, tmp_path).eval()
    (attention,) = (module for module in model.modules() if isinstance(module, CrossScaleELA))
    sides: dict[Any, list[int]] = {}
    for module in (attention, model.model[-1]):
        module.register_forward_pre_hook(lambda m, args: sides.update({m: [x.shape[-1] for x in args[0]]}))
    with torch.no_grad():
        model(torch.rand(1, 3, 96, 96))
    assert sides[attention] == [96 // 2 ** int(level[1]) for level in place.split("-")]
    assert sides[model.model[-1]] == [12, 6, 3]


@pytest.mark.parametrize("key", first(9, BUILT))
def test_a_variant_trains_a_step_and_deploys(key: str, tmp_path) -> None:
    model = build(BUILT[key], tmp_path, nc=4)
    model.args = copy.copy(DEFAULT_CFG)
    loss, items = model(batch())
    loss.sum().backward()
    assert all(torch.isfinite(value) for value in items.values())
    learned = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert not [name for name, grad in learned.items() if grad is None or not grad.isfinite().all()]
    model.eval()
    images = batch(96)["img"]
    with torch.no_grad():
        y = model(images)[0]
        assert y.shape == (2, 4 + 4, 144 + 36 + 9)
        for target in ("gpu", "cpu"):
            deployed = copy.deepcopy(model)
            deployed.target = target
            torch.testing.assert_close(deployed.deploy()(images)[0], y, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["gpu", "cpu"])
@pytest.mark.parametrize("key", EXPORTED)
def test_an_exported_variant_computes_what_it_should(key: str, target: str, tmp_path, monkeypatch) -> None:
    import onnxruntime as ort

    monkeypatch.chdir(tmp_path)
    model = YOLOLAT(write_model(EXPORTED[key].options["model"], EXPORTED[key].change, tmp_path / "model.yaml"))
    images = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        expected = copy.deepcopy(model.model).eval()(images)[0].numpy()
    file = model.export(imgsz=96, target=target)
    (output,) = ort.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, {"images": images.numpy()})
    np.testing.assert_allclose(output, expected, rtol=1e-3, atol=1e-2)
    YOLOLAT(tmp_path / "model.yaml").export(imgsz=96, quantize=16)  # which compares the file with PyTorch itself


@pytest.mark.slow
@pytest.mark.parametrize("key", TRAINED)
def test_a_variant_learns_for_an_epoch(key: str, tmp_path, shapes) -> None:
    """With the data and the loss that studies train with, on the CPU here."""
    run = TRAINED[key]
    file = write_model(run.options["model"], run.change, tmp_path / "model.yaml")
    assert run.options["cache"] == "device"
    arguments = TRAIN | {"cache": "device"}
    metrics = YOLOLAT(file).train(data=shapes, epochs=1, project=tmp_path, name="train", **arguments)
    assert len(metrics.coco) == 12
    assert YOLOLAT(tmp_path / "train/weights/best.safetensors").model.yaml["head"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("key", [key for key in TRAINED if not key.startswith("image-size")])
def test_a_variant_learns_on_cuda_as_its_study_trains_it(key: str, tmp_path, shapes) -> None:
    """The whole step captured as a CUDA graph, but for what the study exempts."""
    run = TRAINED[key]
    file = write_model(run.options["model"], run.change, tmp_path / "model.yaml")
    arguments = TRAIN | {"device": 0, "cache": "device", "cuda_graph": run.options["cuda_graph"]}
    metrics = YOLOLAT(file).train(data=shapes, epochs=2, project=tmp_path, name="train", **arguments)
    assert len(metrics.coco) == 12
