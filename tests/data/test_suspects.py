"""Boxes, label files and classes that look like mistakes are warned of; sound ones are not."""

import cv2
import pytest
from checked_data import Data, kinds, messages, picture

from yolo_lat.data.voc_xml import xml_file
from yolo_lat.data.yolo_txt import label_file


@pytest.fixture
def yolo(tmp_path) -> Data:
    return Data(tmp_path, "yolo")


BOX = (0, 10, 10, 20, 20)


@pytest.mark.parametrize(
    ("boxes", "expected", "words"),
    [
        ([(0, 50, 10, 14.6, 20)], {"outside": 1}, "boxes outside the image: 1 of 1, by up to 0.6 px"),
        ([(0, 50, 10, 14.4, 20)], {}, ""),
        ([(0, -0.4, 10, 14, 20), BOX], {}, ""),
        ([(0, -0.6, 10, 14, 20), BOX], {"outside": 1}, "boxes outside the image: 1 of 2, by up to 0.6 px"),
        ([(0, 10, 30, 14, 18.6)], {"outside": 1}, "by up to 0.6 px"),
        ([(0, 10, 10, 0, 20), (1, 10, 10, 20, 0)], {"no area": 1}, "2 boxes without area inside the image"),
        ([(0, 10, 10, 1.9, 20)], {"tiny": 1}, "1 box with a side under 2 px, the smallest 1.90 px"),
        ([(0, 10, 10, 2.1, 20)], {}, ""),
        ([BOX, BOX, BOX], {"repeated": 1}, "2 boxes given again with the same class"),
        ([BOX, (1, *BOX[1:])], {"contested": 1}, "1 box with several classes"),
        ([BOX, (0, 11, 10, 20, 20)], {}, ""),
    ],
    ids=str,
)
def test_suspicious_boxes_are_warnings(tmp_path, boxes, expected, words):
    for form in ("yolo", "coco"):
        data = Data(tmp_path / form, form)
        data.boxes[data.path("t2.jpg")] += []
        data.boxes[data.path("v1.jpg")] = boxes
        data.write()
        report = data.check()
        assert kinds(report) == expected
        assert report.ok
        for kind in expected:
            (message,) = messages(report, kind)
            where = label_file(data.path("v1.jpg")) if form == "yolo" else tmp_path / "coco/val.json"
            assert message.startswith(f"{data.path('v1.jpg')}: ")
            assert words in message
            assert str(where) in message


def test_boxes_far_outside_are_warnings_and_can_be_drawn(tmp_path):
    data = Data(tmp_path, "coco")
    data.boxes[data.path("t2.jpg")] = [(0, 5e8, -5e8, 1e8, 1e8), (1, -9e8, 0, 9.5e8, 40)]
    data.write()
    report = data.check()
    assert kinds(report) == {"outside": 1, "no area": 1}
    assert report.tiles[0].image.path.name == "t2.jpg"
    assert report.contact_sheet(tmp_path / "sheet.png").is_file()


def test_voc_corners_that_count_from_0_are_hinted_at(tmp_path):
    data = Data(tmp_path, "voc")
    data.boxes[data.path("t2.jpg")] = [(0, -1, 5, 20, 20), (0, 5, -1, 20, 20)]
    data.write()
    report = data.check()
    assert kinds(report) == {"outside": 1, "corners": 1}
    assert "2 boxes of split train have xmin or ymin 0" in messages(report, "corners")[0]
    data.keys["voc_first_pixel"] = 0
    data.write()
    assert "corners" not in kinds(data.check())


def test_labels_without_an_image_images_without_labels_and_shared_ones(yolo):
    label_file(yolo.path("t1.jpg")).unlink()
    label_file(yolo.path("t2.jpg")).write_text("")
    yolo.path("t3.jpg").rename(yolo.path("t3.jpg").with_suffix(".heic"))
    cv2.imwrite(str(yolo.path("t0.jpg").with_suffix(".png")), picture(55))
    (yolo.root / "labels/train/classes.txt").write_text("cat\ndog\n")
    report = yolo.check()
    assert kinds(report) == {"unlabelled": 1, "orphan": 1, "shared": 1}
    assert messages(report, "unlabelled")[0].startswith(str(yolo.path("t1.jpg")))
    assert messages(report, "orphan")[0].startswith(str(label_file(yolo.path("t3.jpg"))))
    assert "t0.png: shares" in messages(report, "shared")[0]
    assert report.splits["train"].empty == 2


def test_missing_and_orphan_voc_annotations(tmp_path):
    data = Data(tmp_path, "voc")
    xml_file(data.path("t1.jpg")).unlink()
    data.path("t2.jpg").unlink()
    report = data.check()
    assert kinds(report) == {"labels": 1, "orphan": 1}
    assert str(xml_file(data.path("t1.jpg"))) in messages(report, "labels")[0]
    assert str(xml_file(data.path("t2.jpg"))) in messages(report, "orphan")[0]


def test_classes_that_lack_boxes(tmp_path):
    data = Data(tmp_path, "yolo")
    data.keys["names"] = ["cat", "dog", "cow", "pig", "hen"]
    data.boxes[data.path("t1.jpg")].append((2, 5, 5, 9, 9))
    data.boxes[data.path("v1.jpg")].append((3, 5, 5, 9, 9))
    data.write()
    report = data.check()
    assert kinds(report) == {"classes": 3}
    assert [m.partition(": ")[2].partition(",")[0].partition(";")[0] for m in messages(report, "classes")] == [
        "the class pig has boxes in val but none in train",
        "the class cow has boxes in train but none in val",
        "the class hen has boxes neither in train nor in val",
    ]
    assert report.ok
