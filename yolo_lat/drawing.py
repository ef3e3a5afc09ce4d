"""Pictures for people: boxes with their labels on an image, and many images on one sheet."""

from __future__ import annotations

import colorsys
import importlib.util
import math
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import cast

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from yolo_lat.errors import UserError
from yolo_lat.unfinished import write_whole

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

_GROUND, _TITLE_GROUND, _TITLE_COLOUR = (114, 114, 114), (40, 40, 40), (240, 240, 240)
_TITLE_SIZE = 13  # pixels of text, and the title line is half as high again
_SMALLEST_TEXT = 11  # pixels; below it letters run together
# Scalable fonts for what DejaVu Sans lacks, Chinese, Japanese and Korean above all, where the system has one of them.
_SYSTEM_FONTS = ("NotoSansCJK-Regular.ttc", "wqy-zenhei.ttc", "msyh.ttc", "PingFang.ttc", "Arial Unicode.ttf")
_NO_CHARACTER = "\uffff"  # never assigned, so every font draws its sign for a missing glyph


def class_colour(class_id: int) -> tuple[int, int, int]:
    """Return the BGR colour of a class.

    Golden-ratio steps keep the hues of neighbouring classes apart; half saturation keeps black text legible.
    """
    red, green, blue = colorsys.hsv_to_rgb(class_id * 0.618 % 1, 0.5, 1)
    return round(255 * blue), round(255 * green), round(255 * red)


def draw_boxes(
    image_bgr: np.ndarray, boxes_xyxy: np.ndarray, labels: Sequence[str], colours: Sequence[tuple[int, int, int]]
) -> np.ndarray:
    r"""Return a copy of an image with boxes and their labels; later ones lie on top.

    Labels stay inside the image also when their box touches its top or right edge. A label is drawn with DejaVu Sans
    (Latin, Greek, Cyrillic and more), or with a font of the system that has all its characters. A character that none
    of them has is written as its escape, such as `\u4e2d`, so names stay distinct.

    Args:
        image_bgr: (H, W, 3) uint8.
        boxes_xyxy: (n, 4) corners in pixels.
        labels: n texts.
        colours: n BGR colours, 0 to 255.
    """
    canvas = image_bgr.copy()
    line = max(round(max(canvas.shape) / 400), 1)
    size = max(9 * line, _SMALLEST_TEXT)
    corners = np.asarray(boxes_xyxy).reshape(-1, 4).round().astype(int).tolist()
    for (x1, y1, x2, y2), label, colour in zip(corners, labels, colours, strict=True):
        stencil = _stencil(label, size)
        height, width = stencil.shape
        left = max(min(x1, canvas.shape[1] - width), 0)
        top = min(max(y1 - height, 0), max(canvas.shape[0] - height, 0))
        cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, line)
        cv2.rectangle(canvas, (left, top), (left + width - 1, top + height - 1), colour, cv2.FILLED)
        _print(canvas, stencil, left, top, (0, 0, 0))
    return canvas


def fit(image_bgr: np.ndarray, side: int) -> tuple[np.ndarray, float]:
    """Scale an image until its longer side has `side` pixels; returns it and the factor, which boxes need too."""
    ratio = side / max(image_bgr.shape[:2])
    height, width = (max(round(length * ratio), 1) for length in image_bgr.shape[:2])
    way = cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR
    return cv2.resize(image_bgr, (width, height), interpolation=way), ratio


