"""What a study found, as one record: every run's numbers, the size of its model, its curve, and the tables of them."""

from __future__ import annotations

import csv
import json
import math
import platform
import statistics
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from yolo_lat.errors import UserError

SHOWN = ("AP", "AP50", "AP75", "APs", "APm", "APl")
AP_COLUMN, SPEED_COLUMN = "metrics/mAP50-95(B)", "speed/images_per_s"
LOSSES = ("train/box_loss", "val/box_loss", "train/cls_loss", "val/cls_loss")
SHARE = 0.9  # of the best AP, which `epochs_to_90` is about
SMOOTHED = 3  # validations that a value of `markdown_curves` is the mean of
COLUMNS = ("run", "seeds", "AP", "AP50", "squares", "difference", "parameters", "GFLOPs", "ms", "to 90%")
OF_THE_STUDY = {"run", "data", "seed", "options", "change", "against", "latency"}  # of a row, and not of its training


def make_record(command: str, rows: list[dict[str, Any]], latency: list[Path]) -> dict[str, Any]:
    """Return the record of a study.

    Args:
        command: that ran it.
        rows: one for each run, as `describe_run` returns them.
        latency: records of benchmarks to take times from, the first that has one.
    """
    for file in latency:
        join_latency(rows, json.loads(file.read_text(encoding="utf-8")), file.name)
    return {
        "command": command,
        "commit": git_commit(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "ultralytics", "pycocotools", "numpy")},
        "latency": [file.name for file in latency],
        "runs": rows,
    }


def save_record(record: dict[str, Any], file: Path) -> None:
    """Write a record as JSON, a line for each run."""
    rows = ",\n".join(f"  {json.dumps(row, default=str)}" for row in record["runs"])
    text = json.dumps({**record, "runs": []}, indent=1).replace('"runs": []', f'"runs": [\n{rows}\n ]')
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n", encoding="utf-8")


