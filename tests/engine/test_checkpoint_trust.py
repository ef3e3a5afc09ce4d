"""Hostile checkpoints and YAMLs: what they say is not run, unless the user trusts the file.

Every attack would leave a file behind; a control shows that it does where nothing stands in its way.
"""

from __future__ import annotations

import functools
import importlib
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from quick import first
from safetensors import safe_open
from safetensors.torch import save_file
from small_training import SIZE, TRAIN
from torch import nn
from ultralytics import RTDETR, YOLO
from ultralytics.cfg import get_cfg
from ultralytics.data.dataset import YOLODataset
from ultralytics.nn import tasks
from ultralytics.nn.autobackend import AutoBackend
from ultralytics.nn.modules import Conv
from ultralytics.utils import IterableSimpleNamespace

from yolo_lat import YOLOLAT
from yolo_lat.cli import main
from yolo_lat.ela.kernels import KERNELS, HadamardExp
from yolo_lat.engine import offline, trust, unpickle
from yolo_lat.engine.checkpoint import load_pt
from yolo_lat.errors import UserError
from yolo_lat.nn.parser import ROWS, Row

ONE_IMAGE = np.zeros((SIZE, SIZE, 3), np.uint8)


@pytest.fixture(autouse=True)
def nothing_trusted(monkeypatch):
    monkeypatch.setenv(trust._VARIABLE, "[]")


@pytest.fixture
def mark(tmp_path) -> Path:
    """The file that an attack makes."""
    return tmp_path / "attacked"


class Call:
    """Pickled as a call of a function."""

    def __init__(self, function, *args) -> None:
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def attack(mark: Path) -> Call:
    return Call(os.system, f"touch '{mark}'")


def attacked(run, file: Path, mark: Path, place: str = "beside") -> Path:
    """Write the checkpoint of a run with an attack in it."""
    content = torch.load(run.best, weights_only=False)
    if place == "beside":
        content["note"] = attack(mark)
    elif place == "arguments":
        content["train_args"]["project"] = attack(mark)
    else:
        content["model"].model[0].note = attack(mark)
    torch.save(content, file)
    return file


def refusal(function, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        function(*args, **kwargs)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# Checkpoints -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["beside", "arguments", "layer"])
def test_a_detector_with_an_attack_in_it_is_refused(run, tmp_path, mark, place):
    file = attacked(run, tmp_path / "x.pt", mark, place)
    message = refusal(YOLOLAT, file)
    assert message.startswith(f"{file}: names {os.system.__module__}.system, which is no part of a detector")
    assert "trust=true" in message
    assert "safetensors" in message
    assert not mark.exists()
    YOLOLAT(file, trust=True)  # the control
    assert mark.exists()


GADGETS = {
    "posix.system": lambda mark: Call(os.system, f"touch '{mark}'"),
    "builtins.eval": lambda mark: Call(eval, f"open({str(mark)!r}, 'w')"),
    "builtins.exec": lambda mark: Call(exec, f"open({str(mark)!r}, 'w')"),
    "builtins.getattr": lambda mark: Call(getattr, "text", "format"),
    "functools.partial": lambda mark: functools.partial(os.system, f"touch '{mark}'"),
    "importlib.import_module": lambda mark: Call(importlib.import_module, "antigravity"),
    "numpy.load": lambda mark: Call(np.load, str(mark)),
    "numpy._core.multiarray._reconstruct": lambda mark: np.array([attack(mark)], dtype=object),
    "numpy.memmap": lambda mark: Call(np.memmap, str(mark), "u1", "w+", 0, (1,)),
    "torch.serialization.load": lambda mark: Call(torch.load, str(mark)),
    "torch.hub.load": lambda mark: Call(torch.hub.load, str(mark), "x"),
    "torch.jit._serialization.load": lambda mark: Call(torch.jit.load, str(mark)),
    "ultralytics.utils.checks.check_requirements": lambda mark: Call(
        importlib.import_module("ultralytics.utils.checks").check_requirements, "antigravity"
    ),
    "ultralytics.nn.tasks.load_checkpoint": lambda mark: Call(tasks.load_checkpoint, str(mark)),
    "ultralytics.nn.distill_model.DistillationModel": lambda mark: Call(
        importlib.import_module("ultralytics.nn.distill_model").DistillationModel, str(mark)
    ),
    "torch._dynamo": lambda mark: Call(torch._dynamo.optimize, str(mark)),
}


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "old-format"])
@pytest.mark.parametrize("name", GADGETS)
def test_what_no_detector_names_is_refused_by_name(tmp_path, mark, name, archive):
    torch.save({"model": GADGETS[name](mark)}, tmp_path / "x.pt", _use_new_zipfile_serialization=archive)
    message = refusal(YOLOLAT, tmp_path / "x.pt")
    assert message.startswith(f"{tmp_path / 'x.pt'}: names ")
    assert name.removeprefix("builtins.") in message or name == "numpy._core.multiarray._reconstruct"
    assert not mark.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_plain_pickles_are_refused(tmp_path, mark, protocol):
    content = pickle.dumps({"model": attack(mark)}, protocol)
    (tmp_path / "x.pt").write_bytes(content)
    assert refusal(YOLOLAT, tmp_path / "x.pt").startswith(f"{tmp_path / 'x.pt'}: ")
    assert not mark.exists()
    pickle.loads(content)
    assert mark.exists()


