"""A training that is killed goes on as if nothing had happened."""

from __future__ import annotations

import csv
import errno
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from quick import first
from safetensors.torch import load_file
from ultralytics.utils import LOGGER

from yolo_lat import YOLOLAT
from yolo_lat.data.registry import load_dataset
from yolo_lat.engine import resume
from yolo_lat.engine.loop import TrainLoop
from yolo_lat.engine.resume import read_state, staged
from yolo_lat.engine.trainer import LatTrainer
from yolo_lat.errors import UserError

# Trains in a process of its own, which kills itself at a place of its last-but-one epoch.
SCRIPT = """
import os, signal, sys
from yolo_lat import YOLOLAT
from yolo_lat.engine import loop, trainer
data, project, cache, workers, place, period = sys.argv[1:]

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def in_epoch(trainer):
    if trainer.last_batch == (5 if period == "1" else 7):  # of three batches an epoch
        die()

model = YOLOLAT("yolo-lat-p")
if place == "within an epoch":
    model.add_callback("on_train_batch_end", in_epoch)
elif "resume.pt" in place:
    write, calls, spared = loop.write_state, [], 0 if "first" in place else 1

    def write_or_die(trainer, folder):
        calls.extend([1] * (folder / "last.pt").is_file())
        die() if len(calls) > spared else write(trainer, folder)

    loop.write_state = write_or_die
elif place == "before the last validation":
    model.add_callback("on_train_epoch_start", lambda t: setattr(t, "final_eval", die))
elif place == "after the last validation":
    trainer.pt_to_safetensors = die
model.train(data=data, project=project, name="run", cache=cache != "False" and cache, workers=int(workers), epochs=3,
            imgsz=64, batch=9, nbs=18, device="cpu", plots=False, warmup_epochs=1, close_mosaic=1, seed=3,
            val_period=int(period))
"""
PLACES = (
    "within an epoch",
    "between last.pt and resume.pt",
    "before the last validation",
    "after the last validation",
    "between the first last.pt and resume.pt",
)


def train(data: Path, project: Path, cache: str, workers: int, place: str = "", period: int = 1) -> int:
    command = [sys.executable, "-c", SCRIPT, str(data), str(project), cache, str(workers), place, str(period)]
    return subprocess.run(command, check=False, capture_output=True, timeout=300).returncode


def result(project: Path) -> tuple[dict[str, torch.Tensor], list[list[str]]]:
    """Return the final weights and the rows of results.csv without times and speeds."""
    with (project / "run/results.csv").open() as file:
        rows = [[v for k, v in row.items() if not k.startswith(("time", "speed"))] for row in csv.DictReader(file)]
    return load_file(project / "run/weights/last.safetensors"), rows


@pytest.fixture(scope="module")
def whole(shapes, tmp_path_factory):
    """Trainings that nobody interrupted, by cache; made when first asked for."""
    made: dict[str, tuple] = {}

    def get(cache: str) -> tuple:
        if cache not in made:
            project = tmp_path_factory.mktemp("whole")
            assert train(shapes, project, cache, 0) == 0
            made[cache] = result(project)
        return made[cache]

    return get


