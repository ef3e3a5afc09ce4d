"""Records: read back as written, shown with all that belongs to a speed, compared only with their like."""

import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from benchmark_samples import make_record
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from yolo_lat.deploy.benchmark.against import change_table, compare_records
from yolo_lat.deploy.benchmark.figure import _draw_models, draw
from yolo_lat.deploy.benchmark.record import Record, differences, read_record, read_records
from yolo_lat.deploy.benchmark.table import tables, trial_lines
from yolo_lat.errors import UserError

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools"))
import readme_table


def text_of(content: object, width: int = 150) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(content)
    return stream.getvalue()


def saved(record: Record, path: Path) -> Path:
    record.save(path)
    return path


def test_a_record_reads_back_as_written(tmp_path):
    record = make_record()
    file = saved(record, tmp_path / "a.json")
    assert read_record(file) == record
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    content = json.loads(file.read_text(), parse_constant=pytest.fail)
    assert (content["protocol"], content["deviations"], content["complete"]) == (True, [], True)


@pytest.mark.parametrize(
    ("change", "deviation"),
    [
        (lambda r: r.how.update(rounds=4), "rounds 4 of at least 5"),
        (lambda r: r.how.update(runs=10), "runs 10 of at least 50"),
        (lambda r: r.cells.pop(), "no pipeline"),
        (lambda r: setattr(r, "complete", False), "interrupted"),
    ],
)
def test_deviations_from_the_protocol_are_recorded_and_shown(tmp_path, change, deviation):
    record = make_record()
    change(record)
    content = json.loads(saved(record, tmp_path / "a.json").read_text())
    assert (content["protocol"], content["deviations"]) == (False, [deviation])
    assert f"not by protocol: {deviation}" in text_of(tables(record))
    assert "not by protocol" not in text_of(tables(make_record()))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "yolo-lat benchmark 0"}', '{"format": 1, "cells": 3}'])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=r"a\.json is no record of a benchmark"):
        read_record(tmp_path / "a.json")
    with pytest.raises(UserError, match=r"b\.json is not a file"):
        read_record(tmp_path / "b.json")


def test_no_speed_without_sizes_and_accuracy_beside_it():
    text = text_of(tables(make_record()))
    header = next(line for line in text.splitlines() if "boundary" in line and "median" in line)
    assert header.split()[:5] == ["model", "parameters", "GFLOPs", "AP", "boundary"]
    rows = [line.split() for line in text.splitlines() if re.match(r" (ours|yolo26n) ", line)]
    assert rows[0][:6] == ["ours", "0.30", "M", "0.40", "0.250", "forward"]
    assert rows[1][:7] == ["yolo26n", "2.40", "M", "1.40", "random", "weights", "forward"]
    assert "4.00 (4.00-4.00)" in text
    assert "chose default/raw output out of default/raw output 1.000, graph/raw output failed" in text
    assert "GPU A, driver 1" in text


def test_sizes_and_accuracy_of_another_form_are_named():
    record = make_record()
    line = "parameters, GFLOPs and AP are those of raw output, also of models that chose an NMS-free form"
    assert line not in trial_lines(record)
    record.cells[1].results[1].variant = "bytes, NMS-free"
    assert line in trial_lines(record)


def test_failures_are_shown():
    record = make_record()
    result = record.cells[0].results[0]
    result.error, result.median_ms = "memory ran out", None
    text = text_of(tables(record))
    assert re.search(r"ours .*forward +failed", text)
    assert "failed, forward, 320 px, batch 1, fp16: ours: memory ran out" in text


def test_joined_records_know_what_each_knows_of_a_model(tmp_path):
    large = make_record()
    for part in (*large.cells, *large.models[0].accuracy):
        part.imgsz = 640
    for model in large.models:
        model.gflops = {"640": 9.0}
    joined = read_records([saved(make_record(), tmp_path / "320.json"), saved(large, tmp_path / "640.json")])
    ours = joined.model("ours")
    assert ours.gflops == {"320": 0.4, "640": 9.0}
    assert [found.imgsz for found in ours.accuracy] == [320, 640]
    assert len(joined.models) == 2


