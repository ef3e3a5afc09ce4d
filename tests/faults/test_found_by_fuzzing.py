"""What fuzzing found, each with the input that showed it."""

from __future__ import annotations

import json
import struct

import onnx
import pytest
from hand_made_onnx import NAMES, fixed_output, raw_output
from PIL import Image

from yolo_lat import YOLOLAT
from yolo_lat.cli_modes import MODES
from yolo_lat.cli_parse import parse
from yolo_lat.collection.run_folder import RunFolder as CollectionFolder
from yolo_lat.collection.run_folder import _write_inputs
from yolo_lat.data.images import check_pixels, image_size
from yolo_lat.demo.run_folder import RunFolder as DemoFolder
from yolo_lat.demo.zones import read_zones
from yolo_lat.deploy import OnnxDetector
from yolo_lat.engine.unpickle import _refusal
from yolo_lat.errors import UserError
from yolo_lat.nn import LatModel, load_model_yaml

ROWS = "backbone:\n- [-1, 1, Conv, [8, 3, 2]]\nhead:\n- [[-1], 1, Detect, [nc]]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"nc: 2\nscales: [n]\n{ROWS}", "key scales: must map letters"),
        (f"nc: 2\nscales: {{n: [1, 1]}}\n{ROWS}", "key scales: must map letters"),
        (f"nc: many\n{ROWS}", "key nc: is 'many'; give the number of classes"),
        ("nc: 2\nbackbone: rows\nhead: []\n", "key backbone: is no list of rows"),
        (f"nc: !!int x\n{ROWS}", "not valid YAML"),
        ("nc: 2\nbackbone:\n- [-1, 1, Conv, [8, 3, 2]]\nhead:\n- [-1, 1, Detect]\n", "row 1 .*a row is"),
        ("nc: 2\nbackbone:\n- [-1, 1, Conv, [wide]]\nhead:\n- [[-1], 1, Detect, [nc]]\n", r"row 0 \(Conv\): cannot be"),
        ("nc: 2\nbackbone:\n- [-1, 1, Conv, [8, 0]]\nhead:\n- [[-1], 1, Detect, [nc]]\n", "model.yaml"),
    ],
)
def test_model_yaml(tmp_path, text, message) -> None:
    file = tmp_path / "model.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        LatModel(load_model_yaml(file), verbose=False)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "text",
    [
        "lines: !!int x",
        "lines: 2026-02-30",
        "[" * 600,
        "lines:\n- {name: a, from: [.nan, 0], to: [1, 1]}",
        "lines:\n- {name: a, from: [.inf, 0], to: [1, 1]}",
        f"lines:\n- {{name: a, from: [{'9' * 400}, 0], to: [1, 1]}}",
        f"lines:\n- {{name: a, from: [{'9' * 5000}, 0], to: [1, 1]}}",
        f"{'k' * 5000}: 1",
    ],
)
def test_zones(tmp_path, text) -> None:
    (tmp_path / "zones.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        read_zones(tmp_path / "zones.yaml")
    assert len(str(caught.value)) < 1000


def test_a_tiff_without_a_width(tmp_path) -> None:
    file = tmp_path / "a.tif"
    Image.new("RGB", (12, 9)).save(file, "TIFF")
    content = file.read_bytes()
    at = next(
        content.index(struct.pack("<HH", 256, kind)) for kind in (3, 4) if struct.pack("<HH", 256, kind) in content
    )
    file.write_bytes(content[:at] + struct.pack("<H", 60000) + content[at + 2 :])
    check_pixels(file)
    with pytest.raises(UserError, match="broken image"):
        image_size(file)


@pytest.mark.parametrize("word", ["x" * 300, "a/" * 3000, "a\0b"])
def test_a_word_that_no_file_can_be_called(word) -> None:
    with pytest.raises(UserError, match="unknown key"):
        parse(MODES["train"], [word])


@pytest.mark.parametrize(
    "damage",
    [
        {"args": "5"},
        {"stride": "'a'"},
        {"stride": "0"},
        {"imgsz": "64"},
        {"imgsz": "[]"},
        {"names": "3"},
        {"names": "(" * 300},
        {"names": "{[]: 1}"},
    ],
)
def test_metadata_of_an_onnx_file(tmp_path, damage) -> None:
    file = fixed_output(tmp_path / "a.onnx", raw_output(), NAMES | damage)
    with pytest.raises(UserError, match=r"a\.onnx: its metadata is damaged \(.*\); export it again"):
        YOLOLAT(file)
    if not damage.keys() & {"stride", "imgsz"}:  # which a fixed size makes superfluous
        with pytest.raises(UserError, match=r"metadata '.*' of .* export the model again"):
            OnnxDetector(file)


def test_an_onnx_file_without_inputs(tmp_path) -> None:
    model = onnx.load(fixed_output(tmp_path / "a.onnx", raw_output(), NAMES))
    del model.graph.input[:]
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(UserError, match="its metadata is damaged"):
        YOLOLAT(tmp_path / "a.onnx")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", b"[]", "holds no readable run.json"),
        ("run.json", b"[" * 100_000, "holds no readable run.json"),
        ("detections/0-1/_part.json", b"{}", r"0-1: this part is damaged \(_part.json: it lacks start\); remove it"),
        ("detections/0-1/_part.json", b"\xff", "0-1: this part is damaged"),
        ("inputs.parquet", b"PAR1", "the list of inputs is damaged"),
    ],
)
def test_the_folder_of_a_collection_run(tmp_path, name, content, message) -> None:
    (tmp_path / "detections/0-1").mkdir(parents=True)
    (tmp_path / "run.json").write_text("{}")
    _write_inputs(tmp_path / "inputs.parquet", iter(["a"]))
    (tmp_path / name).write_bytes(content)

    def read() -> None:
        with CollectionFolder.existing(tmp_path) as folder:
            folder.parts()
            list(folder.inputs(0))

    with pytest.raises(UserError, match=message):
        read()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", b"{}", "holds no readable run.json"),
        ("parts/00000.json", b"5", r"00000\.json: this part is damaged \(it is not an object\); remove it"),
        ("parts/00000.jsonl", b"\xff\n", r"00000\.jsonl: this part is damaged"),
        ("parts/00000.jsonl", b'{"frame": 0\n', r"00000\.jsonl: this part is damaged"),
    ],
)
def test_the_folder_of_a_demo_run(tmp_path, name, content, message) -> None:
    part = {"frames": 1, "next_frame": 1, "start_s": 0, "whole": True, "tracker": None, "faults": {}, "dropped": 0}
    (tmp_path / "parts").mkdir()
    settings = {"options": {"model": "a.onnx", "source": "a.mp4"}, "live": False, "fingerprint": {}}
    (tmp_path / "run.json").write_text(json.dumps(settings))
    (tmp_path / "parts/00000.json").write_text(json.dumps(part))
    (tmp_path / "parts/00000.jsonl").write_text('{"frame": 0}\n')
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(DemoFolder.existing(tmp_path).records())


def test_a_name_in_a_checkpoint_that_nobody_can_read(tmp_path) -> None:
    message = str(_refusal(tmp_path / "a.pt", "posix.\x1csys\ntem" + "x" * 5000))
    assert "names posix.?sys?temx" in message
    assert len(message) < 500
