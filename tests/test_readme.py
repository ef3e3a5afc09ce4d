"""The README's commands do what the README says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    return [line for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]


def test_ci_runs_the_readmes_test_command() -> None:
    test_command = commands()[1].rpartition("&&")[2].strip().removeprefix(".venv/bin/")
    script = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    assert f'PATH="$venv/bin:$PATH" {test_command}' in script


def test_the_first_command_runs_the_whole_line(tmp_path: Path) -> None:
    """With one epoch instead of ten, so the numbers mean nothing; all else is what a newcomer gets."""
    quickstart = commands()[0].rpartition("&&")[2].split()
    assert quickstart == [".venv/bin/yolo-lat", "quickstart"]
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path / "config"), "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    environment.pop("YOLO_LAT_DATASETS", None)
    done = subprocess.run(
        [sys.executable, "-m", "yolo_lat", "quickstart", "epochs=1"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    run = tmp_path / "runs/quickstart"
    assert set(json.loads((run / "train/metrics.json").read_text())) >= {"AP", "AP50", "AR100"}
    for made in ("train/weights/best.safetensors", "train/weights/best.onnx", "detections.jpg"):
        assert (run / made).stat().st_size > 10_000
        assert f"runs/quickstart/{made}" in done.stdout
    assert "COCO AP / AP50" in done.stdout
    assert (tmp_path / "datasets/shapes/annotations/val.json").is_file()
