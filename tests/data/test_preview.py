"""The preview shows what training sees."""

import random
import shutil

import cv2
import numpy as np
import pytest
import yaml

from yolo_lat.data import preview as module
from yolo_lat.data.preview import preview
from yolo_lat.errors import UserError

STILL = {"mosaic": 0.0, "translate": 0.0, "scale": 0.0, "fliplr": 0.0, "hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0}


def picture(file) -> np.ndarray:
    return cv2.imread(str(file))


def test_the_same_seed_gives_the_same_picture(shapes, tmp_path):
    files = []
    for state, seed in enumerate((3, 3, 4)):
        random.seed(state)  # what came before makes no difference
        np.random.seed(state)  # noqa: NPY002
        files.append(preview(shapes, 5, seed, 96, {"mixup": 0.5}, file=tmp_path / f"{state}.png"))
    same, again, other = map(picture, files)
    assert (same == again).all()
    assert (same != other).any()
    assert same.shape == (2 * 343 + 4, 3 * 324 + 4, 3)


def test_the_random_state_of_the_caller_stays(shapes, tmp_path):
    before = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    preview(shapes, 2, imgsz=96, file=tmp_path / "a.jpg")
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002


def test_boxes_and_names_are_those_of_the_sample(shapes, tmp_path, monkeypatch):
    drawn = []

    def note(image, boxes, labels, colours):
        drawn.append((image, boxes, labels))
        return image

    monkeypatch.setattr(module, "draw_boxes", note)
    pytest.importorskip("albumentations")
    recipe = {**STILL, "imgsz": 96}
    preview(shapes, 24, recipe=recipe, file=tmp_path / "a.png")
    straight, drawn = drawn, []
    preview(shapes, 24, recipe={**recipe, "augmentations": [{"HorizontalFlip": {"p": 1}}]}, file=tmp_path / "b.png")
    assert {name for _, _, labels in straight for name in labels} <= set(module.load_dataset(shapes).names)
    assert sum(len(labels) for _, _, labels in straight) > 24
    for (image, boxes, labels), (mirrored, moved, same) in zip(straight, drawn, strict=True):
        assert image.shape == (320, 320, 3)
        assert labels == same
        np.testing.assert_allclose(moved[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [320, 0, 320, 0], boxes, atol=1e-2)
        assert np.abs(image[:, ::-1].astype(int) - mirrored).mean() < 1


def test_colours_are_those_of_the_file(txt_data, tmp_path):
    shutil.copytree(txt_data.parent, tmp_path / "data")
    content = yaml.safe_load(txt_data.read_text()) | {"path": "."}
    (tmp_path / "data/data.yaml").write_text(yaml.safe_dump(content))
    for file in (tmp_path / "data/images/train").iterdir():
        cv2.imwrite(str(file), np.full((96, 96, 3), (250, 20, 20), np.uint8))
    made = picture(preview(tmp_path / "data/data.yaml", 1, recipe={**STILL, "imgsz": 96}, file=tmp_path / "a.png"))
    blue = np.abs(made.astype(int) - [250, 20, 20]).max(axis=2) < 8
    assert blue.mean() > 0.3


def test_the_first_mosaic_is_of_several_images_already(shapes, tmp_path, monkeypatch):
    loaded = []

    class Noted(module.LatDataset):
        def __getitem__(self, index):
            loaded.append(set(self.buffer))
            return super().__getitem__(index)

    build = module.build_dataset

    def noted(*arguments, **named):
        dataset = build(*arguments, **named)
        dataset.__class__ = Noted
        return dataset

    monkeypatch.setattr(module, "build_dataset", noted)
    preview(shapes, 6, imgsz=96, file=tmp_path / "a.jpg")
    assert len(loaded[0]) == 6


def test_more_samples_than_images_repeat_them(txt_data, tmp_path):
    file = preview(txt_data, 30, recipe={"imgsz": 96}, split="val", file=tmp_path / "a.webp")
    assert picture(file).shape == (5 * 343 + 4, 6 * 324 + 4, 3)


def test_one_class_is_named_as_in_training(shapes, tmp_path, monkeypatch):
    seen = set()
    monkeypatch.setattr(module, "draw_boxes", lambda image, boxes, labels, colours: seen.update(labels) or image)
    preview(shapes, 4, recipe={"imgsz": 96, "single_cls": True}, file=tmp_path / "a.jpg")
    assert seen == {"item"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"file": "a.gif"}, "unknown kind of picture"),
        ({"samples": 0}, "samples=0: give a number from 1 to 400"),
        ({"samples": 401}, "samples=401"),
        ({"imgsz": 100}, "imgsz=100 is not a multiple of 32"),
        ({"imgsz": 0}, "imgsz=0 is not a multiple"),
        ({"recipe": {"mosiac": 1.0}}, "recipe: 'mosiac' is not a valid"),
        ({"recipe": {"mosaic": 3.0}}, "recipe: .*mosaic"),
        ({"recipe": {"mosaic": "much"}}, "recipe: .*mosaic"),
        ({"recipe": {"augmentations": ["Blurr"]}}, "augmentations, entry 1"),
        ({"split": "test"}, "test"),
        ({"data": "nope"}, "nope"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(shapes, tmp_path, arguments, message):
    chosen = {"data": shapes, "imgsz": 96, **arguments}
    with pytest.raises(UserError, match=message):
        preview(**{**chosen, "file": tmp_path / chosen.get("file", "a.jpg")})
    assert not list(tmp_path.iterdir())
