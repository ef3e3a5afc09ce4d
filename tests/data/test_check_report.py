"""What the report of a check shows: tables, JSON and a picture."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from checked_data import NAMES, Data, break_image, kinds, picture
from rich.console import Console

from yolo_lat.data.check_report import CheckReport
from yolo_lat.data.doctor import TILES
from yolo_lat.data.findings import LISTED, Finding, Findings
from yolo_lat.errors import UserError


@pytest.fixture
def data(tmp_path) -> Data:
    return Data(tmp_path / "data", "yolo")


def shown(report: CheckReport) -> str:
    console = Console(width=400, force_terminal=False)
    with console.capture() as capture:
        for table in report.tables():
            console.print(table)
    return capture.get()


def row(text: str, begin: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"│ {begin}"))
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_tables_count_what_is_there(data):
    data.add("train", "empty.png", picture(40), [])
    data.add("train", "big.png", cv2.resize(picture(41), (400, 300)), [])
    data.boxes[data.path("t0.jpg")] = [(0, 4, 4, 33, 32), (0, 8, 8, 20, 16), (0, 20, 20, 10, 10)]
    data.write()
    text = shown(data.check())
    assert row(text, "images") == ["images", "6", "2"]
    assert row(text, "without boxes") == ["without boxes", "2", "0"]
    assert row(text, "boxes ") == ["boxes", "9", "4"]
    assert row(text, "boxes per image") == ["boxes per image", "0 / 2 / 3", "2 / 2 / 2"]
    assert row(text, "width") == ["width, px", "64 / 64 / 400", "64 / 64 / 64"]
    assert [cell.split()[:2] for cell in row(text, "small")[1:]] == [["8", "88.9%"], ["4", "100.0%"]]
    assert row(text, "medium")[1].split()[:2] == ["1", "11.1%"]
    cat, dog = (row(text, name)[1].split() for name in NAMES)
    assert (cat[:2], cat[-1], dog[:2], dog[-1]) == (["6", "66.7%"], "4", ["3", "33.3%"], "3")
    assert (len(cat[2]), len(dog[2])) == (6, 3), "bars are as long as the counts"


def test_sides_of_boxes_are_square_roots_of_areas(data):
    for path in data.boxes:
        data.boxes[path] = [(0, 4, 4, 9, 16), (1, 20, 4, 9, 16)]
    data.write()
    train = data.check().splits["train"]
    assert train.side == (12, 12, 12, 12, 12)
    assert train.side_share == pytest.approx([12 / (64 * 48) ** 0.5] * 5, abs=1e-4)


def test_many_findings_are_shortened_in_tables_and_whole_in_the_json(data, tmp_path):
    for i in range(30):
        data.add("train", f"{i}.png", picture(300 + i), [(0, 50, 10, 20, 20)])
    data.write()
    report = data.check()
    text = shown(report)
    assert text.count("boxes outside the image: 1 of 1") == 3
    assert "and 27 more" in text
    assert "and 20 more, see the JSON" in text
    content = json.loads(report.save(tmp_path / "new/report.json").read_text())
    (finding,) = content["findings"]
    assert (finding["kind"], finding["count"], finding["error"], len(finding["listed"])) == ("outside", 30, False, 30)
    assert (content["ok"], content["errors"], content["warnings"]) == (True, 0, 30)
    assert [len(content["look_at"]), content["look_at"][0]["reasons"]] == [30, ["outside"]]
    assert content["splits"]["train"]["classes"]["cat"] == {"boxes": 34, "images": 34}
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new/report.json"]


def test_the_number_of_listed_findings_is_bounded_and_all_are_counted():
    found = Findings()
    for i in range(LISTED + 5):
        found.add(Finding("labels", Path("a.txt"), f"a.txt, line {i}: wrong"))
    assert found.counts["labels"] == found.total(error=True) == LISTED + 5
    assert found.total(error=False) == 0
    assert len(found.listed["labels"]) == LISTED


def test_the_worst_images_come_first(data):
    data.boxes[data.path("t2.jpg")] = [(0, 50, 10, 20, 20), (0, 5, 5, 1, 20)]
    data.boxes[data.path("t1.jpg")] = [(0, 50, 10, 20, 20)]
    data.boxes[data.path("v1.jpg")] = [(0, 5, 5, 1, 20)]
    data.write()
    break_image(data.path("t3.jpg"), "truncated")
    report = data.check()
    names = ["t3.jpg", "t2.jpg", "t1.jpg", "v1.jpg"]
    assert [path.name for path in report.found.by_image()] == names
    assert [tile.image.path.name for tile in report.tiles][:3] == names[1:], "a broken image cannot be drawn"
    text = shown(report)
    assert text.index("boxes reach outside, boxes under 2 px") > text.index("Look at these first")


def test_the_sheet_is_filled_up_with_images_drawn_by_the_seed(tmp_path):
    data = Data(tmp_path, "coco", train=40)
    one, same, other = (data.check(seed=seed) for seed in (0, 0, 1))
    assert len(one.tiles) == TILES
    assert [t.image.path for t in one.tiles] == [t.image.path for t in same.tiles]
    assert [t.image.path for t in one.tiles] != [t.image.path for t in other.tiles]


def test_the_sheet_shows_images_with_their_boxes(data, tmp_path):
    for path in data.boxes:
        cv2.imwrite(str(path.with_suffix(".png")), np.full((48, 64, 3), 30 + len(path.name), np.uint8))
    report = data.check()
    sheet = cv2.imread(str(report.contact_sheet(tmp_path / "sheet.png")))
    assert sheet.shape[1] == 6 * 324 + 4
    assert sheet.shape[0] >= 2 * 324
    assert len(np.unique(sheet.reshape(-1, 3), axis=0)) > 500
    assert not (tmp_path / "sheet.png.partial").exists()


def test_nothing_to_draw_and_names_that_are_no_pictures_are_refused(data, tmp_path):
    with pytest.raises(UserError, match="unknown kind of picture"):
        data.check().contact_sheet(tmp_path / "sheet.txt")
    for path in data.boxes:
        break_image(path, "empty")
    report = data.check()
    assert kinds(report)["image"] == 6
    assert shown(report)
    with pytest.raises(UserError, match="no image that can be drawn"):
        report.contact_sheet(tmp_path / "sheet.png")
    assert list(tmp_path.glob("sheet*")) == []


def test_a_report_that_cannot_be_written_leaves_the_old_one(data, tmp_path):
    (tmp_path / "report.json").mkdir()
    with pytest.raises(UserError, match=r"report\.json: cannot be written"):
        data.check().save(tmp_path / "report.json")
    assert list(tmp_path.glob("*.partial")) == []


def test_names_are_no_markup_and_need_not_be_utf8(data, tmp_path):
    data.keys["names"] = ["[red]cat", "dog"]
    data.add("train", "[bold]x[/nothing].png", picture(70), [(0, 50, 10, 20, 20)])
    data.add("train", os.fsdecode(b"caf\xe9.png"), picture(71), [(0, 50, 10, 20, 20)])
    data.write()
    report = data.check()
    assert kinds(report) == {"outside": 2}
    text = shown(report)
    assert "[red]cat" in text
    assert "[bold]x[/nothing].png" in text
    assert json.loads(report.save(tmp_path / "report.json").read_text())["warnings"] == 2
    assert report.contact_sheet(tmp_path / "sheet.png").is_file()
