"""Data sets known by name: the shipped ones on miniature trees, subsets, and entries of the user's own."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from yolo_lat.data import shapes as shapes_module
from yolo_lat.data.reader import read_split
from yolo_lat.data.registry import complete, load_dataset, registry, tree
from yolo_lat.data.spec import SPLITS
from yolo_lat.errors import UserError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty datasets folder."""
    monkeypatch.setenv("YOLO_LAT_DATASETS", str(tmp_path))
    return tmp_path


@pytest.fixture
def coco(folder):
    """A `coco` of 30 training and 8 validation images, and 4 without annotations."""
    names = registry()["coco"]["names"]
    numbers = {name: 2 * number for number, name in enumerate(names, start=1)}
    (folder / "coco/annotations").mkdir(parents=True)
    for split, kind, count in (("train", "instances_", 30), ("val", "instances_", 8), ("test", "image_info_", 4)):
        images = folder / f"coco/images/{split}2017"
        images.mkdir(parents=True)
        rows = [{"id": i, "file_name": f"{i:012}.png", "width": 20, "height": 16} for i in range(count)]
        for row in rows:
            cv2.imwrite(str(images / row["file_name"]), np.zeros((16, 20, 3), np.uint8))
        content = {"images": rows, "categories": [{"id": i, "name": name} for name, i in numbers.items()]}
        if split != "test":
            box = {"category_id": numbers["dog"], "bbox": [1, 2, 9, 8]}
            content["annotations"] = [{"id": i, "image_id": i, **box} for i in range(count)]
        name = f"{kind}{split}{'-dev' if split == 'test' else ''}2017.json"
        (folder / "coco/annotations" / name).write_text(json.dumps(content))
    return folder / "coco"


def refusal(function, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def stems(data: str, split: str = "train") -> list[str]:
    return [image.path.stem for image in read_split(load_dataset(data), split, progress=False).images]


@pytest.mark.parametrize("name", registry())
def test_every_shipped_entry_says_what_it_is(name):
    entry = complete(registry(), name)
    for key in ("about", "licence", "size", "path"):
        assert isinstance(entry[key], str)
        assert len(entry[key].splitlines()) == 1
    if "generate" not in entry:
        spec = load_dataset(name)
        assert spec.names
        assert spec.name == name
        assert all(path.startswith(f"{entry['path']}/") for path in tree(entry))
        message = refusal(spec.split, "val")
        for wanted in (name, entry["source"], entry["size"], "YOLO_LAT_DATASETS", "download=true"):
            assert wanted in message


def test_coco_is_found_under_the_datasets_folder(coco):
    spec = load_dataset("coco")
    assert (spec.root, len(spec.names), spec.format) == (coco, 80, "coco")
    train = read_split(spec, "train", progress=False)
    assert [image.class_ids.tolist() for image in train.images] == [[spec.names.index("dog")]] * 30
    assert train.category_ids[:3] == (2, 4, 6)
    test = read_split(spec, "test", progress=False)
    assert (len(test.images), test.labelled) == (4, False)


def test_coco_works_with_the_validation_split_alone(coco):
    shutil.rmtree(coco / "images/train2017")
    (coco / "annotations/instances_train2017.json").unlink()
    spec = load_dataset("coco")
    assert len(read_split(spec, "val", progress=False).images) == 8
    missing = f"{coco}/images/train2017, {coco}/annotations/instances_train2017.json"
    message = refusal(read_split, spec, "train")
    assert f"split train of coco: no such path {missing}; put the data set at {coco} (from cocodataset.org" in message
    assert "or set YOLO_LAT_DATASETS to the folder that holds 'coco', or add download=true to fetch 27 GB" in message


def test_the_tree_of_coco_is_what_it_reads(coco):
    paths = tree(registry()["coco"])
    assert len(paths) == 6
    assert all((coco.parent / path).exists() for path in paths)
    assert {path for split in SPLITS for path in load_dataset("coco").missing(split)} == set()


def test_a_subset_has_the_counts_that_are_asked_for(coco):
    data = "coco-subset:train=20,val=5,seed=3"
    assert (len(stems(data)), len(stems(data, "val")), len(stems(data, "test"))) == (20, 5, 4)
    assert load_dataset(data).name == data
    spec = load_dataset("coco-subset")
    assert (spec.splits["train"].subset.count, spec.splits["val"].subset.count) == (10000, 1000)
    chosen = load_dataset("coco-subset:train=20,seed=3").splits
    assert [(chosen[split].subset.count, chosen[split].subset.seed) for split in ("train", "val")] == [
        (20, 3),
        (1000, 3),
    ]
    message = refusal(read_split, spec, "train")
    assert "entry coco-subset, key subset: train asks for 10000 images, but there are 30; ask for fewer" in message
    assert len(stems("coco:train=7")) == 7
    assert len(stems("coco:train=7", "val")) == 8


def test_a_smaller_subset_lies_in_a_larger_one_of_the_same_seed(coco):
    small, large = (stems(f"coco-subset:train={count},val=1,seed=3") for count in (10, 20))
    assert set(small) < set(large)
    assert stems("coco-subset:train=10,val=1,seed=3") == small
    assert stems("coco-subset:train=10,val=1,seed=4") != small
    assert stems("coco-subset:train=10,val=1") == stems("coco-subset:train=10,val=1,seed=0")
    assert len(small) == 10


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        ("", "'' is no count; write for example train=2000,val=500,seed=1"),
        ("train", "'train' is no count"),
        ("train=", "'train=' is no count"),
        ("train=x", "'train=x' is no count"),
        ("train=-5", "'train=-5' is no count"),
        ("train=1.5", "'train=1.5' is no count"),
        ("train=²", "'train=²' is no count"),
        ("train=5,", "'' is no count"),
        ("train=" + "9" * 5000, "is no count"),
        ("train=0", "train is 0; give a whole number, 1 or more"),
        ("trian=5", "unknown key 'trian'; did you mean 'train'?"),
    ],
)
def test_a_part_that_is_none_is_refused(coco, part, problem):
    message = refusal(load_dataset, f"coco-subset:{part}")
    assert message.startswith("data=coco-subset:")
    assert problem in message


