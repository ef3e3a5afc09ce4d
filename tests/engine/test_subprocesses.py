"""What only a fresh process can show: plain Ultralytics on our checkpoints, and work without any network."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from ultralytics.utils.events import events

from yolo_lat.engine import offline

REPO = Path(__file__).parents[2]


@pytest.fixture
def python(tmp_path):
    """Run code in a fresh process with settings folders of its own, in an empty folder; returns its output."""

    def run(code: str) -> str:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("YOLO_")}
        environment |= {"XDG_CONFIG_HOME": str(tmp_path / "config"), "PYTHONPATH": str(REPO)}
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    return run


@pytest.mark.slow
def test_plain_ultralytics_takes_our_checkpoint(run, txt_data, tmp_path, python):
    shutil.copytree(txt_data.parent, tmp_path / "data")  # Ultralytics writes caches beside the data
    (tmp_path / "data.yaml").write_text(txt_data.read_text().replace(str(txt_data.parent), str(tmp_path / "data")))
    output = python(f"""
        import os
        os.environ |= {{"YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "0"}}
        from ultralytics import YOLO
        from ultralytics.utils import ASSETS
        model = YOLO({str(run.best)!r})
        assert len(model.predict(ASSETS / "bus.jpg", imgsz=96, conf=0.001, device="cpu")[0]) > 10
        import yolo_lat
        quick = dict(data={str(tmp_path / "data.yaml")!r}, imgsz=96, device="cpu", plots=False, workers=0, project="r")
        model = YOLO({str(run.best)!r})
        print("MAP50", model.val(**quick).box.map50)
        model.train(epochs=1, batch=8, **quick)
        assert os.path.exists(model.trainer.best)
        """)
    found = float(output.split("MAP50 ")[1].split()[0])
    assert found == pytest.approx(run.metrics.coco["AP50"], abs=0.03)  # another evaluator, on eight images
    assert found > 0.001


def test_training_prediction_and_export_need_no_network(shapes, tmp_path, python):
    output = python(f"""
        import socket

        def refuse(*arguments, **_):
            print("NETWORK", arguments)
            raise OSError("the network was used")

        socket.socket.connect = socket.socket.connect_ex = refuse
        socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refuse
        import urllib.request
        urllib.request.urlopen = refuse
        import requests
        requests.Session.request = refuse

        from yolo_lat import YOLOLAT
        from ultralytics.utils import ASSETS, SETTINGS, USER_CONFIG_DIR
        from ultralytics.utils.events import events
        model = YOLOLAT("yolo-lat-p")
        model.train(data={str(shapes)!r}, epochs=1, imgsz=64, batch=12, device="cpu", workers=0, project="r")
        model.predict(ASSETS / "bus.jpg", imgsz=96, device="cpu", save=True, project="r")
        model.export(imgsz=64)
        print("EVENTS", events.enabled, SETTINGS["sync"], USER_CONFIG_DIR)
        """)
    assert "NETWORK" not in output
    assert f"EVENTS False False {tmp_path}/config/yolo-lat" in output
    assert (tmp_path / "r/train/weights/best.onnx").exists()
    assert (tmp_path / "r/train/results.png").exists()
    assert {path.name for path in (tmp_path / "config").iterdir()} <= {"yolo-lat", "matplotlib"}


def test_telemetry_is_off_even_where_the_engine_would_send_it(monkeypatch):
    monkeypatch.setattr(events, "enabled", True)
    offline.settle()
    assert events.enabled is False


def test_an_image_that_is_none_starts_neither_an_install_nor_the_compiler(tmp_path, python):
    (tmp_path / "a.jpg").write_bytes(b"text")
    output = python("""
        import sys
        from pathlib import Path
        from yolo_lat import YOLOLAT
        print("COMPILER", "torch._dynamo" in sys.modules)
        from yolo_lat.data.images import image_size
        try:
            image_size(Path("a.jpg"))
        except ValueError as error:
            print("REFUSED", error)
        """)
    assert "REFUSED a.jpg: broken image (cannot identify image file" in output
    assert "pi-heif" not in output
    assert "COMPILER False" in output  # it takes two seconds to import
