"""What a benchmark accepts, what it makes of it, and what it refuses in one sentence."""

import os
from pathlib import Path

import pytest

from yolo_lat.deploy.benchmark.plan import BASELINES, Cell, make_plan
from yolo_lat.deploy.benchmark.settings import SETTINGS
from yolo_lat.errors import UserError
from yolo_lat.resources import model_names


def test_defaults_are_the_protocol():
    plan = make_plan("yolo-lat-p,yolov8n,yolo12n,yolo26n")
    assert (plan.rounds, plan.runs, plan.boundary, plan.precision) == (5, 50, ("forward", "pipeline"), ("fp32",))
    assert plan.references == ("yolo26n", "yolo12n")
    assert plan.threads == len(os.sched_getaffinity(0))
    assert [entry.source for entry in plan.entries] == [f"{entry.name}.yaml" for entry in plan.entries]
    assert not any(entry.is_trained or entry.is_onnx for entry in plan.entries)
    cuda = make_plan("yolo-lat-p", device=0)
    assert (cuda.device, cuda.precision, cuda.references) == ("cuda:0", ("fp16",), ())
    assert (cuda.settings, cuda.exhaustive) == (SETTINGS["cuda"], False)


def test_lists_are_written_with_commas_and_cells_are_their_product(models):
    words = f"a={models['quick']}, b={models['slow']}"
    plan = make_plan(words, imgsz=(320, 640), batch="1,32", boundary="pipeline,forward", reference="b", threads=3)
    assert [(entry.name, entry.is_onnx, entry.is_trained) for entry in plan.entries] == [
        ("a", True, True),
        ("b", True, True),
    ]
    cells = list(plan.cells())
    assert cells[:3] == [
        Cell(320, 1, "fp32", "forward"),
        Cell(320, 1, "fp32", "pipeline"),
        Cell(320, 32, "fp32", "forward"),
    ]
    assert len(cells) == 8
    assert plan.threads == 3
    assert make_plan(str(models["quick"])).entries[0].name == "quick"


def test_every_model_that_ships_is_known():
    names = model_names()
    assert [entry.source for entry in make_plan(",".join(names)).entries] == [f"{name}.yaml" for name in names]
    assert len(BASELINES) == 20


def test_settings_are_named_from_the_list():
    plan = make_plan("yolo26n", device="cuda:1", settings="graph+nhwc+bias,default")
    assert [setting.name for setting in plan.settings] == ["graph+nhwc+bias", "default"]
    assert plan.exhaustive


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"models": "yolo-lat-q"}, "no model 'yolo-lat-q'; did you mean 'yolo-lat-"),
        ({"models": "yolo27n"}, "no model 'yolo27n'; did you mean 'yolo2"),
        ({"models": "resnet"}, "no model 'resnet'; known names are yolo-lat-p, "),
        ({"models": "x=none.onnx"}, "models=x=none.onnx: none.onnx is not a file"),
        ({"models": "yolo26n,yolo26n"}, "two models have one name"),
        ({"models": ""}, "no model is given"),
        ({"imgsz": "0"}, "imgsz=0 is not a whole number from 1"),
        ({"imgsz": "640,x"}, "imgsz=x is not a whole number from 1"),
        ({"imgsz": ","}, "imgsz=, has no number"),
        ({"batch": "9" * 20}, f"batch={'9' * 20} is not a whole number from 1 to 100000; give one"),
        ({"imgsz": 100_001}, "imgsz=100001 is not a whole number from 1 to 100000"),
        ({"runs": 2**31}, "runs=2147483648 is not a whole number from 1 to 2147483647"),
        ({"batch": "1.5"}, "batch=1.5 is not a whole number"),
        ({"rounds": 0}, "rounds=0 is not a whole number from 1"),
        ({"seed": -1}, "seed=-1 is not a whole number from 0"),
        ({"device": "gpu"}, "device=gpu is unknown; give cpu"),
        ({"device": "0,1"}, "device=0,1 is unknown; give cpu, or the number of one CUDA device"),
        ({"precision": "fp8", "device": 0}, "precision=fp8 is unknown; use fp32 or fp16"),
        ({"precision": "fp16"}, "precision=fp16 is not for device=cpu"),
        ({"boundary": "end"}, "boundary=end is unknown; use forward or pipeline"),
        ({"reference": "yolo12n"}, "reference=yolo12n is not among the models"),
        ({"settings": "graph"}, "settings=graph is not in the declared list for cpu; use some of default"),
        (
            {"settings": "nhcw", "device": 0},
            "settings=nhcw is not in the declared list for cuda:0; did you mean 'nhwc'",
        ),
    ],
)
def test_unusable_values_are_refused(values, message):
    with pytest.raises(UserError) as caught:
        make_plan(**{"models": "yolo26n", **values})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_path_is_no_name(tmp_path: Path):
    with pytest.raises(UserError, match="is not a file"):
        make_plan(str(tmp_path / "best.pt"))
