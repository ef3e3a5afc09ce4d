"""Annotations of both kinds, read into the same boxes, and every malformed one named with its place."""

import json
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from yolo_lat.data.labels import DetectionSplit
from yolo_lat.data.reader import read_split
from yolo_lat.data.registry import load_dataset
from yolo_lat.data.spec import DatasetSpec, SplitSpec
from yolo_lat.data.yolo_txt import label_file
from yolo_lat.errors import UserError

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]


@pytest.fixture
def folder(tmp_path):
    """Two images of 60x40 px."""
    (tmp_path / "images").mkdir()
    for name in "ab":
        cv2.imwrite(str(tmp_path / f"images/{name}.jpg"), np.full((40, 60, 3), 99, np.uint8))
    return tmp_path


def content(*annotations: dict, images: list | None = None, **image) -> dict:
    """A COCO JSON of images a and b; `image` changes the entry of a."""
    entries = [
        {"id": 10, "file_name": "a.jpg", "width": 60, "height": 40} | image,
        {"id": 4, "file_name": "b.jpg", "width": 60, "height": 40},
    ]
    return {"images": entries if images is None else images, "annotations": list(annotations), "categories": CATEGORIES}


def annotation(**changes) -> dict:
    row = {"id": 1, "image_id": 10, "category_id": 7, "bbox": [6, 4, 30, 20], "area": 600, "iscrowd": 0} | changes
    return {key: value for key, value in row.items() if value != "absent"}


def read_coco(folder: Path, coco) -> DetectionSplit:
    (folder / "coco.json").write_text(json.dumps(coco))
    (folder / "data.yaml").write_text("train: images\nval: images\ncoco_json: {train: coco.json, val: coco.json}\n")
    return read_split(load_dataset(folder / "data.yaml"), "val", progress=False)


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


def test_both_kinds_give_the_same_boxes(shapes, txt_data):
    for split in ("train", "val"):
        coco = read_split(load_dataset(shapes), split, progress=False)
        yolo = read_split(load_dataset(txt_data), split, progress=False)
        assert coco.names == yolo.names
        assert sum(len(image.class_ids) for image in coco.images) > 20
        for one, other in zip(coco.images, yolo.images, strict=True):
            assert one.path.name == other.path.name
            assert (one.width, one.height) == (other.width, other.height)
            np.testing.assert_array_equal(one.class_ids, other.class_ids)
            np.testing.assert_allclose(one.boxes_xywh, other.boxes_xywh, atol=1e-9)


def test_coco_keeps_crowds_areas_and_ids(folder):
    rows = [annotation(), annotation(id=2, iscrowd=1, area=12.5, category_id=3), annotation(id=3, image_id=4)]
    a, b = read_coco(folder, content(*rows)).images
    assert (a.image_id, b.image_id) == (10, 4)
    assert a.class_ids.tolist() == [1, 0]
    assert a.areas.tolist() == [600, 12.5]
    assert a.crowd.tolist() == [False, True]
    assert b.boxes_xywh.tolist() == [[6, 4, 30, 20]]


def test_area_crowd_width_and_height_may_be_left_out(folder):
    coco = content(annotation(area="absent", iscrowd="absent"))
    del coco["images"][0]["width"], coco["images"][0]["height"]
    image = read_coco(folder, coco).images[0]
    assert (image.width, image.height, image.areas.tolist(), image.crowd.tolist()) == (60, 40, [600], [False])


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
        ("cat 0.5 0.5 0.1 0.1", "is not a row of numbers"),
        ("2 0.5 0.5 0.1 0.1", "class 2 is not a number from 0 to 1 of names"),
        ("-1 0.5 0.5 0.1 0.1", "class -1 is not"),
        ("0.5 0.5 0.5 0.1 0.1", "class 0.5 is not"),
        ("nan 0.5 0.5 0.1 0.1", "class nan is not"),
        ("inf 0.5 0.5 0.1 0.1", "class inf is not"),
        ("0 30 20 10 10", "coordinates must lie between 0 and 1"),
        ("0 0.5 0.5 1.2 0.1", "coordinates must lie between 0 and 1"),
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
    assert f"{folder}/labels/a.txt: not a text file" in message


def test_a_training_split_without_any_label_says_where_labels_are_looked_for(folder):
    assert f"{folder}/labels/a.txt" in refusal(read_rows, folder, split="train")
    assert len(read_rows(folder, split="val").images) == 2


