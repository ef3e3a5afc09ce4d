"""Conversions there and back, everything that is said about losses, and what remains after a failure: nothing."""

import errno
import itertools
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from awkward import assert_same, awkward_coco, read, shared, worst
from PIL import Image

import yolo_lat.data.convert as module
from yolo_lat.data.convert import convert
from yolo_lat.data.registry import load_dataset
from yolo_lat.errors import UserError


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """All kinds of images and names, without crowds."""
    return awkward_coco(tmp_path_factory.mktemp("plain"), crowds=False)


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    return awkward_coco(tmp_path_factory.mktemp("crowded"), seed=3)


def refusal(*args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        convert(*args, progress=False, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def chain(data: Path, folder: Path, formats, **options) -> Path:
    for number, format in enumerate(formats):
        data = convert(data, folder / f"{number}-{format}", format, images="link", progress=False, **options)
    return data


def small(folder: Path, *annotations: dict, names=("a.jpg",)) -> Path:
    """A COCO data set of 60x40 px images; annotations are of the first one."""
    for name in names:
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 40)).save(folder / "images" / name)
    images = [{"id": i, "file_name": n, "width": 60, "height": 40} for i, n in enumerate(names, 1)]
    rows = [{"id": i, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]} | a for i, a in enumerate(annotations, 1)]
    content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "cat"}]}
    (folder / "all.json").write_text(json.dumps(content))
    (folder / "data.yaml").write_text("train: images\nval: images\ncoco_json: {train: all.json, val: all.json}\n")
    return folder / "data.yaml"


@pytest.mark.parametrize("formats", list(itertools.permutations(["coco", "yolo", "voc"])), ids="-".join)
def test_boxes_survive_all_formats_in_any_order(plain, tmp_path, formats):
    last = chain(plain, tmp_path, [*formats, "coco"])
    for split in ("train", "val"):
        assert_same(read(plain, split), read(last, split))


def test_crowds_survive_coco_and_voc(crowded, tmp_path):
    assert sum(image.crowd.sum() for image in read(crowded).images) > 0
    assert_same(read(crowded), read(chain(crowded, tmp_path, ["voc", "coco", "voc"])))


@pytest.mark.parametrize(
    "name", [*(pytest.param(n, marks=pytest.mark.slow) for n in ("voc12", "groceries")), "coco_ccby"]
)
@pytest.mark.parametrize("formats", [("yolo", "voc", "coco"), ("voc", "yolo", "coco")], ids="-".join)
def test_real_data_survives(tmp_path, name, formats):
    data = shared(name, tmp_path)
    last = chain(data, tmp_path, formats, crowd="keep")
    for split in ("train", "val"):
        before, after = read(data, split), read(last, split)
        assert before.names == after.names
        assert worst(before, after) < 1e-9
        for one, other in zip(before.images, after.images, strict=True):
            np.testing.assert_array_equal(one.class_ids, other.class_ids)
            assert one.path.read_bytes() == other.path.read_bytes()


def test_real_crowds(tmp_path):
    data = shared("coco_ccby", tmp_path)

    def crowds(data) -> int:
        return sum(int(image.crowd.sum()) for split in ("train", "val") for image in read(data, split).images)

    def boxes(data) -> int:
        return sum(len(image.class_ids) for split in ("train", "val") for image in read(data, split).images)

    assert (crowds(data), boxes(data)) == (12, 983)
    voc = convert(data, tmp_path / "voc", "voc", progress=False)
    dropped = convert(voc, tmp_path / "drop", "yolo", crowd="drop", progress=False)
    kept = convert(voc, tmp_path / "keep", "yolo", crowd="keep", progress=False)
    assert [(crowds(d), boxes(d)) for d in (voc, dropped, kept)] == [(12, 983), (0, 971), (0, 983)]
    assert "coco_ccby train: 9 boxes are crowds" in refusal(data, tmp_path / "x", "yolo")


def test_the_layout(plain, tmp_path):
    for format, annotation in (("yolo", "labels/train/a.txt"), ("voc", "Annotations/train/a.xml")):
        convert(plain, tmp_path / format, format, progress=False)
        for file in ("data.yaml", "images/train/a.jpg", "images/val/Ünï cödé/tief/图 1.png", annotation):
            assert (tmp_path / format / file).is_file()
        assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []
    yaml_of = {d.name: yaml.safe_load((d / "data.yaml").read_text(encoding="utf-8")) for d in tmp_path.iterdir()}
    assert yaml_of["voc"]["format"] == "voc"
    assert yaml_of["yolo"] == {
        "train": "images/train",
        "val": "images/val",
        "names": list(read(plain).names),
    }
    # An image without objects has an empty label file, and is no missing one.
    assert (tmp_path / "yolo/labels/train/empty.txt").read_text() == ""


