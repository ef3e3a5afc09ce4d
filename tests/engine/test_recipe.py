"""Recipes: every one that ships trains, keys of the caller win, and mistakes are named with their file."""

from pathlib import Path

import pytest
import yaml
from quick import first
from small_training import EPOCHS, TRAIN

from yolo_lat import YOLOLAT
from yolo_lat.engine.evaluate import COCO_NUMBERS
from yolo_lat.engine.recipe import find_recipe, read_recipe, recipe_names
from yolo_lat.errors import UserError

SHARED = Path(__file__).parents[2].parent / "shared/data"
SHORT = {key: TRAIN[key] for key in ("imgsz", "batch", "device", "workers", "plots", "verbose")} | {"epochs": 1}


def test_the_recipes_that_the_guides_name_are_there():
    assert set(recipe_names()) == {*(f"coco-{scale}" for scale in "pnsmlx"), "small", "finetune", "inspection"}


@pytest.mark.parametrize("name", first(3, sorted(recipe_names(), reverse=True)))
def test_every_recipe_trains(shapes, tmp_path, name):
    if "augmentations" in read_recipe(find_recipe(name)):
        pytest.importorskip("albumentations", reason="needs the extra 'augment'")
    model = YOLOLAT("yolo-lat-p")
    model.train(data=shapes, cfg=name, project=tmp_path, fraction=0.5, **SHORT)
    used = yaml.safe_load((tmp_path / "train/args.yaml").read_text())
    recipe = read_recipe(find_recipe(name))
    assert {key: used[key] for key in recipe.keys() - SHORT.keys() - {"augmentations"}} == {
        key: value for key, value in recipe.items() if key not in SHORT and key != "augmentations"
    }
    assert {key: used[key] for key in SHORT} == SHORT
    assert len(used.get("augmentations") or []) == len(recipe.get("augmentations", []))


def test_the_arguments_of_a_run_are_a_recipe_without_its_folder(run, tmp_path):
    file = run.folder / "args.yaml"
    with pytest.raises(UserError, match=r"args\.yaml: save_dir names the folder of the run .* take the line out$"):
        read_recipe(file)
    kept = "".join(line for line in file.read_text().splitlines(keepends=True) if not line.startswith("save_dir:"))
    (tmp_path / "again.yaml").write_text(kept)
    told = read_recipe(tmp_path / "again.yaml")
    assert (told["epochs"], told["format"], told["val_period"]) == (EPOCHS, "torchscript", 1)


def test_data_may_stand_in_the_recipe(shapes, tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"data": str(shapes), "mosaic": 0.0}))
    model = YOLOLAT("yolo-lat-p")
    model.train(cfg=tmp_path / "mine.yaml", project=tmp_path, fraction=0.5, **SHORT)
    assert model.trainer.args.data == str(shapes)
    assert model.trainer.args.mosaic == 0


def test_a_file_wins_over_a_name_and_an_unknown_name_suggests_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").write_text("epochs: 3")
    assert read_recipe(find_recipe("small")) == {"epochs": 3}
    with pytest.raises(
        UserError, match=r"cfg=finetun: no such recipe; did you mean 'finetune'\?; give a \.yaml or one"
    ):
        find_recipe("finetun")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("epoch: 5", "unknown key 'epoch'; did you mean 'epochs'?"),
        ("- epochs", "holds no 'key: value' lines"),
        ("epochs: [1", "line 1: not valid YAML"),
        ("epochs: 1\nlr0: 0.1\nepochs: 2", "line 3: not valid YAML (epochs is given twice); mend the file"),
        ("epochs: many", "'epochs=many' is of invalid type str"),
        ("5: 5", "unknown key '5'; see yolo-lat train --help"),
        ("format: onnx", "format=onnx: is for export, and does nothing in train; leave it out"),
        ("epochs: 3\nmask_ratio: 2", "mask_ratio=2: is for other tasks than detection; leave it out"),
    ],
)
def test_a_wrong_recipe_is_refused_before_anything_is_written(shapes, tmp_path, text, problem):
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        YOLOLAT("yolo-lat-p").train(data=shapes, cfg=file, project=tmp_path / "runs", **SHORT)
    assert str(caught.value).startswith(str(file))
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["p", "n", "s"])
def test_a_coco_recipe_goes_all_the_way_on_images_of_coco(scale, tmp_path):
    """One epoch on 71 of COCO's own images with its 80 classes; validation, export, and the file's numbers."""
    if not (SHARED / "coco_ccby").is_dir():
        pytest.skip(f"no {SHARED / 'coco_ccby'}; every recipe trains on synthetic images all the same")
    content = {"path": str(SHARED / "coco_ccby"), "train": "images", "val": "images"}
    content["coco_json"] = {"train": "instances_train.json", "val": "instances_val.json"}
    data = tmp_path / "coco.yaml"
    data.write_text(yaml.safe_dump(content))
    model = YOLOLAT(f"yolo-lat-{scale}")
    common = {"data": data, "imgsz": 128, "batch": 16, "device": "cpu", "plots": False, "project": tmp_path}
    metrics = model.train(cfg=f"coco-{scale}", epochs=1, workers=0, **common)
    assert len(model.names) == 80
    assert set(metrics.coco) == set(COCO_NUMBERS)
    best = str(tmp_path / "train/weights/best.safetensors")
    alone = YOLOLAT(best).val(**common)
    assert alone.coco == pytest.approx(metrics.coco, abs=1e-6)
    exported = YOLOLAT(best).export(imgsz=128)
    assert YOLOLAT(exported).val(**common).coco["AP"] >= 0
