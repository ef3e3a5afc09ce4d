"""Box voting: the formula written out box by box, in torch and in numpy alike, and the calls that take it."""

import json

import cv2
import numpy as np
import pytest
import torch
from hand_made_onnx import NAMES, fixed_output
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ultralytics.utils import ASSETS
from ultralytics.utils.nms import non_max_suppression

from yolo_lat import YOLOLAT
from yolo_lat.demo.detectors import open_detector
from yolo_lat.deploy import OnnxDetector
from yolo_lat.deploy.postprocess import from_best_class_output, from_raw_output
from yolo_lat.engine.box_voting import vote
from yolo_lat.engine.predictor import LatPredictor
from yolo_lat.engine.validator import LatValidator
from yolo_lat.errors import UserError

CONF, IOU, LIMIT = 0.05, 0.7, 0.8
VAL = {"imgsz": 96, "device": "cpu", "plots": False, "verbose": False, "workers": 0}


def crowd(seed: int, classes: int = 3, objects: int = 4, boxes: int = 12) -> np.ndarray:
    """Raw output (1, 4 + classes, objects * boxes): around each object boxes that nearly agree."""
    rng = np.random.default_rng(seed)
    truth = np.concatenate([rng.uniform(50, 250, (objects, 2)), rng.uniform(30, 80, (objects, 2))], axis=1)
    xywh = np.repeat(truth, boxes, axis=0) * rng.normal(1, 0.03, (objects * boxes, 4))
    return np.concatenate([xywh, rng.uniform(0, 1, (objects * boxes, classes))], axis=1).T[None].astype(np.float32)


def area(box: np.ndarray) -> float:
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    both = area(np.concatenate([np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])]))
    return both / (area(a) + area(b) - both)


def written_out(output: np.ndarray, kept: np.ndarray, multi_label: bool, agnostic: bool) -> tuple[np.ndarray, bool]:
    """Return the boxes that the definition gives, in float64, and whether no overlap is so near to LIMIT that rounding
    decides."""
    rows = output.astype(np.float64).T
    expected, clear = kept[:, :4].astype(np.float64), True
    for i, (*box, _, class_id) in enumerate(kept.astype(np.float64)):
        total, weight = np.zeros(4), 0.0
        for x, y, w, h, *scores in rows:
            score = max(scores) if agnostic else scores[int(class_id)]
            if score <= CONF or not (agnostic or multi_label or score == max(scores)):
                continue
            voter = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
            shared = overlap(np.array(box), voter)
            clear &= abs(shared - LIMIT) > 1e-4
            if shared > LIMIT:
                total, weight = total + score * voter, weight + score
        expected[i] = total / weight
    return expected, clear


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.booleans())
def test_a_kept_box_becomes_the_mean_of_its_voters(seed, multi_label, agnostic) -> None:
    output = torch.from_numpy(crowd(seed))
    kept = non_max_suppression(output, CONF, IOU, multi_label=multi_label, agnostic=agnostic)
    voted = vote(output, kept, LIMIT, CONF, multi_label, agnostic)[0]
    expected, clear = written_out(output[0].numpy(), kept[0].numpy(), multi_label, agnostic)
    assume(clear)
    assert torch.equal(voted[:, 4:], kept[0][:, 4:])
    np.testing.assert_allclose(voted[:, :4].numpy(), expected, atol=1e-3)
    assert (voted[:, :4] - kept[0][:, :4]).abs().max() > 0.1  # boxes move, so that equality means something


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_numpy_votes_as_torch_does(seed) -> None:
    output = crowd(seed)
    kept = non_max_suppression(torch.from_numpy(output), CONF, IOU)
    assume(written_out(output[0], kept[0].numpy(), False, False)[1])
    voted = vote(torch.from_numpy(output), kept, LIMIT, CONF)[0].numpy()
    found = from_raw_output(output, CONF, IOU, 300, LIMIT)[0]
    np.testing.assert_allclose(found.xyxy, voted[:, :4], atol=1e-3)
    np.testing.assert_array_equal(found.scores, voted[:, 4])
    np.testing.assert_array_equal(found.class_ids, voted[:, 5])
    scores = output[:, 4:]
    best = np.concatenate([output[:, :4], scores.max(1, keepdims=True), scores.argmax(1)[:, None]], axis=1)
    for of_raw, of_best in zip(
        found, from_best_class_output(best.astype(np.float32), CONF, IOU, 300, LIMIT)[0], strict=True
    ):
        np.testing.assert_array_equal(of_raw, of_best)


