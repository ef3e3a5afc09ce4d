"""Weights outside an ONNX file: read from its own folder, and from nowhere else."""

from pathlib import Path

import numpy as np
import onnx
import onnx.onnx_ml_pb2
import pytest
from hand_made_onnx import NAMES, fixed_output, raw_output
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper

from yolo_lat import YOLOLAT
from yolo_lat.demo.web.models import describe
from yolo_lat.deploy import OnnxDetector
from yolo_lat.deploy.external_data import MESSAGES, check_external_data, external_files
from yolo_lat.deploy.session import open_session
from yolo_lat.engine.checkpoint import onnx_metadata
from yolo_lat.errors import UserError

FORMS = ("initializer", "constant", "attribute-of-many", "subgraph", "function", "sparse")
IMAGE = np.zeros((64, 64, 3), np.uint8)


def outside(location: str) -> TensorProto:
    """A tensor of a detector's output, kept in another file."""
    tensor = TensorProto(name="kept", data_type=TensorProto.FLOAT, dims=raw_output().shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"offset": "0", "location": location, "length": str(raw_output().nbytes)}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def detector(file: Path, location: str, form: str = "constant") -> Path:
    """A detector whose output, or another tensor in it, is kept at `location`."""
    fixed_output(file, raw_output(), NAMES)
    model = onnx.load(file)
    node, tensor = model.graph.node[0], outside(location)
    if form == "constant":
        node.attribute[0].t.CopyFrom(tensor)
    elif form == "initializer":
        model.graph.initializer.append(tensor)
        node.CopyFrom(helper.make_node("Identity", ["kept"], ["output0"]))
    elif form == "attribute-of-many":
        node.attribute.append(helper.make_attribute("more", [tensor]))
    elif form == "subgraph":
        graph = helper.make_graph([], "inside", [], [], initializer=[tensor])
        node.attribute.append(helper.make_attribute("body", graph))
    elif form == "function":
        body = helper.make_node("Constant", [], ["x"], value=tensor)
        model.functions.append(helper.make_function("own", "f", [], ["x"], [body], [helper.make_opsetid("", 18)]))
    else:
        model.graph.sparse_initializer.add().values.CopyFrom(tensor)
    file.write_bytes(model.SerializeToString())  # not onnx.save, which would check the path
    return file


@pytest.fixture
def folder(tmp_path):
    """A folder with weights inside, inside deeper and outside, and links to those."""
    (tmp_path / "in/deep").mkdir(parents=True)
    for file in ("secret.bin", "in/w.bin", "in/deep/w.bin"):
        (tmp_path / file).write_bytes(raw_output().tobytes())
    (tmp_path / "in/link.bin").symlink_to(tmp_path / "secret.bin")
    (tmp_path / "in/up").symlink_to(tmp_path)
    return tmp_path / "in"


@pytest.mark.parametrize("location", ["w.bin", "deep/w.bin", "./w.bin", "deep/../w.bin"])
@pytest.mark.parametrize("form", ["constant", "initializer"])
def test_weights_beside_the_file_are_read(folder, form, location):
    assert len(OnnxDetector(detector(folder / "m.onnx", location, form))(IMAGE)) == 1


IN_MEMORY = "*/_ORT_MEM_ADDR_/*"  # ONNX Runtime takes the offset for an address
OUTSIDE = ("../secret.bin", "deep/../../secret.bin", "link.bin", "up/secret.bin", "{folder}/../secret.bin", IN_MEMORY)


@pytest.mark.parametrize("location", OUTSIDE)
@pytest.mark.parametrize("form", FORMS)
def test_weights_elsewhere_are_refused(folder, form, location, monkeypatch):
    location = location.format(folder=folder)
    file = detector(folder / "m.onnx", location, form)
    monkeypatch.setattr("onnxruntime.InferenceSession", None)  # nothing comes as far
    with pytest.raises(UserError) as caught:
        OnnxDetector(file)
    where = "the memory of the process" if location == IN_MEMORY else f"'{location}', outside its folder"
    assert str(caught.value) == f"{file} keeps weights in {where}; do not use it"


@pytest.mark.parametrize(
    ("folder", "location"),
    [("*", "_ORT_MEM_ADDR_/*"), ("*/_ORT_MEM_ADDR_", "*"), ("a", "*/_ORT_OTHER_ADDR_/*"), ("a", "./" + IN_MEMORY)],
)
def test_memory_is_refused_however_its_path_comes_together(tmp_path, monkeypatch, folder, location):
    monkeypatch.chdir(tmp_path)
    Path(folder).mkdir(parents=True)
    with pytest.raises(UserError, match="keeps weights in the memory of the process; do not use it"):
        check_external_data(detector(Path(folder, "m.onnx"), location))


@pytest.mark.parametrize("reader", [YOLOLAT, onnx_metadata, describe, open_session])
def test_no_reader_goes_around(folder, reader):
    file = detector(folder / "m.onnx", "../secret.bin")
    with pytest.raises(UserError, match=r"keeps weights in '\.\./secret\.bin', outside its folder"):
        reader(file)


def test_a_link_to_a_model_is_opened(folder, tmp_path):
    detector(folder / "m.onnx", "w.bin")
    (tmp_path / "m.onnx").symlink_to(folder / "m.onnx")
    check_external_data(tmp_path / "m.onnx")
    detector(folder / "m.onnx", "deep/../../in/w.bin")
    check_external_data(folder / "m.onnx")


def test_the_table_of_messages_is_that_of_onnx():
    """Every field by which a message of ONNX leads to a tensor, or a tensor to another file."""

    def leads(message, seen=()) -> bool:
        names = (*seen, message.name)
        inner = [f.message_type for f in message.fields if f.message_type and f.message_type.name not in names]
        return message.name == "TensorProto" or any(leads(m, names) for m in inner)

    for name, fields in MESSAGES.items():
        message = getattr(onnx.onnx_ml_pb2, name).DESCRIPTOR
        found = {f.number: f.message_type.name for f in message.fields if f.message_type and leads(f.message_type)}
        if name == "TensorProto":
            found = {message.fields_by_name["external_data"].number: "StringStringEntryProto"}
        assert fields == found, name
    assert set(MESSAGES) >= {field for fields in MESSAGES.values() for field in fields.values()} - {
        "StringStringEntryProto"
    }


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 300))
def test_what_protobuf_reads_is_read_alike(noise, place):
    """Whatever bytes are in a file: where `onnx` finds another file, so do we."""
    model = helper.make_model(helper.make_graph([], "g", [], [], initializer=[outside("../secret.bin")]))
    whole = model.SerializeToString()
    content = whole[:place] + noise + whole[place:]
    try:
        parsed = ModelProto.FromString(content)
    except Exception:  # protobuf's errors have no base class of their own
        return
    wanted = {e.value for t in parsed.graph.initializer for e in t.external_data if e.key == "location"}
    try:
        found = set(external_files(content))
    except ValueError:
        return  # refused, whatever it holds
    assert found >= wanted