def test_too_large_a_subset_is_refused(coco):
    spec = load_dataset("coco-subset:train=31,val=5")
    message = refusal(read_split, spec, "train")
    assert message == "data=coco-subset:train=31,val=5: train asks for 31 images, but there are 30; ask for fewer"


def test_voc_is_read_from_its_development_kit(folder):
    kit = folder / "VOCdevkit"
    for year, lists in (
        ("VOC2007", {"trainval": "000005\n", "test": "000001\n"}),
        ("VOC2012", {"trainval": "2008_1\n"}),
    ):
        for path in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (kit / year / path).mkdir(parents=True)
        for name, text in lists.items():
            (kit / year / f"ImageSets/Main/{name}.txt").write_text(text)
            cv2.imwrite(str(kit / year / f"JPEGImages/{text.strip()}.jpg"), np.zeros((16, 20, 3), np.uint8))
            bounds = "<xmin>1</xmin><ymin>1</ymin><xmax>20</xmax><ymax>16</ymax>"
            text_of_xml = f"<annotation><object><name>dog</name><bndbox>{bounds}</bndbox></object></annotation>"
            (kit / year / f"Annotations/{text.strip()}.xml").write_text(text_of_xml)
    spec = load_dataset("voc")
    train, val = (read_split(spec, split, progress=False) for split in ("train", "val"))
    assert [image.path.stem for image in train.images] == ["000005", "2008_1"]
    assert [image.path.stem for image in val.images] == ["000001"]
    assert val.images[0].boxes_xywh.tolist() == [[0, 0, 20, 16]]
    assert spec.names[val.images[0].class_ids[0]] == "dog"
    assert len(read_split(load_dataset("voc:train=1"), "train", progress=False).images) == 1


def test_shapes_are_generated_once_and_a_part_of_them_read(folder, monkeypatch):
    entry = {"train": 6, "val": 3, "image_size": 48, "seed": 0}
    entries = registry()
    monkeypatch.setattr("yolo_lat.data.registry.registry", lambda: {"shapes": {**entries["shapes"], "generate": entry}})
    assert len(stems("shapes:train=5")) == 5
    assert (folder / "shapes/data.yaml").is_file()
    monkeypatch.setattr(shapes_module, "render", lambda *_: pytest.fail("generated twice"))
    assert (len(stems("shapes")), len(stems("shapes", "val"))) == (6, 3)
    assert "shapes:val=4: val asks for 4 images, but there are 3" in refusal(stems, "shapes:val=4", "val")


OWN = {
    "about": "screws",
    "licence": "ours",
    "size": "1 GB",
    "path": "screws",
    "train": "t",
    "val": "v",
    "names": ["m3"],
}


def own(folder: Path, entries) -> None:
    (folder / "datasets.yaml").write_text(entries if isinstance(entries, str) else yaml.safe_dump(entries))