def read_rows(record: Path) -> list[dict[str, Any]]:
    """Return the runs of a record.

    Raises:
        UserError: no record of a study.
    """
    try:
        return list(json.loads(record.read_text(encoding="utf-8"))["runs"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{record}: not the record of a study ({error}); make it with study.py collect") from error


def read_known(records: list[Path]) -> dict[str, dict[str, Any]]:
    """Return by fingerprint what records tell of runs as `describe_run` does: of the furthest, else of the first.

    Raises:
        UserError: one is not the record of a study.
    """
    known: dict[str, dict[str, Any]] = {}
    for row in sorted((row for record in records for row in read_rows(record)), key=how_far, reverse=True):
        if "fingerprint" in row:
            told = {key: value for key, value in row.items() if key not in OF_THE_STUDY}
            known.setdefault(row["fingerprint"], told)
    return known


def how_far(row: dict[str, Any]) -> tuple[bool, int]:
    """Return whether a run has ended, and the last epoch that was validated."""
    return "coco" in row, row["curve"][-1][0] if row.get("curve") else 0


def describe_run(folder: Path) -> dict[str, Any]:
    """Return what the folder of a run tells, with what is not there left out.

    Returns:
        Of a finished run the content of done.json. Of any run with a results.csv `curve`, pairs of epoch and AP,
        `losses`, the epoch and `LOSSES` of each that was validated, `epochs_to_90`, and `images_per_s`, the median over
        the epochs after the first. Of a run that is not finished `unfinished`.
    """
    row: dict[str, Any] = {}
    epochs = read_results(folder / "train/results.csv")
    done = folder / "done.json"
    if done.is_file():
        row |= json.loads(done.read_text(encoding="utf-8"))
    else:
        row["unfinished"] = f"{len(epochs)} epochs"
    curve = [(int(e["epoch"]), round(e[AP_COLUMN], 5)) for e in epochs if math.isfinite(e.get(AP_COLUMN, math.nan))]
    speeds = [e[SPEED_COLUMN] for e in epochs[1:] if SPEED_COLUMN in e]
    if curve:
        row |= {"curve": curve, "epochs_to_90": epochs_to(curve, SHARE)}
    losses = [(int(e["epoch"]), *(round(e.get(name, math.nan), 4) for name in LOSSES)) for e in epochs]
    losses = [values for values in losses if all(map(math.isfinite, values))]
    if losses:
        row["losses"] = losses
    if speeds:
        row["images_per_s"] = round(statistics.median(speeds), 1)
    return row


def read_results(file: Path) -> list[dict[str, float]]:
    """Return the rows of a results.csv, values that are missing or not numbers left out."""
    if not file.is_file():
        return []
    rows = []
    for row in csv.DictReader(file.read_text(encoding="utf-8").splitlines(), skipinitialspace=True):
        pairs = ((key.strip(), value) for key, value in row.items() if key and value)
        rows.append({key: float(value) for key, value in pairs})
    return rows


def epochs_to(curve: list[tuple[int, float]], share: float) -> int:
    """Return the first epoch that was validated and reached a share of the best AP of the curve."""
    best = max(ap for _, ap in curve)
    return next(epoch for epoch, ap in curve if ap >= share * best)


def size_of(weights: Path, imgsz: int) -> dict[str, Any]:
    """Return `parameters` and `gflops` of the deployed model that weights belong to."""
    from yolo_lat.engine.checkpoint import load_safetensors
    from yolo_lat.engine.table import count_deployed

    parameters, gflops = count_deployed(load_safetensors(weights), imgsz)
    return {"parameters": parameters, "gflops": round(gflops, 4)}


def join_latency(rows: list[dict[str, Any]], record: dict[str, Any], name: str) -> None:
    """Give each run its time at batch 1, forward, where the record has one at its size and the run has none.

    A model of the record is that of a run if it has the run's name, as `study.py models` names them, or that of the
    run's model, if nothing of it is changed. It has its own number of classes and any weights.
    """
    times: dict[tuple[str, int], dict[str, Any]] = {}
    for cell in record["cells"]:
        if (cell["boundary"], cell["batch"]) != ("forward", 1):
            continue
        for result in cell["results"]:
            if result["median_ms"] is not None:
                found = {key: result[key] for key in ("median_ms", "p5_ms", "p95_ms")}
                found |= {"precision": cell["precision"], "device": record["machine"]["device"], "record": name}
                times.setdefault((result["model"], cell["imgsz"]), found)
    for row in rows:
        model = str(row["options"]["model"]).removesuffix(".yaml")
        for known_as in (row["run"], *([] if row.get("change") else [model])):
            if found := times.get((known_as, row["options"]["imgsz"])):
                row.setdefault("latency", found)


def by_row(rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Return finished runs by run and data set, seeds together, in the order of the study; empty where none is."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["run"], row["data"]), [])
        if "coco" in row:
            groups[row["run"], row["data"]].append(row)
    return groups


def differences(groups: dict[str, list[dict[str, Any]]]) -> dict[str, tuple[str, list[float]]]:
    """Return for each row of one data set what it is compared with and the differences in AP, a value for each seed.

    That is the row which its run names as `against`, or the first one of the same model: its mean over all its seeds,
    as two models do not share what a seed decides. A row is left out if that one has no finished run.
    """
    first: dict[str, str] = {}
    for name, found in groups.items():
        if found:
            first.setdefault(str(found[0]["options"]["model"]), name)
    result = {}
    for name, found in groups.items():
        if not found:
            continue
        against = found[0].get("against") or first[str(found[0]["options"]["model"])]
        if against != name and (base := groups.get(against)):
            mean = statistics.mean(row["coco"]["AP"] for row in base)
            result[name] = (against, [row["coco"]["AP"] - mean for row in found])
    return result


def mean_and_spread(values: list[float]) -> tuple[float, float | None]:
    """Return mean and standard deviation over seeds, None for the latter of a single one."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print mean and standard deviation over seeds, and the size and speed of each model."""
    from rich.console import Console
    from rich.table import Table

    columns = ("parameters", "gflops", "latency", "epochs_to_90", "images_per_s")
    table = Table("run", "data", "seeds", *SHOWN, "parameters", "GFLOPs", "ms", "epochs to 90%", "images/s")
    for (name, data), found in by_row(rows).items():
        cells = []
        for number in SHOWN:
            if not found:
                cells.append("-")
                continue
            mean, spread = mean_and_spread([row["coco"][number] for row in found])
            cells.append(f"{mean:.4f}" + (f" +- {spread:.4f}" if spread is not None else ""))
        table.add_row(name, data, str(len(found)), *cells, *(_cell(found, column) for column in columns))
    Console(width=200).print(table)


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table for each data set: AP, AP50, the difference to the row compared with, the costs.

    "squares" is the best AP of a validation in training, which with `cache: device` shows every image as a square.
    """
    sets: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for (name, data), found in by_row(rows).items():
        sets.setdefault(data, {})[name] = found
    lines = []
    for data, groups in sets.items():
        compared = differences(groups)
        lines += [f"**{data}**", "", f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
        for name, found in groups.items():
            numbers = [_spread([row["coco"][key] for row in found]) for key in ("AP", "AP50")]
            square = [row["curve"] for row in found if "curve" in row and row["options"].get("cache") == "device"]
            numbers.append(_spread([max(ap for _, ap in curve) for curve in square]))
            against, values = compared.get(name, ("", []))
            change = f"{_spread(values, '+.3f')} to {against}" if values else ""
            costs = [_cell(found, column) for column in ("parameters", "gflops", "latency", "epochs_to_90")]
            lines.append("| " + " | ".join([name, str(len(found)), *numbers, change, *costs]) + " |")
        lines.append("")
    return "\n".join(lines)


def markdown_curves(rows: list[dict[str, Any]], epochs: list[int]) -> str:
    """Return a Markdown table of what every run, of those that only began too, had come to after some epochs.

    One value is the mean AP of the last three validations until then, as single ones scatter; on squares with
    `cache: device`. A run that had not come so far has none.
    """
    lines = [
        "| run | data | seed | " + " | ".join(str(epoch) for epoch in epochs) + " |",
        "|---" * (3 + len(epochs)) + "|",
    ]
    for row in rows:
        cells = []
        for epoch in epochs:
            until = [ap for at, ap in row.get("curve", []) if at <= epoch]
            reached = len(until) >= SMOOTHED and row["curve"][-1][0] >= epoch
            cells.append(f"{statistics.mean(until[-SMOOTHED:]):.3f}" if reached else "-")
        lines.append("| " + " | ".join([row["run"], row["data"], str(row["seed"]), *cells]) + " |")
    return "\n".join([*lines, ""])


def _spread(values: list[float], form: str = ".3f") -> str:
    if not values:
        return "-"
    mean, spread = mean_and_spread(values)
    return format(mean, form) + (f" ± {spread:.3f}" if spread is not None else "")


def _cell(found: list[dict[str, Any]], column: str) -> str:
    known = [row[column] for row in found if column in row]
    if not known:
        return "-"
    if column == "latency":
        return f"{known[0]['median_ms']:.3f}"
    value = statistics.mean(known)
    return f"{value:.2f}" if column == "gflops" else f"{value:,.0f}"


def git_commit() -> str | None:
    """Return the commit of the working copy, None where git does not tell it."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
