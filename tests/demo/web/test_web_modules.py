"""The page's JavaScript against the Python that it repeats: the same arrays through both, in one run of Node.js."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from yolo_lat.demo.web.site import STATIC
from yolo_lat.deploy.postprocess import from_best_class_output, from_nms_free_output, from_raw_output
from yolo_lat.deploy.preprocess import letterbox, unletterbox, write_input
from yolo_lat.drawing import class_colour

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="Node.js is not installed, so the page's modules cannot be run")

# Height and width of images, then of the input they are fitted into.
FITS = [
    *(((480, 640), (320, 320)), ((720, 1280), (640, 640)), ((1080, 1920), (640, 640)), ((375, 500), (96, 96))),
    *(((96, 96), (96, 96)), ((50, 96), (96, 96)), ((37, 53), (96, 96)), ((1, 1), (64, 64)), ((1, 300), (64, 64))),
    *(
        ((300, 2), (64, 64)),
        ((128, 128), (64, 64)),
        ((128, 126), (64, 64)),
        ((64, 61), (32, 64)),
        ((333, 777), (96, 160)),
    ),
    *(((2, 2), (640, 640)), ((191, 97), (96, 96)), ((97, 191), (95, 93)), ((3000, 4000), (640, 640))),
]
LIMITS = {"conf": 0.25, "iou": 0.7, "max_det": 300}


def packed(array: np.ndarray) -> dict[str, str]:
    kind = "uint16" if array.dtype == np.float16 else str(array.dtype)
    return {"dtype": kind, "data": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()}


def unpacked(packet: dict[str, str]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packet["data"]), packet["dtype"])


@pytest.fixture(scope="module")
def modules() -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    """Run jobs of run_modules.mjs and return their results."""

    def run(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        script = Path(__file__).with_name("run_modules.mjs")
        done = subprocess.run(
            [str(NODE), str(script), str(STATIC)], input=json.dumps(jobs), capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_letterboxing_equals_opencv_bit_for_bit(modules):
    rng = np.random.default_rng(0)
    sizes = [*FITS, *((tuple(rng.integers(1, 400, 2)), tuple(rng.integers(1, 12, 2) * 32)) for _ in range(60))]
    sizes = [tuple((int(a), int(b)) for a, b in pair) for pair in sizes]
    images = [rng.integers(0, 256, (*image, 3), np.uint8) for image, _ in sizes]
    boxes = [rng.uniform(-20, 660, (8, 4)).astype(np.float32) for _ in sizes]
    results = modules(
        [
            {
                "job": "letterbox",
                "rgba": packed(cv2.cvtColor(image, cv2.COLOR_BGR2RGBA)),
                **{"width": image.shape[1], "height": image.shape[0]},
                **{"inputWidth": size[1], "inputHeight": size[0]},
                "boxes": packed(corners),
            }
            for image, (_, size), corners in zip(images, sizes, boxes, strict=True)
        ]
    )
    for image, (_, size), corners, result in zip(images, sizes, boxes, results, strict=True):
        name = f"{image.shape[:2]} into {size}"
        wanted = letterbox(image, size)
        found = unpacked(result["pixels"]).reshape(*size, 3)[..., ::-1]
        np.testing.assert_array_equal(found, wanted.image, err_msg=name)
        back = unletterbox(corners, wanted.ratio, wanted.pad, image.shape[:2])
        np.testing.assert_array_equal(unpacked(result["boxes"]).reshape(-1, 4), back, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_input_numbers_equal_numpy(modules, dtype):
    bgr = np.random.default_rng(1).permutation(np.arange(768) % 256).astype(np.uint8).reshape(16, 16, 3)
    shape = (1, 16, 16, 3) if dtype == "uint8" else (1, 3, 16, 16)
    wanted = np.empty(shape, dtype)
    write_input([bgr], wanted)
    [result] = modules([{"job": "input", "pixels": packed(bgr[..., ::-1]), "dtype": dtype}])
    bits = {"float32": np.uint32, "float16": np.uint16, "uint8": np.uint8}[dtype]
    np.testing.assert_array_equal(unpacked(result["numbers"]).view(bits), wanted.view(bits).ravel())


def test_every_float16_is_read_as_numpy_reads_it(modules):
    every = np.arange(1 << 16, dtype=np.uint16)
    [result] = modules([{"job": "floats", "bits": packed(every)}])
    np.testing.assert_array_equal(unpacked(result["numbers"]), every.view(np.float16).astype(np.float32))


def raw(seed: int, classes: int, anchors: int, dtype: Any = np.float32) -> np.ndarray:
    """An output of crowded boxes, whose scores have ties, and with some that are no numbers."""
    rng = np.random.default_rng(seed)
    output = np.empty((1, 4 + classes, anchors))
    output[:, :2] = rng.uniform(0, 320, (1, 2, anchors))
    output[:, 2:4] = rng.uniform(0, 160, (1, 2, anchors))
    output[:, 4:] = rng.random((1, classes, anchors)).round(2) ** 3
    if anchors > 10:
        output[0, 4 + classes // 2, 3], output[0, 4, 5], output[0, :4, 7] = np.nan, np.inf, np.nan
        output[0, 2:4, 8:10] = 0
    return output.astype(dtype)


def best_class(output: np.ndarray) -> np.ndarray:
    scores = output[:, 4:]
    ids = scores.argmax(axis=1, keepdims=True).astype(output.dtype)
    return np.concatenate([output[:, :4], scores.max(axis=1, keepdims=True), ids], axis=1)


def nms_free(seed: int, rows: int, dtype: Any = np.float32) -> np.ndarray:
    rng = np.random.default_rng(seed)
    output = np.concatenate([rng.uniform(0, 320, (1, rows, 4)), np.sort(rng.random((1, rows, 1)), 1)[:, ::-1]], axis=2)
    return np.concatenate([output, rng.integers(0, 80, (1, rows, 1))], axis=2).astype(dtype)


OUTPUTS = {
    **{f"raw-{n}-classes": (None, raw(n, n, 700)) for n in (1, 3, 80)},
    "raw-float16": (None, raw(4, 8, 700, np.float16)),
    "raw-no-anchor-above": (None, np.zeros((1, 9, 84), np.float32)),
    "raw-one-anchor": (None, raw(5, 5, 1)),
    "best-class": ("best-class", best_class(raw(6, 80, 700))),
    "best-class-float16": ("best-class", best_class(raw(7, 8, 700, np.float16))),
    "best-class-six-anchors": ("best-class", best_class(raw(8, 8, 6))),
    "nms-free": ("nms-free", nms_free(9, 300)),
    "nms-float16": ("nms", nms_free(10, 300, np.float16)),
    "six-columns-without-metadata": (None, nms_free(11, 40)),
}


@pytest.mark.parametrize(
    "limits", [{}, {"conf": 0.001}, {"iou": 0.45, "max_det": 5}, {"conf": 0.5, "iou": 0.0}], ids=str
)
def test_decoding_and_suppression_equal_python(modules, limits):
    limits = LIMITS | limits
    page_limits = {"conf": limits["conf"], "iou": limits["iou"], "maxDet": limits["max_det"]}
    jobs = [
        {
            "job": "decode",
            "data": packed(output),
            "type": str(output.dtype),
            **{"dims": list(output.shape), "kind": kind, "limits": page_limits},
        }
        for kind, output in OUTPUTS.values()
    ]
    found_any = 0
    for name, (kind, output), result in zip(OUTPUTS, OUTPUTS.values(), modules(jobs), strict=True):
        if kind == "best-class":
            [wanted] = from_best_class_output(output, **limits)
        elif output.shape[2] == 6:
            [wanted] = from_nms_free_output(output, limits["conf"], limits["max_det"])
        else:
            [wanted] = from_raw_output(output, **limits)
        np.testing.assert_array_equal(unpacked(result["boxes"]).reshape(-1, 4), wanted.xyxy, err_msg=name)
        np.testing.assert_array_equal(unpacked(result["scores"]), wanted.scores, err_msg=name)
        np.testing.assert_array_equal(unpacked(result["classIds"]), wanted.class_ids, err_msg=name)
        found_any += len(wanted.scores)
    assert found_any > 20


def test_classes_have_the_colours_of_drawn_pictures(modules):
    [result] = modules([{"job": "colours", "count": 200}])
    found = [[int(value) for value in colour[4:-1].split()] for colour in result["colours"]]
    np.testing.assert_allclose(found, [class_colour(class_id)[::-1] for class_id in range(200)], atol=1)
