"""Pictures that a data set has twice are found, in one split and across splits, and different ones are not."""

import cv2
import numpy as np
import pytest
from checked_data import FORMATS, Data, kinds, messages, picture

from yolo_lat.data.copies import exact_copies, look_alikes


@pytest.fixture(params=FORMATS)
def data(request, tmp_path) -> Data:
    return Data(tmp_path, request.param)


@pytest.fixture
def yolo(tmp_path) -> Data:
    return Data(tmp_path, "yolo")


BOX = (0, 10, 10, 20, 20)


def test_a_picture_in_two_splits_is_an_error_whatever_its_metadata(data):
    pixels = picture(900)
    train = data.add("train", "same.jpg", pixels)
    val = data.add("val", "other.png", cv2.imread(str(train)))  # the same pixels in another format
    data.write()
    report = data.check()
    assert kinds(report) == {"leak": 1}
    assert not report.ok
    assert all(str(path) in messages(report, "leak")[0] for path in (train, val))
    assert "other labels" not in messages(report, "leak")[0]


def test_a_picture_twice_in_a_split_is_a_warning_that_compares_labels(data):
    one = data.add("train", "x1.png", picture(900))
    data.add("train", "x2.png", picture(900))
    data.add("train", "x3.png", picture(900), [BOX])
    data.write()
    report = data.check()
    assert kinds(report) == {"copy": 2}
    assert report.ok
    assert [("with other labels" in m, str(one) in m) for m in messages(report, "copy")] == [
        (False, True),
        (True, True),
    ]


@pytest.mark.parametrize("way", ["quality", "half", "larger"])
def test_a_picture_saved_again_is_probably_the_same(yolo, way):
    pixels = cv2.resize(picture(900), (256, 192), interpolation=cv2.INTER_CUBIC)
    yolo.add("train", "x.png", pixels)
    if way == "quality":
        changed = cv2.imdecode(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], cv2.IMREAD_COLOR)
    else:
        changed = cv2.resize(pixels, None, fx=0.5 if way == "half" else 1.7, fy=0.5 if way == "half" else 1.7)
    val = yolo.add("val", "y.png", changed)
    yolo.write()
    assert kinds(yolo.check(near=False)) == {}
    report = yolo.check()
    assert kinds(report) == {"alike": 1}
    assert messages(report, "alike")[0].startswith(f"{val}: looks like {yolo.path('x.png')} in train, itself in val")


def test_look_alikes_are_found_by_brute_force_too():
    rng = np.random.default_rng(0)
    thumbs = rng.integers(0, 256, (300, 16, 17)).astype(np.uint8)
    for copy in range(40):  # noise, at most 4 grey levels
        noisy = thumbs[copy].astype(int) + rng.integers(-4, 5, (16, 17))
        thumbs[100 + copy] = noisy.clip(0, 255)
    thumbs[200:] = thumbs[200:] // 64 + 90  # flat ones say nothing
    thumbs[250:] = thumbs[200:250]
    flat = thumbs[:200].reshape(200, -1).astype(int)
    near = np.abs(flat[:, None] - flat[None]).max(2) <= 16
    expected = np.argwhere(np.triu(near, 1))
    np.testing.assert_array_equal(look_alikes(thumbs), expected)
    assert len(expected) == 40


def test_few_pictures_have_no_look_alikes():
    for count in (0, 1, 2):
        assert look_alikes(np.random.default_rng(0).integers(0, 256, (count, 16, 17)).astype(np.uint8)).shape == (0, 2)
    assert exact_copies([b"a", b"b", b"a", b"c", b"b", b"a"]) == [[0, 2, 5], [1, 4]]
