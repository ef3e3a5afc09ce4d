"""What fuzzing begins with: small files of every kind, made here."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

COCO = json.dumps(
    {
        "images": [
            {"id": 1, "file_name": "a.png", "width": 60, "height": 40},
            {"id": 2, "file_name": "sub/b.png", "width": 60, "height": 40},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [6, 4, 30, 20], "area": 600, "iscrowd": 0},
            {"id": 2, "image_id": 2, "category_id": 7, "bbox": [0.5, 4, 3e1, 2], "iscrowd": 1},
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
    }
).encode()
_VOC = (
    b"<?xml version='1.0' encoding='utf-8'?>\n<annotation><size><width>60</width><height>40</height></size>\n"
    b"<object><name>cat</name><difficult>0</difficult><bndbox><xmin>7</xmin><ymin>5</ymin><xmax>36</xmax>"
    b"<ymax>24</ymax></bndbox></object></annotation>"
)
MODEL = b"""nc: 2
reg_max: 4
scales:
  n: [1.0, 1.0, 64]
activation: nn.SiLU()
backbone:
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, ELABlock, [8, 2, 4]]
head:
  - [[1, -1], 1, HyperLink, [8]]
  - [[-1], 1, LatDetect, [nc]]
"""


def rows() -> list[bytes]:
    return [b"0 0.5 0.5 0.25 0.25\n1 0.1 0.1 0.6 0.1 0.6 0.6\n", b"0 .5 .5 1e-3 nan\n", b"\xef\xbb\xbf1 1 1 0 0"]


def voc_seeds() -> list[bytes]:
    latin = b"<?xml version='1.0' encoding='latin-1'?><!DOCTYPE a [<!ENTITY e 'x'>]><annotation>&e;</annotation>"
    return [_VOC, latin]


def results() -> list[bytes]:
    return [b'[{"image_id": 1, "category_id": 3, "bbox": [6, 4, 30, 20], "score": 0.9}]', b"[]"]


def data_yamls() -> list[bytes]:
    return [
        b"path: .\ntrain: images\nval: [images]\nnames: [cat, dog]\nnc: 2\n",
        b"train: images\nval: images\nnames: {0: cat, 1: dog}\nsubset: {train: 1, seed: 2}\n",
        b"train: images\nval: images\ncoco_json: {train: a.json, val: a.json}\nformat: coco\n",
        b"train: &a images\nval: *a\nformat: voc\nvoc_first_pixel: 0\ndownload: https://a/b.zip\ntest: images\n",
    ]


def registries() -> list[bytes]:
    whole = (
        b"mine:\n  about: a\n  licence: b\n  size: 1 GB\n  path: mine\n  train: images\n  val: images\n  names: [a]\n"
    )
    return [whole, whole + b"part:\n  about: a\n  licence: b\n  size: 1\n  subset_of: mine\n  subset: {train: 5}\n"]


def recipes() -> list[bytes]:
    return [
        b"epochs: 3\nlr0: 0.01\noptimizer: SGD\ncache: device\n",
        b"augmentations:\n- {type: Blur, p: 0.5}\nmosaic: 1.0\namp: false\n",
    ]


def zones() -> list[bytes]:
    return [
        b"lines:\n- name: gate\n  from: [0.1, 0.5]\n  to: [0.9, 0.5]\n",
        b"polygons:\n- {name: a, points: [[1, 2], [3, 4], [5, 2]]}\n- {name: 1e3, points: [[1, 2], [3, 4], [5, 2]]}\n",
    ]


def commands() -> list[bytes]:
    lines = [
        *("model=yolo-lat-n data=a.yaml epochs=3", "predict = 1 source= a.jpg", "imgsz=[64, 96] classes=(1,2)"),
        *(
            "--conf 0.4 --save=True",
            "a.jpg",
            "data=coco-subset:train=2,val=5,seed=1",
            "resume",
            "runs/a runs/b",
            "amp=None",
        ),
    ]
    words = [b"\0".join(word.encode() for word in line.split()) for line in lines]
    return [bytes([number]) + line for number, line in enumerate(words)] + [b"\xffdata\0convert\0data=a"]


class _Odd:
    def __reduce__(self) -> Any:
        return os.system, ("true",)


def pickles() -> list[bytes]:
    plain = {"epoch": 3, "format": "yolo-lat training 2", "model": {"a": [1, 2.5, None, "x" * 9, b"\0", (1, True)]}}
    return [
        *(pickle.dumps(value, 2) for value in (plain, _Odd(), {"model": _Odd()})),
        *(_files(archive)["data.pkl"] for archive in _saved()),
        _saved()[1],
    ]


@cache
def _saved() -> list[bytes]:
    """Return an archive of a small checkpoint, and one of tensors."""
    import torch

    found = []
    for value in ({"model": _tiny_model(), "train_args": {"imgsz": 64}}, {"a": torch.zeros(3), "epoch": 1}):
        stream = io.BytesIO()
        torch.save(value, stream)
        found.append(stream.getvalue())
    return found


def _files(archive: bytes) -> dict[str, bytes]:
    """Return the files of an archive of torch by their names below its folder."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return {name.partition("/")[2]: opened.read(name) for name in opened.namelist()}


@cache
def storages() -> dict[str, bytes]:
    """Return the files of the small checkpoint beside its pickle."""
    return {name: data for name, data in _files(_saved()[0]).items() if name != "data.pkl"}


