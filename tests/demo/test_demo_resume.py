"""What a run that goes on takes for the same run, and what it counts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from clips import RED, picture
from onnx import numpy_helper

from yolo_lat.demo.options import DemoOptions


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
