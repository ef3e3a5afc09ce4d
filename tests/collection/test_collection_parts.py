"""The parts of a run over a collection that need no running Ray: listing, checks, decoding, folders and results."""

from __future__ import annotations

import csv
import json
import struct
import subprocess
import sys
import tarfile
import zlib

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packed import as_folder, as_hugging_face, as_parquet, as_tar, broken, encoded
from pycocotools.coco import COCO

pytest.importorskip("ray.data", reason="needs Ray Data: pip install 'yolo-lat[ray]'")

from yolo_lat.collection.results import write_coco, write_failures
from yolo_lat.collection.run import _folder_name, _next_size
from yolo_lat.collection.run_folder import Part, RunFolder
from yolo_lat.collection.sources import Checked, open_source
from yolo_lat.collection.worker import decode, failures, table
from yolo_lat.errors import UserError


@pytest.fixture
def files():
    return encoded(6)


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Sources


def test_a_folder_is_listed_to_any_depth_in_the_same_order(files, tmp_path):
    folder = as_folder(tmp_path / "photos", files)
    (folder / "Z.JPG").write_bytes(b"x")
    names = ["00000.png", "00002.png", "00004.png", "Z.JPG", "deep/er/00001.png", "deep/er/00003.png"]
    for source in (str(folder), folder.as_uri()):
        opened, listed = open_source(source)
        assert list(listed) == [*names, "deep/er/00005.png"]
        assert opened.kind == "images"
        assert opened.path(names[4]) == str(folder / names[4])


def test_a_file_and_a_pattern_name_some_of_a_folder(files, tmp_path):
    for number in range(3):
        as_tar(tmp_path / f"shards[1]/train-{number}.tar", files)
    as_tar(tmp_path / "shards[1]/val-0.tar", files)
    source, listed = open_source(str(tmp_path / "shards[1]/train-1.tar"))
    assert (source.kind, list(listed)) == ("WebDataset", ["train-1.tar"])
    _, listed = open_source(str(tmp_path / "*/train-*.tar"))
    assert list(listed) == [f"shards[1]/train-{number}.tar" for number in range(3)]