def test_an_archive_that_hides_its_names_is_refused(run, tmp_path, mark):
    """STACK_GLOBAL takes names from the stack, where looking through the pickle does not find them."""
    file = tmp_path / "x.pt"
    with zipfile.ZipFile(run.best) as source, zipfile.ZipFile(file, "w") as target:
        for name in source.namelist():
            hostile = pickle.dumps({"model": attack(mark)}, protocol=4)
            target.writestr(name, hostile if name.endswith("data.pkl") else source.read(name))
    assert "not a checkpoint of a detector" in refusal(YOLOLAT, file)
    assert not mark.exists()
    torch.load(file, weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize("cls", [tasks.DetectionModel, Conv, nn.Linear, IterableSimpleNamespace])
def test_classes_on_the_list_are_never_called(tmp_path, monkeypatch, cls):
    """`DetectionModel("https://...")` would fetch that address."""
    calls = []
    monkeypatch.setattr(cls, "__init__", lambda *args, **kwargs: calls.append(args))
    torch.save({"model": Call(cls, "https://127.0.0.1/x.yaml")}, tmp_path / "x.pt")
    assert f"calls {cls.__module__}.{cls.__name__}" in refusal(YOLOLAT, tmp_path / "x.pt")
    assert not calls
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert calls


def test_the_list_holds_nothing_that_runs_code_on_getting_a_state():
    """Each class has torch's `__setstate__`, which sets attributes, or one of those that were read for this list."""
    read = {f"torch.nn.modules.{module}" for module in ("activation", "conv", "pooling", "rnn", "transformer")}
    read |= {"torch.nn.modules.module", "torch.nn.modules.upsampling", "ultralytics.nn.modules.block"}
    kinds = set()
    for name, entry in unpickle._allowed().items():
        if not isinstance(entry, unpickle._Hollow):
            assert entry in (unpickle._number, unpickle._path, unpickle._NumberType), name
            continue
        cls = entry.cls
        kinds.add(cls.__name__)
        setter = getattr(cls, "__setstate__", None)
        assert setter is None or setter.__module__ in read, name
        assert cls.__new__ in (object.__new__, SimpleNamespace.__new__), name
        for method in ("__del__", "__reduce__", "__getattribute__"):
            assert getattr(cls, method, None) in (getattr(object, method, None), getattr(SimpleNamespace, method, None))
        assert issubclass(cls, nn.Module | SimpleNamespace) or cls.__module__.startswith(
            ("yolo_lat.ela.kernels", "ultralytics.utils.loss")
        ), name
    assert {"LatModel", "HadamardExp", "HyperLink", "Conv2d", "Detect", "DetectionModel"} <= kinds
    assert not kinds & {"DistillationModel", "WorldModel", "YOLOEModel", "CLIP", "LazyConv2d"}


def test_hollow_classes_make_what_training_wrote(run):
    model, _ = load_pt(run.best)
    plain = torch.load(run.best, weights_only=False)["model"].float()
    assert type(model) is type(plain)
    assert {type(m) for m in model.modules()} == {type(m) for m in plain.modules()}
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), plain.state_dict().values(), strict=True))
    assert model.names == plain.names


