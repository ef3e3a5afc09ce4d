"""Runs over collections on a real Ray, and the command line of them."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from hand_made_onnx import colour_detector, fixed_output
from packed import as_folder, as_parquet, as_tar, broken, encoded

ray = pytest.importorskip("ray", reason="needs Ray Data: pip install 'yolo-lat[ray]'")
pytest.importorskip("ray.data", reason="needs Ray Data: pip install 'yolo-lat[ray]'")

from yolo_lat.cli import main  # noqa: E402
from yolo_lat.collection import CollectionOptions, resume_collection, run_collection  # noqa: E402
from yolo_lat.collection.results import read_rows  # noqa: E402
from yolo_lat.collection.run import _start  # noqa: E402
from yolo_lat.collection.worker import Worker  # noqa: E402
from yolo_lat.deploy import OnnxDetector  # noqa: E402
from yolo_lat.errors import UserError  # noqa: E402

IMAGES = 24
COLUMNS = ["image", "width", "height", "boxes_xyxy", "scores", "class_ids", "error"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return colour_detector(tmp_path_factory.mktemp("model") / "colours.onnx")


@pytest.fixture(scope="module")
def started():
    """Ray for all tests of this file, since starting it takes seconds; it takes our word for a GPU."""
    ray.init("local", num_cpus=3, num_gpus=1, include_dashboard=False, object_store_memory=2**28, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """Whole images, and four that are not."""
    whole = encoded(IMAGES)
    return whole | broken(whole["00000.png"])


@pytest.fixture
def options(model, tmp_path):
    def make(source: Path | str, **others: Any) -> CollectionOptions:
        given = {"workers": 1, "project": str(tmp_path / "runs"), "batch": 5, **others}
        return CollectionOptions(str(model), str(source), **given)

    return make


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of a run by the last part of the images' names, each of which must be there once."""
    rows = list(read_rows(folder / "detections", COLUMNS))
    by_name = {row["image"].rpartition("/")[2]: row for row in rows}
    assert len(by_name) == len(rows)
    return by_name


def assert_right(folder: Path, files: dict[str, bytes], model: Path, **detect: Any) -> None:
    """The rows are what the detector gives of the files, one by one, and of those that are broken why."""
    rows, detector, found = rows_of(folder), OnnxDetector(model, **detect), 0
    assert rows.keys() == files.keys()
    for name, row in rows.items():
        if name not in encoded(IMAGES):
            assert row["error"]
            assert row["scores"] is None
            continue
        image = cv2.imdecode(np.frombuffer(files[name], np.uint8), cv2.IMREAD_COLOR)
        expected = detector(image)
        assert (row["height"], row["width"], row["error"]) == (*image.shape[:2], None)
        np.testing.assert_array_equal(np.array(row["boxes_xyxy"], np.float32).reshape(-1, 4), expected.boxes_xyxy)
        np.testing.assert_array_equal(np.array(row["scores"], np.float32), expected.scores)
        assert row["class_ids"] == expected.class_ids.tolist()
        found += len(expected)
    assert found > IMAGES


# Sources


def test_a_folder_gives_what_the_detector_gives_and_lists_what_is_broken(started, options, files, model, tmp_path):
    lines: list[str] = []
    result = run_collection(options(as_folder(tmp_path / "photos", files)), say=lines.append)
    assert result.folder == tmp_path / "runs/photos"
    assert_right(result.folder, files, model)
    assert {key: result.summary[key] for key in ("inputs", "images", "failed")} == {
        **{"inputs": IMAGES + 4, "images": IMAGES + 4, "failed": 4}
    }
    assert json.loads((result.folder / "summary.json").read_text()) == result.summary
    failed = (result.folder / "failed.csv").read_text()
    assert all(name in failed for name in broken(b""))
    coco = json.loads((result.folder / "detections.json").read_text())
    assert len(coco["images"]) == IMAGES
    assert len(coco["annotations"]) == result.summary["detections"]
    assert f"{IMAGES + 4} of {IMAGES + 4} inputs: {IMAGES + 4} images, 4 failed" in lines[-1]


