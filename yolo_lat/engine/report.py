"""An analysis written out: tables for the terminal, evaluation.json and figures."""

from __future__ import annotations

import json
import warnings
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from yolo_lat import __version__
from yolo_lat.engine.analysis import CONFIDENCE, SIDES, Analysis
from yolo_lat.engine.tide import BACKGROUND_IOU, ERRORS, FOREGROUND_IOU
from yolo_lat.unfinished import whole_file, write_whole

_FEW_CLASSES = 20
_BLUE, _ORANGE, _GREY = "#1f5f99", "#d9722e", "#9aa5b1"


def iou_table(analysis: Analysis) -> Table:
    """Return AP at each IoU, a column each."""
    columns = ("IoU", *analysis.iou_ap)
    table = Table(*columns, title="AP by IoU", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_row("AP", *map(_cell, analysis.iou_ap.values()))
    return table


def offset_table(analysis: Analysis) -> Table:
    """Return where the sides of boxes lie beside those of the objects that they found, in pixels."""
    found = analysis.offsets
    table = Table("px right or down", *SIDES, title=f"Sides of {found.boxes} boxes found", title_justify="left")
    for name, values in (("mean", found.mean), ("spread", found.spread)):
        table.add_row(name, *("-" if np.isnan(value) else f"{value:.2f}" for value in values))
    return table


def class_table(analysis: Analysis) -> Table:
    """Return one row a class: its numbers and counts."""
    table = Table("class", title="By class", title_justify="left")
    for column in analysis.classes:
        table.add_column(column, justify="right")
    for name, *values in zip(analysis.names, *analysis.classes.values(), strict=True):
        table.add_row(escape(name), *(_cell(value) for value in values))
    return table


def error_table(analysis: Analysis) -> Table:
    """Return one row a kind of error: how many there are and what AP50 would gain without them."""
    errors = analysis.errors
    table = Table("error", title=f"What costs AP50 ({_cell(errors.ap50)}), as in TIDE", title_justify="left")
    for column in ("count", "dAP50"):
        table.add_column(column, justify="right")
    table.add_column("what it is")
    for name, what in ERRORS.items():
        table.add_row(name, str(errors.counts[name]), _cell(errors.d_ap50[name]), what)
    return table


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "-" if np.isnan(value) else f"{value:.3f}"
    return str(value)


def about(
    *,
    data: str | None = None,
    split: str | None = None,
    model: str | None = None,
    predictions: str | None = None,
    imgsz: int | list[int] | None = None,
    conf: float | None = None,
    iou: float | None = None,
    max_det: int | None = None,
    box_vote: float | None = None,
) -> dict[str, Any]:
    """Return what was evaluated, as `evaluation.json` has it, with the versions that did so.

    Args:
        data: data YAML or name of a data set.
        split: train, val or test.
        model: weights or name; None for predictions from elsewhere.
        predictions: the file of predictions from elsewhere.
        imgsz: side of the input in pixels, or height and width.
        conf: least score of a detection.
        iou: threshold of non-maximum suppression.
        max_det: most detections in an image.
        box_vote: overlap from which boxes voted on those that suppression kept; None where they did not.
    """
    given = {"model": model, "predictions": predictions, "data": data, "split": split}
    settings = {"imgsz": imgsz, "conf": conf, "iou": iou, "max_det": max_det, "box_vote": box_vote}
    versions = {package: version(package) for package in ("ultralytics", "pycocotools", "torch")}
    return given | settings | {"yolo_lat": __version__} | versions


def ground_truth_hash(truth: dict[str, Any]) -> str:
    """Return the BLAKE2b hash, 16 bytes in hex, of a COCO ground truth's canonical JSON without its info."""
    content = {key: value for key, value in truth.items() if key != "info"}
    return blake2b(json.dumps(content, sort_keys=True, separators=(",", ":")).encode(), digest_size=16).hexdigest()


def write_json(
    path: Path, numbers: dict[str, float], analysis: Analysis, truth: dict[str, Any], about: dict[str, Any]
) -> None:
    """Write `evaluation.json`: what was evaluated, the twelve numbers, and the analysis.

    Values that do not exist, such as the AP of a class without ground truth, are null.

    Args:
        path: the file.
        numbers: the twelve by name.
        analysis: what else was found.
        truth: the ground truth as the content of a COCO JSON.
        about: goes into the file as it is.
    """
    columns = analysis.classes
    errors, calibration = analysis.errors, analysis.calibration
    content = {
        **about,
        "images": len(truth["images"]),
        "ground_truth": ground_truth_hash(truth),
        "numbers": numbers,
        "AP_by_IoU": analysis.iou_ap,
        "sizes": analysis.sizes,
        "classes": [
            {"name": name} | dict(zip(columns, row, strict=True))
            for name, *row in zip(analysis.names, *columns.values(), strict=True)
        ],
        "pr_curves": {
            "recall": analysis.recall,
            **{name: {"mean": mean_curve(curves), "classes": curves} for name, curves in analysis.precision.items()},
        },
        "confusion": {
            "confidence": CONFIDENCE,
            "iou": FOREGROUND_IOU,
            "labels": [*analysis.names, "background"],
            "true_by_detected": analysis.confusion,
        },
        "offsets": {
            "iou": FOREGROUND_IOU,
            "boxes": analysis.offsets.boxes,
            "sides": SIDES,
            "mean": analysis.offsets.mean,
            "spread": analysis.offsets.spread,
        },
        "errors": {
            "foreground_iou": FOREGROUND_IOU,
            "background_iou": BACKGROUND_IOU,
            "AP50": errors.ap50,
            "kinds": {name: {"count": errors.counts[name], "dAP50": errors.d_ap50[name]} for name in ERRORS},
        },
        "calibration": {
            "iou": FOREGROUND_IOU,
            "D-ECE": calibration.d_ece,
            f"D-ECE, score at least {CONFIDENCE}": calibration.d_ece_confident,
            "edges": calibration.edges,
            "detections": calibration.counts,
            "score": calibration.score,
            "precision": calibration.precision,
        },
    }
    lines = [f"{json.dumps(key)}: {json.dumps(_plain(value), allow_nan=False)}" for key, value in content.items()]
    write_whole(path, "{\n" + ",\n".join(lines) + "\n}\n")


def _plain(value: Any) -> Any:
    """Return numpy values as Python's and NaN as None, all the way down."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def mean_curve(curves: np.ndarray) -> np.ndarray:
    """Return (101,) the mean over classes with ground truth of (C, 101) precision; NaN where there are none."""
    curves = curves[~np.isnan(curves).any(axis=1)]
    return curves.mean(axis=0) if len(curves) else np.full(101, np.nan)


def draw(folder: Path, analysis: Analysis) -> list[Path]:
    """Draw the figures into a folder and return their files."""
    figures = {
        "PR_curve": _draw_curves(analysis),
        "confusion_matrix": _draw_confusion(analysis),
        "errors": _draw_errors(analysis),
        "calibration": _draw_calibration(analysis),
        "per_class_AP": _draw_classes(analysis),
    }
    files = []
    with warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; the other files have it right.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        for name, figure in figures.items():
            files.append(folder / f"{name}.png")
            with whole_file(files[-1]) as partial:
                figure.savefig(partial, dpi=150)
    return files


def _labels(names: tuple[str, ...]) -> list[str]:
    """Return class names fit for drawing: not too long, and `$` as itself rather than as mathematics."""
    short = [name if len(name) <= 24 else name[:23] + "…" for name in names]
    return [name.replace("$", r"\$") for name in short]


def _draw_curves(analysis: Analysis) -> Figure:
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.add_subplot(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    few = len(analysis.names) <= _FEW_CLASSES
    for number, (name, curve) in enumerate(zip(_labels(analysis.names), analysis.precision["AP50"], strict=True)):
        if not np.isnan(curve).any():
            label = f"{name} {curve.mean():.3f}" if few else None
            color, style = (f"C{number % 10}", "-:"[number // 10 % 2]) if few else (_GREY, "-")
            axes.plot(analysis.recall, curve, color=color, linestyle=style, linewidth=0.8, label=label)
    for (name, curves), style in zip(analysis.precision.items(), ("-", "--"), strict=True):
        mean = mean_curve(curves)
        axes.plot(analysis.recall, mean, style, color="black", linewidth=2.2, label=f"mean, {name} {mean.mean():.3f}")
    axes.set_title("Precision at COCO's recall points" + ("" if few else "; grey: each class at IoU 0.50"))
    figure.legend(loc="outside right upper", fontsize=8, title="classes at IoU 0.50" if few else None)
    return figure


def _draw_confusion(analysis: Analysis) -> Figure:
    counts = analysis.confusion
    total = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)
    size = len(counts)
    side = float(np.clip(3 + 0.5 * size, 5, 14))
    font = float(np.clip(12 * side / size, 6, 9))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot(xlabel="detected", ylabel="true")
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    labels = [*_labels(analysis.names), "background"]
    axes.set_xticks(range(size), labels, rotation=90, fontsize=font)
    axes.set_yticks(range(size), labels, fontsize=font)
    if size <= _FEW_CLASSES + 1:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                color = "white" if share[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", fontsize=font, color=color)
    axes.set_title(f"Score at least {CONFIDENCE}, IoU at least {FOREGROUND_IOU}", fontsize=10)
    figure.colorbar(image, label="share of the row", fraction=0.046)
    return figure


def _draw_errors(analysis: Analysis) -> Figure:
    errors = analysis.errors
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="AP50 gained if errors of this kind alone were mended")
    gains = np.nan_to_num([errors.d_ap50[name] for name in ERRORS])
    bars = axes.barh(list(ERRORS), gains, color=_ORANGE)
    axes.bar_label(
        bars, [f" {gain:.3f}, {errors.counts[name]} errors" for name, gain in zip(ERRORS, gains, strict=True)]
    )
    axes.set_xlim(0, max(gains.max() * 1.35, 0.01))
    axes.invert_yaxis()
    axes.set_title(f"What costs AP50, which is {_cell(errors.ap50)}")
    return figure


def _draw_calibration(analysis: Analysis) -> Figure:
    calibration = analysis.calibration
    figure = Figure(figsize=(6, 7), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    left, width = calibration.edges[:-1], np.diff(calibration.edges)
    upper.bar(left, np.nan_to_num(calibration.precision), width, align="edge", color=_BLUE, edgecolor="white")
    upper.plot(
        calibration.score, calibration.precision, "o", color=_ORANGE, markersize=4, label="mean score of the bin"
    )
    upper.plot((0, 1), (0, 1), "--", color="black", linewidth=1, label="calibrated")
    upper.set(ylabel="precision at IoU 0.50", xlim=(0, 1), ylim=(0, 1))
    upper.legend(loc="upper left")
    upper.set_title(
        f"D-ECE {_cell(calibration.d_ece)}; {_cell(calibration.d_ece_confident)} of scores from {CONFIDENCE}"
    )
    lower.bar(left, calibration.counts, width, align="edge", color=_GREY, edgecolor="white")
    lower.set(xlabel="score", ylabel="detections")
    lower.set_yscale("symlog", linthresh=1)
    lower.set_ylim(0, max(2 * calibration.counts.max(), 1))
    return figure


def _draw_classes(analysis: Analysis) -> Figure:
    ap, ap50 = analysis.classes["AP"], analysis.classes["AP50"]
    present = np.flatnonzero(~np.isnan(ap))
    order = present[np.argsort(ap[present], kind="stable")]
    labels = _labels(analysis.names)
    figure = Figure(figsize=(7, 1.5 + 0.2 * max(len(order), 4)), layout="constrained")
    axes = figure.add_subplot(xlim=(0, 1), ylim=(-0.6, max(len(order), 1) - 0.4))
    axes.barh(range(len(order)), ap50[order], color=_GREY, label="AP50")
    axes.barh(range(len(order)), ap[order], color=_BLUE, height=0.5, label="AP")
    axes.set_yticks(range(len(order)), [f"{labels[i]} ({analysis.classes['boxes'][i]})" for i in order], fontsize=8)
    absent = len(ap) - len(order)
    axes.set_title(
        "By class (ground-truth boxes)" + (f"; {absent} without any not shown" if absent else ""), fontsize=10
    )
    axes.legend(loc="lower right")
    return figure
