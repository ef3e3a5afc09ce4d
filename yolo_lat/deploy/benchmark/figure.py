"""A record as a picture: latency against AP where it is known, against parameters otherwise."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from yolo_lat.deploy.benchmark.plan import Cell
from yolo_lat.deploy.benchmark.record import Record
from yolo_lat.deploy.benchmark.table import heading, size_cells
from yolo_lat.errors import UserError
from yolo_lat.unfinished import whole_file

_NEAR = 0.05  # of the spread of heights, within which names would lie over one another
_MARKERS = {"forward": "o", "pipeline": "s"}


def draw(record: Record, path: str | Path) -> None:
    """Draw one row of panels for each size and precision, one panel for each batch, latency on a log axis.

    Raises:
        UserError: nothing was measured.
    """
    cells = [measured.cell for measured in record.cells]
    rows = sorted({(cell.imgsz, cell.precision) for cell in cells})
    batches = sorted({cell.batch for cell in cells})
    points = {
        (cell, result.model): result.median_ms for cell, result in record.results() if result.median_ms is not None
    }
    if not points:
        raise UserError(f"{path}: nothing was measured, so there is nothing to draw")
    known = any(record.model(name).ap(cell) is not None for cell, name in points)
    figure = Figure(figsize=(6.5 * len(batches) + 1, 4.2 * len(rows) + 1), layout="constrained", dpi=120)
    panels = figure.subplots(len(rows), len(batches), squeeze=False)
    colours = {model.name: f"C{number % 10}" for number, model in enumerate(record.models)}
    for (imgsz, precision), line in zip(rows, panels, strict=True):
        for batch, axes in zip(batches, line, strict=True):
            cells_here = {boundary: Cell(imgsz, batch, precision, boundary) for boundary in _MARKERS}
            _finish(axes, f"{imgsz} px, batch {batch}, {precision}", known)
            here = {key: ms for key, ms in points.items() if key[0] in cells_here.values()}
            if not here:
                axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, horizontalalignment="center")
            placed = dict[str, tuple[dict[str, float], float]]()
            for model in record.models:
                times = {
                    boundary: here[cell, model.name]
                    for boundary, cell in cells_here.items()
                    if (cell, model.name) in here
                }
                height = model.ap(cells_here["forward"]) if known else model.parameters and model.parameters / 1e6
                if times and height is not None:
                    placed[model.name] = times, height
            _draw_models(axes, placed, colours)
        _legend(line[-1], record, Cell(imgsz, batches[0], precision, "forward"), colours)
    figure.suptitle("Latency of a batch and " + ("COCO AP" if known else "parameters; accuracy not measured"))
    figure.supxlabel(_plain(fill(" · ".join(heading(record)), 60 * len(batches) + 20)), fontsize=7)
    with whole_file(Path(path)) as partial:
        FigureCanvasAgg(figure).print_png(str(partial))


def _draw_models(axes: Axes, placed: dict[str, tuple[dict[str, float], float]], colours: dict[str, str]) -> None:
    """Mark each model's times, joined by a line, and write its name where there is room.

    That is on the left, and on the right of the slowest of all and of the slowest of several at about one height.
    """
    heights = [height for _, height in placed.values()]
    near = _NEAR * (max(heights, default=0.0) - min(heights, default=0.0))
    slowest = max((max(times.values()) for times, _ in placed.values()), default=0.0)
    for name, (times, height) in placed.items():
        axes.plot(list(times.values()), [height] * len(times), color=colours[name], linewidth=1)
        for boundary, median in times.items():
            axes.plot([median], [height], _MARKERS[boundary], color=colours[name], markersize=7)
        beside = [max(other.values()) for other, at in placed.values() if abs(at - height) <= near]
        right = max(times.values()) in ([max(beside), slowest] if len(beside) > 1 else [slowest])
        axes.annotate(
            _plain(name),
            (max(times.values()) if right else min(times.values()), height),
            (8 if right else -8, 0),
            textcoords="offset points",
            fontsize=8,
            color=colours[name],
            horizontalalignment="left" if right else "right",
            verticalalignment="center",
        )


def _legend(axes: Axes, record: Record, cell: Cell, colours: dict[str, str]) -> None:
    """Say beside the panels of a row what its speeds belong to: sizes, accuracy, and which mark is which boundary."""
    for model in record.models:
        parameters, gflops, accuracy = size_cells(model, cell)
        label = f"{model.name}\n{parameters}, {gflops} GFLOPs\nAP {accuracy}"
        axes.plot([], [], color=colours[model.name], linewidth=4, label=_plain(label))
    for boundary, marker in _MARKERS.items():
        axes.plot([], [], marker, color="0.3", label=boundary)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=7, frameon=False)


def _plain(text: str) -> str:
    """Return text fit for drawing, where a dollar sign would begin a formula."""
    return text.replace("$", r"\$")


def _finish(axes: Axes, title: str, known: bool) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(0.3, 0.18)
    axes.set_xlabel("ms")
    axes.set_ylabel("AP" if known else "parameters, millions")
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
