"""Augmentation by recipe: boxes follow their objects, the same seed gives the same samples, and mistakes are told."""

import pickle
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from ultralytics.cfg import get_cfg
from ultralytics.data.build import build_dataloader
from ultralytics.utils.instance import Instances

from yolo_lat.data import augment as module
from yolo_lat.data import dataset as dataset_module
from yolo_lat.data.augment import Augmentations, build_augmentations, check_augmentations
from yolo_lat.data.dataset import LatDataset, build_dataset
from yolo_lat.data.labels import DetectionSplit, image_labels
from yolo_lat.errors import UserError

A = pytest.importorskip("albumentations")

SIDE = 96
# What Ultralytics does by itself, switched off.
STILL = {
    "mosaic": 0.0,
    "translate": 0.0,
    "scale": 0.0,
    "fliplr": 0.0,
    "hsv_h": 0.0,
    "hsv_s": 0.0,
    "hsv_v": 0.0,
}
SPATIAL = [
    {"Affine": {"scale": [0.5, 1.8], "rotate": [-40, 40], "translate_percent": [-0.3, 0.3], "p": 1}},
    {"Rotate": {"limit": 90, "p": 1}},
    {"RandomResizedCrop": {"size": [SIDE, SIDE], "scale": [0.2, 1.0], "p": 1}},
    {"RandomSizedBBoxSafeCrop": {"height": SIDE, "width": SIDE, "p": 1}},
    {"Perspective": {"scale": [0.05, 0.2], "p": 1}},
    {"D4": {"p": 1}},
    {"Transpose": {"p": 1}},
    {"CropAndPad": {"percent": [-0.3, 0.3], "p": 1}},
    {
        "Sequential": {
            "transforms": [
                {"RandomCrop": {"height": 60, "width": 60, "p": 1}},
                {"Resize": {"height": SIDE, "width": SIDE, "p": 1}},
            ],
            "p": 1,
        }
    },
    {"OneOf": {"transforms": ["HorizontalFlip", {"VerticalFlip": None}, {"SafeRotate": {"limit": 45}}], "p": 1}},
]


def sample(boxes_px, classes=None, image=None) -> dict:
    """A sample as it reaches the augmentations: boxes as corners in pixels."""
    boxes = np.array(boxes_px, dtype=np.float32).reshape(-1, 4)
    classes = np.arange(len(boxes)) if classes is None else np.array(classes)
    return {
        "img": np.zeros((SIDE, SIDE, 3), np.uint8) if image is None else image,
        "cls": classes.astype(np.float32).reshape(-1, 1),
        "instances": Instances(boxes, np.zeros((0, 1000, 2), np.float32), bbox_format="xyxy", normalized=False),
    }


def corners(labels: dict) -> np.ndarray:
    """The boxes of a sample in pixels."""
    instances = labels["instances"]
    instances.convert_bbox("xyxy")
    instances.denormalize(SIDE, SIDE)
    return instances.bboxes


def split_of(tmp_path: Path, count: int = 1) -> DetectionSplit:
    """Images of 64 px, grey but for a blue square; its box has class 1."""
    images = []
    for number in range(count):
        picture = np.full((64, 64, 3), 120, np.uint8)
        picture[8:24, 4:36] = (255, 0, 0)
        cv2.imwrite(str(tmp_path / f"{number:03}.png"), picture)
        images.append(image_labels(tmp_path / f"{number:03}.png", number + 1, (64, 64), [1], [[4, 8, 32, 16]]))
    return DetectionSplit("test", ("a", "b"), (1, 2), images)


def dataset_of(tmp_path: Path, entries, count: int = 1, **arguments) -> LatDataset:
    hyp = get_cfg(overrides={"imgsz": 64, **STILL, **arguments, "augmentations": entries})
    return build_dataset(split_of(tmp_path, count), hyp, batch=2, stride=32)