def test_a_moved_data_set_still_reads(plain, tmp_path):
    convert(plain, tmp_path / "new", "coco", progress=False)
    (tmp_path / "new").rename(tmp_path / "moved")
    assert_same(read(plain), read(tmp_path / "moved/data.yaml"))


@pytest.mark.parametrize("images", ["copy", "link"])
def test_images_are_copied_or_linked(plain, tmp_path, images):
    new = convert(plain, tmp_path / "new", "yolo", images=images, progress=False).parent / "images/train/a.jpg"
    assert new.is_symlink() == (images == "link")
    if images == "link":
        assert new.readlink().is_absolute()
        # A link to a link would break with the first data set that is removed.
        again = convert(tmp_path / "new/data.yaml", tmp_path / "again", "voc", images="link", progress=False)
        assert (again.parent / "images/train/a.jpg").readlink() == new.readlink()


def test_crowds_in_yolo_must_be_decided_on(crowded, tmp_path):
    count = sum(int(image.crowd.sum()) for image in read(crowded).images)
    assert f"data train: {count} boxes are crowds" in (message := refusal(crowded, tmp_path / "new", "yolo"))
    assert "crowd=drop" in message
    assert "crowd=keep" in message
    assert not list(tmp_path.iterdir())
    for crowd, words in (("drop", "are left out"), ("keep", "become ordinary boxes")):
        notes: list[str] = []
        new = convert(crowded, tmp_path / crowd, "yolo", crowd=crowd, progress=False, note=notes.append)
        assert f"data train: {count} crowds {words}" in notes
        for one, other in zip(read(crowded).images, read(new).images, strict=True):
            wanted = one.boxes_xywh[~one.crowd] if crowd == "drop" else one.boxes_xywh
            np.testing.assert_allclose(other.boxes_xywh, wanted, atol=1e-9)
            assert not other.crowd.any()


@pytest.mark.parametrize(("crowd", "left"), [("drop", 1), ("keep", 2), (None, 2)])
def test_crowd_means_the_same_in_every_format(tmp_path, crowd, left):
    data = small(tmp_path, {}, {"iscrowd": 1, "bbox": [3, 3, 4, 4]})
    for format in ("coco", "voc"):
        image = read(convert(data, tmp_path / f"{format}", format, crowd=crowd, progress=False)).images[0]
        assert len(image.class_ids) == left
        assert image.crowd.any() == (crowd is None)


def test_boxes_outside_of_the_image(tmp_path):
    data = small(
        tmp_path,
        {"bbox": [-10, 0, 30, 20]},
        {"bbox": [-100, 0, 130, 20], "area": 77},
        {"bbox": [70, 50, 5, 5]},
        {"bbox": [1, 1, 2, 2]},
    )
    message = refusal(data, tmp_path / "new", "yolo")
    assert f"data train: 2 boxes, the first in {tmp_path}/images/a.jpg, reach too far out" in message
    assert "outside=clip" in message
    notes: list[str] = []
    new = convert(data, tmp_path / "new", "yolo", outside="clip", progress=False, note=notes.append)
    assert "data train: 2 boxes are cut at the edge of their image, 1 outside of it are left out" in notes
    wanted = [[0, 0, 20, 20], [0, 0, 30, 20], [1, 1, 2, 2]]
    np.testing.assert_allclose(read(new).images[0].boxes_xywh, wanted, atol=1e-9)
    coco = read(convert(data, tmp_path / "coco", "coco", outside="clip", progress=False)).images[0]
    assert coco.areas.tolist() == [400, 77, 4]
    np.testing.assert_allclose(read(chain(data, tmp_path, ["voc", "coco"])).images[0].boxes_xywh[0], [-10, 0, 30, 20])


def test_a_box_that_is_half_outside_but_fits_is_kept_exactly(tmp_path):
    data = small(tmp_path, {"bbox": [-10, 0, 30, 20]})
    new = convert(data, tmp_path / "new", "yolo", progress=False)
    np.testing.assert_allclose(read(new).images[0].boxes_xywh, [[-10, 0, 30, 20]], atol=1e-9)


