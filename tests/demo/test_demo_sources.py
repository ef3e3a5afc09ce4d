"""Sources that end: videos as phones, players and broken disks leave them, and pictures."""

from __future__ import annotations

import struct
from pathlib import Path
from threading import Event

import av
import cv2
import numpy as np
import pytest
from clips import BLUE, RED, moving, picture, write_clip

from yolo_lat.demo.frames import Faults, Frame
from yolo_lat.demo.sources import open_source
from yolo_lat.errors import UserError

PLAIN = {"crf": "5", "bf": "0"}


def read(source: object, start: int = 0) -> tuple[list[Frame], Faults, list[str]]:
    said: list[str] = []
    faults = Faults(said.append)
    return list(open_source(str(source), faults).frames(Event(), start)), faults, said


def turn(path: Path, matrix: tuple[int, ...]) -> Path:
    """Write a display matrix into the track header of an MP4, as a phone does."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    content[at : at + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(content)
    return path


ONE, FULL = 1 << 16, 1 << 30
TURNS = {
    "upright": (ONE, 0, 0, 0, ONE, 0, 0, 0, FULL),
    "clockwise": (0, ONE, 0, -ONE, 0, 0, 0, 0, FULL),
    "over": (-ONE, 0, 0, 0, -ONE, 0, 0, 0, FULL),
    "anticlockwise": (0, -ONE, 0, ONE, 0, 0, 0, 0, FULL),
}


def test_every_frame_comes_with_its_number_and_time(clip):
    frames, faults, _ = read(clip)
    with av.open(str(clip)) as container:
        expected = [(f.time, f.to_ndarray(format="bgr24")) for f in container.decode(video=0)]
    assert [frame.index for frame in frames] == list(range(60))
    for frame, (time_s, image) in zip(frames, expected, strict=True):
        assert frame.time_s == pytest.approx(time_s)
        np.testing.assert_array_equal(frame.image_bgr, image)
    assert not faults.counts
    assert open_source(str(clip), faults).total == 60


def test_frames_are_those_that_opencv_decodes(real_clip):
    capture = cv2.VideoCapture(str(real_clip("car-detection.mp4")))
    for frame in read(real_clip("car-detection.mp4"))[0][:50]:
        done, image = capture.read()
        assert done
        np.testing.assert_array_equal(frame.image_bgr, image)


def test_going_on_in_the_middle_gives_the_same_frames(clip):
    whole, rest = read(clip)[0], read(clip, 25)[0]
    assert [(f.index, f.time_s) for f in rest] == [(f.index, f.time_s) for f in whole[25:]]
    np.testing.assert_array_equal(rest[0].image_bgr, whole[25].image_bgr)


@pytest.mark.parametrize("name", TURNS)
def test_phone_videos_are_upright(tmp_path, name):
    scene = picture({RED: (0, 0, 40, 20), BLUE: (100, 40, 128, 64)}, (128, 64))
    path = turn(write_clip(tmp_path / "phone.mp4", [scene] * 3, options=PLAIN), TURNS[name])
    capture = cv2.VideoCapture(str(path))
    _, expected = capture.read()  # OpenCV turns as the metadata say
    image = read(path)[0][0].image_bgr
    assert image.shape == ((64, 128, 3) if name in {"upright", "over"} else (128, 64, 3))
    assert np.abs(image.astype(int) - expected).max() <= 2


def test_a_video_with_broken_bytes_is_read_to_its_end(tmp_path):
    path = write_clip(tmp_path / "broken.ts", moving(100), options=PLAIN | {"g": "10"})
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for at in rng.integers(len(content) // 4, 3 * len(content) // 4, 60):
        content[at] ^= 0xFF
    path.write_bytes(content)
    frames, faults, said = read(path)
    assert len(frames) > 50
    assert frames[-1].time_s > 3.5
    assert sum(faults.counts.values()) > 0
    assert len(said) == len(faults.counts), "each kind is told once"
    times = [frame.time_s for frame in frames]
    assert times == sorted(set(times))


def test_a_packet_that_cannot_be_decoded_is_left_out_and_counted(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", moving(30), options=PLAIN | {"g": "1"})
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        places = [(packet.pos, packet.size) for packet in packets]
    content = bytearray(path.read_bytes())
    for index in (7, 12):
        at, size = places[index]
        content[at : at + size] = bytes([0xFF]) * size
    path.write_bytes(content)
    frames, faults, said = read(path)
    assert len(frames) == 28
    assert faults.counts == {"corrupt packets": 2}
    assert len(said) == 1
    assert "corrupt packets" in said[0]


def test_a_file_cut_off_gives_what_there_is(tmp_path):
    path = write_clip(tmp_path / "cut.mkv", moving(100), options=PLAIN)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    frames, *_ = read(path)
    assert 20 < len(frames) < 80
    whole = write_clip(tmp_path / "cut.mp4", moving(100), options=PLAIN)
    whole.write_bytes(whole.read_bytes()[:-2000])  # its index, at the end, is gone
    with pytest.raises(UserError, match=r"cut\.mp4: .*; give a video file that a player opens"):
        read(whole)


def test_the_resolution_may_change_in_the_middle(tmp_path):
    first = write_clip(tmp_path / "a.ts", [picture({RED: (8, 8, 40, 40)}, (128, 96))] * 20, options=PLAIN)
    second = write_clip(tmp_path / "b.ts", [picture({RED: (8, 8, 40, 40)}, (64, 64))] * 20, options=PLAIN)
    path = tmp_path / "both.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    frames, *_ = read(path)
    assert {frame.size for frame in frames} == {(128, 96), (64, 64)}
    assert len(frames) >= 38
    times = [frame.time_s for frame in frames]
    assert times == sorted(set(times))
    assert times[-1] == pytest.approx(1.56, abs=0.1), "the second half begins where the first ends"


def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / "sound.wav"
    form, samples = struct.pack("<IHHIIHH", 16, 1, 1, 8000, 16000, 2, 16), struct.pack("<I", 800) + bytes(800)
    path.write_bytes(b"RIFF" + struct.pack("<I", 836) + b"WAVEfmt " + form + b"data" + samples)
    with pytest.raises(UserError, match="holds no video"):
        open_source(str(path), Faults())


def test_pictures_of_a_folder_come_by_name(tmp_path):
    for name in ("b.png", "a.jpg", "c.bmp"):
        cv2.imwrite(str(tmp_path / name), picture({}))
    (tmp_path / "d.jpg").touch()
    frames, faults, said = read(tmp_path)
    assert [(frame.index, frame.name) for frame in frames] == [(0, "a.jpg"), (1, "b.png"), (2, "c.bmp")]
    assert faults.counts == {"unreadable pictures": 1}
    assert "d.jpg" in said[0]
    assert [frame.name for frame in read(tmp_path / "a.jpg")[0]] == ["a.jpg"]
    assert [frame.name for frame in read(tmp_path / "[ab].*")[0]] == ["a.jpg", "b.png"]


def test_a_picture_that_would_fill_the_memory_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("YOLO_LAT_MAX_MEGAPIXELS", "1")
    cv2.imwrite(str(tmp_path / "a.png"), picture({}))
    cv2.imwrite(str(tmp_path / "b.png"), np.zeros((1100, 1000, 3), np.uint8))
    frames, faults, said = read(tmp_path)
    assert [frame.name for frame in frames] == ["a.png"]
    assert faults.counts == {"unreadable pictures": 1}
    assert "b.png: broken image, or one of more than 1 megapixels" in said[0]


def test_a_camera_that_is_not_there_is_named():
    with pytest.raises(UserError, match="source=camera 97: no such camera, or another program uses it"):
        open_source("97", Faults())


def test_reading_stops_when_it_is_told_to(clip):
    stop = Event()
    frames = open_source(str(clip), Faults()).frames(stop)
    next(frames)
    stop.set()
    assert list(frames) == []