STOCK = ["yolov8n", "yolo26n", "yolov9t", "yolov10n", "yolo11n", "yolo12n", "rtdetr-l"]


@pytest.mark.parametrize("name", first(2, STOCK))
def test_stock_detectors_load_without_asking(tmp_path, name):
    model = (RTDETR if name.startswith("rtdetr") else YOLO)(f"{name}.yaml")
    model.model.criterion = None if name.startswith("rtdetr") else model.model.init_criterion()
    model.ckpt = {"best_fitness": np.float64(0.5), "where": pathlib.Path("a/b"), "epoch": np.int64(3)}
    model.save(tmp_path / "x.pt")
    loaded, checkpoint = load_pt(tmp_path / "x.pt")
    assert type(loaded) is type(model.model)
    assert (checkpoint["best_fitness"], checkpoint["epoch"]) == (0.5, 3)


def test_the_list_is_taken_back(run):
    load_pt(run.best)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(run.best, weights_only=True)
    assert not any(isinstance(entry, tuple) for entry in torch.serialization.get_safe_globals())


def test_numbers_of_numpy_alone_are_read(tmp_path):
    file = tmp_path / "x.pt"
    torch.save({"a": np.float64(1.5), "b": np.int32(-2), "c": np.bool_(True), "d": np.float16(0.25)}, file)
    assert unpickle.read_checkpoint(file) == {"a": 1.5, "b": -2, "c": True, "d": 0.25}
    torch.save({"a": np.datetime64("2024-01-01")}, file)
    assert "scalar of NumPy that is no number" in refusal(unpickle.read_checkpoint, file)


# Every argument that names a checkpoint ------------------------------------------------------------------------------


def weights_arguments(run, file: Path, folder: Path):
    """Yield what a user may do with a .pt, as functions of `trust`."""
    recipe, tracker = folder / "recipe.yaml", folder / "tracker.yaml"
    recipe.write_text(yaml.safe_dump({"pretrained": str(file), "epochs": 1}))
    stock = yaml.safe_load((Path(tasks.__file__).parents[1] / "cfg/trackers/botsort.yaml").read_text())
    tracker.write_text(yaml.safe_dump({**stock, "with_reid": True, "model": str(file)}))
    training = {**TRAIN, "data": run.data, "epochs": 1, "project": folder / "runs", "name": "x"}

    def model(trust: bool) -> YOLOLAT:
        return YOLOLAT(run.best, trust=trust)

    return {
        "model": lambda trust: YOLOLAT(file, trust=trust),
        "load": lambda trust: model(trust).load(file),
        "pretrained": lambda trust: model(trust).train(pretrained=str(file), **training),
        "recipe": lambda trust: model(trust).train(cfg=recipe, **{**training, "epochs": 1}),
        "distill_model": lambda trust: model(trust).train(distill_model=str(file), **training),
        "resume": lambda trust: model(trust).train(resume=str(file)),
        "tracker": lambda trust: model(trust).track(ONE_IMAGE, tracker=str(tracker), verbose=False, device="cpu"),
    }


@pytest.mark.parametrize("argument", ["model", "load", "pretrained", "recipe", "distill_model", "resume", "tracker"])
def test_no_argument_goes_around(run, tmp_path, mark, argument):
    file = attacked(run, tmp_path / "x.pt", mark)
    assert "x.pt: names " in refusal(weights_arguments(run, file, tmp_path)[argument], False)
    assert not mark.exists()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("argument", ["load", "pretrained", "resume", "tracker"])
