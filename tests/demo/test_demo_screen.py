"""The window on a real X display, with real keys."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest
from clips import moving, write_clip

pytestmark = pytest.mark.slow
DISPLAY = ":93"


@pytest.fixture
def display():
    if missing := [tool for tool in ("Xvfb", "xdotool") if shutil.which(tool) is None]:
        pytest.skip(f"{missing[0]} is not at hand")
    server = subprocess.Popen(["Xvfb", DISPLAY, "-screen", "0", "800x600x24"], stderr=subprocess.DEVNULL)
    time.sleep(1)
    yield os.environ | {"DISPLAY": DISPLAY}
    server.kill()
    server.wait()


def test_keys_work_in_a_real_window(display, detector_file, tmp_path):
    def xdotool(*words: str) -> str:
        return subprocess.run(["xdotool", *words], env=display, capture_output=True, text=True).stdout.strip()

    write_clip(tmp_path / "long.mp4", moving(1000))
    words = [f"model={detector_file}", "source=long.mp4", "csv"]
    process = subprocess.Popen(
        [sys.executable, "-m", "yolo_lat", "demo", *words],
        **{"cwd": tmp_path, "env": display, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True},
    )
    try:
        end = time.monotonic() + 40
        while not (window := xdotool("search", "--name", "yolo-lat demo")):
            assert time.monotonic() < end, "no window opens"
            time.sleep(0.1)
        time.sleep(1)
        xdotool("windowfocus", window.split()[-1])
        for key in ("space", "s", "n", "s", "space", "q"):
            xdotool("key", key)
            time.sleep(0.5)
        out, error = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, error) == (0, "")
    assert "window opens; keys: space pause" in out
    first, second = sorted((tmp_path / "runs/demo/long/screenshots").iterdir())
    assert int(second.stem) == int(first.stem) + 1, "a step is one frame"
    assert (cv2.imread(str(first)) != cv2.imread(str(second))).any()
    assert Path(tmp_path / "runs/demo/long/video.mp4").is_file()
