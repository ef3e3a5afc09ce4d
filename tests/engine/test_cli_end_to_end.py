"""The command as users run it: on real files, some in processes of their own, and one line for each mistake."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from ultralytics.utils import ASSETS

from yolo_lat.data.shapes import CLASSES
from yolo_lat.engine.evaluate import COCO_NUMBERS

REPO = Path(__file__).parents[2]


@pytest.fixture
def cli(tmp_path, monkeypatch):
    """Run `python -m yolo_lat` in an empty folder."""
    monkeypatch.setenv("PYTHONPATH", str(REPO))

    def run(*words: object) -> SimpleNamespace:
        command = [sys.executable, "-m", "yolo_lat", *map(str, words)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
        return SimpleNamespace(status=done.returncode, out=done.stdout, err=done.stderr)

    return run


@pytest.fixture
def succeed(command):
    """Run a command that must succeed; returns what it printed."""

    def run(*words: object) -> str:
        ended = command(*words)
        assert ended.status == 0, ended.err
        return ended.out

    return run


@pytest.fixture
def refused(command):
    """Run a command that must fail; returns its message."""

    def run(*words: object) -> str:
        ended = command(*words)
        assert ended.status == 2
        return one_line(ended.err)

    return run


def one_line(err: str) -> str:
    """Return the message of the command's only line on stderr."""
    lines = [line for line in err.splitlines() if not line.startswith("[")]  # FFmpeg's own lines
    assert len(lines) == 1, err
    assert lines[0].startswith("yolo-lat: error: ")
    return lines[0].removeprefix("yolo-lat: error: ")


def test_val_writes_the_twelve_numbers_and_predictions_give_them_again(succeed, run, tmp_path):
    succeed("val", f"model={run.best}", f"data={run.data}", "imgsz=96", "device=cpu", "plots=False", "json=m/a.json")
    numbers = json.loads((tmp_path / "m/a.json").read_text())
    assert list(numbers) == list(COCO_NUMBERS)
    assert numbers == json.loads((tmp_path / "runs/detect/val/metrics.json").read_text())
    assert numbers["AP"] > 0.001
    out = succeed("val", "predictions=runs/detect/val/predictions.json", f"data={run.data}", "json=b.json")
    assert json.loads((tmp_path / "b.json").read_text()) == pytest.approx(numbers, abs=1e-12)
    assert f"AP      {numbers['AP']:.4f}" in out


def test_predict_saves_pictures_and_counts_frames(cli, run, tmp_path):
    done = cli("predict", f"model={run.safetensors}", f"source={ASSETS}", "imgsz=96", "conf=0.01", "device=cpu")
    assert done.status == 0, done.err
    assert f"frames: 2, saved to {tmp_path}/runs/detect/predict" in done.out
    assert {path.name for path in (tmp_path / "runs/detect/predict").iterdir()} == {"bus.jpg", "zidane.jpg"}


def test_export_prints_the_path(succeed, run, tmp_path):
    shutil.copy(run.best, tmp_path / "a.pt")
    out = succeed("export", "model=a.pt", "imgsz=96")
    assert out.splitlines()[-1].endswith("a.onnx")
    assert (tmp_path / "a.onnx").stat().st_size > 500_000


def test_info_prints_the_size(cli, run):
    done = cli("info", f"model={run.best}", "imgsz=96")
    assert done.status == 0, done.err
    assert "parameters" in done.out


def test_train_from_the_command_line(succeed, shapes, tmp_path):
    words = ("model=yolo-lat-p", f"data={shapes}", "epochs=1", "imgsz=64", "batch=12", "device=cpu", "plots=False")
    succeed("train", *words, "project=out", "name=a")
    assert (tmp_path / "out/a/weights/best.safetensors").exists()