def test_records_of_one_machine_are_joined(tmp_path):
    whole = make_record()
    parts = [replace(make_record(), cells=[cell]) for cell in whole.cells]
    files = [saved(part, tmp_path / f"{i}.json") for i, part in enumerate(parts)]
    joined = read_records(files)
    assert (joined.cells, joined.models, joined.deviations) == (whole.cells, whole.models, [])
    with pytest.raises(UserError, match="both have forward, 320 px, batch 1, fp16"):
        read_records([files[0], files[0]])
    other = make_record()
    other.how["runs"] = 60
    with pytest.raises(UserError, match="differ in runs"):
        read_records([files[0], saved(other, tmp_path / "other.json")])
    with pytest.raises(UserError, match="do not go together: device GPU A and GPU B"):
        read_records([files[0], saved(make_record(device="GPU B"), tmp_path / "b.json")])


@pytest.mark.parametrize("key", ["device", "driver", "cpu", "cores", "threads", "onnxruntime", "cuda", "cudnn"])
def test_other_hardware_or_versions_are_not_compared(key):
    old, new = make_record(), make_record()
    (new.machine if key in new.machine else new.versions)[key] = "other"
    assert [text.split()[0] for text in differences(old, new)] == [key]
    with pytest.raises(UserError, match=f"old.json and new.json cannot be compared, they differ in {key} .* and other"):
        compare_records(old, new, "old.json", "new.json")


def test_every_difference_is_named():
    new = make_record(driver="2", threads=4)
    with pytest.raises(UserError, match="driver 1 and 2; threads 2 and 4;"):
        compare_records(make_record(), new, "a", "b")


@pytest.mark.parametrize(("factor", "overlap"), [(1.0, True), (1.02, True), (1.1, False), (0.5, False)])
def test_changes_are_ratios_with_the_overlap_of_their_ranges(factor, overlap):
    changes = compare_records(make_record(), make_record(factor), "a", "b")
    assert len(changes) == 4
    ours, theirs = [change for change in changes if change.cell.boundary == "pipeline"]
    assert ours.ratio == pytest.approx(factor)
    assert (ours.rounds_overlap, ours.runs_overlap) == (overlap, overlap)
    assert (theirs.ratio, theirs.rounds_overlap) == (1, True)
    text = text_of(change_table(changes, make_record(factor)), 170)
    assert f"{factor:.3f}" in text
    assert "0.30 M" in text
    assert "0.250" in text
    assert ("apart" in text) is not overlap


def test_records_without_a_common_cell_are_refused():
    new = make_record()
    for measured in new.cells:
        measured.imgsz = 640
    with pytest.raises(UserError, match="no model and cell in common"):
        compare_records(make_record(), new, "a", "b")