def test_notes_say_what_is_lost(tmp_path, capsys):
    data = small(tmp_path, {"area": 50, "segmentation": [[1, 2, 3, 4, 5, 6]]}, {"segmentation": []})
    convert(data, tmp_path / "voc", "voc", progress=False)
    lines = capsys.readouterr().err.splitlines()
    assert lines.count(
        "note: data train: 1 areas differ from width x height, as those of outlines do; voc cannot say them"
    )
    assert (
        "note: data train: has polygons or key points, which are left out; boxes, classes and crowds are converted"
        in lines
    )
    convert(data, tmp_path / "coco", "coco", progress=False)
    assert "areas differ" not in capsys.readouterr().err
    yolo = convert(data, tmp_path / "yolo", "yolo", progress=False)
    capsys.readouterr()
    convert(yolo, tmp_path / "yolo2", "yolo", progress=False)
    assert capsys.readouterr().err == ""
    (yolo.parent / "labels/train/a.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    convert(yolo, tmp_path / "yolo3", "yolo", progress=False)
    assert capsys.readouterr().err.count("polygons") == 1
    xml = tmp_path / "voc/Annotations/train/a.xml"
    convert(tmp_path / "voc/data.yaml", tmp_path / "voc2", "voc", progress=False)
    assert capsys.readouterr().err == ""
    xml.write_text(xml.read_text().replace("<truncated>0", "<truncated>1"))
    convert(tmp_path / "voc/data.yaml", tmp_path / "voc3", "voc", progress=False)
    assert "has parts and marks such as truncated" in capsys.readouterr().err


def test_two_images_of_one_name_would_share_a_label_file(tmp_path):
    data = small(tmp_path, {}, names=("x/a.jpg", "x/a.png", "y/a.jpg"))
    for format in ("yolo", "voc"):
        message = refusal(data, tmp_path / "new", format)
        assert f"{tmp_path}/images/x/a.jpg and {tmp_path}/images/x/a.png: would share a label file" in message
    assert len(read(convert(data, tmp_path / "coco", "coco", progress=False)).images) == 3


def test_several_folders_and_lists_keep_their_place_below_the_common_parent(tmp_path):
    for name in ("images/one/a.jpg", "images/two/deep/a.jpg", "images/three/b.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
        label = tmp_path / name.replace("images", "labels").replace("jpg", "txt")
        label.parent.mkdir(parents=True)
        label.write_text(f"0 0.5 0.5 0.{len(name)} 0.5\n")
    (tmp_path / "images/list.txt").write_text("../images/three/b.jpg\none/a.jpg\n")
    content = {"train": ["images/one", "images/two"], "val": "images/list.txt", "names": ["cat"]}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(content))
    new = convert(tmp_path / "data.yaml", tmp_path / "new", "voc", progress=False).parent
    found = sorted(str(file.relative_to(new / "images")) for file in new.rglob("*.jpg"))
    assert found == ["train/one/a.jpg", "train/two/deep/a.jpg", "val/one/a.jpg", "val/three/b.jpg"]
    assert_same(read(tmp_path / "data.yaml"), read(new / "data.yaml"))


def test_a_part_of_a_data_set_is_converted_as_such(plain, tmp_path):
    part = tmp_path / "part.yaml"
    part.write_text(
        yaml.safe_dump(yaml.safe_load(plain.read_text()) | {"path": str(plain.parent), "subset": {"train": 3}})
    )
    new = convert(part, tmp_path / "new", "coco", progress=False)
    assert [len(read(new, split).images) for split in ("train", "val")] == [3, 7]
    assert_same(read(part), read(new))
    assert len(list((tmp_path / "new/images/train").rglob("*.*"))) == 3


def test_coco_keeps_ids_and_other_formats_number_anew(plain, tmp_path):
    def ids(data) -> tuple:
        split = read(data)
        return split.category_ids, [image.image_id for image in split.images]

    assert ids(convert(plain, tmp_path / "coco", "coco", progress=False)) == ids(plain)
    assert ids(chain(plain, tmp_path, ["yolo", "coco"])) == ((1, 2, 3, 4), [1, 2, 3, 4, 5, 6, 7])


def test_voc_counted_from_zero_reads_back_the_same(tmp_path):
    data = small(tmp_path, {"bbox": [10, 5, 20, 10]})
    voc = convert(data, tmp_path / "voc", "voc", progress=False)
    voc.write_text(voc.read_text().replace("voc_first_pixel: 1", "voc_first_pixel: 0"))
    before = read(voc)
    assert before.images[0].boxes_xywh.tolist() == [[11, 6, 19, 9]]
    assert_same(before, read(convert(voc, tmp_path / "again", "voc", progress=False)))


def test_a_test_split_without_files_or_annotations_is_left_out_with_a_note(plain, tmp_path):
    content = yaml.safe_load(plain.read_text()) | {"path": str(plain.parent), "test": "images/val"}
    blind = json.loads((plain.parent / "val.json").read_text())
    del blind["annotations"]
    (tmp_path / "blind.json").write_text(json.dumps(blind))
    for file, words in (("nowhere.json", "there is no"), ("blind.json", "annotations are kept back")):
        content["coco_json"] = {**content["coco_json"], "test": str(tmp_path / file)}
        (tmp_path / "data.yaml").write_text(yaml.safe_dump(content))
        notes: list[str] = []
        new = convert(tmp_path / "data.yaml", tmp_path / file[:-5], "voc", progress=False, note=notes.append)
        assert set(load_dataset(new).splits) == {"train", "val"}
        assert any(note.startswith("data test: left out") and words in note for note in notes)
    content["coco_json"]["val"] = str(tmp_path / "blind.json")
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(content))
    assert "blind.json: has no key annotations" in refusal(tmp_path / "data.yaml", tmp_path / "x", "voc")


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"format": "cocoo"}, "format=cocoo: is none of the values that format can have; did you mean 'coco'?"),
        ({"format": None}, "format=None: is none of the values that format can have; use coco or yolo or voc"),
        ({"images": "move"}, "use copy or link"),
        ({"crowd": "dorp"}, "did you mean 'drop'?"),
        ({"outside": "cut"}, "use clip"),
    ],
)
def test_unknown_options_are_named(plain, tmp_path, options, wanted):
    assert wanted in refusal(plain, tmp_path / "new", **({"format": "coco"} | options))