class TestSamples:
    def test_a_flip_mirrors_image_and_boxes(self):
        image = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
        given_boxes = [[0, 10, 20, 30], [50.5, 60, 96, 96]]
        labels = Augmentations(build_augmentations([{"HorizontalFlip": {"p": 1}}]))(sample(given_boxes, [3, 7], image))
        np.testing.assert_array_equal(labels["img"], image[:, ::-1])
        np.testing.assert_allclose(corners(labels), [[76, 10, 96, 30], [0, 60, 45.5, 96]], atol=1e-4)
        assert labels["cls"].tolist() == [[3], [7]]

    def test_a_flip_in_the_data_set_mirrors_as_computed_by_hand(self, tmp_path):
        item = dataset_of(tmp_path, [{"HorizontalFlip": {"p": 1}}])[0]
        np.testing.assert_allclose(item["bboxes"], [[1 - 20 / 64, 16 / 64, 0.5, 0.25]], atol=1e-6)
        assert item["cls"].tolist() == [[1]]
        assert item["img"][2, 16, 64 - 20] == 255  # blue; the tensor is RGB
        assert item["img"][0, 16, 64 - 20] == 0
        assert item["img"].is_contiguous()

    @settings(max_examples=120)
    @given(
        entry=st.sampled_from(SPATIAL),
        seed=st.integers(0, 10**6),
        box=st.tuples(*[st.integers(0, SIDE - 12)] * 2, *[st.integers(8, 60)] * 2),
    )
    def test_boxes_stay_in_the_image_and_around_their_object(self, entry, seed, box):
        x, y, w, h = box
        x2, y2 = min(x + w, SIDE), min(y + h, SIDE)
        image = np.zeros((SIDE, SIDE, 3), np.uint8)
        image[y:y2, x:x2] = 255
        random.seed(seed)
        labels = Augmentations(build_augmentations([entry]))(sample([[x, y, x2, y2]], [5], image))
        boxes = corners(labels)
        assert labels["img"].shape == image.shape
        assert labels["cls"].shape == (len(boxes), 1)
        assert (boxes >= 0).all()
        assert (boxes <= SIDE).all()
        assert (boxes[:, 2:] - boxes[:, :2] >= 2 - 1e-3).all()
        bright = np.argwhere(labels["img"][..., 0] > 200)[:, ::-1]  # x, y
        if len(boxes):
            assert labels["cls"].tolist() == [[5]]
            assert (bright + 0.5 >= boxes[0, :2] - 1.5).all()
            assert (bright + 0.5 <= boxes[0, 2:] + 1.5).all()
        else:
            # Less than a tenth of it is visible, but it may be enlarged fivefold.
            assert len(bright) < 0.25 * SIDE * SIDE, "a visible object lost its box"

    def test_labels_of_boxes_that_vanish_go_with_them(self):
        crop = {"Crop": {"x_min": 48, "y_min": 0, "x_max": 96, "y_max": 48, "p": 1}}
        whole = {"Sequential": {"transforms": [crop, {"Resize": {"height": 96, "width": 96, "p": 1}}], "p": 1}}
        boxes = [[0, 0, 40, 40], [60, 10, 70, 20], [10, 60, 90, 90], [19, 20, 51, 52], [50, 0, 96, 40]]
        labels = Augmentations(build_augmentations([whole]))(sample(boxes, [9, 8, 7, 6, 5]))
        # Of the fourth, 3 by 28 of 32 by 32 pixels are left: less than a tenth.
        assert labels["cls"].tolist() == [[8], [5]]
        np.testing.assert_allclose(corners(labels), [[24, 20, 44, 40], [4, 0, 96, 80]], atol=1e-3)

    def test_all_boxes_may_vanish_and_none_may_be_there(self):
        crop = {"Crop": {"x_min": 48, "y_min": 48, "x_max": 96, "y_max": 96, "p": 1}}
        whole = {"Sequential": {"transforms": [crop, {"Resize": {"height": 96, "width": 96, "p": 1}}], "p": 1}}
        augment = Augmentations(build_augmentations([whole]))
        for boxes in ([[0, 0, 40, 40]], []):
            labels = augment(sample(boxes))
            assert labels["cls"].shape == (0, 1)
            assert corners(labels).shape == (0, 4)
            assert labels["cls"].dtype == np.float32

    @settings(max_examples=200)
    @given(data=st.data())
    def test_pixel_transforms_leave_every_box_as_it_is(self, data):
        edges = st.floats(0, SIDE, width=32)
        boxes = []
        for _ in range(data.draw(st.integers(0, 5))):
            (x1, x2), (y1, y2) = (sorted((data.draw(edges), data.draw(edges))) for _ in range(2))
            if x2 - x1 > 2.01 and y2 - y1 > 2.01:
                boxes.append([x1, y1, x2, y2])
        labels = Augmentations(build_augmentations([{"RandomBrightnessContrast": {"p": 1}}]))(sample(boxes))
        np.testing.assert_allclose(corners(labels), np.array(boxes).reshape(-1, 4), atol=1e-4)
        assert labels["cls"].ravel().tolist() == list(range(len(boxes)))

    def test_boxes_that_stick_out_are_cut_first(self):
        labels = sample([[0, 0, SIDE, SIDE]])
        labels["instances"] = Instances(
            np.array([[-0.5, -3e-7, 0.5, 1 + 3e-7]], np.float32),
            np.zeros((0, 1000, 2), np.float32),
            bbox_format="xyxy",
            normalized=True,
        )
        # Moved right by half the image, a box that was not cut would come into sight in full.
        move = {"Affine": {"translate_px": {"x": [48, 48], "y": [0, 0]}, "p": 1}}
        found = Augmentations(build_augmentations([move]))(labels)
        np.testing.assert_allclose(corners(found), [[48, 0, SIDE, SIDE]], atol=1e-3)

    def test_transforms_draw_independently(self):
        # With Ultralytics' own class these two flips happen together or not at all.
        augment = Augmentations(build_augmentations([{"HorizontalFlip": {"p": 0.5}}, {"VerticalFlip": {"p": 0.5}}]))
        image = np.zeros((SIDE, SIDE, 3), np.uint8)
        image[0, 0] = 255
        random.seed(0)
        found = [tuple(np.argwhere(augment(sample([], image=image))["img"][..., 0])[0]) for _ in range(200)]
        counts = [found.count((y, x)) for y in (0, SIDE - 1) for x in (0, SIDE - 1)]
        assert min(counts) > 25
        assert sum(counts) == 200

    def test_an_image_that_changes_its_size_now_and_then_is_an_error(self):
        transforms = [A.OneOf([A.NoOp(), A.RandomCrop(50, 50)], p=1)]
        augment = Augmentations(transforms)
        random.seed(0)

        def draw():
            return [augment(sample([[0, 0, 9, 9]])) for _ in range(50)]

        with pytest.raises(UserError, match="turns an image of 96x96x3 uint8 into one of 50x50x3 uint8; put it with"):
            draw()