def test_boxes_vote_where_asked(started, options, files, model, tmp_path):
    result = run_collection(options(as_folder(tmp_path / "photos", files), box_vote=0.05), say=[].append)
    assert_right(result.folder, files, model, box_vote=0.05)
    with pytest.raises(AssertionError, match="Mismatched elements"):
        assert_right(result.folder, files, model)
    assert json.loads((result.folder / "run.json").read_text())["box_vote"] == 0.05


@pytest.mark.slow
def test_parquet_gives_the_same(started, options, files, model, tmp_path):
    as_parquet(tmp_path / "tables/0.parquet", files)
    result = run_collection(options(tmp_path / "tables", id="name"), say=[].append)
    assert_right(result.folder, files, model)


def test_actors_import_no_torch(started, options, model, tmp_path):
    from yolo_lat.collection.sources import open_source

    source, _ = open_source(str(as_folder(tmp_path, encoded(1))))
    rows = pa.table({"path": [source.path("00000.png")], "bytes": [encoded(1)["00000.png"]]})

    def loaded() -> list[str]:
        assert Worker(source, str(model), "cpu", {})(rows)["error"].null_count == 1
        return [name for name in ("torch", "ultralytics") if name in sys.modules]

    assert ray.get(ray.remote(loaded).remote()) == []


# Going on


class StoppedError(Exception):
    pass


def stop_after(parts: int):
    """What takes lines of progress and fails after so many parts, as a process may at any time."""
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if len(lines) > parts:
            raise StoppedError

    return say


@pytest.mark.slow
def test_a_run_over_tars_goes_on_after_its_last_part(started, options, files, model, tmp_path):
    for number in range(3):
        some = {name: content for index, (name, content) in enumerate(files.items()) if index % 3 == number}
        tar = as_tar(tmp_path / f"shards/{number}.tar", some)
    (tmp_path / "shards/3.tar").write_bytes(tar.read_bytes()[:2000])
    asked = options(tmp_path / "shards", part=0)
    with pytest.raises(StoppedError):
        run_collection(asked, say=stop_after(1))
    folder = tmp_path / "runs/shards"
    left = folder / "detections/.unfinished-x"
    left.mkdir()
    (first,) = (folder / "detections").glob("0*/*.parquet")
    before = first.stat()

    other = options(tmp_path / "shards", conf=0.5)
    with pytest.raises(UserError, match=r"was begun with another conf, 0.25; give that one, or start another run"):
        run_collection(other, go_on=True)
    with pytest.raises(StoppedError):
        run_collection(asked, go_on=True, say=stop_after(1))
    as_tar(tmp_path / "shards/9.tar", files)  # what comes after the listing belongs to another run
    lines: list[str] = []
    result = resume_collection(folder, say=lines.append, workers=1, coco=False)
    assert lines[0] == f"{folder}: 4 inputs of WebDataset, 2 done, 1 workers"
    assert {key: result.summary[key] for key in ("parts", "failed")} == {"parts": 3, "failed": 5}
    assert "3.tar,cannot be read as a tar" in (folder / "failed.csv").read_text()
    assert not (folder / "detections.json").exists()
    assert (first.stat().st_mtime_ns, left.exists()) == (before.st_mtime_ns, False)
    (next(folder.glob("detections/*/unreadable.parquet"))).unlink()
    assert_right(folder, files, model)
    with pytest.raises(UserError, match="this run is complete"):
        resume_collection(folder)
    (tmp_path / "runs/shards-2").mkdir()
    with pytest.raises(UserError, match=r"holds no readable run.json; give the folder of such a run, or another name"):
        run_collection(options(tmp_path / "shards", name="shards-2"), go_on=True)


# Refusals


