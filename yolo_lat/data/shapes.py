"""Shapes: a synthetic detection data set, drawn on first use, for training and evaluating without a download.

An image is a textured background with clutter, and up to ten geometric objects that occlude each other and are cut by
the border. Everything follows from the seed, so two machines with the same library versions draw the same set.
"""

from __future__ import annotations

import colorsys
import errno
import itertools
import json
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.progress import Progress

from yolo_lat.errors import UserError
from yolo_lat.unfinished import unfinished_folder

__all__ = ["CLASSES", "ShapeBox", "ShapesConfig", "generate", "render"]

SPLITS = ("train", "val")
MIN_IMAGE_SIZE = 32
EMPTY_SHARE = 0.02  # of the images, without any object
MAX_OBJECTS = 10
SIDE_RANGE = (0.08, 0.6)  # longer side of an object's box over the longer side of the image
MIN_SIDE = 8.0  # px; below it the classes cannot be told apart
MAX_CUT = 0.3  # of an object's width or height, beyond the border
FAVOURED_HUE = 0.8  # of the objects have the hue of their class, as ripe tomatoes have; the rest have any colour
MIN_VISIBLE = 0.25  # of an object's pixels inside the image; an object more hidden than that is left out
SUPERSAMPLE = 4
FIXED_POINT_BITS = 4  # fractional bits of the coordinates given to OpenCV
FORMAT = 2  # raise it when the drawing changes, so that sets made before are made anew

DATA_YAML = """\
# Synthetic shapes, made by yolo_lat.data.shapes; the paths are relative to this file, the names come from the JSON.
train: images/train
val: images/val
coco_json: {train: annotations/train.json, val: annotations/val.json}
"""


@dataclass(frozen=True)
class ShapesConfig:
    """What a set consists of.

    Attributes:
        train: images in the training split.
        val: images in the validation split.
        image_size: longer side of every image in px; the aspect varies from 3:4 to 4:3.
        seed: a natural number; image i of a split depends on it and on `image_size`, not on the counts.

    Raises:
        UserError: for a value out of range.
    """

    train: int = 600
    val: int = 120
    image_size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        lowest = {"train": 1, "val": 1, "image_size": MIN_IMAGE_SIZE, "seed": 0}
        for name, minimum in lowest.items():
            if (value := getattr(self, name)) < minimum:
                raise UserError(f"shapes: {name} is {value}, use {minimum} or more")


@dataclass(frozen=True)
class ShapeBox:
    """Ground truth of one object: what of it lies inside the image, whether hidden by others or not.

    Attributes:
        class_id: index into `CLASSES`.
        xyxy: left, top, right, bottom in px, to a quarter of a pixel.
        area: pixels of the mask.
    """

    class_id: int
    xyxy: tuple[float, float, float, float]
    area: int


