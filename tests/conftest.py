"""A small trained detector and small data sets, made once a session."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported: workers that each use every core wait for one another, ten times as long on two cores.
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import yaml
from hypothesis import settings
from small_training import EPOCHS, SIZE, TRAIN

import yolo_lat.engine.model  # noqa: F401 - which settles Ultralytics before any test imports it
from yolo_lat.cli import main
from yolo_lat.data.shapes import CLASSES, ShapesConfig, generate

settings.register_profile("patient", settings(), deadline=None)  # a busy machine is no fault of an example
settings.load_profile("patient")


@dataclass(frozen=True)
class Run:
    """A finished training run, and what `train` returned."""

    folder: Path
    data: Path
    metrics: Any

    @property
    def best(self) -> Path:
        return self.folder / "weights/best.pt"

    @property
    def safetensors(self) -> Path:
        return self.folder / "weights/best.safetensors"


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """24 training and 8 validation images of 96 px with COCO JSON; the data YAML."""
    return generate(tmp_path_factory.mktemp("data") / "shapes", ShapesConfig(24, 8, SIZE), progress=False) / "data.yaml"


@pytest.fixture(scope="session")
def run(shapes, tmp_path_factory) -> Run:
    """`yolo-lat-p` trained until it detects something, so that its numbers are not all zero."""
    from yolo_lat import YOLOLAT

    project = tmp_path_factory.mktemp("runs")
    metrics = YOLOLAT("yolo-lat-p").train(data=shapes, epochs=EPOCHS, project=project, name="train", **TRAIN)
    assert metrics.coco["AP"] > 0.001, "the trained fixture detects nothing, so the tests on it would prove nothing"
    return Run(project / "train", shapes, metrics)


@pytest.fixture(scope="session")
def onnx_file(run, tmp_path_factory) -> Path:
    """The trained detector, exported for 96 px."""
    return export(run, tmp_path_factory.mktemp("onnx"), "static")


@pytest.fixture(scope="session")
def dynamic_onnx_file(run, tmp_path_factory) -> Path:
    """The trained detector, exported for any size."""
    return export(run, tmp_path_factory.mktemp("onnx"), "dynamic", dynamic=True)


def export(run: Run, folder: Path, name: str, **arguments: Any) -> Path:
    from yolo_lat import YOLOLAT

    weights = shutil.copy(run.best, folder / f"{name}.pt")
    return Path(YOLOLAT(weights).export(imgsz=SIZE, **arguments))


@pytest.fixture(scope="session")
def txt_data(shapes, tmp_path_factory) -> Path:
    """The same images and boxes as `shapes` in the files of Ultralytics; the data YAML."""
    root = tmp_path_factory.mktemp("txt")
    for split in ("train", "val"):
        shutil.copytree(shapes.parent / "images" / split, root / "images" / split)
        write_labels(json.loads((shapes.parent / f"annotations/{split}.json").read_text()), root / "labels" / split)
    content = {"path": str(root), "train": "images/train", "val": "images/val", "names": list(CLASSES)}
    (root / "data.yaml").write_text(yaml.safe_dump(content))
    return root / "data.yaml"


def write_labels(coco: dict[str, Any], folder: Path) -> None:
    """Write a COCO JSON's boxes as YOLO rows, its category ids, 1, 2, ..., as class numbers from 0."""
    folder.mkdir(parents=True)
    for image in coco["images"]:
        w, h = image["width"], image["height"]
        rows = [
            f"{a['category_id'] - 1} {(x + bw / 2) / w!r} {(y + bh / 2) / h!r} {bw / w!r} {bh / h!r}"
            for a in coco["annotations"]
            if a["image_id"] == image["id"]
            for x, y, bw, bh in [a["bbox"]]
        ]
        (folder / image["file_name"]).with_suffix(".txt").write_text("\n".join(rows))


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """Run `yolo-lat` in an empty folder and in this process, for torch takes seconds to load; status and output."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> SimpleNamespace:
        with pytest.raises(SystemExit) as leave:
            main(list(map(str, words)))
        captured = capfd.readouterr()
        return SimpleNamespace(status=leave.value.code, out=captured.out, err=captured.err)

    return run