def test_trust_covers_every_argument(run, tmp_path, mark, argument):
    file = attacked(run, tmp_path / "x.pt", mark)
    if argument == "resume":
        with pytest.raises(UserError, match="no unfinished training"):  # found out after it was opened
            weights_arguments(run, file, tmp_path)[argument](True)
    else:
        weights_arguments(run, file, tmp_path)[argument](True)
    assert mark.exists()


def test_plain_ultralytics_in_the_same_process_is_guarded_too(run, tmp_path, mark):
    file = attacked(run, tmp_path / "x.pt", mark)
    assert "x.pt: names " in refusal(YOLO, file)
    assert "x.pt: names " in refusal(AutoBackend, str(file))
    assert not mark.exists()


def test_trust_is_for_the_file_that_was_named(run, tmp_path, mark):
    named = attacked(run, tmp_path / "a.pt", tmp_path / "first")
    other = attacked(run, tmp_path / f"a:{'b'}.pt", mark)
    YOLOLAT(named, trust=True)
    YOLOLAT(named)
    assert "names " in refusal(YOLOLAT, other)
    trust.trust_files([f"{named}:{other}", None, True, tmp_path / "x.onnx"])
    assert "names " in refusal(YOLOLAT, other)
    assert not mark.exists()
    assert "trust=yes: must be True or False" in refusal(YOLOLAT, named, trust="yes")


COMMANDS = {
    "val": "val model={file} data={data}",
    "predict": "predict model={file} source={source}",
    "track": "track model={file} source={source}",
    "export": "export model={file}",
    "info": "info model={file}",
    "train": "train model={file} data={data} epochs=1",
    "resume": "train resume={file}",
    "demo": "demo model={file} source={source} show=False",
}


@pytest.mark.parametrize("mode", COMMANDS)
def test_the_command_line_refuses_in_one_sentence(run, tmp_path, mark, monkeypatch, capsys, mode):
    monkeypatch.chdir(tmp_path)
    file = attacked(run, tmp_path / "x.pt", mark)
    source = next((run.data.parent / "images/val").iterdir())
    with pytest.raises(SystemExit) as ending:
        main(COMMANDS[mode].format(file=file, data=run.data, source=source).split())
    assert ending.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "x.pt: names " in error
    assert "trust=true" in error
    assert not mark.exists()


def test_the_command_line_opens_what_is_trusted(run, tmp_path, mark, capsys):
    file = attacked(run, tmp_path / "x.pt", mark)
    with pytest.raises(SystemExit) as ending:
        main(["info", f"model={file}", "trust=true"])
    assert ending.value.code == 0
    assert mark.exists()
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending:
        main(["info", f"model={file}", "trust=maybe"])
    assert ending.value.code == 2
    assert "trust=maybe: must be True or False" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["profile model", "benchmark models"])
def test_modes_that_export_in_other_processes_take_the_key_too(run, monkeypatch, mode):
    seen = []

    def look(*_, **__):
        seen.append(trust.is_trusted(run.best))
        raise UserError("seen")

    monkeypatch.setattr("yolo_lat.deploy.benchmark.profile.profile_model", look)
    monkeypatch.setattr("yolo_lat.deploy.benchmark.run.Benchmark", look)
    for words in ([], ["trust=true"]):
        with pytest.raises(SystemExit):
            main([*f"{mode}={run.best}".split(), *words])
    assert seen == [False, True]


def test_child_processes_know_what_is_trusted(run, tmp_path, mark):
    """As those of a training on several GPUs do."""
    file = attacked(run, tmp_path / "x.pt", mark)
    code = "import sys; from yolo_lat import YOLOLAT; YOLOLAT(sys.argv[1])"
    trust.trust_files([file])
    subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, check=True)
    assert mark.exists()


# Classes of the user's own -------------------------------------------------------------------------------------------


