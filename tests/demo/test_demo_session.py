"""Whole runs on files: what is written, that it is right, and that a run can go on."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from clips import BLUE, RED, moving, picture, write_clip
from hand_made_onnx import colour_detector
from quick import first

from yolo_lat.demo.options import DemoOptions
from yolo_lat.demo.output import Output
from yolo_lat.demo.records import CSV_COLUMNS, FrameResult
from yolo_lat.demo.run_folder import RunFolder
from yolo_lat.demo.session import DemoResult, resume_demo, run_demo
from yolo_lat.deploy import OnnxDetector
from yolo_lat.errors import UserError


@pytest.fixture
def demo(tmp_path, detector_file, console, monkeypatch):
    """Run the demo without a window in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)

    def start(source: Any, **options: Any) -> DemoResult:
        return run_demo(DemoOptions(str(detector_file), str(source), **options), console)

    return start


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "detections.jsonl").read_text().splitlines()]


def probe(path: Path) -> tuple[Any, list[float]]:
    """The video stream's facts and the times of all frames of a file, decoded to the end."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        times = [frame.time for frame in container.decode(stream)]
        context = stream.codec_context
        return (context.name, context.pix_fmt, context.width, context.height, stream.frames), times


def test_a_run_writes_a_video_that_players_open_and_every_box(demo, clip, console):
    done = demo(clip, csv=True)
    assert done.folder == Path("runs/demo/moving")
    assert sorted(file.name for file in done.folder.iterdir()) == [
        *("detections.csv", "detections.jsonl", "run.json", "summary.json", "video.mp4")
    ]
    facts, times = probe(done.folder / "video.mp4")
    assert facts == ("h264", "yuv420p", 96, 96, 60)
    assert times == pytest.approx([i / 25 for i in range(60)], abs=1e-4)
    content = (done.folder / "video.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat"), "a browser would wait for the whole file"
    assert (done.summary["frames"], done.summary["faults"], done.unfinished) == (60, {}, False)
    assert json.loads((done.folder / "summary.json").read_text()) == done.summary
    said = console.file.getvalue()
    assert "no window (no display)" in said
    assert "writing to runs/demo/moving" in said
    rows = list(csv.DictReader((done.folder / "detections.csv").open()))
    assert len(rows) == sum(len(record["boxes"]) for record in records(done.folder)) == 120
    assert rows[0].keys() == set(CSV_COLUMNS)


def test_boxes_are_where_the_rectangles_are_and_keep_their_numbers(demo, clip):
    found = records(demo(clip).folder)
    assert [record["frame"] for record in found] == list(range(60))
    for i, record in enumerate(found):
        boxes = dict(zip(record["names"], record["boxes"], strict=True))
        assert boxes["red"] == pytest.approx([4 + i % 72, 8, 20 + i % 72, 24], abs=1.01)
        assert boxes["green"] == pytest.approx([70, 4 + i % 72, 86, 20 + i % 72], abs=1.01)
    numbers = {tuple(sorted(zip(record["names"], record["track_ids"], strict=True))) for record in found}
    assert len(numbers) == 1


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("conf", [0.25, 0.95])
def test_detections_equal_those_of_the_detector_on_the_same_frames(demo, clip, detector_file, batch, conf):
    detector = OnnxDetector(detector_file, conf=conf)
    with av.open(str(clip)) as container:
        expected = [detector(frame.to_ndarray(format="bgr24")) for frame in container.decode(video=0)]
    found = records(demo(clip, batch=batch, conf=conf).folder)
    assert len(found) == len(expected)
    for record, detections in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.float32(record["boxes"]).reshape(-1, 4), detections.boxes_xyxy)
        np.testing.assert_array_equal(np.float32(record["scores"]), detections.scores)
        assert record["class_ids"] == detections.class_ids.tolist()


def test_boxes_vote_where_asked(demo, clip, tmp_path, console):
    model = colour_detector(tmp_path / "colours.onnx")
    plain, voted = (
        records(run_demo(DemoOptions(str(model), str(clip), track=False, box_vote=votes), console).folder)
        for votes in (None, 0.05)
    )
    detector = OnnxDetector(model, box_vote=0.05)
    with av.open(str(clip)) as container:
        expected = [detector(frame.to_ndarray(format="bgr24")) for frame in container.decode(video=0)]
    for record, detections in zip(voted, expected, strict=True):
        np.testing.assert_array_equal(np.float32(record["boxes"]).reshape(-1, 4), detections.boxes_xyxy)
    assert [record["scores"] for record in voted] == [record["scores"] for record in plain]
    assert [record["boxes"] for record in voted] != [record["boxes"] for record in plain]


SLOW_CLIP = pytest.param("bottle-detection.mp4", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", ["car-detection.mp4", SLOW_CLIP])
def test_a_real_clip_keeps_its_frames_and_times(demo, real_clip, name):
    source = real_clip(name)
    done = demo(source, batch=4, save=name.startswith("car"))
    with av.open(str(source)) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert done.summary["frames"] == len(times)
    if done.folder:
        assert probe(done.folder / "video.mp4")[1] == pytest.approx(times, abs=1e-3)


@pytest.mark.slow
def test_a_real_clip_gives_what_predict_gives(demo, real_clip, onnx_file, tmp_path, console):
    from yolo_lat import YOLOLAT

    source, keys = real_clip("car-detection.mp4"), {"conf": 0.02, "iou": 0.7, "imgsz": 96}
    predicted = YOLOLAT(str(onnx_file)).predict(str(source), stream=True, verbose=False, save=False, **keys)
    found = records(run_demo(DemoOptions(str(onnx_file), str(source), show=False, **keys), console).folder)
    total = 0
    for record, result in zip(found, predicted, strict=True):
        total += len(record["boxes"])
        np.testing.assert_allclose(np.reshape(record["boxes"], (-1, 4)), result.boxes.xyxy.cpu(), atol=1e-2)
        np.testing.assert_allclose(record["scores"], result.boxes.conf.cpu(), atol=1e-5)
        assert record["class_ids"] == result.boxes.cls.int().tolist()
    assert total > 0


def test_the_drawn_frame_is_the_frame_with_something_on_it(demo, clip):
    done = demo(clip)
    with av.open(str(done.folder / "video.mp4")) as drawn, av.open(str(clip)) as plain:
        after, before = (list(c.decode(video=0))[40].to_ndarray(format="bgr24").astype(int) for c in (drawn, plain))
    difference = np.abs(after - before).max(axis=2)
    assert np.median(difference[60:, :40]) < 6, "colours have shifted"
    assert difference[8:24, 44:60].max() > 60, "no box is drawn"


def test_frame_times_that_vary_stay_as_they_are(demo, tmp_path):
    times = [0.0, 0.04, 0.5, 0.52, 1.9, 2.0]
    write_clip(tmp_path / "vfr.mp4", moving(6), times)
    done = demo("vfr.mp4")
    assert [record["time_s"] for record in records(done.folder)] == pytest.approx(times, abs=1e-3)
    assert probe(done.folder / "video.mp4")[1] == pytest.approx(times, abs=1e-3)


def test_a_second_run_gets_a_folder_of_its_own(demo, clip):
    assert [demo(clip, name="x").folder.name for _ in range(3)] == ["x", "x-2", "x-3"]


def test_nothing_is_written_where_nothing_is_wanted(demo, clip, tmp_path):
    done = demo(clip, save=False)
    assert (done.folder, done.files, done.summary["frames"]) == (None, [], 60)
    assert not list(tmp_path.iterdir())


def test_a_video_without_a_frame_is_refused_and_leaves_nothing(demo, tmp_path):
    path = write_clip(tmp_path / "empty.mp4", moving(5), options={"crf": "5", "bf": "0", "g": "1"})
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    for at, size in places:
        content[at : at + size] = bytes([0xFF]) * size
    path.write_bytes(content)
    with pytest.raises(UserError, match="no frame of it can be decoded"):
        demo("empty.mp4")
    assert not list(Path("runs/demo").iterdir())


def test_pictures_come_out_as_pictures(demo, tmp_path, console):
    (tmp_path / "shots").mkdir()
    for i, size in enumerate([(96, 96), (200, 100)]):
        cv2.imwrite(f"shots/{i}.png", picture({BLUE: (8, 40, 40, 80)}, size))
    Path("shots/2.jpg").write_bytes(b"no picture")
    Path("shots/notes.txt").touch()
    done = demo("shots")
    assert [record["file"] for record in records(done.folder)] == ["0.png", "1.png"]
    assert records(done.folder)[1]["track_ids"] == [None]
    written = sorted((done.folder / "pictures").iterdir())
    assert [file.name for file in written] == ["00000-0.jpg", "00001-1.jpg"]
    assert cv2.imread(str(written[1])).shape == (100, 200, 3)
    assert done.summary["faults"] == {"unreadable pictures": 1}
    assert "shots/2.jpg: no readable picture" in console.file.getvalue()
    assert [record["file"] for record in records(demo("shots/0.*").folder)] == ["0.png"]


def test_crossings_are_counted_by_class_and_logged(demo, tmp_path, console):
    """Red goes to the right three times, blue to the left twice, each time anew after a pause of two seconds."""
    images = []
    for colour, xs in [(RED, range(0, 80, 4))] * 3 + [(BLUE, range(80, 0, -4))] * 2:
        images += [picture({colour: (x, 40, x + 16, 56)}) for x in xs] + [picture({})] * 60
    write_clip(tmp_path / "crossing.mp4", images)
    Path("zones.yaml").write_text(
        "lines:\n- {name: gate, from: [0.5, 0], to: [0.5, 1]}\n"
        "polygons:\n- {name: right, points: [[60, 0], [96, 0], [96, 96], [60, 96]]}\n"
    )
    done = demo("crossing.mp4", zones="zones.yaml")
    assert done.summary["zones"]["gate"] == {"in": {"red": 3}, "out": {"blue": 2}}
    assert done.summary["zones"]["right"] == {"entered": {"red": 3, "blue": 2}, "left": {"blue": 2}}
    events = [event for record in records(done.folder) for event in record.get("events", [])]
    assert [event["what"] for event in events if event["zone"] == "gate"] == ["in"] * 3 + ["out"] * 2
    assert len({event["track_id"] for event in events}) == 5
    assert "gate" in console.file.getvalue()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "nowhere.mp4"}, "source=nowhere.mp4: no such file or folder; give"),
        ({"source": "."}, "source=.: the folder has no pictures"),
        ({"source": "*.jpg"}, "source=*.jpg: the pattern has no pictures"),
        ({"source": "text.mp4"}, "source=text.mp4: invalid data"),
        ({"batch": 0}, "batch=0 is no number of frames; give 1 or more"),
        ({"part": 1.5}, "part=1.5 is no number of frames"),
        ({"timeout": 0}, "timeout=0 is no number of seconds; give more than 0"),
        ({"conf": 2}, "conf=2 is no threshold; give a number from 0 to 1"),
        ({"track": False, "zones": "z.yaml"}, "zones= counts objects by their numbers; leave track=False out"),
        ({"csv": True, "save": False}, "csv=True writes into the folder that save=False leaves out"),
        ({"show": True}, "show=True: no display; leave show= out to write a file"),
        ({"zones": "none.yaml"}, "zones=none.yaml: No such file or directory; give a YAML file"),
    ],
)
def test_what_cannot_be_used_is_refused_and_leaves_nothing(demo, clip, tmp_path, options, message):
    Path("text.mp4").write_text("no video")
    with pytest.raises(UserError) as caught:
        demo(**({"source": clip} | options))
    assert str(caught.value).startswith(message)
    assert not Path("runs").exists()


# Going on


# The command line, which waits after 70 frames until a file `signalled` is there, so that its run is not over by then.
HELD = """
import time
from pathlib import Path

