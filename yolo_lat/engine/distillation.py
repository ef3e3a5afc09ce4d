"""Learning from a larger detector: Ultralytics' distillation of features, with a teacher from any weights that load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from ultralytics.nn.distill_model import DistillationModel
from ultralytics.nn.tasks import DetectionModel

from yolo_lat.engine.checkpoint import load_pt, load_safetensors
from yolo_lat.errors import UserError
from yolo_lat.pretrained import find_weights


class Distillation(DistillationModel):
    """A student, its frozen teacher, and convolutions from the student's features to the teacher's.

    The loss adds to the student's the squared distance of both features at each level, where the teacher sees objects.

    Args:
        student: the model that learns, on its device, with its training arguments.
        teacher: the model that is learnt from, as `load_teacher` returns it.

    Raises:
        UserError: a teacher with another number of levels.
    """

    student_model: DetectionModel

    def __init__(self, student: DetectionModel, teacher: DetectionModel) -> None:
        levels = [model.model[-1].nl for model in (teacher, student)]
        if levels[0] != levels[1]:
            raise UserError(
                f"distill_model: the teacher predicts on {levels[0]} levels, and the student on {levels[1]}; take one "
                "with as many"
            )
        super().__init__(teacher, student)
        self.train()

    def train(self, mode: bool = True) -> Distillation:
        """Set the mode of the student; the teacher stays as it is, and its head does not decode what it predicts.

        No box of the teacher is used, and the anchors of a new shape cannot be made while a CUDA graph is captured.
        """
        super().train(mode)
        self.teacher_model.model[-1].training = True
        return self

    def loss(self, batch: dict[str, Any], preds: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the losses of a batch, a sum over its images, that of the features the last, and each by its name."""
        losses, named = super().loss(batch, preds)
        return losses, {name: value.reshape(()) for name, value in named.items()}

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


def load_teacher(weights: str | Path) -> DetectionModel:
    """Return a trained detector in float32.

    Args:
        weights: a .pt, safetensors, or the name of weights that ship.

    Raises:
        UserError: no weights of a detector.
    """
    file = find_weights(weights, "distill_model")
    return load_safetensors(file) if file.suffix.lower() == ".safetensors" else load_pt(file)[0].float()
