"""The modes about data on real files, as a user runs them."""

import json
import shutil

import cv2
import pytest
import yaml

from yolo_lat.data.reader import read_split
from yolo_lat.data.registry import load_dataset


def boxes(data, split="train"):
    found = read_split(load_dataset(data), split, progress=False)
    return {image.path.name: image.boxes_xywh.round(6).tolist() for image in found.images}


def test_check_passes_sound_data_and_writes_report_and_sheet(command, shapes, tmp_path):
    done = command("data", "check", shapes, "json=out/report.json", "sheet=out/sheet.png")
    assert done.status == 0
    assert done.out.splitlines()[-1].endswith("0 errors, 0 warnings; training may start")
    assert "note: " in done.out  # that there is no test split
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["ok"] is True
    assert report["splits"]["train"]["images"] == 24
    assert cv2.imread(str(tmp_path / "out/sheet.png")).std() > 10


def test_a_sheet_that_is_no_picture_is_refused_before_images_are_read(command, shapes, tmp_path):
    done = command("data", "check", shapes, "json=report.json", "sheet=s.gif")
    assert done.status == 2
    assert done.err.startswith("yolo-lat: error: s.gif: unknown kind of picture; ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("json=/proc/self/a.json", "json=/proc/self/a.json: cannot be written ("),
        ("sheet=/proc/self/a.png", "sheet=/proc/self/a.png: cannot be written ("),
        ("json=.", "json=.: is a folder; give a file in it"),
    ],
)
def test_a_place_that_takes_no_file_is_refused_before_images_are_read(command, monkeypatch, words, told):
    monkeypatch.setattr("yolo_lat.data.doctor.check_dataset", lambda *_, **__: pytest.fail("has begun"))
    done = command("data", "check", "shapes", words)
    assert done.status == 2
    assert done.err.startswith(f"yolo-lat: error: {told}")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("figure=c.svg", "figure=c.svg: is no .png; name it so"),
        ("figure=c", "figure=c: is no .png; name it so"),
        ("figure=/proc/self/c.png", "figure=/proc/self/c.png: cannot be written ("),
        ("json=/proc/self/c.json", "json=/proc/self/c.json: cannot be written ("),
    ],
)
def test_a_comparison_that_cannot_be_written_is_refused_before_it_begins(command, tmp_path, monkeypatch, words, told):
    monkeypatch.setattr("yolo_lat.engine.compare.compare_runs", lambda *_, **__: pytest.fail("has begun"))
    done = command("compare", "one", "two", words)
    assert done.status == 2
    assert done.err.startswith(f"yolo-lat: error: {told}")
    assert not list(tmp_path.iterdir())


def test_check_ends_with_1_for_data_that_must_not_be_trained_on(command, txt_data, tmp_path):
    shutil.copytree(txt_data.parent, tmp_path / "bad")
    content = yaml.safe_load(txt_data.read_text()) | {"path": str(tmp_path / "bad")}
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(content))
    image = min((tmp_path / "bad/images/train").iterdir())
    image.write_bytes(image.read_bytes()[:99])
    done = command("data", "check", "bad.yaml")
    assert done.status == 1
    assert image.name in done.out
    assert "1 errors" in done.out.splitlines()[-1]
    assert "mend the errors before training" in done.out.splitlines()[-1]


def test_convert_and_back(command, shapes, tmp_path):
    done = command("data", "convert", shapes, "format=voc", "directory=voc")
    assert (done.status, done.out.splitlines()[-1]) == (0, str(tmp_path / "voc/data.yaml"))
    assert command("data", "convert", "voc/data.yaml", "format=yolo", "directory=yolo", "images=link").status == 0
    assert boxes("yolo/data.yaml") == boxes("voc/data.yaml") == boxes(shapes)
    again = command("data", "convert", shapes, "format=voc", "directory=voc")
    assert again.status == 2
    assert again.err.startswith("yolo-lat: error: ")


def test_split_takes_its_shares_from_the_command_line(command, shapes):
    done = command("data", "split", shapes, "directory=new", "train=0.5", "val=0.5", "test=0", "seed=3")
    assert done.status == 0, done.err
    spec = load_dataset("new/data.yaml")
    assert set(spec.splits) == {"train", "val"}
    assert [len(read_split(spec, split).images) for split in ("train", "val")] == [16, 16]
    assert command("data", "split", shapes, "directory=other", "seed=3").status == 0
    spec = load_dataset("other/data.yaml")
    assert [len(read_split(spec, split).images) for split in ("train", "val", "test")] == [26, 3, 3]
    wrong = command("data", "split", shapes, "directory=third", "train=0.9")
    assert (wrong.status, wrong.out) == (2, "")