def test_votes_bring_boxes_nearer_to_the_object() -> None:
    """What it is for: boxes that err independently err less in the mean."""
    before, after = [], []
    for seed in range(50):
        rng = np.random.default_rng(seed)
        truth = np.array([100, 120, 60, 40], np.float32)
        xywh = truth + rng.normal(0, 1, (20, 4)) * truth[[2, 3, 2, 3]] * 0.02
        output = np.concatenate([xywh, rng.uniform(0.3, 0.9, (20, 1))], axis=1).T[None].astype(np.float32)
        corners = np.array([70, 100, 130, 140])
        for errors, box_vote in ((before, None), (after, LIMIT)):
            errors.append(1 - overlap(from_raw_output(output, CONF, 0.5, 1, box_vote)[0].xyxy[0], corners))
    assert np.mean(after) < np.mean(before) / 2


def test_one_box_alone_and_none_stay_as_they_are() -> None:
    output = np.zeros((2, 6, 8), np.float32)
    output[0, :5, 3] = 50, 60, 20, 0, 0.9  # an empty box overlaps nothing, itself neither
    output[0, :5, 5] = 50, 20, 20, 10, 0.8
    for kept in (
        vote(torch.from_numpy(output), non_max_suppression(torch.from_numpy(output), CONF, IOU), LIMIT, CONF),
        [torch.from_numpy(found.xyxy) for found in from_raw_output(output, CONF, IOU, 300, LIMIT)],
    ):
        assert kept[0][:, :4].tolist() == [[40, 60, 60, 60], [40, 15, 60, 25]]
        assert len(kept[1]) == 0


@pytest.fixture
def detector(run):
    return YOLOLAT(run.best)


def test_validation_votes_and_says_so(detector, run, tmp_path) -> None:
    found = {}
    for name, options in {"plain": {}, "none": {"box_vote": None}, "voted": {"box_vote": 0.6}}.items():
        detector.val(data=run.data, project=tmp_path, name=name, **options, **VAL)
        found[name] = json.loads((tmp_path / name / "predictions.json").read_text())
        assert json.loads((tmp_path / name / "evaluation.json").read_text())["box_vote"] == options.get("box_vote")
    assert found["plain"] == found["none"]
    plain, voted = (
        [[row[key] for key in ("image_id", "category_id", "score")] for row in found[name]]
        for name in ("plain", "voted")
    )
    assert plain == voted
    moved = np.abs(np.array([row["bbox"] for row in found["voted"]]) - [row["bbox"] for row in found["plain"]])
    assert moved.max() > 0.01


def test_an_exported_model_votes_as_its_weights_do(detector, dynamic_onnx_file) -> None:
    options = {"imgsz": 160, "conf": 0.001, "device": "cpu", "verbose": False}
    photo = str(ASSETS / "bus.jpg")
    plain = detector.predict(photo, **options)[0].boxes.data
    voted = detector.predict(photo, box_vote=0.6, **options)[0].boxes.data
    assert (voted[:, :4] - plain[:, :4]).abs().max() > 0.01
    assert torch.equal(voted[:, 4:], plain[:, 4:])
    assert torch.equal(
        detector.predict(photo, **options)[0].boxes.data, plain
    )  # one call's votes are not the next one's
    exported = YOLOLAT(dynamic_onnx_file).predict(photo, box_vote=0.6, **options)[0].boxes.data
    torch.testing.assert_close(exported[:20], voted[:20], atol=0.05, rtol=1e-3)


