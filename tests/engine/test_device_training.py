"""Training on data in the device's memory, here the CPU's: through the same loop, to the same kind of run."""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from quick import first
from safetensors.torch import load_file

from yolo_lat import YOLOLAT
from yolo_lat.data.device.loader import flat
from yolo_lat.engine import loop
from yolo_lat.engine.train_options import OWN_OPTIONS, logger_names, take_own
from yolo_lat.engine.trainer import LatTrainer
from yolo_lat.errors import UserError

QUICK = {"epochs": 2, "imgsz": 64, "batch": 9, "device": "cpu", "plots": False, "warmup_epochs": 0}


def rows(project: Path) -> list[dict[str, str]]:
    with (project / "run/results.csv").open() as file:
        return list(csv.DictReader(file))


def train(shapes, project, model="yolo-lat-p", **changed):
    yolo = YOLOLAT(model)
    yolo.train(data=shapes, project=project, name="run", **QUICK | {"cache": "device"} | changed)
    return yolo


@pytest.mark.parametrize("model", first(1, ["yolo-lat-p", "yolov8n.yaml", "yolo26n.yaml"]))
def test_models_train_and_leave_what_other_trainings_leave(shapes, tmp_path, model) -> None:
    yolo = train(shapes, tmp_path, model, plots=model == "yolo-lat-p")
    found = rows(tmp_path)
    assert [row["epoch"] for row in found] == ["1", "2"]
    assert all(0 < float(row["train/cls_loss"]) < 20 for row in found)
    assert all(float(row["speed/images_per_s"]) > 0 for row in found)
    assert all(0 < float(row["speed/data_wait"]) < 1 for row in found)
    assert yolo.metrics.coco.keys() > {"AP", "AR100"}
    files = {file.name for file in (tmp_path / "run").iterdir()}
    assert files >= {"results.csv", "metrics.json", "predictions.json", "args.yaml"}
    if model == "yolo-lat-p":
        assert files >= {"train_batch0.jpg", "labels.jpg", "results.png", "val_batch0_pred.jpg"}


def test_the_loss_is_that_of_the_stock_step(shapes, tmp_path) -> None:
    """A batch from the device through both: the padded form and Ultralytics' own loss on the flat form."""
    seen: list[tuple[float, float]] = []

    class Both(LatTrainer):
        def train_step(self, batch, update):
            stock = dict(batch) | flat(batch)
            model = self.fast.model
            running = {k: v.clone() for k, v in model.state_dict().items()}
            with torch.no_grad():
                expected = model.loss(self.preprocess_batch(stock))[0].sum()
            model.load_state_dict(running)
            items = super().train_step(batch, update)
            seen.append((float(self.loss), float(expected)))
            return items

    YOLOLAT("yolo-lat-p").train(
        trainer=Both, data=shapes, project=tmp_path, name="run", **QUICK | {"cache": "device", "epochs": 1}
    )
    assert len(seen) == 3
    for found, expected in seen:
        assert found == pytest.approx(expected, rel=1e-4)


def test_the_final_numbers_are_those_of_val(shapes, tmp_path) -> None:
    yolo = train(shapes, tmp_path)
    again = YOLOLAT(tmp_path / "run/weights/best.safetensors").val(data=shapes, imgsz=64, batch=18, plots=False)
    assert again.coco == pytest.approx(yolo.metrics.coco, abs=1e-6)


def test_single_classes_and_fractions_are_kept(shapes, tmp_path) -> None:
    yolo = train(shapes, tmp_path, single_cls=True, fraction=0.5, epochs=1)
    loader = yolo.trainer.train_loader
    assert len(loader.loader.cache) == len(loader.dataset) == 12
    assert loader.loader.cache.classes.unique().tolist() == [0]


def test_mosaic_closes(shapes, tmp_path) -> None:
    used: list[float] = []
    yolo = YOLOLAT("yolo-lat-p")
    yolo.add_callback("on_train_batch_start", lambda t: used.append(t.train_loader.loader.augment.mosaic))
    yolo.train(data=shapes, project=tmp_path, name="run", **QUICK | {"cache": "device", "close_mosaic": 1})
    assert used == [1.0] * 3 + [0.0] * 3