def test_show_and_preview_draw_pictures(command, shapes, tmp_path):
    assert command("data", "show", shapes, "split=val", "samples=4", "file=show.png").status == 0
    (tmp_path / "recipe.yaml").write_text("mosaic: 0.0\nscale: 0.0\ntranslate: 0.0\nfliplr: 1.0\nimgsz: 96\n")
    assert command("data", "preview", shapes, "cfg=recipe.yaml", "samples=4", "file=a.png").status == 0
    assert command("data", "preview", shapes, "cfg=recipe.yaml", "samples=4", "file=b.png", "fliplr=0").status == 0
    pictures = [cv2.imread(str(tmp_path / name)) for name in ("show.png", "a.png", "b.png")]
    assert all(picture.std() > 10 for picture in pictures)
    assert pictures[1].shape == pictures[2].shape
    assert (pictures[1] != pictures[2]).mean() > 0.1  # the key of the command line wins over the recipe's


def test_preview_takes_a_recipe_with_what_only_training_has(command, shapes, tmp_path):
    (tmp_path / "recipe.yaml").write_text("cache: device\ncutout: 0.5\nval_period: 5\nimgsz: 96\n")
    done = command("data", "preview", shapes, "cfg=recipe.yaml", "samples=2")
    assert (done.status, done.out) == (0, "preview.jpg\n"), done.err


def test_preview_refuses_what_training_would_refuse(command, shapes):
    assert "fliplr" in command("data", "preview", shapes, "fliplr=7").err
    assert "no such recipe" in command("data", "preview", shapes, "cfg=nope").err


def test_list_names_every_data_set_and_explains_one(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    table = command("data", "list").out
    assert all(name in table for name in ("coco", "coco-subset", "voc", "shapes"))
    one = command("data", "list", "coco").out
    assert all(part in one for part in ("annotations/instances_val2017.json", "27 GB", "CC BY 4.0", "cocodataset.org"))
    assert command("data", "list", "cocoo").status == 2


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        (["data", "check"], "data check needs data="),
        (["data", "convert", "a.yaml", "directory=b"], "data convert needs format="),
        (["data", "convert", "a.yaml", "format=voc"], "data convert needs directory="),
        (["data", "split", "a.yaml"], "data split needs directory="),
        (["data", "show"], "data show needs data="),
        (["compare", "one"], "compare needs two runs or more"),
    ],
)
def test_what_is_missing_is_named_with_an_example(command, words, needed):
    done = command(*words)
    assert done.status == 2
    assert done.err.startswith(f"yolo-lat: error: {needed}")
    assert "for example: yolo-lat " in done.err


def test_two_validations_are_compared(command, run, shapes, tmp_path):
    for size in (96, 64):
        words = (f"imgsz={size}", "device=cpu", "plots=False", "project=runs", f"name=v{size}", "conf=0.01")
        assert command("val", f"model={run.best}", f"data={shapes}", *words).status == 0
    done = command("compare", "runs/v96", "runs/v64", "resamples=100", "json=out/c.json", "figure=out/c.png")
    assert done.status == 0, done.err
    assert "differences to v96" in done.out
    content = json.loads((tmp_path / "out/c.json").read_text())
    assert [row["label"] for row in content["runs"]] == ["v96", "v64"]
    assert cv2.imread(str(tmp_path / "out/c.png")) is not None


def test_data_of_which_only_the_validation_part_is_there_can_be_validated_on(
    command, run, shapes, tmp_path, monkeypatch
):
    root = tmp_path / "sets/part"
    shutil.copytree(shapes.parent / "images/val", root / "images/val")
    shutil.copytree(shapes.parent / "annotations", root / "annotations")
    (root / "annotations/train.json").unlink()
    content = yaml.safe_load(shapes.read_text()) | {"path": str(root)}
    (tmp_path / "part.yaml").write_text(yaml.safe_dump(content))
    words = ("imgsz=96", "device=cpu", "plots=False", "json=a.json")
    assert command("val", f"model={run.best}", "data=part.yaml", *words).status == 0
    assert json.loads((tmp_path / "a.json").read_text()) == pytest.approx(run.metrics.coco, abs=1e-4)
    done = command("train", "model=yolo-lat-p", "data=part.yaml", "epochs=1")
    assert (done.status, done.out) == (2, "")
    assert "split train of part: no such path" in done.err
