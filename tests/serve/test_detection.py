"""Answers of a real server equal those of `OnnxDetector`, alone and among others."""

from __future__ import annotations

import io
import json
import random
import socket
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hand_made_onnx import NAMES, colour_detector, fixed_output, raw_output
from PIL import Image
from serving import Gated, encoded, serving, squares, wait_until

from yolo_lat.deploy import OnnxDetector
from yolo_lat.deploy.detections import Detections
from yolo_lat.errors import UserError
from yolo_lat.serve import settings
from yolo_lat.serve.detector import ServedDetector
from yolo_lat.serve.settings import ServeSettings


def assert_same(answer: dict[str, Any], found: Detections) -> None:
    """The JSON holds the detector's numbers, bit for bit: x + width is the right edge again."""
    rows = answer["detections"]
    x, y, w, h = np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4).T
    boxes = np.stack([x, y, x + w, y + h], axis=1).astype(np.float32)
    np.testing.assert_array_equal(boxes, found.boxes_xyxy)
    np.testing.assert_array_equal(np.array([row["score"] for row in rows], np.float32), found.scores)
    assert [row["category_id"] for row in rows] == found.class_ids.tolist()
    assert [row["category_name"] for row in rows] == [found.names[i] for i in found.class_ids.tolist()]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".tiff"])
@pytest.mark.parametrize("way", ["body", "form"])
def test_every_format_and_both_ways(running, model, suffix, way):
    content = encoded(squares(1), suffix)
    response = running.detect(content) if way == "body" else running.client.post("/detect", files={"file": content})
    answer = response.json()
    found = OnnxDetector(model, threads=1)(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR))
    assert len(found) > 2
    assert_same(answer, found)
    assert (answer["width"], answer["height"], answer["model"]) == (80, 48, "colours.onnx")
    assert set(answer["milliseconds"]) == {"decode", "wait", "inference"}
    assert answer["batch"] == 1


@pytest.mark.parametrize("query", [{"conf": 0.6}, {"iou": 0.0}, {"max_det": 2}, {"conf": 0.01, "iou": 1, "max_det": 9}])
def test_thresholds_of_a_request(running, model, query):
    image = squares(2)
    assert_same(running.detect(encoded(image), **query).json(), OnnxDetector(model, threads=1, **query)(image))


def test_boxes_vote_for_every_request_where_asked(model):
    image = squares(2)
    plain = OnnxDetector(model, threads=1)(image)
    with serving(model, box_vote=0.05) as running:
        for query in ({}, {"conf": 0.6}, {"iou": 0.3, "max_det": 4}):
            found = OnnxDetector(model, threads=1, box_vote=0.05, **query)(image)
            assert_same(running.detect(encoded(image), **query).json(), found)
    found = OnnxDetector(model, threads=1, box_vote=0.05)(image)
    np.testing.assert_array_equal(found.scores, plain.scores)
    assert np.abs(found.boxes_xyxy - plain.boxes_xyxy).max() > 0.1


def test_a_model_without_suppression_takes_no_votes(tmp_path):
    file = fixed_output(tmp_path / "m.onnx", np.zeros((1, 300, 6), np.float32), NAMES)
    with pytest.raises(UserError, match="returns boxes that need no suppression, so none is left to vote"):
        ServedDetector(ServeSettings(file, box_vote=0.8))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(running, model, orientation):
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(squares(3)[..., ::-1]).save(stream, "JPEG", exif=exif, quality=95)
    answer = running.detect(stream.getvalue()).json()
    shown = cv2.imdecode(np.frombuffer(stream.getvalue(), np.uint8), cv2.IMREAD_COLOR)
    assert (answer["height"], answer["width"]) == shown.shape[:2] == ((80, 48) if orientation > 4 else (48, 80))
    assert_same(answer, OnnxDetector(model, threads=1)(shown))


@pytest.mark.parametrize(("suffix", "sent"), [(".jpg", "image/jpeg"), (".png", "image/png"), (".bmp", "image/png")])
def test_the_picture_with_boxes(running, model, suffix, sent):
    content = encoded(squares(4), suffix)
    response = running.detect(content, format="image", conf=0.5)
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    drawn = OnnxDetector(model, threads=1, conf=0.5)(image).draw(image)
    assert response.headers["content-type"] == sent
    assert (drawn != image).any()
    quality = [cv2.IMWRITE_JPEG_QUALITY, 90] if suffix == ".jpg" else []
    assert response.content == cv2.imencode(".jpg" if quality else ".png", drawn, quality)[1].tobytes()


def test_many_at_once_each_get_their_own_and_share_batches(model):
    """40 pictures of several sizes and thresholds over 12 connections."""
    rng = random.Random(0)
    jobs = [
        (squares(i, (rng.choice([40, 64, 120]), rng.choice([48, 96]))), rng.choice([0.1, 0.5, 0.9])) for i in range(40)
    ]
    with serving(model, Gated, timeout=60) as running:
        with ThreadPoolExecutor(12) as pool:
            begun = pool.map(lambda job: running.detect(encoded(job[0]), conf=job[1]).json(), jobs)
            wait_until(lambda: running.service.batcher.waiting > 2)
            running.service.detector.gate.set()
            answers = list(begun)
        metrics = running.metrics()
    for answer, (image, conf) in zip(answers, jobs, strict=True):
        assert_same(answer, OnnxDetector(model, threads=1, conf=conf)(image))
    assert metrics["yolo_lat_batch_size_sum"] == 40
    assert metrics["yolo_lat_batch_size_count"] < 40
    assert max(answer["batch"] for answer in answers) > 2