class TestSeeds:
    NOISE = [{"RandomBrightnessContrast": {"p": 0.7}}, {"GaussNoise": {"p": 0.5}}]  # noqa: RUF012

    def test_the_same_seed_gives_the_same_sample(self, tmp_path):
        def drawn(seed):
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            torch.manual_seed(seed)
            dataset = dataset_of(tmp_path, self.NOISE, count=4, mosaic=1.0)
            return torch.stack([dataset[i]["img"] for i in range(4)])

        assert torch.equal(drawn(1), drawn(1))
        assert not torch.equal(drawn(1), drawn(2))

    def test_workers_differ_and_repeat_themselves(self, tmp_path):
        dataset = dataset_of(tmp_path, [{"GaussNoise": {"p": 1}}], count=8)

        def epoch():
            torch.manual_seed(7)
            loader = build_dataloader(dataset, batch=2, workers=2, shuffle=False)
            return [batch["img"] for batch in loader]

        first, second = epoch(), epoch()
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        pictures = [image for batch in first for image in batch]
        assert len({picture.numpy().tobytes() for picture in pictures}) == 8

    def test_the_dry_run_leaves_random_numbers_alone(self):
        state = random.getstate()
        check_augmentations(["HorizontalFlip"], 64)
        assert random.getstate() == state


class TestDataSet:
    def test_grey_is_grey_and_stays_when_mosaic_is_closed(self, tmp_path):
        dataset = dataset_of(tmp_path, [{"ToGray": {"p": 1}}], count=4, mosaic=1.0)
        for _ in range(2):
            image = dataset[0]["img"]
            assert torch.equal(image[0], image[1])
            assert torch.equal(image[0], image[2])
            dataset.close_mosaic(get_cfg(overrides={**STILL, "augmentations": [{"ToGray": {"p": 1}}]}))

    def test_without_augmentations_there_are_none(self, tmp_path):
        for entries in (None, []):
            steps = dataset_of(tmp_path, entries).transforms.transforms
            assert not any(isinstance(step, Augmentations) for step in steps)
            still = [step for step in steps if type(step).__name__ == "Albumentations"]
            assert not still[0].transform.transforms

    def test_validation_is_not_augmented(self, tmp_path):
        hyp = get_cfg(overrides={"imgsz": 64, "augmentations": ["ToGray"]})
        dataset = build_dataset(split_of(tmp_path), hyp, 2, 32, augment=False)
        assert [type(step).__name__ for step in dataset.transforms.transforms] == ["LetterBox", "Format"]

    def test_arguments_are_left_as_they_were(self, tmp_path):
        hyp = get_cfg(overrides={"imgsz": 64, **STILL, "mosaic": 1.0, "rect": True, "augmentations": ["ToGray"]})
        build_dataset(split_of(tmp_path), hyp, 2, 32)
        assert hyp.augmentations == ["ToGray"]
        assert hyp.mosaic == 1.0

    def test_an_engine_without_a_place_for_them_is_an_error(self, tmp_path, monkeypatch):
        class Other:
            """What a later Ultralytics might use instead."""

        monkeypatch.setattr(dataset_module, "Albumentations", Other)
        with pytest.raises(UserError, match="this Ultralytics has no place for them"):
            dataset_of(tmp_path, ["ToGray"])

    def test_it_travels_to_other_processes(self):
        augment = pickle.loads(pickle.dumps(Augmentations(build_augmentations(["HorizontalFlip"]))))
        assert augment(sample([[0, 0, 9, 9]]))["cls"].shape == (1, 1)