@pytest.fixture
def cli(capfd, tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    as_folder(tmp_path / "photos", encoded(2))

    def run(command: str) -> SimpleNamespace:
        with pytest.raises(SystemExit) as leave:
            main(shlex.split(command.replace("MODEL", str(model))))
        captured = capfd.readouterr()
        return SimpleNamespace(status=leave.value.code, out=captured.out, err=captured.err)

    return run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("model=MODEL", "predict engine=ray needs source=, for example: yolo-lat predict engine=ray model="),
        ("source=photos", "predict engine=ray needs model="),
        (
            "source=photos model=best.pt",
            "model=best.pt is no .onnx file, which engine=ray needs; make one of weights: ",
        ),
        ("source=photos model=a.safetensors", "model=a.safetensors is no .onnx file"),
        ("source=photos model=none.onnx", "model=none.onnx: no such file"),
        ("source=photos model=broken.onnx", "onnxruntime"),
        ("source=nowhere model=MODEL", "source=nowhere: no such file or folder"),
        ("source=photos model=MODEL save=False", "unknown key 'save' for predict engine=ray"),
        ("source=photos model=MODEL half", "unknown key 'half' for predict engine=ray"),
        ("source=photos model=MODEL confs=1", "unknown key 'confs' for predict engine=ray; did you mean 'conf'?"),
        ("source=photos model=MODEL device=0", "device=0 cannot be chosen, since Ray hands out the GPUs"),
        ("source=photos model=MODEL conf=2", "conf=2 is out of range; pass a number from 0 to 1"),
        ("source=photos model=MODEL box_vote=2", "box_vote=2 is out of range; pass a number from 0 to 1"),
        ("source=photos model=MODEL batch=2.5", "batch=2.5 is out of range; pass a whole number from 1 to"),
        ("source=photos model=MODEL workers=0", "workers=0 is out of range"),
        ("source=photos model=MODEL coco=maybe", "coco=maybe is neither True nor False"),
        ("source=photos model=MODEL imgsz=50", "imgsz=50 does not fit"),
        (
            "source=photos model=MODEL column=x",
            "column= and id= name columns of Parquet, and source=photos holds images",
        ),
        ("resume=photos", "resume=photos: holds no readable run.json"),
        ("resume=photos conf=0.5", "resume=photos goes on as the run began; leave conf= out"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(cli, tmp_path, words, message):
    (tmp_path / "broken.onnx").write_bytes(b"x")
    refused = cli(f"predict {words} engine=ray")
    assert (refused.status, refused.out) == (2, "")
    assert refused.err.splitlines()[-1].startswith(f"yolo-lat: error: {message}")
    assert not (tmp_path / "runs").exists()


def test_other_engines_are_refused(cli):
    assert "engine=spark is unknown; write engine=ray" in cli("predict model=MODEL source=photos engine=spark").err
    assert "unknown key 'engine' for track" in cli("track model=MODEL source=photos engine=ray").err


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (
            {"device": "cuda", "workers": 2},
            "device=cuda: 2 workers need a GPU each, and Ray finds 1; pass fewer workers, or device=cpu",
        ),
        ({"workers": 3}, "workers=3 need 4 CPUs of Ray, one for reading, and it has 3; pass fewer"),
    ],
)
def test_cores_and_gpus_that_are_not_there_are_refused(started, options, tmp_path, others, message):
    with pytest.raises(UserError) as caught:
        run_collection(options(as_folder(tmp_path / "photos", encoded(2)), **others))
    assert str(caught.value) == message
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU")
def test_a_gpu_that_the_model_does_not_get_is_an_error(started, options, tmp_path):
    with pytest.raises(UserError, match=r"device 'cuda'.*or pass device='cpu'"):
        run_collection(options(as_folder(tmp_path / "photos", encoded(2)), device="cuda"))
    assert not (tmp_path / "runs").exists()


def test_a_cluster_that_is_not_there_is_refused_at_once(options, tmp_path):
    asked = options(as_folder(tmp_path / "photos", encoded(2)), address="127.0.0.1:9")
    with pytest.raises(UserError, match=r"address=127.0.0.1:9: no Ray cluster of version .* answers \(Conn"):
        _start(asked)


def test_an_address_is_refused_where_ray_runs_already(started, options, tmp_path):
    with pytest.raises(UserError, match="this process has started Ray already; leave it out"):
        run_collection(options(as_folder(tmp_path / "photos", encoded(2)), address="auto"))


# Whole commands


def command(*words: str, folder: Path) -> list[str]:
    return [sys.executable, "-m", "yolo_lat", "predict", "engine=ray", f"project={folder}", *words]


