"""The sheet of a data set: which images are on it, what is drawn, and what is refused."""

import numpy as np
import pytest
from awkward import NAMES, awkward_coco, read
from PIL import Image

import yolo_lat.data.show as module
from yolo_lat.data.convert import convert
from yolo_lat.data.show import show
from yolo_lat.errors import UserError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return awkward_coco(tmp_path_factory.mktemp("data"), seed=3)


@pytest.fixture
def sheet(monkeypatch):
    """Record what is drawn: titles, and labels with their boxes."""
    drawn: dict[str, list] = {"titles": [], "tiles": []}
    draw_boxes, contact_sheet = module.draw_boxes, module.contact_sheet

    def boxes(image, corners, labels, colours):
        drawn["tiles"].append((image.shape, np.asarray(corners), labels, colours))
        return draw_boxes(image, corners, labels, colours)

    def tiles(pictures, titles, *rest):
        drawn["titles"] = titles
        return contact_sheet(pictures, titles, *rest)

    monkeypatch.setattr(module, "draw_boxes", boxes)
    monkeypatch.setattr(module, "contact_sheet", tiles)
    return drawn


def test_every_kind_of_image_is_drawn_with_its_boxes_where_they_are(data, tmp_path, sheet):
    file = show(data, file=tmp_path / "sheet.png", side=120, progress=False)
    with Image.open(file) as picture:
        assert picture.width > 3 * 120
    images = read(data).images
    assert sheet["titles"] == [str(i.path.relative_to(data.parent / "images/train")) for i in images]
    for image, (shape, corners, labels, colours) in zip(images, sheet["tiles"], strict=True):
        ratio = 120 / max(image.width, image.height)
        assert shape[:2] == (round(image.height * ratio), round(image.width * ratio))  # EXIF turned as annotated
        words = [NAMES[c] + " (crowd)" * bool(crowd) for c, crowd in zip(image.class_ids, image.crowd, strict=True)]
        assert sorted(labels) == sorted(words)
        wanted = dict(zip(map(tuple, (image.boxes_xyxy * ratio).round(6)), words, strict=True))
        assert dict(zip(map(tuple, corners.round(6)), labels, strict=True)) == wanted
        assert [colour == (200, 200, 200) for colour in colours] == ["(crowd)" in label for label in labels]
        assert (
            sorted(labels, key=lambda label: "(crowd)" not in label)[: image.crowd.sum()] == labels[: image.crowd.sum()]
        )


def test_the_seed_chooses(data, tmp_path, sheet):
    chosen = []
    for seed in (0, 0, 1, 2, 3):
        show(data, samples=3, seed=seed, file=tmp_path / "sheet.jpg", progress=False)
        assert len(sheet["titles"]) == 3
        chosen.append(tuple(sheet["titles"]))
    assert chosen[0] == chosen[1]
    assert len(set(chosen)) > 1


def test_only_the_chosen_images_are_read(data, tmp_path, sheet, monkeypatch):
    show(data, samples=2, file=tmp_path / "sheet.jpg", progress=False)
    chosen = set(sheet["titles"])
    (tmp_path / "copy").mkdir()
    copy = awkward_coco(tmp_path / "copy", seed=3)
    for file in (tmp_path / "copy/images/train").rglob("*.*"):
        if file.relative_to(tmp_path / "copy/images/train").as_posix() not in chosen:
            file.write_bytes(b"broken")
    show(copy, samples=2, file=tmp_path / "sheet.jpg", progress=False)
    with pytest.raises(UserError, match="broken image"):
        show(copy, samples=7, file=tmp_path / "sheet.jpg", progress=False)


def test_only_the_classes_asked_for(data, tmp_path, sheet):
    show(data, classes=NAMES[1], file=tmp_path / "sheet.jpg", progress=False)
    assert {label.removesuffix(" (crowd)") for _, _, labels, _ in sheet["tiles"] for label in labels} == {NAMES[1]}
    assert len(sheet["titles"]) == sum(1 in image.class_ids for image in read(data).images)
    show(data, classes=NAMES[:2], samples=1, file=tmp_path / "sheet.jpg", progress=False)
    assert len(sheet["titles"]) == 1


def test_a_part_of_a_data_set_is_sampled_within(data, tmp_path, sheet):
    part = data.with_name("part.yaml")
    part.write_text(data.read_text() + "subset: {train: 2, seed: 5}\n")
    show(part, file=tmp_path / "sheet.jpg", progress=False)
    assert sheet["titles"] == [str(i.path.relative_to(data.parent / "images/train")) for i in read(part).images]


def test_samples_without_labels_are_no_fault(data, tmp_path, sheet):
    new = convert(data, tmp_path / "new", "yolo", crowd="drop", progress=False)
    for file in (tmp_path / "new/labels/train").rglob("a.txt"):
        file.write_text("")
    seeds = range(12)
    for seed in seeds:
        show(new, samples=1, seed=seed, file=tmp_path / "sheet.jpg", progress=False)
    (tmp_path / "new/labels/train/a.txt").write_text("0 5 5 5 5\n")
    with pytest.raises(UserError, match="line 1: coordinates must lie between"):
        show(new, samples=7, file=tmp_path / "sheet.jpg", progress=False)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"classes": "Katse"}, "classes=Katse: is no class of data; did you mean 'Katze'?"),
        ({"samples": 0}, "samples=0: give 1 or more"),
        ({"file": "sheet.txt"}, "sheet.txt: unknown kind of picture"),
        ({"split": "tset"}, "has no split 'tset'"),
    ],
)
def test_what_cannot_be_is_refused(data, tmp_path, monkeypatch, options, wanted):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        show(data, progress=False, **options)
    assert wanted in str(caught.value)
    assert not list(tmp_path.iterdir())
