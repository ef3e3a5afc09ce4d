"""Data YAMLs and the registry: what they resolve to, and the one sentence for each way of getting them wrong."""

import json
from pathlib import Path

import pytest
import yaml

from yolo_lat.data.registry import load_dataset
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
    assert spec.splits["val"].images == (root / "images/val",)
    assert spec.splits["val"].annotations is None
    assert set(spec.splits) == {"train", "val"}


def test_names_come_from_the_coco_json_in_the_order_of_ids(root):
    spec = load_dataset(write(root, COCO))
    assert (spec.names, spec.format) == (("dog", "cat"), "coco")
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
        ({"test": "images/val", "coco_json": COCO["coco_json"]}, "key coco_json: has no file for test"),
        ({"format": "pascal"}, "key format: 'pascal' must be yolo or voc"),
        ({"format": "coco"}, "key format: 'coco' does not go with coco_json as it is given"),
        ({"coco_json": COCO["coco_json"], "format": "yolo"}, "key format: 'yolo' does not go with coco_json"),
        ({"voc_first_pixel": 2}, "key voc_first_pixel: is 2, not 0 or 1"),
        ({"subset": [5]}, "key subset: is [5]; give counts"),
        ({"subset": {"trian": 5}}, "key subset: unknown key 'trian'; did you mean 'train'?"),
        ({"subset": {"test": 5}}, "key subset: unknown key 'test'"),
        ({"subset": {"train": 0}}, "key subset: train is 0"),
        ({"subset": {"train": 1.5}}, "key subset: train is 1.5"),
        ({"subset": {"train": True}}, "key subset: train is True"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_key_is_named(root, change, wanted):
    file = write(root, {key: value for key, value in (YOLO | change).items() if value is not None})
    message = refusal(file)
    assert message.startswith(str(file))
    assert wanted.format(root=root) in message


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (
            {"val": "images/test"},
            "split val of data: no such path {root}/images/test; correct it or",
        ),
        ({"coco_json": {"train": "train.json", "val": "no.json"}}, "split val of data: no such path {root}/no.json"),
    ],
    ids=["images", "annotations"],
)
def test_missing_files_are_named_by_the_split_that_needs_them_and_by_no_other(root, change, wanted):
    file = write(root, YOLO | change)
    spec = load_dataset(file)
    assert spec.split("train").images == (root / "images/train",)
    with pytest.raises(UserError) as caught:
        spec.split("val")
    assert str(caught.value).startswith(str(file))
    assert wanted.format(root=root) in str(caught.value)


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


def test_unknown_data_set_suggests_the_nearest_name():
    assert "did you mean 'shapes'?" in refusal("shape")
    assert "data=missing.yaml: no such file" in refusal("missing.yaml")


def test_a_split_that_is_not_described_is_refused(root):
    spec = load_dataset(write(root, YOLO))
    with pytest.raises(UserError, match="has no split 'test', only train, val"):
        spec.split("test")
