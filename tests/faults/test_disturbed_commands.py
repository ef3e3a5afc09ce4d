"""Commands that are killed, run into a full disk, may not write, see the clock jump or meet their like.

A few of each here; `tools/faults.py` does many, of more commands (docs/robustness.md).
"""

from __future__ import annotations

import errno
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from quick import first

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

if sys.platform == "win32":
    pytest.skip("there are no forks on Windows", allow_module_level=True)

from fault_injection import clock, pairs, places
from fault_injection.commands import Commands, Ended, Material, Tally, half_written
from fault_injection.kill import Killer

from yolo_lat import YOLOLAT
from yolo_lat.errors import UserError


@pytest.fixture(scope="module")
def commands(tmp_path_factory) -> Commands:
    folder = tmp_path_factory.mktemp("logs")
    for parent in (folder, folder.parent):
        parent.chmod(0o777)
    return Commands(folder)


@pytest.fixture(scope="module")
def material(run, dynamic_onnx_file, tmp_path_factory) -> Material:
    folder = tmp_path_factory.mktemp("material")
    shutil.copytree(run.data.parent, folder / "shapes")
    shutil.copy(run.safetensors, folder / "best.safetensors")
    shutil.copy(dynamic_onnx_file, folder / "dynamic.onnx")
    return Material(folder)


@pytest.fixture
def disk(tmp_path) -> Iterator[None]:
    try:
        with places.disk(tmp_path / "try", 1):
            yield
    except OSError as error:
        pytest.skip(f"needs the right to mount: {error}")


def all_well(tally: Tally, tried: int) -> None:
    assert tally.lost == []
    assert tally.tried == tried


@pytest.mark.parametrize("name", first(2, ["convert", "predict", "export"]))
def test_killed_and_started_again(commands, material, tmp_path, name) -> None:
    all_well(getattr(Killer(commands, material, tmp_path, seed=1), name)(2), 2)


@pytest.mark.parametrize("name", ["data convert", "data split", "predict"])
def test_a_full_disk(disk, commands, material, tmp_path, name) -> None:
    tally = places.full_disk(name, commands, material, tmp_path, count=3, seed=1)
    all_well(tally, 3)
    assert tally.outcomes.get("refused in one sentence", 0) >= 2


@pytest.mark.parametrize("name", ["data convert", "export", "predict", "val", "train"])
def test_a_folder_that_cannot_be_written_to(disk, commands, material, tmp_path, name) -> None:
    tally = places.read_only(name, commands, material, tmp_path)
    assert tally.lost == []
    assert all("refused in one sentence" in outcome for outcome in tally.outcomes)


@pytest.mark.parametrize("name", first(1, ["data convert", "data check json=", "predict"]))
def test_two_at_once(commands, material, tmp_path, name) -> None:
    assert pairs.PAIRS[name](commands, material, tmp_path, 4).lost == []


def test_a_clock_that_jumps(commands, material, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(clock, "JUMPS", {"to and fro": clock.JUMPS["to and fro"]})
    all_well(clock.demo(commands, material, tmp_path), 1)


def test_a_picture_that_cannot_be_written_is_an_error(material, tmp_path, monkeypatch) -> None:
    """Ultralytics passes over it."""
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.suffix == ".jpg":
            write(path, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"run: results of .* cannot be written \(No space left on device\); make room"):
        YOLOLAT(material.weights).predict(material.images, save=True, imgsz=64, project=str(tmp_path), name="run")
    assert list((tmp_path / "run").iterdir()) == []


# What these tests rely on


def test_half_written_files_are_noticed(material, tmp_path) -> None:
    whole = {
        "a.json": b"{}",
        "b.csv": b"a,b\n1,2\n3,4\n",
        "c.txt": b"0 0.5\n",
        "d.safetensors": material.weights.read_bytes(),
        "e.onnx": material.onnx.read_bytes(),
        "f.jpg": next(material.images.iterdir()).read_bytes(),
        "g.yaml": b"a: 1\n",
        "h.jsonl": b'{"a": 1}\n',
    }
    for name, content in whole.items():
        (tmp_path / name).write_bytes(content)
    assert half_written(tmp_path) == []
    for name, content in whole.items():
        (tmp_path / name).write_bytes(content[: len(content) // 2])
    assert half_written(tmp_path) == sorted(whole)
    for name in whole:
        (tmp_path / name).rename(tmp_path / f".{name}")
    assert half_written(tmp_path) == []


def test_a_collection_that_fails_before_the_kill_is_an_error(commands, material, tmp_path, monkeypatch) -> None:
    pytest.importorskip("ray.data", reason="needs Ray Data: pip install 'yolo-lat[ray]'")
    statuses = iter([0, 1, 0])
    monkeypatch.setattr(Killer, "_run", lambda self, words, kill_after=None: next(statuses))
    with pytest.raises(RuntimeError, match="exit status 1 in place of 0"):
        Killer(commands, material, tmp_path, seed=1).collection(1)


def test_one_sentence_is_told_from_a_traceback() -> None:
    assert Ended(2, "note\nyolo-lat: error: a; b\n").sentence == "yolo-lat: error: a; b"
    assert Ended(2, "Traceback (most recent call last)\nyolo-lat: error: a; b\n").sentence is None
    assert Ended(1, "yolo-lat: error: a; b\n").sentence is None
    assert Ended(2, "yolo-lat: error: a\nyolo-lat: error: b\n").sentence is None


def test_a_moved_folder_and_other_bytes_are_noticed(commands, material, tmp_path, monkeypatch) -> None:
    """The kill tests would say nothing if they compared nothing."""
    killer = Killer(commands, material, tmp_path, seed=2)
    right = Killer._undisturbed

    def tampered(self, command):
        place, seconds = right(self, command)
        next((place / "new").rglob("*.txt")).write_text("0 0.1 0.1 0.1 0.1\n")
        return place, seconds

    monkeypatch.setattr(Killer, "_undisturbed", tampered)
    lost = set(killer.convert(1).lost)
    assert "another tree, or something left behind" in lost
    assert lost <= {"another tree, or something left behind", "the folder is there and not whole"}  # by a late kill