@pytest.mark.slow
def test_a_training_goes_on_from_a_checkpoint_some_epochs_ago(shapes, tmp_path) -> None:
    """Which is where short epochs are not validated."""
    for name, place, status in (("whole", "", 0), ("killed", "within an epoch", -signal.SIGKILL)):
        (tmp_path / name).mkdir()
        assert train(shapes, tmp_path / name, "device", 0, place, period=3) == status
    last = tmp_path / "killed/run/weights/last.pt"
    assert torch.load(last, weights_only=False)["epoch"] == 0
    assert len((tmp_path / "killed/run/results.csv").read_text().splitlines()) == 3  # names and two epochs
    spec = yaml.safe_load(shapes.read_text(encoding="utf-8"))
    names = list(load_dataset(shapes).names)
    kept = {file: file.read_bytes() for file in (tmp_path / "killed/run").rglob("*") if file.is_file()}
    for other in (names[::-1], [*names, "heptagon"]):
        (tmp_path / "other.yaml").write_text(yaml.safe_dump({**spec, "path": str(shapes.parent), "names": other}))
        with pytest.raises(
            UserError, match=r"other\.yaml: its classes are not those that the run learns, in this order"
        ):
            YOLOLAT("yolo-lat-p").train(resume=str(last), data=tmp_path / "other.yaml")
    assert {file: file.read_bytes() for file in (tmp_path / "killed/run").rglob("*") if file.is_file()} == kept
    YOLOLAT("yolo-lat-p").train(resume=str(last))
    (weights, rows), (expected, expected_rows) = result(tmp_path / "killed"), result(tmp_path / "whole")
    assert rows == expected_rows
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("cache", "place"),
    [
        pytest.param("False", PLACES[0], marks=pytest.mark.slow),
        ("device", PLACES[0]),
        pytest.param("ram", PLACES[1], marks=pytest.mark.slow),
        pytest.param("device", PLACES[1], marks=pytest.mark.slow),
        pytest.param("False", PLACES[2], marks=pytest.mark.slow),
        pytest.param("False", PLACES[3], marks=pytest.mark.slow),
        pytest.param("ram", PLACES[4], marks=pytest.mark.slow),
    ],
)
def test_a_killed_training_ends_with_the_same_weights_bit_for_bit(whole, shapes, tmp_path, cache, place) -> None:
    assert train(shapes, tmp_path, cache, 0, place) == -signal.SIGKILL
    last = tmp_path / "run/weights/last.pt"
    assert (last.parent / "resume.pt").is_file()
    YOLOLAT("yolo-lat-p").train(resume=str(last))
    weights, rows = result(tmp_path)
    expected, expected_rows = whole(cache)
    assert rows == expected_rows
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert not (last.parent / "resume.pt").exists()
    assert sorted(f.name for f in last.parent.iterdir()) == [
        f"{n}.{s}" for n in ("best", "last") for s in ("pt", "safetensors")
    ]


@pytest.mark.slow
def test_a_training_goes_on_in_the_folder_of_its_checkpoint(shapes, tmp_path) -> None:
    assert train(shapes, tmp_path / "here", "False", 0, PLACES[0]) == -signal.SIGKILL
    (tmp_path / "here").rename(tmp_path / "there")
    YOLOLAT("yolo-lat-p").train(resume=str(tmp_path / "there/run/weights/last.pt"))
    assert len(result(tmp_path / "there")[1]) == 3
    assert not (tmp_path / "here").exists()


@pytest.mark.slow
def test_other_samples_give_other_weights(whole) -> None:
    """Else equality above would prove nothing: with cache=ram a mosaic draws from all images."""
    assert any(not torch.equal(a, b) for a, b in zip(whole("False")[0].values(), whole("ram")[0].values(), strict=True))


class TestStaged:
    def test_files_take_their_places_together(self, tmp_path) -> None:
        (tmp_path / "last.pt").write_text("old")
        with staged(tmp_path) as stage:
            (stage / "last.pt").write_text("new")
            (stage / "best.pt").write_text("new too")
            assert (tmp_path / "last.pt").read_text() == "old"
        assert {f.name: f.read_text() for f in tmp_path.iterdir()} == {"last.pt": "new", "best.pt": "new too"}

    def test_a_full_disk_loses_nothing(self, tmp_path) -> None:
        (tmp_path / "last.pt").write_text("old")

        def write() -> None:
            with staged(tmp_path) as stage:
                (stage / "last.pt").write_text("ne")
                raise OSError(errno.ENOSPC, "No space left on device")

        with pytest.raises(UserError, match=r"cannot be written .*No space left.*, the one before it is kept"):
            write()
        assert {f.name: f.read_text() for f in tmp_path.iterdir()} == {"last.pt": "old"}

    def test_what_a_killed_process_left_is_cleared(self, tmp_path) -> None:
        (tmp_path / ".unfinished").mkdir()
        (tmp_path / ".unfinished/half.pt").write_text("half")
        with staged(tmp_path) as stage:
            (stage / "last.pt").write_text("new")
        assert {f.name for f in tmp_path.iterdir()} == {"last.pt"}


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04K\x01."])
def test_a_damaged_state_is_named(tmp_path, content) -> None:
    (tmp_path / resume.FILE_NAME).write_bytes(content)
    with pytest.raises(UserError, match=r"resume\.pt: not the state of a training .*remove it to go on from"):
        read_state(tmp_path / "last.pt")
    assert read_state(tmp_path / "elsewhere/last.pt") is None


