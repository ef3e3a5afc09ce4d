"""The parts that a run is made of: queues, video files, pictures of results, the window's keys."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import av
import cv2
import numpy as np
import pytest
from clips import BLUE, RED, moving, picture

from yolo_lat.demo import window as window_module
from yolo_lat.demo.channel import Channel
from yolo_lat.demo.decoding import without_password
from yolo_lat.demo.frames import Faults, Frame
from yolo_lat.demo.options import DemoOptions
from yolo_lat.demo.overlay import Overlay
from yolo_lat.demo.pipeline import Controls, Pipeline
from yolo_lat.demo.records import FrameResult
from yolo_lat.demo.run_folder import folder_name
from yolo_lat.demo.session import run_demo
from yolo_lat.demo.sources import open_source
from yolo_lat.demo.tracking import ByteTracker
from yolo_lat.demo.video_writer import VideoWriter, fit_into, join_videos
from yolo_lat.demo.window import Window
from yolo_lat.demo.zones import Shape, Zones
from yolo_lat.deploy import Detections, OnnxDetector
from yolo_lat.drawing import class_colour
from yolo_lat.errors import UserError

# Queues


def test_a_queue_keeps_its_order_and_its_size():
    channel: Channel[int] = Channel(3)
    sender = threading.Thread(target=lambda: [channel.put(i) for i in range(100)] and channel.close())
    sender.start()
    taken = []
    while not channel.finished:
        assert len(channel._items) <= 3
        taken += channel.get()
    sender.join()
    assert taken == list(range(100))
    assert channel.dropped == 0


def test_a_queue_of_the_newest_never_waits_and_counts_what_it_drops():
    channel: Channel[int] = Channel(1, newest=True)
    for i in range(10):
        assert channel.put(i)
    assert channel.get() == [9]
    assert channel.dropped == 9


def test_a_batch_is_waited_for_and_the_last_may_be_short():
    channel: Channel[int] = Channel(8)
    for i in range(6):
        channel.put(i)
    assert channel.get(4) == [0, 1, 2, 3]
    assert channel.get(4, timeout=0.01) == []
    channel.close()
    assert channel.get(4) == [4, 5]
    assert channel.get(4) == []


def test_closing_lets_a_sender_go():
    channel: Channel[int] = Channel(1)
    channel.put(0)
    answers: list[bool] = []
    sender = threading.Thread(target=lambda: answers.append(channel.put(1)))
    sender.start()
    channel.close()
    sender.join(5)
    assert answers == [False]


# Stages


@pytest.mark.parametrize("batch", [1, 8])
def test_an_error_of_the_detector_comes_out_after_the_results_before_it(clip, detector_file, batch):
    detector, calls = OnnxDetector(detector_file), []

    def breaks(images: list[np.ndarray]) -> list[Detections]:
        calls.append(len(images))
        if sum(calls) > 16:
            raise UserError("the detector broke")
        return detector(images)

    before = threading.active_count()
    source = open_source(str(clip), Faults())
    found = []
    with (
        pytest.raises(UserError, match="the detector broke"),
        Pipeline(source, breaks, ByteTracker(), Controls(0.25), batch) as pipeline,
    ):
        found.extend(pipeline)
    assert len(found) == 16
    assert set(calls) == {batch}
    assert threading.active_count() == before


def test_who_stops_listening_stops_the_other_stages(clip, detector_file):
    before = threading.active_count()
    source = open_source(str(clip), Faults())
    with Pipeline(source, OnnxDetector(detector_file), None, Controls(0.25)) as pipeline:
        assert next(iter(pipeline)).frame.index == 0
    assert threading.active_count() == before


# Videos


def read(path: Any) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def write(path: Any, images: list[np.ndarray], times: list[float], size: tuple[int, int] | None = None) -> None:
    writer = VideoWriter(path, size or (images[0].shape[1], images[0].shape[0]), 25)
    for image, time_s in zip(images, times, strict=True):
        writer.write(image, time_s)
    writer.close()


@pytest.mark.parametrize("size", [(96, 64), (97, 64), (96, 65), (99, 65), (2, 2), (1, 1)])
def test_frames_of_any_size_become_h264_with_even_sides(tmp_path, size):
    write(tmp_path / "a.mp4", [picture({RED: (0, 0, 200, 200)}, size)] * 3, [0, 0.04, 0.08])
    frames = read(tmp_path / "a.mp4")
    assert {(f.width, f.height, f.format.name) for f in frames} == {
        (size[0] + size[0] % 2, size[1] + size[1] % 2, "yuv420p")
    }
    image = frames[-1].to_ndarray(format="bgr24").astype(int)
    assert np.abs(image - RED).max() < 12, "the colour is red up to the edge"


def test_times_that_do_not_grow_are_made_to(tmp_path):
    times = [5.0, 5.0, 4.0, 6.0]
    write(tmp_path / "a.mp4", moving(4), times)
    found = [frame.time for frame in read(tmp_path / "a.mp4")]
    assert found == sorted(set(found))
    assert (found[0], found[-1]) == pytest.approx((0, 1), abs=1e-3)


def test_parts_join_to_what_one_file_would_be(tmp_path):
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.uniform(0.01, 0.3, 60)).tolist()
    write(tmp_path / "whole.mp4", moving(60), times)
    cuts = [0, 17, 18, 40, 60]
    parts = []
    for number, (a, b) in enumerate(pairwise(cuts)):
        path = tmp_path / f"{number}.mp4"
        write(path, moving(60)[a:b], times[a:b])
        parts.append((path, times[a] - times[0]))
    join_videos(parts, tmp_path / "joined.mp4")
    whole, joined = read(tmp_path / "whole.mp4"), read(tmp_path / "joined.mp4")
    assert [f.time for f in joined] == pytest.approx([f.time for f in whole], abs=1e-4)
    for a, b in zip(whole, joined, strict=True):
        assert np.abs(a.to_ndarray(format="bgr24").astype(int) - b.to_ndarray(format="bgr24")).mean() < 3


@pytest.mark.parametrize("size", [(50, 96), (200, 96), (96, 30), (400, 10), (1, 90)])
def test_another_size_is_fitted_between_borders(size):
    fitted = fit_into(np.full((size[1], size[0], 3), 255, np.uint8), (96, 96))
    assert fitted.shape == (96, 96, 3)
    rows, columns = np.flatnonzero((fitted == 255).all(2).any(1)), np.flatnonzero((fitted == 255).all(2).any(0))
    scale = min(96 / size[0], 96 / size[1])
    assert (len(columns), len(rows)) == pytest.approx((max(size[0] * scale, 1), max(size[1] * scale, 1)), abs=1)
    assert abs(int(rows[0]) - int(95 - rows[-1])) <= 1


# Drawing


def result(boxes: list[list[float]], ids: list[int], image: np.ndarray | None = None, index: int = 0) -> FrameResult:
    n = len(boxes)
    found = Detections(
        *(np.float32(boxes).reshape(-1, 4), np.full(n, 0.9, np.float32), np.zeros(n, np.int64), {0: "red"})
    )
    return FrameResult(
        Frame(picture({}) if image is None else image, index, index / 25, 0.0), found, np.array(ids, int)
    )


def test_a_trail_shows_the_way_and_runs_out():
    overlay, colour = Overlay(), np.array(class_colour(0))
    for i in range(30):
        shown = result([[2 * i, 60, 2 * i + 10, 70]], [1])
        overlay.follow(shown.detections.boxes_xyxy, shown.track_ids, shown.frame.size)
    drawn = overlay.draw(shown, [])
    assert (np.abs(drawn[65, 10:55].astype(int) - colour).max(axis=1) < 60).mean() > 0.9
    overlay.show_tracks = False
    assert not overlay.draw(shown, [])[65, 10:50].any()
    for _ in range(60):
        overlay.follow(np.zeros((0, 4), np.float32), np.zeros(0, int), (96, 96))
    assert not overlay._trails


def test_the_frame_itself_is_not_drawn_on():
    overlay = Overlay()
    overlay.zones = Zones([Shape("l", ((0.5, 0), (0.5, 1)))], [Shape("p", ((0, 0), (1, 0), (1, 1)))], (96, 96))
    shown = result([[10, 10, 30, 30]], [1])
    drawn = overlay.draw(shown, ["12.0 FPS"])
    assert not shown.frame.image_bgr.any()
    assert drawn.any()
    assert drawn.shape == shown.frame.image_bgr.shape


# The window


@pytest.fixture
def screen(monkeypatch):
    """A stand-in for OpenCV's window: `keys` are pressed one after another, then none."""
    seen = SimpleNamespace(keys=[], shown=[], sleeps=False, open=1.0)

    def wait_key(milliseconds: int) -> int:
        key = seen.keys.pop(0) if seen.keys else None
        if seen.sleeps and key is None:
            time.sleep(milliseconds / 1000)
        return -1 if key is None else ord(key)

    fake = SimpleNamespace(
        namedWindow=lambda *words: None,
        resizeWindow=lambda *words: None,
        imshow=lambda title, image: seen.shown.append(image),
        waitKey=wait_key,
        destroyWindow=lambda title: None,
        getWindowProperty=lambda *words: seen.open,
        **{
            name: getattr(cv2, name)
            for name in ("WINDOW_NORMAL", "WINDOW_KEEPRATIO", "WINDOW_GUI_NORMAL", "WND_PROP_VISIBLE")
        },
    )
    monkeypatch.setattr(window_module, "cv2", fake)
    return seen


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("", {}),
        ("t", {"tracks": False}),
        ("q", {"quit": True}),
        ("\x1b", {"quit": True}),
        ("+", {"conf": 0.3}),
        ("=", {"conf": 0.3}),
        ("-", {"conf": 0.2}),
        ("x", {}),
    ],
)
def test_keys_set_what_they_say(screen, keys, expected):
    controls = Controls(0.25)
    screen.keys = list(keys)
    assert not Window(controls, threading.Event()).show(picture({}))
    assert vars(controls) == vars(Controls(0.25)) | expected


