"""A student learns from a teacher by Ultralytics' own loss, on data of the host and of the device."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from quick import first
from safetensors.torch import load_file
from ultralytics.cfg import get_cfg
from ultralytics.nn.distill_model import DistillationModel

from yolo_lat import YOLOLAT
from yolo_lat.engine.distillation import Distillation, load_teacher
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
    stock.load_state_dict(ours.state_dict())
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
@pytest.mark.slow
def test_a_training_goes_on_with_its_teacher_and_leaves_the_student_alone(shapes, tmp_path, cache) -> None:
    def stop(trainer) -> None:
        if trainer.epoch == 2:
            raise InterruptedError

    for name in ("whole", "stopped"):
        model = YOLOLAT("yolo-lat-p")
        if name == "stopped":
            model.add_callback("on_train_epoch_start", stop)
        try:
            model.train(data=shapes, project=tmp_path, name=name, distill_model=TEACHER, cache=cache, **ARGS)
        except InterruptedError:
            YOLOLAT("yolo-lat-p").train(resume=str(tmp_path / "stopped/weights/last.pt"))
    weights = [load_file(tmp_path / name / "weights/last.safetensors") for name in ("whole", "stopped")]
    assert weights[0].keys() == student().state_dict().keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    with (tmp_path / "whole/results.csv").open() as file:
        losses = [float(row["train/dis_loss"]) for row in csv.DictReader(file)]
    assert 0 < losses[2] < losses[0]


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


def test_a_teacher_of_other_levels(tmp_path: Path) -> None:
    model = YOLOLAT("yolov8-p6.yaml", scale="n")
    model.save(tmp_path / "p6.pt")
    with pytest.raises(UserError, match=r"^distill_model: the teacher predicts on 4 levels, and the student on 3;"):
        Distillation(student(), load_teacher(tmp_path / "p6.pt"))


@pytest.mark.gpu
@needs_cuda
def test_captured_steps_are_the_eager_ones() -> None:
    found = []
    shapes = [(4, 5)] * 5 + [(3, 5), (4, 6)] * 3  # each is captured when it comes again, the last after another size
    for capture in (False, True):
        torch.manual_seed(2)
        train = step(Distillation(student(device="cuda"), load_teacher(TEACHER)), capture)
        found.append(torch.stack([train.step(batch("cuda", *shape), update=True) for shape in shapes]))
    torch.testing.assert_close(found[1], found[0], rtol=2e-3, atol=1e-4)
