"""Prediction and tracking on real photos, arrays, folders and videos, and what happens when one of them is broken."""

import shutil
from types import GeneratorType

import cv2
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from ultralytics.utils import ASSETS, ROOT, YAML

from yolo_lat import YOLOLAT
from yolo_lat.engine.predictor import LatPredictor
from yolo_lat.errors import UserError

LOW = {"imgsz": 160, "conf": 0.001, "device": "cpu", "verbose": False}
PHOTOS = [ASSETS / "bus.jpg", ASSETS / "zidane.jpg"]


@pytest.fixture(scope="module")
def detector(run):
    return YOLOLAT(run.best)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Six frames of a photo that moves to the right."""
    file = tmp_path_factory.mktemp("video") / "clip.mp4"
    photo = cv2.resize(cv2.imread(str(PHOTOS[0])), (160, 160))
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"mp4v"), 10, (160, 160))
    for shift in range(0, 12, 2):
        writer.write(np.roll(photo, shift, axis=1))
    writer.release()
    return file


@pytest.fixture
def folder(tmp_path):
    """The two photos, and between them a place for a third."""
    for photo in PHOTOS:
        shutil.copy(photo, tmp_path)
    return tmp_path


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        for _ in call(*args, **kwargs):
            pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_photo_gives_boxes_inside_it_as_file_array_and_pil(detector):
    boxes = []
    for source in (PHOTOS[0], str(PHOTOS[0]), cv2.imread(str(PHOTOS[0])), Image.open(PHOTOS[0])):
        (result,) = detector.predict(source, **LOW)
        assert result.orig_shape == (1080, 810)
        assert result.names[0] == "circle"
        boxes.append(result.boxes.data)
    assert len(boxes[0]) > 10
    for other in boxes[1:3]:
        assert torch.equal(boxes[0], other)
    xyxy = boxes[0][:, :4]
    assert xyxy.min() >= 0
    assert (xyxy[:, 2] <= 810).all()
    assert (xyxy[:, 3] <= 1080).all()


@pytest.mark.parametrize("batch", [1, 2])
def test_a_folder_gives_a_result_for_each_image(detector, folder, batch):
    results = detector.predict(folder, batch=batch, rect=False, **LOW)
    single = [detector.predict(photo, rect=False, **LOW)[0] for photo in PHOTOS]
    assert [result.path for result in results] == [str(folder / photo.name) for photo in PHOTOS]
    for one, other in zip(results, single, strict=True):
        # Not bit for bit: the order of near-equal scores depends on the batch.
        assert one.boxes.conf.numpy() == pytest.approx(other.boxes.conf.numpy(), abs=1e-3)


def test_a_list_gives_a_result_for_each_entry(detector):
    results = detector.predict([str(PHOTOS[0]), cv2.imread(str(PHOTOS[1]))], **LOW)
    assert [result.orig_shape for result in results] == [(1080, 810), (720, 1280)]


def test_a_video_streams_frame_by_frame(detector, video):
    stream = detector.predict(video, stream=True, **LOW)
    assert isinstance(stream, GeneratorType)
    assert [len(result) > 0 for result in stream] == [True] * 6


@pytest.fixture
def tracker(tmp_path):
    """A tracker that takes the weak detector's low scores for certain."""

    def write(name: str, **changes) -> str:
        content = YAML.load(ROOT / "cfg/trackers" / name)
        low = {"track_high_thresh": 0.01, "track_low_thresh": 0.005, "new_track_thresh": 0.01}
        (tmp_path / name).write_text(yaml.safe_dump(content | low | changes))
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize("kind", ["bytetrack.yaml", "botsort.yaml"])
def test_tracks_keep_their_numbers(detector, video, tracker, kind):
    results = list(detector.track(video, stream=True, tracker=tracker(kind), **LOW))
    ids = [set(result.boxes.id.int().tolist()) if result.boxes.is_track else set() for result in results]
    assert len(ids) == 6
    assert ids[2] & ids[4]


