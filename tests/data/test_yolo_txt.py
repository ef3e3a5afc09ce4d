"""YOLO label files: rows and polygons, and every malformed one named with its line."""

import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from yolo_lat.data.labels import DetectionSplit
from yolo_lat.data.reader import read_split
from yolo_lat.data.registry import load_dataset
from yolo_lat.data.yolo_txt import label_file, read_yolo_labels
from yolo_lat.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """Two images of 60x40 px."""
    (tmp_path / "images").mkdir()
    for name in "ab":
        cv2.imwrite(str(tmp_path / f"images/{name}.jpg"), np.full((40, 60, 3), 99, np.uint8))
    return tmp_path


def read_rows(folder: Path, *rows: str, split: str = "val") -> DetectionSplit:
    (folder / "labels").mkdir(exist_ok=True)
    (folder / "labels/a.txt").write_text("\n".join(rows))
    (folder / "data.yaml").write_text("train: images\nval: images\nnames: [cat, dog]\n")
    return read_split(load_dataset(folder / "data.yaml"), split, progress=False)


def refusal(read, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        read(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_yolo_rows_and_polygons(folder):
    rows = ["1 0.35 0.35 0.5 0.5", "", "0 0.1 0.1 0.6 0.1 0.6 0.6 0.1 0.6", "0 0.1 0.1 0.6 0.1 0.6 0.6"]
    image, background = read_rows(folder, *rows).images
    np.testing.assert_allclose(image.boxes_xywh, [[6, 4, 30, 20]] * 3, atol=1e-9)
    np.testing.assert_allclose(image.areas, [600] * 3)
    assert image.class_ids.tolist() == [1, 0, 0]
    assert background.boxes_xywh.shape == (0, 4)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("0 0.5 0.5 0.1", "has 4 numbers"),
        ("0 0.5 0.5 0.1 0.1 0.9", "has 6 numbers"),
        ("0 0.5 0.5 0.1 0.1 0.2 0.2 0.3", "has 8 numbers"),
        ("0 0.5 x 0.1 0.1", "'0 0.5 x 0.1 0.1' is not a row of numbers"),
        ("cat 0.5 0.5 0.1 0.1", "is not a row of numbers; mend it"),
        ("0, 0.5, 0.5, 0.1, 0.1", "is not a row of numbers; separate the numbers by spaces"),
        ("0\0 0.5\0", "'0\\x00 0.5\\x00' is not a row of numbers"),
        ("x" * 10**6, "xxx...xxx"),
        ("2 0.5 0.5 0.1 0.1", "class 2 is not a number from 0 to 1 of names"),
        ("-1 0.5 0.5 0.1 0.1", "class -1 is not"),
        ("0.5 0.5 0.5 0.1 0.1", "class 0.5 is not"),
        ("nan 0.5 0.5 0.1 0.1", "class nan is not"),
        ("inf 0.5 0.5 0.1 0.1", "class inf is not"),
        ("0 30 20 10 10", "coordinates must lie between 0 and 1"),
        ("0 0.5 0.5 1.2 0.1", "coordinates must lie between 0 and 1"),
        ("1e400 0.5 0.5 0.1 0.1", "class 1e400 is not"),
        ("0 1e400 0.5 0.1 0.1", "coordinates must lie between 0 and 1"),
        ("0 nan 0.5 0.1 0.1", "coordinates must lie between 0 and 1"),
        ("0 0.5 0.5 -0.005 0.1", "width -0.005 and height 0.1 must not be negative"),
    ],
)
def test_a_malformed_row_is_named_with_file_and_line(folder, row, problem):
    message = refusal(read_rows, folder, "0 0.5 0.5 0.1 0.1", "", row)
    assert message.startswith(f"{folder}/labels/a.txt, line 3: ")
    assert problem in message


def test_labels_that_are_no_text_are_named(folder):
    read_rows(folder, "0 0.5 0.5 0.1 0.1")
    (folder / "labels/a.txt").write_bytes(b"\xff\xfe\x81")
    message = refusal(read_split, load_dataset(folder / "data.yaml"), "val", progress=False)
    assert f"{folder}/labels/a.txt: not UTF-8 text" in message


def test_a_training_split_without_any_label_says_where_labels_are_looked_for(folder):
    empty = f"files such as {folder}/labels/a.txt are empty, write labels into them"
    assert refusal(read_rows, folder, split="train").endswith(empty)
    (folder / "labels/a.txt").unlink()
    missing = f"labels are looked for as {folder}/labels/a.txt, put them there"
    spec = load_dataset(folder / "data.yaml")
    assert refusal(read_split, spec, "train", progress=False).endswith(missing)
    assert len(read_split(spec, "val", progress=False).images) == 2


def test_labels_lie_beside_the_last_folder_named_images():
    assert label_file(Path("/images/x/images/train/a.b.jpg")) == Path("/images/x/labels/train/a.b.txt")
    assert label_file(Path("/data/pictures/a.png")) == Path("/data/pictures/a.txt")


def test_a_rotated_photo_is_measured_as_it_is_shown(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(folder / "images/a.jpg", exif=exif)
    image = read_rows(folder, "0 0.5 0.5 0.5 0.25").images[0]
    assert (image.width, image.height) == (40, 60)
    assert image.boxes_xywh.tolist() == [[10, 22.5, 20, 15]]


def test_windows_line_ends_byte_order_mark_and_whole_numbers_as_floats(folder):
    read_rows(folder, "0 0.5 0.5 0.1 0.1")
    (folder / "labels/a.txt").write_bytes(b"\xef\xbb\xbf1.0 0.5 0.5 0.5 0.5\r\n\r\n0 0.5 0.5 0.5 0.5\r\n")
    image = read_split(load_dataset(folder / "data.yaml"), "val", progress=False).images[0]
    assert image.class_ids.tolist() == [1, 0]


def test_utf_16_labels_are_named(folder):
    read_rows(folder, "0 0.5 0.5 0.1 0.1")
    (folder / "labels/a.txt").write_bytes("0 0.5 0.5 0.1 0.1".encode("utf-16"))
    message = refusal(read_split, load_dataset(folder / "data.yaml"), "val", progress=False)
    assert message == f"{folder}/labels/a.txt: not UTF-8 text; labels are rows of numbers, save it as UTF-8"


def test_labels_that_cannot_be_read_are_named(folder):
    read_rows(folder, "0 0.5 0.5 0.1 0.1")
    (folder / "labels/b.txt").mkdir()
    message = refusal(read_split, load_dataset(folder / "data.yaml"), "val", progress=False)
    assert message.startswith(f"{folder}/labels/b.txt: cannot be read (Is a directory)")


def test_empty_and_missing_label_files_are_images_without_objects(folder):
    (folder / "labels").mkdir()
    (folder / "labels/b.txt").write_bytes(b"")
    (folder / "data.yaml").write_text("train: images\nval: images\nnames: [cat]\n")
    images = read_split(load_dataset(folder / "data.yaml"), "val", progress=False).images
    assert [image.boxes_xywh.shape for image in images] == [(0, 4), (0, 4)]


def test_an_image_takes_little_memory(folder):
    read_rows(folder, "0 0.5 0.5 0.1 0.1")
    spec = load_dataset(folder / "data.yaml")
    tracemalloc.start()
    kept = [read_yolo_labels(folder / "images/a.jpg", number, (60, 40), spec, pytest.fail) for number in range(500)]
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken / len(kept) < 2000  # bytes: COCO has 118,287 images