def test_sources_that_cannot_be_used(files, tmp_path):
    (tmp_path / "empty").mkdir()
    mixed = as_folder(tmp_path / "mixed", files)
    as_tar(mixed / "x.tar", files)
    two = {name: [b""] for name in ("left", "right")}
    pq.write_table(pa.table({"id": [1], **two}), tmp_path / "two.parquet")
    pq.write_table(pa.table({"id": [1]}), tmp_path / "none.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    assert "no such file or folder" in refusal(open_source, str(tmp_path / "nowhere"))
    assert "no such file or folder" in refusal(open_source, str(tmp_path / "nowhere/*.tar"))
    assert "pyarrow cannot open it" in refusal(open_source, "nonsense://bucket/x")
    assert "holds no image, .tar or .parquet" in refusal(open_source, str(tmp_path / "empty"))
    assert "holds no image, .tar or .parquet" in refusal(open_source, str(mixed / "notes.txt"))
    assert "left, right could hold encoded images; name the column" in refusal(open_source, f"{tmp_path}/two.parquet")
    assert "no column could hold encoded images" in refusal(open_source, f"{tmp_path}/none.parquet")
    assert "has no column x; it has id, left, right" in refusal(open_source, f"{tmp_path}/two.parquet", column="x")
    assert "cannot be read as Parquet" in refusal(open_source, f"{tmp_path}/bad.parquet")
    pq.write_table(pa.table({"path": ["x"], "row_hash": [b""]}), tmp_path / "own.parquet")
    assert refusal(open_source, f"{tmp_path}/own.parquet", column="row_hash", id_column="path").startswith(
        "column=row_hash: the reader has a column row_hash of its own; rename"
    )
    pq.write_table(pa.table({"path": ["x"], "jpeg": [b""]}), tmp_path / "own.parquet")
    assert refusal(open_source, f"{tmp_path}/own.parquet", id_column="path").startswith("id=path: the reader has")
    assert open_source(f"{tmp_path}/own.parquet")[0].column == "jpeg"
    assert "name columns of Parquet" in refusal(open_source, str(mixed), column="x")
    _, listed = open_source(str(mixed))
    assert "holds images and x.tar too; name one kind with a pattern" in refusal(list, listed)
    assert open_source(f"{tmp_path}/two.parquet", column="left")[0].column == "left"


def test_what_is_wrong_with_a_file_is_found_before_it_is_read(files, tmp_path):
    whole = as_tar(tmp_path / "a.tar", files).read_bytes()
    (tmp_path / "b.tar").write_bytes(whole[:3000])
    (tmp_path / "c.tar").write_bytes(b"no tar")
    as_tar(tmp_path / "d.tar", {})
    as_tar(tmp_path / "e.tar", {"1.png": b"x", "2.png": b"x", "1.jpg": b"x"})
    as_tar(tmp_path / "f.tar", {"1.png": b"x", ".2.png": b"x", "sub/3.left.png": b"x", "sub/3.right.png": b"x"})
    with tarfile.open(tmp_path / "g.tar", "w") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("1.png"))
    (tmp_path / "h.tar").write_bytes(whole + whole)
    (tmp_path / "i.tar").write_bytes(whole[: -(-len(whole.rstrip(b"\0")) // 512) * 512])
    source, listed = open_source(str(tmp_path))
    good, *bad = source.check(list(listed))
    assert good == Checked(6)
    assert [check.images for check in bad] == [0, 0, 0, 0, 3, 0, 0, 0]
    reasons = [check.failures[0] for check in bad]
    wanted = {
        "b.tar": "cut off",
        "c.tar": "cannot be read as a tar",
        "d.tar": "holds no image",
        "e.tar": "not together",
        "f.tar/.2.png": "a dot",
        "g.tar": "not together",
        "h.tar": "goes on behind its end",
        "i.tar": "cut off",
    }
    assert [name for name, _ in reasons] == list(wanted)
    assert [reason for name, reason in reasons if wanted[name] not in reason] == []


def test_what_is_wrong_with_parquet_is_found_in_its_footer(files, tmp_path):
    whole = as_parquet(tmp_path / "a.parquet", files).read_bytes()
    (tmp_path / "b.parquet").write_bytes(whole[:-20])
    pq.write_table(pa.table({"name": ["x"]}), tmp_path / "c.parquet")
    source, listed = open_source(str(tmp_path), id_column="name")
    good, cut, other = source.check(list(listed))
    assert good == Checked(6)
    assert "cannot be read as Parquet" in cut.failures[0][1]
    assert other.failures == (("c.parquet", "lacks the column jpeg"),)


def test_an_image_that_went_away_is_listed(files, tmp_path):
    source, listed = open_source(str(as_folder(tmp_path, files)))
    names = list(listed)
    (tmp_path / names[1]).unlink()
    assert source.check(names[:2]) == [Checked(1), Checked(0, ((names[1], "no such file any more"),))]


# Images


def test_images_are_decoded_as_opencv_reads_files(files, tmp_path):
    files |= encoded(2, suffix=".jpg") | encoded(2, suffix=".bmp") | encoded(2, suffix=".webp")
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        np.testing.assert_array_equal(decode(content), cv2.imread(str(tmp_path / name)))


def test_a_turned_photo_is_turned(tmp_path):
    from PIL import Image

    image = Image.new("RGB", (30, 20))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert decode((tmp_path / "turned.jpg").read_bytes()).shape == (30, 20, 3)


def bomb(side: int) -> bytes:
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = (head, b"IDAT" + zlib.compress(b""))
    framed = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def tiff(tile: int = 0, pages: int = 1, side: int = 16) -> bytes:
    """A grey TIFF of next to no data."""
    content = b"II*\0"
    for _ in range(pages):
        tags = {256: side, 257: side, 258: 8, 259: 1, 262: 1, 277: 1}
        tags |= {322: tile, 323: tile, 324: 8, 325: 4} if tile else {273: 8, 278: side, 279: 4}
        rows = (struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
        content += struct.pack("<IH", len(content) + 4, len(tags)) + b"".join(rows)
    return content + bytes(4)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "empty"),
        (b"", "empty"),
        (b"noise" * 9, "no image"),
        (broken(encoded(1)["00000.png"])["cut.png"], "broken image"),
        (encoded(1, suffix=".jpg")["00000.jpg"][:300], "broken image"),
        (broken(b"")["gif.jpg"], "GIF"),
        (bomb(31_623), "broken image"),
        (b"RIFF____WEBPVP8X____" + bytes(4) + b"\xff" * 6, "more than 178 megapixels"),
        (tiff(tile=30_000), "more than 178 megapixels"),
        (tiff(pages=2, side=10_000), "more than 178 megapixels"),
    ],
    ids=["null", "empty", "noise", "cut png", "cut jpeg", "gif", "bomb", "webp bomb", "tile bomb", "pages bomb"],
)
def test_what_is_no_whole_image_is_refused(content, reason):
    assert reason in refusal(decode, content)


def test_the_limit_of_pixels_is_that_of_all_readers(monkeypatch):
    content = cv2.imencode(".png", np.zeros((1100, 1000, 3), np.uint8))[1].tobytes()
    assert decode(content).shape == (1100, 1000, 3)
    monkeypatch.setenv("YOLO_LAT_MAX_MEGAPIXELS", "1")
    assert "more than 1 megapixels" in refusal(decode, content)


def test_workers_import_no_torch():
    code = "import sys, yolo_lat.collection.worker; assert not {'torch', 'ultralytics'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_without_ray_it_says_what_to_install(tmp_path):
    (tmp_path / "a.onnx").touch()
    code = "import sys; sys.modules['ray'] = None; from yolo_lat.cli import main; main()"
    words = ["predict", "model=a.onnx", f"source={tmp_path}", "engine", "=", "ray"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "yolo-lat: error: this needs ray, which is not installed; run: pip install 'yolo-lat[ray]'\n"


# Parts


def part(start: int, stop: int, seconds: float = 1) -> Part:
    return Part(start, stop, stop - start, 0, 0, seconds)


def test_parts_grow_to_the_seconds_that_are_asked_for():
    assert _next_size(part(0, 200, 10), 300, 200) == 2000  # not 6000: the first part is mostly waiting
    assert _next_size(part(0, 2000, 20), 300, 200) == 20_000
    assert _next_size(part(0, 20_000, 250), 300, 200) == 24_000
    assert _next_size(part(0, 20_000, 600), 300, 200) == 10_000
    assert _next_size(part(0, 20_000, 600), 0, 200) == 200
    assert _next_size(part(0, 3, 0), 300, 1) == 30


def test_a_folder_begins_and_goes_on_with_its_list(tmp_path):
    names = [f"{number}.png" for number in range(250_000)]
    with RunFolder.new(tmp_path / "run", {"conf": 0.5}, names) as folder:
        assert folder.total == len(names)
        assert next(folder.inputs(200_001)) == "200001.png"
        assert folder.parts() == []
        folder.finish(folder.new_part(), part(0, 10))
        left = folder.new_part()
        (left / "x").write_text("")
        assert "another process is at this run" in refusal(RunFolder.existing, folder.path)
    with RunFolder.existing(tmp_path / "run") as folder:
        assert folder.settings == {"conf": 0.5}
        assert folder.parts() == [part(0, 10)]
        assert folder.new_part() != left
        assert not left.exists()
        folder.finish(folder.new_part(), part(20, 30))
        assert "the part of inputs 10 to 20 is missing" in refusal(folder.parts)
        folder.complete({})
    assert "this run is complete" in refusal(RunFolder.existing, folder.path)
    assert "no readable run.json" in refusal(RunFolder.existing, tmp_path)


def test_a_taken_name_gets_a_number_and_a_failed_listing_leaves_nothing(tmp_path):
    def listing():
        yield "1.png"
        raise UserError("two kinds")

    for expected in ("run", "run-2", "run-3"):
        with RunFolder.new(tmp_path / "run", {}, ["1.png"]) as folder:
            assert folder.path.name == expected
    assert refusal(RunFolder.new, tmp_path / "other", {}, listing()) == "two kinds"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["run", "run-2", "run-3"]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("photos", "photos"),
        ("/data/photos/", "photos"),
        ("shards/*.tar", "shards"),
        ("shards/train-*.tar", "train"),
        ("a/b.parquet", "b"),
        ("s3://bucket/my pictures", "my-pictures"),
        ("/", "collection"),
        ("../..", "collection"),
    ],
)
def test_a_run_is_named_after_its_source(source, name):
    assert _folder_name(source) == name