@pytest.mark.parametrize("accuracy", [True, False])
def test_the_figure_is_a_picture_with_every_model(tmp_path, accuracy):
    record = make_record()
    for model in record.models:
        found = replace(make_record().models[0].accuracy[0])
        model.accuracy = [found] if accuracy else []
    draw(record, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG"
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
    assert {(31, 119, 180), (255, 127, 14)} <= colours
    for _, result in record.results():
        result.median_ms = None
    with pytest.raises(UserError, match="nothing was measured"):
        draw(record, tmp_path / "b.png")


@pytest.mark.parametrize(
    ("placed", "right"),
    [
        ({"fast": (1.0, 1.0), "slow": (4.0, 3.0)}, {"slow"}),
        ({"fast": (1.0, 2.0), "near": (2.0, 2.01), "slow": (4.0, 4.0)}, {"near", "slow"}),
        ({"alone": (1.0, 1.0)}, {"alone"}),
    ],
)
def test_names_in_the_figure_do_not_lie_over_marks_at_their_height(placed, right):
    axes = Figure().subplots()
    models = {name: ({"forward": ms, "pipeline": ms + 0.1}, height) for name, (ms, height) in placed.items()}
    _draw_models(axes, models, dict.fromkeys(placed, "C0"))
    sides = {text.get_text(): text.get_horizontalalignment() for text in axes.texts}
    assert sides == {name: "left" if name in right else "right" for name in placed}


def test_the_tables_of_the_readme_and_of_all_are_written_and_checked(tmp_path, capsys):
    results, readme, full = tmp_path / "docs/results", tmp_path / "README.md", tmp_path / "docs/speed.md"
    results.mkdir(parents=True)
    for i, cell in enumerate(make_record().cells):
        versions = make_record().versions | {"commit": "abcdef"[i] * 40}
        record = replace(make_record(), cells=[cell], command=f"yolo-lat benchmark {i}", versions=versions)
        saved(record, results / f"benchmark-{i}.json")
    for file in (readme, full):
        file.write_text(f"before\n{readme_table.BEGIN}\nold\n{readme_table.END}\nafter\n")
    with pytest.raises(SystemExit, match=r"README\.md: its table is not that of the records"):
        readme_table.main(["--check"], tmp_path)
    readme_table.main(["--write"], tmp_path)
    readme_table.main(["--check"], tmp_path)
    readme_table.main([], tmp_path)
    printed = []
    for file in (readme, full):
        lines = file.read_text().splitlines()
        assert (lines[0], lines[-1]) == ("before", "after")
        printed += ["\n".join(lines[2:-2])]
    assert "\n\n".join(printed) == capsys.readouterr().out.rstrip("\n")
    rows = [[c.strip() for c in row.strip("|").split("|")] for row in printed[1].splitlines() if "| ours |" in row]
    sizes = ["ours", "0.30 M", "0.40", "0.250"]
    assert rows == [[*sizes, "1.000", "4.00 (4.00-4.00)", "3.000", "4.00 (4.00-4.00)"]]
    assert "\nyolo-lat benchmark 0\nyolo-lat benchmark 1\n" in printed[1]
    assert "commit aaaaaaaaaaaa and bbbbbbbbbbbb" in printed[1]
    saved(make_record(2.0), results / "benchmark-0.json")
    (results / "benchmark-1.json").unlink()
    with pytest.raises(SystemExit, match="is not that of the records"):
        readme_table.main(["--check"], tmp_path)
    full.write_text("no markers")
    with pytest.raises(SystemExit, match="each once"):
        readme_table.main(["--write"], tmp_path)


def named(record: Record, name: str) -> Record:
    """The record with another name for its first model."""
    record.models[0].name = name
    for measured in record.cells:
        measured.results[0].model = name
    return record


def rows_of(table: str) -> list[list[str]]:
    return [[c.strip() for c in row.strip("|").split("|")] for row in table.splitlines() if "|" in row]


def test_the_readme_shows_one_size_and_every_batch_and_boundary():
    record = named(make_record(), "yolo-lat-p")
    large = [replace(m, imgsz=640) for m in record.cells]
    record.cells += [*large, *(replace(m, batch=32) for m in large[:1])]
    names, _, *rows = rows_of(readme_table.short_table([(record, [])]))
    assert names[:4] == ["model", "parameters", "GFLOPs", "AP"]
    assert [name.partition(", ")[2] for name in names[4:]] == [
        *("batch 1, forward", "batch 1, pipeline", "batch 32, forward"),
    ]
    (ours,) = [row for row in rows if row[0] == "yolo-lat-p"]
    assert ours[4:] == ["1.00 ms, 4.00x", "3.00 ms, 4.00x", "1.00 ms, 4.00x"]


def test_the_readme_shows_what_ships_and_a_machine_once():
    parts = []
    for name, factor in (("yolo-lat-first-p", 1), ("yolo-lat-p", 2), ("candidate", 3), ("yolo-lat-n", 4)):
        record = named(make_record(factor), name)
        record.cells = [replace(m, imgsz=640) for m in record.cells]
        parts.append((record, []))
    table = readme_table.short_table([*parts, (named(make_record(5), "yolo-lat-p"), [])])  # of no cell at 640 px
    names, _, *rows = rows_of(table)
    assert len(names) == 6
    shown = {"yolo-lat-p": "2.00 ms, 2.00x", "yolo26n": "4.00 ms, 1.00x", "yolo-lat-n": "4.00 ms, 1.00x"}
    assert {row[0]: row[4] for row in rows} == shown
    assert table.count("GPU: GPU A") == 2


def test_a_cell_that_was_measured_again_makes_a_table_of_its_own(tmp_path):
    files = [saved(make_record(factor), tmp_path / f"benchmark-{factor}.json") for factor in (1, 2)]
    assert [record.command for record, _ in readme_table.joined(files)] == [make_record().command] * 2


def test_the_tables_are_those_of_the_records():
    readme_table.main(["--check"])
