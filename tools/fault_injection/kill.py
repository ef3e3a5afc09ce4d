"""`kill -9` at random moments, and the same command again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fault_injection.commands import (
    TRAIN,
    Commands,
    Material,
    Tally,
    empty,
    expect,
    half_written,
    metrics_of,
    moments,
    same_tensors,
    snapshot,
)

EPOCHS = 5


@dataclass(frozen=True)
class Killer:
    """Kills commands.

    Args:
        commands: that start them.
        material: what they work on.
        folder: to work in.
        seed: of the moments.
    """

    commands: Commands
    material: Material
    folder: Path
    seed: int

    def train(self, count: int) -> Tally:
        """Training, gone on with by `resume=`, or begun again where there was no checkpoint yet."""
        tally = Tally("kill -9 of train, then resume= (or the same command where no epoch was over)")
        words = [
            "train",
            "model=yolo-lat-p",
            f"data={self.material.data}",
            f"epochs={EPOCHS}",
            "close_mosaic=1",
            *TRAIN,
        ]

        def command(place: Path) -> list[str]:
            return [*words, f"project={place}", "name=run"]

        whole, seconds = self._undisturbed(command)
        for moment in self._moments(tally, count, seconds):
            place = empty(self.folder / "train")
            if not self._killed(command(place), place, moment):
                tally.miss(*self._differs(place / "run", whole / "run"))
                continue
            problems = half_written(place)
            last = place / "run/weights/last.pt"
            if last.is_file():
                ended = self.commands.run(["train", f"resume={last}"], place)
                done = "is no unfinished training" in (ended.sentence or "")
                outcome, result = "killed behind its end" if done else "went on", place / "run"
                problems += (
                    [] if done or ended.status == 0 else [f"resume ended with {ended.status}: {ended.text[-500:]}"]
                )
            else:
                ended = self.commands.run(command(place), place)
                outcome, result = "began again", max(place.glob("run*"), key=lambda path: len(path.name))
                problems += [] if ended.status == 0 else [f"second run ended with {ended.status}: {ended.text[-500:]}"]
            tally.add(outcome, *problems, *self._differs(result, whole / "run"))
        return tally

    def _differs(self, run: Path, whole: Path) -> list[str]:
        """Return in what a training differs from one that nobody disturbed."""
        problems = half_written(run)
        try:
            for name in ("last", "best"):
                if not same_tensors(run / f"weights/{name}.safetensors", whole / f"weights/{name}.safetensors"):
                    problems.append(f"{name}.safetensors has other weights")
            if metrics_of(run / "results.csv") != metrics_of(whole / "results.csv"):
                problems.append("results.csv has other rows")
            if (left := snapshot(run).keys()) != (right := snapshot(whole).keys()):
                problems.append(f"other files: {sorted(left ^ right)}")
        except Exception as error:
            problems.append(f"{type(error).__name__}: {error}")
        return problems

    def export(self, count: int) -> Tally:
        """Export, with an older file of its name in every second try."""
        tally = Tally("kill -9 of export, then the same command")

        def command(place: Path) -> list[str]:
            shutil.copy(self.material.weights, place / "a.safetensors")
            return ["export", f"model={place / 'a.safetensors'}", "imgsz=64"]

        whole, seconds = self._undisturbed(command)
        older, right = self.material.onnx.read_bytes(), (whole / "a.onnx").read_bytes()
        for moment in self._moments(tally, count, seconds):
            place = empty(self.folder / "export")
            words, before = command(place), older if tally.tried % 2 else None
            if before is not None:
                (place / "a.onnx").write_bytes(before)
            killed = self._killed(words, place, moment)
            found = (place / "a.onnx").read_bytes() if (place / "a.onnx").exists() else None
            problems = [] if found in (before, right) else ["a.onnx is neither the old nor the new file"]
            ended = self.commands.run(words, place)
            if ended.status != 0 or (place / "a.onnx").read_bytes() != right:
                problems.append(f"the second export ended with {ended.status} and gave another file")
            if other := snapshot(place).keys() - {"a.onnx", "a.safetensors"}:
                problems.append(f"left behind: {sorted(other)}")
            state = "new file" if found == right else "no file" if found is None else "old file"
            tally.count(killed, f"{state} there", *problems)
        return tally

    def convert(self, count: int) -> Tally:
        """Conversion of a data set."""
        tally = Tally("kill -9 of data convert, then the same command")

        def command(place: Path) -> list[str]:
            return ["data", "convert", f"data={self.material.data}", "format=yolo", f"directory={place / 'new'}"]

        whole, seconds = self._undisturbed(command)
        right = snapshot(whole / "new")
        for moment in self._moments(tally, count, seconds):
            place = empty(self.folder / "convert")
            killed, problems = self._killed(command(place), place, moment), []
            there = (place / "new").exists()
            if there and snapshot(place / "new") != right:
                problems.append("the folder is there and not whole")
            ended = self.commands.run(command(place), place)
            if there and "exists and is not empty" not in (ended.sentence or ""):
                problems.append("a folder that is there was written again")
            if not there and ended.status != 0:
                problems.append(f"the second run ended with {ended.status}: {ended.text[-500:]}")
            if snapshot(place) != {f"new/{name}": value for name, value in right.items()}:
                problems.append("another tree, or something left behind")
            tally.count(killed, f"{'whole' if there else 'no'} folder there", *problems)
        return tally

    def predict(self, count: int) -> Tally:
        """Plain prediction: whatever has its name is whole, and the next run has a folder of its own."""
        tally = Tally("kill -9 of predict, then the same command")

        def command(place: Path) -> list[str]:
            source, model = self.material.images, self.material.weights
            saved = ("save_txt=True", "save_conf=True", "save_crop=True", "conf=0.000001", "max_det=3", "device=cpu")
            return ["predict", f"model={model}", f"source={source}", "imgsz=64", *saved, f"project={place}", "name=run"]

        whole, seconds = self._undisturbed(command)
        right = snapshot(whole / "run")
        for moment in self._moments(tally, count, seconds):
            place = empty(self.folder / "predict")
            killed = self._killed(command(place), place, moment)
            begun = (place / "run").is_dir()
            first = snapshot(place / "run") if begun else {}
            final = {name: value for name, value in first.items() if not name.startswith(".")}
            problems = [f"{name} is half-written" for name, value in final.items() if right.get(name) != value]
            ended = self.commands.run(command(place), place)
            second = place / ("run-2" if begun else "run")
            if ended.status != 0 or snapshot(second) != right:
                problems.append(f"the second run ended with {ended.status} and gave other files")
            if begun and snapshot(place / "run") != first:
                problems.append("the second run changed the first one's files")
            tally.count(killed, f"{'some files' if final else 'no file'} there", *problems)
        return tally

    def collection(self, count: int) -> Tally:
        """Prediction over a collection, gone on with by `resume`; a process of its own, as Ray starts others."""
        tally = Tally("kill -9 of predict engine=ray, then the same command with resume")
        source = self.folder / "photos"
        if not source.exists():
            for number in range(40):
                for image in self.material.images.iterdir():
                    (source / str(number)).mkdir(parents=True, exist_ok=True)
                    shutil.copy(image, source / str(number) / image.name)

        def command(place: Path) -> list[str]:
            words = ["predict", "engine=ray", f"model={self.material.onnx}", f"source={source}", "workers=1", "part=1"]
            return [*words, f"project={place}", "name=run", "resume"]

        begun = time.monotonic()
        whole = empty(self.folder / "collection-whole")
        expect_status(self._run(command(whole)), 0)
        seconds = time.monotonic() - begun
        right = rows_of(whole / "run")
        for moment in self._moments(tally, count, seconds):
            place = empty(self.folder / "collection")
            status = self._run(command(place), moment)
            if not (killed := status == -signal.SIGKILL):
                expect_status(status, 0)
            problems = half_written(place)
            finished = snapshot(place / "run/detections") if (place / "run").exists() else {}
            finished = {name: value for name, value in finished.items() if not name.startswith(".")}
            if killed:
                status = self._run(command(place))
                problems += [] if status == 0 else [f"the second run ended with {status}"]
            if rows_of(place / "run") != right:
                problems.append("other rows")
            if finished.items() - snapshot(place / "run/detections").items():
                problems.append("a finished part was changed")
            tally.count(killed, f"{'parts' if finished else 'no part'} there", *problems)
        return tally

    def _run(self, words: list[str], kill_after: float | None = None) -> int | None:
        """Run a command in a process of its own and return its status; None if it did not end."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with (self.folder / "ray.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "yolo_lat", *words], stdout=log, stderr=log, env=environment, cwd=self.folder
            )
            try:
                return process.wait(kill_after or 300)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                return process.returncode if kill_after else None

    def _undisturbed(self, command: Callable[[Path], list[str]]) -> tuple[Path, float]:
        """Run a command twice, and return its folder and the seconds that it takes when all is in the cache."""
        for _ in range(2):
            words = command(place := empty(self.folder / "whole"))
            begun = time.monotonic()
            expect(self.commands.run(words, place), 0)
        seconds = time.monotonic() - begun
        kept = self.folder / f"whole-{words[0]}-{words[1].partition('=')[0]}"
        shutil.rmtree(kept, ignore_errors=True)
        with suppress(FileNotFoundError):
            shutil.move(place, kept)
        return kept, seconds

    def _moments(self, tally: Tally, count: int, seconds: float) -> Iterator[float]:
        """Yield random moments until so many kills have met a command at work, one in each part of its time first."""
        for attempt in range(10):
            for moment in moments(count, seconds, f"{tally.what} {self.seed} {attempt}"):
                if tally.tried == count:
                    return
                yield moment
        raise RuntimeError(f"{tally.what}: only {tally.tried} of {count} kills met it at work")

    def _killed(self, words: list[str], place: Path, moment: float) -> bool:
        return self.commands.start(words, place).kill_after(moment)


def expect_status(status: int | None, wanted: int) -> None:
    """Raise RuntimeError for another exit status than expected."""
    if status != wanted:
        raise RuntimeError(f"exit status {status} in place of {wanted}")


def rows_of(run: Path) -> list[tuple[str, str]]:
    """Return all rows of a collection run, each image as often as it is there."""
    from yolo_lat.collection.results import read_rows

    columns = ["image", "width", "height", "boxes_xyxy", "scores", "class_ids", "error"]
    return sorted((row["image"], str(row)) for row in read_rows(run / "detections", columns))
