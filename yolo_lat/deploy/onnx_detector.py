"""Object detection with an exported ONNX file on ONNX Runtime; needs neither torch nor Ultralytics."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from yolo_lat.deploy.postprocess import from_nms_free_output, from_raw_output
from yolo_lat.deploy.preprocess import check_image, letterbox, to_input, unletterbox
from yolo_lat.drawing import class_colour, draw_boxes
from yolo_lat.errors import UserError

INPUT_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
# ONNX Runtime's errors have no base class of their own.
ORT_ERRORS = tuple(e for e in vars(ort_state).values() if isinstance(e, type) and issubclass(e, Exception))


@dataclass(frozen=True, eq=False)
class Detections:
    """The objects found in one image, best score first.

    Attributes:
        boxes_xyxy: (n, 4) float32 corners, pixels of the original image.
        scores: (n,) float32 in 0..1.
        class_ids: (n,) int64.
        names: Class names by id.

    Raises:
        UserError: When an array has another shape or dtype.
    """

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray
    names: dict[int, str]

    def __post_init__(self) -> None:
        n = len(self.scores)
        for field, shape, dtype in (
            ("boxes_xyxy", (n, 4), np.float32),
            ("scores", (n,), np.float32),
            ("class_ids", (n,), np.int64),
        ):
            array = getattr(self, field)
            if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
                found = f"{getattr(array, 'dtype', type(array).__name__)} {np.shape(array)}"
                raise UserError(f"Detections.{field} is {found}; for {n} scores pass {np.dtype(dtype)} {shape}")

    def __len__(self) -> int:
        return len(self.scores)

    def draw(self, image_bgr: np.ndarray) -> np.ndarray:
        """Return a copy of the (H, W, 3) uint8 BGR image with every box, its class name and its score."""
        check_image(image_bgr)
        class_ids = self.class_ids.tolist()
        labels = [f"{self.names.get(i, i)} {score:.2f}" for i, score in zip(class_ids, self.scores, strict=True)]
        colours = [class_colour(class_id) for class_id in class_ids]
        # Worst first, so that the best stay on top.
        return draw_boxes(image_bgr, self.boxes_xyxy[::-1], labels[::-1], colours[::-1])


class OnnxDetector:
    """Run a detection model that was exported to ONNX by YOLO-LAT or Ultralytics; safe to call from several threads.

    Images are letterboxed to the model's fixed input size, or to `imgsz` where its size is dynamic. Class names and
    stride come from the metadata in the file; without names, classes are called "0", "1", ... (`names` stays empty
    for a model that needs no NMS, whose output does not tell the number of classes).

    Args:
        path: The `.onnx` file.
        device: "cpu", "cuda" or "cuda:N"; CUDA is used or refused, never replaced by the CPU.
        conf: Return boxes that score above this. A model exported with `nms=True` has its own threshold inside too.
        iou: Suppress a box that overlaps a better one of its class by more than this (raw outputs only).
        max_det: Most boxes to return for an image.
        imgsz: Input size in pixels, one int or (height, width), for a model of dynamic size; default: as exported.
        threads: CPU threads of one inference; default: ONNX Runtime's choice, one per physical core.

    Raises:
        UserError: For a missing or unreadable file, a foreign layout, an unavailable device, an unusable argument or
            image; the message says which and what to do.

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
    ) -> None:
        for name, value in (("conf", conf), ("iou", iou)):
            if not 0 <= value <= 1:
                raise UserError(f"{name}={value} is no threshold; pass a number from 0 to 1")
        for name, count in (("max_det", max_det), ("threads", threads)):
            if count is not None and count < 1:
                raise UserError(f"{name}={count} is too small; pass 1 or more")
        self.path, self.conf, self.iou, self.max_det = Path(path), conf, iou, max_det
        self._session = _open_session(self.path, device, threads)
        self._metadata = self._session.get_modelmeta().custom_metadata_map
        self._input, batch, fixed_size = self._read_input()
        self.imgsz = self._input_size(imgsz, fixed_size)
        # NMS inside the graph is unrolled for the batch of the export, also where the axis is called dynamic.
        self._batch = self._meta("batch", 1) if self._meta("args", {}).get("nms") else batch
        self.names, self._nms_free = self._read_output()

    @overload
    def __call__(self, images: np.ndarray) -> Detections: ...
    @overload
    def __call__(self, images: list[np.ndarray]) -> list[Detections]: ...
    def __call__(self, images: np.ndarray | list[np.ndarray]) -> Detections | list[Detections]:
        """Detect objects in one (H, W, 3) uint8 BGR image, or in each of a list of them, of any sizes.

        A list runs as one batch where the model's batch axis is dynamic, otherwise in batches of the fixed size.
        """
        if not isinstance(images, list):
            check_image(images)
            return self._detect([images])[0]
        for index, image in enumerate(images):
            check_image(image, f"images[{index}]")
        step = self._batch or max(len(images), 1)
        return [found for start in range(0, len(images), step) for found in self._detect(images[start : start + step])]

    def _detect(self, images: list[np.ndarray]) -> list[Detections]:
        """Run one batch, no larger than the model takes."""
        boxed = [letterbox(image, self.imgsz) for image in images]
        frames = [result.image for result in boxed]
        # A fixed batch is filled up with copies of the first image; zip drops their results.
        frames += frames[:1] * ((self._batch or 0) - len(frames))
        output = self._run(to_input(frames))[0]
        if self._nms_free:
            rows = from_nms_free_output(output, self.conf, self.max_det)
        else:
            rows = from_raw_output(output, self.conf, self.iou, self.max_det)
        return [
            Detections(
                unletterbox(found.xyxy, result.ratio, result.pad, image.shape[:2]),
                found.scores,
                found.class_ids,
                self.names,
            )
            for image, result, found in zip(images, boxed, rows, strict=False)
        ]

    def _run(self, batch: np.ndarray) -> list[np.ndarray]:
        """Return all outputs for a (B, 3, h, w) float32 input."""
        try:
            return self._session.run(None, {self._input.name: batch.astype(INPUT_DTYPES[self._input.type], copy=False)})
        except ORT_ERRORS as error:
            raise UserError(
                f"{self.path} cannot run on an input of shape {batch.shape} ({_first_line(error)}); "
                "use the image size and batch it was exported for, or export it again"
            ) from error

    def _meta(self, key: str, default: Any) -> Any:
        """Return one metadata value of the file; Ultralytics' exporter writes them as Python literals."""
        if key not in self._metadata:
            return default
        try:
            return ast.literal_eval(self._metadata[key])
        except (ValueError, SyntaxError) as error:
            raise UserError(f"metadata '{key}' of {self.path} is no Python literal; export the model again") from error

    def _read_input(self) -> tuple[Any, int | None, tuple[int, int] | None]:
        """Return the input node, its batch size and its (height, width), None where an axis is dynamic."""
        node, *others = self._session.get_inputs()
        if others or len(node.shape) != 4 or node.shape[1] != 3 or node.type not in INPUT_DTYPES:
            raise UserError(
                f"{self.path} takes {[(n.name, n.type, n.shape) for n in (node, *others)]}, not one float image batch "
                "of shape (B, 3, height, width); export a detection model with 'yolo-lat export format=onnx'"
            )
        batch, _, height, width = (side if isinstance(side, int) else None for side in node.shape)
        return node, batch, (height, width) if height and width else None

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
        size = tuple(self._meta("imgsz", ())) if imgsz is None else asked
        if not size:
            raise UserError(f"{self.path} has a dynamic input and names no size in its metadata; pass imgsz=")
        stride = self._meta("stride", 32)
        if len(size) != 2 or any(not isinstance(side, int) or side < 1 or side % stride for side in size):
            raise UserError(f"imgsz={imgsz} does not fit {self.path}; pass one or two positive multiples of {stride}")
        return size[0], size[1]

    def _read_output(self) -> tuple[dict[int, str], bool]:
        """Return the class names, and whether the output is (B, n, 6) boxes rather than (B, 4 + classes, anchors).

        A first run tells, and warms up the device: dynamic exports leave any axis of the output without a size.
        """
        outputs = self._run(np.zeros((self._batch or 1, 3, *self.imgsz), np.float32))
        task, names = self._metadata.get("task", "detect"), self._meta("names", {})
        names = dict(enumerate(names)) if isinstance(names, list) else names
        if task == "detect" and len(outputs) == 1 and outputs[0].ndim == 3:
            _, rows, columns = outputs[0].shape
            if columns == 6:
                return names, True
            if names and rows == 4 + len(names):
                return names, False
            # Without names, only more anchors than rows tell this layout from its transpose.
            if not names and 4 < rows < columns:
                return {class_id: str(class_id) for class_id in range(rows - 4)}, False
        raise UserError(
            f"{self.path} has task '{task}', {len(names)} class names and outputs of shape "
            f"{[output.shape for output in outputs]}, not one of (B, 4 + classes, anchors) or (B, n, 6); "
            "export a detection model with 'yolo-lat export format=onnx'"
        )


