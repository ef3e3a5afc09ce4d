"""What a run that goes on takes for the same run, and what it counts."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from clips import RED, picture
from onnx import numpy_helper

from yolo_lat.demo.options import DemoOptions
from yolo_lat.demo.output import Output
from yolo_lat.demo.session import resume_demo, run_demo


def pictures(folder: Path, count: int, broken: tuple[int, ...] = ()) -> Path:
    folder.mkdir()
    for i in range(count):
        cv2.imwrite(str(folder / f"{i:02d}.png"), picture({RED: (8, 8, 40, 40)}))
        if i in broken:
            (folder / f"{i:02d}.png").write_bytes(b"no picture")
    return folder


def other_weights(file: Path) -> None:
    """Change a number of a model, which leaves the size of its file as it was."""
    size, model = file.stat().st_size, onnx.load(file)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(0.125), tensor.name))
    onnx.save(model, file)
    assert file.stat().st_size == size


def later(file: Path) -> None:
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))


CHANGES: dict[str, Callable[[Path], None]] = {
    "model": lambda folder: other_weights(folder / "m.onnx"),
    "video": lambda folder: later(folder / "a.mp4"),
    "folder": lambda folder: later(folder / "shots/00.png"),
    "a name in the folder": lambda folder: (folder / "shots/00.png").rename(folder / "shots/9.png"),
    "pattern": lambda folder: later(folder / "shots/01.png"),
    "zones": lambda folder: (folder / "z.yaml").write_text("lines: [b]"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_a_run_depends_on_is_told_apart(what, tmp_path, detector_file, clip, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "shots", 2)
    shutil.copy(detector_file, "m.onnx")
    shutil.copy(clip, "a.mp4")
    Path("z.yaml").write_text("lines: [a]")
    source = {"video": "a.mp4", "pattern": "shots/*.png"}.get(what, "shots")
    options = DemoOptions("m.onnx", source, zones="z.yaml")
    before = options.fingerprint()
    assert options.absolute().fingerprint() == before
    CHANGES[what](tmp_path)
    after = options.fingerprint()
    key = what if what in after else "source"
    assert {name for name in before if before[name] != after[name]} == {key}


def test_pictures_that_were_read_ahead_are_counted_once(tmp_path, detector_file, console, monkeypatch):
    broken = (3, 11, 12)
    source = pictures(tmp_path / "shots", 30, broken)
    take = Output.take

    def stopped(self, result, dropped):
        """Let the reader come past the broken pictures behind a part's end before it is written, and stop then."""
        until = time.monotonic() + 10
        while result.frame.index == 10 and self._faults.counts["unreadable pictures"] < len(broken):
            assert time.monotonic() < until, "the reader does not read ahead"
            time.sleep(0.01)
        if result.frame.index > 10:
            raise InterruptedError
        take(self, result, dropped)

    monkeypatch.setattr(Output, "take", stopped)
    options = DemoOptions(str(detector_file), str(source), show=False, part=10, project=str(tmp_path), name="run")
    with pytest.raises(InterruptedError):
        run_demo(options, console)
    monkeypatch.setattr(Output, "take", take)
    summary = resume_demo(tmp_path / "run", show=False, console=console).summary
    assert (summary["frames"], summary["faults"]) == (27, {"unreadable pictures": 3})
