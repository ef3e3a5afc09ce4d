"""Studies are declared as data; what they declare can be built and run, and what comes out is put together rightly."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import study  # noqa: E402
import study_record  # noqa: E402
from study_figures import _with_unfinished, draw_study  # noqa: E402
from study_models import changed_model, write_model  # noqa: E402

from yolo_lat.engine.recipe import find_recipe  # noqa: E402
from yolo_lat.errors import UserError  # noqa: E402
from yolo_lat.nn import load_model_yaml  # noqa: E402

STUDIES = sorted((ROOT / "tools/studies").glob("*.yaml"))


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_every_study_names_models_and_recipes_that_exist(file) -> None:
    runs = study.read_study(file)
    assert len({run.key for run in runs}) == len(runs) >= 6
    names = {run.row[0] for run in runs}
    for run in runs:
        find_recipe(run.options["cfg"])
        assert run.against is None or run.against in names
        assert run.options["imgsz"] % 32 == 0
    for name in names:
        run = next(run for run in runs if run.row[0] == name)
        content = changed_model(run.options["model"], run.change)
        assert bool(run.change) == (content != changed_model(run.options["model"], {})), f"{name} changes nothing"
    budgets = {run.options["epochs"] for run in runs}
    assert len(budgets) == 1


def write_study(file: Path, **changes) -> Path:
    content = {"name": "s", "data": {"a": {"imgsz": 96}, "b": {"imgsz": 64}}, "recipe": {"epochs": 3}, "seeds": [4, 5]}
    file.write_text(yaml.safe_dump(content | changes, sort_keys=False))
    return file


def test_runs_of_a_seed_come_together(tmp_path) -> None:
    runs = {"x": {"model": "yolo-lat-p"}, "y": {"epochs": 7, "model": "m", "imgsz": 32}}
    found = study.read_study(write_study(tmp_path / "s.yaml", runs=runs))
    assert [run.key for run in found] == [f"s-{r}-{d}-{s}" for s in (4, 5) for d in "ab" for r in "xy"]
    assert found[0].options == {"epochs": 3, "imgsz": 96, "model": "yolo-lat-p", "data": "a", "seed": 4}
    assert found[3].options["epochs"] == 7
    assert found[3].options["imgsz"] == 32


def test_runs_without_a_model_are_run_with_each_of_the_studys(tmp_path) -> None:
    runs = {"base": {}, "wide": {"change": {"rows.0": 1}}, "other": {"model": "m", "against": "p-base"}}
    file = write_study(tmp_path / "s.yaml", seeds=[0], models={"p": "yolo-lat-p", "n": "yolo-lat-n"}, runs=runs)
    found = {run.row: run for run in study.read_study(file)}
    assert [name for name, data in found if data == "a"] == ["p-base", "p-wide", "n-base", "n-wide", "other"]
    assert found["n-wide", "b"].options["model"] == "yolo-lat-n"
    assert found["n-wide", "b"].change == {"rows.0": 1}
    assert found["other", "a"].against == "p-base"
    assert "change" not in found["n-wide", "b"].options


@pytest.mark.parametrize(
    ("changes", "message"), [({}, "lacks runs; add it"), ({"runs": {"x": {}}}, "run x: names no model")]
)
def test_a_study_that_lacks_something(tmp_path, changes, message) -> None:
    with pytest.raises(UserError, match=message):
        study.read_study(write_study(tmp_path / "s.yaml", **changes))


class TestChanges:
    def test_rows_arguments_and_keys(self) -> None:
        origin = load_model_yaml("yolo-lat-p")
        depth = len(origin["backbone"])
        change = {"rows.0": [1], "rows.10.3.1": 8, "rows.10.3.3": {"local": 0}, "rows.16": [2], "reg_max": 4}
        content = changed_model("yolo-lat-p", change)
        assert content["scales"] == {"p": origin["scales"]["p"]}
        assert content["backbone"] == [[1], *origin["backbone"][1:]]
        assert content["head"][10 - depth] == [[9, 8], 1, "CrossScaleELA", [256, 8, 8, {"local": 0}]]
        assert content["head"][-1] == [2]
        assert content["reg_max"] == 4
        assert len(content["head"]) == len(origin["head"]) + 1

    @pytest.mark.parametrize("model", ["yolo-lat-p", "yolo-lat-n"])
    def test_a_modules_name_stands_for_all_its_rows(self, model) -> None:
        origin = changed_model(model, {})
        content = changed_model(model, {"HyperLink.3.2": {"join": "sum"}, "CrossScaleELA.3.1": 8})
        assert content["backbone"] == origin["backbone"]
        changed = [(old, new) for old, new in zip(origin["head"], content["head"], strict=True) if old != new]
        assert [new[2] for _, new in changed] == ["HyperLink", "CrossScaleELA", "HyperLink"]
        for (source, repeats, module, args), new in changed:
            args = [args[0], 8, *args[2:]] if module == "CrossScaleELA" else [*args[:2], {"join": "sum"}]
            assert new == [source, repeats, module, args]
        assert changed[0][1][3][2] is not changed[2][1][3][2]

    def test_a_modules_rows_are_those_of_the_changes_before(self) -> None:
        content = changed_model("yolo-lat-p", {"rows.0": [-1, 1, "Focus", [8]], "Focus.3.0": 16})
        assert content["backbone"][0] == [-1, 1, "Focus", [16]]

    def test_a_whole_head(self) -> None:
        assert changed_model("yolo-lat-p", {"head": [[1], [2]]})["head"] == [[1], [2]]

    def test_a_whole_backbone_of_another_depth(self) -> None:
        content = changed_model("yolo-lat-p", {"backbone": [[1]], "rows.0.0": 3, "head": [[2]], "rows.1.0": 4})
        assert (content["backbone"], content["head"]) == ([[3]], [[4]])

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("rows.40", "there is nothing at 40"),
            ("rows.10.9.1", "there is nothing at 10.9"),
            ("rows.10.3.0.1", "there is nothing at 10.3.0.1"),
            ("rows.a", "after rows or a module come numbers"),
            ("rows", "after rows or a module come numbers"),
            ("CrossScaleELA", "after rows or a module come numbers"),
            ("CrossScaleELA.args", "after rows or a module come numbers"),
            ("CrossScaleELA.9.1", "change CrossScaleELA.9.1: there is nothing at 9"),
            ("C2f.3.0", "there is no row of C2f; write rows.NUMBER, a row's module"),
            ("head.1", "there is no row of head; write rows.NUMBER"),
        ],
    )
    def test_paths_that_lead_nowhere(self, path, message) -> None:
        with pytest.raises(UserError, match=message):
            changed_model("yolo-lat-p", {path: 1})


def coco(ap: float) -> dict[str, float]:
    return dict.fromkeys(study_record.SHOWN, 0.5) | {"AP": ap}


def row(name: str, seed: int, ap: float | None, model: str = "m", **more) -> dict:
    made = {"run": name, "data": "a", "seed": seed, "options": {"model": model, "imgsz": 320}, **more}
    return made | ({"coco": coco(ap)} if ap is not None else {"unfinished": "2 epochs"})


def test_the_table_has_means_over_the_seeds_that_are_done(capsys) -> None:
    rows = [row("x", seed, ap) for seed, ap in enumerate((0.1, 0.3, None))]
    study_record.print_table(json.loads(json.dumps(rows)))
    assert "0.2000 +- 0.1414" in capsys.readouterr().out


def test_differences_are_to_the_mean_of_the_first_row_of_a_model_or_of_the_one_named() -> None:
    rows = [
        *(row("base", i, ap, curve=[(5, ap), (10, ap / 2)]) for i, ap in enumerate((0.1, 0.2, 0.3))),
        row("host", 0, 0.5, curve=[(5, 0.4)], against="base"),
        *(row("more", seed, ap) for seed, ap in enumerate((0.2, 0.4, None))),
        row("other", 1, 0.5, model="o", against="more"),
        row("alone", 0, 0.5, model="z"),
        row("waiting", 0, None),
    ]
    for base in rows[:3]:
        base["options"] = base["options"] | {"cache": "device"}
    groups = {name: found for (name, _), found in study_record.by_row(rows).items()}
    found = study_record.differences(groups)
    assert found.keys() == {"host", "more", "other"}
    assert found["more"] == ("base", pytest.approx([0.0, 0.2]))
    assert found["other"] == ("more", pytest.approx([0.2]))
    table = study_record.markdown_table(rows)
    assert "| host | 1 | 0.500 | 0.500 | - |" in table
    assert "| base | 3 | 0.200 ± 0.100 | 0.500 ± 0.000 | 0.200 ± 0.100 |" in table
    assert "| more | 2 | 0.300 ± 0.141 | 0.500 ± 0.000 | - | +0.100 ± 0.141 to base | - | - | - | - |" in table
    assert "| waiting | 0 | - | - | - |  | - | - | - | - |" in table


def test_curves_are_smoothed_and_end_where_a_run_had_come_to() -> None:
    rows = [
        row("base", 0, 0.3, curve=[(5, 0.1), (10, 0.2), (15, 0.6), (20, 0.4)]),
        row("begun", 1, None, curve=[(5, 0.1), (10, 0.3), (15, 0.2)]),
        row("waiting", 0, None),
    ]
    assert study_record.markdown_curves(rows, [10, 15, 17, 20]).splitlines()[2:] == [
        "| base | a | 0 | - | 0.300 | 0.300 | 0.400 |",
        "| begun | a | 1 | - | 0.200 | - | - |",
        "| waiting | a | 0 | - | - | - | - |",
    ]


def test_tables_of_some_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "study-x.json"
    study_record.save_record({"runs": [row("base", 0, 0.3), row("more", 0, 0.4)]}, record)
    monkeypatch.setattr(sys, "argv", ["study.py", "table", str(record), "--runs", "more"])
    study.main()
    shown = capsys.readouterr().out
    assert "| more | 1 | 0.400" in shown
    assert "base" not in shown
    for words, error in (
        (["--runs", "more,less"], "study: the record has no run less; it has base, more\n"),
        (["--data", "voc"], "study: the record has no data voc; it has a\n"),
    ):
        monkeypatch.setattr(sys, "argv", ["study.py", "table", str(record), *words])
        with pytest.raises(SystemExit) as ended:
            study.main()
        assert (ended.value.code, capsys.readouterr().err) == (2, error)


def test_the_tables_of_the_page_are_those_of_the_records(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs/study.md").read_text(encoding="utf-8")
    shown = re.findall(r"<!-- (study.py table [^\n]+) -->\n(.*?)<!-- end -->", page, re.DOTALL)
    assert shown
    monkeypatch.chdir(ROOT)
    for command, table in shown:
        monkeypatch.setattr(sys, "argv", command.split())
        study.main()
        assert capsys.readouterr().out == table + "\n"


def test_quality_is_equal_with_data_on_the_device_as_the_guide_says() -> None:
    rows = json.loads((ROOT / "docs/results/study-equal-quality.json").read_text(encoding="utf-8"))["runs"]
    found = {name: [row["coco"]["AP"] for row in of_row] for (name, _), of_row in study_record.by_row(rows).items()}
    guide = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    for title, name in (("yolo-lat-first-n", "n"), ("YOLOv8n", "v8n")):
        sides = [study_record.mean_and_spread(found[f"{name}-{where}"]) for where in ("device", "host")]
        assert len(found[f"{name}-device"]) == len(found[f"{name}-host"]) == 3
        (device, _), (host, _) = sides
        assert abs(device - host) < min(spread for _, spread in sides)
        cells = [title, *(f"{mean:.4f} ± {spread:.4f}" for mean, spread in sides), f"{device - host:+.4f}"]
        assert f"| {' | '.join(cells)} |" in guide


def test_epochs_to_a_share_count_those_that_were_validated() -> None:
    curve = [(5, 0.1), (10, 0.91), (15, 1.0), (20, 0.2)]
    assert study_record.epochs_to(curve, 0.9) == 10
    assert study_record.epochs_to(curve, 0.95) == 15


def test_a_run_is_described_by_its_folder(tmp_path) -> None:
    from yolo_lat.engine.checkpoint import save_safetensors
    from yolo_lat.nn import LatModel
    from yolo_lat.nn.complexity import count_gflops, count_parameters

    train = tmp_path / "train"
    (train / "weights").mkdir(parents=True)
    (train / "results.csv").write_text(
        "epoch, metrics/mAP50-95(B), speed/images_per_s, train/box_loss, val/box_loss, train/cls_loss, val/cls_loss\n"
        "1, nan, 10, 3, nan, 5, nan\n2, 0.5, 400, 2, 2.5, 4, 4.5\n"
        "3, nan, 600, 2, nan, 3, nan\n4, 0.52, 500, 1, 2, 2, 3\n"
    )
    assert study_record.describe_run(tmp_path) == {
        "unfinished": "4 epochs",
        "curve": [(2, 0.5), (4, 0.52)],
        "losses": [(2, 2.0, 2.5, 4.0, 4.5), (4, 1.0, 2.0, 2.0, 3.0)],
        "epochs_to_90": 2,
        "images_per_s": 500,
    }
    model = LatModel(load_model_yaml("yolo-lat-p"), nc=3, verbose=False)
    model.args = {}
    save_safetensors(model, train / "weights/best.safetensors")
    size = study_record.size_of(train / "weights/best.safetensors", 64)
    model.deploy()
    assert size["parameters"] == count_parameters(model)
    assert size["gflops"] == pytest.approx(count_gflops(model, 64), abs=1e-4)
    (tmp_path / "done.json").write_text(json.dumps({"coco": coco(0.52), **size}))
    found = study_record.describe_run(tmp_path)
    assert found["parameters"] == size["parameters"]
    assert "unfinished" not in found
    assert study_record.describe_run(tmp_path / "none") == {"unfinished": "0 epochs"}


def test_a_record_has_a_line_for_each_run_and_comes_back(tmp_path) -> None:
    record = study_record.make_record("command", [row("x", seed, 0.1, curve=[[1, 0.1]]) for seed in range(3)], [])
    study_record.save_record(record, tmp_path / "new/study-x.json")
    text = (tmp_path / "new/study-x.json").read_text()
    assert json.loads(text) == record
    assert sum(line.startswith('  {"run"') for line in text.splitlines()) == 3


class TestKnownRuns:
    """A study goes on from its own record, and takes from others what is the same run by another name."""

    @pytest.fixture
    def given(self, tmp_path) -> argparse.Namespace:
        state, out = tmp_path / "state", tmp_path / "new.json"
        return argparse.Namespace(study=tmp_path / "s.yaml", state=state, out=out, known=[], latency=[])

    def declared(self, given, **changes) -> list[study.Run]:
        models = {"p": "yolo-lat-p"}
        recipe = {"cfg": "small", "epochs": 3}
        whole = {"data": {"a": {"imgsz": 96}}, "recipe": recipe, "seeds": [0], "models": models, "runs": {"base": {}}}
        return study.read_study(write_study(given.study, **(whole | changes)))

    def done(self, run: study.Run, given, ap: float) -> None:
        folder = run.folder(given.state)
        folder.mkdir(parents=True)
        (folder / "done.json").write_text(json.dumps({"coco": coco(ap), "commit": "c"}))

    def test_a_fingerprint_is_of_all_that_decides_a_run_and_not_of_its_name(self, given, tmp_path) -> None:
        base = self.declared(given)[0].fingerprint
        assert self.declared(given, name="t", models={"other": "yolo-lat-p"})[0].fingerprint == base
        assert self.declared(given, runs={"alone": {"distill_model": None}})[0].fingerprint == base
        recipe = tmp_path / "r.yaml"
        recipe.write_text("lr0: 0.01\n")
        changes = [
            {"seeds": [1]},
            {"data": {"b": {"imgsz": 96}}},
            {"data": {"a": {"imgsz": 64}}},
            {"recipe": {"cfg": "small", "epochs": 4}},
            {"recipe": {"cfg": str(recipe), "epochs": 3}},
            {"models": {"p": "yolo-lat-n"}},
            {"models": {"p": "yolo-lat-s"}},
            {"runs": {"base": {"change": {"reg_max": 4}}}},
        ]
        found = [self.declared(given, **change)[0].fingerprint for change in changes]
        recipe.write_text("lr0: 0.02\n")
        found.append(self.declared(given, recipe={"cfg": str(recipe), "epochs": 3})[0].fingerprint)
        assert len({base, *found}) == 10

    def test_a_fingerprint_is_of_what_the_model_is_and_not_of_its_name(self, given, tmp_path) -> None:
        base = self.declared(given)[0].fingerprint
        changed = self.declared(given, runs={"base": {"change": {"reg_max": 4}}})[0].fingerprint
        for change, fingerprint in (({}, base), ({"reg_max": 4}, changed)):
            file = write_model("yolo-lat-p", change, tmp_path / "other.yaml")
            assert self.declared(given, models={"p": str(file)})[0].fingerprint == fingerprint

    @pytest.mark.parametrize(("grown", "name"), [("n-pixel-late", "yolo-lat-n"), ("n-base", "yolo-lat-first-n")])
    def test_runs_of_n_before_and_after_it_grew_are_shared_by_two_studies(self, grown, name) -> None:
        found = []
        for file, row in (("growth", grown), ("baselines", name)):
            runs = study.read_study(ROOT / f"tools/studies/{file}.yaml")
            found.append({run.fingerprint for run in runs if run.row[0] == row})
        assert found[0] == found[1]
        assert len(found[0]) == 9

    def test_collecting_keeps_what_the_record_had_where_the_state_is_lost(self, given) -> None:
        runs = self.declared(given, seeds=[0, 1])
        self.done(runs[0], given, 0.1)
        study.write_results(runs, given)
        shutil.rmtree(given.state)
        self.done(runs[1], given, 0.2)
        study.write_results(runs, given)
        rows = study_record.read_rows(given.out)
        assert [(row["seed"], row["coco"]["AP"], row["commit"]) for row in rows] == [(0, 0.1, "c"), (1, 0.2, "c")]

    @pytest.mark.parametrize(("mine", "theirs", "kept"), [(20, 30, 30), (30, 20, 30), (20, 20, 20), (20, None, 20)])
    def test_of_runs_that_have_not_ended_the_one_that_is_further_is_kept(self, given, mine, theirs, kept) -> None:
        run = self.declared(given)[0]
        folder = run.folder(given.state) / "train"
        for epochs in (theirs, mine):
            if epochs is not None:
                folder.mkdir(parents=True, exist_ok=True)
                lines = [f"{epoch},{0.001 * epochs}" for epoch in range(1, epochs + 1)]
                (folder / "results.csv").write_text("\n".join(["epoch,metrics/mAP50-95(B)", *lines]) + "\n")
                study.write_results([run], given)
        row = study_record.read_rows(given.out)[0]
        assert (row["unfinished"], row["curve"][-1]) == (f"{kept} epochs", [kept, 0.001 * kept])

    def test_a_finished_run_of_any_record_comes_before_one_that_began_and_after_the_states(self, given) -> None:
        mine, other = self.declared(given)[0], {"run": "x", "against": "y", "latency": {"median_ms": 1}, "seed": 9}
        rows = [{"unfinished": "2 epochs"}, {"coco": coco(0.3)}, {"coco": coco(0.4)}, {}]
        for name, row in zip("abcd", rows, strict=True):
            named = {"fingerprint": mine.fingerprint} if row else {"coco": coco(0.9)}
            (given.study.parent / name).write_text(json.dumps({"runs": [other | named | row]}))
        given.known = [given.study.parent / name for name in "abcd"]
        study.write_results([mine], given)
        named = {"run": "p-base", "data": "a", "seed": 0, "options": mine.options, "fingerprint": mine.fingerprint}
        assert study_record.read_rows(given.out) == [named | {"coco": coco(0.3)}]
        self.done(mine, given, 0.5)
        study.write_results([mine], given)
        assert study_record.read_rows(given.out)[0]["coco"]["AP"] == 0.5

    def test_no_record(self, given) -> None:
        given.known = [given.study.parent / "none.json"]
        with pytest.raises(UserError, match=r"none\.json: not the record of a study"):
            study.write_results(self.declared(given), given)


@pytest.mark.parametrize("file", sorted((ROOT / "tools/studies/data").glob("*.txt")), ids=lambda file: file.stem)
def test_the_lists_of_images_are_those_of_the_sets(file) -> None:
    folder = ROOT.parent / "shared/data" / file.stem
    if not folder.is_dir():
        pytest.skip(f"no data set {file.stem}")
    title, _, *lines = file.read_text(encoding="utf-8").splitlines()
    assert title.endswith("; a line for each image.")
    for split, digest in zip(("train", "val"), lines, strict=False):
        content = (folder / f"annotations/{split}.json").read_bytes()
        assert digest == f"# {split} {hashlib.sha256(content).hexdigest()}"
        names = sorted(image["file_name"] for image in json.loads(content)["images"])
        assert [line for line in lines[2:] if line.startswith(split)] == [f"{split} {name}" for name in names]


@pytest.mark.parametrize("record", sorted((ROOT / "docs/results").glob("study-*.json")), ids=lambda file: file.stem)
def test_what_is_recorded_is_what_the_study_declares(record) -> None:
    declared = study.read_study(ROOT / f"tools/studies/{record.stem.removeprefix('study-')}.yaml")
    runs = {(*run.row, run.options["seed"]): run for run in declared}
    for row in study_record.read_rows(record):
        run = runs[row["run"], row["data"], row["seed"]]
        assert (run.options, run.change, run.against) == (row["options"], row.get("change", {}), row.get("against"))
        assert re.fullmatch("[0-9a-f]{64}", row["fingerprint"])


def test_latency_goes_to_runs_of_that_name_and_to_unchanged_models_at_the_same_size() -> None:
    record = ROOT / "docs/results/benchmark-h100-320px.json"
    rows = [
        row("p", 0, 0.1, model="yolo-lat-first-p"),
        row("v8", 0, 0.1, model="yolov8n.yaml"),
        row("yolo-lat-first-n", 0, 0.1, model="yolo-lat-first-p", change={"rows.0": 1}),
        row("changed", 0, 0.1, model="yolo-lat-first-p", change={"rows.0": 1}),
        row("unknown", 0, 0.1, model="yolo-lat-s"),
    ]
    rows.append(row("larger", 0, 0.1, model="yolo-lat-first-p"))
    rows[-1]["options"]["imgsz"] = 640
    found = study_record.make_record("command", rows, [record])["runs"]
    assert [found[i]["latency"]["median_ms"] for i in (0, 1)] == [0.22114, pytest.approx(0.675, abs=1e-3)]
    assert found[0]["latency"]["record"] == record.name
    assert found[2]["latency"]["median_ms"] == 0.26494
    assert not any("latency" in r for r in found[3:])


class TestFigures:
    def record(self, file: Path, **more) -> Path:
        known = {"parameters": 10**6, "curve": [[10, 0.05], [20, 0.1]], "losses": [[10, 3, 4, 3, 4], [20, 2, 4, 2, 4]]}
        rows = [
            row(name, seed, 0.1 * i + 0.01 * seed, gflops=i + 1.0, **known, **more)
            for i, name in enumerate(("base", "other"))
            for seed in range(3)
        ]
        file.write_text(json.dumps({"runs": rows}))
        return file

    @pytest.mark.parametrize("more", [{}, {"latency": {"median_ms": 0.5}}], ids=["GFLOPs", "latency"])
    def test_all_are_drawn(self, tmp_path, more) -> None:
        files = draw_study(self.record(tmp_path / "study-x.json", **more), tmp_path / "images")
        kinds = ("pareto", "convergence", "losses", "changes")
        assert [file.name for file in files] == [f"study-x-{kind}.png" for kind in kinds]
        assert all(file.read_bytes()[1:4] == b"PNG" for file in files)

    def test_curves_of_runs_that_began_are_added_where_none_of_their_row_is_finished(self) -> None:
        rows = [row("a", seed, ap, curve=[[10, 0.1]]) for seed, ap in enumerate((0.1, None))]
        rows += [row("b", 0, None, curve=[[10, 0.2]]), row("c", 0, None)]
        sets = {"a": {"a": rows[:1]}}
        assert _with_unfinished(sets, rows) == {"a": {"a": rows[:1], "b, unfinished": [rows[2]]}}
        assert sets == {"a": {"a": rows[:1]}}

    @pytest.mark.parametrize(
        ("content", "message"), [('{"runs": []}', "no run is finished"), ("[]", "not the record of a study")]
    )
    def test_nothing_to_draw(self, tmp_path, content, message) -> None:
        (tmp_path / "r.json").write_text(content)
        with pytest.raises(UserError, match=message):
            draw_study(tmp_path / "r.json", tmp_path)


def test_errors_are_one_sentence_and_status_2(tmp_path, monkeypatch, capsys) -> None:
    file = write_study(tmp_path / "s.yaml")
    monkeypatch.setattr(sys, "argv", ["study.py", "models", str(file), str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        study.main()
    assert capsys.readouterr().err == f"study: {file}: lacks runs; add it\n"


@pytest.mark.parametrize("mode", [["run"], ["collect"]])
@pytest.mark.parametrize("kept", ["fingerprint", "done.json"])
def test_a_run_that_had_the_name_before_the_study_changed_is_not_taken(
    mode, kept, tmp_path, monkeypatch, capsys
) -> None:
    def write(epochs: int) -> study.Run:
        file = write_study(tmp_path / "s.yaml", seeds=[0], runs={"x": {"model": "yolo-lat-p", "epochs": epochs}})
        return study.read_study(file)[0]

    run, state, last = write(3), tmp_path / "state", tmp_path / ("data" if mode == ["run"] else "study-s.json")
    run.folder(state).mkdir(parents=True)
    note = run.fingerprint if kept == "fingerprint" else json.dumps({"fingerprint": run.fingerprint})
    (run.folder(state) / kept).write_text(note)
    run.check_state(state)
    write(4)
    monkeypatch.setattr(sys, "argv", ["study.py", *mode, str(tmp_path / "s.yaml"), str(state), str(last)])
    with pytest.raises(SystemExit, match="2"):
        study.main()
    assert "state/s-x-a-0 holds a run with other keys, recipe or model" in capsys.readouterr().err
    assert not last.exists()


def test_models_of_a_study_are_what_a_benchmark_takes(tmp_path, capsys) -> None:
    from yolo_lat.deploy.benchmark.plan import make_plan

    study.write_models(study.read_study(ROOT / "tools/studies/parts.yaml"), tmp_path)
    plan = make_plan(capsys.readouterr().out.strip())
    assert [entry.name for entry in plan.entries][:2] == ["p-base", "p-patch-stem"]
    assert len(plan.entries) == 8
    assert all(Path(entry.source).is_file() for entry in plan.entries[1:])


def test_sizes_are_those_of_the_deployed_models(tmp_path, capsys) -> None:
    runs = {"base": {}, "none": {"change": {"rows.10.3.3": {"attention": "none"}}}}
    study.print_sizes(
        study.read_study(write_study(tmp_path / "s.yaml", models={"p": "yolo-lat-p"}, runs=runs)), 320, 80
    )
    assert capsys.readouterr().out.splitlines()[2:] == ["| p-base | 292,488 | 0.359 |", "| p-none | 280,008 | 0.338 |"]


@pytest.mark.slow
def test_a_study_runs_stops_goes_on_and_is_collected(tmp_path, shapes, capsys, monkeypatch) -> None:
    from small_training import SIZE, TRAIN

    commits, start = ["before"], study.start

    def start_and_commit(*given: Any) -> Any:
        process = start(*given)
        commits.append("while it ran")
        return process

    monkeypatch.setattr(study, "start", start_and_commit)
    monkeypatch.setattr(study, "git_commit", lambda: commits[-1])

    recipe = {**TRAIN, "epochs": 2, "cfg": "small", "optimizer": "AdamW"}
    del recipe["imgsz"], recipe["device"], recipe["workers"], recipe["plots"]
    file = write_study(
        tmp_path / "s.yaml",
        data={shapes.parent.name: {"imgsz": SIZE}},
        recipe=recipe,
        seeds=[0],
        models={"p": "yolo-lat-p"},
        runs={"base": {}, "none": {"change": {"rows.10.3.3": {"attention": "none"}}}},
    )
    given = argparse.Namespace(
        study=file,
        state=tmp_path / "state",
        data=shapes.parent.parent,
        seconds=600,
        at_once=1,
        devices="cpu",
        only="",
        commit=None,
        known=[],
    )
    runs = study.read_study(file)
    study.carry_out(runs, given)
    given.out, given.latency = tmp_path / "study-s.json", []
    study.write_results(runs, given)
    rows = json.loads(given.out.read_text())["runs"]
    assert [(row["run"], row["commit"]) for row in rows] == [("p-base", "before"), ("p-none", "while it ran")]
    assert all(row["epochs"] == 2 and row["images_per_s"] > 0 and len(row["coco"]) == 12 for row in rows)
    assert rows[1]["parameters"] < rows[0]["parameters"]
    capsys.readouterr()
    study.carry_out(runs, given)
    assert "0 of 2 runs to do" in capsys.readouterr().out
    given.state, given.known = tmp_path / "lost", [given.out]
    study.carry_out(runs, given)
    assert "0 of 2 runs to do" in capsys.readouterr().out
    study.write_results(runs, given)
    assert json.loads(given.out.read_text())["runs"] == rows