def test_labels_lie_beside_the_last_folder_named_images():
    assert label_file(Path("/images/x/images/train/a.b.jpg")) == Path("/images/x/labels/train/a.b.txt")
    assert label_file(Path("/data/pictures/a.png")) == Path("/data/pictures/a.txt")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"bbox": "absent"}, "bbox None is not [x, y, width, height]"),
        ({"bbox": None}, "bbox None is not"),
        ({"bbox": [1, 2, 3]}, "bbox [1, 2, 3] is not"),
        ({"bbox": [1, 2, -3, 4]}, "bbox [1, 2, -3, 4] is not"),
        ({"bbox": [1, 2, float("nan"), 4]}, "is not [x, y, width, height]"),
        ({"bbox": [1, 2, "3", 4]}, "is not [x, y, width, height]"),
        ({"category_id": 5}, "category_id 5 is not among the categories"),
        ({"category_id": "absent"}, "category_id None is not"),
        ({"category_id": [7]}, "category_id [7] is not"),
        ({"image_id": 99}, "image_id 99 is not among the images"),
        ({"image_id": "absent"}, "image_id is None, not a number"),
        ({"image_id": "10"}, "image_id is '10', not a number"),
        ({"area": None}, "area None is not a number"),
        ({"area": "big"}, "area 'big' is not a number"),
        ({"iscrowd": "no"}, "iscrowd 'no' is neither 0 nor 1"),
    ],
    ids=str,
)
def test_a_malformed_annotation_is_named_by_its_id(folder, change, problem):
    message = refusal(read_coco, folder, content(annotation(), annotation(id=77, **change)))
    assert message.startswith(f"{folder}/coco.json, annotation id 77: ")
    assert problem in message


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"id": 1}, "entry 0 of images: file_name is None"),
        ({"file_name": "a.jpg"}, "entry 0 of images: id is None"),
        ({"id": 4, "file_name": "c.jpg"}, "entry 1 of images: id 4 is given twice"),
        ({"id": 1, "file_name": "b.jpg"}, "entry 1 of images: file_name b.jpg is given twice"),
        ("a.jpg", "entry 0 of images: 'a.jpg' is not an object"),
        ({"id": 1, "file_name": "../secret.jpg"}, "file_name '../secret.jpg' leads out of"),
        ({"id": 1, "file_name": "/etc/secret.jpg"}, "file_name '/etc/secret.jpg' leads out of"),
        ({"id": 1, "file_name": "missing.jpg"}, "images/missing.jpg: no such image"),
        ({"id": 1, "file_name": "a.jpg", "width": 40, "height": 60}, "a.jpg is given as 40x60 pixels but has 60x40"),
        ({"id": 1, "file_name": "a.jpg", "width": 40}, "a.jpg is given as 40xNone pixels but has 60x40"),
    ],
    ids=str,
)
def test_a_malformed_image_entry_is_named(folder, entry, problem):
    message = refusal(read_coco, folder, content(images=[entry, {"id": 4, "file_name": "b.jpg"}]))
    assert problem in message
    assert str(folder) in message


@pytest.mark.parametrize(
    ("coco", "problem"),
    [
        ({"categories": CATEGORIES}, "it needs the keys images, annotations and categories"),
        (content() | {"annotations": None}, "images and annotations must be lists"),
        (content() | {"annotations": [5]}, "annotation 5 is not an object"),
        (content() | {"images": 5}, "images and annotations must be lists"),
        (content(images=[]), "key images: is empty"),
    ],
)
def test_a_malformed_json_is_refused(folder, coco, problem):
    message = refusal(read_coco, folder, coco)
    assert message.startswith(f"{folder}/coco.json")
    assert problem in message


def test_coco_takes_one_folder_of_images(folder):
    read_coco(folder, content())
    (folder / "data.yaml").write_text(
        "train: images\nval: [images, images]\ncoco_json: {train: coco.json, val: coco.json}\n"
    )
    assert "needs one folder of images" in refusal(read_split, load_dataset(folder / "data.yaml"), "val")


def test_a_rotated_photo_is_measured_as_it_is_shown(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(folder / "images/a.jpg", exif=exif)
    image = read_rows(folder, "0 0.5 0.5 0.5 0.25").images[0]
    assert (image.width, image.height) == (40, 60)
    assert image.boxes_xywh.tolist() == [[10, 22.5, 20, 15]]


def test_a_broken_image_is_refused_by_name(folder):
    (folder / "images/b.jpg").write_bytes((folder / "images/b.jpg").read_bytes()[:200])
    assert "images/b.jpg: broken image" in refusal(read_coco, folder, content())
    assert "images/b.jpg: broken image" in refusal(read_rows, folder)


def test_ground_truth_is_what_pycocotools_reads_from_the_file(shapes, tmp_path, capsys):
    truth = read_split(load_dataset(shapes), "val", progress=False).ground_truth()
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    ours, original = COCO(str(tmp_path / "truth.json")), COCO(str(shapes.parent / "annotations/val.json"))
    assert sorted(ours.getImgIds()) == sorted(original.getImgIds())
    assert {c["id"]: c["name"] for c in ours.dataset["categories"]} == {
        c["id"]: c["name"] for c in original.dataset["categories"]
    }

    def rows(coco: COCO) -> list:
        return sorted(
            (a["image_id"], a["category_id"], *a["bbox"], a["area"], a["iscrowd"]) for a in coco.dataset["annotations"]
        )

    assert rows(ours) == rows(original)


@settings(max_examples=50, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=40))
def test_any_label_text_is_read_or_refused(tmp_path_factory, text):
    root = tmp_path_factory.mktemp("any")
    (root / "images").mkdir()
    cv2.imwrite(str(root / "images/a.png"), np.zeros((8, 8, 3), np.uint8))
    (root / "labels").mkdir()
    (root / "labels/a.txt").write_text(text, encoding="utf-8")
    spec = DatasetSpec("any", root / "data.yaml", root, ("a",), {"val": SplitSpec((root / "images",))})
    with suppress(UserError):
        read_split(spec, "val", progress=False)
