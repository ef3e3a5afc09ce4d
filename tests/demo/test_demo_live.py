"""Live sources against real servers on loopback: lost, back, slow, silent, changing."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from quick import first
from streams import MjpegServer, RtspServer, Server

from yolo_lat.demo import live
from yolo_lat.demo.frames import Faults
from yolo_lat.demo.options import DemoOptions
from yolo_lat.demo.pipeline import Controls, Pipeline
from yolo_lat.demo.records import FrameResult
from yolo_lat.demo.session import resume_demo, run_demo
from yolo_lat.demo.sources import open_source
from yolo_lat.demo.tracking import ByteTracker
from yolo_lat.deploy import OnnxDetector
from yolo_lat.errors import UserError


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def pipeline(detector_file, said) -> Callable[..., Pipeline]:
    def make(url: str, **options: Any) -> Pipeline:
        source = open_source(url, Faults(said.append), **options)
        detector = OnnxDetector(detector_file, threads=1)
        return Pipeline(source, detector, ByteTracker(), Controls(0.25))

    return make


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    end = time.monotonic() + 60
    while left := set(threading.enumerate()) - before:
        assert time.monotonic() < end, left
        time.sleep(0.05)


def seen(results: Iterator[FrameResult], count: int) -> list[FrameResult]:
    return [next(results) for _ in range(count)]


def survives_a_restart(server: Server, pipeline: Pipeline, said: list[str]) -> None:
    with pipeline:
        results = iter(pipeline)
        before = seen(results, 20)
        server.kill()
        threading.Timer(1.0, server.start).start()
        after = seen(results, 40)[-1]
        assert after.frame.index > before[-1].frame.index
        assert after.frame.time_s - before[-1].frame.time_s > 1
        assert [message.split(": ")[1].split(" ")[0] for message in said] == ["lost", "back"]
        pipeline.stop.set()
        list(results)


def test_a_stream_that_was_killed_and_started_again_goes_on(pipeline, said):
    server = MjpegServer()
    with server:
        made = pipeline(server.url)
        survives_a_restart(server, made, said)
    assert made.source.faults.counts == {"losses": 1, "reconnects": 1}


@pytest.mark.slow
def test_an_rtsp_stream_that_was_killed_and_started_again_goes_on(pipeline, said):
    if not RtspServer.is_there():
        pytest.skip("GStreamer's RTSP server is not at hand")
    server = RtspServer()
    with server:
        survives_a_restart(server, pipeline(server.url, timeout_s=5), said)


def test_a_slow_reader_gets_the_newest_frame_and_the_rest_is_counted(pipeline):
    with MjpegServer(rate=60) as server, pipeline(server.url) as made:
        results, frames, began, dropped = iter(made), [], [], [0]
        for _ in range(12):
            wait_for(lambda: made.dropped >= dropped[-1] + 10)
            began.append(time.monotonic())
            dropped.append(made.dropped)
            frames.append(next(results).frame)
        # Two wait behind the one shown; no more is ever kept, so each frame is newer than the take before those two.
        assert all(frame.captured_s > before for frame, before in zip(frames[3:], began, strict=False))
        assert frames[-1].index + 1 - len(frames) <= made.dropped
        assert frames[-1].index >= dropped[-3]
        made.stop.set()
        list(results)


def test_a_fast_reader_does_not_fall_behind(pipeline):
    with MjpegServer(rate=30) as server, pipeline(server.url) as made:
        results = iter(made)
        seen(results, 5)
        delays = []
        for _ in range(40):
            captured_s = next(results).frame.captured_s
            delays.append(time.monotonic() - captured_s)
        assert 0 < min(delays) < 2 / 30  # other work of the machine delays some, a queue would delay all
        made.stop.set()
        list(results)


def test_a_silent_stream_is_opened_again_after_the_time_out(pipeline, said):
    with MjpegServer(rate=60, kind="stall") as server, pipeline(server.url, timeout_s=3) as made:
        results = iter(made)
        assert len(seen(results, 60)) == 60
        assert "lost (no answer for 3 s)" in said[0]
        made.stop.set()
        list(results)


def test_a_stream_that_stays_away_ends_the_run_with_a_sentence(pipeline, said):
    server = MjpegServer()
    with server:
        made = pipeline(server.url, retry_s=0.5)
        with made:
            results = iter(made)
            seen(results, 5)
            server.kill()
            with pytest.raises(UserError, match=rf"source={server.url}: not back after \d s \(connection refused\)"):
                list(results)
    assert len(said) == 1, "each attempt is not told"


def test_a_run_that_loses_its_stream_for_good_leaves_whole_files(tmp_path, detector_file, console):
    server = MjpegServer()

    def kill() -> None:
        wait_for(lambda: (tmp_path / "a/parts/00002.json").exists())
        server.kill()

    with server:
        threading.Thread(target=kill).start()
        keys = {"show": False, "project": str(tmp_path), "name": "a", "part": 5, "retry": 0.5}
        options = DemoOptions(str(detector_file), server.url, **keys)
        with pytest.raises(UserError, match="not back after"):
            run_demo(options, console)
    assert {file.name for file in (tmp_path / "a").iterdir()} == {
        *("run.json", "summary.json", "video.mp4", "detections.jsonl")
    }
    summary = json.loads((tmp_path / "a/summary.json").read_text())
    assert summary["frames"] == len((tmp_path / "a/detections.jsonl").read_text().splitlines()) > 10


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that nobody listens on or can take."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def test_an_address_where_nothing_is_is_refused_at_once(closed_port):
    began = time.monotonic()
    with pytest.raises(UserError, match="connection refused; check the address or number and that it is on"):
        open_source(f"rtsp://user:secret@127.0.0.1:{closed_port}/camera", Faults(), timeout_s=60)
    assert time.monotonic() - began < 30


def test_passwords_are_not_shown(closed_port):
    with pytest.raises(UserError) as caught:
        open_source(f"rtsp://user:secret@127.0.0.1:{closed_port}/camera", Faults())
    assert "secret" not in str(caught.value)
    assert "user" not in str(caught.value)


def test_a_camera_that_is_unplugged_and_plugged_in_again(monkeypatch, said):
    """A stand-in for a device: three pictures, then none, then gone for two attempts, then back."""
    opened: list[int] = []

    class Capture:
        def __init__(self, number: int) -> None:
            opened.append(number)
            self.left = 3

        def isOpened(self) -> bool:
            return len(opened) not in {2, 3}

        def set(self, *words: Any) -> None: ...

        def read(self) -> tuple[bool, Any]:
            self.left -= 1
            return self.left >= 0, np.zeros((8, 8, 3), np.uint8)

        def release(self) -> None: ...

    monkeypatch.setattr(live, "cv2", SimpleNamespace(VideoCapture=Capture, CAP_PROP_BUFFERSIZE=38))
    monkeypatch.setattr(live, "FIRST_PAUSE_S", 0.01)
    stop = threading.Event()
    faults = Faults(said.append)
    frames = open_source("5", faults).frames(stop)
    assert [next(frames).index for _ in range(6)] == list(range(6))
    stop.set()
    assert opened == [5] * 4
    assert said[0] == "camera 5: lost (the camera gives no picture), opening it again"
    assert re.fullmatch(r"camera 5: back after \d+\.\d s, 3 attempts", said[1])
    assert faults.counts == {"losses": 1, "reconnects": 1}


@pytest.mark.slow
def test_memory_stays_flat_over_many_frames(pipeline):
    with MjpegServer(rate=300) as server, pipeline(server.url) as made:
        results = iter(made)
        seen(results, 200)
        gc.collect()
        tracemalloc.start()
        try:
            seen(results, 100)
            gc.collect()
            first = tracemalloc.get_traced_memory()[0]
            seen(results, 400)
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0] - first
        finally:
            tracemalloc.stop()
        assert grown < 300_000, f"{grown} bytes more after 400 frames"
        made.stop.set()
        list(results)


def start_demo(folder: Path, detector: Path, url: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k not in {"DISPLAY", "WAYLAND_DISPLAY"}}
    words = [f"model={detector}", f"source={url}", "name=live", "part=20", "csv"]
    return subprocess.Popen(
        [sys.executable, "-m", "yolo_lat", "demo", *words],
        **{"cwd": folder, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True},
    )


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.01)


@pytest.mark.parametrize("number", first(1, [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]))
def test_what_was_recorded_of_a_live_source_is_whole_however_it_ends(tmp_path, detector_file, number):
    folder = tmp_path / "runs/demo/live"
    with MjpegServer(kind="sizes", rate=60) as server:
        process = start_demo(tmp_path, detector_file, server.url)
        wait_for(lambda: (folder / "parts/00002.json").exists())
        process.send_signal(number)
        out, error = process.communicate(timeout=120)
    if number == signal.SIGKILL:
        assert not (folder / "video.mp4").exists()
        assert resume_demo(folder).summary["frames"] >= 60
    else:
        assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number], error
        assert "to go on" not in out + error, "a live source cannot be gone back to"
    names = {file.name for file in folder.iterdir()}
    assert names == {"run.json", "summary.json", "video.mp4", "detections.jsonl", "detections.csv"}
    records = [json.loads(line) for line in (folder / "detections.jsonl").read_text().splitlines()]
    assert {tuple(record["size"]) for record in records} == {(96, 96), (192, 128)}
    with av.open(str(folder / "video.mp4")) as container:
        frames = list(container.decode(video=0))
    assert {(frame.width, frame.height) for frame in frames} == {(96, 96)}
    times = [record["time_s"] - records[0]["time_s"] for record in records]
    assert [frame.time for frame in frames] == pytest.approx(times, abs=1e-3)


@pytest.mark.slow
def test_a_minute_of_a_stream_that_breaks_leaves_memory_and_threads_as_they_were(tmp_path, detector_file, console):
    import psutil

    process, server = psutil.Process(), MjpegServer()
    sizes: list[int] = []

    def trouble() -> None:
        for _ in range(6):
            time.sleep(8)
            server.kill()
            time.sleep(1)
            server.start()
            sizes.append(process.memory_info().rss)
        time.sleep(4)
        os.kill(os.getpid(), signal.SIGINT)

    with server:
        threading.Thread(target=trouble).start()
        options = DemoOptions(str(detector_file), server.url, project=str(tmp_path), show=False, part=100)
        done = run_demo(options, console)
    assert done.signal == signal.SIGINT
    assert done.summary["faults"]["reconnects"] == 6
    assert done.summary["frames"] > 900
    assert done.summary["delay_ms"]["p95"] < 2000 / 30
    assert sizes[-1] < 1.05 * sizes[1]
