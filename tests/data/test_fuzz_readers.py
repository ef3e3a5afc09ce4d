"""Whatever stands in annotations and YAMLs, they are read or refused in one sentence, and what was read is valid."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
from fault_injection import seeds

from yolo_lat.data.faults import Fault
from yolo_lat.data.reader import read_split
from yolo_lat.data.registry import load_dataset
from yolo_lat.errors import UserError

WHOLE = {"yolo": seeds.rows()[0], "coco": seeds.COCO, "voc": seeds.voc_seeds()[0]}
FILES = {"yolo": "labels/a.txt", "coco": "coco.json", "voc": "Annotations/a.xml"}
KEYS = {"yolo": {}, "coco": {"coco_json": {"train": "coco.json", "val": "coco.json"}}, "voc": {"format": "voc"}}
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "40"))  # more of them is a matter of patience
FUZZ = settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=WHOLE)
def kind(request) -> str:
    return request.param


@pytest.fixture
def root(kind, tmp_path) -> Path:
    """A data YAML with names for the format, and folders for its files; images are looked at by `look` alone."""
    for name in ("images/sub", "labels", "Annotations/sub"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("a", "sub/b"):
        (tmp_path / f"images/{name}.png").touch()
    (tmp_path / "Annotations/sub/b.xml").write_text("<annotation/>")
    content = {"train": "images", "val": "images", "names": ["cat", "dog"], **KEYS[kind]}
    (tmp_path / "data.yaml").write_text(json.dumps(content))
    return tmp_path


def look(path: Path) -> tuple[int, int]:
    return 60, 40


@contextmanager
def refused_in_one_sentence() -> Iterator[list[str]]:
    """Let nothing but a UserError pass; the list holds its message."""
    messages: list[str] = []
    try:
        yield messages
    except UserError as error:
        messages.append(str(error))
        assert len(messages[0].splitlines()) == 1
        assert 10 < len(messages[0]) < 2000


def check(root: Path, kind: str, content: bytes) -> None:
    """Read once refusing faults and once collecting them."""
    (root / FILES[kind]).write_bytes(content)
    spec = load_dataset(root / "data.yaml")
    strict = None
    with refused_in_one_sentence() as refusal:
        strict = read_split(spec, "val", False, look=look)
    faults: list[Fault] = []
    with refused_in_one_sentence() as hopeless:
        split = read_split(spec, "val", False, faults.append, look)
    for fault in faults:
        assert len(fault.message.splitlines()) == 1
        assert str(fault.file) in fault.message
        assert len(fault.message) < 2000
        assert fault.kind in ("image", "size", "labels", "class")
    assert refusal == ([fault.message for fault in faults] or hopeless)[:1]
    if hopeless:
        return
    for image in split.images:
        count = len(image.class_ids)
        assert (image.boxes_xywh.shape, image.areas.shape, image.crowd.shape) == ((count, 4), (count,), (count,))
        assert [a.dtype for a in (image.class_ids, image.boxes_xywh, image.areas)] == [np.int64, np.float64, np.float64]
        assert all(np.isfinite(a).all() for a in (image.boxes_xyxy, image.areas))
        assert ((image.class_ids >= 0) & (image.class_ids < 2)).all()
        assert (image.boxes_xywh[:, 2:] >= 0).all()
        assert (image.areas >= 0).all()
    truth = split.ground_truth()
    json.dumps(truth, allow_nan=False)
    assert len(set(split.category_ids)) == len(split.names)
    if strict is not None:
        assert strict.ground_truth() == truth


@st.composite
def mutations(draw: st.DrawFn, whole: bytes) -> bytes:
    """A valid file with bytes replaced, doubled or dropped, or its end cut off."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 12)))
        new = draw(
            st.sampled_from([b"", b"\0", b"\xff", b"1e999", b"NaN", b"-", b"9" * 40, b'"', b"&e;", b"<a>", b"]"])
        )
        content[start:end] = draw(st.sampled_from([new, bytes(content[start:end]) * 2, draw(st.binary(max_size=3))]))
    return bytes(content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content)


NUMBERS = st.one_of(
    st.integers(), st.floats(), st.sampled_from([2**62, 2**63, 10**400, -(10**400), 1e308, float("nan"), True, 0])
)
SCALARS = st.none() | st.booleans() | NUMBERS | st.text() | st.sampled_from(["a.png", "cat", "../a", "\ud800", "\0"])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
)


