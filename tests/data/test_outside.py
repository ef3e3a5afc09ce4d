"""What data name outside their folder: COCO's file names never lead there, and nothing is written there."""

import json
from pathlib import Path

import pytest
from PIL import Image

from yolo_lat.data.convert import convert
from yolo_lat.data.reader import read_split
from yolo_lat.data.registry import load_dataset
from yolo_lat.errors import UserError

OUTSIDE = ("../secret.png", "deep/../../secret.png", "{root}/secret.png", "../val/../secret.png", "/etc/passwd", "..")


@pytest.fixture
def root(tmp_path) -> Path:
    """A data set with a picture beside its folder."""
    root = tmp_path / "data"
    for file in ("images/train/a.png", "images/val/b.png", "../secret.png", "images/secret.png"):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / file)
    return root


def coco(root: Path, name: str) -> Path:
    content = {"categories": [{"id": 1, "name": "a"}], "annotations": []}
    for split, file in (("train", name), ("val", "b.png")):
        content["images"] = [{"id": 1, "file_name": file, "width": 8, "height": 8}]
        (root / f"{split}.json").write_text(json.dumps(content))
    keys = "train: images/train\nval: images/val\ncoco_json: {train: train.json, val: val.json}\n"
    (root / "data.yaml").write_text(f"path: {root}\n{keys}")
    return root / "data.yaml"


def txt(root: Path, *lines: str) -> Path:
    (root / "train.txt").write_text("\n".join(lines) + "\n")
    for split, name in (("train", "a"), ("val", "b")):
        (root / "labels" / split).mkdir(parents=True, exist_ok=True)
        (root / "labels" / split / f"{name}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (root / "data.yaml").write_text(f"path: {root}\ntrain: train.txt\nval: images/val\nnames: [a]\n")
    return root / "data.yaml"


@pytest.mark.parametrize("name", OUTSIDE)
def test_file_names_of_coco_stay_in_the_folder_of_the_images(root, name):
    name = name.format(root=root)
    with pytest.raises(UserError) as caught:
        read_split(load_dataset(coco(root, name)), "train", progress=False)
    assert str(caught.value) == (
        f"{root / 'train.json'}, entry 0 of images: file_name '{name}' leads out of {root / 'images/train'}; images "
        "must lie inside"
    )


def test_lists_may_name_images_anywhere_but_nothing_else(root):
    """As darknet's and Ultralytics' lists do; what they name is the user's, as with a path on the command line."""
    data = load_dataset(txt(root, "images/train/a.png", "../secret.png", str(root / "images/val/b.png")))
    assert len(read_split(data, "train", progress=False).images) == 3
    (root / "notes").write_text("a password\n")
    with pytest.raises(UserError) as caught:
        read_split(load_dataset(txt(root, "notes")), "train", progress=False)
    assert "broken image" in str(caught.value)
    assert "password" not in str(caught.value)


@pytest.mark.parametrize("form", ["yolo", "coco", "voc"])
def test_conversion_writes_into_its_folder_alone(root, tmp_path, form):
    data = txt(root, "images/train/a.png", "../secret.png", str(root / "images/val/b.png"))
    before = set(tmp_path.rglob("*"))
    convert(data, tmp_path / "target", form)
    new = set(tmp_path.rglob("*")) - before
    assert all(path.is_relative_to(tmp_path / "target") for path in new)
    assert sum(path.suffix == ".png" for path in new) == 4
