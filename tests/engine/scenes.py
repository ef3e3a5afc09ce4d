"""Made-up ground truth and detections, and pycocotools called by hand."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import yaml
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from yolo_lat.data.labels import DetectionSplit, ImageLabels, image_labels
from yolo_lat.engine.evaluate import COCO_NUMBERS

CATEGORIES = (3, 7, 11)


def official(truth: dict, detections: list[dict], folder: Path) -> dict[str, float]:
    """The twelve numbers from files, as pycocotools' own example computes them."""
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "found.json").write_text(json.dumps(detections))
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO(str(folder / "truth.json"))
        evaluation = COCOeval(gt, gt.loadRes(str(folder / "found.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(COCO_NUMBERS, evaluation.stats.tolist(), strict=True))


def scene(seed: int, images: int = 6, crowds: bool = False, classes: int = 3) -> DetectionSplit:
    """Random boxes of all three COCO sizes; the third class is without ground truth where `classes` is 2."""
    rng = np.random.default_rng(seed)
    labels = []
    for number in range(images):
        n = int(rng.integers(0, 9))
        boxes = np.concatenate([rng.uniform(0, 300, (n, 2)), rng.uniform(5, 200, (n, 2))], axis=1)
        areas = boxes[:, 2] * boxes[:, 3] * rng.uniform(0.4, 1, n)
        crowd = rng.random(n) < (0.4 if crowds else 0)
        labels.append(
            ImageLabels(Path(f"{number}.jpg"), 100 + number, 640, 480, rng.integers(0, classes, n), boxes, areas, crowd)
        )
    return DetectionSplit("scene", ("a", "b", "c"), CATEGORIES, labels)


def guesses(split: DetectionSplit, seed: int, spare: int = 3) -> list[dict]:
    """Detections near the ground truth, some of the wrong class, and `spare` false ones an image."""
    rng = np.random.default_rng(seed)
    rows = []
    for image in split.images:
        boxes = image.boxes_xywh + rng.normal(0, 4, image.boxes_xywh.shape)
        boxes = np.concatenate([boxes, rng.uniform(5, 200, (spare, 4))])
        classes = np.concatenate([image.class_ids, rng.integers(0, 3, spare)])
        for box, class_id in zip(boxes, classes, strict=True):
            if rng.random() < 0.1:
                class_id = rng.integers(0, 3)
            row = {"image_id": image.image_id, "category_id": CATEGORIES[class_id], "bbox": box.tolist()}
            rows.append(row | {"score": float(rng.random())})
    return rows


def drawn(*images: list[tuple], names: tuple[str, ...] = ("a", "b", "c")) -> DetectionSplit:
    """A split drawn by hand: an image is a list of (class, box xywh) or (class, box xywh, crowd)."""
    labels = []
    for number, rows in enumerate(images, start=1):
        classes, boxes, crowd = [row[0] for row in rows], [row[1] for row in rows], [len(row) > 2 for row in rows]
        labels.append(image_labels(Path(f"{number}.jpg"), number, (1000, 1000), classes, boxes, crowd))
    return DetectionSplit("drawn val", names, tuple(range(1, len(names) + 1)), labels)


def found(*images: list[tuple]) -> list[dict]:
    """Detections drawn by hand: an image is a list of (class, box xywh, score)."""
    return [
        {"image_id": i + 1, "category_id": label + 1, "bbox": list(box), "score": score}
        for i, rows in enumerate(images)
        for label, box, score in rows
    ]


def unlabelled(data: Path, folder: Path) -> Path:
    """The data YAML of the set `data` with its val images as a test split whose annotations are kept back."""
    content = json.loads((data.parent / "annotations/val.json").read_text())
    del content["annotations"]
    (folder / "image_info.json").write_text(json.dumps(content))
    root = data.parent
    yaml_file = folder / "held_back.yaml"
    annotations = {split: f"{root}/annotations/{split}.json" for split in ("train", "val")}
    splits = {"train": "images/train", "val": "images/val", "test": "images/val"}
    annotations["test"] = str(folder / "image_info.json")
    yaml_file.write_text(yaml.safe_dump({"path": str(root), **splits, "coco_json": annotations}))
    return yaml_file
