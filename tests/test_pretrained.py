"""Weights that ship: every one is whole, has a card that says its numbers, and is loaded by its name, offline."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml

from yolo_lat import YOLOLAT, pretrained
from yolo_lat.cli import main
from yolo_lat.deploy.benchmark.plan import make_plan
from yolo_lat.engine.checkpoint import save_safetensors
from yolo_lat.engine.table import count_deployed
from yolo_lat.errors import UserError
from yolo_lat.nn import LatModel, load_model_yaml
from yolo_lat.pretrained import Pretrained, default_weights, find_pretrained, pretrained_names, sha256

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import add_weights  # noqa: E402

NAMES = pretrained_names()
TWELVE = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def entry(name: str) -> Pretrained:
    found = find_pretrained(name)
    assert found is not None
    return found


@pytest.mark.parametrize("name", NAMES)
class TestEach:
    def test_the_file_is_whole_small_and_what_the_registry_says(self, name: str) -> None:
        found = entry(name)
        model = YOLOLAT(name)
        assert found.checked().stat().st_size <= 25e6
        assert tuple(model.names.values()) == found.classes
        assert model.overrides["imgsz"] == found.imgsz
        assert count_deployed(model.model, found.imgsz)[0] == found.parameters
        content, origin = model.model.yaml, load_model_yaml(found.model)
        assert [content[key] for key in ("backbone", "head", "scale")] == [
            origin[key] for key in ("backbone", "head", "scale")
        ]

    def test_the_card_says_it_all(self, name: str) -> None:
        found = entry(name)
        card = found.card.read_text(encoding="utf-8")
        assert tuple(found.coco) == TWELVE
        numbers = "| " + " | ".join(f"{value:.4f}" for value in found.coco.values()) + " |"
        heads = ("## Numbers", "## Training", "## Latency", "## Limits", "AGPL-3.0")
        for part in (found.note, found.sha256, numbers, f"seed {found.seed}", f"{found.epochs} epochs", *heads):
            assert part in card, part
        assert "/tmp" not in card
        assert all(c in card for c in found.classes)

    def test_the_name_is_no_models(self, name: str) -> None:
        with pytest.raises(UserError, match="no model"):
            load_model_yaml(name)


def test_cards_and_the_study_say_what_weights_reach_at_other_sizes() -> None:
    record = json.loads((ROOT / "docs/results/other-sizes.json").read_text(encoding="utf-8"))["results"]
    study = (ROOT / "docs/study.md").read_text(encoding="utf-8")
    assert set(record) == set(pretrained_names())
    titles = {"voc12": "photographs", "groceries": "groceries", "pcb": "circuit boards"}
    for name, sizes in record.items():
        found, card = find_pretrained(name), (ROOT / f"weights/{name}.md").read_text(encoding="utf-8")
        assert found is not None
        own = sizes.pop(str(found.imgsz))["AP"]
        assert own == pytest.approx(found.coco["AP"], abs=1e-6)
        limit = next(line for line in card.splitlines() if line.startswith(f"- For images of {found.imgsz} px:"))
        n, p = (record[f"yolo-lat-{scale}-{found.data}"] for scale in "np")
        for size in sizes:
            assert f"at {size} px " in limit
            assert f"{n[size]['AP']:.3f}" in limit
            assert f"{p[size]['AP']:.3f}" in limit
        scale = name.split("-")[2]
        cells = [f"{reached['AP']:.3f}" for reached in sizes.values()]
        cells.insert(1, f"**{own:.3f}**")
        assert f"| {scale}, {titles[found.data]} | {' | '.join(cells)} |" in study


def test_nothing_lies_beside_the_registry_that_it_does_not_name() -> None:
    folder = ROOT / "weights"
    expected = {pretrained.REGISTRY, *(f"{name}{suffix}" for name in NAMES for suffix in (".safetensors", ".md"))}
    assert {file.name for file in folder.iterdir()} == expected
    default = default_weights()
    assert default is not None
    assert default.coco["AP"] == max(entry(n).coco["AP"] for n in NAMES if entry(n).data == default.data)


@pytest.fixture
def shipped(tmp_path, monkeypatch) -> Path:
    """A copy of the weights that ship, in the place of the package's."""
    folder = Path(shutil.copytree(ROOT / "weights", tmp_path / "weights"))
    monkeypatch.setattr(pretrained, "resource", lambda name: tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_damaged_file_is_refused_in_one_sentence(shipped, capsys) -> None:
    file = shipped / f"{NAMES[0]}.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(SystemExit, match="2"):
        main(["info", f"model={NAMES[0]}"])
    error = capsys.readouterr().err
    assert error.startswith(f"yolo-lat: error: {file}: damaged, the SHA-256 is ")
    assert error.count("\n") == 1
    file.unlink()
    with pytest.raises(UserError, match=r"the weights yolo-lat-\S+ are missing; install yolo-lat again"):
        YOLOLAT(NAMES[0])
    with pytest.raises(UserError, match="are missing"):
        make_plan(NAMES[0])


def test_without_weights_there_is_none_to_use(shipped) -> None:
    shutil.rmtree(shipped)
    assert pretrained_names() == []
    assert default_weights() is None
    with pytest.raises(SystemExit, match="2"):
        main(["predict", "source=a.jpg"])


def test_predict_without_a_model_uses_the_best_and_says_so(shipped, capsys) -> None:
    torch.manual_seed(0)
    from PIL import Image

    Image.new("RGB", (64, 48), "grey").save("picture.png")
    with pytest.raises(SystemExit, match="0"):
        main(["predict", "source=picture.png", "save=False", "verbose=False"])
    best = default_weights()
    assert best is not None
    said = capsys.readouterr().out
    measured = f"AP {best.coco['AP']:.3f} on {best.data}"
    assert f"model: {best.name}, the best of the weights for photographs that ship ({measured})" in said
    assert "frames: 1" in said


def test_an_export_goes_to_the_working_directory(shipped) -> None:
    model = YOLOLAT(NAMES[0])
    assert model._export_source() == Path(f"{NAMES[0]}.safetensors")
    assert all(target.parent == Path() for target in model._export_targets("openvino"))


def test_info_lists_the_weights(shipped, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        main(["info", "weights"])
    table = capsys.readouterr().out
    assert all(name in table for name in NAMES)
    assert "used where no model is given" in table
    assert "…" not in table
    with pytest.raises(SystemExit, match="2"):
        main(["info", "weights", "imgsz=320"])
    assert "weights shows all that ship; leave imgsz= out" in capsys.readouterr().err


def test_a_benchmark_takes_the_name_and_a_scale_is_refused() -> None:
    (plain, named) = make_plan(f"{NAMES[0]},mine={NAMES[-1]}").entries
    assert (plain.name, named.name) == (NAMES[0], "mine")
    assert plain.is_trained
    with pytest.raises(UserError, match=f"model={NAMES[0]} has its scale already"):
        YOLOLAT(NAMES[0], scale="p")
    with pytest.raises(UserError, match=rf"did you mean '{NAMES[0]}'\?"):
        YOLOLAT(NAMES[0] + "3")


class TestAdding:
    @pytest.fixture
    def given(self, tmp_path, shapes) -> argparse.Namespace:
        """An untrained model in the folder of a run, and what the tool is told of it."""
        run = tmp_path / "run"
        (run / "weights").mkdir(parents=True)
        categories = json.loads((shapes.parent / "annotations/val.json").read_text())["categories"]
        torch.manual_seed(0)
        model = LatModel(load_model_yaml("yolo-lat-p"), nc=len(categories), verbose=False)
        model.names, model.args = {i: c["name"] for i, c in enumerate(categories)}, {"imgsz": 64}
        save_safetensors(model.half(), run / "weights/best.safetensors")
        args = {"model": "yolo-lat-p.yaml", "epochs": 3, "imgsz": 64, "batch": 4, "seed": 7, "cfg": "small.yaml"}
        (run / "args.yaml").write_text(yaml.safe_dump(args))
        about = {"data": "Drawn shapes.", "note": "For a test.", "limits": ["It is not trained."]}
        (tmp_path / "about.yaml").write_text(yaml.safe_dump(about))
        return argparse.Namespace(
            run=run,
            name="p-shapes",
            data=shapes,
            data_name="shapes",
            about=tmp_path / "about.yaml",
            latency=ROOT / "docs/results/benchmark-cpu.json",
            default=False,
            replace=False,
            device="cpu",
            folder=tmp_path / "weights",
        )

    def test_file_card_and_entry_belong_together(self, given, monkeypatch, tmp_path) -> None:
        add_weights.add(given)
        assert {file.name for file in given.folder.iterdir()} == {
            "p-shapes.safetensors",
            "p-shapes.md",
            "registry.json",
        }
        monkeypatch.setattr(pretrained, "resource", lambda name: tmp_path / name)
        found = entry("p-shapes")
        assert default_weights() == found
        assert (found.data, found.epochs, found.seed, found.model) == ("shapes", 3, 7, "yolo-lat-p")
        assert sha256(found.checked()) == sha256(given.run / "weights/best.safetensors")
        assert YOLOLAT("p-shapes").val(data=str(given.data), imgsz=64, plots=False, device="cpu").coco == pytest.approx(
            found.coco, abs=1e-6
        )
        card = found.card.read_text()
        assert "The commit was not recorded." in card
        cells = json.loads(given.latency.read_text())["cells"]
        timed = next(c["results"] for c in cells if (c["imgsz"], c["boundary"]) == (640, "forward"))
        ms = next(result["median_ms"] for result in timed if result["model"] == "yolo-lat-p")
        assert f"forward, 640 px, batch 1, fp32: {ms:.3f} ms on AMD EPYC" in card
        assert "train: 24 images" in card
        with pytest.raises(UserError, match=r"p-shapes is in .*registry.json already; add --replace"):
            add_weights.add(given)
        (given.run.parent / "done.json").write_text(json.dumps({"commit": "abc1234"}))  # as a study leaves it
        given.replace = True
        add_weights.add(given)
        assert "Commit: abc1234." in found.card.read_text()

    def test_numbers_that_are_not_those_of_the_run(self, given) -> None:
        (given.run / "metrics.json").write_text(json.dumps({"AP": 0.5}))
        with pytest.raises(UserError, match=r"says AP 0.5000, and val finds 0\.0"):
            add_weights.add(given)
        assert not given.folder.exists()

    def test_weights_of_a_model_that_does_not_ship(self, given) -> None:
        file = given.run / "weights/best.safetensors"
        model = YOLOLAT(file).model
        model.yaml["yaml_file"] = "model.yaml"
        save_safetensors(model, file)
        assert add_weights.model_of(YOLOLAT(file), file) == "yolo-lat-p"  # its rows are
        model.yaml["activation"] = "nn.SiLU()"
        save_safetensors(model, file)
        with pytest.raises(UserError, match=r"belongs to model.yaml, which does not ship"):
            add_weights.add(given)

    @pytest.mark.parametrize(
        ("args", "words"),
        [
            ({"model": "yolo-lat-p.yaml", "pretrained": False}, "From scratch"),
            ({"model": "a/best.safetensors", "pretrained": True}, "From best.safetensors"),
            ({"model": "yolo-lat-p.yaml", "pretrained": "a/last.pt"}, "From last.pt"),
        ],
    )
    def test_what_a_training_began_with(self, args, words) -> None:
        assert add_weights.started_from(args) == words

    def test_a_card_has_every_key_that_repeating_the_training_takes(self) -> None:
        like = {"lr0": 0.002, "translate": 0.1, "degrees": 0.0, "device": "3", "workers": 2, "cuda_graph": True}
        more = {"cfg": "/data/small.yaml", "cache": "device", "flipud": 0.5, "scale": 0.1}
        found = add_weights.changes(like | more, "small")
        assert found == {"cache": "device", "flipud": 0.5, "scale": 0.1, "cuda_graph": True}

    def test_what_is_missing(self, given) -> None:
        given.about.write_text("data: x\n")
        with pytest.raises(UserError, match="needs the keys data, note and limits"):
            add_weights.add(given)
        (given.run / "args.yaml").unlink()
        with pytest.raises(UserError, match=r"args.yaml: no such file"):
            add_weights.add(given)
        assert not given.folder.exists()