@pytest.mark.slow
def test_a_killed_run_goes_on_and_has_each_image_once(model, tmp_path):
    """kill -9 in the middle of a part, twice; by the same command with resume=True each time."""
    images = encoded(600)
    as_folder(tmp_path / "photos", images)
    words = (f"model={model}", f"source={tmp_path}/photos", "part=0", "workers=1", "name=run", "resume")
    folder = tmp_path / "runs/run"
    for _ in range(2):
        process = subprocess.Popen(command(*words, folder=tmp_path / "runs"))
        before = len(list(folder.glob("detections/0*")))
        deadline = time.monotonic() + 120
        while not (len(list(folder.glob("detections/0*"))) > before and list(folder.glob("detections/.unf*/*"))):
            assert process.poll() is None, "done before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
        process.wait()
        assert not (folder / "summary.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("detections/0*/*")}
    assert kept
    done = subprocess.run(command(*words, folder=tmp_path / "runs"), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "images: 600, detections: " in done.stdout
    names = Counter(row["image"].rpartition("/")[2] for row in read_rows(folder / "detections", ["image"]))
    assert names == Counter(images.keys())
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert not list(folder.glob("detections/.*"))


@pytest.mark.slow
def test_the_command_says_what_failed_by_its_exit_status(model, files, tmp_path):
    as_folder(tmp_path / "photos", files)
    words = (f"model={model}", f"source={tmp_path}/photos", "workers=1")
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "1"}
    done = subprocess.run(
        command(*words, folder=tmp_path / "runs"), capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 1
    assert f"images: {IMAGES + 4}, detections: " in done.stdout
    assert "failed: 4, saved to" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_cluster_is_joined_by_its_address(model, files, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ("--head", "--block", f"--port={port}", "--num-cpus=3", "--num-gpus=0", "--include-dashboard=false")
    quiet = ("--disable-usage-stats", "--object-store-memory=300000000")
    ray_command = Path(sys.executable).with_name("ray")
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}
    cluster = subprocess.Popen(
        [ray_command, "start", *words, *quiet], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert any("Ray runtime started" in line for line in cluster.stdout)
        as_folder(tmp_path / "photos", files)
        words = (f"model={model}", f"source={tmp_path}/photos", f"address=127.0.0.1:{port}")
        done = subprocess.run(
            command(*words, folder=tmp_path / "runs"), capture_output=True, text=True, timeout=300, env=environment
        )
    finally:
        cluster.terminate()
        cluster.wait(60)
    assert done.returncode == 1, done.stderr
    assert f"{IMAGES + 4} inputs of images, 0 done, 1 workers" in done.stdout
    assert_right(tmp_path / "runs/photos", files, model)


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(model, tmp_path):
    as_folder(tmp_path / "photos", encoded(600))
    words = (f"model={model}", f"source={tmp_path}/photos", "part=0", "workers=1")
    process = subprocess.Popen(
        command(*words, folder=tmp_path / "runs"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not list(tmp_path.glob("runs/photos/detections/0*")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"interrupted; to go on: yolo-lat predict engine=ray resume={tmp_path}/runs/photos" in err


@pytest.mark.slow
def test_a_model_of_a_fixed_batch_and_an_input_that_breaks_while_it_is_read(started, options, tmp_path):
    """A Parquet file whose pages are damaged behind a good footer ends the run with its name, and can be removed."""
    output = np.zeros((2, 6, 84), np.float32)
    fixed = fixed_output(
        tmp_path / "fixed.onnx", output, {"names": "{0: 'cat', 1: 'dog'}", "task": "detect"}, (2, 3, 64, 64)
    )
    table = as_parquet(tmp_path / "tables/0.parquet", encoded(20))
    asked = CollectionOptions(str(fixed), str(table.parent), workers=1, project=str(tmp_path / "runs"))
    assert run_collection(asked, say=[].append).summary["images"] == 20
    content = bytearray(table.read_bytes())
    content[100:4000] = bytes(3900)
    table.write_bytes(content)
    with pytest.raises(UserError, match=r"inputs 0.parquet to 0.parquet: .*; mend that, then go on with resume="):
        run_collection(asked, say=[].append)


class DyingWorker:
    def __init__(self, *_: object) -> None:
        pass

    def __call__(self, rows: pa.Table) -> pa.Table:
        os._exit(11)


@pytest.mark.slow
def test_images_that_end_the_actor_end_the_run(started, options, tmp_path, monkeypatch):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr("yolo_lat.collection.run.Worker", DyingWorker)
    with pytest.raises(
        UserError, match=r"inputs 00000.png to deep/er/00001.png: actors died 4 times at the same images"
    ):
        run_collection(options(as_folder(tmp_path / "photos", encoded(2))), say=[].append)
