"""Training: what a run leaves behind, going on after an interruption, the same numbers twice, and its errors."""

import csv
import json
import shutil

import pytest
import torch
import yaml
from quick import first
from small_training import EPOCHS, TRAIN

from yolo_lat import YOLOLAT
from yolo_lat.errors import UserError
from yolo_lat.nn.model import LatModel

QUICK = {**TRAIN, "imgsz": 64, "batch": 12, "nbs": 12}


def rows(folder) -> list[dict[str, str]]:
    with (folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


def losses(folder) -> list[list[str]]:
    return [[row[key] for key in row if "loss" in key] for row in rows(folder)]


def test_a_run_leaves_weights_numbers_and_settings(run):
    weights = {path.name for path in (run.folder / "weights").iterdir()}
    assert weights == {"best.pt", "last.pt", "best.safetensors", "last.safetensors"}
    assert len(rows(run.folder)) == EPOCHS
    assert json.loads((run.folder / "metrics.json").read_text()) == run.metrics.coco
    assert yaml.safe_load((run.folder / "args.yaml").read_text())["data"] == str(run.data)


def test_results_csv_holds_coco_numbers(run, shapes, tmp_path):
    found = []
    model = YOLOLAT(run.best)
    model.add_callback("on_fit_epoch_end", lambda trainer: found.append(trainer.validator.metrics.coco))
    model.train(data=shapes, epochs=1, project=tmp_path, **{**TRAIN, "lr0": 1e-12, "optimizer": "SGD"})
    (row,) = rows(tmp_path / "train")
    assert float(row["metrics/mAP50-95(B)"]) == pytest.approx(found[0]["AP"], abs=1e-5)
    assert float(row["metrics/mAP50(B)"]) == pytest.approx(found[0]["AP50"], abs=1e-5)
    assert found[0]["AP"] > 0.001


@pytest.mark.slow
def test_the_same_seed_gives_the_same_losses(shapes, tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        YOLOLAT("yolo-lat-p").train(data=shapes, epochs=1, seed=seed, project=tmp_path, name=name, **QUICK)
    assert losses(tmp_path / "a") == losses(tmp_path / "b") != losses(tmp_path / "c")


class Interrupted:
    """Stop a training as Ctrl-C does, after an epoch's checkpoint is written."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def __call__(self, trainer) -> None:
        if trainer.epoch + 1 == self.epoch:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def interrupted(shapes, tmp_path_factory):
    """A run of three epochs that was interrupted after the first."""
    project = tmp_path_factory.mktemp("interrupted")
    model = YOLOLAT("yolo-lat-p")
    model.add_callback("on_model_save", Interrupted(1))
    with pytest.raises(KeyboardInterrupt):
        model.train(data=shapes, epochs=3, project=project, name="a", **QUICK)
    assert len(rows(project / "a")) == 1
    return project / "a"


@pytest.mark.parametrize("way", first(1, ["path", "True"]))
def test_an_interrupted_training_goes_on(interrupted, tmp_path, way):
    shutil.copytree(interrupted, tmp_path / "a")
    last = tmp_path / "a/weights/last.pt"
    content = torch.load(last, weights_only=False)
    content["train_args"] |= {"save_dir": str(tmp_path / "a"), "project": str(tmp_path)}
    content["ema"].args = content["train_args"]
    torch.save(content, last)
    if way == "path":
        model = YOLOLAT("yolo-lat-p")
        metrics = model.train(resume=str(last))
    else:
        model = YOLOLAT(last)
        metrics = model.train(resume=True)
    assert [row["epoch"] for row in rows(tmp_path / "a")] == ["1", "2", "3"]
    assert losses(tmp_path / "a")[0] == losses(interrupted)[0]
    assert set(metrics.coco) > {"AP"}
    assert (tmp_path / "a/weights/best.safetensors").exists()
    assert not list(interrupted.parent.glob("a?*"))


def test_what_cannot_be_resumed_is_refused(run, tmp_path):
    for model, resume in ((run.best, str(run.best)), (run.best, True), ("yolo-lat-p", True), ("yolo-lat-p", run.best)):
        with pytest.raises(UserError, match="is no unfinished training; give the"):
            YOLOLAT(model).train(resume=resume)
    with pytest.raises(UserError, match=r"resume=nope\.pt: no such checkpoint"):
        YOLOLAT("yolo-lat-p").train(resume="nope.pt")
    (tmp_path / "cut.pt").write_bytes(run.best.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"cut\.pt: not a checkpoint"):
        YOLOLAT("yolo-lat-p").train(resume=tmp_path / "cut.pt")


@pytest.mark.parametrize("batch", [8, 5, 1])
def test_memory_that_runs_out_is_an_error_and_no_smaller_batch(shapes, tmp_path, monkeypatch, batch):
    def fail(*_, **__):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    model = YOLOLAT("yolo-lat-p")
    monkeypatch.setattr(LatModel, "loss", fail)
    with pytest.raises(UserError, match=f"batch={batch} at imgsz=64 does not fit into the memory of cpu; lower batch="):
        model.train(data=shapes, epochs=1, project=tmp_path, **{**QUICK, "batch": batch})


def test_fine_tuning_starts_from_the_weights(run, shapes, tmp_path):
    key = "model.0.conv.conv.weight"
    trained = YOLOLAT(run.best).model.state_dict()
    for weights in (run.best, run.safetensors):
        model = YOLOLAT(weights)
        model.train(data=shapes, epochs=1, project=tmp_path, **{**QUICK, "lr0": 1e-12, "optimizer": "SGD"})
        start = model.model.state_dict()
        assert torch.allclose(start[key].float(), trained[key].float(), atol=1e-3)


@pytest.mark.slow
def test_stock_models_train_too(shapes, tmp_path):
    metrics = YOLOLAT("yolov8n.yaml").train(data=shapes, epochs=1, project=tmp_path, **QUICK)
    assert set(metrics.coco) > {"AP", "AR100"}
    assert (tmp_path / "train/weights/best.safetensors").exists()


def test_one_class_training(shapes, tmp_path):
    metrics = YOLOLAT("yolo-lat-p").train(data=shapes, epochs=1, single_cls=True, project=tmp_path, **QUICK)
    assert metrics.result.class_ap.shape == (1, 10)
    again = YOLOLAT(tmp_path / "train/weights/best.pt").val(
        imgsz=64, device="cpu", plots=False, verbose=False, project=tmp_path
    )
    assert again.result.class_ap.shape == (1, 10)


@pytest.mark.parametrize("harm", ["label", "image", "yaml"])
def test_broken_data_leave_no_run_folder(txt_data, tmp_path, harm):
    shutil.copytree(txt_data.parent, tmp_path / "data")
    content = yaml.safe_load(txt_data.read_text()) | {"path": "."}
    (tmp_path / "data/data.yaml").write_text(yaml.safe_dump(content) if harm != "yaml" else "train: [")
    if harm == "label":
        (tmp_path / "data/labels/val/000003.txt").write_text("0 2 2 2 2")
    elif harm == "image":
        (tmp_path / "data/images/train/000003.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"000003\.(txt, line 1|jpg: broken)|data\.yaml, line 1"):
        YOLOLAT("yolo-lat-p").train(data=tmp_path / "data/data.yaml", epochs=1, project=tmp_path / "runs", **QUICK)
    assert not (tmp_path / "runs").exists()


def test_an_unknown_optimizer_is_refused(shapes, tmp_path):
    with pytest.raises(UserError, match="optimizer=Foo: must be one of auto, SGD, AdamW, MuSGD, "):
        YOLOLAT("yolo-lat-p").train(data=shapes, epochs=1, project=tmp_path, **{**QUICK, "optimizer": "Foo"})
    assert not list(tmp_path.iterdir())


GREY = [{"ToGray": {"p": 1.0}}]


class Colours:
    """Note for each epoch whether all of its batches are without colour, and with which of our transforms."""

    def __init__(self) -> None:
        self.grey: dict[int, bool] = {}

    def __call__(self, trainer) -> None:
        step, inner = trainer.preprocess_batch, self.grey

        def preprocess(batch):
            image = batch["img"]
            flat = bool((image[:, :1] == image).all())
            inner[trainer.epoch] = inner.get(trainer.epoch, True) and flat
            return step(batch)

        trainer.preprocess_batch = preprocess


def test_augmentations_of_a_recipe_are_applied_to_every_batch(shapes, tmp_path):
    pytest.importorskip("albumentations")
    found = {}
    for name, entries in (("with", GREY), ("without", None)):
        recipe = tmp_path / f"{name}.yaml"
        recipe.write_text(yaml.safe_dump({"augmentations": entries} if entries else {"epochs": 2}))
        model, colours = YOLOLAT("yolo-lat-p"), Colours()
        model.add_callback("on_train_start", colours)
        arguments = {**QUICK, "mosaic": 1.0, "close_mosaic": 1, "val": False}
        model.train(data=shapes, cfg=str(recipe), epochs=2, project=tmp_path, name=name, **arguments)
        found[name] = colours.grey
    assert found["with"] == {0: True, 1: True}  # the second epoch is without mosaic
    assert found["without"] == {0: False, 1: False}
    assert yaml.safe_load((tmp_path / "with/args.yaml").read_text())["augmentations"] == GREY
    assert not yaml.safe_load((tmp_path / "without/args.yaml").read_text())["augmentations"]


@pytest.mark.parametrize("way", first(1, ["path", "True"]))
def test_augmentations_go_on_after_an_interruption(shapes, tmp_path, way):
    albumentations = pytest.importorskip("albumentations")
    entries = ["HorizontalFlip", albumentations.ToGray(p=1)] if way == "path" else GREY
    model = YOLOLAT("yolo-lat-p")
    model.add_callback("on_model_save", Interrupted(1))
    with pytest.raises(KeyboardInterrupt):
        model.train(data=shapes, epochs=2, project=tmp_path, name="a", augmentations=entries, **QUICK)
    last = tmp_path / "a/weights/last.pt"
    model, colours = YOLOLAT(last if way == "True" else "yolo-lat-p"), Colours()
    model.add_callback("on_train_start", colours)
    model.train(resume=True if way == "True" else str(last))
    assert colours.grey == {1: True}


def test_broken_augmentations_leave_no_run_folder(shapes, tmp_path):
    pytest.importorskip("albumentations")
    for entries, message in (
        (
            ["ToGray", "Blurr"],
            r"augmentations, entry 2 \(Blurr\): no albumentations transform of that name; did you mean",
        ),
        ([{"RandomCrop": {"height": 32, "width": 32}}], r"entry 1 \(RandomCrop\): turns an image of 64x64x3 uint8"),
    ):
        with pytest.raises(UserError, match=message):
            YOLOLAT("yolo-lat-p").train(
                data=shapes, epochs=1, augmentations=entries, project=tmp_path / "runs", **QUICK
            )
        assert not (tmp_path / "runs").exists()