def test_the_threshold_stays_within_what_the_detector_gives(screen):
    controls = Controls(0.25, lowest=0.1)
    shown = Window(controls, threading.Event())
    screen.keys = list("-" * 20)
    for _ in range(20):
        shown.show(picture({}))
    assert controls.conf == 0.1
    screen.keys = list("+" * 40)
    for _ in range(40):
        shown.show(picture({}))
    assert controls.conf == 0.95


def test_a_pause_holds_the_picture_until_a_step_or_the_space_bar(screen):
    controls, screen.keys = Controls(0.25), [" ", None, None, "n"]
    shown = Window(controls, threading.Event())
    shown.show(picture({}))
    assert (controls.paused, screen.keys) == (True, [])
    screen.keys = [None, "s", " "]
    assert shown.show(picture({})), "a screenshot may be taken in a pause"
    assert not controls.paused


def test_opencv_comes_before_pyav_and_who_did_it_otherwise_is_told():
    """The other way round, OpenCV's windows hang for ever."""
    order = (
        "import sys, yolo_lat.demo.session; names = list(sys.modules); print(names.index('cv2') < names.index('av'))"
    )
    wrong = "import av; from yolo_lat.demo.window import no_display; print(no_display())"
    for code, answer in ((order, "True"), (wrong, "PyAV was imported before OpenCV, whose windows hang then")):
        environment = os.environ | {"DISPLAY": ":0"}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
        assert done.stdout.startswith(answer), done.stderr


