"""Where an ONNX file keeps weights outside itself; ONNX Runtime 1.21, the oldest that we support, reads any path.

The file is a protocol buffer: fields of a number and a type, some of which are messages again. Only the messages that
lead to a tensor are entered; needs no `onnx`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from yolo_lat.errors import UserError

# Messages by name, and their fields that lead to a tensor by number; see onnx.proto.
MESSAGES = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        **{5: "TensorProto", 6: "GraphProto", 10: "TensorProto", 11: "GraphProto"},
        **{22: "SparseTensorProto", 23: "SparseTensorProto"},
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {13: "StringStringEntryProto"},
}
_ENTRY = "StringStringEntryProto"  # of `external_data`: field 1 is its key, 2 its value
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MEMORY = "/*/_ORT_"  # begins the paths that ONNX Runtime takes for addresses in its own memory


def check_external_data(path: Path) -> None:
    """Refuse a model whose weights would be read from outside its folder, links followed, or from memory.

    Raises:
        UserError: such a model.
        ValueError: a file that is no protocol buffer.
    """
    folders = {path.resolve().parent, path.parent.resolve()}
    for location in external_files(path.read_bytes()):
        file = path.parent / location
        if _MEMORY in f"/{file.as_posix()}":  # also where the folder that was given begins it
            raise UserError(f"{path} keeps weights in the memory of the process; do not use it")
        file = file.resolve()
        if not any(file.is_relative_to(folder) for folder in folders):
            raise UserError(f"{path} keeps weights in '{location}', outside its folder; do not use it")


def external_files(content: bytes) -> Iterator[str]:
    """Yield the path of each file that a model's tensors are kept in, as the model writes it.

    Raises:
        ValueError: bytes that are no protocol buffer.
    """
    pending = [("ModelProto", 0, len(content))]
    while pending:
        message, start, end = pending.pop()
        key = value = b""
        for number, first, last in _fields(content, start, end):
            if message == _ENTRY:
                key, value = (content[first:last], value) if number == 1 else (key, content[first:last])
            elif number in MESSAGES[message]:
                pending.append((MESSAGES[message][number], first, last))
        if key == b"location":
            yield value.decode()


def _fields(content: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the number and the place of each field of bytes in a message."""
    while at < end:
        tag, at = _varint(content, at)
        kind = tag & 7
        if kind == _VARINT:
            _, at = _varint(content, at)
        elif kind == _BYTES:
            size, at = _varint(content, at)
            if at + size > end:
                raise ValueError("a field that is longer than its message")
            yield tag >> 3, at, at + size
            at += size
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError("a type of field that ONNX does not use")


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """Return the number that begins at a place, and the place after it."""
    number = 0
    for shift in range(0, 70, 7):
        if at == len(content):
            break
        byte, at = content[at], at + 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & 0xFFFFFFFFFFFFFFFF, at
    raise ValueError("a number that is cut off or has more than 64 bits")
