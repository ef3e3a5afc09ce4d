"""The whole line in one go: make a data set, train, evaluate, export, and detect with ONNX Runtime."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from yolo_lat.data.reader import read_split
from yolo_lat.data.registry import datasets_dir, load_dataset
from yolo_lat.deploy import OnnxDetector
from yolo_lat.drawing import contact_sheet, save_picture
from yolo_lat.engine.model import YOLOLAT

# Found for some tens of epochs of 600 small images on a CPU; not a recipe for real data.
RECIPE = {
    "imgsz": 160,
    "batch": 8,
    "nbs": 8,
    "optimizer": "AdamW",
    "lr0": 0.008,
    "warmup_epochs": 1,
    "mosaic": 0.0,
    "scale": 0.3,
    "translate": 0.05,
    "close_mosaic": 0,
}
PICTURES = 12


def quickstart(directory: Path, epochs: int, seed: int) -> Path:
    """Train `yolo-lat-p` on the synthetic `shapes`, and print what came out and where it lies.

    Args:
        directory: results go here; an earlier quickstart in it is overwritten.
        epochs: of training; 24 take two to four minutes on two CPU cores, by their speed.
        seed: of training.

    Returns:
        The path of a picture that shows detections on images not trained on.

    Raises:
        UserError: a folder that cannot be written.
    """
    console, started = Console(), time.perf_counter()
    directory = directory.absolute()
    data = load_dataset("shapes")
    device = 0 if torch.cuda.is_available() else "cpu"
    console.print(f"[bold]1/4 Train[/bold] yolo-lat-p for {epochs} epochs on {device}; COCO's numbers follow")
    model = YOLOLAT("yolo-lat-p")
    metrics = model.train(
        data="shapes",
        epochs=epochs,
        seed=seed,
        device=device,
        project=str(directory),
        name="train",
        exist_ok=True,
        val=False,  # the last epoch is evaluated all the same
        verbose=False,
        **RECIPE,
    )
    weights = directory / "train/weights/best.safetensors"

    console.print("[bold]2/4 Export[/bold] to ONNX")
    exported = Path(YOLOLAT(weights).export(imgsz=RECIPE["imgsz"], target="cpu"))

    console.print("[bold]3/4 Detect[/bold] with ONNX Runtime on images held out from training")
    detector = OnnxDetector(exported)
    images: list[Any] = [cv2.imread(str(image.path)) for image in read_split(data, "val").images]
    milliseconds: list[float] = []
    drawn: list[np.ndarray] = []
    for image in images:
        begin = time.perf_counter()
        detections = detector(image)
        milliseconds.append(1e3 * (time.perf_counter() - begin))
        if len(drawn) < PICTURES:
            drawn.append(detections.draw(image))
    picture = directory / "detections.jpg"
    save_picture(picture, contact_sheet(drawn, columns=4, side=max(drawn[0].shape)))

    console.print("[bold]4/4 Results[/bold]")
    table = Table("what", "figure", title="YOLO-LAT quickstart", title_justify="left")
    table.add_column("where", overflow="fold")
    table.add_row("data set", f"{len(images)} val images, {len(data.names)} classes", _shown(datasets_dir() / "shapes"))
    table.add_row("COCO AP / AP50", f"{metrics.coco['AP']:.3f} / {metrics.coco['AP50']:.3f}", "by pycocotools, on val")
    table.add_row("weights", _size(weights), _shown(weights))
    table.add_row("ONNX", _size(exported), _shown(exported))
    median, worst = np.percentile(milliseconds, [50, 95])
    table.add_row("ONNX Runtime, CPU", f"{median:.1f} ms an image (p95 {worst:.1f})", "image in memory to boxes")
    table.add_row("pictures", f"{len(drawn)} annotated", _shown(picture))
    table.add_row("whole quickstart", f"{time.perf_counter() - started:.0f} s", _shown(directory))
    console.print(table)
    return picture


def _shown(path: Path) -> str:
    """Return the path from here, where that is shorter."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.2f} MB"
