"""A full disk and folders that cannot be written to, under each command that writes."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fault_injection.commands import TRAIN, Commands, Material, Tally, empty, expect, half_written, snapshot

NOBODY = 65534
_DISK_MB = 64


@dataclass(frozen=True)
class Writer:
    """A command that writes below a folder.

    Attributes:
        words: given material and folder, returns the command line.
        results: names of what it writes, relative to the folder.
        again: the command that goes on after a failure; the same one by default.
    """

    words: Callable[[Material, Path], list[str]]
    results: tuple[str, ...]
    again: Callable[[Material, Path], list[str]] | None = None


def _train(material: Material, place: Path) -> list[str]:
    model = ["train", "model=yolo-lat-p", f"data={material.data}", "epochs=2", *TRAIN]
    return [*model, f"project={place}", "name=run"]


def _export(material: Material, place: Path) -> list[str]:
    shutil.copy(material.weights, place / "a.safetensors")
    return ["export", f"model={place / 'a.safetensors'}", "imgsz=64"]


def _benchmark(material: Material, place: Path) -> list[str]:
    few = ("rounds=1", "runs=2", "warmup=1", "trial=1", "threads=1", "device=cpu", "imgsz=64")
    files = (f"json={place / 'b.json'}", f"figure={place / 'b.png'}")
    return ["benchmark", f"models={material.onnx}", f"source={material.images}", *few, *files]


def _predict(material: Material, place: Path) -> list[str]:
    saved = ("save_txt=True", "save_crop=True", "conf=0.000001", "max_det=3", "device=cpu", "imgsz=64")
    source = f"source={material.images}"
    return ["predict", f"model={material.weights}", source, *saved, f"project={place}", "name=run"]


def _val(material: Material, place: Path) -> list[str]:
    words = ["val", f"model={material.weights}", f"data={material.data}", "imgsz=64", "device=cpu", "plots=False"]
    return [*words, f"project={place}", "name=run"]


WRITERS: dict[str, Writer] = {
    "train": Writer(_train, ("run",)),
    "export": Writer(_export, ("a.onnx",)),
    "data convert": Writer(
        lambda material, place: [
            "data",
            "convert",
            f"data={material.data}",
            "format=voc",
            f"directory={place / 'new'}",
        ],
        ("new",),
    ),
    "data split": Writer(
        lambda material, place: ["data", "split", f"data={material.data}", f"directory={place / 'new'}"], ("new",)
    ),
    "predict": Writer(_predict, ("run",)),
    "val": Writer(_val, ("run",)),
    "benchmark json= figure=": Writer(_benchmark, ("b.json", "b.png")),
    "data check json= sheet=": Writer(
        lambda material, place: [
            *("data", "check", f"data={material.data}", f"json={place / 'c.json'}", f"sheet={place / 'c.png'}"),
        ],
        ("c.json", "c.png"),
    ),
    "val json=": Writer(
        lambda material, place: [
            *(*_val(material, place.parent / "elsewhere"), "exist_ok=True", f"json={place / 'v.json'}"),
        ],
        ("v.json",),
    ),
}


@contextmanager
def disk(place: Path, megabytes: int = _DISK_MB) -> Iterator[Path]:
    """Yield a folder that is a small disk of its own.

    Raises:
        OSError: this process may not mount one.
    """
    place.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={megabytes}m,mode=755", "tmpfs", str(place))
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True, capture_output=True)


def set_read_only(place: Path, value: bool) -> None:
    """Let nothing on a disk be written, or let it again.

    Raises:
        OSError: this process may not.
    """
    _mount("-o", f"remount,{'ro' if value else 'rw'}", str(place))


def _mount(*words: str) -> None:
    try:
        subprocess.run(["mount", *words], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise OSError(f"cannot mount: {getattr(error, 'stderr', '') or error}") from error


def fill(place: Path, free_bytes: int) -> Path:
    """Leave so many bytes of a disk free; returns the file that takes the rest."""
    filler = place / ".filler"
    status = os.statvfs(place)
    with filler.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, max(status.f_bavail * status.f_frsize - free_bytes, 4096))
    return filler


def full_disk(name: str, commands: Commands, material: Material, folder: Path, count: int, seed: int) -> Tally:
    """Run a command on disks of too few bytes, make room and run it again."""
    tally, writer, rng = (
        Tally(f"full disk under {name}, then room and the same again"),
        WRITERS[name],
        random.Random(seed),
    )
    with disk(folder / "disk") as place:
        expect(commands.run(writer.words(material, place), folder), 0)
        right = _results(place, writer)
        needed = sum((place / file).stat().st_size for file in snapshot(place))
    for number in range(count):
        with disk(folder / "disk") as place:
            before = _keep_something(place)
            words = writer.words(material, place)
            inputs = snapshot(place).keys() - before.keys()
            # Each try has its part of the range, and the first ones leave next to nothing.
            share = rng.random() if number >= 3 else 0.01 * number
            filler = fill(place, int(needed * (number + share) / count))
            ended = commands.run(words, folder)
            problems = _kept(place, before)
            if ended.status == 0:
                outcome = "it was enough"
            else:
                outcome = "refused in one sentence"
                if ended.sentence is None:
                    problems.append(f"exit status {ended.status}: {ended.text[-600:]}")
                problems += [f"{file} is half-written" for file in half_written(place)]
            filler.unlink()
            problems += _again(commands, material, folder, place, writer, right, before, inputs)
            tally.add(outcome, *problems)
    return tally


def _again(
    commands: Commands,
    material: Material,
    folder: Path,
    place: Path,
    writer: Writer,
    right: set[str],
    before: dict[str, str],
    inputs: set[str],
) -> list[str]:
    """Run the command again where there is room now; returns what is not as it should be."""
    last = place / "run/weights/last.pt"
    words = ["train", f"resume={last}"] if last.is_file() else writer.words(material, place)
    ended = commands.run(words, folder)
    refused = ended.sentence or ""
    if ended.status != 0 and "exists and is not empty" not in refused and "is no unfinished training" not in refused:
        return [f"with room again, exit status {ended.status}: {ended.text[-600:]}"]
    problems = half_written(place) + _kept(place, before)
    found = {name.replace("run-2/", "run/", 1) for name in snapshot(place)} - before.keys() - inputs
    left = {name for name in found - right if not name.startswith("run/.")}
    return [*problems, *(f"{name} is missing" for name in right - found), *(f"{name} is left behind" for name in left)]


def _results(place: Path, writer: Writer) -> set[str]:
    return {name for name in snapshot(place) if name.startswith(writer.results)}


def _keep_something(place: Path) -> dict[str, str]:
    """Put a file there that has nothing to do with the command; returns a snapshot."""
    (place / "other").mkdir()
    (place / "other/notes.txt").write_text("1 2 3\n")
    return snapshot(place)


def _kept(place: Path, before: dict[str, str]) -> list[str]:
    now = snapshot(place)
    return [f"{name} was changed" for name, value in before.items() if now.get(name) != value]


def read_only(name: str, commands: Commands, material: Material, folder: Path) -> Tally:
    """Run a command where it may not write: on a disk that is read-only, and as a user without the right."""
    tally, writer = Tally(f"folder that cannot be written to under {name}"), WRITERS[name]
    with disk(folder / "disk") as place:
        words = writer.words(material, place)
        before = snapshot(place)
        for outcome, user in (("a read-only disk", None), ("another user's folder", NOBODY)):
            if user is None:
                set_read_only(place, True)
            ended = commands.run(words, folder, user=user)
            if user is None:
                set_read_only(place, False)
            problems = [] if ended.sentence else [f"{outcome}: exit status {ended.status}: {ended.text[-600:]}"]
            problems += [] if snapshot(place) == before else [f"{outcome}: something was written"]
            tally.add(f"{outcome}: refused in one sentence" if ended.sentence else f"{outcome}: not refused", *problems)
            empty(folder / "elsewhere")
    return tally