@pytest.mark.parametrize("cache", first(1, ["device", "ram"]))
def test_validation_every_few_epochs(shapes, tmp_path, cache) -> None:
    train(shapes, tmp_path, cache=cache, epochs=5, val_period=2)
    ap = [float(row["metrics/mAP50-95(B)"]) for row in rows(tmp_path)]
    assert [np.isnan(value) for value in ap] == [True, False, True, False, False]


def test_the_best_weights_are_of_an_epoch_that_was_validated(shapes, tmp_path, monkeypatch) -> None:
    fitness = iter([0.9, 0.1])
    saved: list[tuple[int, bool]] = []

    def validate(self):
        found = next(fitness)
        self.best_fitness = max(self.best_fitness or 0, found)
        return {**self.metrics}, found

    monkeypatch.setattr(LatTrainer, "validate", validate)
    yolo = YOLOLAT("yolo-lat-p")
    yolo.add_callback(
        "on_model_save", lambda t: saved.append((t.epoch, t.best.stat().st_mtime_ns == t.last.stat().st_mtime_ns))
    )
    yolo.add_callback(
        "on_model_save", lambda t: saved.append((t.epoch, torch.load(t.best, weights_only=False)["epoch"]))
    )
    yolo.train(data=shapes, project=tmp_path, name="run", **QUICK | {"epochs": 4, "val_period": 2})
    assert saved[1::2] == [(0, 0), (1, 1), (3, 1)]  # epochs that are short and not validated need no checkpoint


@pytest.fixture
def saved(monkeypatch):
    """Train with epochs that take given seconds, and return which of them had a checkpoint."""

    def run(shapes, project, seconds, **options) -> list[int]:
        found: list[int] = []
        clock = SimpleNamespace(seconds=0.0, perf_counter=time.perf_counter, time=time.time)
        clock.monotonic = lambda: clock.seconds
        monkeypatch.setattr(loop, "time", clock)
        yolo = YOLOLAT("yolo-lat-p")
        yolo.add_callback("on_train_epoch_end", lambda t: setattr(clock, "seconds", clock.seconds + seconds[t.epoch]))
        yolo.add_callback("on_model_save", lambda t: found.append(t.epoch))
        yolo.train(data=shapes, project=project, name="run", **QUICK | options)
        return found

    return run


@pytest.mark.slow
def test_short_epochs_have_a_checkpoint_every_ten_seconds(shapes, tmp_path, saved) -> None:
    """And where it is the first or the last, was validated, or `save_period` asks for one."""
    assert saved(shapes, tmp_path, [4] * 9, epochs=9, val_period=9, save_period=5) == [0, 3, 5, 8]


def test_a_training_that_runs_out_of_time_has_a_checkpoint_of_its_end(shapes, tmp_path, saved) -> None:
    assert saved(shapes, tmp_path, [1, 1, 3], epochs=9, val_period=9, time=3.5 / 3600) == [0, 2]
    assert torch.load(tmp_path / "run/weights/last.pt", weights_only=False)["epoch"] == -1  # finished
    assert [row["epoch"] for row in rows(tmp_path)] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"cuda_graph": True}, "cuda_graph=True: needs a GPU, and there is none here; drop it"),
        (
            {"cache": "pinned"},
            "cache=pinned: keeps images where a GPU reads them, and there is none here; use cache=ram",
        ),
        ({"cache": "ram", "cuda_graph": True}, "cuda_graph=True: needs cache=device; add that or drop cuda_graph"),
        ({"cache": False, "cutout": 0.5}, "cutout=0.5: needs cache=device"),
        ({"cutout": 2}, "cutout=2: must be a probability from 0 to 1"),
        ({"cache": False, "margin": 0.5}, "margin=0.5: needs cache=device"),
        ({"margin": -0.1}, "margin=-0.1: must be a probability from 0 to 1"),
        ({"val_period": 0}, "val_period=0: must be a whole number of epochs from 1"),
        ({"cuda_graph": "yes"}, "cuda_graph=yes: must be True or False"),
        ({"loggers": "tensorbord"}, "loggers=tensorbord: unknown; did you mean 'tensorboard'"),
        ({"loggers": ["mlflow"]}, "loggers=mlflow: the package mlflow is not installed; run: pip install mlflow"),
        ({"augmentations": [{"Blur": {"p": 0.1}}]}, "augmentations: run on the host only"),
        ({"rect": True}, "rect=True: batches on the device are square"),
        ({"batch": -1}, "batch=-1: measures a GPU's memory, and there is none here; give a number of images"),
        ({"batch": 0.7}, "batch=0.7: measures a GPU's memory"),
        ({"amp": "fp16"}, "amp=fp16: needs a GPU, and there is none here; drop it"),
        ({"amp": "bf16"}, "amp=bf16: needs a GPU, and there is none here; drop it"),
        ({"quantize": "int8"}, "quantize=int8: is for exports; export with it, and use that file"),
        ({"half": True}, "half=True: a CPU computes in float32; leave it out, or use a GPU"),
    ],
)
def test_what_does_not_go_together_is_refused(shapes, tmp_path, changed, message) -> None:
    with pytest.raises(UserError, match=message):
        train(shapes, tmp_path, **changed)