class TestForms:
    RECIPE = """
augmentations:
  - RandomBrightnessContrast: {brightness_limit: 0.2, contrast_limit: 0.2, p: 0.3}
  - OneOf:
      p: 0.2
      transforms:
        - Blur: {blur_limit: 3}
        - MedianBlur: {blur_limit: 3}
  - HorizontalFlip
  - VerticalFlip:
"""

    def test_a_recipe_is_built_as_written(self):
        entries = yaml.safe_load(self.RECIPE)["augmentations"]
        light, one_of, flip, other = build_augmentations(entries)
        assert (light.brightness_limit, light.contrast_limit, light.p) == ((-0.2, 0.2), (-0.2, 0.2), 0.3)
        assert [type(t) for t in one_of.transforms] == [A.Blur, A.MedianBlur]
        assert (one_of.p, one_of.transforms[0].blur_limit) == (0.2, (3, 3))
        assert (type(flip), flip.p, type(other)) == (A.HorizontalFlip, 0.5, A.VerticalFlip)
        data = check_augmentations(entries, 64)
        assert data == [*entries[:2], {"HorizontalFlip": {}}, {"VerticalFlip": None}]
        assert [A.to_dict(t) for t in build_augmentations(data)] == [A.to_dict(t) for t in build_augmentations(entries)]

    @pytest.mark.parametrize("entries", [None, [], ()])
    def test_no_entries_need_no_albumentations(self, entries, monkeypatch):
        monkeypatch.setitem(sys.modules, "albumentations", None)
        assert build_augmentations(entries) == []
        assert check_augmentations(entries, 64) == []

    def test_objects_and_their_dicts_are_taken_and_become_data(self):
        made = A.OneOf([A.Blur(p=0.3), A.HorizontalFlip(p=1)], p=0.4)
        for entry in (made, A.to_dict(made)):
            data = check_augmentations(["ToGray", entry], 64)
            assert data == [{"ToGray": {}}, A.to_dict(made)]
            assert yaml.safe_load(yaml.safe_dump(data))[0] == {"ToGray": {}}
            assert A.to_dict(build_augmentations(data)[1]) == A.to_dict(made)

    def test_checking_leaves_an_object_as_it_was(self):
        made = A.Sequential([A.Blur(p=0.3)], p=0.4)
        check_augmentations([made], 64)
        assert (made.p, made.transforms[0].p) == (0.4, 0.3)


