"""A profile as tables and as a picture."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from yolo_lat.deploy.benchmark.profile import Cost, Profile
from yolo_lat.unfinished import whole_file


def profile_tables(profile: Profile) -> Group:
    """Return one table of operators and one of layers, with lines that say what the times are."""
    return Group(
        *(escape(line) for line in summary(profile)),
        _table("operator", profile.operators, profile),
        _table("layer", profile.layers, profile),
    )


def summary(profile: Profile) -> list[str]:
    """Return lines on what was profiled, and where."""
    parameters = "unknown" if profile.parameters is None else f"{profile.parameters:,}"
    gflops = "unknown" if profile.gflops is None else f"{profile.gflops:.2f}"
    machine = profile.machine
    return [
        f"{profile.model}, {profile.imgsz} px, batch {profile.batch}, {profile.precision}; parameters {parameters}, "
        f"GFLOPs {gflops}; {machine['device']}, {machine['threads']} CPU threads, onnxruntime "
        f"{profile.versions['onnxruntime']}",
        f"operators {profile.nodes_ms:.3f} ms of a profiled run's {profile.run_ms:.3f} ms, mean of {profile.runs}; "
        f"without profiler a run takes {profile.plain_ms:.3f} ms",
        f"times of operators: {profile.meaning}",
    ]


def _table(first: str, costs: list[Cost], profile: Profile) -> Table:
    table = Table(first, title=f"By {first}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("calls", "ms", "share"):
        table.add_column(column, justify="right")
    for cost in costs:
        last = cost is costs[-1]
        table.add_row(escape(cost.name), str(cost.calls), f"{cost.ms:.4f}", f"{cost.share:.1%}", end_section=last)
    table.add_row("total", str(sum(cost.calls for cost in costs)), f"{profile.nodes_ms:.4f}", "100.0%")
    return table


def draw_profile(profile: Profile, path: str | Path) -> None:
    """Draw the costs of operators and of layers as bars into a PNG."""
    longest = max(len(profile.operators), len(profile.layers))
    figure = Figure(figsize=(12, 1.8 + 0.24 * longest), layout="constrained", dpi=120)
    for axes, (title, costs) in zip(
        figure.subplots(1, 2), {"operators": profile.operators, "layers": profile.layers}.items(), strict=True
    ):
        labels = [f"{cost.name} ({cost.calls})".replace("$", r"\$") for cost in costs]
        bars = axes.barh(range(len(costs)), [cost.ms for cost in costs], color="#1f5f99")
        axes.bar_label(bars, [f" {cost.share:.1%}" for cost in costs], fontsize=7)
        axes.set_yticks(range(len(costs)), labels, fontsize=7)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set_xlabel("ms in one run")
        axes.set_title(title, fontsize=10)
        axes.grid(axis="x", color="0.9")
        axes.set_axisbelow(True)
    figure.supxlabel(fill(" · ".join(summary(profile)), 150).replace("$", r"\$"), fontsize=7)
    with whole_file(Path(path)) as partial:
        FigureCanvasAgg(figure).print_png(str(partial))
