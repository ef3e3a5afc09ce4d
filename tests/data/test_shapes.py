import contextlib
import io
import json
import math
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from yolo_lat.data import shapes
from yolo_lat.data.shapes import CLASSES, ShapeBox, ShapesConfig, generate, render
from yolo_lat.errors import UserError

TINY = ShapesConfig(train=4, val=2, image_size=48, seed=3)


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def random_cutouts(seed: int, count: int = 12, height: int = 96, width: int = 128) -> list[shapes._Cutout]:
    rng = np.random.default_rng(seed)
    return [shapes._cut_out(rng, int(rng.integers(len(CLASSES))), height, width) for _ in range(count)]


def rectangle(left: int, top: int, width: int, height: int) -> shapes._Cutout:
    body = np.ones((height, width), np.float32)
    box = ShapeBox(0, (left, top, left + width, top + height), width * height)
    return shapes._Cutout(left, top, body, np.zeros_like(body), box)


@pytest.fixture(scope="module")
def scenes() -> list[tuple[np.ndarray, list[ShapeBox]]]:
    return [render(np.random.default_rng((0, 0, i)), 256) for i in range(200)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = ShapesConfig(train=30, val=60, image_size=256)
    return generate(tmp_path_factory.mktemp("data") / "shapes", config, progress=False)


def load(root: Path, split: str) -> dict:
    return json.loads((root / "annotations" / f"{split}.json").read_text())


class TestRender:
    def test_same_seed_same_image_other_seed_other_image(self):
        image, boxes = render(np.random.default_rng(5), 128)
        again, boxes_again = render(np.random.default_rng(5), 128)
        other, boxes_other = render(np.random.default_rng(6), 128)
        assert np.array_equal(image, again)
        assert boxes == boxes_again
        assert boxes != boxes_other
        assert image.shape != other.shape or not np.array_equal(image, other)

    @settings(max_examples=60)
    @given(seed=st.integers(0, 2**63), image_size=st.integers(32, 320))
    def test_image_and_boxes_are_in_bounds(self, seed: int, image_size: int):
        image, boxes = render(np.random.default_rng(seed), image_size)
        height, width = image.shape[:2]
        assert image.dtype == np.uint8
        assert image.shape[2] == 3
        assert max(height, width) == image_size
        assert min(height, width) >= math.floor(0.75 * image_size)
        assert len(boxes) <= 10
        for box in boxes:
            x1, y1, x2, y2 = box.xyxy
            assert 0 <= x1 < x2 <= width
            assert 0 <= y1 < y2 <= height
            assert 0 < box.area <= (x2 - x1 + 1) * (y2 - y1 + 1)
            assert 0 <= box.class_id < len(CLASSES)

    def test_classes_sizes_and_situations_all_occur(self, scenes: list[tuple[np.ndarray, list[ShapeBox]]]):
        boxes = [box for _, found in scenes for box in found]
        per_class = Counter(box.class_id for box in boxes)
        assert set(per_class) == set(range(len(CLASSES)))
        assert max(per_class.values()) < 1.6 * min(per_class.values())
        sizes = Counter("small" if box.area < 32**2 else "large" if box.area > 96**2 else "medium" for box in boxes)
        assert min(sizes["small"], sizes["medium"], sizes["large"]) >= 0.02 * len(boxes)
        counts = Counter(len(found) for _, found in scenes)
        assert 1 <= counts[0] <= 12
        assert {1, 8} <= set(counts)
        at_border = [box for image, found in scenes for box in found if 0 in box.xyxy or box.xyxy[2] == image.shape[1]]
        assert 0.03 * len(boxes) < len(at_border) < 0.5 * len(boxes)
        assert len({image.shape for image, _ in scenes}) > 50

    def test_backgrounds_are_textured_and_differ_in_colour(self):
        images = [shapes._background(np.random.default_rng(seed), 60, 80) for seed in range(60)]
        assert np.std([image.mean((0, 1)) for image in images], axis=0).min() > 20
        assert min(image.std((0, 1)).max() for image in images) > 3

    @pytest.mark.parametrize("field", shapes._FIELDS, ids=lambda field: field.__name__)
    def test_textures_fill_the_unit_range(self, field):
        for seed in range(30):
            values = field(np.random.default_rng(seed), 90, 120)
            assert values.shape == (90, 120)
            assert values.dtype == np.float32
            assert 0 <= values.min() < 0.2
            assert 0.8 < values.max() <= 1

    def test_what_is_painted_is_what_is_annotated(self, monkeypatch: pytest.MonkeyPatch):
        painted: list[shapes._Cutout] = []
        monkeypatch.setattr(shapes, "_paint", lambda _rng, _image, cutout: painted.append(cutout))
        for seed in range(20):
            painted.clear()
            _, boxes = render(np.random.default_rng(seed), 128)
            assert [cutout.box for cutout in reversed(painted)] == boxes


class TestObject:
    @pytest.mark.parametrize("class_id", range(len(CLASSES)), ids=CLASSES)
    def test_box_is_tight_around_the_changed_pixels(self, class_id: int):
        for seed in range(25):
            rng = np.random.default_rng(seed)
            cutout = shapes._cut_out(rng, class_id, 90, 120)
            image = np.full((90, 120, 3), -1000, np.float32)  # no colour blends to this
            shapes._paint(rng, image, cutout)
            rows, columns = np.nonzero((image != -1000).any(2))
            x1, y1, x2, y2 = cutout.box.xyxy
            assert (math.floor(x1), math.floor(y1)) == (columns.min(), rows.min())
            assert (math.ceil(x2), math.ceil(y2)) == (columns.max() + 1, rows.max() + 1)

    @pytest.mark.parametrize("class_id", range(len(CLASSES)), ids=CLASSES)
    def test_drawn_area_and_box_are_those_of_the_polygon(self, class_id: int, monkeypatch: pytest.MonkeyPatch):
        contours: list[np.ndarray] = []
        deform = shapes._deform

        def remember(*args) -> list[np.ndarray]:
            contours[:] = deform(*args)
            return contours

        monkeypatch.setattr(shapes, "_deform", remember)
        monkeypatch.setattr(shapes, "MAX_CUT", 0.0)
        for seed in range(25):
            box = shapes._cut_out(np.random.default_rng(seed), class_id, 192, 256).box
            outer, *holes = [cv2.contourArea(points.astype(np.float32)) for points in contours]
            perimeter = sum(cv2.arcLength(points.astype(np.float32), True) for points in contours)
            assert box.area == pytest.approx(outer - sum(holes), abs=3 + 0.3 * perimeter)  # a fine pixel around it
            x1, y1, x2, y2 = box.xyxy
            excess = np.array([x2 - x1, y2 - y1]) - np.concatenate(contours).max(0)
            assert excess.min() > -0.02
            assert excess.max() < 0.55

    def test_sides_are_spread_evenly_over_the_octaves(self):
        rng = np.random.default_rng(0)
        cutouts = [shapes._cut_out(rng, 0, 256, 256) for _ in range(400)]
        inside = [c.box.xyxy for c in cutouts if 0 not in c.box.xyxy and 256 not in c.box.xyxy]
        sides = np.array([max(x2 - x1, y2 - y1) for x1, y1, x2, y2 in inside]) / 256
        assert 0.075 < sides.min() < 0.1
        assert 0.5 < sides.max() <= 0.61
        per_octave = np.histogram(sides, bins=[0.075, 0.15, 0.3, 0.61])[0] / len(sides)
        assert min(per_octave) > 0.2
        assert per_octave[0] > 0.25  # were they even in pixels, a seventh

    def test_a_ring_is_open(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(shapes, "MAX_CUT", 0.0)
        for seed in range(9):
            body = shapes._cut_out(np.random.default_rng(seed), CLASSES.index("ring"), 256, 256).body
            assert body[body.shape[0] // 2, body.shape[1] // 2] == 0


class TestOcclusion:
    def test_an_object_left_out_hides_nothing(self):
        front = rectangle(0, 0, 20, 20)
        hidden = rectangle(0, 0, 24, 20)  # a sixth of it looks out
        behind_hidden = rectangle(20, 0, 4, 20)
        assert shapes._front_to_back([front, hidden, behind_hidden], 40, 40) == [front, behind_hidden]

    @pytest.mark.parametrize(("width", "kept"), [(79, False), (80, True)], ids=["below a quarter", "a quarter"])
    def test_a_quarter_must_be_visible(self, width: int, kept: bool):
        front, behind = rectangle(0, 0, 60, 10), rectangle(0, 0, width, 10)
        assert (behind in shapes._front_to_back([front, behind], 10, 100)) is kept

    def test_rule_holds_in_the_finished_picture(self):
        dropped_in_all = 0
        for seed in range(40):
            cutouts = random_cutouts(seed)
            kept = shapes._front_to_back(cutouts, 96, 128)
            picture = np.full((96, 128), -1)
            for i in range(len(kept) - 1, -1, -1):
                picture[kept[i].region][kept[i].mask] = i
            for i, cutout in enumerate(kept):
                assert (picture == i).sum() >= 0.25 * cutout.mask.sum()
            for place, cutout in enumerate(cutouts):
                if cutout in kept:
                    continue
                dropped_in_all += 1
                free = np.ones((96, 128), bool)
                for nearer in (other for other in cutouts[:place] if other in kept):
                    free[nearer.region][nearer.mask] = False
                assert (free[cutout.region] & cutout.mask).sum() < 0.25 * cutout.mask.sum()
        assert dropped_in_all > 20


class TestFiles:
    def test_layout_and_data_yaml(self, root: Path):
        data = yaml.safe_load((root / "data.yaml").read_text())
        assert set(data) == {"train", "val", "coco_json"}
        for split in ("train", "val"):
            on_disk = sorted(path.name for path in (root / data[split]).iterdir())
            coco = json.loads((root / data["coco_json"][split]).read_text())
            assert on_disk == [entry["file_name"] for entry in coco["images"]]
            assert on_disk[0] == "000001.jpg"
            for entry in coco["images"]:
                image = cv2.imdecode(np.frombuffer((root / data[split] / entry["file_name"]).read_bytes(), np.uint8), 1)
                assert image.shape == (entry["height"], entry["width"], 3)
        assert set(load(root, "val")) == {"info", "licenses", "images", "annotations", "categories"}

    def test_annotations_are_what_render_returns(self, root: Path):
        _, boxes = render(np.random.default_rng((0, 1, 7)), 256)
        found = [entry for entry in load(root, "val")["annotations"] if entry["image_id"] == 7]
        assert len(found) == len(boxes) > 0
        for entry, box in zip(found, boxes, strict=True):
            x, y, width, height = entry["bbox"]
            assert (x, y, x + width, y + height) == box.xyxy
            assert (entry["category_id"], entry["area"]) == (box.class_id + 1, box.area)

    def test_pycocotools_gives_full_marks_to_the_ground_truth(self, root: Path):
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(root / "annotations" / "val.json"))
            perfect = truth.loadRes([{**entry, "score": 1.0} for entry in truth.dataset["annotations"]])
            evaluation = COCOeval(truth, perfect, "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        names = ["AP", "AP50", "AP75", "small", "medium", "large"]
        assert dict(zip(names, evaluation.stats, strict=False)) == pytest.approx(dict.fromkeys(names, 1.0))
        assert [truth.cats[i]["name"] for i in range(1, len(CLASSES) + 1)] == list(CLASSES)

    def test_same_config_same_bytes(self, tmp_path: Path):
        first = files(generate(tmp_path / "a", TINY, progress=False))
        assert files(generate(tmp_path / "b", TINY, progress=False)) == first
        other = files(generate(tmp_path / "c", ShapesConfig(train=4, val=2, image_size=48, seed=4), progress=False))
        pictures = [name for name in first if name.endswith(".jpg")]
        assert len({first[name] for name in pictures} | {other[name] for name in pictures}) == 2 * len(pictures)

    def test_a_smaller_set_is_the_beginning_of_a_larger_one(self, tmp_path: Path):
        small = generate(tmp_path / "small", TINY, progress=False)
        large = generate(tmp_path / "large", ShapesConfig(train=7, val=5, image_size=48, seed=3), progress=False)
        pictures = {name: data for name, data in files(small).items() if name.endswith(".jpg")}
        assert len(pictures) == 6
        assert pictures.items() <= files(large).items()
        for split, count in (("train", 4), ("val", 2)):
            few, many = load(small, split), load(large, split)
            assert few["images"] == many["images"][:count]
            assert few["annotations"] == [entry for entry in many["annotations"] if entry["image_id"] <= count]

    def test_progress_goes_to_stderr_on_request(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
        generate(tmp_path / "loud", TINY)
        out, err = capfd.readouterr()
        assert out == ""
        assert "Drawing shapes" in err
        generate(tmp_path / "silent", TINY, progress=False)
        assert capfd.readouterr().err == ""


class TestReplacement:
    def test_a_finished_set_is_left_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        generate(tmp_path / "s", TINY, progress=False)
        (tmp_path / "s" / "mark").touch()
        monkeypatch.setattr(shapes, "render", lambda *_: pytest.fail("drawn again"))
        assert generate(tmp_path / "s", TINY, progress=False) == tmp_path / "s"
        assert (tmp_path / "s" / "mark").exists()

    @pytest.mark.parametrize("damage", [None, "", "[]"], ids=["other config", "empty record", "odd record"])
    def test_another_config_is_made_anew(self, damage: str | None, tmp_path: Path):
        generate(tmp_path / "s", ShapesConfig(train=6, val=1, image_size=40), progress=False)
        if damage is not None:
            (tmp_path / "s" / "shapes.json").write_text(damage)
        generate(tmp_path / "s", TINY, progress=False)
        assert files(tmp_path / "s") == files(generate(tmp_path / "fresh", TINY, progress=False))
        assert {path.name for path in tmp_path.iterdir()} == {"s", "fresh"}

    def test_an_empty_folder_is_used(self, tmp_path: Path):
        (tmp_path / "s").mkdir()
        generate(tmp_path / "s", TINY, progress=False)
        assert (tmp_path / "s" / "data.yaml").exists()

    @pytest.mark.parametrize("before", [None, ShapesConfig(train=1, val=1, image_size=40)], ids=["none", "older set"])
    def test_a_crash_changes_nothing(
        self, before: ShapesConfig | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        root = tmp_path / "s"
        if before:
            generate(root, before, progress=False)
        content = files(tmp_path)
        drawn: list[int] = []

        def crash(rng: np.random.Generator, image_size: int) -> tuple[np.ndarray, list[ShapeBox]]:
            drawn.append(1)
            if len(drawn) == 5:  # the first of the validation split
                raise RuntimeError("out of luck")
            return render(rng, image_size)

        monkeypatch.setattr(shapes, "render", crash)
        with pytest.raises(RuntimeError, match="out of luck"):
            generate(root, TINY, progress=False)
        assert files(tmp_path) == content
        assert [path.name for path in tmp_path.iterdir()] == (["s"] if before else [])

    def test_a_killed_process_leaves_no_root(self, tmp_path: Path):
        program = (
            "import os, sys; from pathlib import Path; from yolo_lat.data import shapes\n"
            "shapes._move_into_place = lambda *_: os._exit(9)\n"
            "shapes.generate(Path(sys.argv[1]), shapes.ShapesConfig(2, 1, 48), False)"
        )
        assert subprocess.run([sys.executable, "-c", program, tmp_path / "s"], check=False).returncode == 9
        assert not (tmp_path / "s").exists()
        generate(tmp_path / "s", TINY, progress=False)
        assert len(load(tmp_path / "s", "train")["images"]) == 4
        assert [path.name for path in tmp_path.iterdir()] == ["s"]

    def test_two_processes_at_once_both_end_well(self, tmp_path: Path):
        program = (
            "import sys; from pathlib import Path; from yolo_lat.data.shapes import ShapesConfig, generate\n"
            "generate(Path(sys.argv[1]), ShapesConfig(4, 2, 48, 3), False)"
        )
        command = [sys.executable, "-c", program, str(tmp_path / "s")]
        running = [subprocess.Popen(command) for _ in range(2)]
        assert [process.wait(60) for process in running] == [0, 0]
        assert files(tmp_path / "s") == files(generate(tmp_path / "fresh", TINY, progress=False))
        assert {path.name for path in tmp_path.iterdir()} == {"s", "fresh"}

    @pytest.mark.parametrize("rival", [TINY, ShapesConfig(train=1, val=1, image_size=40)], ids=["same", "other"])
    @pytest.mark.parametrize("moment", ["while drawing", "while moving"])
    def test_a_set_that_appears_meanwhile(
        self, moment: str, rival: ShapesConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        root, rename = tmp_path / "s", Path.rename

        def rival_comes() -> None:
            monkeypatch.undo()
            generate(root, rival, progress=False)
            (root / "rival").touch()

        def interrupted_render(rng: np.random.Generator, image_size: int) -> tuple[np.ndarray, list[ShapeBox]]:
            rival_comes()
            return render(rng, image_size)

        def interrupted_rename(source: Path, target: Path) -> Path:
            if source.name == "new":  # the place was just found free
                rival_comes()
            return rename(source, target)

        if moment == "while drawing":
            monkeypatch.setattr(shapes, "render", interrupted_render)
        else:
            monkeypatch.setattr(Path, "rename", interrupted_rename)
        generate(root, TINY, progress=False)
        assert (root / "rival").exists() is (rival == TINY)
        assert json.loads((root / "shapes.json").read_text())["train"] == 4
        assert [path.name for path in tmp_path.iterdir()] == ["s"]

    def test_many_writers_of_two_configs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(shapes, "render", lambda *_: (np.zeros((32, 32, 3), np.uint8), []))
        configs = [ShapesConfig(train=1 + i % 2, val=1, image_size=32) for i in range(60)]
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda config: generate(tmp_path / "s", config, progress=False), configs))
        made = json.loads((tmp_path / "s" / "shapes.json").read_text())
        assert len(load(tmp_path / "s", "train")["images"]) == made["train"]
        assert [path.name for path in tmp_path.iterdir()] == ["s"]


class TestUserErrors:
    @pytest.mark.parametrize("place", ["file", "file/below", "full"])
    def test_a_place_that_is_taken(self, place: str, tmp_path: Path):
        (tmp_path / "file").write_text("mine")
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "thesis.tex").write_text("mine")
        content = files(tmp_path)
        with pytest.raises(UserError, match=rf"shapes: .*{place}.*, choose .*folder"):
            generate(tmp_path / place, TINY, progress=False)
        assert files(tmp_path) == content

    def test_a_place_that_refuses_the_set(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        def refuse(source: Path, target: Path) -> Path:
            if source.name == "new":
                raise PermissionError(13, "Permission denied")
            raise FileNotFoundError

        monkeypatch.setattr(Path, "rename", refuse)
        with pytest.raises(UserError, match=r"cannot write .*/s \(Permission denied\), choose a folder"):
            generate(tmp_path / "s", TINY, progress=False)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("field", ["train", "val", "image_size", "seed"])
    def test_a_config_out_of_range(self, field: str):
        lowest = {"train": 1, "val": 1, "image_size": 32, "seed": 0}[field]
        ShapesConfig(**{field: lowest})
        with pytest.raises(UserError, match=f"{field} is {lowest - 1}, use {lowest} or more"):
            ShapesConfig(**{field: lowest - 1})