def test_the_demo_votes_with_weights_as_with_an_exported_model(detector, run) -> None:
    image = cv2.imread(str(ASSETS / "bus.jpg"))
    (plain,), (voted,) = (
        open_detector(str(run.best), conf=0.001, imgsz=160, box_vote=votes)([image]) for votes in (None, 0.6)
    )
    expected = detector.predict(image, imgsz=160, conf=0.001, device="cpu", verbose=False, box_vote=0.6)[0].boxes
    np.testing.assert_array_equal(voted.boxes_xyxy, expected.xyxy.numpy())
    assert np.abs(voted.boxes_xyxy - plain.boxes_xyxy).max() > 0.01


def test_the_detector_without_torch_votes(tmp_path) -> None:
    output = crowd(0, classes=2)
    file = fixed_output(tmp_path / "model.onnx", output, NAMES | {"imgsz": "[320, 320]"}, (1, 3, 320, 320))
    image = np.zeros((320, 320, 3), np.uint8)
    plain, voted = (OnnxDetector(file, box_vote=box_vote)(image) for box_vote in (None, LIMIT))
    np.testing.assert_array_equal(plain.scores, voted.scores)
    expected = from_raw_output(output, 0.25, IOU, 300, LIMIT)[0].xyxy.clip(0, 320)
    np.testing.assert_allclose(voted.boxes_xyxy, expected, atol=1e-4)
    assert np.abs(voted.boxes_xyxy - plain.boxes_xyxy).max() > 0.1


class TestRefusals:
    @pytest.mark.parametrize("box_vote", [-0.1, 1.5, "0.8", True, float("nan")])
    def test_what_is_no_overlap(self, detector, run, tmp_path, box_vote) -> None:
        message = rf"^box_vote={box_vote}: must be a number from 0 to 1"
        with pytest.raises(UserError, match=message):
            detector.val(data=run.data, project=tmp_path, box_vote=box_vote, **VAL)
        with pytest.raises(UserError, match=message):
            detector.predict(str(ASSETS / "bus.jpg"), box_vote=box_vote)
        with pytest.raises(UserError, match=f"box_vote={box_vote} is no threshold"):
            OnnxDetector(fixed_output(tmp_path / "m.onnx", crowd(0), NAMES), box_vote=box_vote)
        assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]

    def test_models_that_suppress_inside(self, run, tmp_path) -> None:
        weights = tmp_path / "w.pt"
        weights.write_bytes(run.best.read_bytes())
        file = YOLOLAT(weights).export(imgsz=96, nms=True)
        with pytest.raises(UserError, match=r"suppresses nothing outside of the model, so no box is left to vote"):
            YOLOLAT(file).predict(str(ASSETS / "bus.jpg"), box_vote=LIMIT)
        with pytest.raises(UserError, match=r"w.onnx returns boxes that need no suppression, so none is left to vote"):
            OnnxDetector(file, box_vote=LIMIT)

    def test_heads_that_need_no_suppression(self, tmp_path) -> None:
        with pytest.raises(UserError, match=r"^box_vote=0.8: yolo26n.yaml suppresses nothing"):
            YOLOLAT("yolo26n.yaml").predict(str(ASSETS / "bus.jpg"), nms=False, box_vote=LIMIT)

    def test_parts_of_the_users_own(self, detector, run) -> None:
        with pytest.raises(UserError, match=r"LatValidator.* has to see to it"):
            detector.val(LatValidator, data=run.data, box_vote=LIMIT)
        with pytest.raises(UserError, match=r"LatPredictor.* has to see to it"):
            detector.predict(str(ASSETS / "bus.jpg"), predictor=LatPredictor, box_vote=LIMIT)

    def test_predictions_from_elsewhere(self, command, run) -> None:
        done = command("val", "predictions=p.json", f"data={run.data}", "box_vote=0.8")
        assert done.status == 2
        assert "box_vote= has no effect on predictions=" in done.err
