"""The guides: Python runs and prints what they say, YAML builds, commands parse, errors are real, links lead somewhere.

Conventions of docs/*.md. A `yaml` or `python` block whose first line is `# name.yaml` or `# name.py` is a file of that
name. A `text` block after a line that ends in "prints:" is the output of the `python` block before it, and a line of a
`text` block that starts with "yolo-lat: error:" is an error message of the code. /data/boards stands for a folder of
the reader's, which lies in a temporary folder here.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import yaml
from PIL import Image
from quick import first
from ultralytics import YOLO
from ultralytics.cfg import DEFAULT_CFG_DICT
from ultralytics.cfg import MODES as ULTRALYTICS_MODES

from yolo_lat import YOLOLAT
from yolo_lat.cli import dispatch, explain
from yolo_lat.cli_modes import MODES
from yolo_lat.cli_parse import parse
from yolo_lat.data import registry as data_registry
from yolo_lat.data.reader import read_split
from yolo_lat.data.registry import load_dataset
from yolo_lat.demo.zones import read_zones
from yolo_lat.ela import KERNELS
from yolo_lat.engine.recipe import read_recipe, recipe_names
from yolo_lat.errors import UserError
from yolo_lat.nn import LatModel, load_model_yaml, model_names
from yolo_lat.nn.parser import ROWS
from yolo_lat.pretrained import pretrained_names

ROOT = Path(__file__).resolve().parents[1]
GUIDES = sorted((ROOT / "docs").glob("*.md"))
LINKING = [*GUIDES, *ROOT.glob("README.md")]
LANGUAGES = {"python", "yaml", "console", "text"}
WEIGHTS = {".pt", ".safetensors", ".onnx", ".yaml"}
SHAPES = {"train": 12, "val": 4, "image_size": 64, "seed": 0}

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"# (\S+\.(?:py|yaml))$", re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
COMMAND = re.compile(r"`(yolo(?:-lat)? [^`]+)`")
NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")


@dataclass(frozen=True)
class Block:
    """A fenced block: `line` is that of its first line in the file, `lead` the last line of text before it."""

    guide: Path
    line: int
    language: str
    text: str
    lead: str

    def __str__(self) -> str:
        return f"{self.guide.name}:{self.line}"

    @property
    def file(self) -> str | None:
        found = FILE_NAME.match(self.text)
        return found[1] if found else None


def read_blocks(guide: Path) -> list[Block]:
    text = guide.read_text(encoding="utf-8")
    blocks = []
    for fence in FENCE.finditer(text):
        before = text[: fence.start()].rstrip()
        blocks.append(Block(guide, text[: fence.start(2)].count("\n") + 1, fence[1], fence[2], before.split("\n")[-1]))
    return blocks


def prose(guide: Path) -> str:
    return FENCE.sub("", guide.read_text(encoding="utf-8"))


BLOCKS = [block for guide in GUIDES for block in read_blocks(guide)]
YAML_BLOCKS = [block for block in BLOCKS if block.language == "yaml"]


def of_guide(guide: Path | str) -> list[Block]:
    return [block for block in BLOCKS if block.guide.name == Path(guide).name]


def commands() -> Iterator[Any]:
    """Every command line of the guides: the lines of console blocks, and code spans that start like one."""
    for block in BLOCKS:
        if block.language == "console":
            for number, line in enumerate(block.text.splitlines()):
                yield pytest.param(line, id=f"{block.guide.name}:{block.line + number}")
    for guide in GUIDES:
        for i, found in enumerate(COMMAND.findall(prose(guide))):
            yield pytest.param(found, id=f"{guide.name}-span{i}")


def make_boards(root: Path) -> None:
    """Write the data set that own-data.md describes, with both kinds of labels."""
    for split, names in {"train": ("a", "b"), "val": ("c",)}.items():
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for name in names:
            Image.new("RGB", (64, 48), "grey").save(root / "images" / split / f"{name}.jpg")
    rows = next(b.text for b in of_guide("own-data.md") if b.lead.endswith("the image (0 to 1):"))
    (root / "labels/train/a.txt").write_text(rows)
    (root / "labels/train/b.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    (root / "labels/val/c.txt").write_text("1 0.1 0.1 0.3 0.1 0.3 0.4\n")
    for file in sorted((root / "labels").rglob("*.txt")):  # one object in each image
        xml = root / "Annotations" / file.parent.name / f"{file.stem}.xml"
        xml.parent.mkdir(parents=True, exist_ok=True)
        box = "<xmin>11</xmin><ymin>11</ymin><xmax>40</xmax><ymax>30</ymax>"
        xml.write_text(f"<annotation><object><name>hole</name><bndbox>{box}</bndbox></object></annotation>")
    (root / "annotations").mkdir()
    categories = [{"id": i, "name": name} for i, name in ((2, "scratch"), (3, "hole"), (7, "short"))]
    for split, images, boxes in (("train", ("a", "b"), (1, 1, 2)), ("val", ("c",), (1,))):
        box = {"category_id": 7, "bbox": [10, 10, 5, 5]}
        size = {"width": 64, "height": 48}
        content = {
            "images": [{"id": i, "file_name": f"{name}.jpg", **size} for i, name in enumerate(images, 1)],
            "annotations": [{"id": i, "image_id": image, **box} for i, image in enumerate(boxes, 1)],
            "categories": categories,
        }
        (root / f"annotations/{split}.json").write_text(json.dumps(content))


@dataclass(frozen=True)
class Workspace:
    """A reader's folder, with /data beside their work."""

    root: Path

    def real(self, text: str) -> str:
        return text.replace("/data/boards", f"{self.root}/data/boards")

    def shown(self, text: str) -> str:
        return text.replace(str(self.root), "")

    def path(self, name: str) -> Path:
        return self.root / name.removeprefix("/")

    def edit(self, name: str, *replacements: tuple[str, str]) -> None:
        text = self.path(name).read_text()
        for old, new in replacements:
            assert text.count(old) == 1, f"{name} says {old!r} {text.count(old)} times"
            text = text.replace(old, new)
        self.path(name).write_text(text)

    def fill(self, guide: str | Path) -> None:
        for block in of_guide(guide):
            if block.file:
                self.path(block.file).write_text(self.real(block.text))


