"""Unusual images: training sees what an image viewer shows, or the file is refused in one sentence."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from ultralytics.cfg import get_cfg

from yolo_lat.data.dataset import LatDataset
from yolo_lat.data.images import image_size
from yolo_lat.data.labels import DetectionSplit
from yolo_lat.data.reader import read_split
from yolo_lat.data.registry import load_dataset
from yolo_lat.errors import UserError

WIDTH, HEIGHT = 64, 48
BOX = (8, 6, 24, 16)  # xyxy of the painted object


def picture() -> Image.Image:
    """A ground of three shades with one object, none of its colours grey and no symmetry."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:] = (30, 60, 120)
    pixels[32:, 40:] = (40, 110, 60)
    x1, y1, x2, y2 = BOX
    pixels[y1:y2, x1:x2] = (230, 150, 20)
    return Image.fromarray(pixels)


def grey() -> Image.Image:
    return picture().convert("L")


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def with_alpha(image: Image.Image) -> Image.Image:
    """The image, half transparent where the object is not."""
    x1, y1, x2, y2 = BOX
    alpha = np.full((HEIGHT, WIDTH), 128, np.uint8)
    alpha[y1:y2, x1:x2] = 255
    image.putalpha(Image.fromarray(alpha))
    return image


def another() -> Image.Image:
    return Image.new("RGB", (WIDTH, HEIGHT), (255, 0, 255))


def read(root: Path, rows: str = "0 0.25 0.2291667 0.25 0.2083333\n") -> DetectionSplit:
    """Read the images of `root` with the same label for each."""
    (root / "labels").mkdir(exist_ok=True)
    for image in (root / "images").iterdir():
        (root / "labels" / image.with_suffix(".txt").name).write_text(rows)
    (root / "data.yaml").write_text("train: images\nval: images\nnames: [thing]\n")
    return read_split(load_dataset(root / "data.yaml"), "val", progress=False)


def seen(split: DetectionSplit) -> np.ndarray:
    """Return the first image as training has it, RGB in its own size."""
    data = {"names": dict(enumerate(split.names)), "channels": 3}
    dataset = LatDataset(split, data=data, imgsz=WIDTH, augment=False, hyp=get_cfg(), batch_size=1, rect=False)
    pixels, size, _ = dataset.load_image(0)
    assert (pixels.dtype, pixels.shape[2]) == (np.uint8, 3)
    assert size == (split.images[0].height, split.images[0].width)
    item = dataset[0]["img"]
    assert tuple(item.shape) == (3, WIDTH, WIDTH)
    assert item.numpy().dtype == np.uint8
    return pixels[..., ::-1]


@pytest.fixture
def root(tmp_path):
    (tmp_path / "images").mkdir()
    return tmp_path


