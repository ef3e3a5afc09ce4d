"""Images that would fill the memory: refused by their headers, before anything decodes them."""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile, TiffImagePlugin

from yolo_lat.data import images as images_module
from yolo_lat.data.images import check_pixels, image_size
from yolo_lat.deploy.benchmark.images import load_pictures
from yolo_lat.errors import UserError

SIDE = 1200  # 1.44 megapixels


@pytest.fixture
def no_decoder(monkeypatch):
    """Fail when anything decodes."""

    def fail(*_, **__):
        raise AssertionError("an image was decoded")

    for name in ("imread", "imdecode", "imdecodemulti"):
        monkeypatch.setattr(cv2, name, fail)
    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "load", fail)


@pytest.fixture
def one_megapixel(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    monkeypatch.setenv("YOLO_LAT_MAX_MEGAPIXELS", "1")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int) -> bytes:
    rows = zlib.compress(bytes(1 << 20))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def jpeg(width: int, height: int) -> bytes:
    content = bytearray(cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    at = content.index(b"\xff\xc0")
    content[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def bmp(width: int, height: int) -> bytes:
    return (
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 154, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(99)
    )


def webp(width: int, height: int) -> bytes:
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + sides + bytes(60)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff(width: int, height: int, tile: tuple[int, int] = (0, 0), pages: int = 1) -> bytes:
    """A grey TIFF of no data."""
    content, at = b"II*\0", 8
    for _ in range(pages):
        tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 277: 1}
        tags |= {322: tile[0], 323: tile[1], 324: 8, 325: 8} if tile[0] else {273: 8, 278: height, 279: 8}
        content += struct.pack("<I", at)
        content += struct.pack("<H", len(tags))
        content += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
        at += 2 + 12 * len(tags) + 4
    return content + bytes(4)


BOMBS = {
    "png": png(30_000, 30_000),
    "jpg": jpeg(60_000, 60_000),
    "bmp": bmp(20_000, -20_000),
    "webp": webp(16_383, 16_383),
    "tif": tiff(40_000, 40_000),
    "tile.tif": tiff(16, 16, tile=(65_536, 65_536)),
    "pages.tif": tiff(10_000, 10_000, pages=2),
    "empty-pages.tif": tiff(1, 1, pages=2000),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_by_their_headers(tmp_path, no_decoder, name):
    file = tmp_path / name
    file.write_bytes(BOMBS[name])
    for look in (image_size, check_pixels):
        with pytest.raises(UserError) as caught:
            look(file)
        assert str(caught.value) == (
            f"{file}: broken image, or one of more than 178 megapixels; make it smaller, or allow more by the "
            "environment variable YOLO_LAT_MAX_MEGAPIXELS"
        )


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".tif"])
def test_the_limit_is_that_of_the_environment(tmp_path, monkeypatch, one_megapixel, suffix):
    file = tmp_path / f"a{suffix}"
    cv2.imwrite(str(file), np.zeros((SIDE, SIDE, 3), np.uint8))
    with pytest.raises(UserError, match="more than 1 megapixels"):
        image_size(file)
    monkeypatch.setenv("YOLO_LAT_MAX_MEGAPIXELS", "2")
    assert image_size(file) == (SIDE, SIDE)


def test_a_higher_limit_holds_for_pillow_too(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    monkeypatch.setenv("YOLO_LAT_MAX_MEGAPIXELS", "2")
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((SIDE, SIDE, 3), np.uint8))
    assert image_size(tmp_path / "a.png") == (SIDE, SIDE)


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", "2000", "", "٣"])
def test_a_limit_that_is_none_is_refused(tmp_path, monkeypatch, text):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8, 3), np.uint8))
    monkeypatch.setenv("YOLO_LAT_MAX_MEGAPIXELS", text)
    with pytest.raises(UserError, match=r"^YOLO_LAT_MAX_MEGAPIXELS=.*: must be a whole number from 1 to 1073$"):
        image_size(tmp_path / "a.png")


def test_pages_of_a_tiff_count_together(tmp_path, one_megapixel):
    page = Image.new("L", (SIDE // 2, SIDE))
    page.save(tmp_path / "one.tif")
    page.save(tmp_path / "two.tif", save_all=True, append_images=[page])
    assert image_size(tmp_path / "one.tif") == (SIDE // 2, SIDE)
    with pytest.raises(UserError, match="more than 1 megapixels"):
        image_size(tmp_path / "two.tif")


def folder_with_a_bomb(root: Path) -> Path:
    for split in ("train", "val"):
        (root / "images" / split).mkdir(parents=True)
        (root / "images" / split / "a.png").write_bytes(BOMBS["png"])
    (root / "data.yaml").write_text(f"path: {root}\ntrain: images/train\nval: images/val\nnames: [a]\n")
    return root / "images/val"


@pytest.mark.parametrize("reader", ["train", "val", "predict", "predict many", "predict a list", "track", "benchmark"])
def test_every_reader_refuses_before_it_decodes(run, tmp_path, no_decoder, reader):
    from yolo_lat import YOLOLAT

    folder = folder_with_a_bomb(tmp_path / "data")
    data, source = tmp_path / "data/data.yaml", str(folder / "a.png")
    model = YOLOLAT(run.best)
    quiet = {"device": "cpu", "verbose": False, "project": tmp_path / "runs"}
    if reader == "predict many":
        for number in range(9):
            (folder / f"b{number}.png").write_bytes(BOMBS["png"])
    calls = {
        "train": lambda: model.train(data=data, epochs=1, imgsz=96, **quiet),
        "val": lambda: model.val(data=data, imgsz=96, single_cls=True, **quiet),
        "predict": lambda: model.predict(source, imgsz=96, **quiet),
        "predict many": lambda: model.predict(str(folder), imgsz=96, batch=9, **quiet),
        "predict a list": lambda: model.predict([source], imgsz=96, **quiet),
        "track": lambda: model.track(source, imgsz=96, **quiet),
        "benchmark": lambda: load_pictures(None, str(folder), 0),
    }
    with pytest.raises(UserError, match=r"megapixels|decompression bomb"):
        calls[reader]()


def test_suffixes_that_we_do_not_list_are_looked_at_by_prediction_too(run, tmp_path, no_decoder):
    from yolo_lat import YOLOLAT

    (tmp_path / "a.mpo").write_bytes(BOMBS["jpg"])
    with pytest.raises(UserError, match="megapixels"):
        YOLOLAT(run.best).predict(str(tmp_path / "a.mpo"), device="cpu", verbose=False)


def test_one_header_is_read_for_an_image_of_an_ordinary_size(tmp_path, no_decoder):
    """The check itself decodes nothing."""
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    Image.new("RGB", (64, 48)).save(tmp_path / "a.tif")
    for name in ("a.png", "a.tif"):
        check_pixels(tmp_path / name)
    assert images_module.most_pixels() == 178e6
