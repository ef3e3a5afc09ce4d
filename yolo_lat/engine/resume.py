"""All of a training between two epochs, in a file from which it goes on as if nothing had happened.

Ultralytics' checkpoints hold the averaged weights in float16, which is enough to detect but not to go on exactly.
Beside last.pt lies `resume.pt` with the weights, the average, the optimizer and the random states as they are. It is
written after last.pt and best.pt, and once before the first epoch; a training that was killed between them repeats an
epoch and writes the same again. It holds tensors and plain values only and is read without pickle.
"""

from __future__ import annotations

import io
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ultralytics.utils.torch_utils import unwrap_model

from yolo_lat.data.spec import DatasetSpec
from yolo_lat.engine.checkpoint import load_pt
from yolo_lat.engine.ranks import MAIN, RANKS, sum_over_ranks
from yolo_lat.errors import UserError

if TYPE_CHECKING:
    from yolo_lat.engine.trainer import LatTrainer

FILE_NAME = "resume.pt"
_FORMAT = "yolo-lat training 2"
_PLAIN = ("best_fitness", "fitness", "nan_recovery_attempts", "stopped_early")


def collect_gradients(trainer: LatTrainer) -> None:
    """Bring the gradients that the last batches left, too few for an update, to the first of several processes."""
    if RANKS == 1 or trainer.last_update == trainer.last_batch:
        return
    gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    sum_over_ranks(gradients)
    if not MAIN:
        torch._foreach_zero_(gradients)


def training_state(trainer: LatTrainer) -> dict[str, Any]:
    """Return the state of a training whose `epoch` is over."""
    model, criterion = unwrap_model(trainer.model), trainer.criterion
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {
        "format": _FORMAT,
        "epoch": trainer.epoch + 1,
        "pending": trainer.last_batch - trainer.last_update,  # batches without an update; another batch size has others
        "model": model.state_dict(),
        "ema": trainer.ema.ema.state_dict(),
        "ema_updates": trainer.ema.updates,
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        # Between epochs there are gradients only where the last batches were too few for an update.
        "gradients": gradients if trainer.last_update != trainer.last_batch else {},
        "criterion_updates": getattr(criterion, "updates", None),
        "stopper": {key: _plain(value) for key, value in vars(trainer.stopper).items() if key != "patience"},
        "plain": {key: _plain(getattr(trainer, key)) for key in _PLAIN},
        "random": _random_state(),
    }


def restore_training(trainer: LatTrainer, state: dict[str, Any]) -> None:
    """Give a trainer that is set up the state of another; the epoch after that state's comes next."""
    model = unwrap_model(trainer.model)
    model.load_state_dict(state["model"])
    trainer.ema.ema.load_state_dict(state["ema"])
    trainer.ema.updates = state["ema_updates"]
    trainer.optimizer.load_state_dict(state["optimizer"])
    if state["scaler"]:
        trainer.scaler.load_state_dict(state["scaler"])
    for name, parameter in model.named_parameters():
        gradient = state["gradients"].get(name) if MAIN else None
        parameter.grad = None if gradient is None else gradient.to(parameter.device)
    if state["criterion_updates"] is not None:
        trainer.criterion.updates = state["criterion_updates"] - 1
        trainer.criterion.update()
    for key, value in state["stopper"].items():
        setattr(trainer.stopper, key, value)
    for key, value in state["plain"].items():
        setattr(trainer, key, value)
    trainer.start_epoch = state["epoch"]
    trainer.last_update = trainer.start_epoch * len(trainer.train_loader) - 1 - state["pending"]
    waited = trainer.start_epoch - trainer.stopper.best_epoch
    trainer.stop = trainer.stopped_early = trainer.stopped_early and waited >= trainer.stopper.patience
    _set_random_state(state["random"])


def read_state(checkpoint: Path) -> dict[str, Any] | None:
    """Return the state beside a checkpoint, None where there is none.

    Raises:
        UserError: a damaged file.
    """
    file = checkpoint.with_name(FILE_NAME)
    if not file.is_file():
        return None
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        if state["format"] != _FORMAT:
            raise ValueError(f"has the format {state['format']}")
    except Exception as error:  # a damaged pickle can fail in any way
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{file}: not the state of a training ({reason}); remove it to go on from the weights of {checkpoint.name} "
            "alone"
        ) from error
    return dict(state)


def check_same_classes(checkpoint: Path, spec: DatasetSpec) -> None:
    """Raise UserError where a training would go on with data of other classes than its own, or in another order."""
    learnt = [str(name) for name in load_pt(checkpoint)[0].names.values()]
    if learnt != list(map(str, spec.names)):
        raise UserError(
            f"{spec.file}: its classes are not those that the run learns, in this order: {', '.join(learnt)[:200]}; go "
            "on with the data that it began with, or begin a new run from its weights"
        )


def write_state(trainer: LatTrainer, folder: Path) -> None:
    """Write the state of a training into its folder of weights."""
    buffer = io.BytesIO()  # torch's own errors of writing to a file do not say why
    torch.save(training_state(trainer), buffer)
    with staged(folder) as stage:
        (stage / FILE_NAME).write_bytes(buffer.getvalue())


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Yield a folder whose files then move into `folder`, whole or not at all, in place of those of the same name.

    Raises:
        UserError: they cannot be written; what was in `folder` stays as it was.
    """
    stage = folder / ".unfinished"
    try:
        shutil.rmtree(stage, ignore_errors=True)  # of a process that was killed
        stage.mkdir(parents=True)
        yield stage
        for file in stage.iterdir():
            with file.open("rb+") as stream:
                os.fsync(stream.fileno())
        for file in sorted(stage.iterdir()):
            file.replace(folder / file.name)
    except OSError as error:
        raise UserError(
            f"{folder}: a checkpoint cannot be written ({error.strerror or error}), the one before it is kept; "
            "make room and go on with resume="
        ) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _plain(value: Any) -> Any:
    """Return numbers of NumPy as Python's, which are read without pickle."""
    return value.item() if isinstance(value, np.generic | np.ndarray) else value


def _random_state() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002  what Ultralytics draws from
    version, numbers, gauss = random.getstate()
    state = {
        "python": [version, list(numbers), gauss],
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys, dtype=np.int64)), *map(_plain, rest)],
        "torch": torch.get_rng_state(),
    }
    return state | ({"cuda": torch.cuda.get_rng_state_all()} if torch.cuda.is_available() else {})


def _set_random_state(state: dict[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state.get("cuda", ())) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
