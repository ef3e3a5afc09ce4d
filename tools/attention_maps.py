"""Draw what positions of a picture attend to in a model's cross-scale attention.

    python tools/attention_maps.py yolo-lat-n-voc12 street.jpg maps.jpg [--frame 40] [--points 0.3,0.6 0.7,0.5]

The picture may be a frame of a video. For each point, in shares of width and height, and each head it shows the weights
k(q, k_j) / sum_j k(q, k_j) of the positions of P4, brighter for more, in a scale of its own for each map. The model
itself never forms them: they are what its sums contain. Titles say what share of the weight lies on P5, and how many
times the mean weight the largest one is. The first panel has the detections and the points. Printed is how far the
weights of a position are from the mean of all positions' weights, by head: total variation, 0 where every position
attends to the same and at most 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from yolo_lat import YOLOLAT
from yolo_lat.deploy.preprocess import letterbox, to_input
from yolo_lat.errors import UserError
from yolo_lat.nn import CrossScaleELA
from yolo_lat.nn.attention import LOGIT_BOUND, ProjectedELA, split_heads

POINTS = ("0.3,0.6", "0.7,0.6")


def main() -> None:
    """Read the words, draw, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--frame", type=int, default=0, help="of a video, from 0")
    parser.add_argument("--points", nargs="+", default=POINTS, help="x,y in shares of width and height")
    parser.add_argument("--conf", type=float, default=0.25)
    given = parser.parse_args()
    try:
        points = [parse_point(text) for text in given.points]
        draw(given.model, read_picture(given.source, given.frame), points, given.conf, given.out)
    except UserError as error:
        print(f"attention_maps: {error}", file=sys.stderr)
        sys.exit(2)


def parse_point(text: str) -> tuple[float, float]:
    """Return x and y of `x,y`.

    Raises:
        UserError: not two shares of 0 to 1.
    """
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        x = y = -1.0
    if not (0 <= x < 1 and 0 <= y < 1):
        raise UserError(f"--points {text}: give x,y as shares of width and height, from 0 to below 1")
    return x, y


def read_picture(file: Path, frame: int) -> np.ndarray:
    """Return a picture, or a frame of a video, as (H, W, 3) uint8 BGR.

    Raises:
        UserError: nothing can be read.
    """
    image = cv2.imread(str(file)) if frame == 0 else None
    if image is None:
        video = cv2.VideoCapture(str(file))
        video.set(cv2.CAP_PROP_POS_FRAMES, frame)
        image = video.read()[1]
        video.release()
    if image is None:
        raise UserError(f"{file}: no picture, and no video with a frame {frame}; correct the path or --frame")
    return image


def draw(name: str, image_bgr: np.ndarray, points: list[tuple[float, float]], conf: float, out: Path) -> None:
    """Write the figure: detections and points on the left, a row of heads for each point on the right.

    Raises:
        UserError: a model without cross-scale ELA.
    """
    every, cells, size, boxed = attention_of(name, image_bgr, points, conf)
    variation = (every - every.mean(1, keepdim=True)).abs().sum(-1).mean(1) / 2
    print("total variation by head:", ", ".join(f"{value:.3f}" for value in variation))
    weights = every[:, cells].transpose(0, 1)
    heads, tokens = weights.shape[1], size[0] * size[1]
    height = 1.9 * len(points)
    figure = Figure(figsize=(3.2 + 2.4 * heads, height), layout="constrained", dpi=110)
    left, right = figure.subfigures(1, 2, width_ratios=(1.3, heads))
    axes = left.subplots()
    axes.imshow(boxed[..., ::-1])
    h, w = boxed.shape[:2]
    for number, (x, y) in enumerate(points):
        axes.plot([x * w], [y * h], "o", color=f"C{number}", markersize=7, markeredgecolor="white")
    axes.set_axis_off()
    axes.set_title(f"{name}: detections, points", fontsize=7)
    grey = cv2.cvtColor(cv2.cvtColor(image_bgr, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2RGB)
    panels = right.subplots(len(points), heads, squeeze=False)
    for number, (x, y) in enumerate(points):
        for head in range(heads):
            axes, row = panels[number][head], weights[number, head]
            axes.imshow(grey)
            shown = row[:tokens].reshape(size).numpy()
            axes.imshow(shown, cmap="inferno", alpha=0.65, extent=(0, w, h, 0), interpolation="nearest", vmin=0)
            axes.plot([x * w], [y * h], "o", color=f"C{number}", markersize=5, markeredgecolor="white")
            axes.set_axis_off()
            peak = float(row.max() * len(row))
            axes.set_title(f"head {head + 1}, {float(row[tokens:].sum()):.0%} on P5, peak {peak:.1f}", fontsize=6)
    out.parent.mkdir(parents=True, exist_ok=True)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    cv2.imwrite(str(out), np.asarray(canvas.buffer_rgba())[..., 2::-1])


@torch.no_grad()
def attention_of(
    name: str, image_bgr: np.ndarray, points: list[tuple[float, float]], conf: float
) -> tuple[Tensor, list[int], tuple[int, int], np.ndarray]:
    """Run a model and return the weights of its attention.

    Returns:
        (heads, tokens, tokens) weights of each query over the positions of P4 and then P5, the numbers of the positions
        of P4 that the points lie in, P4's height and width, and the picture with its detections.

    Raises:
        UserError: a model without cross-scale ELA.
    """
    model = YOLOLAT(name)
    boxed = model.predict(image_bgr, conf=conf, verbose=False, save=False, device="cpu")[0].plot()
    network = YOLOLAT(name).model.float().eval()  # as trained; that of a prediction is fused
    layer: Any = next((m for m in network.modules() if isinstance(m, CrossScaleELA)), None)
    if layer is None or not isinstance(layer.attention, ProjectedELA):
        raise UserError(f"model={name} has no cross-scale ELA to draw; give one of the family yolo-lat")
    seen: dict[str, Any] = {}
    layer.register_forward_pre_hook(lambda _, inputs: seen.update(size=tuple(inputs[0][0].shape[2:])))
    layer.attention.qkv.register_forward_hook(lambda _, __, qkv: seen.update(qkv=qkv))
    side = model.overrides.get("imgsz", 640)
    fitted = letterbox(image_bgr, (side, side), stride=int(max(network.stride)))
    network(torch.from_numpy(to_input([fitted.image])))
    q, k, _ = seen["qkv"].split(layer.attention.widths, dim=1)
    queries, keys = (split_heads(t.clamp(-LOGIT_BOUND, LOGIT_BOUND), layer.attention.heads)[0] for t in (q, k))
    height, width = seen["size"]
    cells = [place(point, image_bgr, fitted, (height, width)) for point in points]
    pairs = layer.attention.kernel.pairwise(queries, keys)
    return pairs / pairs.sum(-1, keepdim=True), cells, (height, width), boxed


def place(point: tuple[float, float], image_bgr: np.ndarray, fitted: Any, size: tuple[int, int]) -> int:
    """Return the number of P4's position that a point of the picture lies in."""
    (height, width), (h, w) = size, fitted.image.shape[:2]
    x = point[0] * image_bgr.shape[1] * fitted.ratio[0] + fitted.pad[0]
    y = point[1] * image_bgr.shape[0] * fitted.ratio[1] + fitted.pad[1]
    return int(y / h * height) * width + int(x / w * width)


if __name__ == "__main__":
    main()
