"""Whole benchmarks on ONNX Runtime, small ones, through the command line."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from benchmark_samples import SIDE, make_record
from hand_made_onnx import colour_detector
from PIL import Image

from yolo_lat.deploy.benchmark.contenders import Forward, Pipeline
from yolo_lat.deploy.benchmark.environment import describe_machine, gpu_query, state
from yolo_lat.deploy.benchmark.export import ModelFile, describe_onnx, make_file, sha256
from yolo_lat.deploy.benchmark.images import load_pictures
from yolo_lat.deploy.benchmark.memory import device_memory_mb
from yolo_lat.deploy.benchmark.plan import Cell, Entry, make_plan
from yolo_lat.deploy.benchmark.prepare import Files
from yolo_lat.deploy.benchmark.record import Accuracy, read_record
from yolo_lat.deploy.benchmark.run import Benchmark
from yolo_lat.deploy.benchmark.settings import SETTINGS, VARIANTS, Variant
from yolo_lat.errors import UserError

SHORT = ("rounds=2", "runs=3", "warmup=2", "trial=2", f"imgsz={SIDE}", "threads=1")


@pytest.fixture(scope="module")
def measured(models, pictures, tmp_path_factory) -> Path:
    """The record of two detectors at both boundaries."""
    file = tmp_path_factory.mktemp("record") / "record.json"
    plan = make_plan(
        f"{models['quick']},{models['slow']}",
        reference="slow",
        imgsz=SIDE,
        rounds=2,
        runs=5,
        threads=1,
        source=pictures,
    )
    Benchmark(plan, lambda record: record.save(file)).run()
    return file


def test_a_record_has_everything_that_a_speed_needs(measured, models):
    record = read_record(measured)
    assert record.complete
    assert record.deviations == ["rounds 2 of at least 5", "runs 5 of at least 50"]
    assert [cell.cell for cell in record.cells] == [Cell(SIDE, 1, "fp32", name) for name in ("forward", "pipeline")]
    assert [model.weights for model in record.models] == ["unknown"] * 2
    assert [model.parameters for model in record.models] == [7 * 3 * 32 * 32 + n * 81 for n in (1, 8)]
    for _, result in record.results():
        assert result.error is None
        assert result.provider == "CPUExecutionProvider"
        assert result.sha256 == sha256(models[result.model])
        assert (result.setting, result.variant) == ("default", "as given")
        assert len(result.trials) == 1
        assert 0 < result.p5_ms <= result.median_ms <= result.p95_ms
        assert len(result.rounds_ms) == 2
        reference = next(
            other for cell in record.cells for other in cell.results if other.model == "slow" and result in cell.results
        )
        ratios = np.array(reference.rounds_ms) / result.rounds_ms
        assert result.ratios["slow"].rounds == pytest.approx(ratios.tolist(), rel=5e-4, abs=1e-3)
    forward, pipeline = (cell.results for cell in record.cells)
    assert forward[0].ratios["slow"].median > 1
    assert pipeline[0].median_ms > forward[0].median_ms
    assert pipeline[0].detections > 0
    if Path("/proc/self/status").exists():
        assert all(result.memory_mb > 0 for result in forward)
    assert record.machine["threads"] == 1
    assert {"cpu", "cores", "os", "before", "after"} <= record.machine.keys()
    assert {"python", "onnxruntime", "numpy", "opencv", "yolo_lat", "onnxruntime_package"} <= record.versions.keys()
    assert record.how["pictures"].startswith("5, ")


def test_a_record_is_shown_drawn_and_compared(cli, measured):
    shown = cli("benchmark", f"record={measured}", "figure=sub/a.png", f"against={measured}")
    assert shown.status == 0
    assert re.search(r"quick +0\.02 M +- +not measured +forward", shown.out)
    assert "1.000" in shown.out.partition("Against the older record")[2]
    with Image.open("sub/a.png") as picture:
        assert picture.width > 600


def test_other_records_are_refused_in_one_line(cli, measured, tmp_path):
    make_record().save(tmp_path / "other.json")
    refused = cli("benchmark", f"record={measured}", f"against={tmp_path / 'other.json'}")
    assert refused.status == 2
    assert "cannot be compared, they differ in device GPU A and" in refused.err
    assert refused.err.count("\n") == 1


def test_one_failing_model_leaves_the_others(cli, models, pictures, monkeypatch):
    run = Forward.run
    turns = []

    def failing(self):
        turns.append(self)
        if len(turns) > 20 and self is not turns[0]:
            raise MemoryError("no more")
        run(self)

    monkeypatch.setattr(Forward, "run", failing)
    words = (f"models={models['quick']},{models['slow']}", "boundary=forward", f"source={pictures}", *SHORT)
    result = cli("benchmark", *words, "json=out.json")
    assert result.status == 1
    first, second = read_record("out.json").cells[0].results
    assert (first.error, second.error) == (None, "MemoryError: no more")
    assert first.median_ms is not None
    assert second.median_ms is None
    assert "slow: MemoryError: no more" in result.out


def test_an_interrupted_benchmark_keeps_what_it_has(cli, models, pictures, monkeypatch):
    def interrupted(self, *arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(Pipeline, "__init__", interrupted)
    result = cli("benchmark", f"models={models['quick']}", f"source={pictures}", *SHORT, "json=out.json")
    assert result.status == 130
    record = read_record("out.json")
    assert [cell.boundary for cell in record.cells] == ["forward"]
    assert not record.complete
    assert "interrupted" in record.deviations


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "benchmark needs models=, for example: yolo-lat benchmark"),
        (["models={two}"], "two.onnx takes [2, 3, 96, 96], not the [1, 3, 96, 96] of forward, 96 px, batch 1, fp32"),
        (["models={quick}", "imgsz=128"], "export it for that size and batch"),
        (["models={quick}", "source={empty}"], "is no folder with pictures"),
        (["models={quick}", "against=none.json"], "none.json is not a file"),
        (["record=none.json"], "none.json is not a file"),
        (["record=none.json", "models={quick}"], "leave models= out"),
        (["models={quick}", "device=0"], "the GPU and its clocks are unknown"),
        (["models={quick}", "figure=a.jpg"], "figure=a.jpg: is no .png; name it so"),
        (["models={quick}", "figure=/proc/self/a.png"], "figure=/proc/self/a.png: cannot be written ("),
        (["models={quick}", "json={empty}"], ": is a folder; give a file in it"),
        (["models={quick}", "model=a"], "unknown key 'model'"),
    ],
)
def test_mistakes_take_one_line(cli, models, pictures, tmp_path, monkeypatch, words, message):
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi there
    paths = {name: str(path) for name, path in models.items()} | {"empty": str(tmp_path)}
    given = [word.format(**paths) for word in words]
    defaults = [f"imgsz={SIDE}"] if words and "imgsz" not in "".join(words) and "record" not in words[0] else []
    source = [f"source={pictures}"] if defaults and not any(word.startswith("source") for word in words) else []
    result = cli("benchmark", *given, *defaults, *source)
    assert result.status == 2
    assert message in result.err
    assert result.err.count("\n") == 1


def test_onnx_files_are_measured_without_torch(models, pictures, tmp_path):
    code = (
        "import sys\nfrom yolo_lat.cli import main\n"
        "for name in ('torch', 'ultralytics'): sys.modules[name] = None\n"
        "try: main(sys.argv[1:])\nexcept SystemExit as leave: assert leave.code == 0, leave.code\n"
        "assert sys.modules['torch'] is None"
    )
    words = ["benchmark", f"models={models['quick']}", f"source={pictures}", *SHORT, "json=out.json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert read_record(tmp_path / "out.json").complete


def test_a_file_of_ours_tells_its_size(models):
    metadata = {"parameters": "1234", "gflops": "0.5", "imgsz": "[64, 64]"}
    known, elsewhere = (describe_onnx(models["quick"], metadata, side) for side in (64, 96))
    assert (known.parameters, known.gflops) == (1234, 0.5)
    assert (elsewhere.parameters, elsewhere.gflops) == (1234, None)
    assert describe_onnx(models["quick"], {}, 64).gflops is None


@pytest.mark.parametrize(
    "changes",
    [{"gflops": "y"}, {"parameters": "x"}, {"imgsz": "[64"}, {"gflops": "inf"}, {"parameters": "-1"}],
    ids=str,
)
def test_a_size_that_is_no_number_is_refused(models, changes):
    metadata = {"parameters": "1234", "gflops": "0.5", "imgsz": "[64, 64]"}
    with pytest.raises(UserError, match=r"quick\.onnx: parameters.* in its metadata .*; export the model again"):
        describe_onnx(models["quick"], metadata | changes, 64)


@pytest.mark.parametrize(
    ("options", "metadata", "found"),
    [
        ({"dtype": np.float16}, {}, "fp16"),
        ({"dtype": np.float16, "takes_bytes": True}, {"precision": "fp16"}, "fp16"),
    ],
    ids=["input", "metadata"],
)
def test_a_file_of_another_precision_is_not_set_beside_the_others(cli, tmp_path, pictures, options, metadata, found):
    path = colour_detector(tmp_path / "m.onnx", **options)
    model = onnx.load(path)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)
    refused = cli("benchmark", f"models={path}", f"source={pictures}", "imgsz=64", "rounds=1", "runs=1")
    assert refused.status == 2
    assert f"m.onnx is {found}, not fp32; give a file of that precision, or its own" in refused.err


def test_int8_is_measured_where_its_floats_belong(cli, tmp_path, pictures):
    path = colour_detector(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.metadata_props.add(key="precision", value="int8")
    onnx.save(model, path)
    words = ("benchmark", f"models={path}", f"source={pictures}", "imgsz=64", "rounds=1", "runs=1", "boundary=forward")
    assert cli(*words).status == 0


def test_a_named_model_is_exported_counted_and_measured(cli):
    result = cli(
        "benchmark", "models=yolo-lat-p", *SHORT[:4], "imgsz=64", "threads=1", "boundary=forward", "json=out.json"
    )
    assert result.status == 0, result.err
    record = read_record("out.json")
    (model,) = record.models
    assert model.weights == "random, seed 0"
    assert model.parameters < 317_000
    assert model.gflops["64"] > 0
    assert re.search(r"yolo-lat-p +0\.2\d M +0\.0\d +random weights +forward +\d", result.out)


def test_an_accuracy_names_the_form_that_it_is_of(models, pictures, monkeypatch):
    monkeypatch.setattr("yolo_lat.deploy.benchmark.run.measure_accuracy", lambda *_: {"AP": 0.5, "AP50": 0.75})
    monkeypatch.setattr("yolo_lat.deploy.benchmark.run.make_file", lambda *_: ModelFile("a.onnx", ""))
    plan = make_plan(models["quick"], imgsz=SIDE, source=pictures)
    benchmark = Benchmark(replace(plan, data="coco.yaml"))
    cell, forms = Cell(SIDE, 1, "fp32", "forward"), [(variant, ModelFile("a.onnx", "")) for variant in VARIANTS]
    found = Files({("found", SIDE, 1, "fp32"): forms})
    with ThreadPoolExecutor(1) as pool:
        for name, source, form in (
            ("found", "a.pt", "raw output"),
            ("new", "a.pt", "raw output"),
            ("given", "a.onnx", "as given"),
        ):
            accuracy = benchmark._evaluate(pool, Entry(name, source), cell, found)
            assert accuracy == Accuracy(SIDE, "fp32", 0.5, 0.75, f"coco.yaml val, {form}")


@pytest.mark.slow
def test_files_are_found_again_while_nothing_changed(tmp_path):
    entry, cell, variant = Entry("p", "yolo-lat-p.yaml"), Cell(64, 1, "fp32", "forward"), VARIANTS[0]
    first = make_file(entry, cell, variant, "cpu", 0, tmp_path)
    time = Path(first.path).stat().st_mtime_ns
    assert make_file(entry, cell, variant, "cpu", 0, tmp_path) == first
    assert Path(first.path).stat().st_mtime_ns == time
    assert first.layers[10] == "CrossScaleELA"
    other = make_file(entry, cell, variant, "cpu", 1, tmp_path)
    assert other.path == first.path
    assert other.sha256 != first.sha256
    Path(other.path).write_bytes(b"damaged")
    assert make_file(entry, cell, variant, "cpu", 1, tmp_path).sha256 == sha256(Path(other.path))
    edited = make_file(entry, cell, Variant(variant.name, {"best_class": True}), "cpu", 1, tmp_path)
    assert (edited.path, edited.sha256 == other.sha256) == (other.path, False)
    assert onnx.load(edited.path).graph.output[0].type.tensor_type.shape.dim[1].dim_value == 6
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".onnx"]
    assert make_file(entry, cell, Variant("x", {"nms": False}, "one2one_cv2"), "cpu", 0, tmp_path) is None


@pytest.mark.slow
def test_forms_of_a_model_compete_and_accuracy_stands_beside_speed(cli, run):
    words = [f"models=ours={run.best},yolo26n", f"data={run.data}", "imgsz=96", "batch=1,2", "rounds=1", "runs=3"]
    result = cli("benchmark", *words, "json=out.json", "figure=out.png")
    assert result.status == 0, result.out
    record = read_record("out.json")
    pipeline = [cell for cell in record.cells if cell.boundary == "pipeline"]
    assert len(pipeline) == 2
    for cell in pipeline:
        ours, theirs = cell.results
        assert [trial.variant for trial in ours.trials] == [v.name for v in VARIANTS if not v.head]
        assert [trial.variant for trial in theirs.trials] == [v.name for v in VARIANTS]
        assert not any(trial.error for trial in (*ours.trials, *theirs.trials))
        assert ours.median_ms
        best = min(theirs.trials, key=lambda trial: trial.median_ms)
        assert theirs.variant == best.variant
    (accuracy,) = record.models[0].accuracy
    assert accuracy.note == f"{run.data} val, raw output"
    assert pytest.approx(run.metrics.coco["AP"], abs=0.02) == accuracy.AP
    assert record.models[1].accuracy == []


def test_inputs_are_the_pictures_in_an_order_of_the_seed(pictures):
    found = load_pictures(None, str(pictures), 3)
    pool = found.inputs((2, 3, 64, 64), np.dtype(np.float16))
    assert len(pool) == 16
    assert all(batch.shape == (2, 3, 64, 64) and batch.dtype == np.float16 for batch in pool)
    numbers = found.batches(2, 10)
    assert numbers == load_pictures(None, str(pictures), 3).batches(2, 10)
    assert numbers != load_pictures(None, str(pictures), 4).batches(2, 10)
    assert sorted([*numbers[0], *numbers[1], numbers[2][0]]) == list(range(5))  # every picture before any comes again
    pixels = found.inputs((2, 64, 64, 3), np.dtype(np.uint8))
    planes = pixels[0][..., ::-1].transpose(0, 3, 1, 2).astype(np.float32) / 255
    np.testing.assert_allclose(pool[0], planes, atol=1e-3)


def test_pictures_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"a\.jpg cannot be read as a picture"):
        load_pictures(None, str(tmp_path), 0)


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """Put an nvidia-smi in place that answers a line, or fails."""

    def install(answer: str, status: int = 0) -> None:
        file = tmp_path / "nvidia-smi"
        file.write_text(f'#!/bin/sh\necho "{answer}"\nexit {status}\n')
        file.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return install


def test_a_gpu_is_named_with_driver_and_clocks(smi):
    smi("GPU A, 580.1, 1980 MHz, 700.00 W, 1500 MHz, 2600 MHz, 40, 512 MiB")
    machine = describe_machine("cuda:0", 2)
    assert (machine["device"], machine["driver"], machine["clock_max"]) == ("GPU A", "580.1", "1980 MHz")
    assert (machine["power_limit"], machine["threads"]) == ("700.00 W", 2)
    smi("1500 MHz, 2600 MHz, 41, 600 MiB")
    assert state("cuda:0")["temperature.gpu"] == "41"
    assert gpu_query(0, ("a", "b", "c", "d"))["d"] == "600 MiB"


def test_the_gpu_that_cuda_sees_is_asked(smi, monkeypatch):
    smi("$2")
    assert gpu_query(1, ("name",))["name"] == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-a")
    assert [gpu_query(number, ("name",))["name"] for number in (0, 1)] == ["3", "GPU-a"]


@pytest.mark.parametrize(("answer", "memory"), [("512 MiB", 512.0), ("[N/A]", None), ("[Not Supported]", None)])
def test_memory_in_use_is_none_where_the_driver_does_not_tell(smi, answer, memory):
    smi(answer)
    assert device_memory_mb("cuda:0") == memory
    assert device_memory_mb("cpu") is None


def test_a_gpu_that_does_not_answer_is_refused(smi):
    smi("no devices", status=9)
    with pytest.raises(UserError, match="a speed is only reported with them"):
        describe_machine("cuda:0", 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_is_measured_with_its_settings(cli):
    words = ["models=yolo-lat-p", "device=0", "imgsz=320", "batch=2", "rounds=1", "runs=5"]
    result = cli("benchmark", *words, "json=out.json")
    assert result.status == 0, result.out + result.err
    record = read_record("out.json")
    assert record.machine["device"].startswith("NVIDIA")
    for cell, result in record.results():
        assert result.provider == "CUDAExecutionProvider", result
        if cell.boundary == "forward":
            assert {trial.setting for trial in result.trials} >= {s.name for s in SETTINGS["cuda"] if s.cuda_graph}
        assert result.setting in {trial.setting for trial in result.trials if trial.error is None}, result.trials
        assert result.memory_mb is None or result.memory_mb >= 0, result.memory_mb


def test_the_commit_that_is_told_counts(models, pictures):
    plan = make_plan(str(models["quick"]), imgsz=SIDE, source=pictures, threads=1, commit="abc1234")
    found = Benchmark(plan).record.versions
    assert found["commit"] == "abc1234"
    assert "dirty" not in found
