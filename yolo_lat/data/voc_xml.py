"""Pascal VOC annotations: one XML file an image, classes by name, corners in pixels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from yolo_lat.data.faults import Fault, Report, shown
from yolo_lat.data.labels import MAX_PIXELS, ImageLabels, image_labels
from yolo_lat.errors import nearest

if TYPE_CHECKING:
    from yolo_lat.data.spec import DatasetSpec

_IMAGE_FOLDERS = ("JPEGImages", "images")


def xml_file(image: Path) -> Path:
    """Return where the annotation of an image lies.

    The last folder `JPEGImages` or `images` becomes `Annotations`, the suffix .xml.
    """
    parts = list(image.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] in _IMAGE_FOLDERS:
            parts[i] = "Annotations"
            break
    return Path(*parts[:-1], f"{image.stem}.xml")


def read_voc_labels(path: Path, image_id: int, size: tuple[int, int], spec: DatasetSpec, report: Report) -> ImageLabels:
    """Read the objects of the image `path`; those marked `difficult` become crowds, which VOC does not score either.

    `xmin` is the first pixel inside, counted from `spec.voc_first_pixel`, and `xmax` the last one, so that a box from 1
    to 60 covers the whole of a 60 pixel wide image (VOC devkit); counted from 0, corners are taken as coordinates.
    """
    file = xml_file(path)
    root = _parse(file, path, report)
    class_ids, boxes, crowd = [], [], []
    if root is not None:
        _check_size(root, file, size, report)
        class_of = {name: class_id for class_id, name in enumerate(spec.names)}
        for number, node in enumerate(root.iter("object"), start=1):
            name = _name(node)
            where = f"{file}, object {number} ({shown(name)})"
            if name not in class_of:
                hint = nearest(name, class_of) or "; correct it or add the name"
                report(Fault("class", file, f"{where}: is not among the {len(class_of)} names in {spec.file}{hint}"))
                continue
            try:
                box, difficult = _box(node, spec.voc_first_pixel), _flag(node, "difficult")
            except ValueError as error:
                report(Fault("labels", file, f"{where}: {error}"))
                continue
            class_ids.append(class_of[name])
            boxes.append(box)
            crowd.append(difficult)
    return image_labels(path, image_id, size, class_ids, boxes, crowd)


def voc_names(images: list[Path], report: Report) -> tuple[str, ...]:
    """Return the names of all objects in the annotations of `images`, in alphabetical order."""
    roots = (_parse(xml_file(path), path, report) for path in images)
    objects = (node for root in roots if root is not None for node in root.iter("object"))
    return tuple(sorted({_name(node) for node in objects} - {""}))


def _parse(file: Path, image: Path, report: Report) -> ElementTree.Element | None:
    try:
        root = ElementTree.parse(file).getroot()  # expat itself refuses entity bombs and fetches nothing
    except FileNotFoundError:
        report(Fault("labels", file, f"{file}: no such annotation of {image}; add it or remove the image"))
    except OSError as error:
        report(Fault("labels", file, f"{file}: cannot be read ({error.strerror}); make it a readable XML file"))
    except ElementTree.ParseError as error:
        problem, _, _ = str(error).partition(": line")
        report(Fault("labels", file, f"{file}, line {error.position[0]}: not valid XML ({problem}); mend the file"))
    except (LookupError, ValueError) as error:  # an encoding that there is none of
        report(Fault("labels", file, f"{file}: not readable as XML ({error}); mend the file"))
    else:
        if root.tag == "annotation":
            return root
        report(
            Fault("labels", file, f"{file}: holds {shown(root.tag)}, not the <annotation> of Pascal VOC; mend the file")
        )
    return None


def _check_size(root: ElementTree.Element, file: Path, size: tuple[int, int], report: Report) -> None:
    given = [(root.findtext(f"size/{side}") or "0").strip() for side in ("width", "height")]
    if given not in (["0", "0"], [str(side) for side in size]):  # some tools write no size, or zeros
        report(
            Fault(
                "size",
                file,
                f"{file}: gives the image as {' x '.join(map(shown, given))} pixels but it has {size[0]} x {size[1]}; "
                "correct the size or replace the image",
            )
        )


def _name(node: ElementTree.Element) -> str:
    return (node.findtext("name") or "").strip()


def _box(node: ElementTree.Element, first_pixel: int) -> list[float]:
    """Return (x, y, w, h) in pixels; a ValueError says what is wrong."""
    texts = [(node.findtext(f"bndbox/{key}") or "").strip() for key in ("xmin", "ymin", "xmax", "ymax")]
    try:
        corners = [float(text) for text in texts]
    except ValueError:
        corners = [math.nan]
    if not all(abs(corner) < MAX_PIXELS for corner in corners):
        raise ValueError(f"bndbox is {shown(texts)}, not the pixels xmin, ymin, xmax and ymax; mend it")
    x1, y1, x2, y2 = corners
    box = [x1 - first_pixel, y1 - first_pixel, x2 - x1 + first_pixel, y2 - y1 + first_pixel]
    if min(box[2:]) < 0:
        raise ValueError(f"xmax {x2:g} and ymax {y2:g} must not be below xmin {x1:g} and ymin {y1:g}; mend it")
    return box


def _flag(node: ElementTree.Element, key: str) -> bool:
    text = (node.findtext(key) or "0").strip()
    if text not in ("0", "1"):
        raise ValueError(f"{key} {shown(text)} is neither 0 nor 1; mend it")
    return text == "1"
