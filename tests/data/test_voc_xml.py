"""Pascal VOC: pixels, crowds and names as its devkit means them, and every malformed file named with its place."""

import shutil
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from yolo_lat.data.faults import Fault
from yolo_lat.data.labels import DetectionSplit
from yolo_lat.data.reader import read_split
from yolo_lat.data.registry import load_dataset
from yolo_lat.data.voc_xml import xml_file
from yolo_lat.errors import UserError

YAML = "format: voc\ntrain: images\nval: images\nnames: [cat, dog]\n"
SIZE = "<size><width>60</width><height>40</height><depth>3</depth></size>"


@pytest.fixture
def folder(tmp_path):
    """An image of 60x40 px."""
    for name in ("images", "Annotations"):
        (tmp_path / name).mkdir()
    cv2.imwrite(str(tmp_path / "images/a.jpg"), np.full((40, 60, 3), 99, np.uint8))
    return tmp_path


def box(name: str = "cat", corners: tuple = (7, 5, 36, 24), more: str = "") -> str:
    bounds = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    return f"<object><name>{name}</name>{more}<bndbox>{bounds}</bndbox></object>"


def read(folder: Path, *objects: str, size: str = SIZE, yaml: str = YAML, split: str = "val") -> DetectionSplit:
    return read_text(folder, f"<annotation>\n{size}\n{''.join(objects)}\n</annotation>", yaml, split)


def read_text(folder: Path, text: str | bytes, yaml: str = YAML, split: str = "val") -> DetectionSplit:
    (folder / "Annotations/a.xml").write_bytes(text if isinstance(text, bytes) else text.encode())
    (folder / "data.yaml").write_text(yaml)
    return read_split(load_dataset(folder / "data.yaml"), split, progress=False)


