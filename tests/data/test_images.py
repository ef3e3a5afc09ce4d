"""Image files: sizes, and broken files, which must be named and never skipped."""

import cv2
import numpy as np
import pytest
from PIL import Image

from yolo_lat.data.images import image_size, list_images
from yolo_lat.errors import UserError

NOISE = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)


@pytest.fixture(params=[".jpg", ".png", ".webp", ".bmp", ".tif"])
def picture(request, tmp_path):
    """A whole image of 60x40 px."""
    file = tmp_path / f"a{request.param}"
    assert cv2.imwrite(str(file), NOISE)
    return file


def test_size_of_a_whole_image(picture):
    assert image_size(picture) == (60, 40)


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_truncated_image_is_named(picture, share):
    content = picture.read_bytes()
    picture.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=f"{picture}: broken image") as caught:
        image_size(picture)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"this is no image", b"\xff\xd8\xff\xd9", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_named(tmp_path, content):
    file = tmp_path / "a.jpg"
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"{file}: broken image"):
        image_size(file)


def test_missing_image_and_folder_are_named(tmp_path):
    with pytest.raises(UserError, match=r"a\.jpg: no such image; correct the path"):
        image_size(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").mkdir()
    with pytest.raises(UserError, match=r"b\.jpg: broken image"):
        image_size(tmp_path / "b.jpg")


@pytest.mark.parametrize("tail", [b"\0" * 9, b"camera data", b"\0\0 more \0\0"])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_bytes_after_the_end_do_no_harm(tmp_path, suffix, tail):
    file = tmp_path / f"a{suffix}"
    cv2.imwrite(str(file), NOISE)
    file.write_bytes(file.read_bytes() + tail)
    assert image_size(file) == (60, 40)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_as_opencv_does(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(NOISE).save(tmp_path / "a.jpg", exif=exif)
    height, width = cv2.imread(str(tmp_path / "a.jpg")).shape[:2]
    assert image_size(tmp_path / "a.jpg") == (width, height)
    assert (width, height) == ((60, 40) if orientation < 5 else (40, 60))


def test_an_image_too_large_to_be_true_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    cv2.imwrite(str(tmp_path / "a.png"), NOISE)
    with pytest.raises(UserError, match="broken image"):
        image_size(tmp_path / "a.png")


def test_sources_are_folders_files_and_lists(tmp_path):
    for name in ("x/b.JPG", "x/y/a.png", "z.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "x/notes.md").touch()
    (tmp_path / "list.txt").write_text("\ufeffx/b.JPG\n\n  z.webp \n", encoding="utf-8")
    assert list_images([tmp_path / "x"]) == [tmp_path / "x/b.JPG", tmp_path / "x/y/a.png"]
    assert list_images([tmp_path / "z.webp"]) == [tmp_path / "z.webp"]
    assert list_images([tmp_path / "list.txt"]) == [tmp_path / "x/b.JPG", tmp_path / "z.webp"]
    assert list_images([tmp_path / "list.txt", tmp_path / "x"]) == [
        tmp_path / "x/b.JPG",
        tmp_path / "x/y/a.png",
        tmp_path / "z.webp",
    ]


def test_sources_without_images_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: holds no image; supported are \.bmp"):
        list_images([tmp_path / "empty"])
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x81")
    with pytest.raises(UserError, match=r"list\.txt: neither an image nor a text file"):
        list_images([tmp_path / "list.txt"])


def test_a_list_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"list\.txt: neither an image nor a text file that lists images"):
        list_images([tmp_path / "list.txt"])


def test_lists_outside_of_image_sets_are_taken_as_they_are(tmp_path):
    for folder in ("JPEGImages", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "JPEGImages/5.png").touch()
    for name in ("list.txt", "ImageSets/list.txt", "ImageSets/Main/list.txt"):
        (tmp_path / name).write_text("5\n")
    assert list_images([tmp_path / "list.txt"]) == [tmp_path / "5"]
    assert list_images([tmp_path / "ImageSets/list.txt"]) == [tmp_path / "ImageSets/5"]
    assert list_images([tmp_path / "ImageSets/Main/list.txt"]) == [tmp_path / "JPEGImages/5.png"]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tif"])
def test_damaged_bytes_are_read_or_refused(tmp_path, suffix):
    rng = np.random.default_rng(0)
    content = np.frombuffer(cv2.imencode(suffix, NOISE[:8, :8])[1].tobytes(), np.uint8)
    file = tmp_path / f"a{suffix}"
    for _ in range(200):
        damaged = content.copy()
        places = rng.integers(0, len(damaged), 3)
        damaged[places] = rng.integers(0, 256, 3)
        file.write_bytes(damaged.tobytes())
        try:
            width, height = image_size(file)
        except UserError as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017 - either outcome is right
        else:
            assert width > 0
            assert height > 0
