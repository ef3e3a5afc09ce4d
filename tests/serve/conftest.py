"""A model that follows its picture, and a server of it that all tests of a module share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hand_made_onnx import colour_detector
from serving import Running, serving


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_detector(tmp_path_factory.mktemp("serve") / "colours.onnx")


@pytest.fixture(scope="module")
def running(model: Path) -> Iterator[Running]:
    """A server with small limits: 0.1 MB and 0.1 megapixels."""
    with serving(model, max_mb=0.1, max_megapixels=0.1) as running:
        yield running
