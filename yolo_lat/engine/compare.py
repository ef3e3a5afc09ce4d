"""Evaluated runs side by side, with intervals that say how much of a difference is the choice of images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from yolo_lat.data.files import read_json
from yolo_lat.data.labels import DetectionSplit
from yolo_lat.data.reader import read_split
from yolo_lat.data.registry import load_dataset
from yolo_lat.engine.bootstrap import (
    Difference,
    Interval,
    Matches,
    match_detections,
    paired_difference,
    percentile_interval,
    resample_images,
)
from yolo_lat.engine.evaluate import COCO_NUMBERS, read_results
from yolo_lat.engine.report import ground_truth_hash
from yolo_lat.errors import UserError
from yolo_lat.progress import show_progress
from yolo_lat.unfinished import whole_file, write_whole

SHOWN = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")
COVERS = (
    "The intervals cover the choice of images alone, not the seed of training: the same model trained again can differ "
    "by more. Of many intervals, some exclude 0 by chance."
)
_MIN_RESAMPLES = 100
_BATCH = 100
_SAME = 1e-9  # between recorded and recomputed numbers


@dataclass(frozen=True)
class Run:
    """An evaluated run, as validation left it.

    Attributes:
        folder: holds `evaluation.json` and `predictions.json`.
        label: short name, unlike that of every other run compared.
        model, data, split: what was evaluated on what; None for a model that is not known.
        ground_truth: hash of the annotations.
        numbers: COCO's twelve, as recorded.
    """

    folder: Path
    label: str
    model: str | None
    data: str
    split: str
    ground_truth: str
    numbers: dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """Runs on the same ground truth and the same resamples of its images; the first run is the reference.

    Attributes:
        runs: in the order given.
        name: data set and split.
        images: how many there are.
        values: (runs, 12) on all images, in the order of `COCO_NUMBERS`, NaN where there is no ground truth.
        resampled: (runs, resamples, 12) the same on each resample.
        seed, confidence: as given to `compare_runs`.
    """

    runs: tuple[Run, ...]
    name: str
    images: int
    values: np.ndarray = field(repr=False)
    resampled: np.ndarray = field(repr=False)
    seed: int
    confidence: float

    def interval(self, run: int, number: str) -> Interval:
        """Return one of COCO's twelve numbers of a run, counted from 0."""
        place = list(COCO_NUMBERS).index(number)
        return percentile_interval(self.values[run, place], self.resampled[run, :, place], self.confidence)

    def difference(self, run: int, number: str) -> Difference:
        """Return one of COCO's twelve numbers of a run minus that of the reference, resample by resample."""
        place = list(COCO_NUMBERS).index(number)
        values, resampled = self.values[:, place], self.resampled[:, :, place]
        return paired_difference(values[run] - values[0], resampled[run] - resampled[0], self.confidence)

    @property
    def method(self) -> str:
        """Say how the intervals were made and what they mean."""
        return (
            f"{100 * self.confidence:.4g}% percentile bootstrap intervals over {self.images} images, the same "
            f"{self.resampled.shape[1]} resamples (seed {self.seed}) for all runs. {COVERS}"
        )

    def table(self) -> Table:
        """Return the numbers and their differences to the first run as a table for the terminal."""
        title = f"{escape(self.name)}: differences to {escape(self.runs[0].label)}"
        caption = escape(f"* the interval excludes 0. {self.method}")
        table = Table(
            "", "run", title=title, caption=caption, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
        )
        table.caption_justify = "left"
        for column in ("value", "interval", "difference", "interval", "better in"):
            table.add_column(column, justify="right", no_wrap=True)
        for number in SHOWN:
            for i, run in enumerate(self.runs):
                own, cells = self.interval(i, number), ["reference", "", ""]
                if i:
                    gap = self.difference(i, number)
                    mark = "*" if gap.excludes_zero else " "
                    share = f"{100 * gap.better / gap.resamples:.0f}%" if gap.resamples else "-"
                    cells = [_show(gap.value, "+") + mark, _bounds(gap, "+"), share]
                last = i == len(self.runs) - 1
                table.add_row(
                    "" if i else number, escape(run.label), _show(own.value), _bounds(own), *cells, end_section=last
                )
        return table

    def save(self, path: str | Path) -> None:
        """Write runs, all twelve numbers, intervals and differences as JSON; null stands for no ground truth."""
        rows = []
        for i, run in enumerate(self.runs):
            row: dict[str, Any] = asdict(run) | {"folder": str(run.folder)}
            row["numbers"] = {number: _json(self.interval(i, number)) for number in COCO_NUMBERS}
            if i:
                row["difference"] = {number: _json(self.difference(i, number)) for number in COCO_NUMBERS}
            rows.append(row)
        content = {
            "name": self.name,
            "images": self.images,
            "resamples": self.resampled.shape[1],
            "seed": self.seed,
            "confidence": self.confidence,
            "method": self.method,
            "reference": self.runs[0].label,
            "runs": rows,
        }
        write_whole(Path(path), json.dumps(content, indent=1, allow_nan=False) + "\n")

    def plot(self, path: str | Path) -> None:
        """Draw values, and differences to the first run, with their intervals as PNG."""
        figure = Figure(figsize=(11, 2.2 + 0.16 * len(SHOWN) * (len(self.runs) + 1)), layout="constrained", dpi=120)
        values, gaps = figure.subplots(1, 2, sharey=True)
        labels = [run.label.replace("$", r"\$") for run in self.runs]  # a lone $ would begin a formula
        for i in range(len(labels)):
            _draw(values, [self.interval(i, number) for number in SHOWN], i, len(self.runs), labels[i])
            if i:
                _draw(gaps, [self.difference(i, number) for number in SHOWN], i, len(self.runs), labels[i])
        values.set_yticks(range(len(SHOWN)), SHOWN)
        values.invert_yaxis()
        values.set_xlabel("value")
        gaps.axvline(0, color="0.4", linewidth=1)
        gaps.set_xlabel(f"difference to {labels[0]}; filled where the interval excludes 0")
        for axes in (values, gaps):
            axes.grid(axis="x", color="0.9")
            axes.set_axisbelow(True)
        figure.suptitle(self.name.replace("$", r"\$"))
        figure.legend(*values.get_legend_handles_labels(), loc="outside upper right", frameon=False)
        figure.supxlabel(fill(self.method, 150), fontsize=8)
        with whole_file(Path(path)) as partial:
            FigureCanvasAgg(figure).print_png(str(partial))