# Results


def test_coco_and_failures_are_made_of_the_parts(tmp_path):
    rows = [
        {"image": "a.png", "width": 50, "height": 40, "boxes_xyxy": [[1, 2, 4, 8]], "scores": [0.5], "class_ids": [1]},
        {"image": "b.png", "width": 30, "height": 20, "boxes_xyxy": [], "scores": [], "class_ids": []},
    ]
    boxes = [[0, 0, 10.0004, 5], [2, 2, 3, 3]]
    last = {"image": "c.png", "width": 9, "height": 8, "boxes_xyxy": boxes, "scores": [0.9, 0.8], "class_ids": [0, 1]}
    for number, content in enumerate((table(rows), failures([("x.png", 'broken, "very"')]), table([last]))):
        folder = tmp_path / f"d/00000000000{number}-00000000000{number + 1}"
        folder.mkdir(parents=True)
        pq.write_table(content, folder / "0.parquet")
    (tmp_path / "d/.unfinished-1").mkdir()
    pq.write_table(table(rows), tmp_path / "d/.unfinished-1/0.parquet")

    assert pq.read_table(tmp_path / "d")["image"].to_pylist() == ["a.png", "b.png", "x.png", "c.png"]
    write_coco(tmp_path / "d", {0: "cat", 1: "dog"}, tmp_path / "coco.json")
    coco = COCO(str(tmp_path / "coco.json"))
    assert [image["file_name"] for image in coco.loadImgs([1, 2, 3])] == ["a.png", "b.png", "c.png"]
    assert [category["name"] for category in coco.loadCats([0, 1])] == ["cat", "dog"]
    (first,), second = coco.imgToAnns[1], coco.imgToAnns[3]
    assert first == {
        **{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 6], "area": 18, "iscrowd": 0, "score": 0.5}
    }
    assert [(row["bbox"], row["score"]) for row in second] == [([0, 0, 10, 5], 0.9), ([2, 2, 1, 1], 0.8)]
    write_failures(tmp_path / "d", tmp_path / "failed.csv")
    with (tmp_path / "failed.csv").open(newline="") as stream:
        assert list(csv.reader(stream)) == [["image", "error"], ["x.png", 'broken, "very"']]


def test_results_of_nothing_are_valid(tmp_path):
    write_coco(tmp_path, {0: "cat"}, tmp_path / "coco.json")
    assert json.loads((tmp_path / "coco.json").read_text()) == {
        **{"categories": [{"id": 0, "name": "cat"}], "images": [], "annotations": []}
    }


@pytest.mark.parametrize("pack", [as_parquet, as_hugging_face])
def test_rows_of_parquet_have_names(pack, files, tmp_path):
    pack(tmp_path / "a.parquet", files)
    source, _ = open_source(str(tmp_path), id_column="name" if pack is as_parquet else None)
    rows = pq.read_table(tmp_path / "a.parquet")
    rows = rows.append_column("path", [[source.path("a.parquet")] * 6]).append_column("row_hash", [list(range(6))])
    assert dict(source.contents(rows)) == {f"a.parquet/{name}": content for name, content in files.items()}
