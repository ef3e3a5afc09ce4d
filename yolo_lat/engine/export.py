"""ONNX export: Ultralytics traces the float32 network, everything after that happens here, and the file proves itself.

    trace -> precision (float16 | INT8) -> output (raw | best class | NMS | NMS-free) -> input (float | bytes) -> check

The file appears under its name only when its results were found to be those of the PyTorch model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch
from onnx import ModelProto
from ultralytics.nn.modules import Detect
from ultralytics.utils import LOGGER

from yolo_lat.deploy.onnx_graph import dims_of, set_shape
from yolo_lat.deploy.onnx_half import to_half
from yolo_lat.deploy.onnx_input import take_bytes
from yolo_lat.deploy.onnx_int8 import CalibrationImages, quantise
from yolo_lat.deploy.onnx_output import best_class, embed_nms, flexible_top_k
from yolo_lat.engine import offline
from yolo_lat.engine.arguments import OWN_EXPORT_KEYS
from yolo_lat.engine.export_check import Check, Differences, check_tail
from yolo_lat.engine.export_data import calibration_files, check_files, compare_ap
from yolo_lat.engine.export_metadata import metadata_of, write_metadata
from yolo_lat.errors import UserError
from yolo_lat.nn.complexity import count_gflops, count_parameters
from yolo_lat.nn.layout import channels_last_graph
from yolo_lat.unfinished import whole_file

if TYPE_CHECKING:
    from yolo_lat.engine.model import YOLOLAT

PRECISIONS = {None: "fp32", 32: "fp32", 16: "fp16", 8: "int8"}
_OPSET = 13  # scales by channel


@dataclass(frozen=True)
class OnnxOptions:
    """What an ONNX export is to be.

    Attributes:
        precision: fp32, fp16 or int8.
        nms: True suppresses inside the graph, False takes the head that needs no suppression, None returns everything.
        preprocess: take bytes in place of floats.
        best_class: return each box's best class only.
        target: "gpu" or "cpu", which the order of the operations suits.
        data: for calibration and for pictures to check with.
        fraction: of the training images to calibrate with, a share up to 1 or a number; None for 300 at most.
    """

    precision: str
    nms: bool | None
    preprocess: bool
    best_class: bool
    target: str
    data: str | None
    fraction: float | None

    def __post_init__(self) -> None:
        if self.best_class and self.nms is not None:
            raise UserError(f"best_class=True is for raw outputs, and nms={self.nms} returns boxes already; drop one")

    @property
    def output(self) -> str:
        """Return the word for the layout of the output."""
        return {True: "nms", False: "nms-free", None: "best-class" if self.best_class else "raw"}[self.nms]


@dataclass(frozen=True)
class Export:
    """What an export wrote and found.

    Attributes:
        file: the ONNX file.
        differences: between PyTorch and the file.
        ap: average precision of the float32 and of the INT8 file, None for other precisions.
    """

    file: Path
    differences: Differences
    ap: tuple[float, float] | None = None

    def __str__(self) -> str:
        """Return one line for the log."""
        ap = f", AP {self.ap[0]:.4f} in fp32 and {self.ap[1]:.4f} in INT8" if self.ap else ""
        return f"exported {self.file}, {self.file.stat().st_size / 1e6:.2f} MB; {self.differences}{ap}"


@dataclass
class Trace:
    """The float32 network as Ultralytics traced it.

    Attributes:
        file: its ONNX file in a temporary folder.
        network: the fused module, on the CPU.
        args: of Ultralytics' exporter.
        imgsz: height and width, pixels.
        device: where the file is to be checked, "cpu" or "cuda:N".
        names: class names.
        parameters, gflops: of the network, for one image.
    """

    file: Path
    network: Any = None
    args: Any = None
    imgsz: tuple[int, int] = (0, 0)
    device: str = "cpu"
    names: dict[int, str] = field(default_factory=dict)
    parameters: int = 0
    gflops: float = 0.0

    @property
    def head(self) -> Detect:
        """Return the detection head."""
        return self.network.model[-1]

    def trials(self, pictures: int) -> list[tuple[tuple[int, int], int, int]]:
        """Return at which height and width, batch and number of images to check a file with so many pictures.

        A file of dynamic size is tried at another one too, about half as high and one stride wider, in larger batches.
        """
        (height, width), batch = self.imgsz, self.args.batch
        trials = [(self.imgsz, batch, pictures)]
        if self.args.dynamic:
            stride = int(max(self.network.stride))
            trials.append(((max(height // 2 // stride, 1) * stride, width + stride), batch + 1, batch + 1))
        return trials


def export_onnx(model: YOLOLAT, trace_with: Callable[..., Any], arguments: dict[str, Any], source: Path) -> Export:
    """Export to ONNX and check the file.

    Args:
        model: what is exported.
        trace_with: Ultralytics' export.
        arguments: of the export, checked, with Ultralytics' current names.
        source: the file is written beside it, named after it.

    Raises:
        UserError: arguments that do not go together, or a file whose results are not the model's; none is left then,
            and an older one of its name stays.
    """
    options, arguments = _options(model, arguments)
    target = source.with_name(source.stem + ("_int8" if options.precision == "int8" else "") + ".onnx")
    with tempfile.TemporaryDirectory(prefix="yolo-lat-export-") as folder:
        trace = _trace(model, trace_with, arguments, Path(folder) / f"{source.stem}.onnx", options)
        network = onnx.load(trace.file)
        ap = None
        pictures = check_files(options.data)
        if options.precision == "int8" and options.data:
            network, ap = _int8(model, trace, options, options.data, Path(folder))
        elif options.precision == "fp16":
            to_half(network)
        differences = _checked_network(network, trace, options, pictures, Path(folder))
        finished = _finish(network, trace, options)
        try:
            with whole_file(target) as partial:
                onnx.save(finished, partial)
                if options.output in ("best-class", "nms") or options.preprocess:
                    network_file = Path(folder) / "network.onnx"
                    check_tail(partial, network_file, trace, options.output, options.preprocess, pictures)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{target}: cannot be written ({reason}); choose a folder that you can write to") from error
    return Export(target, differences, ap)


def _options(model: YOLOLAT, arguments: dict[str, Any]) -> tuple[OnnxOptions, dict[str, Any]]:
    """Split the arguments into ours and those of the trace, which is always float32 and without suppression."""
    if arguments["opset"] is not None and arguments["opset"] < _OPSET:
        raise UserError(f"opset={arguments['opset']}: too old; use {_OPSET} or later, 18 unless given")
    nms, quantize = arguments.get("nms"), arguments.get("quantize")
    head = model.model.model[-1]
    if not isinstance(head, Detect):
        raise UserError(f"format=onnx: a head of kind {type(head).__name__} is not supported; use plain Ultralytics")
    flags = {key: arguments.get(key, False) for key in ("preprocess", "best_class")}
    data, fraction = arguments.get("data"), arguments.get("fraction")
    target = arguments.get("target") or ("cpu" if quantize == 8 else "gpu")
    options = OnnxOptions(PRECISIONS[quantize], nms, **flags, target=target, data=data, fraction=fraction)
    dropped = ("quantize", "nms", "data", "fraction", *OWN_EXPORT_KEYS)
    rest = {key: value for key, value in arguments.items() if key not in dropped}
    return options, {**rest, "quantize": None, "nms": False if nms is False else None}


def _trace(
    model: YOLOLAT, trace_with: Callable[..., Any], arguments: dict[str, Any], file: Path, options: OnnxOptions
) -> Trace:
    """Let Ultralytics trace the network into `file`."""
    trace = Trace(file)

    def prepare(exporter: Any) -> None:
        exporter.file = file
        trace.network, trace.args, trace.imgsz = exporter.model, exporter.args, tuple(exporter.imgsz)
        trace.device, trace.names = str(exporter.device), dict(exporter.model.names)
        if exporter.args.conf is None:
            exporter.args.conf = 0.25  # of a suppression inside, as Ultralytics has it
        if exporter.args.dynamic:  # Ultralytics cut it to the boxes there are at the size of the export
            trace.head.max_det = exporter.args.max_det

    model.add_callback("on_export_start", prepare)
    try:
        # Ultralytics fuses a copy, which takes its target along.
        model.model.target = options.target
        with offline.quiet(), torch.no_grad(), channels_last_graph(options.target == "gpu"):
            trace_with(**arguments)
    finally:
        del model.model.target
        model.callbacks["on_export_start"].remove(prepare)
    trace.network = trace.network.cpu()
    trace.parameters, trace.gflops = count_parameters(trace.network), count_gflops(trace.network, trace.imgsz)
    onnx.save(_settled(onnx.load(file), trace, options), file)
    return trace


def _settled(traced: ModelProto, trace: Trace, options: OnnxOptions) -> ModelProto:
    """Mend what Ultralytics' exporter leaves: sizes written into a dynamic graph, unnamed sizes, its own metadata."""
    write_metadata(traced, metadata_of(trace, options, precision="fp32"))
    if options.nms is False:
        if trace.args.dynamic:
            flexible_top_k(traced, trace.args.max_det, trace.args.agnostic_nms)
        return traced
    output = traced.graph.output[0]
    batch, anchors = ("batch", "anchors") if trace.args.dynamic else (dims_of(output)[0], dims_of(output)[2])
    set_shape(output, output.type.tensor_type.elem_type, [batch, 4 + len(trace.names), anchors])
    return traced


