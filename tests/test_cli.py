"""The command line: its help and errors for real, and what each mode hands to the engine."""

from __future__ import annotations

import errno
import json
import os
import shlex
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from yolo_lat import __version__
from yolo_lat.cli import RUN, explain, main
from yolo_lat.cli_help import mode_help
from yolo_lat.cli_modes import HIDDEN_KEYS, MODES, engine_sections
from yolo_lat.cli_parse import parse
from yolo_lat.engine.mode_keys import does_nothing
from yolo_lat.errors import UserError

TWELVE = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
COCO = {name: i / 16 for i, name in enumerate(TWELVE)}


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    """Run `main` in an empty folder and return its status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(command: str) -> SimpleNamespace:
        with pytest.raises(SystemExit) as leave:
            main(shlex.split(command))
        captured = capsys.readouterr()
        return SimpleNamespace(status=leave.value.code, out=captured.out, err=captured.err)

    return run


@pytest.fixture
def refused(cli):
    """Run a command that must fail and return its one-line message."""

    def run(command: str) -> str:
        result = cli(command)
        assert (result.status, result.out) == (2, "")
        assert result.err.startswith("yolo-lat: error: ")
        assert result.err.count("\n") == 1
        return result.err.removeprefix("yolo-lat: error: ").rstrip("\n")

    return run


@pytest.fixture
def engine(monkeypatch, tmp_path):
    """Put a recording stand-in in place of the engine; `engine.fails` makes every mode raise."""
    log = SimpleNamespace(calls=[], fails=None, last=None)

    class Recorder:
        def __init__(self, model, scale=None, trust=False):
            trusted = {"trust": trust} if trust else {}
            log.calls.append(("YOLOLAT", {"model": model, "scale": scale} | trusted))
            self.trainer = SimpleNamespace(last=log.last) if log.last else None
            self.predictor = SimpleNamespace(save_dir=tmp_path / "saved")

        def __getattr__(self, mode):
            return lambda **options: record(mode, options)

    answers: dict[str, Any] = {
        "val": SimpleNamespace(coco=COCO),
        "export": "out/model.onnx",
        "info": (10, 317_000, 317_000, 1.25),
        "evaluate": SimpleNamespace(numbers=COCO),
    }

    def record(name, options):
        log.calls.append((name, options))
        if log.fails:
            raise log.fails
        return iter([1, 2, 3]) if name in {"predict", "track"} else answers.get(name)

    def evaluate_predictions(predictions, data, split, folder, plots):
        options = {"predictions": predictions, "data": data, "split": split, "folder": folder, "plots": plots}
        return record("evaluate", options)

    members = {
        "model": {"YOLOLAT": Recorder},
        "evaluate": {"evaluate_predictions": evaluate_predictions},
        "quickstart": {"quickstart": lambda **options: record("quickstart", options)},
    }
    for name, contents in members.items():
        module = ModuleType(f"yolo_lat.engine.{name}")
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return log


def child(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=60, **options)


# Values


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("trian model=a.pt", "unknown mode 'trian'; did you mean 'train'?"),
        (
            "model=a.pt",
            "unknown mode 'model=a.pt'; use one of train, val, predict, track, export, info, quickstart, co",
        ),
        ("data chek a.yaml", "unknown action 'chek' of data; did you mean 'check'?"),
        ("data a.yaml", "unknown action 'a.yaml' of data; use one of check, convert, split, show, preview, list"),
        ("data check a.yaml b.yaml", "key 'data' is given twice; keep one of them"),
        ("data check a.yaml data=b.yaml", "key 'data' is given twice; keep one of them"),
        ("data check a.yaml lr0=3", "unknown key 'lr0' for data check; yolo-lat data check --help lists the keys"),
        ("data check a.yaml -json=3", "'-json=3' has dashes; write json=3"),
        ("train epoch=3", "unknown key 'epoch' for train; did you mean 'epochs'?"),
        ("train zzzz=3", "unknown key 'zzzz' for train; yolo-lat train --help lists the keys"),
        ("train zzzz", "unknown key 'zzzz' for train; yolo-lat train --help lists the keys"),
        (
            "train json=a.json",
            "unknown key 'json' for train; it belongs to val and compare and benchmark and profile and data check",
        ),
        ("quickstart model=a.pt", "unknown key 'model' for quickstart; it belongs to train and val and predict and"),
        ("info lr0=1", "unknown key 'lr0' for info; yolo-lat info --help lists the keys"),
        ("train epochs=3 lr0=1 epochs=3", "key 'epochs' is given twice; keep one of them"),
        ("train save save=True", "key 'save' is given twice; keep one of them"),
        ("train --epoch=3", "unknown key 'epoch' for train; did you mean 'epochs'?"),
        ("train --epochs", "key 'epochs' has no value; write epochs=100"),
        ("train --epochs --save", "key 'epochs' has no value; write epochs=100"),
        ("train --epochs 3 epochs=3", "key 'epochs' is given twice; keep one of them"),
        ("train data= epochs=3", "key 'data' has no value; write data=VALUE"),
        ("train epochs", "key 'epochs' has no value; write epochs=100"),
        ("train model=", "key 'model' has no value; write model=VALUE"),
        ("train =3", "unknown key '' for train"),
        ("predict imgsz=[480, 640", "'imgsz=[480,640' lacks its closing ']'; add it"),
        ("train mode=val", "mode=val contradicts yolo-lat train; leave mode= out"),
        ("train task=pose", "task=pose contradicts yolo-lat train; leave task= out"),
    ],
)
def test_mistakes_in_the_grammar(refused, command, message):
    assert refused(command).startswith(message)


@pytest.mark.parametrize(("name", "role"), [("best.pt", "model"), ("net.onnx", "model"), ("street.jpg", "source")])
def test_a_file_without_a_key_is_explained(refused, tmp_path, name, role):
    (tmp_path / name).touch()
    assert refused(f"predict {name}") == f"'{name}' is a path without a key; write {role}={name}"


def test_a_key_is_a_key_even_when_a_file_has_its_name(cli, engine, tmp_path):
    (tmp_path / "show").touch()
    assert cli("predict model=a.pt source=0 show").status == 0
    assert engine.calls[-1][1]["show"] is True


# Help


def test_overview_names_every_mode(cli):
    overview = cli("")
    assert overview.status == 0
    in_one_line = " ".join(overview.out.split())
    assert all(f"\n  {mode.name} " in overview.out and mode.summary in in_one_line for mode in MODES.values())
    assert cli("--help").out == cli("-h").out == cli("help").out == overview.out
    assert cli("--version").out == f"yolo-lat {__version__}\n"
    assert set(RUN) == set(MODES)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_help_explains_each_key_once_with_its_default(cli, monkeypatch, mode):
    monkeypatch.setenv("COLUMNS", "100")
    shown = cli(f"{mode.name} --help")
    assert shown.status == 0
    assert shown.out == cli(f"help {mode.name}").out == cli(f"{mode.name} epochs=3 -h").out
    assert shown.out.startswith(f"usage: yolo-lat {mode.name} {mode.words.upper()}")
    assert max(map(len, shown.out.splitlines())) <= 100
    assert len(mode.examples) >= 2
    assert all(f"\n  {example}\n" in shown.out for example in mode.examples)
    tables = shown.out.split("\nMain keys:\n")[1]
    rows = [line.split(maxsplit=2) for line in tables.splitlines() if line.startswith("  ") and line[2] != " "]
    names = [row[0] for row in rows]
    assert len(set(names)) == len(names)
    assert not set(names) & set(HIDDEN_KEYS)
    accepted = mode.accepted()
    assert all(row[1] == (accepted[row[0]].default or "-") and row[2] for row in rows)
    assert set(names) >= {key.name for key in mode.keys}
    of_engine = {key.name for title in mode.sections for key in engine_sections()[title]} - set(HIDDEN_KEYS)
    assert set(names) >= {name for name in of_engine if not does_nothing(mode.name, name)}
    assert not [name for name in set(names) - {key.name for key in mode.keys} if does_nothing(mode.name, name)]


def test_help_tells_what_true_means_for_amp_here(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    row = next(line for line in cli("train --help").out.splitlines() if line.split()[:2] == ["amp", "True"])
    assert "True (bfloat16 on GPUs that have it, otherwise float16)" in row


def test_help_columns_are_aligned_and_wrap_to_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    narrow = mode_help(MODES["train"])
    monkeypatch.setenv("COLUMNS", "300")
    wide = mode_help(MODES["train"])
    assert narrow.split() == wide.split()
    narrow_table = narrow.split("\nMain keys:\n")[1].splitlines()
    assert max(map(len, narrow_table)) <= 90
    column = narrow_table[0].index("model name such as")
    assert all(line[column - 1] == " " != line[column] for line in narrow_table if line.startswith("  "))


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_examples_obey_the_grammar(mode):
    for example in mode.examples:
        assert example.startswith(f"yolo-lat {mode.name}")
        words = shlex.split(example)[1 + len(mode.name.split()) :]
        assert len(parse(mode, words)) == len(words) - max(sum("=" not in word for word in words) - 1, 0) * mode.several


def test_help_on_a_group_lists_its_actions(cli):
    shown = cli("data")
    assert shown.out == cli("data --help").out == cli("help data").out
    actions = [mode for mode in MODES.values() if mode.name.startswith("data ")]
    assert len(actions) == 6
    for mode in actions:
        assert f"\n  {mode.name.removeprefix('data ')} " in shown.out
        assert all(f"\n  {example}\n" in shown.out for example in mode.examples)


@pytest.mark.parametrize("words", [[], ["--help"], ["train", "--help"], ["predict", "-h"], ["data", "check", "help"]])
def test_help_answers_within_a_second(words):
    start = time.perf_counter()
    shown = child("-m", "yolo_lat", *words)
    seconds = time.perf_counter() - start
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout
    assert seconds < 1


@pytest.mark.parametrize("words", ["train --help", "trian", "train", "predict model=a.pt"])
def test_help_and_mistakes_import_nothing_heavy(words):
    code = f"""
        import sys
        from yolo_lat.cli import main
        try:
            main({words.split()!r})
        except SystemExit:
            print(sorted({{"torch", "ultralytics", "rich", "numpy", "cv2"}} & set(sys.modules)))
    """
    assert child("-c", textwrap.dedent(code)).stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"]])  # less and more than one buffer
def test_help_survives_a_reader_that_went_away(words):
    code = f"import atexit; atexit.register(print, 'late'); from yolo_lat.cli import main; main({words})"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_help_prints_where_the_code_page_is_small():
    done = child("-m", "yolo_lat", "train", "--help", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "RGB?BGR" in done.stdout


# Dispatch


@pytest.mark.parametrize(
    ("command", "model", "scale", "mode", "options"),
    [
        (
            "train model=yolo-lat-n data=coco epochs=3 device=cpu",
            *("yolo-lat-n", None, "train", {"data": "coco", "epochs": 3, "device": "cpu"}),
        ),
        ("train model=a.yaml data=coco scale=n", "a.yaml", "n", "train", {"data": "coco"}),
        ("train model=a.yaml data=coco scale=0.9", "a.yaml", None, "train", {"data": "coco", "scale": 0.9}),
        ("train model=a.yaml data=coco cfg=small", "a.yaml", None, "train", {"data": "coco", "cfg": "small"}),
        ("train model=a.yaml data=coco download", "a.yaml", None, "train", {"data": "coco", "download": True}),
        ("train resume=w/last.pt", "w/last.pt", None, "train", {"resume": "w/last.pt"}),
        ("train model=last.pt resume", "last.pt", None, "train", {"resume": True}),
        ("train model=a.pt data=coco task=detect mode=train", "a.pt", None, "train", {"data": "coco"}),
        ("val model=7 data=coco half", "7", None, "val", {"data": "coco", "half": True}),
        ("predict model=a.pt source=0", "a.pt", None, "predict", {"source": 0, "save": True, "stream": True}),
        (
            "predict model=a.yaml scale=x source=a.jpg save=False imgsz=[480, 640]",
            *("a.yaml", "x", "predict", {"source": "a.jpg", "save": False, "stream": True, "imgsz": [480, 640]}),
        ),
        ("track model=a.pt source=a.mp4", "a.pt", None, "track", {"source": "a.mp4", "save": True, "stream": True}),
        ("export model=a.pt", "a.pt", None, "export", {"format": "onnx"}),
        ("export model=a.pt format=engine half=true", "a.pt", None, "export", {"format": "engine", "half": True}),
        ("export model=a.pt quantize=fp16", "a.pt", None, "export", {"format": "onnx", "quantize": "fp16"}),
        ("info model=a.yaml scale=p detailed imgsz=320", "a.yaml", "p", "info", {"detailed": True, "imgsz": 320}),
    ],
)
def test_keys_reach_the_engine(cli, engine, command, model, scale, mode, options):
    result = cli(command)
    assert (result.status, result.err) == (0, "")
    assert engine.calls == [("YOLOLAT", {"model": model, "scale": scale}), (mode, options)]


@pytest.mark.parametrize("mode", ["train", "val", "predict", "track", "export", "info"])
def test_trust_is_the_models_and_no_argument_of_its_methods(cli, engine, mode):
    data = {"train": "data=coco", "val": "data=coco", "predict": "source=0", "track": "source=0"}.get(mode, "")
    cli(f"{mode} model=a.pt trust {data}")
    assert engine.calls[0] == ("YOLOLAT", {"model": "a.pt", "scale": None, "trust": True})
    assert "trust" not in engine.calls[1][1]


def test_export_prints_the_path(cli, engine):
    assert cli("export model=a.pt").out == "out/model.onnx\n"


@pytest.mark.parametrize(
    ("flags", "saved"),
    [("", True), ("save=False", False), ("save=False save_txt", True), ("save=False visualize", True)],
)
def test_predict_counts_frames_and_says_where_they_went(cli, engine, tmp_path, flags, saved):
    expected = f"frames: 3, saved to {tmp_path / 'saved'}\n" if saved else "frames: 3\n"
    assert cli(f"predict model=a.pt source=a.mp4 {flags}").out == expected


@pytest.mark.parametrize("command", ["predict source=0", "track model=None source=0"])
def test_without_a_model_the_best_weights_that_ship_are_used(cli, engine, command):
    result = cli(command)
    assert result.out.startswith("model: yolo-lat-s-voc12, the best of the weights for photographs that ship (AP 0.")
    assert engine.calls[0] == ("YOLOLAT", {"model": "yolo-lat-s-voc12", "scale": None})


def test_val_of_a_model_writes_the_twelve_numbers(cli, engine, tmp_path):
    assert cli("val model=a.pt data=coco json=new/metrics.json").status == 0
    assert json.loads((tmp_path / "new/metrics.json").read_text()) == COCO
    assert engine.calls[-1] == ("val", {"data": "coco"})


@pytest.mark.parametrize("split", ["val", "test"])
def test_val_of_predictions_prints_and_writes_the_twelve_numbers(cli, engine, tmp_path, split):
    result = cli(f"val predictions=r.json data=my.yaml json=metrics.json {'' if split == 'val' else 'split=test'}")
    asked = {"predictions": "r.json", "data": "my.yaml", "split": split, "folder": None, "plots": True}
    assert engine.calls == [("evaluate", asked)]
    assert {name: float(value) for name, value in map(str.split, result.out.splitlines())} == COCO
    assert json.loads((tmp_path / "metrics.json").read_text()) == COCO


def test_val_of_predictions_writes_a_run_folder_where_asked(cli, engine, tmp_path):
    assert "saved to runs/detect/other" in cli("val predictions=r.json data=my.yaml name=other plots=False").out
    assert engine.calls[-1][1]["folder"] == Path("runs/detect/other")
    assert engine.calls[-1][1]["plots"] is False
    (tmp_path / "p/val").mkdir(parents=True)
    assert cli("val predictions=r.json data=my.yaml project=p").status == 0
    assert engine.calls[-1][1]["folder"] == Path("p/val-2")
    assert cli("val predictions=r.json data=my.yaml project=p exist_ok").status == 0
    assert engine.calls[-1][1]["folder"] == Path("p/val")


def test_val_of_predictions_takes_its_folder_before_another_can(cli, engine):
    for _ in range(2):  # the stand-in writes nothing, like one that still evaluates
        cli("val predictions=r.json data=my.yaml name=other")
    folders = [options["folder"] for _, options in engine.calls]
    assert folders == [Path("runs/detect/other"), Path("runs/detect/other-2")]


@pytest.mark.parametrize("exist_ok", [False, True])
def test_val_of_predictions_that_are_refused_leaves_no_new_folder(refused, engine, tmp_path, exist_ok):
    (tmp_path / "p/val").mkdir(parents=True)
    engine.fails = UserError("r.json: no results")
    assert refused(f"val predictions=r.json data=my.yaml project=p exist_ok={exist_ok}") == "r.json: no results"
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["val"]


@pytest.mark.parametrize("asked", ["model=a.pt", "predictions=r.json"])
@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("plain/x.json", "json=plain/x.json: cannot be written (File exists); choose another folder"),
        ("/proc/self/x.json", "json=/proc/self/x.json: cannot be written ("),
        ("/proc/self/x/y.json", "json=/proc/self/x/y.json: cannot be written ("),
        (".", "json=.: is a folder; give a file in it"),
    ],
)
def test_val_refuses_a_place_that_takes_no_file_before_it_begins(refused, engine, tmp_path, asked, place, told):
    (tmp_path / "plain").touch()
    assert refused(f"val {asked} data=coco json={place}").startswith(told)
    assert not engine.calls


def test_val_writes_nothing_unless_asked(cli, engine, tmp_path):
    assert cli("val predictions=r.json data=my.yaml").status == 0
    assert not list(tmp_path.iterdir())


def test_quickstart_has_defaults(cli, engine):
    assert cli("quickstart").status == cli("quickstart directory=42 epochs=2 seed=3").status == 0
    defaults, given = engine.calls
    assert defaults[1].keys() == {"directory", "epochs", "seed"}
    assert defaults[1]["directory"] == Path("runs/quickstart")
    assert given == ("quickstart", {"directory": Path("42"), "epochs": 2, "seed": 3})


@pytest.mark.parametrize(
    ("command", "key"),
    [
        ("train data=coco", "model"),
        ("train model=a.pt", "data"),
        ("train resume", "model"),
        ("train model=a.pt resume=False", "data"),
        ("val data=coco", "model"),
        ("val model=a.pt", "data"),
        ("val predictions=r.json", "data"),
        ("predict model=a.pt", "source"),
        ("track model=a.pt", "source"),
        ("export", "model"),
        ("info", "model"),
    ],
)
def test_missing_keys_are_named_with_an_example(refused, engine, command, key):
    mode = command.split()[0]
    assert refused(command) == f"{mode} needs {key}=, for example: {MODES[mode].examples[0]}"
    assert not engine.calls


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train model=a.yaml data=coco scale=q", "scale=q is no model scale; use one of p, n, s, m, l, x or a number"),
        ("info model=a.yaml scale=0.5", "scale=0.5 is no model scale; use one of p, n, s, m, l, x"),
        ("info table scale=n", "table shows every model; leave scale= out"),
        ("info table imgsz=33", "imgsz=33 is not a multiple of the model's stride 32; use 32 or 64"),
        ("info table imgsz=large", "imgsz=large: must be a whole number of pixels"),
        ("train resume=last.pt model=yolo-lat-n", "model=yolo-lat-n: resume=last.pt goes on with its own; drop one of"),
        ("train model=a.pt data=coco epochs=abc", "'epochs=abc' is of invalid type str."),
        ("train model=a.pt data=coco lr0=3", "'lr0=3' is an invalid value."),
        ("train model=a.pt data=coco scale=3", "'scale=3' is an invalid value."),
        (
            "predict source=a.jpg embed=3",
            "embed=3: gives tensors, which are for Python alone; there it is YOLOLAT(...).embed",
        ),
        ("quickstart epochs=0", "'epochs=0' is an invalid value."),
        ("val predictions=r.json data=a.yaml model=a.pt", "model= has no effect on predictions=; leave it out"),
        ("val predictions=r.json data=a.yaml conf=0.1", "conf= has no effect on predictions=; leave it out"),
    ],
)
def test_unusable_values_are_refused_before_the_model_is_built(refused, engine, command, message):
    assert refused(command).startswith(message)
    assert not engine.calls


# Recipes


def test_data_may_come_from_the_recipe(cli, engine, tmp_path):
    (tmp_path / "recipe.yaml").write_text("data: coco\nepochs: 5\n")
    assert cli("train model=a.pt cfg=recipe.yaml").status == 0
    assert engine.calls[-1] == ("train", {"cfg": "recipe.yaml"})


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("epoch: 5", "recipe.yaml: unknown key 'epoch'; did you mean 'epochs'?"),
        ("epochs: abc", "recipe.yaml: 'epochs=abc' is of invalid type str."),
        ("epochs: [", "recipe.yaml, line 1: not valid YAML"),
        ("just words", "recipe.yaml: holds no 'key: value' lines"),
        ("epochs: 5", "train needs data=, for example: yolo-lat train "),
    ],
)
def test_unusable_recipes_are_refused(refused, engine, tmp_path, recipe, message):
    (tmp_path / "recipe.yaml").write_text(recipe)
    assert refused("train model=a.pt cfg=recipe.yaml").startswith(message)
    assert not engine.calls


def test_an_unknown_recipe_suggests_the_nearest_name(refused, engine):
    message = refused("train model=a.pt data=coco cfg=smal")
    assert message.startswith("cfg=smal: no such recipe; did you mean 'small'?")
    assert not engine.calls


# Errors from below


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("names: has 3\n  entries, nc: 4"), "names: has 3 entries, nc: 4"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.pt"), "[Errno 2] No such file: 'a.pt'"),
        (FileNotFoundError("\n'coco.yaml'\nimages not found"), "'coco.yaml' images not found"),
        (PermissionError("denied"), "denied"),
        (IsADirectoryError("a folder"), "a folder"),
        (NotADirectoryError("a file"), "a file"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; make room or choose another"),
        (OSError(errno.EROFS, "Read-only file system", "a/b"), "a/b: Read-only file system; choose another folder"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "c", None, "d"), "d: File name too long; choose a shorter"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            "memory ran out, lower batch= or imgsz= (RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate",
        ),
        (MemoryError(), "memory ran out, lower batch= or imgsz= (MemoryError)"),
    ],
)
def test_errors_of_the_users_making_take_one_line(refused, engine, error, line):
    engine.fails = error
    assert refused("val model=a.pt data=coco").startswith(line)


def test_input_errors_that_ultralytics_wraps_take_one_line(refused, engine):
    engine.fails = RuntimeError("Dataset 'a.yaml' error")
    engine.fails.__cause__ = FileNotFoundError("'a.yaml' does not exist")
    assert refused("train model=a.pt data=a.yaml") == "Dataset 'a.yaml' error"


def test_cuda_running_out_of_memory_tells_what_to_lower(refused, engine):
    import torch

    engine.fails = torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB")
    assert refused("train model=a.pt data=coco") == (
        "memory ran out, lower batch= or imgsz= (OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB)"
    )


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), KeyError("x"), RuntimeError("shape mismatch"), OSError(errno.EIO, "I/O"), ConnectionError()],
)
def test_bugs_keep_their_traceback(engine, error):
    engine.fails = error
    assert explain(error) is None
    with pytest.raises(type(error)) as caught:
        main(["val", "model=a.pt", "data=coco"])
    assert caught.value is error


@pytest.mark.parametrize("mode", ["train", "val"])
def test_interrupt(cli, engine, mode):
    engine.fails = KeyboardInterrupt()
    engine.last = Path("never/written/last.pt")
    result = cli(f"{mode} model=a.pt data=coco")
    assert (result.status, result.err) == (130, "yolo-lat: interrupted\n")


def test_interrupted_training_tells_how_to_go_on(cli, engine, tmp_path):
    engine.fails = KeyboardInterrupt()
    engine.last = tmp_path / "my run" / "last.pt"
    engine.last.parent.mkdir()
    engine.last.touch()
    result = cli("train model=a.pt data=coco")
    assert result.status == 130
    assert result.err == f"yolo-lat: interrupted; to go on: yolo-lat train resume='{engine.last}'\n"
    assert cli(shlex.join(shlex.split(result.err)[6:])).status == 130
    assert engine.calls[-1] == ("train", {"resume": str(engine.last)})


def test_words_come_from_the_shell_by_default(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["yolo-lat", "--version"])
    with pytest.raises(SystemExit) as leave:
        main()
    assert leave.value.code == 0
    assert capsys.readouterr().out == f"yolo-lat {__version__}\n"
