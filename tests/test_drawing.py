"""Boxes, labels and contact sheets: where things lie, and that every name can be read or at least told apart."""

from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest

from yolo_lat import drawing
from yolo_lat.drawing import class_colour, contact_sheet, draw_boxes, fit, picture_path, save_picture
from yolo_lat.errors import UserError

FONTS = Path(matplotlib.get_data_path(), "fonts/ttf")
GREY = np.full((100, 160, 3), 60, np.uint8)


def label(text: str) -> np.ndarray:
    """The part of a picture in which the label of one box is drawn."""
    return draw_boxes(GREY, np.array([[20, 40, 120, 90]]), [text], [(255, 255, 255)])[20:40]


def test_colours_are_those_of_golden_ratio_hues():
    assert class_colour(0) == (128, 128, 255)  # BGR: half saturated red
    assert len({class_colour(i) for i in range(80)}) == 80
    assert min(max(class_colour(i)) for i in range(80)) == 255


def test_a_box_is_outlined_and_its_label_filled():
    colour = (10, 200, 250)
    canvas = draw_boxes(GREY, np.array([[20.4, 40.4, 119.6, 89.6]]), ["cat"], [colour])
    for y, x in ((60, 20), (60, 120), (90, 70)):
        assert tuple(canvas[y, x]) == colour
    assert (canvas[50:85, 30:110] == 60).all()
    text = canvas[28:40, 20:36].reshape(-1, 3)
    assert (text == colour).all(axis=1).any()
    assert text.max(axis=1).min() < 60, "no black letters on the label"
    assert (GREY == 60).all()


@pytest.mark.parametrize("box", [[0, 0, 30, 30], [150, 5, 159, 99], [-20, -20, 300, 300], [155, 95, 159, 99]])
def test_labels_stay_inside_the_image(box):
    canvas = draw_boxes(GREY, np.array([box]), ["cup"], [(0, 255, 0)])
    whole = draw_boxes(GREY, np.array([[50, 50, 50, 50]]), ["cup"], [(0, 255, 0)])
    dark = (canvas.max(axis=2) < 30).sum()
    assert dark == (whole.max(axis=2) < 30).sum() > 10, "letters are cut off"


def test_a_label_larger_than_the_image_is_cut():
    canvas = draw_boxes(np.zeros((6, 9, 3), np.uint8), np.array([[1, 1, 5, 5]]), ["a long name"], [(0, 255, 0)])
    assert canvas.any()


def test_no_boxes_no_change():
    assert (draw_boxes(GREY, np.zeros((0, 4)), [], []) == GREY).all()


def test_names_in_other_scripts_are_drawn_as_they_are():
    assert len({label(c).tobytes() for c in "aäöüßéñçøåłśčžőğşЖΩא"}) == 20
    assert (label("é") == label("e\u0301")).all()
    assert (label("a\nb") == label("a b")).all()


def test_what_no_font_has_becomes_its_escape(monkeypatch):
    monkeypatch.setattr(drawing, "_SYSTEM_FONTS", ())
    for cached in (drawing._fonts, drawing._stencil):
        cached.cache_clear()
    assert (label("中") == label(r"\u4e2d")).all()
    assert (label("中") != label("国")).any()
    for cached in (drawing._fonts, drawing._stencil):
        cached.cache_clear()


def test_a_font_of_the_system_draws_what_the_first_lacks(monkeypatch):
    fonts = tuple(drawing.ImageFont.truetype(str(FONTS / name), 20) for name in ("cmr10.ttf", "DejaVuSans.ttf"))
    monkeypatch.setattr(drawing, "_fonts", lambda size: fonts)
    assert drawing._drawable("abc", 20) == ("abc", fonts[0])
    assert drawing._drawable("Жук", 20) == ("Жук", fonts[1])
    assert drawing._drawable("Ж中", 20) == (r"\u0416\u4e2d", fonts[0])


def test_without_a_font_file_the_one_inside_pillow_serves(monkeypatch):
    plain = drawing.ImageFont.load_default(11)
    monkeypatch.setattr(drawing.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(drawing.ImageFont, "load_default", lambda size: plain)

    def missing(*_):
        raise OSError

    monkeypatch.setattr(drawing.ImageFont, "truetype", missing)
    monkeypatch.setattr(drawing, "_fonts", drawing._fonts.__wrapped__)
    assert drawing._drawable("cat é", 11) == (r"cat \xe9", plain)


@pytest.mark.parametrize(("shape", "expected"), [((50, 100), (32, 64)), ((300, 3), (64, 1)), ((64, 64), (64, 64))])
def test_fit_scales_the_longer_side(shape, expected):
    picture, ratio = fit(np.zeros((*shape, 3), np.uint8), 64)
    assert picture.shape == (*expected, 3)
    assert ratio == 64 / max(shape)


def test_a_sheet_has_its_tiles_in_rows_on_grey():
    tiles = [np.full((20, 40, 3), 10 * i, np.uint8) for i in range(1, 6)]
    sheet = contact_sheet(tiles, columns=3, side=40)
    assert sheet.shape == (2 * 44 + 4, 3 * 44 + 4, 3)
    for i in range(5):
        y, x = 4 + i // 3 * 44, 4 + i % 3 * 44
        assert (sheet[y + 10 : y + 30, x : x + 40] == 10 * (i + 1)).all()
        assert (sheet[y : y + 10, x : x + 40] == 114).all()
        assert (sheet[y + 30 : y + 40, x : x + 40] == 114).all()
    assert contact_sheet(tiles, side=40).shape == sheet.shape
    assert contact_sheet(tiles[:1], columns=5, side=40).shape == (48, 48, 3)


def test_titles_lie_above_their_tiles_and_keep_to_their_width():
    tiles = [np.zeros((224, 224, 3), np.uint8)] * 2
    short = contact_sheet(tiles, ["a.jpg", "b.jpg"], side=224)
    long = contact_sheet(tiles, ["a.jpg", "x" * 500], side=224)
    head = short.shape[0] - contact_sheet(tiles, side=224).shape[0]
    assert short.shape == long.shape
    assert (short[4 : 4 + head, 4:228] == long[4 : 4 + head, 4:228]).all()
    assert (short[4 : 4 + head, 4:60].max(axis=2) > 200).any()
    assert (long[:, 4 + 228 + 224 :] == 40).all()
    assert drawing._cut("x" * 500, 224).endswith("x...")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tiles": []}, "needs at least one picture"),
        ({"tiles": [GREY], "side": 8}, "side=8, columns=None: give 32 pixels"),
        ({"tiles": [GREY], "columns": 0}, "columns=0"),
    ],
)
def test_sheets_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        contact_sheet(**arguments)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPG", ".webp"])
def test_pictures_are_written_whole(tmp_path, suffix):
    file = save_picture(tmp_path / f"neuer Ordner/Übersicht{suffix}", GREY)
    found = cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_COLOR)
    assert np.abs(found.astype(int) - 60).max() <= 2
    assert [path.name for path in file.parent.iterdir()] == [f"Übersicht{suffix}"]


def test_pictures_that_cannot_be_written_are_refused(tmp_path):
    for name in ("a.gif", "a", "a.txt"):
        with pytest.raises(UserError, match=r"unknown kind of picture; end the name in \.jpg"):
            picture_path(tmp_path / name)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        save_picture(tmp_path / "file/a.png", GREY)
    (tmp_path / "a.png").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        save_picture(tmp_path / "a.png", GREY)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "file"]
    with pytest.raises(UserError, match=r"1x70000 pixels are too many for \.jpg"):
        save_picture(tmp_path / "b.jpg", np.zeros((70000, 1, 3), np.uint8))