def _int8(
    model: YOLOLAT, trace: Trace, options: OnnxOptions, data: str, folder: Path
) -> tuple[ModelProto, tuple[float, float] | None]:
    """Quantise the traced file; returns the network, and the average precision before and after."""
    files = calibration_files(data, options.fraction)
    LOGGER.info(f"calibrating on {len(files)} training images of {data}")
    target = folder / f"{trace.file.stem}_int8.onnx"
    images = CalibrationImages(files, trace.imgsz, trace.args.batch, "images")
    network = quantise(trace.file, target, images)
    write_metadata(network, metadata_of(trace, options, "int8"))
    onnx.save(network, target)
    return network, compare_ap(type(model), trace, data, (trace.file, target), folder)


def _checked_network(
    network: ModelProto, trace: Trace, options: OnnxOptions, pictures: list[Path], folder: Path
) -> Differences:
    """Compare the network, before what is done to its output and input, with PyTorch."""
    file = folder / "network.onnx"
    onnx.save(network, file)
    check = Check(trace.network, file, trace.device, nms_free=options.nms is False)
    differences = check.run(pictures, trace.trials(len(pictures)))
    differences.refuse(options.precision, max(trace.imgsz))
    return differences


def _finish(network: ModelProto, trace: Trace, options: OnnxOptions) -> ModelProto:
    """Give the network the output, the input and the metadata that were asked for."""
    args = trace.args
    if options.output == "best-class":
        best_class(network)
    elif options.output == "nms":
        embed_nms(network, args.conf, args.iou, args.max_det, args.agnostic_nms, args.dynamic)
    if options.preprocess:
        take_bytes(network)
    write_metadata(network, metadata_of(trace, options, options.precision, finished=True))
    onnx.checker.check_model(network)
    return network
