"""The data set doctor finds every planted fault, says nothing of sound data, and changes nothing on disk."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from big_dataset import generate
from checked_data import BREAKS, FORMATS, WIDTH, Data, break_image, kinds, messages, picture
from quick import first

from yolo_lat.data.doctor import check_dataset
from yolo_lat.data.findings import KINDS
from yolo_lat.data.reader import read_split
from yolo_lat.data.registry import load_dataset
from yolo_lat.data.voc_xml import xml_file
from yolo_lat.data.yolo_txt import label_file
from yolo_lat.errors import UserError

SHARED = Path(__file__).parents[2].parent / "shared/data"


@pytest.fixture(params=FORMATS)
def data(request, tmp_path) -> Data:
    return Data(tmp_path, request.param)


def test_sound_data_have_no_finding(data):
    report = data.check()
    assert kinds(report) == {}
    assert report.ok
    assert report.notes == (f"{data.yaml}: describes no split test",)
    assert {split: (s.images, s.boxes) for split, s in report.splits.items()} == {"train": (4, 8), "val": (2, 4)}
    assert len(report.tiles) == 6


def test_what_the_doctor_passes_training_reads_and_what_it_refuses_training_refuses(data):
    for split in ("train", "val"):
        assert read_split(load_dataset(data.yaml), split, progress=False).images
    break_image(data.path("v1.jpg"), "truncated")
    report = data.check()
    with pytest.raises(UserError) as caught:
        read_split(load_dataset(data.yaml), "val", progress=False)
    assert str(caught.value) in messages(report, "image")


@pytest.mark.parametrize("workers", [-1, 0, 1.5, True, "abc"])
@pytest.mark.timeout(30)  # a pool without a process waits for ever
def test_a_number_of_processes_that_is_none_is_refused(tmp_path, workers):
    with pytest.raises(UserError, match=f"workers={workers}: must be a whole number from 1"):
        check_dataset(Data(tmp_path, "yolo").yaml, progress=False, workers=workers)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_missing_split_is_an_error_and_a_missing_test_split_a_note(data, split):
    data.keys["test"] = "images/val"
    if data.form == "coco":
        data.keys["coco_json"]["test"] = "val.json"
    data.keys[split] = "images/nowhere"
    data.write()
    report = data.check()
    missing = messages(report, "split") if split != "test" else report.notes
    assert len(missing) == 1
    assert f"split {split}: no such path {data.root}/images/nowhere" in missing[0]
    assert split not in report.splits
    assert report.ok == (split == "test" and "leak" not in kinds(report))


BAD_JSON = {
    "not JSON": lambda c: "{",
    "empty": lambda c: "",
    "a list": lambda c: "[]",
    "no images": lambda c: json.dumps({**c, "images": []}),
    "images no list": lambda c: json.dumps({**c, "images": 5}),
    "no categories": lambda c: json.dumps({**c, "categories": []}),
    "categories lack id": lambda c: json.dumps({**c, "categories": [{"name": "cat"}]}),
    "nested": lambda c: "[" * 100_000,
    "no text": lambda c: b"\xff\xfe\x00\xd8",
    "bbox": lambda c: json.dumps({**c, "annotations": [{**c["annotations"][0], "bbox": [1, 2, "x"]}]}),
    "bbox is not finite": lambda c: json.dumps(
        {**c, "annotations": [{**c["annotations"][0], "bbox": [1, 2, 3, 1e999]}]}
    ),
    "unknown image": lambda c: json.dumps({**c, "annotations": [{**c["annotations"][0], "image_id": 99}]}),
    "unknown category": lambda c: json.dumps({**c, "annotations": [{**c["annotations"][0], "category_id": 99}]}),
    "leads out": lambda c: json.dumps(
        {**c, "images": [{**c["images"][0], "file_name": "../../etc/passwd"}, *c["images"][1:]]}
    ),
    "another size": lambda c: json.dumps({**c, "images": [{**c["images"][0], "width": 5}, *c["images"][1:]]}),
    "rows are no objects": lambda c: json.dumps({**c, "annotations": [5, None, "x"], "images": [7, *c["images"]]}),
}


@pytest.mark.parametrize("names", first(1, [True, False]), ids=["names listed", "names in the JSON"])
@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("problem", BAD_JSON)
def test_a_bad_json_is_an_error_that_names_it(tmp_path, problem, split, names):
    data = Data(tmp_path, "coco")
    if not names:
        del data.keys["names"]
        data.write()
    content = BAD_JSON[problem](data.coco(split))
    file = tmp_path / f"{split}.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    report = data.check()
    assert not report.ok
    errors = [f for kind, listed in report.found.listed.items() if KINDS[kind].error for f in listed]
    assert any(str(file) in finding.message for finding in errors)
    report.save(tmp_path / "report.json")
    assert report.tables()


def test_a_yaml_that_says_nothing_and_an_unknown_name_are_refused(tmp_path):
    (tmp_path / "data.yaml").write_text("train: [")
    for data in (tmp_path / "data.yaml", tmp_path / "nowhere.yaml", "shape"):
        with pytest.raises(UserError):
            check_dataset(data, progress=False)


def corrupt(data: Data) -> dict[str, set[str]]:
    """Plant one of everything; returns the names that findings of each kind must tell."""
    planted = {"image": set()}
    for number in range(len(BREAKS)):
        path = data.add("train", f"bad{number}.jpg", picture(500 + number))
        planted["image"].add(path.name)
    train = data.add("train", "same.png", picture(900))
    data.add("val", "same.png", picture(900))
    outside = data.add("train", "outside.jpg", picture(901), [(0, 50, 10, 20, 20)])
    planted |= {"leak": {train.name}, "outside": {outside.name}}
    wrong = data.add("train", "wrong.jpg", picture(902))
    data.write()
    for number, how in enumerate(BREAKS):
        break_image(data.path(f"bad{number}.jpg"), how)
    if data.form == "coco":
        content = data.coco("train")
        entry = next(image for image in content["images"] if image["file_name"] == wrong.name)
        entry["width"] += 1
        content["annotations"].append({**content["annotations"][0], "id": 4711, "category_id": 9})
        content["annotations"].append({**content["annotations"][0], "id": 4712, "bbox": None})
        (data.root / "train.json").write_text(json.dumps(content))
        planted |= {"size": {wrong.name}, "class": {"id 4711"}, "labels": {"id 4712"}}
    elif data.form == "yolo":
        label_file(wrong).write_text("0 30 20 10 10\n7 0.5 0.5 0.1 0.1\n0 0.5 0.5\ncat 0.5 0.5 0.1 0.1\n")
        planted |= {"labels": {f"wrong.txt, line {line}" for line in (1, 3, 4)}, "class": {"wrong.txt, line 2"}}
    else:
        text = xml_file(wrong).read_text()
        xml_file(wrong).write_text(text.replace(f"<width>{WIDTH}", "<width>5").replace("cat", "cow"))
        xml_file(data.path("t1.jpg")).write_text(text[:-5])
        planted |= {"size": {"wrong.xml"}, "class": {"wrong.xml, object 1"}, "labels": {"t1.xml, line 1"}}
    return planted


def test_every_planted_fault_is_named_and_nothing_else(data):
    planted = corrupt(data)
    report = data.check()
    assert kinds(report) == {kind: len(names) for kind, names in planted.items()}
    for kind, names in planted.items():
        for name in names:
            assert any(name in message for message in messages(report, kind)), (kind, name)
    assert not report.ok


def test_reports_are_the_same_each_time(data):
    corrupt(data)
    one, other = data.check(), check_dataset(data.yaml, progress=False, workers=3)
    assert one.as_dict() == other.as_dict()
    assert [tile.image.path for tile in one.tiles] == [tile.image.path for tile in other.tiles]


def shared(name: str, tmp_path: Path, folder: str = "images/{}", annotations: str = "annotations/{}.json") -> Path:
    root = SHARED / name
    if not root.is_dir():
        pytest.skip(f"no data set {root}")
    keys = {"path": str(root), "coco_json": {split: annotations.format(split) for split in ("train", "val")}}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(keys | {s: folder.format(s) for s in ("train", "val")}))
    return tmp_path / "data.yaml"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [("voc12", {}), ("groceries", {"leak": 4, "copy": 8}), ("pcb", {})],
    ids=lambda value: str(value),
)
def test_real_data_have_the_findings_that_they_are_known_for(tmp_path, name, expected):
    report = check_dataset(shared(name, tmp_path), progress=False)
    assert kinds(report) == expected


def test_a_part_of_coco_lacks_classes_and_has_tiny_boxes(tmp_path):
    report = check_dataset(shared("coco_ccby", tmp_path, "images", "instances_{}.json"), progress=False)
    assert kinds(report) == {"tiny": 5, "classes": 3}
    assert sum(split.crowds for split in report.splits.values()) == 12


def test_photographs_with_bytes_lost_in_the_middle_are_named(tmp_path):
    if not (SHARED / "voc12").is_dir():
        pytest.skip("no data set voc12")
    rng = np.random.default_rng(0)
    for split, files in (("train", 20), ("val", 5)):
        folder = tmp_path / "images" / split
        folder.mkdir(parents=True)
        for number, source in enumerate(sorted((SHARED / "voc12/images" / split).glob("*.jpg"))[:files]):
            content = bytearray(source.read_bytes())
            if split == "val":
                del content[len(content) // 2 : len(content) // 2 + int(rng.integers(500, 900))]
            (folder / f"{number:02}.jpg").write_bytes(content)
            (tmp_path / "labels" / split).mkdir(parents=True, exist_ok=True)
            (tmp_path / "labels" / split / f"{number:02}.txt").write_text("0 0.5 0.5 0.2 0.2")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [a]\n")
    report = check_dataset(tmp_path / "data.yaml", progress=False)
    assert kinds(report) == {"damaged": 5}


def cost(root: Path, form: str, what: str) -> dict[str, float]:
    script = Path(__file__).with_name("big_dataset.py")
    done = subprocess.run(
        [sys.executable, script, root, form, what],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        check=True,
        text=True,
    )
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("form", ["yolo", "coco"])
def test_time_and_memory_grow_with_the_number_of_images_and_no_faster(tmp_path, form):
    few, many = 25_000, 100_000
    for count in (few, many):
        generate(tmp_path / str(count), count)
    for what, bound in (("read", 4), ("check", 8)):  # kB an image
        one, other = (cost(tmp_path / str(count), form, what) for count in (few, many))
        assert other["cpu"] < 1.5 * many / few * one["cpu"]
        assert other["mb"] * 1024 / other["images"] < bound
