"""Object detection with an exported ONNX file on ONNX Runtime; needs neither torch nor Ultralytics."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any, overload

import numpy as np

from yolo_lat.deploy.detections import Detections
from yolo_lat.deploy.postprocess import (
    Boxes,
    from_best_class_output,
    from_nms_free_output,
    from_raw_output,
    is_threshold,
)
from yolo_lat.deploy.preprocess import check_image, letterbox, unletterbox, write_input
from yolo_lat.deploy.runner import RunnerPool
from yolo_lat.deploy.session import SessionSettings, open_session
from yolo_lat.errors import UserError

UINT8_INPUT = "uint8-bgr-nhwc"  # the metadata `preprocessing` of a model that takes images as OpenCV reads them
BEST_CLASS_OUTPUT = "best-class"  # the metadata `output` of a model that has taken the maximum over classes
MAX_BATCH = 32
_MOST = 2**31 - 1  # what ONNX Runtime counts threads with


class OnnxDetector:
    """Run a detection model that was exported to ONNX by YOLO-LAT or Ultralytics; safe to call from several threads.

    Images are letterboxed to the model's fixed input size, or to `imgsz` where its size is dynamic. Class names and
    stride come from the metadata in the file; without names, classes are called "0", "1", ... (`names` stays empty
    for a model whose output has six rows or columns, which do not tell the number of classes).

    The input is float32 or float16 of shape (B, 3, height, width), RGB with values 0..1; or uint8 of shape
    (B, height, width, 3), BGR, where the metadata has `preprocessing` = "uint8-bgr-nhwc". The output is one of

    - (B, 4 + classes, anchors): centre x, centre y, width and height in input pixels, then a score for every class;
    - (B, 6, anchors) where the metadata has `output` = "best-class": the box as before, the best score, its class;
    - (B, n, 6): x1, y1, x2, y2, score and class of boxes that need no NMS, best first.

    Args:
        path: The `.onnx` file.
        device: "cpu", "cuda" or "cuda:N"; CUDA is used or refused, never replaced by the CPU.
        conf: Return boxes that score above this. A model exported with `nms=True` has its own threshold inside too.
        iou: Suppress a box that overlaps a better one of its class by more than this (raw outputs only).
        max_det: Most boxes to return for an image.
        imgsz: Input size in pixels, one int or (height, width), for a model of dynamic size; default: as exported.
        threads: CPU threads of one inference; default: ONNX Runtime's choice, one per physical core.
        cuda_graph: Capture the model's CUDA kernels once for each batch size and replay them, which saves launching
            them one by one; threads then take turns, and batches are filled up to a power of two.
        max_batch: Most images of a list to run at once, for a model of dynamic batch; longer lists run in parts.
        settings: How to open the session, in place of `threads` and `cuda_graph`.
        box_vote: Replace a box that is kept by the mean, weighted by score, of all boxes of its class that overlap it
            by more than this (raw outputs only); 0.8 is usual, None leaves boxes as they are.

    Raises:
        UserError: For a missing or unreadable file, a foreign layout, an unavailable device, an unusable argument or
            image, or a model that no CUDA graph can hold; the message says which and what to do.

    Example:
        >>> detections = OnnxDetector("model.onnx", device="cuda:0")(image_bgr)
        >>> detections.boxes_xyxy.shape, detections.scores.shape, detections.class_ids.shape
        ((3, 4), (3,), (3,))
    """

    def __init__(
        self,
        path: str | Path,
        device: str = "cpu",
        conf: float = 0.25,
        iou: float = 0.7,
        max_det: int = 300,
        imgsz: int | Sequence[int] | None = None,
        threads: int | None = None,
        cuda_graph: bool = False,
        max_batch: int = MAX_BATCH,
        settings: SessionSettings | None = None,
        box_vote: float | None = None,
    ) -> None:
        for name, value in (("conf", conf), ("iou", iou), ("box_vote", box_vote)):
            if not is_threshold(value) and (value is not None or name != "box_vote"):
                raise UserError(f"{name}={value} is no threshold; pass a number from 0 to 1")
        for name, count in (("max_det", max_det), ("threads", threads), ("max_batch", max_batch)):
            if count is None and name == "threads":
                continue
            if isinstance(count, bool) or not isinstance(count, Integral) or not 1 <= count <= _MOST:
                raise UserError(f"{name}={count} is out of range; pass a whole number from 1 to {_MOST}")
        if not isinstance(path, str | Path):
            raise UserError(f"path={path!r}: must name an .onnx file, such as best.onnx")
        if not isinstance(device, str):
            raise UserError(f"device={device!r}: must be cpu, cuda or cuda:N, such as cuda:0")
        self.path, self.conf, self.iou, self.max_det, self.box_vote = Path(path), conf, iou, max_det, box_vote
        if settings and (threads or cuda_graph):
            raise UserError("settings= is given beside threads= or cuda_graph=, which it holds too; leave those out")
        settings = settings or SessionSettings(threads=threads, cuda_graph=cuda_graph)
        self._session = open_session(self.path, device, settings)
        self._pool = RunnerPool(self._session, device)
        self._metadata = self._session.get_modelmeta().custom_metadata_map
        self._channels_last, batch, fixed_size = self._read_input()
        self.imgsz = self._input_size(imgsz, fixed_size)
        # Ultralytics unrolls NMS for the batch of the export, also where the axis is called dynamic; our own exporter,
        # which names the output, does not.
        unrolled = self._meta("args", {}, dict).get("nms") and "output" not in self._metadata
        self._batch = self._meta("batch", 1, int) if unrolled else batch
        self._max_batch, self._cuda_graph = self._batch or max_batch, settings.cuda_graph
        self.names, self._decode = self._read_output()

    @overload
    def __call__(self, images: np.ndarray) -> Detections: ...
    @overload
    def __call__(self, images: list[np.ndarray]) -> list[Detections]: ...
    def __call__(self, images: np.ndarray | list[np.ndarray]) -> Detections | list[Detections]:
        """Detect objects in one (H, W, 3) uint8 BGR image, or in each of a list of them, of any sizes.

        A list runs as one batch of at most `max_batch` where the model's batch axis is dynamic, otherwise in batches of
        the fixed size.
        """
        if not isinstance(images, list):
            check_image(images)
            return self._detect([images])[0]
        for index, image in enumerate(images):
            check_image(image, f"images[{index}]")
        starts = range(0, len(images), self._max_batch)
        return [found for start in starts for found in self._detect(images[start : start + self._max_batch])]

    @property
    def stride(self) -> int:
        """What the sides of an input of dynamic size are multiples of, pixels."""
        return int(self._meta("stride", 32, int)) or 32

    def _detect(self, images: list[np.ndarray]) -> list[Detections]:
        """Run one batch, no larger than the model takes."""
        boxed = [letterbox(image, self.imgsz) for image in images]
        output = self._result([result.image for result in boxed])
        return [
            Detections(
                unletterbox(found.xyxy, result.ratio, result.pad, image.shape[:2]),
                found.scores,
                found.class_ids,
                self.names,
            )
            for image, result, found in zip(images, boxed, self._decode(output[: len(images)]), strict=True)
        ]

    def _result(self, frames: list[np.ndarray]) -> np.ndarray:
        """Return the output for letterboxed images, with a result for each or more."""
        output = self._run(frames)[0]
        if len(output) < len(frames):
            raise UserError(
                f"{self.path} takes {len(frames)} images at once and answers for {len(output)}; pass them one by one, "
                "or export it again with dynamic=true"
            )
        return output

    def _run(self, frames: list[np.ndarray]) -> list[np.ndarray]:
        """Return all outputs for letterboxed images; there may be more results than images."""
        batch = self._batch or len(frames)
        if self._cuda_graph and not self._batch:  # few sizes, since each has a graph of its own
            batch = min(1 << (batch - 1).bit_length(), self._max_batch)
        shape = (batch, *self.imgsz, 3) if self._channels_last else (batch, 3, *self.imgsz)
        try:
            with self._pool.lend(shape) as runner:
                # A batch is filled up with copies of its first image.
                write_input(frames + frames[:1] * (batch - len(frames)), runner.input)
                runner.upload()
                runner.run()
                return runner.outputs()
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from error

    def _meta(self, key: str, default: Any, *kinds: type) -> Any:
        """Return one metadata value of the file, of one of some kinds; Ultralytics' exporter writes Python literals."""
        if key not in self._metadata:
            return default
        try:
            value = ast.literal_eval(self._metadata[key])
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
            raise UserError(f"metadata '{key}' of {self.path} is no Python literal; export the model again") from error
        if not isinstance(value, kinds):
            raise UserError(f"metadata '{key}' of {self.path} is of an unknown kind; export the model again")
        return value

    def _read_input(self) -> tuple[bool, int | None, tuple[int, int] | None]:
        """Return whether channels come last, the batch size and the (height, width), None where an axis is dynamic."""
        node, *others = self._session.get_inputs()
        preprocessing = self._metadata.get("preprocessing")
        takes_bytes = preprocessing == UINT8_INPUT
        axes = [side if isinstance(side, int) else None for side in node.shape]
        if len(axes) == 4 and not others:
            batch, *image = axes
            channels = image.pop(-1 if takes_bytes else 0)
            dtypes = ("tensor(uint8)",) if takes_bytes else ("tensor(float)", "tensor(float16)")
            if channels == 3 and node.type in dtypes:
                height, width = image
                return takes_bytes, batch, (height, width) if height and width else None
        raise UserError(
            f"{self.path} takes {[(n.name, n.type, n.shape) for n in (node, *others)][:4]} with preprocessing="
            f"{preprocessing and preprocessing[:40]!r} in its metadata, not one float image batch of shape (B, 3, "
            f"height, width), nor one of uint8 and shape (B, height, width, 3) with preprocessing={UINT8_INPUT}; "
            "export a detection model with 'yolo-lat export format=onnx'"
        )

    def _input_size(self, imgsz: int | Sequence[int] | None, fixed_size: tuple[int, int] | None) -> tuple[int, int]:
        """Return the (height, width) to letterbox to."""
        asked: tuple[Any, ...] = tuple(imgsz) if isinstance(imgsz, Sequence) else (imgsz, imgsz)
        if fixed_size:
            if imgsz is not None and asked != fixed_size:
                raise UserError(
                    f"imgsz={imgsz} does not fit {self.path}, whose input is fixed at {fixed_size} (height, width); "
                    "leave imgsz out or export with dynamic=true"
                )
            return fixed_size
        size = tuple(self._meta("imgsz", (), list, tuple)) if imgsz is None else asked
        if not size:
            raise UserError(f"{self.path} has a dynamic input and names no size in its metadata; pass imgsz=")
        if len(size) != 2 or any(not isinstance(side, int) or side < 1 or side % self.stride for side in size):
            raise UserError(
                f"imgsz={imgsz} does not fit {self.path}; pass one or two positive multiples of {self.stride}"
            )
        return size[0], size[1]

    def _read_names(self) -> dict[int, str]:
        """Return the class names by id; ids may be written as texts and names as numbers."""
        names = self._meta("names", {}, dict, list)
        found: dict[int, str] = {}
        for key, name in names.items() if isinstance(names, dict) else enumerate(names):
            class_id = int(key) if isinstance(key, str) and key.isdecimal() else key
            if type(class_id) is not int or not isinstance(name, str | int | float):
                raise UserError(f"metadata 'names' of {self.path} are no texts by number; export the model again")
            found[class_id] = str(name)
        return found

    def _read_output(self) -> tuple[dict[int, str], Callable[[np.ndarray], list[Boxes]]]:
        """Return the class names, and what turns the output into boxes.

        A first run tells, and warms up the device: dynamic exports leave any axis of the output without a size.
        """
        outputs = self._run([np.zeros((*self.imgsz, 3), np.uint8)] * (self._batch or 1))
        task, names = self._metadata.get("task", "detect"), self._read_names()
        from_raw = partial(from_raw_output, conf=self.conf, iou=self.iou, max_det=self.max_det, box_vote=self.box_vote)
        if task == "detect" and len(outputs) == 1 and outputs[0].ndim == 3:
            _, rows, columns = outputs[0].shape
            if self._metadata.get("output") == BEST_CLASS_OUTPUT:
                if rows == 6:
                    return names, partial(from_best_class_output, **from_raw.keywords)
            elif columns == 6:
                if self.box_vote is not None:
                    raise UserError(
                        f"box_vote={self.box_vote}: {self.path} returns boxes that need no suppression, so none is "
                        "left to vote; leave it out, or export the model without nms"
                    )
                return names, partial(from_nms_free_output, conf=self.conf, max_det=self.max_det)
            elif names and rows == 4 + len(names):
                return names, from_raw
            # Without names, only more anchors than rows tell this layout from its transpose.
            elif not names and 4 < rows < columns:
                return {class_id: str(class_id) for class_id in range(rows - 4)}, from_raw
        raise UserError(
            f"{self.path} has task {task[:40]!r}, {len(names)} class names and outputs of shape "
            f"{[output.shape for output in outputs]}, not one of (B, 4 + classes, anchors), (B, n, 6) or, with "
            f"output={BEST_CLASS_OUTPUT} in its metadata, (B, 6, anchors); "
            "export a detection model with 'yolo-lat export format=onnx'"
        )