@dataclass(frozen=True, eq=False)
class _Cutout:
    """An object placed in the image but not yet coloured: `(h, w)` float32 coverages in 0..1 and their corner in px."""

    left: int
    top: int
    body: np.ndarray
    outline: np.ndarray
    box: ShapeBox

    @property
    def mask(self) -> np.ndarray:
        return self.body >= 0.5

    @property
    def region(self) -> tuple[slice, slice]:
        height, width = self.body.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def _polar(degrees: np.ndarray, radius: float | np.ndarray = 1.0, centre_x: float = 0.0) -> np.ndarray:
    """Points `(n, 2)` at the given angles around `(centre_x, 0)`."""
    angle = np.radians(degrees)
    return np.stack([centre_x + radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _regular(corners: int, radius: float | np.ndarray = 1.0) -> np.ndarray:
    return _polar(np.arange(corners) * 360 / corners, radius)


def _crescent() -> np.ndarray:
    """The unit disc less a disc of radius 0.8 around (0.55, 0)."""
    offset, bite = 0.55, 0.8
    x = (1 + offset**2 - bite**2) / (2 * offset)  # where the two circles meet
    outer = np.degrees(np.arccos(x))
    inner = np.degrees(np.arccos((x - offset) / bite))
    return np.concatenate(
        [_polar(np.linspace(outer, 360 - outer, 48)), _polar(np.linspace(360 - inner, inner, 48), bite, offset)]
    )


_CROSS = np.array(
    [(1, 3), (1, 1), (3, 1), (3, -1), (1, -1), (1, -3), (-1, -3), (-1, -1), (-3, -1), (-3, 1), (-1, 1), (-1, 3)]
) / np.sqrt(10)

# Contours `(n, 2)` around the origin, filled by the even-odd rule.
_CONTOURS: dict[str, list[np.ndarray]] = {
    "circle": [_regular(64)],
    "square": [_polar(np.arange(45, 360, 90))],  # sides along the axes, so that stretching makes it a rectangle
    "triangle": [_regular(3)],
    "star": [_regular(10, np.tile([1.0, 0.42], 5))],
    "ring": [_regular(64), _regular(64, 0.55)],
    "cross": [_CROSS],
    "hexagon": [_regular(6)],
    "crescent": [_crescent()],
}
CLASSES: tuple[str, ...] = tuple(_CONTOURS)


def _deform(rng: np.random.Generator, contours: list[np.ndarray], side: float) -> list[np.ndarray]:
    """Turn, stretch and tilt contours; their joint bounding box starts at the origin, its longer side is `side` px."""
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    stretch = np.array([1.0, rng.uniform(0.75, 1.0)])
    tilt = rng.uniform(-0.2, 0.2, 2)
    turned = [points * stretch @ turn for points in contours]
    seen = [points / (1 + points @ tilt)[:, None] for points in turned]  # in perspective
    low, high = np.concatenate(seen).min(0), np.concatenate(seen).max(0)
    return [(points - low) * (side / (high - low).max()) for points in seen]


def _fixed_point(paths: list[np.ndarray]) -> list[np.ndarray]:
    """Points in px as OpenCV's drawing functions take them."""
    return [np.round(points * 2**FIXED_POINT_BITS).astype(np.int32) for points in paths]


def _cut_out(rng: np.random.Generator, class_id: int, height: int, width: int) -> _Cutout:
    """Draw the coverage of one object at a random place of an image of `height` x `width` px."""
    long_side = max(height, width)
    smallest = max(MIN_SIDE, SIDE_RANGE[0] * long_side)
    side = float(np.exp(rng.uniform(np.log(smallest), np.log(SIDE_RANGE[1] * long_side))))
    contours = _deform(rng, _CONTOURS[CLASSES[class_id]], side)
    extent = np.concatenate(contours).max(0)
    image_extent = np.array([width, height])
    origin = rng.uniform(-MAX_CUT * extent, image_extent - (1 - MAX_CUT) * extent)

    left, top = np.floor(np.maximum(origin, 0)).astype(int)
    right, bottom = np.ceil(np.minimum(origin + extent, image_extent)).astype(int)
    # OpenCV counts from the centre of the first (fine) pixel, we count from its corner: hence the half.
    polygons = _fixed_point([(points + origin - (left, top)) * SUPERSAMPLE - 0.5 for points in contours])
    body = np.zeros(((bottom - top) * SUPERSAMPLE, (right - left) * SUPERSAMPLE), np.uint8)
    outline = np.zeros_like(body)
    cv2.fillPoly(body, polygons, 255, shift=FIXED_POINT_BITS)
    if rng.random() < 0.6:
        thickness = max(1, round(rng.uniform(0.02, 0.12) * side * SUPERSAMPLE))
        cv2.polylines(outline, polygons, True, 255, thickness, shift=FIXED_POINT_BITS)

    x, y, box_width, box_height = np.array(cv2.boundingRect(body)) / SUPERSAMPLE
    xyxy = (float(left + x), float(top + y), float(left + x + box_width), float(top + y + box_height))
    body, outline = (
        cv2.resize(plane, (right - left, bottom - top), interpolation=cv2.INTER_AREA) / np.float32(255)
        for plane in (body, outline)
    )
    return _Cutout(int(left), int(top), body, outline, ShapeBox(class_id, xyxy, int((body >= 0.5).sum())))


def _front_to_back(cutouts: list[_Cutout], height: int, width: int) -> list[_Cutout]:
    """Return the cutouts, nearest first, that stay visible enough; one left out is not painted and so hides nothing."""
    covered = np.zeros((height, width), bool)
    kept = []
    for cutout in cutouts:
        under = covered[cutout.region]
        if (cutout.mask & ~under).sum() >= MIN_VISIBLE * cutout.box.area:
            under |= cutout.mask
            kept.append(cutout)
    return kept


def _ramp(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Two coordinates `(H, W)` along random perpendicular axes; one unit is the longer side."""
    x = np.arange(width, dtype=np.float32) / max(height, width)
    y = np.arange(height, dtype=np.float32)[:, None] / max(height, width)
    angle = rng.uniform(0, 2 * math.pi)
    cos, sin = math.cos(angle), math.sin(angle)
    return x * cos + y * sin, y * cos - x * sin


def _unit(field: np.ndarray) -> np.ndarray:
    """Shift and scale to 0..1."""
    low, high = field.min(), field.max()
    return (field - low) / max(high - low, 1e-6)


def _wave(rng: np.random.Generator, coordinate: np.ndarray, cycles: float) -> np.ndarray:
    """A wave in -1..1, anything from a sine to almost a square wave."""
    return np.clip(np.sin(coordinate * (2 * np.pi * cycles) + rng.uniform(0, 6.3)) * rng.uniform(1, 6), -1, 1)


def _gradient(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return _unit(_ramp(rng, height, width)[0])


def _fractal_noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    cells, roughness = rng.uniform(2, 8), rng.uniform(0.4, 0.75)
    field = np.zeros((1, 1), np.float32)
    for octave in range(4):
        count = round(cells * 2**octave)
        finer = rng.random((count, count), dtype=np.float32) * roughness**octave
        field = finer + cv2.resize(field, (count, count), interpolation=cv2.INTER_CUBIC)
    return _unit(cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC))


def _blotches(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return np.clip((_fractal_noise(rng, height, width) - 0.5) * rng.uniform(4, 12) + 0.5, 0, 1)


def _stripes(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return _wave(rng, _ramp(rng, height, width)[0], rng.uniform(2, 14)) / 2 + 0.5


def _checker(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    across, along = _ramp(rng, height, width)
    cycles = rng.uniform(2, 8)
    return _wave(rng, across, cycles) * _wave(rng, along, cycles) / 2 + 0.5


_FIELDS = (_gradient, _fractal_noise, _blotches, _stripes, _checker)  # each `(H, W)` float32 in 0..1


def _texture(rng: np.random.Generator, colour: np.ndarray, contrast: float, height: int, width: int) -> np.ndarray:
    """A texture `(H, W, 3)` float32 between `colour` and another about `contrast` grey levels away."""
    field = _FIELDS[rng.integers(len(_FIELDS))](rng, height, width)
    step = rng.normal(0, contrast, 3).astype(np.float32)
    # Plane by plane: broadcasting over a last axis of three is several times slower.
    return cv2.merge([field * step[i] + (colour[i] - step[i] / 2) for i in range(3)])


def _colour(rng: np.random.Generator) -> np.ndarray:
    """A BGR colour `(3,)` float32, from almost grey to vivid."""
    grey, vivid, saturation = rng.uniform(10, 245), rng.uniform(10, 245, 3), rng.uniform(0.2, 1)
    return (grey + (vivid - grey) * saturation).astype(np.float32)


def _class_colour(rng: np.random.Generator, class_id: int) -> np.ndarray:
    """A BGR colour `(3,)` float32 near the hue of a class."""
    hue = class_id / len(CLASSES) + rng.normal(0, 0.03)
    red_green_blue = colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.45, 1), rng.uniform(0.45, 1))
    return np.array(red_green_blue[::-1], np.float32) * 255


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A texture under uneven light, `(H, W, 3)` float32, with clutter that is no object: lines, arcs and scribbles."""
    image = _texture(rng, _colour(rng), 70, height, width)
    image *= 0.75 + 0.5 * _fractal_noise(rng, height, width)[..., None]
    mean = cv2.mean(image)[:3]
    long_side = max(height, width)
    for _ in range(rng.integers(0, 9)):
        line = rng.normal(0, 0.3, (2, 2))
        arc = _polar(rng.uniform(0, 360) + np.linspace(0, rng.uniform(40, 150), 24), rng.uniform(0.04, 0.3))
        scribble = rng.normal(0, 0.02, (rng.integers(3, 9), 2))
        path = (line, arc, scribble)[rng.integers(3)] * long_side + rng.uniform(0, (width, height))
        colour, thickness = rng.normal(mean, 60).tolist(), max(1, round(rng.uniform(0.003, 0.016) * long_side))
        cv2.polylines(image, _fixed_point([path]), False, colour, thickness, cv2.LINE_AA, FIXED_POINT_BITS)
    return image


def _paint(rng: np.random.Generator, image: np.ndarray, cutout: _Cutout) -> None:
    """Colour and shade an object and lay it over `image` `(H, W, 3)` float32, in place."""
    under = image[cutout.region]
    behind = cv2.mean(under)[:3]
    if rng.random() < FAVOURED_HUE:
        colour = _class_colour(rng, cutout.box.class_id)
    else:  # the most striking of three: most such objects stand out, some are camouflaged
        colour = max((_colour(rng) for _ in range(3)), key=lambda candidate: float(np.abs(candidate - behind).sum()))
    height, width = cutout.body.shape
    fill = _texture(rng, colour, rng.choice([0, 25, 80]), height, width)
    fill += (_colour(rng) - fill) * cutout.outline[..., None]
    fill *= rng.uniform(0.6, 1) + 0.4 * _gradient(rng, height, width)[..., None]
    under += (fill - under) * cutout.body[..., None]


def _develop(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Vary sharpness, contrast, brightness and noise as cameras do; float32 in, uint8 out."""
    if (sigma := rng.uniform(-0.6, 0.9)) > 0.2:
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    contrast, brightness, noisiness = rng.uniform(0.75, 1.15), rng.uniform(98, 158), rng.uniform(0, 30)
    noise = rng.integers(0, 256, image.shape, np.uint8).astype(np.float32)
    offset = brightness - 128 * contrast - noisiness / 2
    return cv2.addWeighted(image, contrast, noise, noisiness / 255, offset, dtype=cv2.CV_8U)


def render(rng: np.random.Generator, image_size: int) -> tuple[np.ndarray, list[ShapeBox]]:
    """Draw one image.

    Args:
        rng: decides everything; equal generators draw equal images.
        image_size: longer side in px, 32 or more.

    Returns:
        The image, BGR uint8 `(H, W, 3)`, and its objects from the nearest to the farthest.
    """
    aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    width, height = round(image_size * min(aspect, 1)), round(image_size / max(aspect, 1))
    count = 0 if rng.random() < EMPTY_SHARE else rng.integers(1, MAX_OBJECTS + 1)
    cutouts = [_cut_out(rng, int(rng.integers(len(CLASSES))), height, width) for _ in range(count)]
    cutouts = _front_to_back(cutouts, height, width)
    image = _background(rng, height, width)
    for cutout in reversed(cutouts):
        _paint(rng, image, cutout)
    return _develop(rng, image), [cutout.box for cutout in cutouts]


def _write_split(folder: Path, split: str, config: ShapesConfig, advance: Callable[[], None]) -> None:
    """Write the images and the COCO JSON of one split into `folder`, calling `advance` after every image."""
    (folder / "images" / split).mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, getattr(config, split) + 1):
        rng = np.random.default_rng((config.seed, SPLITS.index(split), number))
        image, boxes = render(rng, config.image_size)
        name = f"{number:06d}.jpg"
        _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 92])
        (folder / "images" / split / name).write_bytes(encoded.tobytes())
        height, width = image.shape[:2]
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for box in boxes:
            x1, y1, x2, y2 = box.xyxy
            place = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": box.area, "iscrowd": 0, "segmentation": []}
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": box.class_id + 1, **place}
            )
        advance()
    coco = {
        "info": {"description": "Synthetic shapes (yolo_lat.data.shapes)", "version": str(FORMAT)},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name, "supercategory": "shape"} for i, name in enumerate(CLASSES, 1)],
    }
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / f"{split}.json").write_text(json.dumps(coco), encoding="utf-8")


def _holds(root: Path, record: dict[str, int]) -> bool:
    """Whether `root` is a finished set made by `record`, the content of its `shapes.json`."""
    try:
        return bool(json.loads((root / "shapes.json").read_text(encoding="utf-8")) == record)
    except (OSError, ValueError):
        return False


def _in_use(root: Path) -> bool:
    """Whether `root` is a file, or holds something and no set; another process may replace it at any moment."""
    while True:
        try:
            place = root.stat().st_ino
            names = [path.name for path in root.iterdir()]
            if place == root.stat().st_ino:
                return bool(names) and "shapes.json" not in names
        except FileNotFoundError:
            return False
        except NotADirectoryError:
            return True


def _move_into_place(workshop: Path, root: Path, record: dict[str, int]) -> None:
    """Rename `workshop/new` to `root`, whatever set is there now; another process may do the same at any moment."""
    for attempt in itertools.count():
        with suppress(FileNotFoundError):
            root.rename(workshop / f"old{attempt}")
        try:
            (workshop / "new").rename(root)
            return
        except OSError as error:
            # Another process filled the place in between: its set serves as well if it is the same, else try again.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if _holds(root, record):
                return


def generate(root: Path, config: ShapesConfig = ShapesConfig(), progress: bool = True) -> Path:
    """Make the data set at `root`, unless it is there already; a set made by another config is replaced.

    The set appears at once and whole, or not at all. It holds `data.yaml` to train from, COCO JSON in `annotations/`,
    JPEGs in `images/{train,val}/`, and `shapes.json`, which says how it was made.

    Args:
        root: folder of the set; made with its parents where missing.
        config: what to draw.
        progress: show a progress bar on stderr.

    Returns:
        `root` as an absolute path.

    Raises:
        UserError: when `root` holds other files or cannot be written.
    """
    root = Path(root).resolve()
    record = asdict(config) | {"format": FORMAT}
    if _holds(root, record):
        return root
    try:
        if _in_use(root):
            raise UserError(f"shapes: {root} is in use for something else, choose an empty or a new folder")
        root.parent.mkdir(parents=True, exist_ok=True)
        with unfinished_folder(root) as workshop:
            made = workshop / "new"
            made.mkdir()
            with Progress(console=Console(stderr=True), disable=not progress) as bar:
                task = bar.add_task("Drawing shapes", total=config.train + config.val)
                for split in SPLITS:
                    _write_split(made, split, config, lambda: bar.advance(task))
            (made / "data.yaml").write_text(DATA_YAML, encoding="utf-8")
            (made / "shapes.json").write_text(json.dumps(record), encoding="utf-8")
            if not _holds(root, record):
                _move_into_place(workshop, root, record)
    except OSError as error:
        raise UserError(f"shapes: cannot write {root} ({error.strerror}), choose a folder you can write to") from error
    return root
