"""Which arguments each mode uses; Ultralytics takes them all in every mode, and passes over the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yolo_lat.errors import UserError

# Arguments that Ultralytics has for other tasks than detection.
OTHER_TASKS = (
    *("overlap_mask", "mask_ratio", "retina_masks", "copy_paste", "copy_paste_mode", "pose", "kobj", "rle", "angle"),
    *("dlog", "dgrad", "dlam", "dropout", "auto_augment", "erasing"),
)
# Arguments that Ultralytics had once, and drops with a warning.
REMOVED = ("label_smoothing", "save_hybrid", "crop_fraction", "keras")
_TABLE = {
    "train val predict track export": (
        "mode task model device imgsz batch name verbose conf iou max_det agnostic_nms nms end2end quantize half int8"
    ),
    "train val predict track": (
        "project exist_ok compile channels_last rect classes augment visualize save_txt save_conf show_labels "
        "show_conf hide_labels hide_conf"
    ),
    "train val export": "data split download",
    "train val": "workers cache plots single_cls save_json",
    "train predict track": "save",
    "train export": "fraction",
    "val predict track": "dnn",
    "predict track": (
        "source vid_stride stream_buffer show show_boxes boxes line_width line_thickness save_frames save_crop"
    ),
    "predict": "embed",
    "track": "tracker",
    "export": "format dynamic simplify opset workspace optimize preprocess best_class target",
}
_USED_BY = {name: modes.split() for modes, names in _TABLE.items() for name in names.split()}
# What does nothing unless another argument is true, in which modes, and whether that is so where it is not given.
_NEEDS = (
    ("save_conf", ("train", "val", "predict", "track"), "save_txt", False),
    ("save_frames", ("predict", "track"), "save", False),
    ("visualize", ("train", "val"), "plots", True),
)


def does_nothing(mode: str, name: str) -> bool:
    """Return whether one of Ultralytics' modes passes over an argument; what the table lacks is training's."""
    return mode in _USED_BY["mode"] and mode not in _USED_BY.get(name, ["train"])


def check_use(mode: str, kwargs: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raise UserError for an argument that does nothing in a mode, unless its value asks for nothing.

    Args:
        mode: train, val, predict, track or export.
        kwargs: the arguments.
        defaults: values that ask for nothing, besides None.
    """
    for name, value in kwargs.items():
        if value is None or value == defaults.get(name, False):
            continue
        if name in REMOVED:
            raise UserError(f"{name}={value}: no longer an argument of Ultralytics; leave it out")
        if name in OTHER_TASKS:
            raise UserError(f"{name}={value}: is for other tasks than detection; leave it out")
        if does_nothing(mode, name):
            users = _joined(_USED_BY.get(name, ["train"]))
            raise UserError(f"{name}={value}: is for {users}, and does nothing in {mode}; leave it out")
    for name, modes, other, unless_given in _NEEDS:
        if mode in modes and kwargs.get(name) and not kwargs.get(other, unless_given):
            raise UserError(f"{name}={kwargs[name]}: does nothing without {other}; add {other}=True, or leave it out")
    if mode == "val" and kwargs.get("cache") not in (None, True, False, "ram", "disk"):
        raise UserError(f"cache={kwargs['cache']}: keeps nothing in val; use ram or disk, or leave it out")


def check_abilities(kwargs: Mapping[str, Any], model: str, exported: bool, nms_free: bool, rescales: bool) -> None:
    """Raise UserError for what a model cannot do, and Ultralytics would leave out.

    Args:
        kwargs: the arguments of any mode.
        model: for the message.
        exported: whether it is an ONNX file, not a PyTorch model.
        nms_free: whether it has a head that needs no NMS.
        rescales: whether Ultralytics can run it at several scales and join what it finds.
    """
    asked = [f"{name}={value}" for name, value in (("nms", False), ("end2end", True)) if kwargs.get(name) is value]
    if asked and not nms_free:
        raise UserError(f"{asked[0]}: {model} has no head that works without NMS; leave it out")
    if kwargs.get("compile") and exported:
        raise UserError(f"compile={kwargs['compile']}: torch compiles its own models, and {model} is exported; drop it")
    if kwargs.get("dnn") and not exported:
        raise UserError("dnn=True: OpenCV runs .onnx files alone; give one, or leave it out")
    if kwargs.get("augment") and (asked or not rescales):
        raise UserError(f"augment=True: {' and '.join([model, *asked])} runs at one scale alone; leave it out")


def _joined(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
