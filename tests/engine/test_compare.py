"""Runs compared on the same images: what the differences are, what their intervals hold, and what is refused."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from yolo_lat.data.reader import read_split
from yolo_lat.data.registry import load_dataset
from yolo_lat.data.shapes import ShapesConfig, generate
from yolo_lat.engine.bootstrap import match_detections, resample_images
from yolo_lat.engine.compare import COVERS, SHOWN, Comparison, compare_runs
from yolo_lat.engine.evaluate import COCO_NUMBERS, evaluate_detections, evaluate_predictions
from yolo_lat.engine.report import ground_truth_hash
from yolo_lat.errors import UserError

IMAGES = 40


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    return generate(folder, ShapesConfig(2, IMAGES, 64), progress=False) / "data.yaml"


def guesses(data: Path, seed: int, noise: float, found: float = 0.9) -> list[dict]:
    """Ground truth moved by `noise` pixels, of which a part is `found`, and one false detection an image."""
    rng = np.random.default_rng(seed)
    truth = read_split(load_dataset(data), "val", progress=False).ground_truth()
    rows = []
    for annotation in truth["annotations"]:
        if rng.random() < found:
            box = np.array(annotation["bbox"]) + rng.normal(0, noise, 4)
            row = {key: annotation[key] for key in ("image_id", "category_id")}
            rows.append(row | {"bbox": box.clip(1).tolist(), "score": float(rng.uniform(0.3, 1))})
    for image in truth["images"]:
        row = {"image_id": image["id"], "category_id": truth["categories"][0]["id"]}
        rows.append(row | {"bbox": rng.uniform(5, 30, 4).tolist(), "score": float(rng.uniform(0, 0.7))})
    return rows


def write_run(folder: Path, data: Path, rows: list[dict]) -> Path:
    """A run folder as validation leaves it, as far as a comparison reads it."""
    split = read_split(load_dataset(data), "val", progress=False)
    folder.mkdir(parents=True)
    (folder / "predictions.json").write_text(json.dumps(rows))
    content = {
        "model": "best.pt",
        "data": str(data),
        "split": "val",
        "ground_truth": ground_truth_hash(split.ground_truth()),
        "numbers": evaluate_detections(split, rows).numbers,
    }
    (folder / "evaluation.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory) -> dict[str, Path]:
    """Three runs: one good, one a little different, one much worse; `copy` has the files of the good one."""
    root = tmp_path_factory.mktemp("runs")
    folders = {
        "good": write_run(root / "good", data, guesses(data, 1, 1.0)),
        "other": write_run(root / "other", data, guesses(data, 2, 1.0)),
        "poor": write_run(root / "poor", data, guesses(data, 1, 3.0, 0.5)),
    }
    return folders | {"copy": Path(shutil.copytree(folders["good"], root / "copy"))}


@pytest.fixture(scope="module")
def comparison(runs) -> Comparison:
    return compare_runs(list(runs.values()), resamples=300, seed=3)


def text_of(comparison: Comparison, width: int = 140) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(comparison.table())
    return stream.getvalue()


def test_values_are_the_recorded_numbers_and_intervals_hold_them(comparison, runs):
    assert [run.label for run in comparison.runs] == ["good", "other", "poor", "copy"]
    for i, folder in enumerate(runs.values()):
        recorded = json.loads((folder / "evaluation.json").read_text())["numbers"]
        for number in COCO_NUMBERS:
            found = comparison.interval(i, number)
            if recorded[number] == -1:
                assert np.isnan(found.value)
                assert found.resamples == 0
            else:
                assert found.value == pytest.approx(recorded[number], abs=1e-9)
                assert found.low < found.value < found.high


def test_intervals_are_percentiles_of_evaluations_of_the_resamples(comparison, runs, data):
    split = read_split(load_dataset(data), "val", progress=False)
    found = [match_detections(split, json.loads((runs[n] / "predictions.json").read_text())) for n in ("good", "poor")]
    good, poor = (np.concatenate([m.numbers(w) for w in resample_images(IMAGES, 300, 3)])[:, 1] for m in found)  # AP50
    own, gap = comparison.interval(2, "AP50"), comparison.difference(2, "AP50")
    assert [own.low, own.high] == pytest.approx(np.percentile(poor, [2.5, 97.5]).tolist())
    assert [gap.low, gap.high] == pytest.approx(np.percentile(poor - good, [2.5, 97.5]).tolist())
    assert (gap.better, gap.worse) == ((poor > good).sum(), (poor < good).sum())


def test_a_degraded_run_differs_and_a_copy_does_not(comparison):
    for number in ("AP", "AP50", "AP75", "AR100"):
        worse = comparison.difference(2, number)
        assert worse.excludes_zero
        assert worse.high < 0
        assert worse.value < 0
        assert worse.worse == worse.resamples == 300
        same = comparison.difference(3, number)
        assert (same.value, same.low, same.high, same.better, same.worse) == (0, 0, 0, 0, 0)
        assert not same.excludes_zero


def test_pairing_makes_the_interval_of_a_difference_narrow(comparison):
    # The runs find and miss objects of the same images, so a resample that is hard for one is hard for the other.
    gap, own = comparison.difference(1, "AP"), comparison.interval(1, "AP")
    assert not gap.excludes_zero
    assert 0 < gap.better < 300
    unpaired = np.quantile(comparison.resampled[1, :, 0] - comparison.resampled[0, ::-1, 0], [0.025, 0.975])
    assert gap.high - gap.low < np.ptp(unpaired)
    assert own.low < own.high


def test_the_same_seed_gives_the_same_numbers_whatever_else_is_compared(comparison, runs):
    few = compare_runs([runs["poor"], runs["good"]], resamples=150, seed=3, progress=False)
    np.testing.assert_array_equal(few.resampled[0], comparison.resampled[2, :150])
    np.testing.assert_array_equal(few.resampled[1], comparison.resampled[0, :150])
    assert few.difference(1, "AP").value == -comparison.difference(2, "AP").value
    other = compare_runs([runs["poor"], runs["good"]], resamples=150, seed=4, progress=False)
    assert (other.resampled[:, :, 0] != few.resampled[:, :, 0]).any()


def test_more_confidence_is_a_wider_interval(comparison, runs):
    wide = compare_runs([runs["good"], runs["other"]], resamples=300, seed=3, confidence=0.99)
    narrow, wider = comparison.interval(0, "AP"), wide.interval(0, "AP")
    assert wider.low < narrow.low < narrow.high < wider.high


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    # A family whose truth is known: an image's single object is found with chance 0.7, nothing is falsely found, so
    # AR100 is the part of the images found. Of 200 samples of 80 images each, 190 intervals should hold 0.7, give or
    # take three times 3.1, the standard deviation of a binomial.
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        found = (rng.random(80) < 0.7).astype(float)
        counts = np.concatenate(list(resample_images(80, 300, int(rng.integers(1 << 30)))))
        resampled = np.repeat((counts @ found / 80)[None, :, None], len(COCO_NUMBERS), axis=2)
        values = np.full((1, len(COCO_NUMBERS)), found.mean())
        interval = Comparison((), "coin", 80, values, resampled, 0, 0.95).interval(0, "AR100")
        held += interval.low <= 0.7 <= interval.high
    assert 181 <= held <= 199


def test_table_marks_what_excludes_zero_and_says_what_it_covers(comparison):
    text = text_of(comparison)
    words = " ".join(text.split())
    assert COVERS in words
    assert "not the seed of training" in words
    assert "95% percentile bootstrap intervals over 40 images, the same 300 resamples (seed 3)" in words
    rows = [line for line in text.splitlines() if " poor " in line]
    assert len(rows) == len(SHOWN)
    gap = comparison.difference(2, "AP")
    assert f"{gap.value:+.3f}*  {gap.low:+.3f} to {gap.high:+.3f}" in rows[0]
    assert rows[0].split()[-1] == "0%"
    assert not any("*" in line for line in text.splitlines() if " copy " in line)
    assert "* the interval excludes 0." in words
    assert "reference" in next(line for line in text.splitlines() if "good  " in line and "AP" in line)
    assert max(map(len, text_of(comparison, 80).splitlines())) <= 80
    assert [line.split() for line in text_of(comparison, 80).splitlines() if " poor " in line] == [
        line.split() for line in rows
    ]


def test_file_holds_all_numbers(comparison, tmp_path):
    comparison.save(tmp_path / "out.json")
    content = json.loads((tmp_path / "out.json").read_text(), parse_constant=pytest.fail)
    assert (content["resamples"], content["seed"], content["confidence"], content["images"]) == (300, 3, 0.95, IMAGES)
    assert content["reference"] == "good"
    assert "not the seed of training" in content["method"]
    assert [list(run["numbers"]) for run in content["runs"]] == [list(COCO_NUMBERS)] * 4
    assert "difference" not in content["runs"][0]
    gap = comparison.difference(2, "AP75")
    assert content["runs"][2]["difference"]["AP75"] == {
        "value": gap.value,
        "low": gap.low,
        "high": gap.high,
        "resamples": 300,
        "better": 0,
        "worse": 300,
        "excludes_zero": True,
    }
    assert content["runs"][2]["numbers"]["APl"] == {"value": None, "low": None, "high": None, "resamples": 0}


def test_figure_is_a_picture_with_every_run(comparison, tmp_path):
    comparison.plot(tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
    assert {(31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40)} <= colours


def test_labels_are_paths_where_names_repeat_and_are_shown_as_they_are(runs, tmp_path):
    paths = [Path(shutil.copytree(runs["good"], tmp_path / f"{part}/[bold]$x$")) for part in "ab"]
    comparison = compare_runs(paths, resamples=100)
    assert [run.label for run in comparison.runs] == [str(path) for path in paths]
    assert "a/[bold]$x$" in text_of(comparison, 400)
    comparison.plot(tmp_path / "out.png")


def test_a_folder_that_the_evaluation_of_predictions_wrote_can_be_compared(runs, data, tmp_path):
    file = shutil.copy(runs["poor"] / "predictions.json", tmp_path / "predictions.json")
    evaluate_predictions(file, data, save_dir=tmp_path, plots=False)
    comparison = compare_runs([runs["poor"], tmp_path], resamples=100)
    assert comparison.difference(1, "AP").low == comparison.difference(1, "AP").high == 0
    assert comparison.runs[1].model is None


def refusal(*arguments, **settings) -> str:
    with pytest.raises(UserError) as caught:
        compare_runs(*arguments, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_unusable_arguments_are_refused(runs, tmp_path):
    pair = [runs["good"], runs["poor"]]
    assert refusal([]).startswith("compare: 0 runs given")
    assert refusal(pair[:1]).startswith("compare: 1 run given")
    assert "given twice" in refusal([*pair, runs["good"] / ".." / "good"])
    assert "resamples=99: too few" in refusal(pair, resamples=99)
    assert "resamples=150.0" in refusal(pair, resamples=150.0)
    assert "seed=-1" in refusal(pair, seed=-1)
    for confidence in (0, 1, 95, float("nan")):
        assert f"confidence={confidence}: not between" in refusal(pair, confidence=confidence)
    assert f"{tmp_path / 'none'}: no such folder" in refusal([pair[0], tmp_path / "none"])
    assert f"{tmp_path}: has no evaluation.json" in refusal([pair[0], tmp_path])
    shutil.copy(pair[0] / "evaluation.json", tmp_path)
    assert f"{tmp_path}: has no predictions.json" in refusal([pair[0], tmp_path])


def changed(run: Path, folder: Path, **values) -> Path:
    """A copy of a run whose evaluation.json has other values; None drops a key."""
    shutil.copytree(run, folder)
    content = json.loads((run / "evaluation.json").read_text()) | values
    kept = {key: value for key, value in content.items() if value is not None}
    (folder / "evaluation.json").write_text(json.dumps(kept))
    return folder


@pytest.mark.parametrize("key", ["data", "split", "ground_truth", "numbers"])
def test_an_evaluation_that_lacks_something_is_refused(runs, tmp_path, key):
    broken = changed(runs["poor"], tmp_path / "broken", **{key: None})
    assert refusal([runs["good"], broken]).startswith(f"{broken / 'evaluation.json'}, key {key}: ")


def test_other_annotations_are_refused(runs, data, tmp_path):
    other = changed(runs["poor"], tmp_path / "other", ground_truth="00")
    message = refusal([runs["good"], other])
    assert message.startswith(f"{other}: evaluated against other annotations")
    assert str(runs["good"]) in message


def test_annotations_changed_since_are_refused(data, tmp_path):
    shutil.copytree(data.parent, tmp_path / "data")
    moved = tmp_path / "data/data.yaml"
    moved.write_text(data.read_text().replace(str(data.parent), str(moved.parent)))
    pair = [write_run(tmp_path / name, moved, guesses(moved, 1, 1.0)) for name in "ab"]
    compare_runs(pair, resamples=100)
    file = tmp_path / "data/annotations/val.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"][0] += 1
    file.write_text(json.dumps(content))
    assert "changed since" in refusal(pair)
    moved.unlink()
    assert refusal(pair).startswith(f"{pair[0] / 'evaluation.json'}, key data: cannot be read again")


def test_predictions_that_are_not_the_evaluated_ones_are_refused(runs, tmp_path):
    swapped = Path(shutil.copytree(runs["poor"], tmp_path / "swapped"))
    file = swapped / "predictions.json"
    rows = json.loads(file.read_text())
    for content, problem in (
        (rows[5:], "but evaluation.json says"),
        ({"rows": rows}, "not COCO results"),
        ([*rows, {"image_id": 1}], f"entry {len(rows)}: lacks image_id"),
        ([*rows, rows[0] | {"bbox": [1, 2, 3]}], f"entry {len(rows)}: bbox [1, 2, 3]"),
        ([rows[0] | {"image_id": 999}], "entry 0: image_id 999 is not in"),
    ):
        file.write_text(json.dumps(content))
        message = refusal([runs["good"], swapped])
        assert message.startswith(str(file))
        assert problem in message


def test_a_run_that_validation_wrote_can_be_compared(run, tmp_path):
    again = Path(shutil.copytree(run.folder, tmp_path / "again"))
    comparison = compare_runs([run.folder, again], resamples=100)
    assert comparison.interval(0, "AP").value == pytest.approx(run.metrics.coco["AP"], abs=1e-9)
    assert comparison.difference(1, "AP").value == 0
    assert comparison.runs[0].model
