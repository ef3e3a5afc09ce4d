"""COCO JSON: what becomes of right files, and every malformed one named with its place."""

import json
import shutil
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from yolo_lat.data.files import read_json
from yolo_lat.data.labels import DetectionSplit
from yolo_lat.data.reader import read_split
from yolo_lat.data.registry import load_dataset
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


def refusal(read, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        read(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


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


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"bbox": "absent"}, "bbox None is not [x, y, width, height]"),
        ({"bbox": None}, "bbox None is not"),
        ({"bbox": [1, 2, 3]}, "bbox [1, 2, 3] is not"),
        ({"bbox": [1, 2, -3, 4]}, "bbox [1, 2, -3, 4] is not"),
        ({"bbox": [1, 2, float("nan"), 4]}, "is not [x, y, width, height]"),
        ({"bbox": [1, 2, "3", 4]}, "is not [x, y, width, height]"),
        ({"bbox": [1, 2, True, 4]}, "is not [x, y, width, height]"),
        ({"bbox": [1, 2, 1e308, 1e308]}, "is not [x, y, width, height]"),
        ({"bbox": [10**400, 2, 3, 4]}, "is not [x, y, width, height]"),
        ({"bbox": list(range(10**5))}, "bbox [0, 1, 2, 3, 4, 5, ...] is not"),
        ({"category_id": 5}, "category_id 5 is not among the categories"),
        ({"category_id": "absent"}, "category_id None is not"),
        ({"category_id": [7]}, "category_id [7] is not"),
        ({"category_id": True}, "category_id True is not"),
        ({"category_id": 7.0}, "category_id 7.0 is not"),
        ({"category_id": -(10**400)}, "category_id a number of more than 30 digits is not"),
        ({"image_id": 99}, "image_id 99 is not among the images"),
        ({"image_id": "absent"}, "image_id is None, not a whole number"),
        ({"image_id": "10"}, "image_id is '10', not a whole number"),
        ({"area": None}, "area None is not a number of square pixels"),
        ({"area": -1}, "area -1 is not"),
        ({"area": float("inf")}, "area inf is not"),
        ({"area": 10**400}, "area a number of more than 30 digits is not"),
        ({"area": True}, "area True is not"),
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
        ({"file_name": "a.jpg"}, "entry 0 of images: id is None, not a whole number"),
        ({"id": 2**62, "file_name": "a.jpg"}, "entry 0 of images: id is 4611686018427387904, not a whole number"),
        ({"id": 1, "file_name": ""}, "entry 0 of images: file_name is '', not the name of a file"),
        ({"id": 1, "file_name": "a\0.jpg"}, "entry 0 of images: file_name is 'a\\x00.jpg', not"),
        ({"id": 1, "file_name": "a\n.jpg"}, "entry 0 of images: file_name is 'a\\n.jpg', not"),
        ({"id": 1, "file_name": "\ud800.jpg"}, "entry 0 of images: file_name is '\\ud800.jpg', not"),
        ({"id": 4, "file_name": "c.jpg"}, "entry 1 of images: id 4 is given twice"),
        ({"id": 1, "file_name": "b.jpg"}, "entry 1 of images: file_name b.jpg is given twice"),
        ("a.jpg", "entry 0 of images: 'a.jpg' is not an object"),
        ({"id": 1, "file_name": "../secret.jpg"}, "file_name '../secret.jpg' leads out of"),
        ({"id": 1, "file_name": "/etc/secret.jpg"}, "file_name '/etc/secret.jpg' leads out of"),
        ({"id": 1, "file_name": "missing.jpg"}, "images/missing.jpg: no such image"),
        ({"id": 1, "file_name": "a.jpg", "width": 40, "height": 60}, "a.jpg is given as 40x60 pixels but has 60x40"),
        ({"id": 1, "file_name": "a.jpg", "width": 40}, "a.jpg is given as 40x40 pixels but has 60x40"),
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
        (content() | {"annotations": [5]}, "entry 0 of annotations: 5 is not an object"),
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
    assert "key val: with coco_json it needs to be one folder of images" in refusal(
        read_split, load_dataset(folder / "data.yaml"), "val"
    )


def data_yaml(folder: Path, train_json: dict | None, val_json: dict, **keys) -> Path:
    """Write both JSONs, only that of val where the other is None, and the data YAML."""
    for split, coco in (("train", train_json), ("val", val_json)):
        if coco is not None:
            (folder / f"{split}.json").write_text(json.dumps(coco))
    yaml = {"train": "images", "val": "images", "coco_json": {"train": "train.json", "val": "val.json"}} | keys
    (folder / "data.yaml").write_text(json.dumps(yaml))  # JSON is YAML
    return folder / "data.yaml"


def categories(**ids: int) -> list[dict]:
    return [{"id": number, "name": name} for name, number in ids.items()]


def test_classes_are_matched_by_name_whatever_ids_and_order_a_file_has(folder):
    val = content(annotation(category_id=1), annotation(id=2, category_id=90))
    val["categories"] = categories(dog=1, cat=90)
    spec = load_dataset(data_yaml(folder, content(), val))
    assert spec.names == ("cat", "dog")
    split = read_split(spec, "val", progress=False)
    assert split.category_ids == (90, 1)
    assert split.images[0].class_ids.tolist() == [1, 0]
    truth = split.ground_truth()
    assert [row["category_id"] for row in truth["annotations"]] == [1, 90]
    assert truth["categories"] == [{"id": 90, "name": "cat"}, {"id": 1, "name": "dog"}]


