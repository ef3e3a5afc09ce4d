"""Data YAMLs and the registry: what they resolve to, and the one sentence for each way of getting them wrong."""

import json
from pathlib import Path

import pytest
import yaml

from yolo_lat.data.spec import load_dataset
from yolo_lat.errors import UserError


@pytest.fixture
def root(tmp_path):
    """Empty image folders and a COCO JSON of two classes for each split."""
    for split in ("train", "val"):
        (tmp_path / "images" / split).mkdir(parents=True)
        content = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]}
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    return tmp_path


YOLO = {"path": ".", "train": "images/train", "val": "images/val", "names": ["cat", "dog"]}
COCO = {
    "path": ".",
    "train": "images/train",
    "val": "images/val",
    "coco_json": {"train": "train.json", "val": "val.json"},
}


def write(root: Path, content, name: str = "data.yaml") -> Path:
    file = root / name
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return file


def refusal(data) -> str:
    with pytest.raises(UserError) as caught:
        load_dataset(data)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("names", [["cat", "dog"], {0: "cat", 1: "dog"}, {1: "dog", 0: "cat"}], ids=str)
def test_names_as_list_or_dict(root, names):
    spec = load_dataset(write(root, YOLO | {"names": names}))
    assert spec.names == ("cat", "dog")
    assert spec.category_ids == (1, 2)
    assert spec.splits["val"].images == (root / "images/val",)
    assert spec.splits["val"].annotations is None
    assert set(spec.splits) == {"train", "val"}


def test_names_and_category_ids_come_from_the_coco_json_in_the_order_of_ids(root):
    spec = load_dataset(write(root, COCO))
    assert (spec.names, spec.category_ids) == (("dog", "cat"), (3, 7))
    assert spec.splits["train"].annotations == root / "train.json"


def test_path_is_relative_to_the_yaml_and_not_to_the_working_directory(root, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    (root / "yamls").mkdir()
    for path in ("..", str(root)):
        spec = load_dataset(write(root / "yamls", YOLO | {"path": path}))
        assert spec.splits["train"].images == (root / "images/train",)
    without = {key: value for key, value in YOLO.items() if key != "path"}
    assert load_dataset(write(root, without)).splits["train"].images == (root / "images/train",)


def test_a_split_may_list_several_folders(root):
    spec = load_dataset(write(root, YOLO | {"train": ["images/train", "images/val"]}))
    assert spec.splits["train"].images == (root / "images/train", root / "images/val")


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"path": "nowhere"}, "key path: no folder {root}/nowhere"),
        ({"train": None}, "key train is missing"),
        ({"val": None}, "key val is missing"),
        ({"val": "images/test"}, "key val: no such path {root}/images/test"),
        ({"names": None}, "key names is missing"),
        ({"names": {0: "cat", 2: "dog"}}, "key names: class numbers must run from 0 to 1 without a gap"),
        ({"names": {1: "cat", 2: "dog"}}, "key names: class numbers must run from 0 to 1"),
        ({"names": {"a": "cat", 1: "dog"}}, "key names: class numbers must run from 0 to 1"),
        ({"names": ["cat", "cat"]}, "key names: must list each class name once"),
        ({"names": "cat"}, "key names: must list each class name once"),
        ({"nc": 3}, "key nc: says 3 classes, but names lists 2"),
        ({"coco_json": "train.json"}, "key coco_json: must map splits to files"),
        ({"coco_json": {"training": "train.json"}}, "key coco_json: must map splits to files"),
        ({"coco_json": {"train": None, "val": "val.json"}}, "key coco_json: must map splits to files"),
        ({"coco_json": {"train": "train.json"}}, "key coco_json: has no file for val"),
        ({"coco_json": {"train": "no.json", "val": "val.json"}}, "key coco_json: train: no such path {root}/no.json"),
        ({"test": "images/val", "coco_json": COCO["coco_json"]}, "key coco_json: has no file for test"),
        ({"coco_json": COCO["coco_json"]}, "key names: 2 names differ from the 2 in coco_json"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_key_is_named(root, change, wanted):
    file = write(root, {key: value for key, value in (YOLO | change).items() if value is not None})
    message = refusal(file)
    assert message.startswith(str(file))
    assert wanted.format(root=root) in message


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("train: a\nval: [b\nnames: [c]\n", ", line 3: not valid YAML"),
        ("train: a\n\tval: b\n", ", line 2: not valid YAML"),
        ("- a\n- b\n", ": not a data YAML; it needs the keys path, train, val and names"),
        ("", ": not a data YAML"),
        ("a: \0", ": not valid YAML (not a text file)"),
    ],
)
def test_broken_yaml_is_refused_with_its_line(root, text, wanted):
    file = write(root, text)
    assert f"{file}{wanted}" in refusal(file)


def test_yaml_that_is_no_text_is_refused(root):
    (root / "data.yaml").write_bytes(b"\xff\xfe\xfa")
    assert "data.yaml: not valid YAML (not a text file)" in refusal(root / "data.yaml")


@pytest.mark.parametrize(
    ("categories", "wanted"),
    [
        ([], "key categories: is empty"),
        ([{"id": 1}], "its categories lack id or name"),
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "key categories: id 1 is given twice"),
        ([{"id": 1, "name": "a"}, {"id": 2, "name": "a"}], "key categories: name a is given twice"),
        (None, "its categories lack id or name"),
    ],
)
def test_broken_categories_are_refused(root, categories, wanted):
    (root / "train.json").write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    message = refusal(write(root, COCO))
    assert str(root / "train.json") in message
    assert wanted in message


def test_broken_json_is_refused_with_its_line(root):
    (root / "train.json").write_text('{"images": [],\n"annotations": [}\n')
    assert f"{root / 'train.json'}, line 2: not valid JSON" in refusal(write(root, COCO))
    (root / "train.json").write_bytes(b"\xff\xd8\xff")
    assert "train.json: not a text file" in refusal(write(root, COCO))
    assert "cannot be read" in refusal(write(root, COCO | {"coco_json": {"train": "images", "val": "val.json"}}))


def test_coco_is_looked_for_under_the_datasets_folder_and_its_tree_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("YOLO_LAT_DATASETS", str(tmp_path))
    message = refusal("coco")
    for part in ("images/train2017", "images/val2017", "annotations/instances_val2017.json", "cocodataset.org"):
        assert part in message
    assert f"{tmp_path}/coco" in message
    assert "YOLO_LAT_DATASETS" in message
    for split in ("train", "val"):
        (tmp_path / f"coco/images/{split}2017").mkdir(parents=True)
    message = refusal("coco")
    assert "lacks annotations/instances_train2017.json, annotations/instances_val2017.json;" in message
    (tmp_path / "coco/annotations").mkdir()
    for split in ("train", "val"):
        content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "person"}]}
        (tmp_path / f"coco/annotations/instances_{split}2017.json").write_text(json.dumps(content))
    assert load_dataset("coco").splits["val"].images == (tmp_path / "coco/images/val2017",)


def test_datasets_lie_under_the_working_directory_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.delenv("YOLO_LAT_DATASETS", raising=False)
    monkeypatch.chdir(tmp_path)
    assert f"{tmp_path}/datasets/coco" in refusal("coco")


def test_unknown_data_set_suggests_the_nearest_name():
    assert "did you mean 'shapes'?" in refusal("shape")
    assert "data=missing.yaml: no such file" in refusal("missing.yaml")


def test_a_split_that_is_not_described_is_refused(root):
    spec = load_dataset(write(root, YOLO))
    with pytest.raises(UserError, match="has no split 'test', only train, val"):
        spec.split("test")