def test_trackers_that_compare_looks_get_features(run, video, tracker, monkeypatch):
    detector, seen = YOLOLAT(run.best), []
    stock = LatPredictor.get_obj_feats
    monkeypatch.setattr(LatPredictor, "get_obj_feats", staticmethod(lambda *args: seen.append(args) or stock(*args)))
    results = detector.track(video, tracker=tracker("botsort.yaml", with_reid=True, model="auto"), **LOW)
    assert len(seen) == len(results) == 6
    assert any(result.boxes.is_track for result in results)


def test_saving_writes_an_image_under_the_project(detector, tmp_path):
    detector.predict(PHOTOS[0], save=True, project=tmp_path, name="out", **LOW)
    assert cv2.imread(str(tmp_path / "out/bus.jpg")).shape == (1080, 810, 3)


@pytest.mark.parametrize("batch", [1, 8])
def test_a_broken_image_in_a_folder_is_named_and_not_skipped(detector, folder, batch):
    for number in range(8):  # enough for the loader to read them in parallel
        shutil.copy(PHOTOS[0], folder / f"c{number}.jpg")
    whole = (folder / "c5.jpg").read_bytes()
    for content in (b"no image", b"", whole[: len(whole) // 2]):
        (folder / "c5.jpg").write_bytes(content)
        assert f"{folder}/c5.jpg: broken image" in refusal(detector.predict, folder, batch=batch, **LOW)


def test_a_truncated_image_is_refused_where_opencv_decodes_what_there_is(detector, tmp_path, monkeypatch):
    whole = PHOTOS[0].read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    # As OpenCV 4 does; OpenCV 5 returns nothing.
    monkeypatch.setattr("ultralytics.data.loaders.imread", lambda *_, **__: np.zeros((9, 9, 3), np.uint8))
    assert "a.jpg: broken image" in refusal(detector.predict, tmp_path / "a.jpg", **LOW)


def test_missing_and_empty_sources_are_refused(detector, tmp_path):
    assert "source=nope.jpg: nope.jpg does not exist; give a" in refusal(detector.predict, "nope.jpg", **LOW)
    message = refusal(detector.predict, tmp_path, **LOW)
    assert f"source={tmp_path}: No images or videos found in {tmp_path};" in message
    assert "source is missing" in refusal(detector.predict)
    assert "nope.jpg" in refusal(detector.predict, [str(PHOTOS[0]), "nope.jpg"], **LOW)


def test_a_broken_image_in_a_list_is_refused(detector, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no image")
    assert "a.jpg" in refusal(detector.predict, [str(tmp_path / "a.jpg")], **LOW)


@pytest.mark.parametrize("content", [b"text", b"", None], ids=["text", "empty", "truncated"])
@pytest.mark.parametrize("name", ["a.mp4", "a.avi"])
def test_a_broken_video_is_named(detector, video, tmp_path, name, content):
    (tmp_path / name).write_bytes(video.read_bytes()[:2000] if content is None else content)
    assert str(tmp_path / name) in refusal(detector.predict, tmp_path / name, **LOW)
    shutil.copy(PHOTOS[0], tmp_path)
    assert str(tmp_path / name) in refusal(detector.predict, tmp_path, **LOW)


def test_a_second_broken_video_is_named_before_the_first_runs(detector, video, tmp_path):
    shutil.copy(video, tmp_path / "a.mp4")
    (tmp_path / "b.mp4").write_bytes(b"text")
    seen = []
    with pytest.raises(UserError, match=r"b\.mp4: broken video"):
        seen += detector.predict(tmp_path, stream=True, **LOW)
    assert not seen


def test_a_list_that_is_no_text_is_refused(detector, tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x81")
    assert "list.txt: not a text file" in refusal(detector.predict, tmp_path / "list.txt", **LOW)
    (tmp_path / "list.txt").write_text(f"{PHOTOS[0]}\n{PHOTOS[1]}\n")
    assert len(detector.predict(tmp_path / "list.txt", **LOW)) == 2


def test_a_camera_that_is_not_there_is_refused(detector):
    assert "source=63: " in refusal(detector.predict, 63, **LOW)
