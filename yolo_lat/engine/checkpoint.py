"""Weights on disk: Ultralytics' pickled .pt, and safetensors that carry the model YAML and class names inside."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import onnx
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from ultralytics.nn.tasks import DetectionModel, load_checkpoint

from yolo_lat import __version__
from yolo_lat.deploy.external_data import check_external_data
from yolo_lat.deploy.onnx_detector import BEST_CLASS_OUTPUT, UINT8_INPUT
from yolo_lat.engine import unpickle
from yolo_lat.errors import UserError
from yolo_lat.nn.model import LatModel
from yolo_lat.unfinished import umask, whole_file

unpickle.install()

_FORMAT = "yolo-lat 1"


def check_not_fused(model: DetectionModel, problem: str) -> None:
    """Raise UserError for a model that was fused for inference, whose YAML no longer describes it."""
    if model.is_fused():
        raise UserError(f"{problem}; load the weights again and take those")


def save_safetensors(model: DetectionModel, path: str | Path) -> Path:
    """Write a detection model's weights with all that is needed to rebuild it; no pickle.

    The file appears under its name only when it is complete. Tensors keep their dtype.

    Raises:
        UserError: the model is fused for inference, so that its YAML no longer describes it; or no file can be written
            there.
    """
    path = Path(path)
    check_not_fused(model, f"{path}: a fused model cannot be saved")
    content = {**model.yaml, "yaml_file": Path(str(model.yaml.get("yaml_file", ""))).name}
    args = model.args if isinstance(model.args, dict) else vars(model.args)
    metadata = {
        "format": _FORMAT,
        "version": __version__,
        "licence": "AGPL-3.0-or-later",
        "yaml": json.dumps(content),
        "names": json.dumps(model.names),
        "args": json.dumps({key: args[key] for key in ("imgsz", "single_cls") if key in args}),
    }
    try:
        with whole_file(path) as partial:
            save_file({k: v.contiguous() for k, v in model.state_dict().items()}, partial, metadata)
            partial.chmod(0o666 & ~umask())  # where the library lets nobody else read it
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be written ({error}); choose a folder that you can write to") from error
    return path


def load_safetensors(path: str | Path) -> LatModel:
    """Rebuild a model in float32 from a file of `save_safetensors`; runs no code from the file.

    Raises:
        UserError: not such a file, or a damaged one.
    """
    path = _existing(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        model = _rebuilt(metadata, state) if metadata.get("format") == _FORMAT else None
    except (SafetensorError, LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path}: damaged or incompatible weights ({reason}); save or download them again") from error
    if model is None:
        raise UserError(f"{path}: has no YOLO-LAT model inside; give safetensors that this package saved")
    model.task, model.pt_path = "detect", str(path)
    return model.eval()


def _rebuilt(metadata: dict[str, str], state: dict[str, torch.Tensor]) -> LatModel:
    model = LatModel(json.loads(metadata["yaml"]), verbose=False)
    model.load_state_dict(state)
    model.names = {int(i): name for i, name in json.loads(metadata["names"]).items()}
    model.args = json.loads(metadata["args"])
    return model


def load_pt(path: str | Path) -> tuple[DetectionModel, dict[str, Any]]:
    """Load an Ultralytics checkpoint, ours or plain; runs no code from the file unless it is trusted.

    Raises:
        UserError: missing, truncated, not a detection checkpoint, or one that names what is no part of a detector.
    """
    path = _existing(path)
    try:
        model, checkpoint = load_checkpoint(path)
    except UserError:
        raise
    except Exception as error:  # a foreign pickle can fail in any way
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: not a checkpoint of a detector ({reason}); give a .pt that training wrote") from error
    if model.task != "detect":
        raise UserError(f"{path}: a model for '{model.task}'; this package is for object detection only")
    if not isinstance(model, DetectionModel):
        raise UserError(f"{path}: not a checkpoint of a detector ({type(model).__name__}); give a .pt of training")
    return model, checkpoint


def onnx_metadata(path: str | Path) -> dict[str, Any]:
    """Read what an export wrote into an ONNX file: names, stride, imgsz, args and layout.

    Beside these stand `dynamic`, whether its size is, and `nms_free`, whether it returns what needs no suppression.

    Raises:
        UserError: missing, damaged, not an exported detector, or one whose weights lie outside its folder.
    """
    path = _existing(path)
    try:
        model = onnx.load(path, load_external_data=False)
        check_external_data(path)
    except UserError:
        raise
    except Exception as error:  # protobuf's errors have no base class of their own
        raise UserError(f"{path}: not an ONNX model, or a damaged one; export it again") from error
    written = {entry.key: entry.value for entry in model.metadata_props}
    if not {"names", "stride", "imgsz", "task"} <= written.keys() or written["task"] != "detect":
        raise UserError(f"{path}: not a detector that 'yolo-lat export' wrote; give an exported model")
    try:
        metadata = {key: ast.literal_eval(written.get(key, "{}")) for key in ("names", "stride", "imgsz", "args")}
        names, stride, imgsz, args = metadata.values()
        if not (isinstance(names, dict | list) and isinstance(stride, int) and stride > 0 and isinstance(args, dict)):
            raise ValueError("names, stride or args of an unknown kind")
        if not (isinstance(imgsz, list) and imgsz and all(isinstance(side, int) for side in imgsz)):
            raise ValueError("imgsz is no list of sides")
        sides = model.graph.input[0].type.tensor_type.shape.dim[1:]
    except (ValueError, SyntaxError, TypeError, LookupError, MemoryError, RecursionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: its metadata is damaged ({reason}); export it again") from error
    layout = {key: written.get(key) for key in ("preprocessing", "output")}
    nms_free = bool(args.get("nms")) or written.get("end2end") == "True"
    return {**metadata, **layout, "nms_free": nms_free, "dynamic": any(side.dim_param for side in sides)}


def check_layout(path: str | Path, metadata: dict[str, Any]) -> None:
    """Refuse a file that Ultralytics' loops cannot feed or read, though `yolo_lat.deploy.OnnxDetector` can.

    Raises:
        UserError: bytes as input, or an output of the best class alone.
    """
    if metadata["preprocessing"] == UINT8_INPUT:
        reason = "takes bytes (preprocess=True)"
    elif metadata["output"] == BEST_CLASS_OUTPUT:
        reason = "returns one class a box (best_class=True)"
    else:
        return
    raise UserError(
        f"{path}: {reason}, which only yolo_lat.deploy.OnnxDetector runs; export it without that to use it here"
    )


def pt_to_safetensors(source: Path, target: Path) -> Path:
    """Write the weights of a .pt, which training stores in float16, as float16 safetensors."""
    model, checkpoint = load_pt(source)
    model.args = checkpoint.get("train_args", model.args)
    return save_safetensors(model.half(), target)


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such weights; correct the path")
    return path
