"""A detector of coloured rectangles, whose boxes are exact, and short clips of such rectangles."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import onnx
from hand_made_onnx import save
from onnx import TensorProto, helper

SIZE = 96
RED, GREEN, BLUE = (0, 0, 255), (0, 255, 0), (255, 0, 0)


def rectangle_detector(path: Path) -> Path:
    """A detector for 96 px: one box around all that is red, one around all green, one around all blue, scores 0.9."""
    across, down = np.meshgrid(np.arange(SIZE, dtype=np.float32), np.arange(SIZE, dtype=np.float32))
    constants = {
        "two": np.float32([2]),
        "half": np.float32([0.5]),
        "score": np.float32([0.9]),
        "size": np.float32([SIZE]),
        "channels": np.array([1]),
        "image": np.array([2, 3]),
        "one": np.array([1]),
        "eye": np.eye(3, dtype=np.float32)[None],
        "right": across[None, None] + 1,
        "left": SIZE - across[None, None],
        "bottom": down[None, None] + 1,
        "top": SIZE - down[None, None],
    }
    node = helper.make_node
    nodes = [
        node("ReduceSum", ["images", "channels"], ["sum"], keepdims=1),
        node("Mul", ["images", "two"], ["twice"]),
        node("Sub", ["twice", "sum"], ["purity"]),
        node("Greater", ["purity", "half"], ["pure"]),
        node("Cast", ["pure"], ["mask"], to=TensorProto.FLOAT),
        node("ReduceMax", ["mask", "image"], ["present"], keepdims=0),
    ]
    for edge in ("right", "left", "bottom", "top"):
        nodes += [
            node("Mul", ["mask", edge], [f"{edge}_map"]),
            node("ReduceMax", [f"{edge}_map", "image"], [f"{edge}_most"], keepdims=0),
        ]
    for low, high, centre, length in (("left", "right", "cx", "w"), ("top", "bottom", "cy", "h")):
        nodes += [
            node("Sub", ["size", f"{low}_most"], [f"{low}_edge"]),
            node("Sub", [f"{high}_most", f"{low}_edge"], [length]),
            node("Add", [f"{high}_most", f"{low}_edge"], [f"{centre}_twice"]),
            node("Mul", [f"{centre}_twice", "half"], [centre]),
        ]
    nodes += [node("Unsqueeze", [name, "one"], [f"{name}_row"]) for name in ("cx", "cy", "w", "h", "present")]
    nodes += [
        node("Mul", ["present_row", "eye"], ["diagonal"]),
        node("Mul", ["diagonal", "score"], ["scores"]),
        node("Concat", ["cx_row", "cy_row", "w_row", "h_row", "scores"], ["output0"], axis=1),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ("batch", 3, SIZE, SIZE))
    result = helper.make_tensor_value_info("output0", TensorProto.FLOAT, ("batch", 7, 3))
    metadata = {"names": "{0: 'red', 1: 'green', 2: 'blue'}", "stride": "32", "imgsz": "[96, 96]", "task": "detect"}
    return save(
        path, nodes, [images], [result], metadata, [onnx.numpy_helper.from_array(v, k) for k, v in constants.items()]
    )


Scene = dict[tuple[int, int, int], tuple[int, int, int, int]]


def picture(scene: Scene, size: tuple[int, int] = (SIZE, SIZE)) -> np.ndarray:
    """Return a black BGR picture, width and height `size`, with rectangles x1, y1, x2, y2 by colour."""
    image = np.zeros((size[1], size[0], 3), np.uint8)
    for colour, (x1, y1, x2, y2) in scene.items():
        image[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)] = colour
    return image


def write_clip(
    path: Path,
    images: Iterator[np.ndarray] | list[np.ndarray],
    times_s: list[float] | None = None,
    rate: int = 25,
    options: dict[str, str] | None = None,
) -> Path:
    """Write H.264 at the times given, or one frame each 1 / rate seconds."""
    with av.open(str(path), "w") as container:
        stream = None
        for index, image in enumerate(images):
            if stream is None:
                stream = container.add_stream("libx264", rate=rate, options={"crf": "5", "bf": "0"} | (options or {}))
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt = "yuv444p" if options is None else "yuv420p"
                stream.codec_context.time_base = Fraction(1, 90_000)
            frame = av.VideoFrame.from_ndarray(image, format="bgr24")
            frame.pts = round(90_000 * (index / rate if times_s is None else times_s[index]))
            frame.time_base = Fraction(1, 90_000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def moving(frames: int, step: int = 1) -> list[np.ndarray]:
    """A red square that goes to the right and a green one that goes down."""
    return [
        picture(
            {
                RED: (4 + step * i % 72, 8, 20 + step * i % 72, 24),
                GREEN: (70, 4 + step * i % 72, 86, 20 + step * i % 72),
            }
        )
        for i in range(frames)
    ]