ERRORS = {
    "no list": ("Blur", r"augmentations: 'Blur' is no list of transforms; write one with a dash"),
    "mapping": ({"Blur": {}}, r"augmentations: \{'Blur': \{\}\} is no list"),
    "unknown": (
        ["ToGray", {"Blurr": {"p": 1}}],
        r"entry 2 \(Blurr\): no albumentations transform of that name; did you mean 'Blur'\?$",
    ),
    "far off": (["qqq"], r"entry 1 \(qqq\): no albumentations transform of that name; see the list"),
    "a base class": (["DualTransform"], "no albumentations transform of that name"),
    "a class of other kind": (["BboxParams"], "no albumentations transform of that name"),
    "a module": (["core"], "no albumentations transform of that name"),
    "unknown argument": (
        [{"Blur": {"blur_limits": 3}}],
        r"entry 1 \(Blur\): has no argument 'blur_limits'; did you mean 'blur_limit'\?$",
    ),
    "argument far off": ([{"HorizontalFlip": {"xyz": 3}}], r"has no argument 'xyz'; it takes p$"),
    "strict": ([{"Blur": {"strict": True}}], "has no argument 'strict'"),
    "wrong value": (
        [{"Blur": {"blur_limit": "x", "p": 7}}],
        r"entry 1 \(Blur\): p: Input should be less than or equal to 1, blur_limit: Input should be.*; correct its",
    ),
    "missing value": (["RandomCrop"], "height: Field required, width: Field required; correct its arguments"),
    "no arguments": ([{"Blur": [3]}], r"entry 1 \(Blur\): \[3\] are no arguments"),
    "not indented": ([{"Blur": None, "p": 0.2}], "entry 1: has the keys Blur, p; one name belongs there"),
    "empty": ([{}], "entry 1: has the keys ;"),
    "number": ([3], "entry 1: 3 is no transform"),
    "function": ([abs], "entry 1: .* is no transform"),
    "nested": (
        ["ToGray", {"OneOf": {"transforms": ["Blur", "Blurr"]}}],
        r"augmentations, entry 2 \(OneOf\), transform 2 \(Blurr\): no albumentations transform",
    ),
    "nothing nested": (["OneOf"], r"entry 1 \(OneOf\): None is no list of transforms"),
    "nested empty": ([{"OneOf": {"transforms": []}}], r"\[\] is no list of transforms"),
    "lambda by name": (["Lambda"], r"entry 1 \(Lambda\): holds functions, which a checkpoint cannot keep"),
    "compose": ([{"Compose": {"transforms": ["Blur"]}}], r"\(Compose\): settles boxes and seeds by itself; use Sequ"),
    "metadata": (["MaskDropout"], r"\(MaskDropout\): needs the input mask, which training does not have"),
    "references": (["FDA"], "needs the input fda_metadata"),
    "mosaic": (["Mosaic"], "needs the input mosaic_metadata"),
    "without boxes": (["CubicSymmetry"], r"\(CubicSymmetry\): moves pixels but cannot move boxes with them"),
    "size": (
        [{"RandomCrop": {"height": 32, "width": 32, "p": 0.01}}],
        r"\(RandomCrop\): turns an image of 64x64x3 uin",
    ),
    "size at times": (["BBoxSafeRandomCrop"], r"\(BBoxSafeRandomCrop\): turns an image of 64x64x3 uint8 into one of"),
    "a rare branch": (
        [{"OneOf": {"transforms": ["Blur", "ToGray", {"RandomScale": {"p": 0.05}}]}}],
        r"entry 1 \(OneOf\): turns an image",
    ),
    "type": (["Normalize"], r"\(Normalize\): turns an image of 64x64x3 uint8 into one of 64x64x3 float32"),
    "tensor": (["ToTensorV2"], r"\(ToTensorV2\): turns an image of 64x64x3 uint8 into one of 3x64x64 torch.uint8"),
    "fails": (
        [{"Crop": {"x_min": 0, "y_min": 0, "x_max": 99, "y_max": 99}}],
        r"\(Crop\): fails on an image of 64 pixels \(Values for crop should be .*\); drop or mend it",
    ),
    "lambda": ([A.Lambda(name="x", image=lambda image, **_: image)], r"\(Lambda\): holds functions"),
    "nested lambda": ([A.OneOf([A.Blur(), A.Lambda(name="x")])], r"entry 1 \(Lambda\): holds functions"),
    "compose object": ([A.Compose([A.Blur()])], r"\(Compose\): settles boxes and seeds"),
    "stored": (
        [{"__version__": "2.0.8", "transform": {"__class_fullname__": "Nope"}}],
        "entry 1: albumentations cannot",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_mistakes_are_told_with_their_place(case):
    entries, message = ERRORS[case]
    with pytest.raises(UserError, match=message) as caught:
        check_augmentations(entries, 64)
    text = str(caught.value)
    assert text.startswith("augmentations")
    assert "\n" not in text


class OwnFailure(A.ImageOnlyTransform):
    """A transform of a user's own that cannot be written as data."""

    def __init__(self, function, p=0.5):
        super().__init__(p=p)
        self.function = function

    def apply(self, image, **_):
        return self.function(image)

    def to_dict_private(self):
        raise NotImplementedError("has a function inside")  # how albumentations is told that there is no such form


def test_what_a_checkpoint_cannot_keep_is_refused():
    with pytest.raises(UserError, match=r"\(OwnFailure\): cannot be kept in a checkpoint \(has a function inside\)"):
        check_augmentations([OwnFailure(lambda image: image)], 64)


def test_a_missing_albumentations_is_told_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "albumentations", None)
    with pytest.raises(UserError, match=r"need albumentations \(.*\); pip install 'yolo-lat\[augment\]'"):
        build_augmentations(["Blur"])


@pytest.mark.parametrize("version", ["1.4.24", "2.0.7", "2.0.14", "2.5.1"])
def test_other_versions_and_the_fork_are_refused(monkeypatch, version):
    monkeypatch.setattr(module.importlib, "import_module", lambda _: SimpleNamespace(__version__=version))
    with pytest.raises(UserError, match=rf"need albumentations 2\.0\.8, its last release, not {version}; uninstall"):
        build_augmentations(["Blur"])
