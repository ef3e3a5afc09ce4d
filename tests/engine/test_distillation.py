"""A student learns from a teacher's features, by Ultralytics' own loss, and from its outputs."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from quick import first
from safetensors.torch import load_file
from ultralytics import RTDETR
from ultralytics.cfg import get_cfg
from ultralytics.nn.distill_model import DistillationModel, FeatureHook
from ultralytics.nn.tasks import DetectionModel

from yolo_lat import YOLOLAT
from yolo_lat.engine.distillation import Distillation, check_teacher, load_teacher, output_losses
from yolo_lat.engine.fast_step import FusedEMA, TrainStep, fast_optimizer
from yolo_lat.engine.static_loss import static_criterion
from yolo_lat.errors import UserError
from yolo_lat.nn import LatModel, load_model_yaml

ARGS = {"imgsz": 64, "batch": 8, "device": "cpu", "workers": 0, "plots": False, "epochs": 3, "optimizer": "SGD"}
TEACHER = "yolo-lat-n-voc12"
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def student(name: str = "yolo-lat-p", device: str = "cpu") -> LatModel:
    torch.manual_seed(0)
    network = LatModel(load_model_yaml(name), nc=3, verbose=False).train().to(device)
    network.args = get_cfg(overrides={"imgsz": 64})
    return network


def sure(network: Any) -> Any:
    """Let a network predict otherwise from position to position, and from branch to branch, as a trained one does."""
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for name, parameter in network.model[-1].named_parameters():
            if name.endswith("weight") and parameter.dim() == 4:
                parameter.normal_(0, 0.3)
        for norm in norms:
            norm.momentum, kept = 1.0, norm.momentum
        network.train()(torch.rand(8, 3, 64, 64, device=next(network.parameters()).device))
        for norm in norms:
            norm.momentum = kept
    return network


def raw(bins: int, anchors: int = 7, seed: int = 0, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions (2, 4·bins, A), of which those without bins are distances, and (2, nc, A), in float64."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.randn(2, 4 * bins, anchors, generator=generator, dtype=torch.float64) * 2
    boxes = boxes.abs() + 0.1 if bins == 1 else boxes
    return boxes, torch.randn(2, classes, anchors, generator=generator, dtype=torch.float64) * 3 - 2


def slow_losses(boxes: torch.Tensor, scores: torch.Tensor, told: tuple[torch.Tensor, torch.Tensor]) -> list[float]:
    """`output_losses` position by position."""

    def bins_of(column: torch.Tensor) -> list[list[float]]:
        return [row.exp().div(row.exp().sum()).tolist() for row in column.view(4, -1)]

    def divergence(p: list[float], q: list[float]) -> float:
        return sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))

    total = cls = dfl = 0.0
    for image in range(len(boxes)):
        for i in range(boxes.shape[-1]):
            chances = [torch.sigmoid(logits[image, :, i]).tolist() for logits in (told[1], scores)]
            cls += sum(divergence([p, 1 - p], [q, 1 - q]) for p, q in zip(*chances, strict=True))
            total += max(chances[0])
            theirs, ours = (bins_of(made[image, :, i]) for made in (told[0], boxes))
            if len(theirs[0]) == len(ours[0]):  # of one bin all are alike
                dfl += max(chances[0]) * sum(map(divergence, theirs, ours)) / 4
    return [part / max(total, 1) for part in (cls, dfl)]


@pytest.mark.parametrize(("bins", "told_bins"), [(1, 1), (16, 16), (1, 16), (16, 8)])
def test_losses_of_outputs_are_the_formulas(bins: int, told_bins: int) -> None:
    boxes, scores = raw(bins)
    told = raw(told_bins, seed=1)
    losses = output_losses(boxes, scores, *told)
    assert [float(loss) for loss in losses] == pytest.approx(slow_losses(boxes, scores, told), rel=1e-9)
    assert (losses[1] > 0) == (bins == told_bins == 16)


@given(seed=st.integers(0, 10_000), bins=st.sampled_from([1, 16]))
@settings(max_examples=25, deadline=None)
def test_outputs_teach_nothing_where_they_are_the_teachers_and_something_elsewhere(seed: int, bins: int) -> None:
    told = raw(bins, seed=seed)
    same = [value.clone().requires_grad_() for value in told]
    losses = torch.stack(output_losses(*same, *told))
    losses.sum().backward()
    assert losses.abs().max() < 1e-12
    assert same[1].grad.abs().max() < 1e-12
    assert same[0].grad is None if bins == 1 else same[0].grad.abs().max() < 1e-12
    other = torch.stack(output_losses(*raw(bins, seed=seed + 1), *told))
    assert (other > 0).tolist() == [True, bins > 1]


def test_a_teacher_that_sees_nothing_says_nothing_of_sides() -> None:
    told = raw(16)[0], torch.full((2, 3, 7), -19.0, dtype=torch.float64)
    cls, dfl = output_losses(*raw(16, seed=1), *told)
    assert dfl < 1e-6 < cls < math.inf


@pytest.mark.parametrize("bins", [1, 16])
def test_losses_of_outputs_are_those_of_float32_whatever_autocast_says(bins: int) -> None:
    coarse = [value.bfloat16() for value in (*raw(bins), *raw(bins, seed=1))]
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.stack(output_losses(*coarse))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.stack(output_losses(*(value.float() for value in coarse))))


def pair(learner: str, teacher: str) -> Distillation:
    """A student and a teacher in float64; what the branches of both predict differs."""
    torch.manual_seed(3)
    models = [
        DetectionModel(name, nc=3, verbose=False) if name.endswith(".yaml") else student(name)
        for name in (learner, teacher)
    ]
    for model in models:
        model.args = get_cfg(overrides={"imgsz": 64})
        sure(model)
    network = Distillation(*models, "outputs").double()
    network.criterion = static_criterion(network.student_model)
    return network


@pytest.mark.parametrize("teacher", ["yolov8n.yaml", "yolo26n.yaml"])
@pytest.mark.parametrize("learner", ["yolo-lat-n", "yolo-lat-p", "yolo26n.yaml"])
def test_the_loss_of_outputs_weighs_as_the_labels_do(learner: str, teacher: str) -> None:
    network = pair(learner, teacher)
    made = batch() | {"img": batch()["img"].double()}
    predicted, told = network.student_model(made["img"]), network.teacher_model(made["img"])
    twice = [(predicted.get("one2many", predicted), told.get("one2many", told), 1)]
    if learner == "yolo26n.yaml":
        twice[0] = (*twice[0][:2], 0.8)  # of E2ELoss, in the first epoch
        if teacher == learner:
            twice.append((predicted["one2one"], told["one2one"], 0.2))
    expected = torch.zeros(())
    for ours, theirs, share in twice:
        cls, dfl = output_losses(ours["boxes"], ours["scores"], theirs["boxes"], theirs["scores"])
        expected = expected + share * 6.0 * (0.5 * cls + 1.5 * dfl)  # Ultralytics' dis, cls and dfl
    losses, named = network.loss(made)
    torch.testing.assert_close(named["dis_loss"], expected.detach(), check_dtype=False, rtol=1e-5, atol=0)
    torch.testing.assert_close(losses[-1], expected * 4, check_dtype=False, rtol=1e-5, atol=0)
    assert list(named)[-1] == "dis_loss"
    losses[-1].backward()
    once = getattr(network.student_model.model[-1], "one2one_cv3", [])
    assert [bool(level[-1].weight.grad.abs().sum() > 0) for level in once] == [teacher == learner] * len(once)


def test_outputs_need_no_features_and_are_not_compared_in_validation() -> None:
    network = pair("yolo-lat-p", "yolov8n.yaml")
    hooks = [hook for module in network.modules() for hook in module._forward_hooks.values()]
    assert not any(isinstance(hook, FeatureHook) for hook in hooks)
    assert not list(network.projector.parameters())
    network.eval()
    images = batch()["img"].double()
    _, named = network.loss({**batch(), "img": images}, network.student_model.train()(images))
    assert named["dis_loss"] == 0


@pytest.mark.parametrize("on", ["features", "outputs"])
def test_a_state_holds_no_teacher_and_an_older_one_does_not_replace_it(on: str) -> None:
    network = Distillation(student(), sure(student("yolo-lat-n")), on)
    state = network.state_dict()
    assert not any(name.startswith("teacher_model.") for name in state)
    teacher = {f"teacher_model.{name}": value for name, value in network.teacher_model.state_dict().items()}
    changed = {name: torch.full_like(value, 2) for name, value in state.items()}
    network.load_state_dict({**changed, **{name: torch.zeros_like(value) for name, value in teacher.items()}})
    assert all((value == 2).all() for value in network.state_dict().values())
    assert all(
        torch.equal(value, teacher[f"teacher_model.{n}"]) for n, value in network.teacher_model.state_dict().items()
    )
    with pytest.raises(UserError, match=r"^distill_model: what the run has learnt of its teacher does not fit this"):
        network.load_state_dict({**state, "projector.9.weight": torch.zeros(1)})


@pytest.mark.parametrize("on", ["features", "outputs"])
def test_a_student_comes_near_to_its_teacher(on: str) -> None:
    torch.manual_seed(3)
    network = Distillation(student("yolo-lat-n"), sure(student("yolo-lat-n")), on)
    network.student_model.criterion = static_criterion(network.student_model)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=2e-3)
    found = []
    for _ in range(25):
        optimizer.zero_grad()
        loss, named = network.loss(batch())
        loss[-1].backward()
        optimizer.step()
        found.append(float(named["dis_loss"]))
    assert found[-1] < 0.5 * found[0]


def batch(device: str = "cpu", images: int = 4, objects: int = 5) -> dict[str, torch.Tensor]:
    generator, shape = torch.Generator().manual_seed(1), (images, objects)
    sides = torch.rand(*shape, 2, generator=generator) * 0.4 + 0.1
    made = {
        "img": torch.rand(images, 3, 64, 64, generator=generator),
        "boxes": torch.cat([sides / 2 + torch.rand(*shape, 2, generator=generator) * (1 - sides), sides], -1),
        "labels": torch.randint(3, shape, generator=generator),
        "valid": torch.rand(*shape, generator=generator) < 0.8,
    }
    return {key: value.to(device) for key, value in made.items()}


def step(network: Distillation, capture: bool = False) -> TrainStep:
    network.criterion = criterion = static_criterion(network.student_model)
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = fast_optimizer(torch.optim.SGD(trained, lr=1e-3, momentum=0.9))
    network.let_go()
    ema = FusedEMA(network.student_model)
    return TrainStep(network, criterion, optimizer, ema, None, None, capture)


def test_losses_and_gradients_are_those_of_ultralytics() -> None:
    torch.manual_seed(2)
    ours = Distillation(student(), load_teacher(TEACHER))
    torch.manual_seed(2)
    stock = DistillationModel(load_teacher(TEACHER), student())
    assert not stock.load_state_dict(ours.state_dict(), strict=False).unexpected_keys
    made = batch()
    losses = step(ours).step(made, update=False)
    image, row = made["valid"].nonzero(as_tuple=True)
    plain = {"batch_idx": image, "cls": made["labels"][image, row], "bboxes": made["boxes"][image, row]}
    total, items = stock.train().loss({"img": made["img"], **plain})
    total.sum().backward()
    torch.testing.assert_close(losses, torch.stack([value.reshape(()) for value in items.values()]))
    assert losses[-1] > 0
    expected = dict(stock.named_parameters())
    for name, parameter in ours.named_parameters():
        if name.startswith("teacher_model."):
            assert parameter.grad is None
        else:
            gradient = expected[name].grad
            assert torch.linalg.vector_norm(parameter.grad - gradient) <= 1e-4 * torch.linalg.vector_norm(gradient)


def test_the_teacher_decodes_nothing(monkeypatch) -> None:
    def decode(*_) -> None:
        raise AssertionError

    network = Distillation(student(), load_teacher(TEACHER))
    monkeypatch.setattr(network.teacher_model.model[-1], "_inference", decode)
    train = step(network)
    for images in (4, 3):
        assert train.step(batch(images=images), update=True).isfinite().all()
        network.eval().train()


def test_what_the_student_has_of_the_teacher_is_not_in_its_average() -> None:
    network = Distillation(student(), load_teacher(TEACHER))
    train = step(network)
    for _ in range(3):
        train.step(batch(), update=True)
    assert train.ema.ema.state_dict().keys() == student().state_dict().keys()
    Distillation.bare(train.ema.ema)
    assert not any(module._forward_hooks for module in train.ema.ema.modules())
    assert any(module._forward_hooks for module in network.student_model.modules())


@pytest.mark.parametrize("cache", first(1, ["device", False]))
@pytest.mark.parametrize("on", first(1, ["outputs", "features"]))
def test_a_training_goes_on_with_its_teacher_and_leaves_the_student_alone(shapes, run, tmp_path, cache, on) -> None:
    teacher = run.folder / "weights/best.safetensors" if on == "outputs" else TEACHER
    told = {"distill_model": str(teacher), "distill_on": on, "cache": cache}

    def stop(trainer) -> None:
        if trainer.epoch == 2:
            raise InterruptedError

    for name in ("whole", "stopped"):
        model = YOLOLAT("yolo-lat-p")
        if name == "stopped":
            model.add_callback("on_train_epoch_start", stop)
        try:
            model.train(data=shapes, project=tmp_path, name=name, **told, **ARGS)
        except InterruptedError:
            last, other = str(tmp_path / "stopped/weights/last.pt"), "features" if on == "outputs" else "outputs"
            with pytest.raises(
                UserError, match=f"^distill_on={other}: the run learns from its teacher's {on}; drop it"
            ):
                YOLOLAT("yolo-lat-p").train(resume=last, distill_on=other)
            YOLOLAT("yolo-lat-p").train(resume=last)
    weights = [load_file(tmp_path / name / "weights/last.safetensors") for name in ("whole", "stopped")]
    assert weights[0].keys() == student().state_dict().keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    with (tmp_path / "whole/results.csv").open() as file:
        losses = [float(row["train/dis_loss"]) for row in csv.DictReader(file)]
    assert min(losses) > 0
    told = yaml.safe_load((tmp_path / "whole/args.yaml").read_text(encoding="utf-8"))
    assert told["dis"] == {"features": 6.0, "outputs": 1.0}[on]


@pytest.mark.parametrize("teacher", first(1, [None, TEACHER]))
def test_a_training_that_breaks_goes_on_from_its_checkpoint(shapes, tmp_path, teacher) -> None:
    broken = []

    def poison(trainer) -> None:
        if trainer.epoch == 1 and not broken:
            broken.append(trainer.epoch)
            trainer.loss = torch.tensor(torch.nan)
            with torch.no_grad():
                for parameter in trainer.model.parameters():
                    parameter[...] = torch.nan if parameter.requires_grad else parameter

    model = YOLOLAT("yolo-lat-p")
    model.add_callback("on_train_epoch_end", poison)
    model.train(data=shapes, project=tmp_path, name="run", distill_model=teacher, cache="device", **ARGS)
    assert broken
    with (tmp_path / "run/results.csv").open() as file:
        rows = [[float(v) for k, v in row.items() if k.startswith("train/")] for row in csv.DictReader(file)]
    assert len(rows) == ARGS["epochs"]
    assert torch.tensor(rows).isfinite().all()
    weights = load_file(tmp_path / "run/weights/last.safetensors").values()
    assert all(value.isfinite().all() for value in weights if value.is_floating_point())


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("yolov8n.yaml", r"^distill_model=yolov8n.yaml: no trained weights; give a .pt, safetensors or a name of"),
        ("nothing.safetensors", r"^distill_model=nothing.safetensors: no such weights; correct the path$"),
    ],
)
def test_what_cannot_teach(shapes, tmp_path, teacher, message) -> None:
    with pytest.raises(UserError, match=message):
        YOLOLAT("yolo-lat-p").train(data=shapes, project=tmp_path, distill_model=teacher, **ARGS)
    assert not list(tmp_path.iterdir())


def test_a_teacher_of_other_levels() -> None:
    with pytest.raises(
        UserError, match=r"^distill_model: the teacher predicts at strides \[8, 16, 32, 64\], and the stu"
    ):
        Distillation(student(), DetectionModel("yolov8n-p6.yaml", nc=3, verbose=False))


@pytest.mark.parametrize(
    ("names", "changes", "message"),
    [
        (
            ["a", "b"],
            {},
            "^distill_on=outputs: the teacher has 2 classes, and the data 3; take one that was trained for",
        ),
        (
            ["a", "c", "b"],
            {},
            "^distill_on=outputs: class 1 is c to the teacher, and b in the data; take one that was ",
        ),
        (
            ["a", "b", "c"],
            {"single_cls": True},
            "has 3 classes, and the data 1; drop single_cls, take one that was trai",
        ),
        (["a", "b", "c"], {"classes": [0]}, r"would teach all classes, and classes=\[0\]; drop one of both$"),
    ],
)
def test_what_a_teacher_of_other_classes_predicts_cannot_be_learnt(names, changes, message) -> None:
    given = {"classes": None, "single_cls": False} | changes
    with pytest.raises(UserError, match=message):
        check_teacher(names, ["a", "b", "c"], SimpleNamespace(**given))
    known = ["item"] if changes == {"single_cls": True} else ["a", "b", "c"]
    if "classes" not in changes:
        check_teacher(known, ["a", "b", "c"], SimpleNamespace(**given))
        check_teacher([str(i) for i in range(len(known))], ["a", "b", "c"], SimpleNamespace(**given))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"distill_on": "outputs"}, "^distill_on=outputs: needs a teacher; add distill_model=, or drop it$"),
        ({"dis": 1}, "^dis=1: needs a teacher; add distill_model=, or drop it$"),
        ({"distill_on": "boxes", "distill_model": TEACHER}, "^distill_on=boxes: must be features or outputs$"),
        (
            {"distill_on": "outputs", "distill_model": TEACHER},
            r"^distill_on=outputs: the teacher has 12 classes, and the",
        ),
        ({"dis": -1, "distill_model": TEACHER}, r"^dis=-1: must be a weight from 0$"),
    ],
)
def test_what_cannot_be_learnt_leaves_no_folder(shapes, tmp_path, keys, message) -> None:
    with pytest.raises(UserError, match=message):
        YOLOLAT("yolo-lat-p").train(data=shapes, project=tmp_path, **keys, **ARGS)
    assert not list(tmp_path.iterdir())


def test_a_detector_without_levels_teaches_nothing(tmp_path: Path) -> None:
    RTDETR("rtdetr-resnet50.yaml").save(tmp_path / "rtdetr.pt")
    with pytest.raises(UserError, match=r"rtdetr\.pt: RTDETRDecoder has no levels to learn from; take a YOLO$"):
        load_teacher(tmp_path / "rtdetr.pt")


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("on", ["features", "outputs"])
def test_captured_steps_are_the_eager_ones(on: str) -> None:
    found = []
    shapes = [(4, 5)] * 5 + [(3, 5), (4, 6)] * 3  # each is captured when it comes again, the last after another size
    for capture in (False, True):
        torch.manual_seed(2)
        teacher = sure(student("yolo-lat-n", "cuda"))
        train = step(Distillation(student(device="cuda"), teacher, on), capture)
        found.append(torch.stack([train.step(batch("cuda", *shape), update=True) for shape in shapes]))
    torch.testing.assert_close(found[1], found[0], rtol=2e-3, atol=1e-4)
