"""What the modes about data and about evaluated runs do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from yolo_lat.cli_modes import MODES
from yolo_lat.cli_run import check_values, fetch, file_to_write, recipe_of, require, value_of
from yolo_lat.engine.train_options import OWN_OPTIONS
from yolo_lat.errors import UserError


def _check(options: dict[str, Any]) -> None:
    require("data check", options, "data")
    fetch(options)
    from rich.console import Console

    from yolo_lat.data.doctor import check_dataset
    from yolo_lat.drawing import picture_path

    if options.get("sheet"):
        picture_path(options["sheet"])
    files = {key: file_to_write(key, options[key]) for key in ("json", "sheet") if options.get(key)}
    report = check_dataset(options["data"], workers=options.get("workers"))
    console = Console()
    console.print(*report.tables(), *(f"note: {note}" for note in report.notes), sep="\n", markup=False)
    if "json" in files:
        report.save(files["json"])
    if "sheet" in files:
        report.contact_sheet(files["sheet"])
    errors, warnings = (report.found.total(error) for error in (True, False))
    verdict = "training may start" if report.ok else "mend the errors before training"
    print(f"{report.spec.name}: {errors} errors, {warnings} warnings; {verdict}")
    if not report.ok:
        raise SystemExit(1)


def _convert(options: dict[str, Any]) -> None:
    require("data convert", options, "data", "format", "directory")
    fetch(options)
    from yolo_lat.data.convert import convert

    print(convert(options.pop("data"), Path(options.pop("directory")), **options))


def _split(options: dict[str, Any]) -> None:
    require("data split", options, "data", "directory")
    from yolo_lat.data.split import split_dataset

    shares = {split: float(value_of("data split", options, split)) for split in ("train", "val", "test")}
    rest = {key: value for key, value in options.items() if key not in (*shares, "data", "directory")}
    print(split_dataset(options["data"], Path(options["directory"]), shares, **rest))


def _show(options: dict[str, Any]) -> None:
    require("data show", options, "data")
    fetch(options)
    from yolo_lat.data.show import show

    print(show(options.pop("data"), **options))


def _preview(options: dict[str, Any]) -> None:
    require("data preview", options, "data")
    recipe = {key: value for key, value in recipe_of(options).items() if key not in OWN_OPTIONS}  # training's alone
    ours = {key.name for key in MODES["data preview"].keys} - {"cfg", "augmentations"}
    given = {key: value for key, value in options.items() if key not in ours and key != "cfg"}
    check_values({key: value for key, value in given.items() if key != "augmentations"})
    from yolo_lat.data.preview import preview

    plain = {key: value for key, value in options.items() if key in ours and key != "data"}
    print(preview(options["data"], recipe=recipe | given, **plain))


def _list(options: dict[str, Any]) -> None:
    from rich.console import Console

    from yolo_lat.data.listing import describe_entry, registry_table

    Console().print(describe_entry(options["name"]) if options.get("name") else registry_table())


def _compare(options: dict[str, Any]) -> None:
    if len(options.get("runs") or []) < 2:
        raise UserError(f"compare needs two runs or more, for example: {MODES['compare'].examples[0]}")
    from rich.console import Console

    from yolo_lat.engine.compare import compare_runs

    wanted, drawn = options.pop("json", None), options.pop("figure", None)
    figure = file_to_write("figure", drawn, ".png") if drawn else None
    file = file_to_write("json", wanted) if wanted else None
    comparison = compare_runs(**options)
    Console().print(comparison.table())
    if file:
        comparison.save(file)
    if figure:
        comparison.plot(figure)


RUN_DATA: dict[str, Callable[[dict[str, Any]], None]] = {
    "compare": _compare,
    "data check": _check,
    "data convert": _convert,
    "data split": _split,
    "data show": _show,
    "data preview": _preview,
    "data list": _list,
}
