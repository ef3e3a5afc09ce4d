"""The command line of the demo: help, mistakes, and what is missing."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from yolo_lat.cli import explain, main

HIDDEN = "import sys; sys.modules.update(dict.fromkeys({names}, None)); from yolo_lat.cli import main; main()"


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    """Run a command in an empty folder without a display; its status, output and error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)

    def run(command: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as leave:
            main(shlex.split(command))
        out, error = capsys.readouterr()
        return leave.value.code, out, error

    return run


def test_a_file_goes_in_and_a_video_and_lines_come_out(cli, clip, detector_file):
    status, out, error = cli(f"demo model={detector_file} source={clip} csv name=7 batch=4 part=20")
    assert (status, error) == (0, "")
    assert "frames: 60" in out
    assert {file.name for file in Path("runs/demo/7").iterdir()} > {"video.mp4", "detections.jsonl", "detections.csv"}


def test_the_mode_and_its_group_share_a_name(cli):
    status, out, _ = cli("demo --help")
    assert status == 0
    assert out.startswith("usage: yolo-lat demo key=value ...")
    assert "\nSee also: yolo-lat demo web --help\n" in out
    assert cli("help demo")[1] == out
    assert cli("demo web --help")[1].startswith("usage: yolo-lat demo web key=value ...")
    assert cli("help demo web")[1] == cli("demo web --help")[1]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("demo", "demo needs model=, for example: yolo-lat demo model=best.onnx source=cars.mp4"),
        ("demo source=0", "demo needs model=, for example"),
        ("demo model=a.onnx", "demo needs source=, for example"),
        ("demo wbe model=a.onnx", "unknown action 'wbe' of demo; did you mean 'web'?"),
        ("demo modle=a.onnx", "unknown key 'modle' for demo; did you mean 'model'?"),
        ("demo model=a.onnx source=no.mp4", "source=no.mp4: no such file or folder"),
        ("demo model=a.onnx source=no.mp4 conf=high", "conf=high is no threshold; give a number from 0 to 1"),
        ("demo model=a.onnx source=no.mp4 iou=high", "iou=high is no threshold; give a number from 0 to 1"),
        ("demo model=a.onnx source=no.mp4 box_vote=high", "box_vote=high: must be a number"),
        ("demo model=a.onnx source=no.mp4 box_vote=1.5", "box_vote=1.5 is no threshold; give a number from 0 to 1"),
        ("demo model=a.onnx source=no.mp4 max_det=many", "max_det=many is no number of boxes; give 1 or more"),
        ("demo model=a.onnx source=no.mp4 max_det=2.5", "max_det=2.5 is no number of boxes"),
        ("demo model=a.onnx source=no.mp4 csv=maybe", "csv=maybe is neither True nor False; give one of them"),
        ("demo model=a.onnx source=no.mp4 save=maybe", "save=maybe is neither True nor False"),
        ("demo model=a.onnx source=no.mp4 save=none", "save=None is neither True nor False"),
        ("demo model=a.onnx source=no.mp4 track=maybe", "track=maybe is neither True nor False"),
        ("demo model=a.onnx source=no.mp4 show=maybe", "show=maybe is neither True nor False"),
        ("demo model=a.onnx source=no.mp4 zones=3", "zones=3: No such file or directory; give a YAML file"),
        ("demo model=a.onnx source=rtsp://[1", "source=rtsp://[1: no address (Invalid IPv6 URL); correct it"),
        ("demo model=a.onnx source=99999999999999", "source=camera 99999999999999: no such camera"),
        ("demo model=a.onnx source=0 zones=z.yaml track=False", "zones= counts objects by their numbers"),
        ("demo resume=runs/none", "resume=runs/none: holds no readable run.json"),
        ("demo resume=runs/none conf=0.3", "resume= goes on as the run began; leave conf= out"),
    ],
)
def test_mistakes_take_one_line_and_leave_nothing(cli, tmp_path, command, message):
    status, _, error = cli(command)
    assert status == 2
    assert error.startswith(f"yolo-lat: error: {message}")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


WHOLE_RUN = {"options": {"model": "a.onnx", "source": "a.mp4"}, "live": False, "fingerprint": {"model": "no file"}}


@pytest.mark.parametrize(
    "changes",
    [{"fingerprint": None}, {"fingerprint": {"model": 3}}, {"options": {"model": 3, "source": "a.mp4"}}, {"live": 1}],
    ids=str,
)
def test_a_damaged_note_of_a_run_is_refused(cli, tmp_path, changes):
    (tmp_path / "run/parts").mkdir(parents=True)
    for content, message in ((WHOLE_RUN, "have changed"), (WHOLE_RUN | changes, "holds no readable run.json")):
        (tmp_path / "run/run.json").write_text(json.dumps(content))
        status, _, error = cli("demo resume=run")
        assert status == 2
        assert message in error


def test_a_model_that_is_no_model_is_named(cli, clip, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    status, _, error = cli(f"demo model=bad.onnx source={clip}")
    assert status == 2
    assert "cannot open bad.onnx" in error
    assert not Path("runs").exists()


@pytest.mark.parametrize("package", ["av", "supervision", "scipy"])
def test_a_missing_package_is_named_with_its_extra(clip, detector_file, tmp_path, package):
    code = HIDDEN.format(names=[package, f"{package}.optimize"])
    done = subprocess.run(
        [sys.executable, "-c", code, "demo", f"model={detector_file}", f"source={clip}"],
        **{"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 60},
    )
    assert (done.returncode, done.stdout) == (2, "")
    sentence = f"this needs {package}, which is not installed; run: pip install 'yolo-lat[demo]'"
    assert done.stderr == f"yolo-lat: error: {sentence}\n"
    assert str(explain(ModuleNotFoundError(name=package))) == sentence


def test_torch_is_not_imported_for_an_onnx_file(clip, detector_file, tmp_path):
    code = """
import sys
from yolo_lat.cli import main
try:
    main()
finally:
    print(sorted({"torch", "ultralytics"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "demo", f"model={detector_file}", f"source={clip}", "show=False"],
        **{"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 60, "env": os.environ},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_model_of_torch_finds_the_same(cli, run, onnx_file, shapes):
    """The trained detector of these tests, as PyTorch checkpoint and as ONNX, on pictures it was validated on."""
    source = f"source={shapes.parent}/images/val conf=0.05 imgsz=96"
    assert cli(f"demo model={run.best} {source} name=torch batch=4")[0] == 0
    assert cli(f"demo model={onnx_file} {source} name=onnx")[0] == 0
    torch_lines, onnx_lines = (Path(f"runs/demo/{name}/detections.jsonl").read_text() for name in ("torch", "onnx"))
    pairs = list(zip(map(json.loads, torch_lines.splitlines()), map(json.loads, onnx_lines.splitlines()), strict=True))
    assert sum(len(a["boxes"]) for a, _ in pairs) > 0
    for a, b in pairs:
        assert a["names"] == b["names"]
        np.testing.assert_allclose(np.reshape(a["boxes"], (-1, 4)), np.reshape(b["boxes"], (-1, 4)), atol=0.5)
        np.testing.assert_allclose(a["scores"], b["scores"], atol=0.01)