def places(value: Any, place: tuple = ()) -> list[tuple]:
    """Return the way to every value inside a JSON."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    return [place, *(way for key, part in parts for way in places(part, (*place, key)))]


def replaced(value: Any, place: tuple, new: Any) -> Any:
    if not place:
        return new
    copy = value.copy()
    copy[place[0]] = replaced(value[place[0]], place[1:], new)
    return copy


@st.composite
def swapped(draw: st.DrawFn) -> bytes:
    """The COCO JSON with values replaced by any JSON value, dropped or given twice."""
    content = json.loads(WHOLE["coco"])
    for _ in range(draw(st.integers(1, 3))):
        ways = places(content)
        content = replaced(content, draw(st.sampled_from(ways)), draw(VALUES))
    return json.dumps(content).encode()


@FUZZ
@given(data=st.data())
def test_mutated_files_are_read_or_refused(root, kind, data):
    check(root, kind, data.draw(mutations(WHOLE[kind])))


@FUZZ
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_read_or_refused(root, kind, content):
    check(root, kind, content)


@pytest.mark.parametrize("kind", ["coco"])
@FUZZ
@given(content=swapped())
def test_json_of_any_types_is_read_or_refused(root, kind, content):
    check(root, kind, content)


TOKENS = st.sampled_from(
    ["0", "1", "0.5", "1.005", "-0.005", "1e-300", "2", "nan", "inf", "1e400", "x", "0,5", "٣", "1_0"]
)


@pytest.mark.parametrize("kind", ["yolo"])
@FUZZ
@given(rows=st.lists(st.lists(TOKENS, max_size=9).map(" ".join), max_size=6))
def test_rows_of_any_numbers_are_read_or_refused(root, kind, rows):
    check(root, kind, "\n".join(rows).encode())


TEXTS = st.sampled_from(["7", "36", "0", "-5", "nan", "inf", "1e400", "1e308", "", "x", "cat", "a\nb", "1", "é" * 99])
TAGS = st.sampled_from(
    ["name", "xmin", "ymin", "xmax", "ymax", "bndbox", "difficult", "width", "object", "size", "other"]
)


@st.composite
def elements(draw: st.DrawFn) -> bytes:
    """The VOC XML with tags and texts exchanged."""
    text = WHOLE["voc"].decode()
    for _ in range(draw(st.integers(1, 3))):
        old, new = draw(TAGS), draw(TAGS)
        text = text.replace(f"{old}>", f"{new}>")
        text = text.replace(draw(st.sampled_from([">7<", ">cat<", ">0<", ">36<", ">60<"])), f">{draw(TEXTS)}<")
    return text.encode()


@pytest.mark.parametrize("kind", ["voc"])
@FUZZ
@given(content=elements())
def test_xml_of_any_elements_is_read_or_refused(root, kind, content):
    check(root, kind, content)


YAML_KEYS = (
    "path",
    "train",
    "val",
    "test",
    "names",
    "nc",
    "format",
    "coco_json",
    "voc_first_pixel",
    "subset",
    "download",
)


def read_both(file: Path) -> None:
    with refused_in_one_sentence():
        spec = load_dataset(file)
        for split in spec.splits:
            with refused_in_one_sentence():
                read_split(spec, split, False, look=look)


@FUZZ
@given(data=st.data())
def test_a_data_yaml_of_any_values_is_read_or_refused(root, kind, data):
    (root / FILES[kind]).write_bytes(WHOLE[kind])
    content = {"path": ".", "train": "images", "val": "images", "names": ["cat", "dog"], **KEYS[kind]}
    usual = st.sampled_from(
        ["images", ["images"], {"train": 1, "seed": 2}, {"val": "coco.json"}, "voc", 1, "https://a/b.zip"]
    )
    for key in data.draw(st.lists(st.sampled_from(YAML_KEYS), min_size=1, max_size=3)):
        content[key] = data.draw(usual | VALUES)
    text = yaml.safe_dump(content, allow_unicode=data.draw(st.booleans()))
    (root / "fuzz.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
    read_both(root / "fuzz.yaml")


TAGGED = [f"!!{tag} " for tag in ("int", "bool", "set", "timestamp", "binary", "float", "omap")]
KEYWORDS = ["train: images\n", "val: images\n", "names: ", "[cat]\n", "2001-99-99", "0xff"]
WORDS = st.sampled_from(
    [*TAGGED, *KEYWORDS, "- ", "? ", ": ", "&a ", "*a", "{", "}", "[", "]", "|\n", "<<: ", "\t", "\n "]
)


@pytest.mark.parametrize("kind", ["yolo"])
@FUZZ
@given(text=st.lists(WORDS | st.text(max_size=3), max_size=12).map("".join))
def test_a_data_yaml_of_any_text_is_read_or_refused(root, kind, text):
    (root / "fuzz.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
    read_both(root / "fuzz.yaml")
