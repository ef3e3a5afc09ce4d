"""What the readers of all formats have in common: the same boxes, and faults collected or refused alike."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from yolo_lat.data.faults import Fault
from yolo_lat.data.labels import DetectionSplit
from yolo_lat.data.reader import read_split
from yolo_lat.data.registry import load_dataset
from yolo_lat.errors import UserError

NAMES = ("cat", "dog")
BOXES = {"a": [(1, (6, 4, 30, 20)), (0, (0, 0, 60, 40))], "b": [], "c": [(0, (12, 10, 24, 10))]}


def write_yolo(root: Path) -> None:
    (root / "labels").mkdir()
    for name, rows in BOXES.items():
        lines = [f"{c} {(x + w / 2) / 60} {(y + h / 2) / 40} {w / 60} {h / 40}" for c, (x, y, w, h) in rows]
        (root / f"labels/{name}.txt").write_text("\n".join(lines))
    (root / "data.yaml").write_text("train: images\nval: images\nnames: [cat, dog]\n")


def write_coco(root: Path) -> None:
    numbers = {name: number for number, name in enumerate(BOXES, start=1)}
    rows = [
        {"id": i, "image_id": numbers[name], "category_id": c + 1, "bbox": list(box)}
        for i, (name, c, box) in enumerate((name, c, box) for name, found in BOXES.items() for c, box in found)
    ]
    images = [{"id": i, "file_name": f"{name}.png", "width": 60, "height": 40} for name, i in numbers.items()]
    content = {
        "images": images,
        "annotations": rows,
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    (root / "coco.json").write_text(json.dumps(content, indent=1))
    (root / "data.yaml").write_text("train: images\nval: images\ncoco_json: {train: coco.json, val: coco.json}\n")


def write_voc(root: Path) -> None:
    (root / "Annotations").mkdir()
    for name, rows in BOXES.items():
        objects = "".join(
            f"<object><name>{NAMES[c]}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax>"
            f"<ymax>{y + h}</ymax></bndbox></object>\n"
            for c, (x, y, w, h) in rows
        )
        size = "<size><width>60</width><height>40</height></size>"
        (root / f"Annotations/{name}.xml").write_text(f"<annotation>{size}\n{objects}</annotation>")
    (root / "data.yaml").write_text("format: voc\ntrain: images\nval: images\n")


WRITERS = {"yolo": write_yolo, "coco": write_coco, "voc": write_voc}


@pytest.fixture(params=WRITERS)
def root(request, tmp_path):
    """The same three images of 60x40 px and boxes in each format."""
    (tmp_path / "images").mkdir()
    for name in BOXES:
        cv2.imwrite(str(tmp_path / f"images/{name}.png"), np.full((40, 60, 3), 99, np.uint8))
    WRITERS[request.param](tmp_path)
    return tmp_path


def collect(root: Path) -> tuple[DetectionSplit, list[Fault]]:
    faults: list[Fault] = []
    return read_split(load_dataset(root / "data.yaml"), "train", False, faults.append), faults


def test_every_format_gives_the_same_split(root):
    split = read_split(load_dataset(root / "data.yaml"), "train", progress=False)
    assert split.names == NAMES
    assert [image.path for image in split.images] == [root / f"images/{name}.png" for name in BOXES]
    for image, rows in zip(split.images, BOXES.values(), strict=True):
        assert image.class_ids.tolist() == [class_id for class_id, _ in rows]
        np.testing.assert_allclose(image.boxes_xywh, np.array([box for _, box in rows]).reshape(-1, 4), atol=1e-9)
        np.testing.assert_allclose(image.boxes_xyxy[:, 2:], (image.boxes_xywh[:, :2] + image.boxes_xywh[:, 2:]))
        assert (image.width, image.height, image.crowd.any()) == (60, 40, False)


def test_collecting_faults_changes_nothing_where_there_are_none(root):
    split, faults = collect(root)
    strict = read_split(load_dataset(root / "data.yaml"), "train", progress=False)
    assert faults == []
    assert split.ground_truth() == strict.ground_truth()
    assert (split.names, split.category_ids, split.labelled) == (strict.names, strict.category_ids, strict.labelled)


def edit(file: Path, change: Callable[[str], str]) -> None:
    text = file.read_text()
    assert change(text) != text
    file.write_text(change(text))


def first_annotation(root: Path) -> Path:
    return next(f for f in (root / "labels/a.txt", root / "coco.json", root / "Annotations/a.xml") if f.exists())


FAULTS = {
    "class": lambda text: (
        text.replace("1 0.35", "9 0.35")
        .replace("dog</name", "dgo</name")
        .replace('"category_id": 2', '"category_id": 9')
    ),
    "labels": lambda text: text.replace("0.35", "x", 1).replace("<xmin>7", "<xmin>x").replace("6,\n", '"x",\n', 1),
}


def test_a_refusal_leaves_no_thread_behind(root):
    """Else whoever holds the error holds them, and the collection of such garbage can wait for a lock of its own."""
    (root / "images/c.png").write_bytes(b"no image")
    before = threading.active_count()
    with pytest.raises(UserError) as held:
        read_split(load_dataset(root / "data.yaml"), "train", progress=False)
    assert threading.active_count() == before, held


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_collected_or_refused_in_the_same_words(root, kind):
    if not (root / "labels").exists():  # or the fault would give other names
        edit(root / "data.yaml", lambda text: text + "names: [cat, dog]\n")
    edit(first_annotation(root), FAULTS[kind])
    (root / "images/c.png").write_bytes(b"no image")
    split, faults = collect(root)
    with pytest.raises(UserError) as caught:
        read_split(load_dataset(root / "data.yaml"), "train", progress=False)
    assert str(caught.value) == faults[0].message
    assert sorted(fault.kind for fault in faults) == sorted(["image", kind])
    for fault in faults:
        assert str(fault.file) in fault.message
        assert "\n" not in fault.message
    assert [image.path.stem for image in split.images] == ["a", "b"]
    assert split.images[0].class_ids.tolist() == [0], "the row without a fault stays"


def test_another_size_is_a_fault_where_annotations_say_one(root):
    cv2.imwrite(str(root / "images/a.png"), np.zeros((40, 61, 3), np.uint8))
    split, faults = collect(root)
    assert len(split.images) == 3
    if (root / "labels").exists():
        assert faults == []
    else:
        assert [(fault.kind, fault.file) for fault in faults] == [("size", first_annotation(root))]
        assert str(faults[0].file) in faults[0].message
        assert "60" in faults[0].message
        assert "61" in faults[0].message


def test_a_subset_reads_its_own_images_alone(root):
    edit(root / "data.yaml", lambda text: text + "subset: {train: 2, seed: 1}\n")
    looked: list[str] = []

    def look(path: Path) -> tuple[int, int]:
        looked.append(path.stem)
        return 60, 40

    split = read_split(load_dataset(root / "data.yaml"), "train", progress=False, look=look)
    assert sorted(looked) == [image.path.stem for image in split.images]
    assert len(looked) == 2
    edit(root / "data.yaml", lambda text: text.replace("train: 2", "train: 4"))
    with pytest.raises(UserError, match=r"data\.yaml, key subset: train asks for 4 images, but there are 3"):
        read_split(load_dataset(root / "data.yaml"), "train", progress=False)


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


def test_a_broken_image_is_refused_by_name(root):
    (root / "images/b.png").write_bytes((root / "images/b.png").read_bytes()[:60])
    with pytest.raises(UserError, match=r"images/b\.png: broken image"):
        read_split(load_dataset(root / "data.yaml"), "train", progress=False)


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


SPOILT = {  # in the labels of image a: text, and what it becomes
    "yolo": ("labels/a.txt", "1 0.35", "9 0.35"),
    "coco": ("coco.json", '"image_id": 1,\n   "category_id": 2', '"image_id": 1,\n   "category_id": 9'),
    "voc": ("Annotations/a.xml", "dog", "dogg"),
}


def test_a_fault_tells_the_image_that_it_is_about(root):
    for file, text, other in SPOILT.values():
        if (root / file).exists():
            (root / file).write_text((root / file).read_text().replace(text, other, 1))
    yaml = root / "data.yaml"
    if "names" not in yaml.read_text():
        yaml.write_text(yaml.read_text() + "names: [cat, dog]\n")
    cv2.imwrite(str(root / "images/c.png"), np.full((20, 20, 3), 99, np.uint8))
    (root / "images/b.png").write_bytes(b"no image")
    faults = collect(root)[1]
    about = {fault.kind: fault.image for fault in faults}
    assert about.pop("image") == root / "images/b.png"
    assert about.pop("class") == root / "images/a.png"
    assert set(about.values()) <= {root / "images/c.png"}
    assert bool(about) == (not (root / "labels").exists())  # YOLO labels say no size
