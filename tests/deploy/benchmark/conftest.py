"""Small detectors, pictures to show them, and the command line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from benchmark_samples import write_detector

from yolo_lat.cli import main


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, Path]:
    """A quick and a slow detector for one image, and one for two."""
    folder = tmp_path_factory.mktemp("detectors")
    return {
        "quick": write_detector(folder / "quick.onnx"),
        "slow": write_detector(folder / "slow.onnx", layers=8),
        "two": write_detector(folder / "two.onnx", batch=2),
    }


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A folder of five pictures of different sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(5):
        cv2.imwrite(str(folder / f"{i}.png"), rng.integers(0, 255, (60 + 10 * i, 90, 3), dtype=np.uint8))
    return folder


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    """Run the command line in an empty folder and return its status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> SimpleNamespace:
        with pytest.raises(SystemExit) as leave:
            main([str(word) for word in words])
        captured = capsys.readouterr()
        return SimpleNamespace(status=leave.value.code, out=captured.out, err=captured.err)

    return run