class OwnBlock(nn.Module):
    """A row of a model YAML, with a part that is registered nowhere."""

    def __init__(self, c1: int, c2: int) -> None:
        super().__init__()
        self.part = OwnPart(c1, c2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.part(x)


class OwnPart(nn.Conv2d):
    def __init__(self, c1: int, c2: int) -> None:
        super().__init__(c1, c2, 1)


def own_model(folder: Path) -> Path:
    content = {
        "nc": 3,
        "scales": {"n": [1.0, 1.0, 64]},
        "backbone": [[-1, 1, "Conv", [16, 3, 8]], [-1, 1, "OwnBlock", [16]], [-1, 1, "Conv", [16, 3, 2]]],
        "head": [[-1, 1, "Conv", [16, 3, 2]], [[1, 2, 3], 1, "Detect", ["nc"]]],
    }
    (folder / "own.yaml").write_text(yaml.safe_dump(content))
    return folder / "own.yaml"


def test_a_training_reads_its_own_checkpoints_whatever_is_in_them(run, tmp_path, monkeypatch):
    monkeypatch.setitem(ROWS, "OwnBlock", Row(OwnBlock))
    model = YOLOLAT(own_model(tmp_path))
    model.train(data=run.data, epochs=1, project=tmp_path / "runs", name="x", **TRAIN)
    best = tmp_path / "runs/x/weights/best.pt"
    YOLOLAT(best)
    monkeypatch.setenv(trust._VARIABLE, "[]")  # as in another process
    assert f"names {__name__}.OwnPart" in refusal(YOLOLAT, best)
    assert isinstance(YOLOLAT(best, trust=True).model.model[1], OwnBlock)


def test_registered_rows_and_kernels_load_without_asking(tmp_path, monkeypatch):
    kernel = type("OwnKernel", (HadamardExp,), {"__module__": __name__})
    monkeypatch.setattr(sys.modules[__name__], "OwnKernel", kernel, raising=False)
    monkeypatch.setitem(ROWS, "OwnBlock", Row(OwnPart))
    model = YOLOLAT(own_model(tmp_path))
    model.model.kernel = kernel()
    model.save(tmp_path / "x.pt")
    assert f"names {__name__}.OwnKernel" in refusal(YOLOLAT, tmp_path / "x.pt")
    monkeypatch.setitem(KERNELS, "OwnKernel", kernel)
    assert isinstance(YOLOLAT(tmp_path / "x.pt").model.kernel, kernel)
    monkeypatch.delitem(ROWS, "OwnBlock")
    assert f"names {__name__}.OwnPart" in refusal(YOLOLAT, tmp_path / "x.pt")


# YAML ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [["Conv", [16]], ["LocalBlock", [16]]], ids=["stock", "ours"])
def test_the_activation_of_a_model_is_not_evaluated(run, tmp_path, mark, row):
    content = yaml.safe_load(own_model(tmp_path).read_text())
    content["backbone"][1][2:] = row
    content["activation"] = f"__import__('os').system(\"touch '{mark}'\") or torch.nn.SiLU()"
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(content))
    message = refusal(YOLOLAT, file)
    assert f"{file}, key activation: " in message
    assert not mark.exists()
    for text, cls in {"nn.ReLU()": nn.ReLU, "torch.nn.LeakyReLU(0.2)": nn.LeakyReLU}.items():
        file.write_text(yaml.safe_dump({**content, "activation": text}))
        assert isinstance(YOLOLAT(file).model.model[0].act, cls)
    assert isinstance(Conv.default_act, nn.SiLU)


def test_the_activation_inside_weights_is_not_evaluated(run, tmp_path, mark):
    """The YAML in a checkpoint, which nothing parses until it is trained, or in safetensors."""
    hostile = f"__import__('os').system(\"touch '{mark}'\") or torch.nn.SiLU()"
    content = torch.load(run.best, weights_only=False)
    content["model"].yaml["activation"] = hostile
    torch.save(content, tmp_path / "x.pt")
    model = YOLOLAT(tmp_path / "x.pt")
    training = {**TRAIN, "data": run.data, "epochs": 1, "project": tmp_path / "runs"}
    assert "key activation: " in refusal(model.train, **training)
    with safe_open(run.safetensors, framework="pt") as source:
        metadata, state = source.metadata(), {key: source.get_tensor(key) for key in source.keys()}  # noqa: SIM118
    changed = yaml.safe_load(metadata["yaml"]) | {"activation": hostile}
    save_file(state, tmp_path / "x.safetensors", metadata | {"yaml": yaml.safe_dump(changed, default_flow_style=True)})
    refusal(YOLOLAT, tmp_path / "x.safetensors")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["os.system", "nn.init.constant_", "nn.functional", "nn.factory_kwargs", "yaml_load"])
