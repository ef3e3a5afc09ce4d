"""One ONNX file of one model, made in a process of its own: what measures never imports torch."""

from __future__ import annotations

import ast
import copy
import hashlib
import json
import logging
import math
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yolo_lat
from yolo_lat.deploy.benchmark.plan import Cell, Entry
from yolo_lat.deploy.benchmark.settings import Variant
from yolo_lat.errors import UserError
from yolo_lat.unfinished import write_whole


@dataclass(frozen=True)
class ModelFile:
    """An ONNX file with what is known of the model inside.

    Attributes:
        path, sha256: the file.
        parameters, gflops: as deployed, for one image; None where the file does not say.
        layers: what the rows of the model's YAML are called; empty where unknown.
    """

    path: str
    sha256: str
    parameters: int | None = None
    gflops: float | None = None
    layers: tuple[str, ...] = ()


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_file(entry: Entry, cell: Cell, variant: Variant, device: str, seed: int, folder: Path) -> ModelFile | None:
    """Export a model, unless the very same export lies in the folder already.

    Args:
        entry: the model, not an .onnx file.
        cell: size, batch and precision.
        variant: form of the export.
        device: of the measurement; every file is exported and checked on the CPU, but ordered for the device.
        seed: of random weights.
        folder: for the file and a note beside it.

    Returns:
        None where the model's head has no such form.

    Raises:
        UserError: a model or a size that cannot be exported.
    """
    import torch
    from ultralytics.utils import LOGGER

    from yolo_lat import YOLOLAT
    from yolo_lat.nn.complexity import count_gflops, count_parameters

    LOGGER.setLevel(logging.WARNING)
    torch.manual_seed(seed)
    model = YOLOLAT(entry.source)
    if variant.head and not hasattr(model.model.model[-1], variant.head):
        return None
    target = "cpu" if device == "cpu" else "gpu"
    arguments = {"format": "onnx", "imgsz": cell.imgsz, "batch": cell.batch, "device": "cpu", "target": target}
    arguments |= variant.export
    if cell.precision == "fp16":
        arguments["quantize"] = 16
    form = variant.name.replace(", ", "-").replace(" ", "-")
    stem = f"{entry.name}-{cell.imgsz}px-b{cell.batch}-{cell.precision}-{form}".replace("/", "_")
    path, note = folder / f"{stem}.onnx", folder / f"{stem}.json"
    key = _fingerprint(model.model, arguments)
    if path.is_file() and note.is_file():
        known = json.loads(note.read_text(encoding="utf-8"))
        if known["key"] == key and known["file"]["sha256"] == sha256(path):
            return ModelFile(**{**known["file"], "path": str(path), "layers": tuple(known["file"]["layers"])})
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        model.model.pt_path = str(Path(work) / f"{stem}.pt")  # an export lies beside its checkpoint
        Path(model.export(**arguments)).replace(path)
    layers = tuple(layer.type.rpartition(".")[2] for layer in model.model.model)
    deployed = copy.deepcopy(model.model)
    deployed.target = target
    deployed.fuse(verbose=False)
    file = ModelFile(str(path), sha256(path), count_parameters(deployed), count_gflops(deployed, cell.imgsz), layers)
    write_whole(note, json.dumps({"key": key, "file": asdict(file)}, indent=1))
    return file


def _fingerprint(model: Any, arguments: dict[str, Any]) -> str:
    """Return a hash of everything that an exported file follows from."""
    content = {key: value for key, value in model.yaml.items() if key != "yaml_file"}  # a path, another on each machine
    digest = hashlib.sha256(json.dumps([content, arguments], sort_keys=True, default=str).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    digest.update(str([version(name) for name in ("ultralytics", "onnx", "onnxslim")]).encode())
    package = Path(yolo_lat.__file__).parent
    for pattern in ("ela/*.py", "nn/*.py", "engine/export*.py", "deploy/onnx_*.py"):
        for file in sorted(package.glob(pattern)):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def describe_onnx(path: Path, metadata: Mapping[str, str], imgsz: int) -> ModelFile:
    """Return what a given .onnx file tells of itself, in its metadata if it is one of ours.

    Args:
        path: the file.
        metadata: that of its session.
        imgsz: side in pixels that it is measured at; GFLOPs are known for the size of the export alone.

    Raises:
        UserError: metadata that are no numbers.
    """
    if "parameters" in metadata and "gflops" in metadata:
        try:
            exported = ast.literal_eval(metadata.get("imgsz", "None"))
            parameters, gflops = int(metadata["parameters"]), float(metadata["gflops"])
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
            raise UserError(
                f"{path}: parameters, gflops or imgsz in its metadata cannot be read; export the model again"
            ) from error
        if parameters < 0 or not 0 <= gflops < math.inf:
            raise UserError(f"{path}: parameters or gflops in its metadata are impossible; export the model again")
        return ModelFile(str(path), sha256(path), parameters, gflops if exported == [imgsz, imgsz] else None)
    try:
        import onnx
    except ImportError:
        return ModelFile(str(path), sha256(path))
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}
    weights = onnx.load(path).graph.initializer
    parameters = sum(math.prod(weight.dims) for weight in weights if weight.data_type in floats)
    return ModelFile(str(path), sha256(path), parameters)


def measure_accuracy(path: str, data: str, imgsz: int, device: str) -> dict[str, float]:
    """Validate an ONNX file of batch 1 with pycocotools and return COCO's twelve numbers by name.

    Raises:
        UserError: data or class names that do not fit.
    """
    from ultralytics.utils import LOGGER

    from yolo_lat import YOLOLAT

    LOGGER.setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as work:
        place = device.removeprefix("cuda:")
        arguments = {"data": data, "imgsz": imgsz, "batch": 1, "device": place, "plots": False, "project": work}
        return dict(YOLOLAT(path).val(**arguments).coco)