def test_names_of_the_yaml_decide_the_order(folder):
    split = read_split(load_dataset(data_yaml(folder, None, content(annotation()), names=["dog", "cat"])), "val")
    assert split.names == ("dog", "cat")
    assert split.category_ids == (7, 3)
    assert split.images[0].class_ids.tolist() == [0]


def test_a_class_that_the_file_lacks_gets_an_id_of_its_own(folder):
    val = content(annotation(category_id=0)) | {"categories": categories(dog=0)}
    split = read_split(load_dataset(data_yaml(folder, content(), val)), "val", progress=False)
    assert split.names == ("cat", "dog")
    assert split.category_ids[1] == 0
    assert split.category_ids[0] != 0
    assert split.images[0].class_ids.tolist() == [1]


def test_a_category_more_matters_only_where_an_annotation_uses_it(folder):
    val = content(annotation()) | {"categories": [*CATEGORIES, {"id": 1, "name": "cats"}]}
    split = read_split(load_dataset(data_yaml(folder, content(), val)), "val", progress=False)
    assert (split.names, split.category_ids) == (("cat", "dog"), (3, 7))
    val["annotations"].append(annotation(id=5, category_id=1))
    message = refusal(read_split, load_dataset(data_yaml(folder, content(), val)), "val")
    assert message == (
        f"{folder}/val.json, annotation id 5: category 'cats' is not among the names of {folder}/data.yaml; did you "
        "mean 'cat'?"
    )


def test_a_file_without_annotations_is_not_labelled(folder):
    val = {key: value for key, value in content().items() if key != "annotations"}
    split = read_split(load_dataset(data_yaml(folder, content(annotation()), val)), "val", progress=False)
    assert not split.labelled
    assert [len(image.class_ids) for image in split.images] == [0, 0]
    assert read_split(load_dataset(folder / "data.yaml"), "train", progress=False).labelled


def test_the_validation_split_alone_is_enough(folder):
    spec = load_dataset(data_yaml(folder, None, content(annotation()), train="nowhere"))
    assert spec.names == ("cat", "dog")
    assert len(read_split(spec, "val", progress=False).images) == 2
    message = refusal(read_split, spec, "train")
    assert f"split train of data: no such path {folder}/nowhere, {folder}/train.json; correct it" in message


def test_without_any_annotations_the_missing_files_are_named(folder):
    file = data_yaml(folder, None, content())
    (folder / "val.json").unlink()
    assert f"split train of data: no such path {folder}/train.json" in refusal(load_dataset, file)


def test_file_names_may_be_nested_and_of_any_script(folder):
    names = ["sub/ü 猫 #1%20.JPG", "sub/deep/a..jpg", "sub/./b.jpg"]
    for name in names:
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "images/a.jpg", folder / "images" / name)
    rows = [annotation(id=number, image_id=number) for number in range(3)]
    coco = content(*rows, images=[{"id": number, "file_name": name} for number, name in enumerate(names)])
    images = read_coco(folder, coco).images
    assert {image.image_id: image.path for image in images} == {
        number: folder / "images" / name for number, name in enumerate(names)
    }
    assert [len(image.class_ids) for image in images] == [1, 1, 1]


def test_polygons_key_points_and_captions_are_not_kept(folder):
    row = annotation(segmentation=[[1.5] * 1000], keypoints=[1, 2, 2], caption="a dog")
    (folder / "coco.json").write_text(json.dumps(content(row)))
    assert read_json(folder / "coco.json")["annotations"] == [annotation()]


def test_ids_may_be_negative_and_keys_given_twice(folder):
    text = json.dumps(content(annotation(image_id=-5), id=-5)).replace('"iscrowd": 0', '"iscrowd": 1, "iscrowd": 0')
    (folder / "coco.json").write_text(text)
    (folder / "data.yaml").write_text("train: images\nval: images\ncoco_json: {train: coco.json, val: coco.json}\n")
    image = read_split(load_dataset(folder / "data.yaml"), "val", progress=False).images[0]
    assert (image.image_id, image.crowd.tolist()) == (-5, [False])


def test_annotations_without_id_are_named_by_their_place(folder):
    message = refusal(read_coco, folder, content(annotation(), annotation(id="absent", bbox=5)))
    assert message.startswith(f"{folder}/coco.json, entry 1 of annotations: bbox 5 is not")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"[" * 100_000, "coco.json: not valid JSON (nested too deeply)"),
        (b'{"images": [' + b"9" * 5000 + b"]}", "coco.json: not valid JSON (a number of thousands of digits)"),
        ("{}".encode("utf-16"), "coco.json: not UTF-8 text"),
        (b"[]", "coco.json: not a COCO JSON"),
    ],
    ids=["deep", "digits", "utf-16", "list"],
)
def test_what_json_cannot_hold_is_refused(folder, text, problem):
    file = data_yaml(folder, None, content(), coco_json={"train": "coco.json", "val": "coco.json"})
    (folder / "coco.json").write_bytes(text)
    assert problem in refusal(load_dataset, file)
    file = data_yaml(folder, None, content(), coco_json={"train": "coco.json", "val": "coco.json"}, names=["cat"])
    assert problem in refusal(read_split, load_dataset(file), "val")


def test_a_byte_order_mark_does_no_harm(folder):
    file = data_yaml(folder, content(), content(annotation()))
    for path in (file, folder / "val.json"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_split(load_dataset(file), "val", progress=False).images) == 2


def test_many_categories_take_no_time(folder):
    many = [{"id": i, "name": f"class {i}"} for i in range(100_000)]
    started = time.perf_counter()
    split = read_coco(folder, content(annotation()) | {"categories": many})
    assert len(split.names) == 100_000
    assert time.perf_counter() - started < 10  # seconds; comparing each with each takes minutes
