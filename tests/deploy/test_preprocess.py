"""The letterbox, the input array and the inverse mapping against Ultralytics' own, bit for bit."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ultralytics.data.augment import LetterBox
from ultralytics.utils.ops import scale_boxes

from yolo_lat.deploy.preprocess import check_image, letterbox, to_input, unletterbox, write_input
from yolo_lat.errors import UserError

side = st.one_of(st.integers(1, 3), st.integers(1, 500))
input_side = st.integers(1, 12).map(lambda n: 32 * n)
stride = st.sampled_from([None, 8, 32])


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), np.uint8)


@settings(max_examples=200, deadline=None)
@given(height=side, width=side, size=st.tuples(input_side, input_side), stride=stride)
def test_letterbox_is_bit_equal_with_ultralytics(height, width, size, stride):
    image = noise(height, width)
    expected = LetterBox(size, auto=stride is not None, stride=stride or 32)(image=image.copy())
    np.testing.assert_array_equal(letterbox(image, size, stride).image, expected, strict=True)


@pytest.mark.parametrize(
    "view",
    [lambda x: x[:, ::-1], lambda x: x[..., ::-1], lambda x: x[::2, ::3], lambda x: x.transpose(1, 0, 2)],
    ids=["mirrored", "channels", "strided", "transposed"],
)
def test_letterbox_takes_any_memory_layout(view):
    image = view(noise(61, 90))
    expected = letterbox(np.ascontiguousarray(image), (64, 64)).image
    np.testing.assert_array_equal(letterbox(image, (64, 64)).image, expected)


def test_letterbox_reports_where_the_content_lies():
    result = letterbox(np.full((100, 200, 3), 255, np.uint8), (320, 320))
    assert (result.ratio, result.pad) == ((1.6, 1.6), (0, 80))
    assert (result.image[80:240] == 255).all()
    assert (result.image[:80] == 114).all()
    assert (result.image[240:] == 114).all()
    assert letterbox(np.zeros((100, 200, 3), np.uint8), (320, 320), stride=32).image.shape == (160, 320, 3)


def test_to_input_is_bit_equal_with_ultralytics():
    images = [noise(64, 96), noise(64, 96)[::-1]]
    # The steps of ultralytics.engine.predictor.BasePredictor.preprocess
    expected = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous().flip(1).float().div_(255)
    inputs = to_input(images)
    np.testing.assert_array_equal(inputs, expected.numpy(), strict=True)
    assert inputs.flags.c_contiguous
    assert inputs[0, 0, 5, 7] == np.float32(images[0][5, 7, 2]) / np.float32(255)


@settings(max_examples=200, deadline=None)
@given(height=side, width=side, size=st.tuples(input_side, input_side), seed=st.integers(0, 9))
def test_unletterbox_equals_scale_boxes(height, width, size, seed):
    boxes = np.random.default_rng(seed).uniform(-50, max(size) + 50, (20, 4)).astype(np.float32)
    _, ratio, pad = letterbox(noise(height, width), size)
    expected = scale_boxes(size, torch.from_numpy(boxes.copy()), (height, width)).numpy()
    np.testing.assert_array_equal(unletterbox(boxes, ratio, pad, (height, width)), expected, strict=True)


@settings(max_examples=200, deadline=None)
@given(height=side, width=side, size=st.tuples(input_side, input_side), stride=stride, seed=st.integers(0, 9))
def test_boxes_survive_the_round_trip(height, width, size, stride, seed):
    boxes = np.random.default_rng(seed).uniform(0, (width, height) * 2, (20, 4))
    _, ratio, pad = letterbox(noise(height, width), size, stride)
    back = unletterbox(boxes * (ratio * 2) + pad * 2, ratio, pad, (height, width))
    np.testing.assert_allclose(back, boxes, rtol=1e-4, atol=1e-2)


def test_the_minimum_rectangle_is_mapped_back_exactly_where_ultralytics_is_not():
    """Guessing the ratio from the padded shape, as `scale_boxes` does, fails when the short side fits its stride."""
    image = noise(3528, 179)
    padded, ratio, pad = letterbox(image, (640, 640), stride=32)
    patch = np.array([[40, 2700, 120, 2800]], np.float32)
    in_input = patch * np.float32(ratio * 2) + np.float32(pad * 2)
    np.testing.assert_allclose(unletterbox(in_input, ratio, pad, (3528, 179)), patch, atol=1e-2)
    assert abs(scale_boxes(padded.shape[:2], in_input.copy(), (3528, 179)) - patch).max() > 10


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, r"photo is None; cv2\.imread"),
        (cv2.imread, "photo is builtin_function_or_method; pass a uint8"),
        (np.zeros((4, 4, 3), np.float32), "photo is float32; pass a uint8"),
        (np.zeros((4, 4), np.uint8), r"photo has shape \(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), r"photo has shape \(4, 4, 4\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"photo has shape \(1, 4, 4, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), r"photo has shape \(0, 4, 3\)"),
    ],
    ids=["none", "function", "float", "grey", "rgba", "batch", "empty"],
)
def test_check_image_names_what_is_wrong(image, message):
    with pytest.raises(UserError, match=message):
        check_image(image, "photo")


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_write_input_rounds_half_precision_from_single(dtype):
    every_value = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = np.stack([every_value, every_value[::-1], every_value.T], axis=2)
    batch = np.zeros((2, 3, 16, 16), dtype)
    write_input([image, image[:, ::-1]], batch)
    np.testing.assert_array_equal(batch, to_input([image, image[:, ::-1]]).astype(dtype), strict=True)
    planes = image[..., ::-1].transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(batch[0], planes.astype(dtype), strict=True)


def test_write_input_copies_bytes():
    images, batch = [noise(32, 64), noise(32, 64)[::-1]], np.zeros((2, 32, 64, 3), np.uint8)
    write_input(images, batch)
    np.testing.assert_array_equal(batch, np.stack(images))