@cache
def _tiny_model() -> Any:
    import yaml
    from ultralytics.utils import DEFAULT_CFG_DICT

    from yolo_lat.nn import LatModel

    model = LatModel({**yaml.safe_load(MODEL), "scale": "n", "yaml_file": "tiny.yaml"}, verbose=False)
    model.args = {**DEFAULT_CFG_DICT, "imgsz": 64}
    model.names, model.task = {0: "cat", 1: "dog"}, "detect"
    return model


@cache
def tiny_safetensors() -> bytes:
    import tempfile

    from yolo_lat.engine.checkpoint import save_safetensors

    with tempfile.TemporaryDirectory() as folder:
        return save_safetensors(_tiny_model(), Path(folder) / "a.safetensors").read_bytes()


def headers() -> list[bytes]:
    weights = tiny_safetensors()
    header = weights[8 : 8 + int.from_bytes(weights[:8], "little")]
    short = json.dumps({"__metadata__": json.loads(header)["__metadata__"]}).encode()
    return [header, short, b"\xff" + weights[:200]]


def _kept_at(location: str) -> Any:
    """Return a tensor of ONNX that another file holds."""
    from onnx import TensorProto

    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


@cache
def onnx_seeds() -> list[bytes]:
    import onnx
    from onnx import TensorProto, helper

    metadata = {"names": "{0: 'cat', 1: 'dog'}", "stride": "32", "imgsz": "[64, 64]", "task": "detect"}
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, (1, 3, 64, 64))
    result = helper.make_tensor_value_info("output0", TensorProto.FLOAT, (1, 6, 2))
    output = onnx.numpy_helper.from_array(np.zeros((1, 6, 2), np.float32))
    seeds = []
    for places in ([], ["../w.bin"], ["*/_ORT_MEM_ADDR_/*"]):
        weights = [_kept_at(place) for place in places]
        node = helper.make_node("Constant", [], ["output0"], value=output)
        graph = helper.make_graph([node], "g", [images], [result], initializer=weights)
        model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
        helper.set_model_props(model, metadata)
        seeds.append(model.SerializeToString())
    return seeds


def settings() -> list[bytes]:
    names = b"{0: 'cat', 1: 'dog'}"
    return [
        names + b"\n32\n[64, 64]\ndetect\n{'nms': False}\n",
        names + b"\n32\n[64, 64]\ndetect\n{}\nuint8-bgr-nhwc\nbest-class",
    ]


def pictures() -> list[bytes]:
    from PIL import Image

    image = Image.fromarray(np.arange(12 * 9 * 3, dtype=np.uint8).reshape(9, 12, 3))
    found = []
    for form, options in (
        *(("PNG", {}), ("JPEG", {"quality": 20}), ("BMP", {}), ("WEBP", {}), ("WEBP", {"lossless": True})),
        *(("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("GIF", {})),
    ):
        stream = io.BytesIO()
        image.save(stream, form, **options)
        found.append(stream.getvalue())
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(stream, "JPEG", quality=20, exif=exif)
    return [*found, stream.getvalue()]


def uploads() -> list[bytes]:
    made = pictures()
    form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n' + made[0] + b"\r\n--b--\r\n"
    return [b"multipart/form-data; boundary=b\n\n" + form, *(b"image/png\n\n" + picture for picture in made)]


def records() -> list[bytes]:
    ratio = {"median": 1.5, "low": 1.4, "high": 1.6, "rounds": [1.4, 1.5, 1.6]}
    trial = {"setting": "default", "variant": "raw", "median_ms": 2.0}
    times = {"rounds_ms": [2.0], "median_ms": 2.0, "p5_ms": 1.9, "p95_ms": 2.1}
    result = {"model": "a", "trials": [trial], "setting": "default", **times, "ratios": {"a": ratio}}
    content = {
        "format": "yolo-lat benchmark 1",
        "protocol": False,
        "deviations": [],
        "command": "yolo-lat benchmark models=a",
        "started": "2026-01-01T00:00:00+00:00",
        "machine": {"device": "cpu", "cpu": "cpu", "cores": 2, "threads": 2},
        "versions": {"yolo_lat": "0.1.0", "onnxruntime": "1.21"},
        "how": {"rounds": 5, "runs": 50, "references": ["a"], "pictures": "2", "settings": [], "search": "every"},
        "memory": "by difference",
        "models": [{"name": "a", "source": "a", "weights": "random, seed 0", "accuracy": [], "gflops": {"64": 1.0}}],
        "cells": [{"imgsz": 64, "batch": 1, "precision": "fp32", "boundary": "forward", "results": [result]}],
        "complete": True,
    }
    return [json.dumps(content).encode()]


def collection_seeds() -> list[bytes]:
    part = b'{"start": 0, "stop": 1, "images": 1, "failed": 0, "detections": 2, "seconds": 0.5}'
    return [b'\0{"model": "a", "source": "b"}', b"\1" + part, b"\2PAR1"]


def demo_seeds() -> list[bytes]:
    part = b'{"frames": 2, "next_frame": 2, "start_s": 0.0, "whole": true, "tracker": null, "faults": {}, "dropped": 0}'
    settings = b'{"options": {"model": "a.onnx", "source": "a.mp4"}, "live": true, "fingerprint": {}}'
    return [b"\0" + settings, b"\1" + part, b'\2{"frame": 0, "boxes": []}\n']
