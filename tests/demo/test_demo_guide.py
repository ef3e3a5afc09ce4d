"""Every command of docs/demo.md runs, in its order; those for cameras and streams say that none is there."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import cv2
import pytest
from clips import BLUE, picture

from yolo_lat.cli import dispatch
from yolo_lat.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs/demo.md").read_text(encoding="utf-8")
COMMANDS = "".join(re.findall(r"^```console\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)).splitlines()


def test_commands_run(tmp_path, monkeypatch, clip, detector_file, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    shutil.copy(detector_file, "best.onnx")
    shutil.copy(clip, "cars.mp4")
    Path("photos").mkdir()
    cv2.imwrite("photos/a.jpg", picture({BLUE: (8, 8, 40, 40)}))
    zones = re.search(r"^```yaml\n(# zones\.yaml\n.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    assert zones
    Path("zones.yaml").write_text(zones[1])
    assert len(COMMANDS) >= 6
    for command in COMMANDS:
        program, *words = shlex.split(command)
        assert program == "yolo-lat"
        if "source=0" in words or any("rtsp://" in word for word in words):
            local = [word.replace("192.168.1.20", "127.0.0.1:9") for word in words]
            with pytest.raises(UserError, match=r"no such camera|connection refused"):
                dispatch(local)
        elif "resume=runs/demo/cars" in words:
            with pytest.raises(UserError, match="this run is complete"):
                dispatch(words)
        else:
            dispatch(words)
    assert {folder.name for folder in Path("runs/demo").iterdir()} == {"cars", "cars-2", "photos"}
    assert "gate" in capsys.readouterr().out


def test_the_figures_of_half_an_hour_are_those_of_the_record():
    record = json.loads((ROOT / "docs/results/soak-cpu.json").read_text())
    summary, delay = record["summary"], record["summary"]["delay_ms"]
    for cells in (
        f"{summary['frames']:,}, {summary['dropped']}",
        f"{delay['median']:.1f} and {delay['p95']:.1f} ms",
        f"{summary['faults']['losses']} and {summary['faults']['reconnects']}",
        f"{record['memory_growth_percent']:+}%",
    ):
        assert f"| {cells} |" in GUIDE
    assert record["minutes"] == 30
    assert record["restarts"] == summary["faults"]["reconnects"]
    assert abs(record["memory_growth_percent"]) < 5
    assert delay["p95"] < 2000 / record["rate"]