KINDS: dict[str, tuple[Callable[[], Image.Image], str, dict]] = {
    "rgb": (picture, "a.png", {}),
    "rgb-bmp": (picture, "a.bmp", {}),
    "rgb-lzw": (picture, "a.tif", {"compression": "tiff_lzw"}),
    "rgb-jpeg-tiff": (picture, "a.tiff", {"compression": "jpeg", "quality": 95}),
    "webp": (picture, "a.webp", {"lossless": True}),
    "grey": (grey, "a.png", {}),
    "grey-jpeg": (grey, "a.jpg", {"quality": 95}),
    "grey-tiff": (grey, "a.tif", {}),
    "grey-alpha": (lambda: with_alpha(grey()), "a.png", {}),
    "rgba": (lambda: with_alpha(picture()), "a.png", {}),
    "rgba-webp": (lambda: with_alpha(picture()), "a.webp", {"lossless": True, "exact": True}),
    "rgba-bmp": (lambda: with_alpha(picture()), "a.bmp", {}),
    "palette": (lambda: picture().quantize(8), "a.png", {}),
    "palette-transparent": (lambda: picture().quantize(8), "a.png", {"transparency": 0}),
    "palette-bmp": (lambda: picture().quantize(8), "a.bmp", {}),
    "palette-tiff": (lambda: picture().quantize(8), "a.tif", {}),
    "two-colours": (lambda: grey().point(lambda v: 255 * (v > 100)).convert("1"), "a.png", {}),
    "two-colours-fax": (
        lambda: grey().point(lambda v: 255 * (v > 100)).convert("1"),
        "a.tif",
        {"compression": "group4"},
    ),
    "cmyk-jpeg": (lambda: picture().convert("CMYK"), "a.jpg", {"quality": 95}),
    "cmyk-tiff": (lambda: picture().convert("CMYK"), "a.tif", {}),
    "pages": (picture, "a.tif", {"save_all": True, "append_images": [another(), another()]}),
    "grey-pages": (grey, "a.tif", {"save_all": True, "append_images": [another().convert("L")] * 2}),
    "pages-of-two-sizes": (picture, "a.tif", {"save_all": True, "append_images": [another().resize((9, 9))]}),
    "moving-webp": (picture, "a.webp", {"save_all": True, "append_images": [another()], "lossless": True}),
    "moving-png": (picture, "a.png", {"save_all": True, "append_images": [another()]}),
    "two-cameras": (picture, "a.jpg", {"format": "MPO", "save_all": True, "append_images": [another()], "quality": 95}),
    "png-named-jpg": (picture, "a.jpg", {"format": "PNG"}),
    "tiff-named-jpg": (picture, "a.jpg", {"format": "TIFF"}),
    "upper-case": (picture, "A.JPG", {"quality": 95}),
    "umlaut": (picture, "Zürich 猫.png", {}),
    "signs": (picture, "a #1 100%20 &+;'.png", {}),
    "dots": (picture, "a.b...png", {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_training_sees_what_pillow_shows(root, kind):
    make, name, options = KINDS[kind]
    make().save(root / "images" / name, **options)
    split = read(root)
    assert (split.images[0].width, split.images[0].height) == (WIDTH, HEIGHT)
    np.testing.assert_allclose(split.images[0].boxes_xyxy, [BOX], atol=0.01)
    with Image.open(root / "images" / name) as image:
        shown = np.asarray(image.convert("RGB"))
    np.testing.assert_allclose(seen(split).astype(int), shown.astype(int), atol=30)
    assert np.abs(seen(split).astype(int) - shown).mean() < 2


def test_transparent_tiffs_keep_what_is_opaque(root):
    with_alpha(picture()).save(root / "images/a.tif")
    x1, y1, x2, y2 = BOX
    assert (seen(read(root))[y1:y2, x1:x2] == (230, 150, 20)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_boxes_of_a_rotated_photo_lie_on_the_object_as_it_is_shown(root, orientation, suffix):
    options = {".jpg": {"quality": 95, "subsampling": 0}, ".webp": {"lossless": True}}.get(suffix, {})
    picture().save(root / f"images/a{suffix}", exif=exif(orientation), **options)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    upright = picture() if orientation == 1 else picture().transpose(undo[orientation])
    ys, xs = np.nonzero(np.asarray(upright)[..., 0] > 128)
    x1, y1, x2, y2 = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
    w, h = upright.size
    split = read(root, f"0 {(x1 + x2) / 2 / w} {(y1 + y2) / 2 / h} {(x2 - x1) / w} {(y2 - y1) / h}\n")
    assert (split.images[0].width, split.images[0].height) == (w, h)
    np.testing.assert_allclose(split.images[0].boxes_xyxy, [[x1, y1, x2, y2]], atol=1e-9)
    np.testing.assert_allclose(seen(split).astype(int), np.asarray(upright).astype(int), atol=30)


def test_an_orientation_that_there_is_none_of_counts_as_upright(root):
    picture().save(root / "images/a.jpg", exif=exif(9))
    assert image_size(root / "images/a.jpg") == (WIDTH, HEIGHT)
    assert seen(read(root)).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_of_16_bits_the_upper_8_are_seen(root, suffix, mode):
    pixels = np.asarray(picture().convert(mode))
    deep = pixels.astype(np.uint16) * 256 + 77
    cv2.imwrite(str(root / f"images/a{suffix}"), deep if mode == "L" else deep[..., ::-1])
    wanted = np.asarray(picture().convert(mode).convert("RGB"))
    np.testing.assert_allclose(seen(read(root)).astype(int), wanted.astype(int), atol=1)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
def test_an_image_of_one_pixel(root, suffix):
    Image.new("RGB", (1, 1), (10, 20, 30)).save(root / f"images/a{suffix}")
    split = read(root)
    assert (split.images[0].width, split.images[0].height) == (1, 1)
    assert seen(split).max() < 40


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "gif": (lambda file: picture().save(file.with_suffix(".jpg"), "GIF"), "holds GIF, whatever its suffix says"),
    "icon": (lambda file: picture().save(file.with_suffix(".png"), "ICO"), "holds ICO, whatever its suffix says"),
    "targa": (lambda file: picture().save(file.with_suffix(".bmp"), "TGA"), "holds TGA, whatever its suffix says"),
    "float": (lambda file: grey().convert("F").save(file), "a TIFF of mode F that OpenCV cannot read; convert it"),
    "int32": (lambda file: grey().convert("I").save(file), "a TIFF of mode I that OpenCV cannot read; convert it"),
    "float-rgb": (lambda file: cv2.imwrite(str(file), np.zeros((9, 9, 3), np.float32)), "broken image"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_training_would_not_see_is_refused(root, kind):
    write, problem = REFUSED[kind]
    write(root / "images/a.tif")
    with pytest.raises(UserError) as caught:
        read(root)
    assert str(caught.value).startswith(f"{root}/images/a.")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_formats_are_not_looked_at(root):
    picture().save(root / "images/a.png")
    picture().save(root / "images/b.gif")
    (root / "images/c.txt").write_text("notes")
    assert [image.path.name for image in read(root).images] == ["a.png"]