def refusal(function, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_box_from_1_to_60_covers_60_pixels(folder):
    image = read(folder, box(corners=(1, 1, 60, 40)), box("dog", (7, 5, 7, 5))).images[0]
    assert image.boxes_xywh.tolist() == [[0, 0, 60, 40], [6, 4, 1, 1]]
    assert image.areas.tolist() == [2400, 1]
    assert image.class_ids.tolist() == [0, 1]


def test_corners_from_0_are_coordinates(folder):
    yaml = YAML + "voc_first_pixel: 0\n"
    image = read(folder, box(corners=(0, 0, 60, 40)), box(corners=(6.5, 4, 36, 24.25)), yaml=yaml).images[0]
    assert image.boxes_xywh.tolist() == [[0, 0, 60, 40], [6.5, 4, 29.5, 20.25]]


def test_difficult_objects_are_crowds(folder):
    flags = ["", "<difficult>1</difficult>", "<difficult> 0 </difficult>", "<difficult/>"]
    split = read(folder, *(box(more=flag) for flag in flags))
    assert split.images[0].crowd.tolist() == [False, True, False, False]
    assert [row["iscrowd"] for row in split.ground_truth()["annotations"]] == [0, 1, 0, 0]


def test_parts_of_an_object_are_not_objects(folder):
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    assert read(folder, box(more=part)).images[0].boxes_xywh.tolist() == [[6, 4, 30, 20]]


def test_an_image_without_objects(folder):
    assert read(folder).images[0].boxes_xywh.shape == (0, 4)


def test_an_unknown_name_is_named_with_its_nearest(folder):
    message = refusal(read, folder, box(), box("dgo"))
    wanted = f"object 2 ('dgo'): is not among the 2 names in {folder}/data.yaml; did you mean 'dog'?"
    assert message == f"{folder}/Annotations/a.xml, {wanted}"
    assert "object 1 ('zebra'): is not among" in refusal(read, folder, box("zebra"))
    assert "object 1 (''): is not among" in refusal(read, folder, box().replace("<name>cat</name>", ""))
    assert "object 1 ('a\\nb')" in refusal(read, folder, box("a\nb"))


def test_names_are_those_of_the_training_annotations_in_alphabetical_order(folder):
    yaml = YAML.replace("names: [cat, dog]\n", "")
    split = read(folder, box("zebra"), box(" ape "), box("zebra"), yaml=yaml)
    assert split.names == ("ape", "zebra")
    assert split.images[0].class_ids.tolist() == [1, 0, 1]
    assert "no annotation of split train has an object; list the class names" in refusal(read, folder, yaml=yaml)
    assert "a.xml, line 1: not valid XML" in refusal(read_text, folder, "<annotation", yaml)


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>", "<size/>"])
def test_some_tools_write_no_size(folder, size):
    image = read(folder, box(), size=size).images[0]
    assert (image.width, image.height) == (60, 40)


@pytest.mark.parametrize("width", ["61", "sixty", "60.0", "6\n0"])
def test_another_size_is_refused(folder, width):
    message = refusal(read, folder, size=SIZE.replace(">60<", f">{width}<"))
    assert message.startswith(f"{folder}/Annotations/a.xml: gives the image as {width!r} x '40' pixels but it has 60 x")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("<xmin>7</xmin>", ""), "bndbox is ['', '5', '36', '24'], not the pixels xmin, ymin, xmax and ymax; mend it"),
        ((">7<", ">seven<"), "bndbox is ['seven', '5', '36', '24'], not"),
        ((">7<", ">nan<"), "bndbox is ['nan'"),
        ((">7<", ">1e400<"), "bndbox is ['1e400'"),
        ((">36<", ">1e308<"), "'1e308', '24'], not the pixels"),
        ((">36<", ">5<"), "xmax 5 and ymax 24 must not be below xmin 7 and ymin 5; mend it"),
        (("bndbox", "box"), "bndbox is ['', '', '', ''], not"),
        (("</name>", "</name><difficult>yes</difficult>"), "difficult 'yes' is neither 0 nor 1; mend it"),
    ],
)
def test_a_malformed_object_is_named_by_its_number(folder, change, problem):
    message = refusal(read, folder, box(), box().replace(*change))
    assert message.startswith(f"{folder}/Annotations/a.xml, object 2 ('cat'): ")
    assert problem in message


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", ", line 1: not valid XML (no element found)"),
        ("<annotation>\n<object>\n</annotation>", ", line 3: not valid XML (mismatched tag)"),
        ("<annotation>\n\0</annotation>", ", line 2: not valid XML"),
        (b"<annotation>\xff</annotation>", ", line 1: not valid XML (not well-formed (invalid token))"),
        ("no XML at all", ", line 1: not valid XML (syntax error)"),
        ("<root/>", ": holds 'root', not the <annotation> of Pascal VOC"),
        (
            "<?xml version='1.0' encoding='klingon'?><annotation/>",
            ": not readable as XML (unknown encoding: klingon); mend the file",
        ),
        ("<?xml version='1.0' encoding='utf-7'?><annotation/>", "mend the file"),
        ("<annotation>&cat;</annotation>", ", line 1: not valid XML (undefined entity)"),
    ],
)
def test_malformed_xml_is_named(folder, text, problem):
    message = refusal(read_text, folder, text)
    assert message.startswith(f"{folder}/Annotations/a.xml")
    assert problem in message


def test_other_encodings_are_read(folder):
    text = f"<annotation>{box('größe')}</annotation>"
    for encoding in ("utf-16", "latin-1"):
        header = f"<?xml version='1.0' encoding='{encoding}'?>"
        split = read_text(folder, (header + text).encode(encoding), YAML.replace("dog", "größe"))
        assert split.images[0].class_ids.tolist() == [1]


def test_an_entity_bomb_is_refused_before_it_goes_off(folder):
    entities = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 12))
    bomb = f'<!DOCTYPE x [<!ENTITY e0 "cat">{entities}]><annotation>{box("&e11;")}</annotation>'
    quadratic = f'<!DOCTYPE x [<!ENTITY e0 "{"x" * 100_000}">]><annotation>{box("&e0;" * 10_000)}</annotation>'
    for text in (bomb, quadratic):
        started = time.perf_counter()
        assert "limit on input amplification factor" in refusal(read_text, folder, text)
        assert time.perf_counter() - started < 5