def compare_runs(
    runs: Sequence[str | Path], resamples: int = 1000, seed: int = 0, confidence: float = 0.95, progress: bool = True
) -> Comparison:
    """Compare evaluated runs by the percentile bootstrap over images, paired: all runs see the same resamples.

    Args:
        runs: folders that validation wrote, with `evaluation.json` and `predictions.json`; the first is the reference.
        resamples: how many; 1000 of COCO's 5000 validation images take about 40 s a run on one core.
        seed: of the resamples.
        confidence: of the intervals, between 0 and 1.
        progress: show bars on stderr.

    Raises:
        UserError: fewer than two runs, one given twice, files that are missing or do not belong together, or runs that
            were not evaluated against the same annotations.
    """
    if not isinstance(resamples, int) or resamples < _MIN_RESAMPLES:
        raise UserError(f"resamples={resamples}: too few for an interval; give {_MIN_RESAMPLES} or more")
    if not isinstance(seed, int) or seed < 0:
        raise UserError(f"seed={seed}: not a whole number from 0; give one")
    if not isinstance(confidence, int | float) or not 0 < confidence < 1:
        raise UserError(f"confidence={confidence}: not between 0 and 1; give 0.95 for 95 percent")
    chosen = _read_runs(runs)
    split = _ground_truth(chosen[0], progress)
    matches = []
    with show_progress("Matching", len(chosen), progress) as advance:
        for run in chosen:
            matches.append(_match(run, split))
            advance()
    images = len(split.images)
    every = np.ones((1, images), dtype=np.int32)
    batches = []
    with show_progress("Resampling", -(-resamples // _BATCH), progress) as advance:
        for counts in resample_images(images, resamples, seed, _BATCH):
            batches.append([match.numbers(counts) for match in matches])
            advance()
    values = np.concatenate([match.numbers(every) for match in matches])
    resampled = np.concatenate([np.stack(batch) for batch in batches], axis=1)
    return Comparison(tuple(chosen), split.name, images, values, resampled, seed, confidence)


def _read_runs(runs: Sequence[str | Path]) -> list[Run]:
    """Read `evaluation.json` of every run, and refuse runs that cannot be compared."""
    if len(runs) < 2:
        raise UserError(f"compare: {len(runs)} run{'s' * (len(runs) != 1)} given; give the folders of two or more")
    folders = [Path(run) for run in runs]
    for place, folder in enumerate(folders):
        if folder.resolve() in [other.resolve() for other in folders[:place]]:
            raise UserError(f"{folder}: given twice; give each run once")
    names = [folder.resolve().name for folder in folders]
    distinct = len(set(names)) == len(names)
    found = [_read_run(folder, name if distinct else str(folder)) for folder, name in zip(folders, names, strict=True)]
    for run in found[1:]:
        if run.ground_truth != found[0].ground_truth:
            raise UserError(
                f"{run.folder}: evaluated against other annotations ({run.data} {run.split}) than {found[0].folder} "
                f"({found[0].data} {found[0].split}); validate both on the same data with the same settings"
            )
    return found


def _read_run(folder: Path, label: str) -> Run:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of a run that validation wrote")
    for name in ("evaluation.json", "predictions.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: has no {name}; validate the model and give the folder that validation writes")
    file = folder / "evaluation.json"
    content = read_json(file)
    numbers = content.get("numbers") if isinstance(content, dict) else None
    if not isinstance(numbers, dict) or not all(isinstance(numbers.get(name), int | float) for name in COCO_NUMBERS):
        raise UserError(f"{file}, key numbers: lacks some of COCO's twelve; validate the model again")
    for key in ("data", "split", "ground_truth"):
        if not isinstance(content.get(key), str):
            raise UserError(f"{file}, key {key}: is missing or not a text; validate the model again")
    twelve = {name: float(numbers[name]) for name in COCO_NUMBERS}
    about = {key: content.get(key) for key in ("model", "data", "split", "ground_truth")}
    return Run(folder, label, **about, numbers=twelve)


def _ground_truth(run: Run, progress: bool) -> DetectionSplit:
    """Read what the runs were evaluated against once more."""
    file = run.folder / "evaluation.json"
    try:
        split = read_split(load_dataset(run.data), run.split, progress)
    except UserError as error:
        raise UserError(f"{file}, key data: cannot be read again: {error}") from error
    if ground_truth_hash(split.ground_truth()) != run.ground_truth:
        raise UserError(
            f"{file}: the annotations of {split.name} changed since, or only part of them was evaluated; validate the "
            "runs again, without fraction, classes or single_cls"
        )
    return split


def _match(run: Run, split: DetectionSplit) -> Matches:
    """Match a run's detections, and make sure that they are what its numbers were computed from."""
    file = run.folder / "predictions.json"
    matches = match_detections(split, read_results(file, split))
    found = matches.numbers(np.ones((1, len(split.images)), dtype=np.int32))[0]
    for name, value in zip(COCO_NUMBERS, np.nan_to_num(found, nan=-1.0), strict=True):
        if abs(value - run.numbers[name]) > _SAME:
            raise UserError(
                f"{file}: gives {name} {value:.6f}, but evaluation.json says {run.numbers[name]:.6f}, so one is not of "
                "the other; validate the model again"
            )
    return matches


def _draw(axes: Axes, found: Sequence[Interval], run: int, runs: int, label: str) -> None:
    """Draw a run's numbers as points with bars, one number a row; hollow are differences that may be zero."""
    for row, interval in enumerate(found):
        if not interval.resamples:
            continue
        y = row + 0.7 * ((run + 0.5) / runs - 0.5)
        open_mark = isinstance(interval, Difference) and not interval.excludes_zero
        axes.plot([interval.low, interval.high], [y, y], color=f"C{run}", linewidth=1.5)
        axes.plot([interval.value], [y], "o", color=f"C{run}", markersize=5, markerfacecolor="w" if open_mark else None)
    axes.plot([], [], "o-", color=f"C{run}", label=label)


def _json(interval: Interval) -> dict[str, Any]:
    return {key: None if value != value else value for key, value in asdict(interval).items()}


def _show(value: float, sign: str = "") -> str:
    return "-" if np.isnan(value) else f"{value:{sign}.3f}"


def _bounds(interval: Interval, sign: str = "") -> str:
    return f"{_show(interval.low, sign)} to {_show(interval.high, sign)}" if interval.resamples else "-"