def contact_sheet(
    tiles: Sequence[np.ndarray],
    titles: Sequence[str] | None = None,
    columns: int | None = None,
    side: int = 320,
) -> np.ndarray:
    """Return one (H, W, 3) uint8 BGR picture of many, row by row, each in the middle of a grey square.

    Boxes are best drawn on tiles that have their final size already, see `fit`, so that the labels stay legible.

    Args:
        tiles: (h, w, 3) uint8 BGR images of any sizes, scaled to fit.
        titles: a line above each tile, cut to its width; characters as in `draw_boxes`.
        columns: tiles in a row; by default as many as rows, or one more.
        side: pixels of a tile.

    Raises:
        UserError: no tile, or a size that is none.
    """
    if not tiles:
        raise UserError("a contact sheet needs at least one picture; give some")
    if side < 32 or (columns is not None and columns < 1):
        raise UserError(f"side={side}, columns={columns}: give 32 pixels and 1 column or more")
    columns = min(columns or math.ceil(math.sqrt(len(tiles))), len(tiles))
    head, gap = (_TITLE_SIZE * 3 // 2 if titles is not None else 0), 4
    width, height = side + gap, side + head + gap
    rows = math.ceil(len(tiles) / columns)
    sheet = np.full((rows * height + gap, columns * width + gap, 3), _TITLE_GROUND, np.uint8)
    for index, tile in enumerate(tiles):
        left, top = gap + index % columns * width, gap + index // columns * height
        if titles is not None:
            stencil = _stencil(_cut(titles[index], side), _TITLE_SIZE)
            _print(sheet, stencil, left, top + (head - stencil.shape[0]) // 2, _TITLE_COLOUR)
        sheet[top + head : top + head + side, left : left + side] = _GROUND
        picture, _ = fit(tile, side)
        y, x = top + head + (side - picture.shape[0]) // 2, left + (side - picture.shape[1]) // 2
        sheet[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
    return sheet


def picture_path(file: str | Path) -> Path:
    """Return where a picture is to be written.

    Raises:
        UserError: a suffix that is no picture's.
    """
    path = Path(file)
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise UserError(f"{file}: unknown kind of picture; end the name in {', '.join(PICTURE_SUFFIXES)}")
    return path


def save_picture(file: str | Path, image_bgr: np.ndarray) -> Path:
    """Write an image; the file appears under its name only when it is complete.

    Raises:
        UserError: a suffix that is no picture's, a picture too large for its format, or no file can be written there.
    """
    path = picture_path(file)
    try:
        done, content = cv2.imencode(path.suffix.lower(), image_bgr)
    except cv2.error:
        done = False
    if not done:
        height, width = image_bgr.shape[:2]
        raise UserError(f"{file}: {width}x{height} pixels are too many for {path.suffix}; use .png or fewer tiles")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content.tobytes())
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror}); choose another folder") from error
    return path


def _print(canvas: np.ndarray, stencil: np.ndarray, left: int, top: int, colour: tuple[int, int, int]) -> None:
    """Lay colour through a (h, w) uint8 stencil onto the canvas, in place, as far as it reaches."""
    area = canvas[top : top + stencil.shape[0], left : left + stencil.shape[1]]
    alpha = stencil[: area.shape[0], : area.shape[1], None].astype(np.float32) / 255
    area[:] = (area * (1 - alpha) + np.array(colour) * alpha).round()


@lru_cache(maxsize=256)  # few, as the labels of tracked objects are new all the time
def _stencil(text: str, size: int) -> np.ndarray:
    """Return a line of text as (h, w) uint8, a pixel of air at its sides; h depends on `size` alone."""
    text, font = _drawable(text, size)
    ascent, descent = _fonts(size)[0].getmetrics()
    image = Image.new("L", (math.ceil(font.getlength(text)) + 2, ascent + descent))
    # On one base line, whichever font it is.
    ImageDraw.Draw(image).text((1, ascent), text, fill=255, font=font, anchor="ls")
    return np.asarray(image)


def _cut(text: str, width: int) -> str:
    """Return the text, shortened at its end with dots if it is wider than `width` pixels as a title."""
    if _stencil(text, _TITLE_SIZE).shape[1] <= width:
        return text
    while text and _stencil(text + "...", _TITLE_SIZE).shape[1] > width:
        text = text[:-1]
    return text + "..."


def _drawable(text: str, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """Return the text as it can be drawn, and the first font that has all its characters."""
    text = unicodedata.normalize("NFC", " ".join(text.split()))  # an accent of its own becomes part of its letter
    for font in _fonts(size):
        if all(_has(font, character) for character in text):
            return text, font
    font = _fonts(size)[0]
    return "".join(c if _has(font, c) else c.encode("unicode_escape").decode() for c in text), font


@lru_cache(maxsize=4096)
def _has(font: ImageFont.FreeTypeFont, character: str) -> bool:
    return bytes(font.getmask(character)) != bytes(font.getmask(_NO_CHARACTER))


@lru_cache(maxsize=16)
def _fonts(size: int) -> tuple[ImageFont.FreeTypeFont, ...]:
    """Return the fonts of this machine, the preferred one first."""
    # Ultralytics requires Matplotlib, which ships DejaVu Sans; the font inside Pillow has little beyond ASCII.
    package = importlib.util.find_spec("matplotlib")
    places = (package.submodule_search_locations if package else None) or []
    names = [str(Path(place, "mpl-data/fonts/ttf/DejaVuSans.ttf")) for place in places]
    found = []
    for name in (*names, "DejaVuSans.ttf", *_SYSTEM_FONTS):
        try:
            found.append(ImageFont.truetype(name, size))
        except OSError:
            continue
    return tuple(found) or (cast(ImageFont.FreeTypeFont, ImageFont.load_default(size)),)
