"""The sizes of all models beside those of Ultralytics, counted the same way."""

from __future__ import annotations

import copy

from rich.table import Table
from ultralytics.nn.tasks import DetectionModel

from yolo_lat.engine.arguments import check_image_size
from yolo_lat.nn.complexity import count_gflops, count_parameters
from yolo_lat.nn.model import LatModel
from yolo_lat.nn.zoo import load_model_yaml, model_names
from yolo_lat.progress import show_progress

BASELINES = tuple(f"yolo{version}{scale}.yaml" for version in ("v8", "11", "12", "26") for scale in "ns")


def size_table(imgsz: int = 640, classes: int = 80) -> Table:
    """Count parameters and GFLOPs of every shipped model and of the baselines, and return them as a table.

    Parameters are given as trained and as deployed (fused, one branch of the head), GFLOPs as deployed.

    Args:
        imgsz: side of the image in pixels.
        classes: number of classes.

    Raises:
        UserError: a side that is no multiple of the models' largest stride.
    """
    check_image_size(imgsz, 32, rectangles=False)
    table = Table(
        "model",
        title=f"Parameters and GFLOPs at {imgsz} px, {classes} classes; one counter for all",
        title_justify="left",
    )
    for column in ("parameters, trained", "deployed", "GFLOPs"):
        table.add_column(column, justify="right")
    names = [*model_names(), *BASELINES]
    with show_progress("Counting", len(names)) as advance:
        for name in names:
            model = LatModel(load_model_yaml(name), nc=classes, verbose=False)
            deployed, gflops = count_deployed(model, imgsz)
            table.add_row(
                name.removesuffix(".yaml"),
                f"{count_parameters(model):,}",
                f"{deployed:,}",
                f"{gflops:.2f}",
                end_section=name.endswith("-x"),
            )
            advance()
    return table


def count_deployed(model: DetectionModel, imgsz: int) -> tuple[int, float]:
    """Return the parameters of a model's inference form, and its GFLOPs for one image of `imgsz` pixels."""
    deployed = copy.deepcopy(model)
    deployed.fuse(verbose=False)
    return count_parameters(deployed), count_gflops(deployed, imgsz)
