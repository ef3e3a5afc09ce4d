"""Learning from a larger detector: its features, as in Ultralytics, or its predictions, with any weights that load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from ultralytics.nn.distill_model import DistillationModel
from ultralytics.nn.modules.head import Detect
from ultralytics.nn.tasks import DetectionModel

from yolo_lat.ela.attention import no_autocast
from yolo_lat.engine.checkpoint import load_pt, load_safetensors
from yolo_lat.errors import UserError
from yolo_lat.pretrained import find_weights

_TEACHER = "teacher_model."


class Distillation(DistillationModel):
    """A student, its frozen teacher, and a loss that the student's has more for that.

    On `features`, Ultralytics' loss: the squared distance of the features before both heads at each level, the
    student's through two convolutions, where the teacher sees objects. On `outputs`, `output_losses` with the gains
    that the training's own losses have, so that at `dis` 1 the teacher says as much of classes as the labels. Where
    boxes lie is left to the labels, which know better. There an end-to-end student learns each branch from the
    teacher's one of that name, weighed as its labels are: a branch that has to find an object once learns nothing from
    one that finds it ten times. States do not hold the teacher.

    Args:
        student: the model that learns, on its device, with its training arguments.
        teacher: the model that is learnt from, as `load_teacher` returns it.
        on: one of `train_options.DISTILLED`.

    Raises:
        UserError: a teacher with other levels.
    """

    student_model: DetectionModel
    projector: Any

    def __init__(self, student: DetectionModel, teacher: DetectionModel, on: str = "features") -> None:
        theirs, ours = ([int(stride) for stride in model.model[-1].stride] for model in (teacher, student))
        if theirs != ours:
            raise UserError(
                f"distill_model: the teacher predicts at strides {theirs}, and the student at {ours};"
                " take a teacher with the same"
            )
        super().__init__(teacher, student)
        self.on = on
        if on == "outputs":
            self._remove_feature_hooks()
            self.let_go()
            self.projector = nn.ModuleList()
        self.train()

    def train(self, mode: bool = True) -> Distillation:
        """Set the mode of the student; the teacher stays as it is, and its head does not decode what it predicts.

        No box of the teacher is used, and the anchors of a new shape cannot be made while a CUDA graph is captured.
        """
        super().train(mode)
        self.teacher_model.model[-1].training = True
        return self

    def loss(self, batch: dict[str, Any], preds: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the losses of a batch, a sum over its images, the teacher's last, and each by its name."""
        if self.on == "outputs" and self.training:
            losses, named = self._loss_on_outputs(batch)
        else:
            losses, named = super().loss(batch, preds)
        return losses, {name: value.reshape(()) for name, value in named.items()}

    def _loss_on_outputs(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        images, args = batch["img"], self.student_model.args
        with torch.no_grad():
            told = self.teacher_model(images)
        predicted = self.student_model(images)
        losses, named = self.student_model.loss(batch, predicted)
        total = losses.new_zeros(())
        for ours, theirs, share in self._pairs(predicted, told):
            cls, dfl = output_losses(ours["boxes"], ours["scores"], theirs["boxes"], theirs["scores"])
            total = total + share * self.dis * (args.cls * cls + args.dfl * dfl)
        return torch.cat([losses, (total * len(images))[None]]), {**named, "dis_loss": total.detach()}

    def _pairs(self, predicted: dict[str, Any], told: dict[str, Any]) -> list[tuple[Any, Any, Any]]:
        """Return what the student predicts, what it is told, and how much labels weigh there, branch by branch."""
        first = told.get("one2many", told)
        if "one2many" not in predicted:
            return [(predicted, first, 1)]
        both = [(predicted["one2many"], first, self.criterion.o2m)]
        if "one2one" in told:
            both.append((predicted["one2one"], told["one2one"], self.criterion.o2o))
        return both

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the state of the student and of what lies between both."""
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        return {name: value for name, value in state.items() if not name.startswith(_TEACHER)}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take over a state; the teacher stays as it is, also where an older state holds one.

        Raises:
            UserError: the state of a student of another teacher.
        """
        teacher = {_TEACHER + name: value for name, value in self.teacher_model.state_dict().items()}
        own = {name: value for name, value in state_dict.items() if not name.startswith(_TEACHER)}
        try:
            return super().load_state_dict({**own, **teacher}, strict, assign)
        except RuntimeError as error:
            raise UserError(
                "distill_model: what the run has learnt of its teacher does not fit this one; give the same again"
            ) from error

    def let_go(self) -> None:
        """Drop the features of the last batch, so that the student can be copied."""
        self._teacher_feats.clear()
        self._student_feats.clear()

    def mend(self) -> None:
        """Begin anew with projections that are no longer finite."""
        for level in self.projector:
            if not all(parameter.isfinite().all() for parameter in level.parameters()):
                for layer in (layer for layer in level if isinstance(layer, nn.Conv2d)):
                    layer.reset_parameters()

    @staticmethod
    def bare(copy: nn.Module) -> None:
        """Take what ties a copy of the student to its teacher and its loss from it, in place."""
        vars(copy).pop("criterion", None)
        for module in copy.modules():
            DistillationModel._clear_feature_hooks(module)


def output_losses(boxes: Tensor, scores: Tensor, told_boxes: Tensor, told_scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far a student's raw predictions are from a teacher's at the same A positions, scalars from 0.

    The Kullback-Leibler divergence of their class probabilities; and that of the distributions of distances to a box's
    sides, whose shape tells how sure the teacher is of each (localization distillation,
    https://arxiv.org/abs/2102.12252, at temperature 1), 0 where the student has other bins or none. A position's sides
    weigh as much as the teacher's highest probability there, and both are divided by the sum of that, as the losses of
    the labels are by the sum of their scores. Computed in float32 at least, with gradients for the student.

    Args:
        boxes: the student's distances, or logits of their bins, (B, 4·bins, A).
        scores: the student's class logits (B, nc, A).
        told_boxes: the teacher's distances or logits, in strides too, (B, 4·bins', A).
        told_scores: the teacher's class logits (B, nc, A).
    """
    with no_autocast(boxes.device.type):
        dtype = torch.promote_types(boxes.dtype, torch.float32)
        told_scores = told_scores.to(dtype)
        probability = told_scores.sigmoid()
        weight = probability.amax(1)
        total = weight.sum().clamp(min=1)
        cross, own = (
            functional.binary_cross_entropy_with_logits(logits, probability, reduction="none")
            for logits in (scores.to(dtype), told_scores)
        )
        far = boxes.new_zeros((), dtype=dtype)
        if boxes.shape == told_boxes.shape and boxes.shape[1] > 4:
            log, told_log = (raw.to(dtype).unflatten(1, (4, -1)).log_softmax(2) for raw in (boxes, told_boxes))
            divergence = functional.kl_div(log, told_log, reduction="none", log_target=True).sum(2).mean(1)
            far = (divergence * weight).sum()
        return (cross - own).sum() / total, far / total


def load_teacher(weights: str | Path) -> DetectionModel:
    """Return a trained detector in float32.

    Args:
        weights: a .pt, safetensors, or the name of weights that ship.

    Raises:
        UserError: no weights of a detector, or of one that predicts otherwise than at positions of levels.
    """
    file = find_weights(weights, "distill_model")
    teacher = load_safetensors(file) if file.suffix.lower() == ".safetensors" else load_pt(file)[0].float()
    if not isinstance(head := teacher.model[-1], Detect):
        raise UserError(f"distill_model={weights}: {type(head).__name__} has no levels to learn from; take a YOLO")
    return teacher


def check_teacher(names: Sequence[str], classes: Sequence[str], args: Any) -> None:
    """Raise UserError unless a student can learn what a teacher predicts.

    Args:
        names: the classes of the teacher; those without names are as many numbers.
        classes: the classes of the data.
        args: all training arguments.
    """
    where = "distill_on=outputs"
    if args.classes is not None:
        raise UserError(f"{where}: the teacher would teach all classes, and classes={args.classes}; drop one of both")
    if args.single_cls:
        classes = ["item"]
    if len(names) != len(classes):
        hint = "drop single_cls, " if args.single_cls else ""
        raise UserError(
            f"{where}: the teacher has {len(names)} classes, and the data {len(classes)}; {hint}take one that was "
            "trained for these, or distill_on=features"
        )
    unnamed = all(str(i) == name for i, name in enumerate(names))
    for i, (known, needed) in enumerate(zip(names, classes, strict=True)):
        if not unnamed and known != needed:
            raise UserError(
                f"{where}: class {i} is {known} to the teacher, and {needed} in the data; take one that was trained "
                "for these, or distill_on=features"
            )