def test_a_signal_ends_a_pause(screen):
    controls, stop, screen.sleeps, screen.keys = Controls(0.25), threading.Event(), True, [" "]
    threading.Timer(0.2, stop.set).start()
    Window(controls, stop).show(picture({}))
    assert controls.paused
    assert stop.is_set()


def test_closing_the_window_quits(screen):
    controls, screen.open = Controls(0.25), 0.0
    Window(controls, threading.Event()).show(picture({}))
    assert controls.quit


def test_a_run_with_a_window(screen, monkeypatch, clip, detector_file, tmp_path, console):
    """The threshold rises above all scores after ten frames, then a screenshot, then the end."""
    monkeypatch.setattr("yolo_lat.demo.session.no_display", lambda: "")
    monkeypatch.chdir(tmp_path)
    screen.sleeps, screen.keys = True, [*[None] * 10, *"+" * 14, *[None] * 5, "s", "q"]
    began = time.monotonic()
    done = run_demo(DemoOptions(str(detector_file), str(clip)), console)
    assert time.monotonic() - began > 1, "a video is shown no faster than it is"
    assert len(screen.shown) == 31
    assert done.unfinished
    assert [file.name for file in (done.folder / "screenshots").iterdir()] == ["000029.png"]
    lines = (done.folder / "detections.jsonl").read_text().splitlines()
    assert '"boxes": []' in lines[30]
    assert '"boxes": []' not in lines[10]
    said = console.file.getvalue()
    assert "window opens; keys: space pause, n step" in said
    assert "screenshot: runs/demo/moving/screenshots/000029.png" in said


def test_a_pause_is_not_caught_up_with(screen, monkeypatch, clip, detector_file, tmp_path, console):
    monkeypatch.setattr("yolo_lat.demo.session.no_display", lambda: "")
    screen.sleeps, screen.keys = True, [None, " ", *[None] * 30, " ", *[None] * 20, "q"]
    began = time.monotonic()
    run_demo(DemoOptions(str(detector_file), str(clip), save=False), console)
    pause_s, rest_s = 30 * 0.05, 15 / 25
    assert time.monotonic() - began > pause_s + rest_s
    assert len(screen.shown) == 23


# Words


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("0", "camera-0"),
        ("films/My cars (2).mp4", "My-cars-2"),
        ("rtsp://me:secret@10.0.0.5:554/stream", "10.0.0.5-554"),
        ("shots/*.jpg", "demo"),
        ("..", "demo"),
    ],
)
def test_a_run_is_named_after_its_source(source, name):
    assert folder_name(source) == name


def test_passwords_stay_out_of_names():
    assert without_password("rtsp://me:se@cret@host:554/a?b=1") == "rtsp://host:554/a?b=1"
    assert without_password("https://host/a") == "https://host/a"


def test_faults_are_counted_always_and_told_once():
    said: list[str] = []
    faults = Faults(said.append)
    for _ in range(3):
        faults.add("corrupt packets", "a.mp4: corrupt packets")
    assert faults.counts == {"corrupt packets": 3}
    assert said == ["a.mp4: corrupt packets"]


def test_colours_are_those_of_the_class():
    overlay = Overlay()
    shown = result([[40, 60, 60, 80]], [-1], picture({BLUE: (0, 0, 5, 5)}))
    assert tuple(overlay.draw(shown, [])[70, 40].tolist()) == class_colour(0)
