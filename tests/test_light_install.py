"""The install without the extra `train`: it detects and helps, and says in one sentence what all else needs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import cv2
import numpy as np
import pytest
from hand_made_onnx import colour_detector

from yolo_lat.cli_modes import MODES

ROOT = Path(__file__).resolve().parent.parent
LACKING = (
    *("torch", "torchvision", "ultralytics", "cloudpickle", "pycocotools", "faster_coco_eval", "safetensors"),
    *("onnx", "onnxslim", "matplotlib", "lap", "albumentations", "polars", "scipy", "hypothesis"),
)
# No finder finds them, as if they were not installed; importlib.util.find_spec returns None for them then.
HIDE = f"""
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, *args):
        return None if name.partition(".")[0] in {LACKING} else self.finder.find_spec(name, *args)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""
DETECT = """
import json, resource, sys, time
start = time.perf_counter()
import yolo_lat.deploy
seconds = time.perf_counter() - start
unit = 1 if sys.platform == "darwin" else 1024
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
imported = peak()
import cv2
image = cv2.imread(sys.argv[2])
found = yolo_lat.deploy.OnnxDetector(sys.argv[1], threads=1)(image)
assert found.draw(image).shape == image.shape
loaded = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps([len(found), found.names, seconds, imported, peak(), loaded]))
"""


@pytest.fixture
def light(tmp_path):
    """Run Python code, or words of the command line, in a process where those packages are not installed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(tmp_path), "COLUMNS": "100"}

    def run(*words: str, code: str = "from yolo_lat.cli import main; main()") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", HIDE + textwrap.dedent(code), *words],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=tmp_path,
            env=environment,
        )

    return run


@pytest.fixture
def picture(tmp_path) -> Path:
    image = np.zeros((64, 64, 3), np.uint8)
    image[8:16, 24:32], image[40:48, 0:8] = (0, 0, 255), (204, 0, 0)
    cv2.imwrite(str(tmp_path / "picture.png"), image)
    return tmp_path / "picture.png"


def test_the_packages_are_hidden(light):
    for package in LACKING:
        code = f"import importlib.util; assert importlib.util.find_spec({package!r}) is None; import {package}"
        assert f"ModuleNotFoundError: No module named '{package}'" in light(code=code).stderr


def test_it_detects_and_draws(light, picture, tmp_path):
    model = colour_detector(tmp_path / "m.onnx", takes_bytes=True)
    done = light(str(model), str(picture), code=DETECT)
    assert done.returncode == 0, done.stderr
    found, names, *_, loaded = json.loads(done.stdout)
    assert (found, names["0"]) == (2, "red")
    assert not set(LACKING) & set(loaded)


@pytest.mark.parametrize("words", [["--help"], ["--version"], [], ["data", "--help"], ["info", "--help"]], ids=" ".join)
def test_help_that_needs_nothing_more_is_given(light, words):
    done = light(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert "yolo-lat" in done.stdout


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_helps_or_says_what_is_missing(light, mode):
    done = light(*mode.split(), "--help")
    if done.returncode == 0:
        assert done.stdout.startswith(f"usage: yolo-lat {mode}")
    else:
        assert_says_what_is_missing(done)


@pytest.mark.parametrize(
    "command",
    [
        "train",
        "train model=yolo-lat-n data=coco",
        "predict model=yolo-lat-n source=street.jpg",
        "info model=yolo-lat-p",
        "info table",
        "quickstart",
        "val predictions=results.json data=coco",
        "compare a b",
        "data preview shapes",
    ],
)
def test_modes_that_need_more_say_so(light, command):
    assert_says_what_is_missing(light(*command.split()))


def assert_says_what_is_missing(done: subprocess.CompletedProcess[str]) -> None:
    assert (done.returncode, done.stdout) == (2, "")
    sentence = r"yolo-lat: error: this needs (\w+), which is not installed; run: pip install 'yolo-lat\[train\]'\n"
    match = re.fullmatch(sentence, done.stderr)
    assert match, done.stderr
    assert match[1] in LACKING


def test_the_model_class_says_what_is_missing(light):
    done = light(
        code="""
        from yolo_lat.errors import UserError
        try:
            from yolo_lat import YOLOLAT
        except UserError as error:
            print(error)
    """
    )
    assert re.fullmatch(r"this needs \w+, which is not .*; run: pip install 'yolo-lat\[train\]'\n", done.stdout), done


def test_other_missing_modules_stay_bugs(light):
    done = light(
        "info",
        "table",
        code="""
        from yolo_lat import cli
        def broken(options):
            import no_such_module
        cli.RUN["info"] = broken
        cli.main()
    """,
    )
    assert done.returncode == 1
    assert "ModuleNotFoundError: No module named 'no_such_module'" in done.stderr


@pytest.mark.slow
def test_a_fresh_environment_without_extras_detects(tmp_path, picture, capsys):
    """What `pip install .` brings, in a virtual environment of its own; prints what importing and detecting cost."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    install = [python, "-m", "pip", "install", "--quiet", "--progress-bar", "off", str(ROOT)]
    subprocess.run(install, check=True, timeout=550)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, *words], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120
        )

    packages = {line.partition("==")[0].lower() for line in run("-m", "pip", "freeze").stdout.splitlines()}
    assert not packages & {"torch", "torchvision", "ultralytics", "pycocotools", "onnx", "matplotlib", "safetensors"}
    model = colour_detector(tmp_path / "m.onnx")
    run("-c", DETECT, str(model), str(picture))  # compiles what is imported
    done = run("-c", DETECT, str(model), str(picture))
    assert done.returncode == 0, done.stderr
    found, _, seconds, imported, detected, _ = json.loads(done.stdout)
    assert found == 2
    with capsys.disabled():
        print(
            f"\nimport yolo_lat.deploy: {seconds:.2f} s, peak memory {imported:.0f} MiB, "
            f"{detected:.0f} MiB with one detection; {len(packages)} packages"
        )
    assert run("-m", "yolo_lat", "--help").returncode == 0
    assert_says_what_is_missing(run("-m", "yolo_lat", "train", "model=yolo-lat-n", "data=coco"))
