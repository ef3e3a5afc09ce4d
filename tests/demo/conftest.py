"""What the tests of the demo share."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from clips import moving, rectangle_detector, write_clip
from rich.console import Console

CLIPS = Path(__file__).resolve().parents[2].parent / "shared/data/video"


@pytest.fixture(scope="session")
def detector_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rectangle_detector(tmp_path_factory.mktemp("detector") / "rectangles.onnx")


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 frames of 96 px, 25 a second."""
    return write_clip(tmp_path_factory.mktemp("clips") / "moving.mp4", moving(60))


@pytest.fixture
def console() -> Console:
    """A console that keeps what is printed: `console.file.getvalue()`."""
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def real_clip() -> Callable[[str], Path]:
    def find(name: str) -> Path:
        if not (CLIPS / name).is_file():
            pytest.skip(f"{name} is not at hand")
        return CLIPS / name

    return find
