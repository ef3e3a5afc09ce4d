"""Data YAMLs and the registry: what they resolve to, and the one sentence for each way of getting them wrong."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from yolo_lat.data.registry import load_dataset
from yolo_lat.data.spec import Subset
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
        ({"names": ["cat", False]}, "key names: False is read as no text; put the name in quotes"),
        ({"names": {0: "cat", 1: None}}, "key names: None is read as no text"),
        ({"names": ["cat", ["dog"]]}, "key names: ['dog'] is read as no text"),
        ({"path": {"a": 1}}, "key path: {{'a': 1}} is not a path"),
        ({"path": "a\0"}, "key path: 'a\\x00' is not a path"),
        ({"train": "x" * 5000}, "is not a path; correct it"),
        ({"train": ["images", None]}, "key train: None is not a path"),
        ({"val": "a\nb"}, "key val: 'a\\nb' is not a path"),
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
        ("a: \0", ": not valid YAML (a character or value that it does not have)"),
        ("a: !!bool maybe", ": not valid YAML (a character or value that it does not have)"),
        ("a: !!timestamp x", ": not valid YAML (a character or value that it does not have)"),
        ("a: !!int ''", ": not valid YAML (a character or value that it does not have)"),
        ("a: 2026-02-30", ": not valid YAML (a character or value that it does not have)"),
        ("[" * 600, ": not valid YAML (nested too deeply)"),
    ],
)
def test_broken_yaml_is_refused_with_its_line(root, text, wanted):
    file = write(root, text)
    assert f"{file}{wanted}" in refusal(file)


def test_yaml_that_is_no_text_is_refused(root):
    (root / "data.yaml").write_bytes(b"\xff\xfe\xfa")
    assert "data.yaml: not UTF-8 text; save it as UTF-8" in refusal(root / "data.yaml")


@pytest.mark.parametrize(
    ("categories", "wanted"),
    [
        ([], "key categories: is empty"),
        ([{"id": 1}], "its categories lack id or name"),
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "key categories: id 1 is given twice"),
        ([{"id": 1, "name": "a"}, {"id": 2, "name": "a"}], "key categories: name 'a' is given twice"),
        (None, "its categories lack id or name"),
        ([{"id": "1", "name": "a"}], "key categories: id '1', name 'a' are not a whole number and a text"),
        ([{"id": 1.5, "name": "a"}], "id 1.5, name 'a' are not"),
        ([{"id": True, "name": "a"}], "id True, name 'a' are not"),
        ([{"id": 10**400, "name": "a"}], "id a number of more than 30 digits, name 'a' are not"),
        ([{"id": 1, "name": None}], "id 1, name None are not"),
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
    assert "train.json: not UTF-8 text" in refusal(write(root, COCO))
    assert "cannot be read" in refusal(write(root, COCO | {"coco_json": {"train": "images", "val": "val.json"}}))


def test_unknown_data_set_suggests_the_nearest_name():
    assert "did you mean 'shapes'?" in refusal("shape")
    assert "data=missing.yaml: no such file" in refusal("missing.yaml")


def test_a_split_that_is_not_described_is_refused(root):
    spec = load_dataset(write(root, YOLO))
    with pytest.raises(UserError, match="has no split 'test', only train, val"):
        spec.split("test")


def test_a_key_without_value_is_missing_and_unknown_keys_are_ignored(root):
    assert load_dataset(write(root, YOLO | {"test": None, "roboflow": {"a": 1}, "nc": 2})).names == ("cat", "dog")


def test_aliases_that_unfold_without_end_are_refused_at_once(root):
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
    for key in ("path", "train", "names", "nc", "format", "subset", "coco_json", "voc_first_pixel"):
        content = YOLO | {"subset": {"train": 1}}
        lines = "".join(f"{k}: {json.dumps(v)}\n" for k, v in content.items() if k != key)
        message = refusal(write(root, f"{bomb}{lines}{key}: *a59\n"))
        assert f"key {key}" in message
        assert len(message) < 500


def test_a_link_in_a_circle_is_refused(root):
    (root / "loop").symlink_to("loop")
    assert "key train: 'loop' is not a path" in refusal(write(root, YOLO | {"train": "loop"}))


def test_a_download_needs_names_that_no_annotation_tells_yet(root):
    file = write(root, {**COCO, "path": "later", "download": "https://example.org/later.zip"})
    assert f"{file}: key names is missing; list the class names, which a download needs" in refusal(file)
    spec = load_dataset(write(root, {**COCO, "path": "later", "download": "x", "names": ["cat"]}))
    with pytest.raises(UserError, match="or add download=true to fetch what the YAML's key download names"):
        spec.split("val")


def test_a_smaller_subset_lies_in_a_larger_one_and_order_does_not_matter():
    paths = [Path(f"{i:03}.jpg") for i in range(200)]
    chosen = {count: Subset(count, 3).choose(paths) for count in (1, 20, 100, 200)}
    for small, large in pairwise(chosen):
        assert len(chosen[small]) == small
        assert set(chosen[small]) < set(chosen[large])
        assert chosen[small] == sorted(chosen[small])
    assert set(Subset(20, 3).choose(paths[::-1])) == set(chosen[20])
    assert set(Subset(20, 3).choose([Path("/other") / path for path in paths])) == {"/other" / p for p in chosen[20]}
    assert Subset(20, 4).choose(paths) != chosen[20]
    assert len({path.name[0] for path in chosen[20]}) == 2, "not the first ones"
    with pytest.raises(UserError, match="the subset asks for 201 images, but there are 200; ask for fewer"):
        Subset(201).choose(paths)


def test_file_names_need_not_be_utf_8():
    assert Subset(1).choose([Path("\udcff.jpg")]) == [Path("\udcff.jpg")]
