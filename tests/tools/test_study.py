"""Studies are declared as data; what they declare can be run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import p_variants  # noqa: E402
import study  # noqa: E402

from yolo_lat.engine.recipe import find_recipe  # noqa: E402
from yolo_lat.nn import LatModel, load_model_yaml  # noqa: E402

STUDIES = sorted((ROOT / "tools/studies").glob("*.yaml"))


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_every_study_names_models_and_recipes_that_exist(file, tmp_path) -> None:
    for name, content in p_variants.variants().items():  # a study may be about these, which a command writes
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    copy = tmp_path / file.name
    copy.write_text(file.read_text())
    runs = study.read_study(copy)
    assert len({run.key for run in runs}) == len(runs) >= 6
    for run in runs:
        find_recipe(run.options["cfg"])
        LatModel(load_model_yaml(run.options["model"]), verbose=False)


def test_runs_of_a_seed_come_together(tmp_path) -> None:
    file = tmp_path / "s.yaml"
    content = {"name": "s", "data": {"a": {"imgsz": 96}, "b": {}}, "recipe": {"epochs": 3}, "seeds": [4, 5]}
    file.write_text(
        yaml.safe_dump({**content, "runs": {"x": {"model": "yolo-lat-p"}, "y": {"epochs": 7, "model": "m"}}})
    )
    runs = study.read_study(file)
    assert [run.key for run in runs] == [f"s-{r}-{d}-{s}" for s in (4, 5) for d in "ab" for r in "xy"]
    assert runs[0].options == {"epochs": 3, "imgsz": 96, "model": "yolo-lat-p", "data": "a", "seed": 4}
    assert runs[3].options["epochs"] == 7
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(SystemExit, match="lacks runs"):
        study.read_study(file)


def test_the_table_has_means_over_the_seeds_that_are_done(capsys) -> None:
    coco = dict.fromkeys(study.SHOWN, 0.5)
    rows = [
        {"run": "x", "data": "a", "seed": seed, **({"coco": coco | {"AP": ap}} if ap else {"unfinished": "2 epochs"})}
        for seed, ap in enumerate((0.1, 0.3, None))
    ]
    study.print_table(json.loads(json.dumps(rows)))
    assert "0.2000 +- 0.1414" in capsys.readouterr().out