def test_rows_name_nothing_but_modules(tmp_path, mark, name):
    content = yaml.safe_load(own_model(tmp_path).read_text())
    content["backbone"][1] = [-1, 1, name, [f"touch '{mark}'"]]
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(content))
    assert f"unknown module '{name}'" in refusal(YOLOLAT, tmp_path / "own.yaml")
    assert not mark.exists()


TAGS = (
    "!!python/object/apply:os.system [\"touch '{mark}'\"]",
    "!!python/object/new:os.system [\"touch '{mark}'\"]",
    "!!python/name:os.system ''",
)


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("kind", ["data", "model", "recipe"])
def test_tags_of_python_in_a_yaml_are_refused(run, tmp_path, mark, kind, tag):
    file = tmp_path / "x.yaml"
    file.write_text(f"epochs: {tag.format(mark=mark)}\n")
    if kind == "model":
        message = refusal(YOLOLAT, file)
    elif kind == "data":
        message = refusal(YOLOLAT(run.best).val, data=file)
    else:
        message = refusal(YOLOLAT(run.best).train, data=run.data, cfg=file)
    assert message.startswith(f"{file}, line 1: not valid YAML (could not determine a constructor for the tag")
    assert not mark.exists()
    if "name" not in tag:
        with pytest.raises((TypeError, yaml.YAMLError)):
            yaml.unsafe_load(file.read_text()).values()[0]  # the control
        assert mark.exists()


def test_label_caches_beside_the_data_are_not_unpickled(txt_data, tmp_path, mark):
    """Where Ultralytics reads data itself, as for the calibration of some exports."""
    root = shutil.copytree(txt_data.parent, tmp_path / "data")
    with (root / "labels/train.cache").open("wb") as stream:
        np.save(stream, np.array(attack(mark), dtype=object), allow_pickle=True)
    hostile = shutil.copy(root / "labels/train.cache", tmp_path)
    hyp = get_cfg(overrides={"task": "detect"})
    data = {"names": {i: str(i) for i in range(8)}, "channels": 3}
    assert len(YOLODataset(img_path=str(root / "images/train"), data=data, hyp=hyp, task="detect").labels) == 24
    assert not mark.exists()
    np.load(hostile, allow_pickle=True)  # the control
    assert mark.exists()


SCRIPTS = {"bash": "bash {script}", "python": "import os; os.system(\"touch '{mark}'\")"}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_the_download_of_a_data_yaml_never_runs(run, tmp_path, mark, script):
    (tmp_path / "fetch.sh").write_text(f"touch '{mark}'\n")
    text = script.format(script=tmp_path / "fetch.sh", mark=mark)
    content = {"path": str(tmp_path), "train": "no", "val": "no", "names": ["circle"], "download": text}
    file = tmp_path / "data.yaml"
    file.write_text(yaml.safe_dump(content))
    model = YOLOLAT(run.best)
    for asked in (False, True):
        for message in (
            refusal(model.val, data=file, download=asked),
            refusal(model.train, data=file, epochs=1, download=asked),
        ):
            assert "scripts are never run" in message if asked else "no such path" in message
    assert "no such path" in refusal(model.export, format="onnx", quantize=8, data=str(file))
    for module in ("engine.trainer", "engine.validator", "engine.exporter", "data.utils", "utils.benchmarks"):
        with pytest.raises(FileNotFoundError):
            importlib.import_module(f"ultralytics.{module}").check_det_dataset(str(file))
    assert not mark.exists()
    offline._stock_check(str(file))  # the control
    assert mark.exists()