@pytest.mark.parametrize("file", first(1, ["last.pt", "best.pt", "resume.pt"]))
def test_a_full_disk_stops_the_training_and_keeps_what_was_saved(shapes, tmp_path, monkeypatch, file) -> None:
    write, written = Path.write_bytes, []

    def fill(path: Path, content: bytes) -> int:
        if path.name == file:
            written.append(file)
            if len(written) == (3 if file == "resume.pt" else 2):  # that one is written before the first epoch too
                write(path, content[: len(content) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", fill)
    message = r"weights: a checkpoint cannot be written \(No space left on device\), the one before it is kept"
    with pytest.raises(UserError, match=message):
        YOLOLAT("yolo-lat-p").train(
            data=shapes, project=tmp_path, name="run", epochs=3, imgsz=64, batch=9, device="cpu", plots=False
        )
    weights = tmp_path / "run/weights"
    assert sorted(f.name for f in weights.iterdir()) == ["best.pt", "last.pt", "resume.pt"]
    assert read_state(weights / "last.pt")["epoch"] == 1
    monkeypatch.undo()
    YOLOLAT("yolo-lat-p").train(resume=str(weights / "last.pt"))
    assert len(result(tmp_path)[1]) == 3


class StopHereError(Exception):
    """In place of a kill, in this process."""


class TestGoingOnOtherwise:
    """What may be given when a training goes on, and what stays as it was."""

    @pytest.fixture
    def begin(self, shapes, tmp_path):
        """Train until the callback of an event ends it; returns its last.pt."""

        def begin(event: str, when=lambda trainer: True, **options) -> Path:
            def end(trainer) -> None:
                if when(trainer):
                    raise StopHereError

            model = YOLOLAT("yolo-lat-p")
            model.add_callback(event, end)
            options = {"epochs": 4, "imgsz": 64, "batch": 9, "nbs": 18, "warmup_epochs": 1, "workers": 0} | options
            with pytest.raises(StopHereError):
                model.train(data=shapes, project=tmp_path, name="run", device="cpu", plots=False, **options)
            return tmp_path / "run/weights/last.pt"

        return begin

    @pytest.fixture
    def said(self, monkeypatch) -> list[str]:
        """What Ultralytics' logger is given."""
        lines: list[str] = []
        for level in ("info", "warning"):
            monkeypatch.setattr(LOGGER, level, lambda text, *_: lines.append(str(text)))
        return lines

    @pytest.mark.parametrize(("batch", "accumulated"), [(24, 1), pytest.param(3, 6, marks=pytest.mark.slow)])
    def test_the_batch_size(self, begin, monkeypatch, batch, accumulated) -> None:
        last = begin("on_train_epoch_start", lambda t: t.epoch == 2)
        step, updates = LatTrainer.train_step, []

        def counting(trainer, of_batch, update):
            updates.append(update)
            return step(trainer, of_batch, update)

        monkeypatch.setattr(LatTrainer, "train_step", counting)
        YOLOLAT("yolo-lat-p").train(resume=str(last), batch=batch)
        assert len(updates) == 2 * 24 // batch
        after_first = updates[updates.index(True) :]
        assert [i for i, update in enumerate(after_first) if update] == list(range(0, len(after_first), accumulated))
        assert updates.index(True) < accumulated

    def test_options_that_were_given_and_those_that_were_not(self, begin, said) -> None:
        last = begin(
            "on_train_epoch_start", lambda t: t.epoch == 2, val_period=3, cutout=0.5, cache="device", save_period=1
        )
        model, found = YOLOLAT("yolo-lat-p"), {}
        model.add_callback("on_train_epoch_start", lambda t: found.update(vars(t.args), limit=t.stopper.patience))
        said.clear()
        model.train(resume=str(last), val_period=1, patience=7, project="elsewhere")
        assert (found["val_period"], found["cutout"], found["limit"]) == (1, 0.5, 7)
        assert not any("Resume ignores" in line for line in said)
        assert any("resume ignores project=elsewhere" in line for line in said)
        assert any(line.startswith("\n2 epochs completed") for line in said)

    @pytest.mark.parametrize(("patience", "epochs"), [(2, 3), pytest.param(3, 4, marks=pytest.mark.slow)])
    def test_an_early_stop_stays_one_unless_more_patience_is_given(
        self, begin, tmp_path, monkeypatch, patience, epochs
    ) -> None:
        validate, final_eval = LatTrainer.validate, LatTrainer.final_eval

        def worse_and_worse(trainer):
            metrics, _ = validate(trainer)
            trainer.best_fitness = 1.0  # of the first epoch
            return metrics, 1 / (trainer.epoch + 1)

        def end(trainer) -> None:
            raise StopHereError

        monkeypatch.setattr(LatTrainer, "validate", worse_and_worse)
        monkeypatch.setattr(LatTrainer, "final_eval", end)
        last = begin("on_train_end", epochs=9, patience=2)
        monkeypatch.setattr(LatTrainer, "final_eval", final_eval)
        YOLOLAT("yolo-lat-p").train(resume=str(last), patience=patience)
        assert len(result(tmp_path)[1]) == epochs

    def test_a_training_in_the_folder_of_another_takes_its_place_with_its_first_checkpoint(self, begin) -> None:
        last = begin("on_train_epoch_start", lambda t: t.epoch == 1, seed=1)
        old = {file.name: file.read_bytes() for file in last.parent.iterdir()}
        assert {"last.pt", "resume.pt"} <= old.keys()
        begin("on_train_epoch_end", seed=2, exist_ok=True)
        assert {file.name: file.read_bytes() for file in last.parent.iterdir()} == old
        begin("on_model_save", lambda t: not Path(t.wdir, "resume.pt").is_file() or t.epoch == 1, seed=2, exist_ok=True)
        assert last.read_bytes() != old["last.pt"]
        assert read_state(last)["epoch"] == 2


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("epoch,a\n1,2\n2,3\n3,4\n", "epoch,a\n1,2\n2,3\n"),
        ("epoch,a\n1,2\n2,", "epoch,a\n1,2\n"),
        ("epoch,a\n", "epoch,a\n"),
        ("epoc", None),
        ("", None),
    ],
)
def test_results_that_a_kill_cut_are_whole_again(tmp_path, text, left) -> None:
    file = tmp_path / "results.csv"
    file.write_text(text)
    loop = object.__new__(TrainLoop)
    loop.trainer = SimpleNamespace(csv=file, start_epoch=2)
    loop._cut_results()
    assert (file.read_text() if file.exists() else None) == left


def test_what_is_no_number_for_good_ends_with_a_sentence(tmp_path) -> None:
    trainer = object.__new__(LatTrainer)
    trainer.model, trainer.teaching = torch.nn.Linear(1, 1), None
    trainer.loss, trainer.fitness, trainer.start_epoch, trainer.last = torch.tensor(torch.nan), None, 0, tmp_path / "no"
    with pytest.raises(UserError, match=r"Loss NaN/Inf detected .*; lower lr0=, or give amp=False"):
        trainer._handle_nan_recovery(1)
