"""Each writer against the readers of others: pycocotools, Ultralytics, and VOC's own conventions; and random boxes."""

import json
from pathlib import Path, PurePath
from xml.etree import ElementTree

import numpy as np
import pytest
from awkward import NAMES, awkward_coco, read
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from torchvision.datasets import VOCDetection
from ultralytics.data.utils import verify_image_label

from yolo_lat.data.convert import convert
from yolo_lat.data.labels import image_labels
from yolo_lat.data.writers import WRITERS, NewSplit, PlacedImage, fits_yolo
from yolo_lat.errors import UserError


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return awkward_coco(tmp_path_factory.mktemp("source"))


def written(folder: Path, format: str, boxes, size=(60, 40), names=("cat",), name="a.png", crowd=None) -> NewSplit:
    """Write one image with boxes of class 0, and the YAML."""
    path = folder / "images/train" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size).save(path)
    labels = image_labels(path, 1, size, [0] * len(boxes), boxes, crowd)
    split = NewSplit("train", names, [PlacedImage(labels, PurePath(name))], [{"id": 1, "name": names[0]}])
    WRITERS[format](folder, split)
    key = {"coco": "coco_json: {train: annotations/train.json}", "voc": "format: voc"}.get(format, "")
    content = f"train: images/train\nval: images/train\n{key}\nnames: {json.dumps(list(names))}\n"
    (folder / "data.yaml").write_text(content.replace("{train:", "{val: annotations/train.json, train:"))
    return split


boxes_in = st.tuples(*[st.floats(0, 1)] * 4).map(
    lambda v: [60 * min(v[0], v[1]), 40 * min(v[2], v[3]), 60 * abs(v[0] - v[1]), 40 * abs(v[2] - v[3])]
)
boxes_anywhere = st.tuples(*[st.floats(-1e4, 1e4)] * 2, *[st.floats(0, 1e4)] * 2).map(list)


@settings(max_examples=30)
@given(boxes=st.lists(boxes_in, min_size=1, max_size=5))
@pytest.mark.parametrize("format", list(WRITERS))
def test_random_boxes_read_back(tmp_path_factory, format, boxes):
    folder = tmp_path_factory.mktemp("boxes")
    written(folder, format, boxes)
    np.testing.assert_allclose(read(folder / "data.yaml").images[0].boxes_xywh, boxes, rtol=0, atol=1e-12 * 60 * 8)


@settings(max_examples=30)
@given(boxes=st.lists(boxes_anywhere, min_size=1, max_size=5))
@pytest.mark.parametrize("format", ["coco", "voc"])
def test_boxes_outside_of_the_image_read_back_where_the_format_can_say_them(tmp_path_factory, format, boxes):
    folder = tmp_path_factory.mktemp("boxes")
    written(folder, format, boxes)
    np.testing.assert_allclose(read(folder / "data.yaml").images[0].boxes_xywh, boxes, rtol=0, atol=1e-10)


@settings(max_examples=30)
@given(boxes=st.lists(boxes_anywhere, min_size=1, max_size=5))
def test_yolo_holds_a_box_or_refuses_it(tmp_path_factory, boxes):
    folder = tmp_path_factory.mktemp("boxes")
    labels = image_labels(Path("a.png"), 1, (60, 40), [0] * len(boxes), boxes)
    if fits_yolo(labels).all():
        written(folder, "yolo", boxes)
        np.testing.assert_allclose(read(folder / "data.yaml").images[0].boxes_xywh, boxes, rtol=0, atol=1e-9)
    else:
        with pytest.raises(UserError, match="reaches too far out of the image"):
            written(folder, "yolo", boxes)


def test_a_box_as_large_as_the_image_is_written_as_such(tmp_path):
    for width in range(1, 60):  # 1 / 49 * 49 is less than 1, other quotients are more
        split = written(tmp_path, "yolo", [[0, 0, width, width]], size=(width, width))
        assert (tmp_path / "labels/train/a.txt").read_text() == "0 0.5 0.5 1 1\n"
        assert fits_yolo(split.images[0].labels).all()
    written(tmp_path, "yolo", [[-1e-9, 0, 60 + 2e-9, 40]])  # larger, but by rounding
    assert (tmp_path / "labels/train/a.txt").read_text() == "0 0.5 0.5 1 1\n"


def test_voc_holds_boxes_without_width(tmp_path):
    rng = np.random.default_rng(0)
    starts = rng.uniform(0, 40, 200).round(2)  # for some of them start - (start + 1) + 1 is less than 0
    assert (starts - (starts + 1) + 1 < 0).any()
    boxes = [[start, start, 0, 0] for start in starts]
    written(tmp_path, "voc", boxes)
    np.testing.assert_allclose(read(tmp_path / "data.yaml").images[0].boxes_xywh, boxes, rtol=0, atol=1e-12)