@pytest.mark.parametrize("scheme", ["file://{secret}", "http://127.0.0.1:9/x", "{secret}"])
def test_an_external_entity_is_not_fetched(folder, scheme):
    secret = folder / "secret.txt"
    secret.write_text("cat")
    entity = f'<!DOCTYPE x [<!ENTITY e SYSTEM "{scheme.format(secret=secret)}">]>'
    message = refusal(read_text, folder, f"{entity}<annotation>{box('&e;')}</annotation>")
    assert "not valid XML (undefined entity &e;)" in message
    parameter = f'<!DOCTYPE x [<!ENTITY % e SYSTEM "{scheme.format(secret=secret)}"> %e;]>'
    assert len(read_text(folder, f"{parameter}<annotation>{box()}</annotation>").images[0].class_ids) == 1


def test_deep_nesting_does_no_harm(folder):
    deep = "<a>" * 50_000 + "</a>" * 50_000
    assert len(read(folder, box(), deep).images[0].class_ids) == 1


def test_a_missing_annotation_is_named(folder):
    (folder / "data.yaml").write_text(YAML)
    spec = load_dataset(folder / "data.yaml")
    message = refusal(read_split, spec, "val")
    wanted = f"no such annotation of {folder}/images/a.jpg; add it or remove the image"
    assert message == f"{folder}/Annotations/a.xml: {wanted}"
    (folder / "Annotations/a.xml").mkdir()
    assert "a.xml: cannot be read (Is a directory)" in refusal(read_split, spec, "val")
    faults: list[Fault] = []
    assert read_split(spec, "val", False, faults.append).images[0].boxes_xywh.shape == (0, 4)
    assert [fault.kind for fault in faults] == ["labels"]


def test_annotations_lie_beside_the_last_folder_of_images():
    assert xml_file(Path("/images/JPEGImages/x/a.b.jpg")) == Path("/images/Annotations/x/a.b.xml")
    assert xml_file(Path("/data/images/train/a.png")) == Path("/data/Annotations/train/a.xml")
    assert xml_file(Path("/data/pictures/a.png")) == Path("/data/pictures/a.xml")


def test_nested_folders(folder):
    for kind in ("images", "Annotations"):
        (folder / kind / "day/one").mkdir(parents=True)
    shutil.move(folder / "images/a.jpg", folder / "images/day/one/a.jpg")
    (folder / "Annotations/day/one/a.xml").write_text(f"<annotation>{box()}</annotation>")
    (folder / "data.yaml").write_text(YAML)
    assert len(read_split(load_dataset(folder / "data.yaml"), "val", progress=False).images[0].class_ids) == 1


def test_image_sets_of_the_devkit_name_images_without_suffix(folder):
    sets = folder / "VOC2007/ImageSets/Main"
    for path in (sets, folder / "VOC2007/JPEGImages", folder / "VOC2007/Annotations"):
        path.mkdir(parents=True)
    for name in ("000005.jpg", "000007.JPG", "2008.01.png"):
        shutil.copy(folder / "images/a.jpg", folder / "VOC2007/JPEGImages" / name)
        (folder / f"VOC2007/Annotations/{name[:-4]}.xml").write_text(f"<annotation>{SIZE}{box()}</annotation>")
    (sets / "trainval.txt").write_text("000005\r\n000007\r\n")
    (sets / "test.txt").write_text("2008.01\n../../JPEGImages/000005.jpg\n")
    yaml = YAML.replace("train: images", "train: VOC2007/ImageSets/Main/trainval.txt")
    (folder / "data.yaml").write_text(yaml.replace("val: images", "val: VOC2007/ImageSets/Main/test.txt"))
    spec = load_dataset(folder / "data.yaml")
    images = read_split(spec, "train", progress=False).images
    assert [image.path for image in images] == [
        folder / f"VOC2007/JPEGImages/{n}" for n in ("000005.jpg", "000007.JPG")
    ]
    assert [len(image.class_ids) for image in images] == [1, 1]
    assert len(read_split(spec, "val", progress=False).images) == 2
    (sets / "trainval.txt").write_text("000006\n")
    assert f"{folder}/VOC2007/JPEGImages/000006.jpg: no such image" in refusal(read_split, spec, "train")
