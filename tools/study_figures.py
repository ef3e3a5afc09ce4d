"""Figures of a study's record: AP against cost, AP over epochs, and what each change did."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from pathlib import Path
from textwrap import fill
from typing import Any, cast

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter
from matplotlib.transforms import Bbox
from study_record import SHARE, by_row, differences, mean_and_spread, read_rows

from yolo_lat.errors import UserError

COSTS = {"latency": "ms at batch 1, forward", "gflops": "GFLOPs", "parameters": "parameters, millions"}

Groups = dict[str, list[dict[str, Any]]]  # finished runs of one data set, by row


def draw_study(record: Path, folder: Path) -> list[Path]:
    """Draw what a record has data for: NAME-pareto.png, -convergence.png, -losses.png and -changes.png; returns those.

    Raises:
        UserError: no record of a study, or one without a finished run.
    """
    rows = read_rows(record)
    groups = {key: found for key, found in by_row(rows).items() if found}
    if not groups:
        raise UserError(f"{record}: no run is finished, so there is nothing to draw")
    sets: dict[str, Groups] = {}
    for (name, data), found in groups.items():
        sets.setdefault(data, {})[name] = found
    folder.mkdir(parents=True, exist_ok=True)
    written = [_save(folder / f"{record.stem}-pareto.png", sets, _pareto, "AP against cost")]
    if any("curve" in row for row in rows):
        curves = _with_unfinished(sets, rows)
        written.append(_save(folder / f"{record.stem}-convergence.png", curves, _convergence, "AP over epochs"))
        if any("losses" in row for row in rows):
            title = "Loss of classes on training and validation images, over epochs"
            written.append(_save(folder / f"{record.stem}-losses.png", curves, _losses, title))
    if any(differences(by_name) for by_name in sets.values()):
        title = "What a change does to AP, mean and standard deviation over seeds"
        written.append(_save(folder / f"{record.stem}-changes.png", sets, _changes, title))
    return written


def _with_unfinished(sets: dict[str, Groups], rows: list[dict[str, Any]]) -> dict[str, Groups]:
    """Return the sets with the runs added that began, in rows of which none has finished."""
    whole = {data: dict(groups) for data, groups in sets.items()}
    for row in rows:
        if "curve" in row and row["run"] not in sets.get(row["data"], {}):
            whole.setdefault(row["data"], {}).setdefault(f"{row['run']}, unfinished", []).append(row)
    return whole


def _save(file: Path, sets: dict[str, Groups], panel: Callable[[Axes, Groups], None], title: str) -> Path:
    most = max(map(len, sets.values()))
    figure = Figure(figsize=(6.5 * len(sets), 4 + 0.12 * most), layout="constrained", dpi=110)
    for (data, groups), axes in zip(sets.items(), figure.subplots(1, len(sets), squeeze=False)[0], strict=True):
        seeds = {len(found) for found in groups.values()}
        few, many = min(seeds), max(seeds)
        count = f"{few} to {many}" if few < many else few
        axes.set_title(f"{data}, {count} seed{'s' * (many != 1)}", fontsize=10)
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        panel(axes, groups)
    figure.suptitle(title)
    FigureCanvasAgg(figure).print_png(str(file))
    return file


def _pareto(axes: Axes, groups: Groups) -> None:
    """Mark every row at its cost, with a line through those that nothing beats at less cost."""
    cost = next((key for key in COSTS if any(_cost(found, key) is not None for found in groups.values())), None)
    if cost is None:
        axes.text(0.5, 0.5, "no cost is known", transform=axes.transAxes, horizontalalignment="center")
        return
    points: dict[str, tuple[float, float]] = {}
    for name, found in groups.items():
        mean, spread = mean_and_spread([row["coco"]["AP"] for row in found])
        x = _cost(found, cost)
        if x is not None:
            points[name] = (x, mean)
            ours = str(found[0]["options"]["model"]).startswith("yolo-lat")
            axes.errorbar([x], [mean], yerr=spread, fmt="o" if ours else "s", color="C0" if ours else "0.25", capsize=3)
    front: list[tuple[float, float]] = []
    for point in sorted(points.values(), key=lambda p: (p[0], -p[1])):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    axes.plot(*zip(*front, strict=True), color="0.6", linewidth=1, zorder=0)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(0.2, 0.15)
    left_out = [name for name, found in groups.items() if _cost(found, cost) is None]
    label = COSTS[cost] + (f"; not known of {', '.join(left_out)}" if left_out else "")
    axes.set_xlabel(fill(label, 90), fontsize=8)
    axes.set_ylabel("AP; squares: models of others")
    _name_points(axes, points)


def _name_points(axes: Axes, points: dict[str, tuple[float, float]]) -> None:
    """Write its name beside each point, as far up as lower names need, with a line where that is far."""
    cast(Figure, axes.figure).draw_without_rendering()  # for where the points come to lie
    placed: list[Bbox] = []
    for name, point in sorted(points.items(), key=lambda item: item[1][1]):
        x, y = axes.transData.transform(point)
        right, height = x + 10 + 6.5 * len(name), 11  # pixels, of the font below
        up = 2
        while any(box.x0 < right and x < box.x1 and y + up < box.y1 and box.y0 < y + up + height for box in placed):
            up += 1
        placed.append(Bbox.from_extents(x, y + up, right, y + up + height))
        line = {"arrowstyle": "-", "color": "0.7", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2}
        axes.annotate(
            name, point, (10, up), textcoords="offset pixels", fontsize=7, arrowprops=line if up > 20 else None
        )


def _cost(found: list[dict[str, Any]], key: str) -> float | None:
    known = [row[key] for row in found if key in row]
    if not known:
        return None
    if key == "latency":
        return float(known[0]["median_ms"])
    return statistics.mean(known) / (1e6 if key == "parameters" else 1)


def _convergence(axes: Axes, groups: Groups) -> None:
    """Draw the mean curve of each row over its seeds, with a mark where it has 90% of its best."""
    for number, (name, found) in enumerate(groups.items()):
        by_epoch: dict[int, list[float]] = {}
        for row in found:
            for epoch, ap in row.get("curve", []):
                by_epoch.setdefault(epoch, []).append(ap)
        shared = {epoch: statistics.mean(aps) for epoch, aps in by_epoch.items() if len(aps) == len(found)}
        if not shared:
            continue
        style = {"color": f"C{number % 10}", "linestyle": ("-", "--", ":")[number // 10 % 3]}
        axes.plot(list(shared), list(shared.values()), linewidth=1, label=name, **style)
        best = max(shared.values())
        there = next(epoch for epoch, ap in shared.items() if ap >= SHARE * best)
        axes.plot([there], [shared[there]], "o", color=style["color"], markersize=4)
    axes.set_xlabel("epoch; the mark is where 90% of the best AP is reached")
    axes.set_ylabel("AP")
    axes.legend(fontsize=6, ncols=2)


def _losses(axes: Axes, groups: Groups) -> None:
    """Draw the path of each row's first seed: further right is fitted better, further down generalises better."""
    for number, (name, found) in enumerate(groups.items()):
        path = [(train, val) for _, _, _, train, val in found[0].get("losses", [])]
        if path:
            style = {"color": f"C{number % 10}", "linestyle": ("-", "--", ":")[number // 10 % 3]}
            axes.plot(*zip(*path, strict=True), linewidth=1, label=name, **style)
            axes.plot(*path[-1], "o", color=style["color"], markersize=4)
    low, high = axes.get_xlim()
    axes.plot([low, high], [low, high], color="0.7", linewidth=1, zorder=0)
    axes.set_xlim(high, low)  # training goes to the right
    axes.set_xlabel("loss on training images, augmented\nmark: the last epoch, grey: both equal")
    axes.set_ylabel("loss on validation images")
    axes.legend(fontsize=6, ncols=2)


def _changes(axes: Axes, groups: Groups) -> None:
    """Draw a bar for each row, its difference to the row that it is compared with, over the spread of that one."""
    found = differences(groups)
    if not found:
        axes.text(0.5, 0.5, "nothing to compare", transform=axes.transAxes, horizontalalignment="center")
        return
    labels = [f"{name} minus {against}" for name, (against, _) in found.items()]
    means, spreads = zip(*(mean_and_spread(values) for _, values in found.values()), strict=True)
    places = range(len(labels))
    against = [mean_and_spread([row["coco"]["AP"] for row in groups[name]])[1] or 0 for name, _ in found.values()]
    left, width = [-spread for spread in against], [2 * spread for spread in against]
    axes.barh(places, width, left=left, color="0.85", height=1, label="standard deviation of what it is compared with")
    axes.barh(places, means, xerr=[spread or math.nan for spread in spreads], color="C0", capsize=3, height=0.6)
    if any(against):
        axes.legend(fontsize=7)
    axes.set_yticks(places, labels, fontsize=7)
    axes.invert_yaxis()
    axes.axvline(0, color="0.3", linewidth=1)
    axes.set_xlabel("difference in AP")