def test_voc_counts_pixels_from_one(tmp_path):
    written(tmp_path, "voc", [[0, 0, 60, 40], [9, 4.5, 1, 0]], crowd=[False, True])
    root = ElementTree.parse(tmp_path / "Annotations/train/a.xml").getroot()
    corners = [[b.findtext(key) for key in ("xmin", "ymin", "xmax", "ymax")] for b in root.iter("bndbox")]
    assert corners == [["1", "1", "60", "40"], ["10", "5.5", "10", "4.5"]]
    assert [root.findtext(f"size/{key}") for key in ("width", "height", "depth")] == ["60", "40", "1"]
    assert [node.findtext("difficult") for node in root.iter("object")] == ["0", "1"]
    assert (root.findtext("folder"), root.findtext("filename")) == ("", "a.png")


@pytest.mark.parametrize("name", [" cat", "", "c\nat", "c\x07at", "\ud800", "cat\uffff"])
def test_voc_refuses_class_names_that_it_would_alter(tmp_path, name):
    with pytest.raises(UserError, match=r"VOC.* cannot hold"):
        written(tmp_path, "voc", [[0, 0, 1, 1]], names=(name,))


def test_voc_refuses_file_names_that_xml_cannot_hold(tmp_path):
    with pytest.raises(UserError, match="VOC's XML cannot hold a character"):
        written(tmp_path, "voc", [], name="a\x01.png")


def test_pycocotools_loads_the_coco_json(source, tmp_path, capsys):
    convert(source, tmp_path / "new", "coco", progress=False)
    ours, original = COCO(str(tmp_path / "new/annotations/train.json")), COCO(str(source.parent / "train.json"))

    def rows(coco: COCO) -> list:
        return sorted(
            (coco.imgs[a["image_id"]]["file_name"], a["category_id"], *a["bbox"], a["area"], a["iscrowd"])
            for a in coco.dataset["annotations"]
        )

    assert rows(ours) == rows(original)
    assert ours.imgs == original.imgs  # ids, names, sizes, licences
    assert ours.cats == original.cats
    assert ours.dataset["licenses"] == original.dataset["licenses"]
    assert ours.dataset["info"] == original.dataset["info"]


def test_ultralytics_reads_the_same_from_yolo_labels(source, tmp_path):
    found = read(convert(source, tmp_path / "new", "yolo", crowd="keep", progress=False))
    for image in found.images:
        label = tmp_path / "new/labels" / image.path.relative_to(tmp_path / "new/images").with_suffix(".txt")
        if "images/sixteen" in str(image.path):  # labels lie beside the last folder of that name
            label = tmp_path / "new/images/train/labels/sixteen.txt"
        checked = verify_image_label((str(image.path), str(label), "", False, len(NAMES), 0, 0, False))
        rows, shape, missing, corrupt = checked[1], checked[2], checked[5], checked[8]
        assert not missing
        assert not corrupt
        assert shape == (image.height, image.width)
        order = np.lexsort(np.column_stack([image.class_ids, image.boxes_xywh]).T)
        corner = (rows[:, 1:3] - rows[:, 3:] / 2) * [image.width, image.height]
        theirs = np.column_stack([rows[:, 0], corner, rows[:, 3:] * [image.width, image.height]])
        ours = np.column_stack([image.class_ids, image.boxes_xywh])
        assert len(ours) == len(order) == len(theirs)
        by_box = [np.lexsort(table.round(2).T) for table in (ours, theirs)]
        np.testing.assert_allclose(theirs[by_box[1]], ours[by_box[0]], atol=1e-4)  # float32


def test_torchvision_parses_the_voc_annotations(source, tmp_path):
    found = read(convert(source, tmp_path / "new", "voc", progress=False))
    for image in found.images:
        below = image.path.relative_to(tmp_path / "new/images")
        file = tmp_path / "new/Annotations" / below.with_suffix(".xml")
        if "images/sixteen" in str(image.path):
            file = tmp_path / "new/images/train/Annotations/sixteen.xml"
        parsed = VOCDetection.parse_voc_xml(ElementTree.parse(file).getroot())["annotation"]
        assert parsed["filename"] == image.path.name
        assert (parsed["size"]["width"], parsed["size"]["height"]) == (str(image.width), str(image.height))
        objects = parsed["object"]
        assert [node["name"] for node in objects] == [NAMES[i] for i in image.class_ids]
        corners = np.array([[float(node["bndbox"][k]) for k in ("xmin", "ymin", "xmax", "ymax")] for node in objects])
        np.testing.assert_allclose(corners.reshape(-1, 4), image.boxes_xyxy + np.array([1, 1, 0, 0]), atol=1e-9)