def test_a_picture_waits_for_those_on_their_way_and_only_for_them(model, monkeypatch):
    monkeypatch.setitem(settings._NUMBERS, "wait_ms", (0, 60_000))  # so that nothing has to happen within a second
    content = encoded(squares(0))
    with serving(model, wait_ms=60_000, timeout=60) as running, ThreadPoolExecutor(1) as pool:
        assert running.detect(content).json()["milliseconds"]["wait"] < 30_000
        head = f"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", running.port), timeout=60) as slow:
            slow.sendall(head + content[:-1])
            wait_until(lambda: running.service.coming == 1)
            first = pool.submit(running.detect, content)
            wait_until(lambda: running.service.batcher.waiting == 1)
            slow.sendall(content[-1:])
            assert first.result(60).json()["batch"] == 2
            answer = HTTPResponse(slow)
            answer.begin()
            assert json.load(answer)["batch"] == 2
        assert running.service.coming == 0


def test_what_comes_while_a_batch_runs_runs_together(model):
    with serving(model, Gated, max_batch=4, timeout=60) as running, ThreadPoolExecutor(9) as pool:
        first = pool.submit(running.detect, encoded(squares(0)))
        wait_until(running.service.detector.entered.is_set)
        others = [pool.submit(running.detect, encoded(squares(i))) for i in range(8)]
        wait_until(lambda: running.service.batcher.waiting == 8)
        running.service.detector.gate.set()
        assert [f.result(60).status_code for f in (first, *others)] == [200] * 9
    assert running.service.detector.batches == [1, 4, 4]


def test_a_model_of_fixed_batch_is_filled_up(tmp_path):
    path = colour_detector(tmp_path / "three.onnx", batch=3)
    images = [squares(i) for i in range(7)]
    with serving(path, max_batch=None, wait_ms=30) as running, ThreadPoolExecutor(7) as pool:
        answers = list(pool.map(lambda image: running.detect(encoded(image)).json(), images))
        assert running.client.get("/health").json()["max_batch"] == 3
    for image, answer in zip(images, answers, strict=True):
        assert_same(answer, OnnxDetector(path, threads=1)(image))
    with pytest.raises(
        UserError, match=r"max_batch=8 does not fit .* fixed at 3; leave max_batch out or export with dyn"
    ):
        ServedDetector(ServeSettings(path, max_batch=8))


@pytest.mark.parametrize(
    ("shares", "best"), [((1, 1, 1), 1), ((4, 3, 2.9), 2), ((8, 4, 2, 1, 0.5), 16), ((4, 2, 3), 2)]
)
def test_the_batch_is_measured_where_none_is_set(model, monkeypatch, shares, best):
    """By a clock that says how long a picture takes in batches of 1, 2, 4, ..."""
    now = 0.0

    class Timed(ServedDetector):
        def detect(self, frames):
            nonlocal now
            now += len(frames) * shares[len(frames).bit_length() - 1]
            return []

    monkeypatch.setattr("yolo_lat.serve.detector.time.perf_counter", lambda: now)
    assert Timed(ServeSettings(model, threads=1)).max_batch == best
    assert Timed(ServeSettings(model, threads=1, max_batch=7)).max_batch == 7


@pytest.mark.parametrize("kind", ["uint8", "best-class", "float16"])
def test_other_inputs_and_outputs(tmp_path, kind):
    options = {"uint8": {"takes_bytes": True}, "best-class": {"best_class": True}, "float16": {"dtype": np.float16}}
    path = colour_detector(tmp_path / "m.onnx", **options[kind])
    image = squares(5)
    with serving(path) as running:
        assert_same(running.detect(encoded(image), conf=0.4).json(), OnnxDetector(path, threads=1, conf=0.4)(image))


def test_a_model_without_suppression_takes_no_iou(tmp_path):
    output = np.zeros((1, 5, 6), np.float32)
    output[0, 0] = 8, 8, 24, 32, 0.9, 1
    path = fixed_output(tmp_path / "free.onnx", output, NAMES)
    with serving(path, max_batch=None) as running:
        answer = running.detect(encoded(np.zeros((64, 64, 3), np.uint8)), conf=0.5, max_det=3).json()
        assert answer["detections"][0]["bbox"] == [8, 8, 16, 24]
        refused = running.detect(b"?", iou=0.5)
    assert (refused.status_code, refused.json()["error"][:29]) == (422, "iou has no effect on this mod")


def test_a_model_without_names_numbers_its_classes(tmp_path):
    path = fixed_output(tmp_path / "m.onnx", raw_output(), {"stride": "32"})
    with serving(path, max_batch=None) as running:
        rows = running.detect(encoded(np.zeros((64, 64, 3), np.uint8))).json()["detections"]
    assert [(row["category_id"], row["category_name"]) for row in rows] == [(1, "1")]


@pytest.mark.slow
def test_a_trained_network_answers_in_batches_as_alone(dynamic_onnx_file: Path, shapes: Path):
    files = sorted((shapes.parent / "images").rglob("*.*"))
    detector = OnnxDetector(dynamic_onnx_file, threads=1, conf=0.01)
    with serving(dynamic_onnx_file, Gated, timeout=60) as running, ThreadPoolExecutor(16) as pool:
        begun = pool.map(lambda file: running.detect(file.read_bytes(), conf=0.01).json(), files)
        wait_until(lambda: running.service.batcher.waiting > 4)
        running.service.detector.gate.set()
        answers = list(begun)
    assert max(answer["batch"] for answer in answers) > 4
    assert sum(len(answer["detections"]) for answer in answers) > 100
    for file, answer in zip(files, answers, strict=True):
        assert_same(answer, detector(cv2.imread(str(file))))
