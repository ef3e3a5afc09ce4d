"""What the modes about speed do."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from yolo_lat.cli_run import file_to_write, require, trust_if_asked
from yolo_lat.errors import UserError

_WIDTH = 150  # columns of a table that goes into a file


def _benchmark(options: dict[str, Any]) -> None:
    files = _take_files(options)
    against, shown = options.pop("against", None), options.pop("record", None)
    if shown is None:
        require("benchmark", options, "models")
    elif options:
        raise UserError(f"record= shows what was measured before; leave {min(options)}= out")
    from yolo_lat.deploy.benchmark.against import change_table, compare_records
    from yolo_lat.deploy.benchmark.plan import make_plan
    from yolo_lat.deploy.benchmark.record import Record, read_record, read_records
    from yolo_lat.deploy.benchmark.run import Benchmark
    from yolo_lat.deploy.benchmark.table import tables

    old = None if against is None else read_record(against)

    def save(record: Record) -> None:
        if "json" in files:
            record.save(files["json"])

    if shown is None:
        trust, plan = options.pop("trust", False), make_plan(**options)
        trust_if_asked(trust, [entry.source for entry in plan.entries])
        new = Benchmark(plan, save).run()
    else:
        new = read_records(str(shown).split(","))
        save(new)
    _print(tables(new))
    if "figure" in files:
        from yolo_lat.deploy.benchmark.figure import draw

        draw(new, files["figure"])
    if old is not None:
        _print(change_table(compare_records(old, new, against, shown or "this measurement"), new))
    if any(result.error for _, result in new.results()):
        raise SystemExit(1)


def _profile(options: dict[str, Any]) -> None:
    files = _take_files(options)
    require("profile", options, "model")
    from yolo_lat.deploy.benchmark.plan import make_plan
    from yolo_lat.deploy.benchmark.profile import profile_model

    layout, trust = options.pop("layout", True), options.pop("trust", False)
    plan = make_plan(models=options.pop("model"), boundary="forward", **{"runs": 20, **options})
    trust_if_asked(trust, [entry.source for entry in plan.entries])
    profile = profile_model(plan, layout=bool(layout))
    from yolo_lat.deploy.benchmark.profile_view import draw_profile, profile_tables

    _print(profile_tables(profile))
    if "json" in files:
        profile.save(files["json"])
    if "figure" in files:
        draw_profile(profile, files["figure"])


def _take_files(options: dict[str, Any]) -> dict[str, Path]:
    """Take what is to be written out of the options, and make sure that it can be."""
    endings = {"json": "", "figure": ".png"}
    given = {key: options.pop(key) for key in endings if options.get(key) is not None}
    if "figure" in given and find_spec("matplotlib") is None:
        raise UserError("figure= needs matplotlib, which is not installed; run: pip install matplotlib")
    return {key: file_to_write(key, value, endings[key]) for key, value in given.items()}


def _print(content: Any) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else _WIDTH).print(content)


RUN_BENCHMARK: dict[str, Callable[[dict[str, Any]], None]] = {"benchmark": _benchmark, "profile": _profile}