@pytest.fixture(scope="session")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture
def workspace(tmp_path: Path, datasets: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """An empty working folder with /data/boards, and a `shapes` set of a few small images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("YOLO_LAT_DATASETS", str(datasets))
    monkeypatch.syspath_prepend(tmp_path)
    entries = data_registry.registry()
    entries["shapes"]["generate"] = SHAPES
    monkeypatch.setattr(data_registry, "registry", lambda: entries)
    make_boards(tmp_path / "data/boards")
    importlib.invalidate_caches()
    with patch.dict(KERNELS), patch.dict(ROWS):
        yield Workspace(tmp_path)
    for block in BLOCKS:  # a later test imports its own copy, which registers its classes again
        sys.modules.pop((block.file or "").removesuffix(".py"), None)


def same_output(shown: str, printed: str) -> bool:
    """Whether two outputs agree: same text, whole numbers equal, others to one in their last digit or both rounding."""

    def split(text: str) -> tuple[list[str], list[str]]:
        words = " ".join(text.split())
        return NUMBER.split(words), NUMBER.findall(words)

    def close(a: str, b: str) -> bool:
        x, y = float(a.replace(",", "")), float(b.replace(",", ""))
        if "." not in a or "." not in b:
            return x == y
        mantissa, _, exponent = a.partition("e")
        unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
        return abs(x - y) <= 1.01 * unit or max(abs(x), abs(y)) < 1e-8

    (text, numbers), (other_text, other_numbers) = split(shown), split(printed)
    return text == other_text and len(numbers) == len(other_numbers) and all(map(close, numbers, other_numbers))


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("error 4.5e-16, 0.132", "error  2.1e-15,\n0.133\n", True),
        ("AP 0.132", "AP 0.134", False),
        ("D_phi = 81", "D_phi = 82", False),
        ("3,157,200 parameters", "3,157,201 parameters", False),
        ("error 1.0e-03", "error 1.2e-03", False),
        ("error 2.1e-15", "error 2.1e-05", False),
        ("True", "False", False),
        ("a 1.0", "b 1.0", False),
        ("1.0 2.0", "1.0", False),
    ],
)
def test_outputs_are_compared_number_by_number(a: str, b: str, same: bool) -> None:
    assert same_output(a, b) is same


def test_the_guides_are_there_and_every_block_says_what_it_is() -> None:
    names = {guide.name for guide in GUIDES}
    assert names >= {"own-data.md", "own-model.md", "own-kernel.md", "from-yolov8.md", "method.md"}
    assert names >= {"recipes.md", "evaluation.md"}
    for guide in GUIDES:
        fences = re.findall(r"^\s*```", guide.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) == 2 * len(of_guide(guide)), f"{guide.name} has a fence that is indented or not closed"
    assert {str(block): block.language for block in BLOCKS if block.language not in LANGUAGES} == {}


WITH_PYTHON = [g for g in GUIDES if any(block.language == "python" for block in of_guide(g))]
WITH_PYTHON.sort(key=lambda guide: guide.name == "from-yolov8.md")  # the longest goes last


@pytest.mark.parametrize("guide", first(len(WITH_PYTHON) - 1, WITH_PYTHON), ids=lambda guide: guide.name)
def test_python_runs_and_prints_what_the_guide_shows(guide: Path, workspace: Workspace) -> None:
    workspace.fill(guide)
    picture = next(iter(sorted(read_split(load_dataset("shapes"), "val").images, key=lambda image: image.path))).path
    shutil.copy(picture, "street.jpg")
    lines: list[str] = []  # what the guide prints itself; training prints much besides
    namespace = {"__name__": "guide", "print": lambda *values: lines.append(" ".join(map(str, values)))}
    printed: str | None = None
    for block in of_guide(guide):
        if block.language == "python" and not block.file:
            source = "\n" * (block.line - 1) + workspace.real(block.text)
            lines.clear()
            exec(compile(source, str(guide), "exec"), namespace)
            printed = workspace.shown("\n".join(lines))
        elif block.language == "text" and block.lead.endswith("prints:"):
            assert printed is not None, f"{block} shows an output, but no Python stands before it"
            assert same_output(block.text, printed), f"{block} shows\n{block.text}\nbut it printed\n{printed}"
            printed = None


@pytest.mark.parametrize("block", YAML_BLOCKS, ids=str)
def test_yaml_is_a_model_that_learns_or_a_data_set_that_reads(block: Block, workspace: Workspace) -> None:
    content = yaml.safe_load(block.text)
    assert block.file, f"{block} needs a first line with its file name"
    workspace.fill(block.guide)
    if "backbone" in content:
        for python in of_guide(block.guide):
            if python.file and python.file.endswith(".py"):
                importlib.import_module(python.file.removesuffix(".py"))
        for scale in content["scales"]:
            model = LatModel(load_model_yaml(block.file, scale), verbose=False).train()
            model.args = type("Gains", (), {"box": 7.5, "cls": 0.5, "dfl": 1.5, "epochs": 1, "cls_pw": 0.0})()
            batch = {
                "img": torch.rand(2, 3, 64, 64),
                "batch_idx": torch.tensor([0.0, 1.0]),
                "cls": torch.tensor([[0.0], [1.0]]),
                "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]] * 2),
            }
            loss, _ = model(batch)
            loss.sum().backward()
            gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
            assert [name for name, g in gradients.items() if g is None or not g.isfinite().all()] == []
    elif content.keys() <= {"lines", "polygons"}:
        assert sum(map(len, read_zones(workspace.path(block.file)))) == sum(map(len, content.values()))
    elif "train" not in content:
        assert read_recipe(workspace.path(block.file)) == content
    else:
        spec = load_dataset(workspace.path(block.file))
        assert {"train", "val"} <= spec.splits.keys()
        for split in spec.splits:
            assert sum(len(image.class_ids) for image in read_split(spec, split).images) > 0


@pytest.mark.parametrize("line", list(commands()))
def test_commands_have_a_known_mode_and_known_keys(line: str) -> None:
    program, *words = shlex.split(line, comments=True)
    if program == "torchrun":
        assert "-m yolo_lat train" in line
        program, words = "yolo-lat", words[words.index("yolo_lat") + 1 :]
    assert program in {"yolo-lat", "yolo"}, f"neither a command of yolo-lat, yolo nor torchrun: '{line}'"
    if program == "yolo":
        words = words[words[0] == "detect" :]
        assert words[0] in ULTRALYTICS_MODES
        assert {word.partition("=")[0] for word in words[1:]} <= DEFAULT_CFG_DICT.keys()
    elif words[-1] in {"--help", "--version"}:
        dispatch(words)
    else:
        name = " ".join(words[: 1 + (" ".join(words[:2]) in MODES)])
        options = parse(MODES[name], words[len(name.split()) :])
        model, data = str(options.get("model", "best.pt")), str(options.get("data", "my.yaml"))
        assert Path(model).suffix in WEIGHTS or model in (*model_names(), *pretrained_names())
        assert Path(data).suffix == ".yaml" or data.partition(":")[0] in data_registry.registry()
        recipe = str(options.get("cfg", "my.yaml"))
        assert Path(recipe).suffix == ".yaml" or recipe in recipe_names()


def test_a_wrong_command_is_noticed() -> None:
    with pytest.raises(UserError, match="epoch"):
        test_commands_have_a_known_mode_and_known_keys("yolo-lat train model=yolo-lat-n data=coco epoch=3")
    with pytest.raises(KeyError):
        test_commands_have_a_known_mode_and_known_keys("yolo-lat learn model=yolo-lat-n")
    with pytest.raises(AssertionError):
        test_commands_have_a_known_mode_and_known_keys("yolo-lat val model=yolo-lat-q data=coco")


def slugs(file: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a file."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", file.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("file", LINKING, ids=lambda file: file.name)
def test_links_lead_somewhere(file: Path) -> None:
    for target in LINK.findall(prose(file)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (file.parent / path).resolve() if path else file
        assert there.exists(), f"{file.name} links to {target}"
        assert not anchor or anchor in slugs(there), f"{file.name} links to {target}, which has no such heading"


def read_boards(workspace: Workspace, name: str = "boards") -> None:
    spec = load_dataset(workspace.path(f"/data/{name}.yaml"))
    for split in spec.splits:
        read_split(spec, split)


def yaml_fault(*replacement: str) -> Callable[[Workspace], None]:
    def run(workspace: Workspace) -> None:
        workspace.edit("/data/boards.yaml", (replacement[0], replacement[1]))
        read_boards(workspace)

    return run


def label_fault(row: str) -> Callable[[Workspace], None]:
    def run(workspace: Workspace) -> None:
        workspace.edit("/data/boards/labels/train/a.txt", ("2 0.250 0.250 0.050 0.080", row))
        read_boards(workspace)

    return run


def json_fault(*change: Any) -> Callable[[Workspace], None]:
    def run(workspace: Workspace) -> None:
        table, values = change
        file = workspace.path("/data/boards/annotations/train.json")
        content = json.loads(file.read_text())
        content[table][0].update(values)
        file.write_text(json.dumps(content))
        read_boards(workspace, "boards-coco")

    return run


def labels_elsewhere(workspace: Workspace) -> None:
    workspace.path("/data/boards/labels").rename(workspace.path("/data/boards/txt"))
    read_boards(workspace)


def broken_image(workspace: Workspace) -> None:
    file = workspace.path("/data/boards/images/train/b.jpg")
    file.write_bytes(file.read_bytes()[:-2])
    read_boards(workspace)


def other_classes(workspace: Workspace) -> None:
    model = YOLOLAT("yolo-lat-p")
    model.model = LatModel(load_model_yaml("yolo-lat-p"), nc=8, verbose=False)
    model.model.args, model.model.names = model.overrides, dict(enumerate(load_dataset("shapes").names))
    model.val(data=str(workspace.path("/data/boards.yaml")), imgsz=64, workers=0, plots=False, device="cpu")


def model_fault(old: str, new: str, scale: str | None = "n") -> Callable[[Workspace], None]:
    def run(workspace: Workspace) -> None:
        workspace.edit("my-model.yaml", (old, new))
        LatModel(load_model_yaml("my-model.yaml", scale), verbose=False)

    return run


class Hostile:
    """Pickled as a call of os.system."""

    def __reduce__(self) -> Any:
        return os.system, ("true",)


def load_hostile(workspace: Workspace) -> None:
    torch.save({"model": Hostile()}, workspace.path("best.pt"))
    YOLOLAT("best.pt")


FAULTS: dict[str, dict[str, Callable[[Workspace], None]]] = {
    "training.md": {"pickle": load_hostile},
    "own-data.md": {
        "path": yaml_fault("images/train", "images/trian"),
        "no names": yaml_fault("names: [scratch, hole, short]", ""),
        "nc": yaml_fault("names:", "nc: 4\nnames:"),
        "set name": lambda workspace: load_dataset("shape") and None,
        "pixels": label_fault("2 16 12 3 4"),
        "class": label_fault("3 0.250 0.250 0.050 0.080"),
        "row length": label_fault("2 0.250 0.250 0.050"),
        "label folder": labels_elsewhere,
        "size": json_fault("images", {"width": 48, "height": 64}),
        "box": json_fault("annotations", {"bbox": [10, 10, -5, 5]}),
        "category": json_fault("annotations", {"category_id": 9}),
        "image id": json_fault("annotations", {"image_id": 99}),
        "image file": broken_image,
        "classes": other_classes,
    },
    "own-model.md": {
        "row name": model_fault("LocalBlock", "LocalBlok"),
        "heads": model_fault("[256, 4, 8]", "[256, 5, 8]"),
        "kernel": model_fault("[256, 4, 8]", "[256, 4, 8, Gaussian]"),
        "resolution": model_fault("[[4, -1], 1, HyperLink, [128, [1, 2]]]", "[[4, -1], 1, HyperLink, [128]]"),
        "many": model_fault("CrossScaleELA", "ELABlock"),
        "widths": model_fault("[-1, 1, LatDetect, [nc]]", "[[9, 8, 6], 1, LatDetect, [nc]]"),
        "scale": model_fault("nc: 8", "nc: 8", scale=None),
    },
}


def message_of(guide: str, fault: str, workspace: Workspace) -> str:
    workspace.fill(guide)
    with pytest.raises(UserError) as caught:
        FAULTS[guide][fault](workspace)
    return settled(workspace.shown(f"yolo-lat: error: {explain(caught.value)}"))


def settled(message: str) -> str:
    """Leave out what depends on the version of Pillow."""
    return re.sub(r"\d+ bytes not processed", "N bytes not processed", message)


def quoted_errors(guide: Path | str) -> list[str]:
    texts = [block.text for block in of_guide(guide) if block.language == "text"]
    return [settled(line) for text in texts for line in text.splitlines() if line.startswith("yolo-lat: error: ")]


@pytest.mark.parametrize(("guide", "fault"), [(guide, fault) for guide in FAULTS for fault in FAULTS[guide]])
def test_an_error_is_quoted_as_the_code_words_it(guide: str, fault: str, workspace: Workspace) -> None:
    message = message_of(guide, fault, workspace)
    assert message in quoted_errors(guide)


def test_no_error_is_quoted_that_nothing_produces() -> None:
    """With the test above, which finds a quotation for each fault, as many quotations as faults leave none over."""
    for guide in GUIDES:
        quoted = quoted_errors(guide)
        assert len(set(quoted)) == len(quoted) == len(FAULTS.get(guide.name, {})), guide.name


def test_plain_ultralytics_trains_validates_and_predicts_with_our_checkpoint(workspace: Workspace) -> None:
    """What from-yolov8.md says of `YOLO` and our .pt, beyond the prediction that it shows."""
    workspace.fill("own-data.md")
    arguments = {"imgsz": 64, "batch": 2, "workers": 0, "plots": False, "device": "cpu", "verbose": False}
    data = str(workspace.path("/data/boards.yaml"))
    model = YOLOLAT("yolo-lat-p")
    model.train(data=data, epochs=1, **arguments)
    plain = YOLO(model.trainer.best)
    assert plain.val(data=data, **arguments).box.map >= 0
    with pytest.raises(SyntaxError, match="names"):
        plain.val(data=str(workspace.path("/data/boards-coco.yaml")), **arguments)


def test_the_backbone_of_yolov8_starts_a_model_with_the_new_neck() -> None:
    ours, stock = (
        LatModel(load_model_yaml(name), verbose=False).state_dict() for name in ("yolo-lat-v8-n", "yolov8n.yaml")
    )
    fitting = [key for key, value in ours.items() if key in stock and value.shape == stock[key].shape]
    assert {int(key.split(".")[1]) for key in fitting} == set(range(10))
    assert f"`Transferred {len(fitting)}/{len(ours)} items from" in prose(ROOT / "docs/from-yolov8.md")
