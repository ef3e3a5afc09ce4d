"""Laws of a new division: a partition, exact sizes, near class shares, no leak, and the same for the same seed."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from awkward import awkward_coco, contents, read, shared
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from yolo_lat.data.registry import load_dataset
from yolo_lat.data.split import split_dataset, stratified
from yolo_lat.errors import UserError

SPLITS = ("train", "val", "test")


def refusal(*args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        split_dataset(*args, progress=False, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def boards(tmp_path):
    """60 images of 8x8 px, 12 of them in folder b; class 0 is in 55, class 1 in ten, five are empty."""
    root = tmp_path / "boards"
    for number in range(60):
        name = f"{'ab'[number % 5 == 0]}/{number}"
        for kind in ("images", "labels"):
            (root / kind / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(root / f"images/{name}.png")
        rows = "" if number >= 55 else "0 0.5 0.5 0.5 0.5\n" * (1 + number % 7) + "1 0.5 0.5 0.5 0.5\n" * (number < 10)
        (root / f"labels/{name}.txt").write_text(rows)
    (root / "data.yaml").write_text("train: images/a\nval: images/b\nnames: [cat, dog]\n")
    return root / "data.yaml"


def divided(data: Path, folder: Path, **options) -> dict[str, set[str]]:
    """Divide, and return the content of the images of each split, as hexadecimal text."""
    new = split_dataset(data, folder, progress=False, images="link", **options)
    return {split: {i.path.read_bytes().hex() for i in read(new, split).images} for split in load_dataset(new).splits}


@settings(max_examples=100)
@given(data=st.data())
def test_stratified_is_a_partition_of_exact_sizes(data):
    units, classes = data.draw(st.integers(1, 60)), data.draw(st.integers(0, 5))
    seed = data.draw(st.integers(0, 2**32))
    counts = np.random.default_rng(seed).poisson(0.7, (units, classes))
    first = data.draw(st.integers(0, units))
    room = [first, *([units - first] if units > first else [])]
    chosen = stratified(counts, [1] * units, room)
    assert np.bincount(chosen, minlength=len(room)).tolist() == room


def test_stratified_shares_every_class():
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.uniform(0.01, 0.3, 20), (1000, 20)) * rng.integers(1, 9, (1000, 20))
    room = [800, 100, 100]

    def off(labels: np.ndarray) -> np.ndarray:
        chosen = np.array(stratified(labels, [1] * 1000, room))
        tables = (counts, counts > 0)
        return np.array([[t[chosen == k].sum(0) - room[k] / 1000 * t.sum(0) for k in range(3)] for t in tables])

    boxes, images = np.abs(off(counts))
    by_chance = np.abs(off(counts[:, :0]))
    assert images.mean() < 0.6 * by_chance[1].mean()
    assert boxes.mean() < 0.5 * by_chance[0].mean()
    assert boxes.mean() < 0.7 * np.abs(off(np.minimum(counts, 1)))[0].mean()  # than when images alone are counted
    rare = (counts > 0).sum(0) < 50  # go first, so they come out best
    assert images[:, rare].max() < 1


def test_groups_stay_whole_and_sizes_near():
    sizes = [7, 5, 1, 1, 1, 1, 1, 1, 1, 1]
    chosen = np.array(stratified(np.ones((10, 1), int), sizes, [14, 6]))
    assert [sum(np.array(sizes)[chosen == split]) for split in (0, 1)] == [14, 6]


@pytest.mark.parametrize("stratify", [True, False])
def test_every_image_is_in_one_split_and_sizes_are_the_fractions(boards, tmp_path, stratify):
    parts = divided(boards, tmp_path / "new", stratify=stratify)
    assert {split: len(images) for split, images in parts.items()} == {"train": 48, "val": 6, "test": 6}
    before = contents(boards.parent)
    assert len(set.union(*parts.values())) == 60 == len(before)
    assert contents(tmp_path / "new") == before


@settings(max_examples=30)
@given(shares=st.tuples(st.floats(0.05, 1), st.floats(0.05, 1), st.floats(0.05, 1)))
def test_sizes_are_within_one_image_of_any_fractions(shares, tmp_path_factory):
    from yolo_lat.data.split import _whole_shares

    fractions = [share / sum(shares) for share in shares]
    for total in (3, 10, 997):
        whole = _whole_shares(total, fractions)
        assert sum(whole) == total
        assert all(abs(one - total * fraction) < 1 for one, fraction in zip(whole, fractions, strict=True))
    assert _whole_shares(30, [0.8, 0.1, 0.1]) == [24, 3, 3]


def test_classes_and_empty_images_are_shared(boards, tmp_path):
    new = split_dataset(boards, tmp_path / "new", {"train": 0.6, "val": 0.4}, progress=False)
    dogs = {split: sum(1 in i.class_ids for i in read(new, split).images) for split in ("train", "val")}
    cats = {split: sum(int((i.class_ids == 0).sum()) for i in read(new, split).images) for split in ("train", "val")}
    assert dogs == {"train": 6, "val": 4}
    assert abs(cats["train"] - 0.6 * sum(cats.values())) < 4


def test_classes_too_rare_for_every_split_are_named(boards, tmp_path):
    for number in range(2, 10):
        for folder in "ab":
            label = boards.parent / f"labels/{folder}/{number}.txt"
            if label.exists():
                label.write_text("0 0.5 0.5 0.5 0.5\n")
    notes: list[str] = []
    split_dataset(boards, tmp_path / "new", progress=False, note=notes.append)
    assert notes == [
        "data val: has no box of dog; there are too few",
        "data test: has no box of dog; there are too few",
    ]


def test_the_seed_decides_and_nothing_else(boards, tmp_path):
    one = divided(boards, tmp_path / "one", seed=1)
    assert one == divided(boards, tmp_path / "same", seed=1)
    assert one != divided(boards, tmp_path / "other", seed=2)
    content = yaml.safe_load(boards.read_text())
    turned = boards.with_name("turned.yaml")
    turned.write_text(yaml.safe_dump(content | {"train": "images/b", "val": "images/a"}))
    assert one == divided(turned, tmp_path / "reversed", seed=1)
    files = [split_dataset(data, tmp_path / data.stem, format="coco", progress=False) for data in (boards, turned)]
    jsons = [[(file.parent / f"annotations/{split}.json").read_text() for split in SPLITS] for file in files]
    assert jsons[0] == jsons[1]
    boards.parent.rename(tmp_path / "moved")
    assert one == divided(tmp_path / "moved/data.yaml", tmp_path / "moved-split", seed=1)


def test_one_folder_for_train_and_val_counts_once(boards, tmp_path):
    data = boards.with_name("one.yaml")
    data.write_text("train: images\nval: [images/b, images/a]\nnames: [cat, dog]\n")
    (boards.parent / "linked").symlink_to(boards.parent / "images")
    parts = divided(data, tmp_path / "new")
    assert [len(parts[split]) for split in SPLITS] == [48, 6, 6]
    assert len(set.union(*parts.values())) == 60


def test_equal_files_go_into_one_split(boards, tmp_path):
    for number in range(1, 20):
        original = boards.parent / f"images/a/{number}.png"
        if original.exists():
            (boards.parent / f"images/b/copy of {number}.png").write_bytes(original.read_bytes())
    for seed in range(3):
        parts = divided(boards, tmp_path / f"new{seed}", seed=seed)
        assert sum(map(len, parts.values())) == 60 == len(set.union(*parts.values()))
        assert sum(contents(tmp_path / f"new{seed}").values()) == 60 + 16


def test_folders_stay_together_if_asked_for(boards, tmp_path):
    fractions = {"train": 0.8, "val": 0.2}
    data = boards.with_name("one.yaml")
    data.write_text("train: images\nval: images\nnames: [cat, dog]\n")
    new = split_dataset(data, tmp_path / "new", fractions, group="folder", progress=False)
    for split, folder, count in (("train", "a", 48), ("val", "b", 12)):
        images = read(new, split).images
        assert len(images) == count
        assert {image.path.parent.name for image in images} == {folder}
    assert "split test would be empty" in refusal(data, tmp_path / "x", group="folder")


def test_equal_names_in_two_splits_do_not_collide(boards, tmp_path):
    (boards.parent / "images/b/1.png").write_bytes((boards.parent / "images/b/5.png").read_bytes() + b"\0")
    parts = divided(boards, tmp_path / "new")
    assert sum(map(len, parts.values())) == 61
    places = {
        str(f.relative_to(tmp_path / "new/images").as_posix()).split("/", 1)[1]
        for f in tmp_path.rglob("new/images/*/*/*.png")
    }
    assert {"a/1.png", "b/1.png"} <= places


@pytest.mark.parametrize("format", ["coco", "yolo", "voc"])
def test_boxes_come_along_in_every_format(tmp_path, format):
    data = awkward_coco(tmp_path, crowds=False)
    new = split_dataset(data, tmp_path / "new", {"train": 0.5, "val": 0.5}, format=format, progress=False)
    assert load_dataset(new).format == format

    def boxes(file: Path, splits) -> dict[bytes, list]:
        images = (image for split in splits for image in read(file, split).images)
        return {i.path.read_bytes() + bytes([len(i.class_ids)]): [i.class_ids.tolist(), i.boxes_xywh] for i in images}

    before, after = boxes(data, ("train", "val")), boxes(new, ("train", "val"))
    assert before.keys() == after.keys()
    for key, (class_ids, found) in before.items():
        assert class_ids == after[key][0]
        np.testing.assert_allclose(found, after[key][1], rtol=0, atol=1e-9)


def test_coco_ids_are_made_unique_and_licences_kept(tmp_path):
    data = awkward_coco(tmp_path)  # both files have the same ids
    new = split_dataset(data, tmp_path / "new", {"train": 0.5, "val": 0.5, "test": 0}, progress=False)
    contents = [json.loads((tmp_path / f"new/annotations/{split}.json").read_text()) for split in ("train", "val")]
    assert sorted(row["id"] for content in contents for row in content["images"]) == list(range(1, 15))
    assert all(content["licenses"] == [{"id": 4, "name": "CC BY"}] for content in contents)
    assert all(row["license"] == 4 for content in contents for row in content["images"])
    assert [row["id"] for row in contents[0]["categories"]] == [5, 8, 11, 14]
    assert set(load_dataset(new).splits) == {"train", "val"}


def test_an_image_with_different_boxes_in_two_splits_is_refused(tmp_path):
    data = awkward_coco(tmp_path)
    data.write_text(data.read_text().replace("images/val", "images/train"))
    assert "a.jpg: is in two splits with different boxes" in refusal(data, tmp_path / "new")


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (
            {"fractions": {"train": 0.8, "val": 0.1}},
            "train=0.8, val=0.1: shares of the images must be above 0 and add up",
        ),
        ({"fractions": {"train": 1.1, "val": -0.1}}, "must be above 0"),
        ({"fractions": {"train": 1.0}}, "fractions of train: give train, val and, if wanted, test"),
        ({"fractions": {"train": 0.5, "val": 0.4, "dev": 0.1}}, "give train, val"),
        ({"fractions": {"train": 0.999, "val": 0.001}}, "60 images are too few for 2 splits"),
        ({"group": "class"}, "group=class: use group=folder"),
        ({"format": "voc2"}, "format=voc2"),
    ],
)
def test_what_cannot_be_is_refused(boards, tmp_path, options, wanted):
    assert wanted in refusal(boards, tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "name", ["coco_ccby", *(pytest.param(name, marks=pytest.mark.slow) for name in ("voc12", "groceries"))]
)
def test_real_classes_are_shared_better_than_at_random(tmp_path, name):
    data = shared(name, tmp_path)

    def deviation(**options) -> tuple[float, float]:
        folder = tmp_path / f"{options}"
        new = split_dataset(data, folder, images="link", progress=False, **options)
        classes = len(load_dataset(new).names)
        tables = [np.array([np.bincount(i.class_ids, minlength=classes) for i in read(new, s).images]) for s in SPLITS]
        result = []
        for per_class in ([table.sum(0) for table in tables], [(table > 0).sum(0) for table in tables]):
            total = sum(per_class)
            off = [np.abs(part - share * total) for part, share in zip(per_class, (0.8, 0.1, 0.1), strict=True)]
            result.append(float(np.mean(off)))
        return result[0], result[1]

    (boxes, images), (random_boxes, random_images) = deviation(), deviation(stratify=False)
    assert images < 0.6
    assert boxes < random_boxes
    assert images < random_images