def test_an_entry_of_the_user_is_known_by_its_name(folder):
    own(folder, {"screws": OWN | {"about": "screws\nand bolts"}, 5: OWN})
    for split in ("t", "v"):
        (folder / "screws" / split).mkdir(parents=True)
        cv2.imwrite(str(folder / f"screws/{split}/a.png"), np.zeros((16, 20, 3), np.uint8))
    spec = load_dataset("screws")
    assert (spec.name, spec.file, spec.names) == ("screws", folder / "datasets.yaml", ("m3",))
    assert registry()["screws"]["about"] == "screws and bolts"
    assert len(read_split(spec, "val", progress=False).images) == 1
    assert load_dataset("5").names == ("m3",)
    assert "did you mean 'screws'?" in refusal(load_dataset, "screw")
    shutil.rmtree(folder / "screws/v")
    advice = f"put the data set at {folder}/screws or set YOLO_LAT_DATASETS to the folder that holds 'screws'"
    assert refusal(spec.split, "val").endswith(f"no such path {folder}/screws/v; {advice}")


def test_the_path_of_an_entry_may_be_absolute(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    own(folder, {"screws": OWN | {"path": str(elsewhere)}})
    assert load_dataset("screws").root == elsewhere


def test_an_entry_may_be_a_subset_of_another(folder, coco):
    part = {"about": "a part", "licence": "as coco", "size": "27 GB", "subset_of": "coco", "subset": {"train": 4}}
    whole = OWN | {"train": ".", "val": "."}
    small = {"about": "one", "licence": "ours", "size": "1 GB", "subset_of": "screws", "subset": {"train": 1}}
    own(folder, {"mini-coco": part, "screws": whole, "one-screw": small})
    (folder / "screws").mkdir()
    for name in "ab":
        cv2.imwrite(str(folder / f"screws/{name}.png"), np.zeros((16, 20, 3), np.uint8))
        (folder / f"screws/{name}.txt").write_text("0 0.5 0.5 1 1\n")
    assert len(stems("mini-coco")) == 4
    assert len(stems("mini-coco:train=6")) == 6
    assert len(stems("one-screw")) == 1
    assert len(stems("screws")) == 2


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ("- a\n", ": must map names to data sets"),
        ("", ": must map names to data sets"),
        ("a: [\n", ", line 2: not valid YAML"),
        ({"coco": OWN}, ", entry coco: is a name of this package's own; choose another"),
        ({"screws": None}, ", entry screws: lacks about, licence, size, path; add what is missing"),
        ({"screws": [1]}, ", entry screws: lacks about"),
        ({"screws": {**OWN, "licence": ""}}, ", entry screws: lacks licence"),
        ({"screws": {**OWN, "path": ["a"]}}, ", entry screws, key path: ['a'] is not a text; correct it"),
        ({"screws": {**OWN, "path": "a\0"}}, ", entry screws, key path: 'a\\x00' is not a path"),
        ({"screws": {**OWN, "train": None}}, ", entry screws: key train is missing"),
        ({"screws": {**OWN, "nc": 2}}, ", entry screws, key nc: says 2 classes"),
        ({"screws": {**OWN, "names": None}}, ", entry screws: key names is missing"),
        ({"screws": {**OWN, "subset": 5}}, ", entry screws, key subset: is 5; give counts"),
        ({"screws": {**OWN, "generate": {"train": 5}}}, ", entry screws, key generate: is for this package's own"),
        ({"screws": {**OWN, "subset_of": "cocoa"}}, ", entry screws, key subset_of: no data set 'cocoa' to choose"),
        ({"screws": {**OWN, "subset_of": "screws"}}, ", entry screws, key subset_of: no data set 'screws'"),
        ({"screws": {**OWN, "subset_of": "coco-subset"}}, ", entry screws, key subset_of: no data set 'coco-subset'"),
        ({"screws": {**OWN, "subset_of": ["coco"]}}, ", entry screws, key subset_of: ['coco'] is not a text"),
        ({"a\nb": None}, ", entry 'a\\nb': lacks about"),
    ],
    ids=str,
)
def test_a_malformed_entry_is_named(folder, entries, problem):
    own(folder, entries)
    message = refusal(load_dataset, "screws")
    assert message.startswith(f"{folder}/datasets.yaml{problem}")


def test_names_and_files_that_there_are_none_of(folder):
    assert "data=missing.yaml: no such file; give the path of a data YAML or one of coco" in refusal(
        load_dataset, "missing.yaml"
    )
    assert "data=cocoo: no data set of that name; did you mean 'coco'?" in refusal(load_dataset, "cocoo")
    assert "no data set of that name" in refusal(load_dataset, "x" * 5000)
    assert "no data set of that name" in refusal(load_dataset, "")
    assert "no data set of that name" in refusal(load_dataset, "a\0")
    (folder / "instances.json").write_text("{}")
    assert "is annotations alone; write a data YAML" in refusal(load_dataset, folder / "instances.json")
