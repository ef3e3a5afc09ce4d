"""Which arguments of an export mean something to the format asked for; Ultralytics passes over most of the others."""

from __future__ import annotations

from typing import Any

from ultralytics.engine.exporter import FP16_FORMATS, FP32_UNSUPPORTED_FORMATS

from yolo_lat.errors import UserError

_NO_TOP_K = ("rknn", "ncnn", "executorch", "paddle", "imx", "edgetpu", "qnn")  # so no head that needs no NMS
_CALIBRATED = (8, "w8a16")  # values of quantize


def check_keys(form: str, takes: list[str], args: Any) -> None:
    """Raise UserError for an argument that would change nothing in the file, or data that are missing.

    Args:
        form: the format.
        takes: arguments that Ultralytics' table of formats lists for it.
        args: all arguments.
    """
    _check_suppression(form, takes, args)
    integers = args.quantize in _CALIBRATED or form in FP32_UNSUPPORTED_FORMATS - FP16_FORMATS
    calibrates = integers and "data" in takes
    if calibrates and not args.data:
        why = f"format={form}" if args.quantize is None else f"quantize={args.quantize}"
        raise UserError(f"{why} calibrates on images; give data= a data YAML or the name of a data set")
    if not calibrates:
        for key, nothing in (("data", None), ("fraction", 1.0)):
            if getattr(args, key) != nothing and (form, key) != ("onnx", "data"):  # on whose images the file is checked
                raise UserError(f"{key}={getattr(args, key)}: is for calibration; add quantize=8, or drop {key}")
    if args.split != "val" and (form == "onnx" or not calibrates):
        where = "calibrates on training images" if calibrates else "calibrates on nothing"
        raise UserError(f"split={args.split}: format={form} {where}; leave it out")
    if args.name is not None and "name" not in takes:
        raise UserError(
            f"name={args.name}: is a processor, which format={form} does not ask for; leave it out, the file takes the "
            "name of the weights"
        )


def _check_suppression(form: str, takes: list[str], args: Any) -> None:
    """Raise UserError for suppression that the format has not, or a threshold of one that the file would not have."""
    if args.nms and "nms" not in takes:
        raise UserError(f"nms=True: format={form} has no suppression inside; leave it out")
    if args.nms is False and (form in _NO_TOP_K or (form == "litert" and args.quantize in _CALIBRATED)):
        raise UserError(f"nms=False: format={form} cannot hold the head that needs no NMS; leave it out")
    inside = args.nms or form == "imx"  # which has it always
    for key, nothing in (("conf", None), ("iou", 0.7)):
        if getattr(args, key) != nothing and not inside and key not in takes and (form, key) != ("openvino", "iou"):
            remedy = f"add nms=True, or drop {key}" if "nms" in takes else f"format={form} has none, so drop {key}"
            raise UserError(f"{key}={getattr(args, key)}: is for a suppression inside; {remedy}")
    final = inside or args.nms is False or form == "axelera"  # which keeps a head that needs no NMS
    for key, nothing in (("max_det", 300), ("agnostic_nms", False)):
        if getattr(args, key) != nothing and not final:
            raise UserError(
                f"{key}={getattr(args, key)}: is for a file that returns final boxes, and this one leaves them to "
                f"what runs it; drop {key}, or choose nms=True or nms=False where the format has it"
            )
