"""Data sets with everything that a conversion can stumble over, and what is compared after it."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from yolo_lat.data.labels import DetectionSplit
from yolo_lat.data.reader import read_split
from yolo_lat.data.registry import load_dataset

SHARED = Path(__file__).parents[2].parent / "shared/data"
NAMES = ["Katze", "dining table", "ключ & <Schloß>", "7"]
FOLDERS = {
    "voc12": ("images/train", "images/val", "annotations/train.json", "annotations/val.json"),
    "groceries": ("images/train", "images/val", "annotations/train.json", "annotations/val.json"),
    "coco_ccby": ("images", "images", "instances_train.json", "instances_val.json"),
}


def shared(name: str, folder: Path) -> Path:
    """Return a YAML of one of the data sets for development; skip the test where they are not there."""
    if not (SHARED / name).is_dir():
        pytest.skip(f"no {SHARED / name}; the synthetic sets are tested all the same")
    train, val, train_json, val_json = FOLDERS[name]
    file = folder / f"{name}.yaml"
    content = {"path": str(SHARED / name), "train": train, "val": val}
    file.write_text(yaml.safe_dump(content | {"coco_json": {"train": train_json, "val": val_json}}))
    return file


def awkward_images(folder: Path) -> dict[str, tuple[int, int]]:
    """Save images of every kind below `folder`; returns their sizes as shown, by their names."""
    turned = Image.Exif()
    turned[0x0112] = 6
    rng = np.random.default_rng(len(folder.name))

    def noise(mode: str, bands: int) -> Image.Image:
        array = rng.integers(0, 256, (40, 60, bands) if bands > 1 else (40, 60), dtype=np.uint8)
        return Image.fromarray(array, mode)

    made = {
        "a.jpg": (noise("RGB", 3), {}),
        "Ünï cödé/a.jpg": (noise("RGB", 3), {"exif": turned}),
        "Ünï cödé/tief/图 1.png": (noise("L", 1), {}),
        "with space/a.jpg": (noise("CMYK", 4), {}),
        "with space/b.c.png": (noise("RGBA", 4), {}),
        "images/sixteen.png": (Image.fromarray(rng.integers(0, 65536, (40, 60), dtype=np.uint16)), {}),
        "empty.PNG": (noise("RGB", 3), {}),
    }
    for name, (image, options) in made.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / name, **options)
    return {name: (40, 60) if "exif" in options else (60, 40) for name, (_, options) in made.items()}


def awkward_coco(root: Path, seed: int = 0, crowds: bool = True) -> Path:
    """Write a COCO data set with such images and random boxes, ids with gaps, crowds, outline areas and licences."""
    rng = np.random.default_rng(seed)
    categories = [{"id": 3 * i + 5, "name": name, "supercategory": "thing"} for i, name in enumerate(NAMES)]
    for split in ("train", "val"):
        sizes = awkward_images(root / "images" / split)
        images, annotations = [], []
        for number, (name, (width, height)) in enumerate(sizes.items()):
            entry = {"id": 100 - 7 * number, "file_name": name, "width": width, "height": height}
            images.append(entry | {"license": 4, "flickr_url": "http://example.org/1"})
            for k in range(0 if name == "empty.PNG" else rng.integers(1, 6)):
                left, right = np.sort(rng.uniform(0, width, 2))
                top, bottom = np.sort(rng.uniform(0, height, 2))
                box = [left, top, right - left, bottom - top] if k else [0, 0, width, height]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": entry["id"],
                        "category_id": categories[rng.integers(len(NAMES))]["id"],
                        "bbox": list(map(float, box)),
                        "area": float(box[2] * box[3]),
                        "iscrowd": int(crowds and k == 2),
                    }
                )
        content = {"images": images, "annotations": annotations, "categories": categories}
        header = {"info": {"year": 2024}, "licenses": [{"id": 4, "name": "CC BY"}]}
        (root / f"{split}.json").write_text(json.dumps(header | content))
    content = {"train": "images/train", "val": "images/val", "coco_json": {"train": "train.json", "val": "val.json"}}
    (root / "data.yaml").write_text(yaml.safe_dump(content))
    return root / "data.yaml"


def read(data: str | Path, split: str = "train") -> DetectionSplit:
    return read_split(load_dataset(data), split, progress=False)


def assert_same(one: DetectionSplit, other: DetectionSplit, tolerance: float = 1e-9) -> None:
    """Both have the same pictures, by content, in the same order, with the same boxes, classes and crowds."""
    assert one.names == other.names
    assert len(one.images) == len(other.images)
    for a, b in zip(one.images, other.images, strict=True):
        assert a.path.name == b.path.name
        assert a.path.read_bytes() == b.path.read_bytes()
        assert (a.width, a.height) == (b.width, b.height)
        np.testing.assert_array_equal(a.class_ids, b.class_ids)
        np.testing.assert_array_equal(a.crowd, b.crowd)
        np.testing.assert_allclose(a.boxes_xywh, b.boxes_xywh, rtol=0, atol=tolerance)


def worst(one: DetectionSplit, other: DetectionSplit) -> float:
    """Return the largest difference between boxes, in pixels."""
    pairs = zip(one.images, other.images, strict=True)
    return max(np.abs(a.boxes_xywh - b.boxes_xywh).max(initial=0) for a, b in pairs)


def contents(folder: Path) -> Counter:
    """Return the image files below a folder by their bytes."""
    suffixes = {".jpg", ".png"}
    return Counter(file.read_bytes() for file in folder.rglob("*") if file.suffix.lower() in suffixes)