def test_a_mistake_is_one_line_in_a_real_process_too(cli, run, tmp_path):
    (tmp_path / "a.mp4").write_text("text")  # FFmpeg has something to say of it too
    done = cli("predict", f"model={run.best}", "source=a.mp4", "device=cpu")
    assert done.status == 2
    assert "a.mp4" in one_line(done.err)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("predict model={best} source=nope.jpg", "nope.jpg does not exist"),
        ("predict model={best} source=text.mp4", "text.mp4"),
        ("predict model={best} source=binary.txt", "binary.txt: not a text file"),
        ("predict model={best} source=text.jpg", "text.jpg: broken image"),
        ("predict model={best} source=. imgsz=100", "use 96 or 128"),
        ("predict model=cut.pt source=text.jpg", "cut.pt: not a checkpoint of a detector"),
        ("predict model=cut.safetensors source=text.jpg", "cut.safetensors: damaged"),
        ("predict model=text.onnx source=text.jpg", "text.onnx: not an ONNX model"),
        ("val model={best} data=broken.yaml", "broken.yaml, line 2: not valid YAML"),
        ("val model={best} data=range.yaml", "labels/a.txt, line 2: class 8 is not a number from 0 to 7"),
        ("train model=yolo-lat-p data=range.yaml", "labels/a.txt, line 2: class 8"),
        ("train model=unknown.yaml data=range.yaml", "unknown.yaml, row 1 (LocalBlok): unknown module 'LocalBlok'"),
        ("info model=heads.yaml", "heads.yaml, row 1 (ELABlock)"),
        ("val model={best} data={data} project=text.jpg/runs", "text.jpg is a file; give a folder"),
        ("train model=yolo-lat-p data={data} project=text.jpg", "text.jpg is a file; give a folder"),
        ("train resume={best}", "is no unfinished training"),
        ("train resume=labels", "model=labels: is a folder; give a file, such as weights/best.pt or last.pt of a run"),
        ("predict model=labels source=.", "model=labels: is a folder; give a file, such as weights/best.pt"),
        ("train model=text.onnx data={data}", "text.onnx: not an ONNX model"),
        ("val predictions=text.jpg data={data}", "text.jpg, line 1: not valid JSON"),
        ("info model=yolo-lat-p imgsz=abc", "imgsz=abc: must be a whole number of pixels"),
        ("export model={best} format=foo", "format=foo: unknown"),
        ("export model={best} format=torchscript opset=17", "'opset' is not supported"),
        ("val model={best} data={data} device=0", "device=0: not among the 0 CUDA devices"),
    ],
)
def test_mistakes_are_one_line(refused, run, tmp_path, monkeypatch, words, wanted):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    for name in ("text.mp4", "text.jpg", "text.onnx"):
        (tmp_path / name).write_text("text")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x81")
    (tmp_path / "cut.pt").write_bytes(run.best.read_bytes()[:9999])
    (tmp_path / "cut.safetensors").write_bytes(run.safetensors.read_bytes()[:9999])
    (tmp_path / "broken.yaml").write_text("train: images\n\tval: images\n")
    (tmp_path / "labels").mkdir()
    (tmp_path / "images").mkdir()
    shutil.copy(run.data.parent / "images/val/000001.jpg", tmp_path / "images/a.jpg")
    (tmp_path / "labels/a.txt").write_text("0 0.5 0.5 0.2 0.2\n8 0.5 0.5 0.2 0.2\n")
    (tmp_path / "range.yaml").write_text(yaml.safe_dump({"train": "images", "val": "images", "names": list(CLASSES)}))
    stem = [-1, 1, "PixelStem", [32]]
    for name, row in (("unknown", [-1, 1, "LocalBlok", [32]]), ("heads", [-1, 1, "ELABlock", [32, 5]])):
        model = {"nc": 8, "backbone": [stem, row], "head": [[[1], 1, "Detect", ["nc"]]]}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(model))
    before = sorted(tmp_path.rglob("*"))
    assert wanted in refused(*words.format(best=run.best, data=run.data).split())
    if not words.startswith("predict"):  # which makes its folder before it opens the first image
        assert sorted(tmp_path.rglob("*")) == before
