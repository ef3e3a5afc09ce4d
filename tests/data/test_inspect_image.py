"""Images are decoded to their end: broken, damaged and unusual ones are named."""

import os
from collections import Counter

import cv2
import numpy as np
import pytest
from checked_data import BREAKS, FORMATS, WIDTH, Data, break_image, kinds, messages, picture
from PIL import Image

from yolo_lat.data.doctor import check_dataset
from yolo_lat.data.inspect_image import Inspectors, inspect
from yolo_lat.errors import UserError


@pytest.fixture(params=FORMATS)
def data(request, tmp_path) -> Data:
    return Data(tmp_path, request.param)


@pytest.fixture
def yolo(tmp_path) -> Data:
    return Data(tmp_path, "yolo")


def test_an_image_that_ends_its_decoder_is_named_and_the_rest_is_read(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "from PIL import Image\n"
        "real = Image.open\n"
        "Image.open = lambda file, *a, **b: os._exit(9) if 'deadly' in str(file) else real(file, *a, **b)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("deadly.png", "sound.png"):
        cv2.imwrite(str(tmp_path / name), picture(1))
    with Inspectors(1) as inspectors:
        for _ in range(2):
            with pytest.raises(UserError, match=r"deadly\.png: broken image \(decoding it ended the process\)"):
                inspectors.inspect(tmp_path / "deadly.png")
            assert inspectors.inspect(tmp_path / "sound.png").width == WIDTH


@pytest.mark.parametrize(
    ("save", "kind", "turned"),
    [
        (lambda image, path: image.save(path), "colour", False),
        (lambda image, path: image.convert("L").save(path), "grey", False),
        (lambda image, path: image.convert("1").save(path), "grey", False),
        (lambda image, path: image.convert("RGBA").save(path), "transparent", False),
        (lambda image, path: image.convert("P").save(path), "palette", False),
        (
            lambda image, path: Image.fromarray(np.arange(3072, dtype=np.uint16).reshape(48, 64)).save(path),
            "16-bit",
            False,
        ),
        (lambda image, path: image.convert("CMYK").save(path.with_suffix(".jpg")), "CMYK", False),
        (lambda image, path: image.save(path.with_suffix(".jpg"), exif=_exif(3)), "colour", True),
    ],
    ids=["colour", "grey", "1 bit", "alpha", "palette", "16 bit", "cmyk", "turned"],
)
def test_kinds_of_images_are_counted(yolo, save, kind, turned):
    path = yolo.root / "images/train/extra.png"
    save(Image.fromarray(picture(77)), path)
    report = yolo.check()
    assert report.splits["train"].kinds == dict(Counter({"colour": 4}) + Counter({kind: 1}))
    assert report.splits["train"].turned == turned
    assert report.ok


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_a_suffix_of_another_format_is_a_warning(data):
    path = data.path("t1.jpg")
    path.write_bytes(cv2.imencode(".png", picture(8))[1].tobytes())
    report = data.check()
    assert kinds(report) == {"suffix": 1}
    assert f"{path}: is a PNG file" in messages(report, "suffix")[0]


@pytest.mark.parametrize("how", BREAKS)
def test_a_broken_image_is_an_error_that_names_it(data, how):
    path = data.path("t1.jpg")
    break_image(path, how)
    report = data.check()
    assert not report.ok
    assert kinds(report) == {"image": 1}
    assert messages(report, "image")[0].startswith(f"{path}: ")
    assert "ended the process" not in messages(report, "image")[0]
    assert report.splits["train"].images == 3


def test_corrupt_bytes_in_the_middle_of_a_jpeg_are_named(data):
    for name, quality in (("t0.jpg", 95), ("t3.jpg", 80)):
        path = data.path(name)
        cv2.imwrite(str(path), picture(5 + quality), [cv2.IMWRITE_JPEG_QUALITY, quality])
        content = bytearray(path.read_bytes())
        middle = content.rindex(b"\xff\xda") + 200
        content[middle : middle + 200] = b"\xff\x00\x01\x7f" * 50
        path.write_bytes(content)
    report = data.check()
    assert [m.partition(":")[0] for m in messages(report, "damaged")] == [
        str(data.path(n)) for n in ("t0.jpg", "t3.jpg")
    ]
    assert "Corrupt JPEG data" in messages(report, "damaged")[0]
    assert report.ok, "training reads it, so it is a warning"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_named(data):
    path = data.path("t1.jpg")
    path.chmod(0)
    report = check_dataset(data.yaml, progress=False, workers=1)
    path.chmod(0o644)
    assert str(path) in messages(report, "image")[0]


def test_what_a_decoder_says_of_one_image_is_not_held_against_the_next(tmp_path):
    said = ["Corrupt JPEG data: of an image before", ""]
    cv2.imwrite(str(tmp_path / "sound.png"), picture(2))
    assert inspect(tmp_path / "sound.png", lambda: said.pop(0)).complaint == ""