def _open_session(path: Path, device: str, threads: int | None) -> ort.InferenceSession:
    """Open the file on exactly the device asked for."""
    wanted = re.fullmatch(r"cpu|cuda(?::(\d+))?", device)
    if not wanted:
        raise UserError(f"device '{device}' is unknown; pass 'cpu', 'cuda' or 'cuda:N'")
    if not path.is_file():
        raise UserError(f"{path} is not a file; pass the path of an .onnx model")
    providers: list[Any] = ["CPUExecutionProvider"]
    if device != "cpu":
        if "CUDAExecutionProvider" not in ort.get_available_providers():
            raise UserError(
                f"device '{device}' needs CUDAExecutionProvider, which this onnxruntime {ort.__version__} lacks; "
                "uninstall onnxruntime and install onnxruntime-gpu, or pass device='cpu'"
            )
        if hasattr(ort, "preload_dlls"):  # from 1.21; finds the CUDA libraries of the nvidia-* wheels
            ort.preload_dlls()
        # TensorFloat-32 would round float32 models to 10 bits; whoever wants that speed exports to float16.
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": int(wanted[1] or 0), "use_tf32": 0}))
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors; its warnings on graph placement mean nothing to a user
    options.intra_op_num_threads = threads or 0
    try:
        # Without enable_fallback=0 the session retries on the CPU when the GPU fails, also in the middle of a run.
        session = ort.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    except ORT_ERRORS as error:
        raise UserError(
            f"onnxruntime {ort.__version__} cannot open {path} on {device} ({_first_line(error)}); if the file is "
            "damaged, no ONNX model or too new, export it again, and on CUDA check the number of the device"
        ) from error
    if device != "cpu" and "CUDAExecutionProvider" not in session.get_providers():
        raise UserError(
            f"CUDAExecutionProvider did not start for device '{device}'; install the CUDA and cuDNN versions that "
            f"onnxruntime {ort.__version__} needs (pip install onnxruntime-gpu[cuda,cudnn]), or pass device='cpu'"
        )
    return session


def _first_line(error: BaseException) -> str:
    """Return the part of an ONNX Runtime message that fits into a sentence."""
    return str(error).strip().splitlines()[0]