from yolo_lat.cli import main
from yolo_lat.demo.output import Output

take = Output.take


def held(output, result, dropped):
    take(output, result, dropped)
    while output.frames == 70 and not Path("signalled").exists():
        time.sleep(0.01)


Output.take = held
main()
"""


def held_child(tmp_path: Path, *words: str) -> subprocess.Popen[str]:
    """Start `HELD` in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k not in {"DISPLAY", "WAYLAND_DISPLAY"}}
    return subprocess.Popen(
        [sys.executable, "-c", HELD, "demo", *words],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory):
    """600 frames in which squares cross the middle again and again, with random times between them."""
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.uniform(0.02, 0.06, 600)).round(4).tolist()
    return write_clip(tmp_path_factory.mktemp("long") / "long.mp4", moving(600, step=3), times)


@pytest.mark.parametrize("number", first(1, [signal.SIGKILL, signal.SIGINT, signal.SIGTERM]))
def test_a_run_that_was_ended_goes_on_to_the_same_result(demo, long_clip, detector_file, tmp_path, number):
    Path("zones.yaml").write_text("lines:\n- {name: gate, from: [0.5, 0], to: [0.5, 1]}\n")
    keys = {"part": 20, "batch": 4, "zones": "zones.yaml", "csv": True}
    whole = demo(long_clip, name="whole", **keys)
    words = [f"{key}={value}" for key, value in keys.items()]
    process = held_child(tmp_path, f"model={detector_file}", f"source={long_clip}", "name=cut", *words)
    cut = tmp_path / "runs/demo/cut"
    wait_for(lambda: (cut / "parts/00002.json").exists())
    process.send_signal(number)
    Path("signalled").touch()
    out, error = process.communicate(timeout=120)
    if number == signal.SIGKILL:
        assert not (cut / "video.mp4").exists()
        assert not (cut / "detections.jsonl").exists()
    else:
        assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number], error
        assert "to go on: yolo-lat demo resume=runs/demo/cut" in (error if number == signal.SIGINT else out)
        some = records(cut)
        assert 60 <= len(some) < 600
        facts, times = probe(cut / "video.mp4")
        assert facts[-1] == len(times) == len(some)
    assert not list(cut.glob("*.partial"))
    done = resume_demo(cut, show=False)
    assert (cut / "detections.jsonl").read_bytes() == (whole.folder / "detections.jsonl").read_bytes()
    assert (cut / "detections.csv").read_bytes() == (whole.folder / "detections.csv").read_bytes()
    assert done.summary["zones"] == whole.summary["zones"]
    assert done.summary["frames"] == 600
    (facts, times), (whole_facts, whole_times) = probe(cut / "video.mp4"), probe(whole.folder / "video.mp4")
    assert (facts, times) == (whole_facts, whole_times)
    assert not (cut / "parts").exists()
    with pytest.raises(UserError, match="this run is complete"):
        resume_demo(cut)


def test_going_on_asks_for_the_same_files(demo, clip, tmp_path, monkeypatch):
    copy, run, take = tmp_path / "copy.mp4", tmp_path / "runs/demo/a", Output.take
    copy.write_bytes(clip.read_bytes())

    def cut(output: Output, result: FrameResult, dropped: int) -> None:
        if result.frame.index == 10:
            raise KeyboardInterrupt
        take(output, result, dropped)

    with monkeypatch.context() as patch:
        patch.setattr(Output, "take", cut)
        with pytest.raises(KeyboardInterrupt):
            demo(copy, part=1, name="a")
    held = RunFolder.existing(run)
    if sys.platform != "win32":
        with pytest.raises(UserError, match="another process is at this run"):
            resume_demo(run)
    held.close(complete=False)
    write_clip(copy, moving(30))
    with pytest.raises(UserError, match="its model, source or zones have changed"):
        resume_demo(run)
    with pytest.raises(UserError, match=r"holds no readable run\.json"):
        resume_demo(tmp_path)
