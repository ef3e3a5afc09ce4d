"""What is kept of a data set in the device's memory."""

import cv2
import numpy as np
import pytest
import torch
from device_samples import cached, host_dataset, write_image, write_split
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from yolo_lat.data.device.cache import resized_shape
from yolo_lat.data.labels import DetectionSplit, image_labels
from yolo_lat.errors import UserError


def pixels_of(cache, number: int) -> np.ndarray:
    height, width = cache.shapes[number].tolist()
    start = int(cache.offsets[number])
    return cache.pixels[start : start + height * width * 3].view(height, width, 3).numpy()


def test_images_and_boxes_are_those_that_ultralytics_loads(split, cache):
    dataset = host_dataset(split, cache.imgsz)
    assert len(cache) == len(dataset)
    assert cache.pixels.numel() == cache.shapes.prod(axis=1).sum() * 3
    for number in range(len(cache)):
        label = dataset.get_image_and_label(number)
        np.testing.assert_array_equal(pixels_of(cache, number), label["img"])
        instances = label["instances"]
        instances.convert_bbox("xyxy")
        instances.denormalize(*label["img"].shape[1::-1])
        rows = slice(int(cache.starts[number]), int(cache.starts[number] + cache.counts[number]))
        np.testing.assert_allclose(cache.boxes[rows], instances.bboxes, atol=1e-4)
        assert cache.classes[rows].tolist() == label["cls"][:, 0].tolist()
        assert tuple(cache.original_shapes[number]) == label["ori_shape"]


@given(height=st.integers(1, 4000), width=st.integers(1, 4000), imgsz=st.integers(32, 1280))
def test_the_long_side_is_the_size_asked_for(height, width, imgsz):
    resized = resized_shape(height, width, imgsz)
    assert max(resized) == imgsz
    assert min(resized) >= 1
    assert abs(resized[0] * width - resized[1] * height) <= max(height, width)  # the aspect up to a pixel


def test_exif_rotation_is_applied(tmp_path):
    image = Image.fromarray(np.arange(20 * 40 * 3, dtype=np.uint8).reshape(20, 40, 3))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    turned = image_labels(tmp_path / "turned.png", 0, (20, 40), [], [])
    cache = cached(DetectionSplit("turned", ("a",), (1,), [turned]), 40)
    assert cache.shapes.tolist() == [[40, 20]]
    expected = cv2.rotate(np.asarray(image)[..., ::-1], cv2.ROTATE_90_CLOCKWISE)
    np.testing.assert_array_equal(pixels_of(cache, 0), expected)


def test_all_broken_images_are_named_at_once(tmp_path):
    images = list(write_split(tmp_path, 30).images)
    for number in range(1, 26):
        images[number].path.write_bytes(images[number].path.read_bytes()[:200])
    images[26].path.unlink()
    cv2.imwrite(str(images[27].path), np.zeros((7, 9, 3), np.uint8))
    with pytest.raises(UserError, match=r"synthetic: 27 of 30 images cannot be used") as raised:
        cached(DetectionSplit("synthetic", ("a",), (1,), images), 64)
    lines = str(raised.value).splitlines()
    assert len(lines) == 22
    assert all(str(images[n].path) in line and "replace or remove it" in line for n, line in enumerate(lines[1:21], 1))
    assert lines[-1] == "... and 7 more"
    with pytest.raises(UserError, match=r"27 of 30|9x7") as raised:
        cached(DetectionSplit("synthetic", ("a",), (1,), images[26:28]), 64)
    assert "no such image" in str(raised.value)
    assert "decodes to 9x7" in str(raised.value)


def test_too_little_memory_is_told_before_anything_is_decoded(split):
    missing = [image_labels(image.path.with_suffix(".gone"), 0, (500, 1000), [], []) for image in split.images]
    gone = DetectionSplit("large", ("a",), (1,), missing)
    need = 12 * 640 * 320 * 3
    with pytest.raises(UserError, match=r"large: 12 images of 640 pixels take 0\.00737 GB, and 0\.001 GB") as raised:
        cached(gone, 640, budget=1_000_000)
    assert "smaller imgsz" in str(raised.value)
    assert "spill=True" in str(raised.value)
    with pytest.raises(UserError, match="no such image"):
        cached(gone, 640, budget=need)
    with pytest.raises(UserError, match=r"take 0\.00737 GB"):
        cached(gone, 640, budget=need - 1)


def test_spilled_pixels_are_the_same_and_said_to_be(split, cache, caplog):
    with caplog.at_level("INFO", logger="ultralytics"):
        spilled = cached(split, cache.imgsz, budget=10, spill=True)
    assert "0.000179 GB of pixels are kept in host memory" in caplog.text
    assert spilled.spilled
    assert not cache.spilled
    assert torch.equal(spilled.pixels, cache.pixels)


def test_host_memory_that_does_not_suffice_is_told_too(split, monkeypatch):
    monkeypatch.setattr("yolo_lat.data.device.cache._free", lambda device: 1000)
    with pytest.raises(UserError, match=r"0\.000179 GB when spilled to host memory, of which 1e-06 GB may be used"):
        cached(split, 96, spill=True)


def test_a_split_without_images_or_boxes(tmp_path):
    with pytest.raises(UserError, match="no image"):
        cached(DetectionSplit("empty", ("a",), (1,), []), 64)
    image = write_image(tmp_path / "0.png", 0, np.zeros((8, 8, 3), np.uint8))
    cache = cached(DetectionSplit("plain", ("a",), (1,), [image]), 64)
    assert cache.boxes.shape == (0, 4)
    assert cache.most_boxes == 0


def test_crowds_and_boxes_without_area_are_left_out(tmp_path):
    image = write_image(tmp_path / "0.png", 0, np.zeros((64, 64, 3), np.uint8))
    boxes, crowd = [[0, 0, 10, 10], [5, 5, 0, 9], [-4, 2, 8, 8], [70, 0, 9, 9]], [True, False, False, False]
    labelled = image_labels(image.path, 0, (64, 64), [0, 1, 2, 1], boxes, crowd)
    cache = cached(DetectionSplit("t", ("a", "b", "c"), (1, 2, 3), [labelled]), 64)
    assert cache.boxes.tolist() == [[0, 2, 4, 10]]
    assert cache.classes.tolist() == [2]