def test_the_target_must_be_new(plain, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "full/sub").mkdir(parents=True)
    assert "is a file" in refusal(plain, tmp_path / "file", "voc")
    assert "exists and is not empty" in refusal(plain, tmp_path / "full", "voc")
    assert "lies among the images of data" in refusal(plain, plain.parent / "images/train/new", "voc")
    (tmp_path / "empty").mkdir()
    assert convert(plain, tmp_path / "empty", "voc", progress=False).is_file()
    assert convert(plain, tmp_path / "not/there/yet", "voc", progress=False).is_file()
    assert list((tmp_path / "not/there").iterdir()) == [tmp_path / "not/there/yet"]


def test_training_data_without_boxes_cannot_become_yolo(tmp_path):
    assert "data train: has no box at all" in refusal(small(tmp_path), tmp_path / "new", "yolo")


def test_nothing_remains_of_a_failure(plain, tmp_path, monkeypatch):
    def full(source: Path, target: Path) -> None:
        if "b.c" in str(source):
            raise OSError(errno.ENOSPC, "No space left on device")
        shutil.copyfile(source, target)

    monkeypatch.setattr(module, "shutil", type("shutil", (), {"copyfile": staticmethod(full)}))
    with pytest.raises(OSError, match="No space left"):
        convert(plain, tmp_path / "new", "voc", progress=False)
    assert not list(tmp_path.iterdir())


def test_links_where_there_are_none_are_refused(plain, tmp_path, monkeypatch):
    def no_links(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", no_links)
    assert "takes no links (Operation not permitted); use images=copy" in refusal(
        plain, tmp_path / "new", "voc", images="link"
    )
    assert not list(tmp_path.iterdir())


SLOWLY = """
import signal, sys
from yolo_lat.data import convert
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits that it is ignored
bring = convert._bring
def slow(*args):
    bring(*args)
    print("one", flush=True)
    sys.stdin.readline()  # until the parent lets go
convert._bring = slow
convert.convert(sys.argv[1], sys.argv[2], "voc", progress=False)
"""


def slow_run(data: Path, target: Path) -> subprocess.Popen:
    """Start a conversion and return when it has brought the first image; it goes on when its input is closed."""
    pipe, command = subprocess.PIPE, [sys.executable, "-c", SLOWLY, data, target]
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout
    assert process.stdout.readline() == "one\n"
    return process


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
@pytest.mark.parametrize("sign", ["SIGKILL", "SIGINT"])
def test_killed_in_the_middle(plain, tmp_path, sign):
    process = slow_run(plain, tmp_path / "new")
    process.send_signal(getattr(signal, sign))
    process.communicate(timeout=120)
    assert not (tmp_path / "new").exists()
    left = [path.name for path in tmp_path.iterdir()]
    assert all(name.startswith(".new.unfinished-") for name in left)
    assert bool(left) == (sign == "SIGKILL")
    (tmp_path / ".other.unfinished-1").mkdir()
    assert_same(read(plain), read(convert(plain, tmp_path / "new", "voc", progress=False)))
    assert {path.name for path in tmp_path.iterdir()} == {"new", ".other.unfinished-1"}


def test_two_at_once_do_not_disturb_each_other(plain, tmp_path):
    process = slow_run(plain, tmp_path / "new")
    convert(plain, tmp_path / "new", "coco", progress=False)
    _, errors = process.communicate(timeout=120)
    assert process.returncode
    assert f"{tmp_path}/new: exists and is not empty" in errors  # the slower one got as far as the end
    assert_same(read(plain), read(tmp_path / "new/data.yaml"))
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
