"""Profiles: what they sum to, and whose layers they name."""

import json
from pathlib import Path

import pytest
from benchmark_samples import SIDE
from PIL import Image

from yolo_lat.deploy.benchmark.export import ModelFile
from yolo_lat.deploy.benchmark.plan import make_plan
from yolo_lat.deploy.benchmark.profile import profile_model, take_apart
from yolo_lat.errors import UserError


def test_profile_through_the_command_line(cli, models):
    words = (f"imgsz={SIDE}", "threads=1", "runs=4", "warmup=2")
    result = cli("profile", f"model={models['slow']}", *words, "json=a.json", "figure=a.png")
    assert result.status == 0, result.err
    content = json.loads(Path("a.json").read_text())
    for part in ("operators", "layers"):
        assert sum(cost["ms"] for cost in content[part]) == pytest.approx(content["nodes_ms"])
        assert sum(cost["share"] for cost in content[part]) == pytest.approx(1)
    assert 0 < content["nodes_ms"] <= content["run_ms"]
    assert content["plain_ms"] > 0
    assert {cost["name"]: cost["calls"] for cost in content["operators"]}["Conv"] == 9
    rows = [cost["name"] for cost in content["layers"]]
    assert [row for row in rows if row != "between layers"] == [str(i) for i in range(9)]
    assert rows[-1] in ("8", "between layers")
    assert "with what the profiler adds to each" in " ".join(result.out.split())
    assert result.out.count("100.0%") == 2
    with Image.open("a.png") as picture:
        assert picture.width > 1000


def event(name: str, ts: int, dur: int, operator: str = "", cat: str = "Node", provider: str = "CUDA") -> dict:
    return {"cat": cat, "name": name, "ts": ts, "dur": dur, "args": {"op_name": operator, "provider": provider}}


EVENTS = [
    event("model_run", 0, 900, cat="Session"),
    event("/model.0/conv/Conv_kernel_time", 10, 800, "Conv"),  # warm-up
    event("model_run", 1000, 100, cat="Session"),
    event("/model.0/conv/Conv_kernel_time", 1001, 50, "Conv"),
    event("/model.1/cv2.0/Conv_output_0_nchwc_kernel_time", 1060, 20, "Conv"),
    event("ReorderOutput_token_1_kernel_time", 1085, 5, "ReorderOutput", provider="CPUExecutionProvider"),
    event("model_run", 2000, 200, cat="Session"),
    event("/model.0/conv/Conv_kernel_time", 2001, 150, "Conv"),
    event("/model.1/cv2.0/Conv_output_0_nchwc_kernel_time", 2160, 20, "Conv"),
    event("ReorderOutput_token_1_kernel_time", 2185, 5, "ReorderOutput", provider="CPUExecutionProvider"),
]


def test_warm_up_is_left_out_and_nodes_find_their_rows():
    file = ModelFile("a.onnx", "", layers=("PixelStem", "LatDetect"))
    found = take_apart(EVENTS, warmup=1, runs=2, layers=file.layers, kind="cpu")
    assert [(c.name, c.calls, c.ms) for c in found.layers] == [
        ("0 PixelStem", 1, 0.1),
        ("1 LatDetect", 1, 0.02),
        ("between layers", 1, 0.005),
    ]
    assert [(c.name, c.calls) for c in found.operators] == [("Conv", 2), ("ReorderOutput", 1)]
    assert found.nodes_ms == pytest.approx(0.125)
    assert found.run_ms == pytest.approx(0.15)
    assert found.operators[0].share == pytest.approx(0.96)


def test_operators_that_a_gpu_leaves_to_the_cpu_are_marked():
    found = take_apart(EVENTS, warmup=1, runs=2, layers=(), kind="cuda")
    assert [cost.name for cost in found.operators] == ["Conv", "ReorderOutput (on the CPU)"]
    assert [cost.name for cost in found.layers] == ["0", "1", "between layers"]


@pytest.mark.parametrize(
    ("values", "message"),
    [({"imgsz": "96,128"}, "imgsz= has 2 values"), ({"models": "yolo26n,yolo12n"}, "model= has 2 values")],
)
def test_one_thing_is_profiled_at_a_time(values, message):
    with pytest.raises(UserError, match=message):
        profile_model(make_plan(**{"models": "yolo26n", "boundary": "forward", **values}), layout=True)


def test_mistakes_take_one_line(cli, models):
    for words, message in (
        ([], "profile needs model=, for example: yolo-lat profile"),
        ([f"model={models['two']}", f"imgsz={SIDE}"], "takes [2, 3, 96, 96]"),
        (["model=none.onnx"], "none.onnx is not a file"),
    ):
        result = cli("profile", *words)
        assert result.status == 2
        assert message in result.err
        assert result.err.count("\n") == 1
