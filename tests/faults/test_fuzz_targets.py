"""Every reader gets damaged bytes, and reads or refuses them in one sentence; `tools/faults.py` does so at length."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from fault_injection import targets
from fault_injection.targets import TARGETS, WrongError, execute

from yolo_lat.errors import UserError

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "30"))
PIECES = [
    b"",
    b"\0",
    b"\xff",
    b"1e999",
    b"nan",
    b"-1",
    b"9" * 40,
    b"null",
    b"[]",
    b"{}",
    b'"',
    b"!!int x",
    b"\n",
    b"\x1c",
]


@st.composite
def damaged(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A seed with bytes replaced, doubled or dropped, or its end cut off."""
    content = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 12)))
        content[start:end] = draw(st.sampled_from([*PIECES, bytes(content[start:end]) * 2]) | st.binary(max_size=4))
    return bytes(content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content)


@pytest.fixture(params=TARGETS)
def target(request, tmp_path, monkeypatch) -> tuple[str, targets.Run, list[bytes]]:
    """A reader; what its making changes is put back."""
    from yolo_lat.data import data_yaml, registry
    from yolo_lat.data.images import Image

    monkeypatch.setattr(data_yaml, "list_images", data_yaml.list_images)
    monkeypatch.setattr(registry, "read_yaml", registry.read_yaml)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    for name in ("YOLO_LAT_DATASETS", "YOLO_LAT_MAX_MEGAPIXELS"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.delenv("YOLO_LAT_MAX_MEGAPIXELS")
    monkeypatch.chdir(tmp_path)
    seeds = TARGETS[request.param].seeds()
    return request.param, TARGETS[request.param].make(tmp_path), seeds


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_damaged_bytes_are_read_or_refused(target, data) -> None:
    _, run, seeds = target
    assert execute(run, data.draw(damaged(seeds))) in ("read", "refused")


def test_something_whole_is_read(target) -> None:
    """Else a reader that refuses everything would pass."""
    _, run, seeds = target
    assert "read" in [execute(run, seed) for seed in seeds]


def test_what_is_no_refusal_in_one_sentence_is_noticed() -> None:
    def two_lines(_: bytes) -> None:
        raise UserError("one line\nand another")

    def bug(_: bytes) -> None:
        raise KeyError("a")

    with pytest.raises(WrongError, match="not one sentence"):
        execute(two_lines, b"")
    with pytest.raises(KeyError):
        execute(bug, b"")


def test_a_loader_that_starts_something_is_noticed(tmp_path) -> None:
    run = targets._watched(lambda content: os.system(content.decode()) and None)
    with pytest.raises(WrongError, match=r"os\.system"):
        run(b"true")
    writes = targets._watched(lambda content: (tmp_path / content.decode()).write_text("x") and None)
    with pytest.raises(WrongError, match="open"):
        writes(b"a.txt")