def test_images_that_do_not_fit_into_memory_are_refused_before_they_are_decoded(shapes, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("yolo_lat.data.device.cache._free", lambda device: 1000)
    with pytest.raises(UserError, match=r"24 images of 64 pixels take .* GB, and 1e-06 GB of the memory of cpu"):
        train(shapes, tmp_path)


def test_own_options_have_defaults_and_leave_the_rest() -> None:
    given = {"epochs": 3, "val_period": 2}
    assert take_own(given) == {name: option.default for name, option in OWN_OPTIONS.items()} | {"val_period": 2}
    assert given == {"epochs": 3}
    assert logger_names(None) == logger_names("") == logger_names([]) == []


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_does_not(shapes, tmp_path) -> None:
    weights = []
    for number, seed in enumerate((1, 1, 2)):
        train(shapes, tmp_path / str(number), epochs=1, seed=seed)
        weights.append(load_file(tmp_path / str(number) / "run/weights/last.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_tensorboard_gets_losses_and_speed(shapes, tmp_path) -> None:
    """In a process of its own: Ultralytics logs nothing where pytest runs."""
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    code = (
        "from yolo_lat import YOLOLAT\n"
        f"YOLOLAT('yolo-lat-p').train(data={str(shapes)!r}, project={str(tmp_path)!r}, name='run', cache='device', "
        "epochs=2, imgsz=64, batch=9, device='cpu', plots=False, loggers='tensorboard')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, capture_output=True)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert {"train/box_loss", "speed/images_per_s", "lr/pg0"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/box_loss")] == [1, 2]


def test_a_training_that_goes_on_logs_as_before(shapes, tmp_path, monkeypatch) -> None:
    heard: list[int] = []
    stand_in = SimpleNamespace(callbacks={"on_fit_epoch_end": lambda trainer: heard.append(trainer.epoch)})
    monkeypatch.setattr("yolo_lat.engine.trainer.import_module", lambda name: stand_in)
    monkeypatch.setattr("yolo_lat.engine.train_options.find_spec", lambda name: object())
    yolo = YOLOLAT("yolo-lat-p")

    def stop(trainer) -> None:
        if trainer.epoch == 0:
            raise KeyboardInterrupt

    yolo.add_callback("on_fit_epoch_end", stop)
    with pytest.raises(KeyboardInterrupt):
        yolo.train(data=shapes, project=tmp_path, name="run", **QUICK | {"loggers": "mlflow", "epochs": 3})
    heard.clear()
    YOLOLAT("yolo-lat-p").train(resume=str(tmp_path / "run/weights/last.pt"))
    assert heard == [1, 2, 3]  # the last is the best one's validation


def test_no_logger_runs_unless_asked_for(shapes, tmp_path) -> None:
    yolo = train(shapes, tmp_path, epochs=1)
    names = {callback.__module__ for found in yolo.trainer.callbacks.values() for callback in found}
    assert not [name for name in names if name.rpartition(".")[2] in ("tensorboard", "mlflow", "wb")]
