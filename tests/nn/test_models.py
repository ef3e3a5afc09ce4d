"""Every model YAML at every scale, and the parser beside Ultralytics' own."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import yaml
from quick import first
from ultralytics.nn import tasks
from ultralytics.nn.modules import Conv
from ultralytics.utils import DEFAULT_CFG, DEFAULT_CFG_PATH

from yolo_lat.errors import UserError
from yolo_lat.nn import LatModel, load_model_yaml, model_names
from yolo_lat.nn.complexity import count_gflops, count_parameters
from yolo_lat.nn.layout import channels_last_graph
from yolo_lat.nn.parser import _stock_parse_model, parse_model
from yolo_lat.resources import resource

LARGE = ("-m", "-l", "-x")


def images(n: int = 2, size: int = 64) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def names(large: bool) -> list[str]:
    return [name for name in model_names() if name.endswith(LARGE) == large]


def exercise(name: str) -> None:
    """Build, train a step, and compare the deployed form."""
    torch.manual_seed(0)
    model = LatModel(load_model_yaml(name), nc=4, verbose=False)
    model.args = copy.copy(DEFAULT_CFG)
    batch = {
        "img": images(),
        "batch_idx": torch.tensor([0.0, 1.0]),
        "cls": torch.tensor([[1.0], [3.0]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.6], [0.3, 0.6, 0.2, 0.2]]),
    }
    loss, items = model(batch)
    loss.sum().backward()
    assert all(torch.isfinite(value) for value in items.values())
    unused = [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not [n for n in unused if not n.endswith("dfl.conv.weight")]
    model.eval()
    with torch.no_grad():
        y = model(images())[0]
        deployed = copy.deepcopy(model).deploy()(images())[0]
    torch.testing.assert_close(deployed, y, rtol=1e-3, atol=1e-3)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in copy.deepcopy(model).deploy().modules())


@pytest.mark.parametrize("name", first(6, names(large=False)))
def test_model_trains_a_step_and_deploys(name: str) -> None:
    exercise(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", names(large=True))
def test_large_model_trains_a_step_and_deploys(name: str) -> None:
    exercise(name)


def test_p_keeps_to_the_papers_size() -> None:
    assert count_parameters(LatModel(load_model_yaml("yolo-lat-p"), verbose=False)) <= 317_000


@pytest.mark.parametrize("name", ["yolo-lat-p", "yolo-lat-n"])
def test_under_autocast_feature_maps_are_narrow(name):
    model = LatModel(load_model_yaml(name), nc=4, verbose=False)
    dtypes = {}
    for module_name, module in model.model.named_modules():
        if module_name and not module_name.startswith(str(len(model.model) - 1)):
            module.register_forward_hook(lambda _, __, out, key=module_name: dtypes.update({key: out}))
    with torch.autocast("cpu", torch.bfloat16):
        model(images())
    wide = {key for key, out in dtypes.items() if isinstance(out, torch.Tensor) and out.dtype != torch.bfloat16}
    assert dtypes
    assert not wide


@pytest.mark.parametrize(("ours", "stock"), [("v8", "yolov8"), ("12", "yolo12"), ("26", "yolo26")])
@pytest.mark.parametrize("scale", ["n", "s"])
def test_neck_swap_keeps_backbone_and_head(ours: str, stock: str, scale: str) -> None:
    swapped = LatModel(load_model_yaml(f"yolo-lat-{ours}-{scale}"), verbose=False)
    origin = tasks.DetectionModel(f"{stock}{scale}.yaml", verbose=False)
    assert swapped.yaml["scales"] == origin.yaml["scales"]
    assert swapped.yaml["backbone"] == origin.yaml["backbone"]
    depth = len(origin.yaml["backbone"])
    shape = lambda module: {k: v.shape for k, v in module.state_dict().items()}  # noqa: E731
    assert shape(swapped.model[:depth]) == shape(origin.model[:depth])
    assert shape(swapped.model[-1]) == shape(origin.model[-1])
    used = {m.type.rpartition(".")[2] for m in swapped.model[depth:-1]}
    assert used == {"CrossScaleELA", "Level", "HyperLink", "LocalBlock", "Conv"}
    assert count_parameters(swapped) < count_parameters(origin)


def test_second_yolo12_variant_has_no_softmax_attention() -> None:
    kinds = {type(m).__name__ for m in LatModel(load_model_yaml("yolo-lat-12-ela-n"), verbose=False).modules()}
    assert "AAttn" not in kinds
    assert "AAttn" in {type(m).__name__ for m in LatModel(load_model_yaml("yolo-lat-12-n"), verbose=False).modules()}


def settled_model(name: str) -> LatModel:
    """With batch norms of random statistics, scales and offsets, as training leaves them."""
    torch.manual_seed(0)
    model = LatModel(load_model_yaml(name), nc=4, verbose=False)
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.momentum = 0.5
            torch.nn.init.uniform_(m.weight, 0.7, 1.3)
            torch.nn.init.uniform_(m.bias, -0.2, 0.2)
    for branch in (model.model[-1].cv2[0], model.model[-1].cv3[0]):  # where no two boxes and scores are equal
        torch.nn.init.normal_(branch[-1].weight, std=0.2)
        torch.nn.init.normal_(branch[-1].bias)
    with torch.no_grad():
        for _ in range(4):
            model.train()(torch.rand(4, 3, 96, 96))
    return model.eval()


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("target", ["gpu", "cpu"])
@pytest.mark.parametrize("name", ["yolo-lat-p", "yolo-lat-n"])
def test_fused_models_give_what_the_training_form_gives(name: str, target: str, last: bool) -> None:
    model = settled_model(name).double()
    fused = copy.deepcopy(model)
    fused.target = target
    assert not fused.is_fused()
    assert fused.fuse(verbose=False) is fused
    assert fused.is_fused()
    for size in ((96, 96), (64, 160)):
        x = torch.rand(2, 3, *size, dtype=torch.float64)
        with torch.no_grad(), channels_last_graph(last):
            y, expected = fused(x)[0], model(x)[0]
        assert expected[:, 4:].std(dim=2).min() > 1e-2
        torch.testing.assert_close(y, expected, rtol=1e-8, atol=1e-8)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fused.modules())
    assert {m.direct for m in fused.modules() if hasattr(m, "direct")} == {target == "cpu"}  # of the stem
    assert fused.model[-1].folded == (target == "gpu")
    assert {m.by_level for m in fused.modules() if hasattr(m, "by_level")} == {target == "cpu"}


def test_a_model_is_fused_once_batch_norms_residuals_and_branches_are_folded() -> None:
    model = settled_model("yolo-lat-p")
    expected = model(images())[0]
    tasks.DetectionModel.fuse(model, verbose=False)  # Ultralytics knows of batch norms alone
    assert tasks.DetectionModel.is_fused(model)
    assert not model.is_fused()
    model.fuse(verbose=False)
    assert model.is_fused()
    once = model(images())[0]
    torch.testing.assert_close(once, expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(model.fuse(verbose=False)(images())[0], once)  # nothing is left to do


@pytest.mark.parametrize("first", ["gpu", "cpu"])
def test_a_model_is_fused_for_one_target(first: str) -> None:
    model = settled_model("yolo-lat-p")
    model.target = first
    once = model.fuse(verbose=False)(images())[0]
    model.target = {"gpu": "cpu", "cpu": "gpu"}[first]
    with pytest.raises(UserError, match=f"fused for target={first}; load it again for target={model.target}"):
        model.fuse(verbose=False)
    assert torch.equal(model(images())[0], once)


@pytest.mark.parametrize("target", ["gpu", "cpu"])
@pytest.mark.parametrize("end2end", [False, True], ids=["one-to-many", "end2end"])
def test_a_model_with_both_branches_fuses_to_the_one_that_it_uses(end2end: bool, target: str) -> None:
    torch.manual_seed(0)
    model = LatModel({**load_model_yaml("yolo-lat-p"), "end2end": True}, nc=4, verbose=False).eval()
    model.end2end = end2end
    fused = copy.deepcopy(model)
    fused.target = target
    fused.fuse(verbose=False)
    with torch.no_grad():
        torch.testing.assert_close(fused(images())[0], model(images())[0], rtol=1e-3, atol=1e-3)
    assert (fused.model[-1].cv2 is None) == end2end


@pytest.mark.parametrize(
    ("repeats", "depth", "units"), [(1, 0.33, 0), (1, 0.67, 1), (3, 0.33, 1), (3, 0.67, 2), (1, 1.0, 1), (3, 0.1, 0)]
)
def test_depth_scales_repeats_and_may_leave_out_a_local_block(repeats: int, depth: float, units: int) -> None:
    content = edited(1, [-1, repeats, "LocalBlock", [128, 3]], "backbone")
    content["scales"]["p"] = [depth, 0.25, 1024]
    assert len(LatModel(content, verbose=False).model[1].units) == units
    content["backbone"][1] = [-1, repeats, "ELABlock", [128]]
    assert len(LatModel(content, verbose=False).model[1].layers) == max(units, 1)


def test_p_has_no_local_block_at_stride_4() -> None:
    found = (LatModel(load_model_yaml(f"yolo-lat-{name}"), verbose=False) for name in ("p", "first-n"))
    assert [len(model.model[1].units) for model in found] == [0, 1]


STOCK = (
    "yolov8n",
    "yolov8n-p2",
    "yolov5s",
    "yolov9c",
    "yolov10n",
    "yolo11n",
    "yolo12n",
    "yolo12l",
    "yolo26n",
    "yolo26m",
)


@pytest.mark.parametrize("name", first(4, STOCK))
def test_stock_yaml_parses_identically(name: str) -> None:
    """With the package installed in Ultralytics, a stock YAML gives the same layers and the same initial weights."""
    content = tasks.yaml_model_load(f"{name}.yaml")
    torch.manual_seed(0)
    ours, our_save = tasks.parse_model(copy.deepcopy(content), 3, verbose=False)
    torch.manual_seed(0)
    stock, stock_save = _stock_parse_model(copy.deepcopy(content), 3, verbose=False)
    assert tasks.parse_model is parse_model
    assert our_save == stock_save
    assert [(m.i, m.f, m.type, m.np) for m in ours] == [(m.i, m.f, m.type, m.np) for m in stock]
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), stock.state_dict().values(), strict=True))


def test_stock_rows_inside_our_yaml_are_built_as_in_a_stock_yaml() -> None:
    """A stock YAML with one row of ours at the end of its backbone leaves all other rows as they were."""
    for name in ("yolo11n", "yolo26n", "yolov8s"):
        content = tasks.yaml_model_load(f"{name}.yaml")
        mixed = copy.deepcopy(content)
        at = len(mixed["backbone"]) - 1
        mixed["backbone"][at] = [-1, 1, "ELABlock", [mixed["backbone"][at][3][0]]]
        stock, stock_save = _stock_parse_model(content, 3, verbose=False)
        ours, our_save = parse_model(mixed, 3, verbose=False)
        assert our_save == stock_save
        for i, (a, b) in enumerate(zip(ours, stock, strict=True)):
            if i != at:
                assert (a.i, a.f, a.type, a.np, str(a)) == (b.i, b.f, b.type, b.np, str(b))


class TestNames:
    @pytest.mark.parametrize(
        "model", ["yolo-lat-n", "yolo-lat-n.yaml", "yolo-latn", str(resource("cfg/models/yolo-lat.yaml"))]
    )
    def test_all_spellings_give_the_same_model(self, model: str) -> None:
        content = load_model_yaml(model, "n" if Path(model).is_absolute() else None)
        assert (content["scale"], Path(content["yaml_file"]).name) == ("n", "yolo-lat.yaml")

    def test_neck_swaps(self) -> None:
        assert load_model_yaml("yolo-lat-v8s")["scale"] == load_model_yaml("yolo-lat-v8-s")["scale"] == "s"
        assert load_model_yaml("yolo-lat-12-ela-n")["backbone"][6][2] == "ELABlock"

    def test_the_family_knows_its_smallest_by_its_letter(self) -> None:
        assert load_model_yaml("yolo-lat", "p") == load_model_yaml("yolo-lat-p")
        assert load_model_yaml("yolo-latp") == load_model_yaml("yolo-lat-p")

    def test_stock_names(self) -> None:
        assert load_model_yaml("yolov8s.yaml")["scale"] == "s"
        assert load_model_yaml("yolo26n.yaml")["end2end"] is True

    @pytest.mark.parametrize(
        ("model", "scale", "message"),
        [
            ("yolo-lat-q", None, "no model 'yolo-lat-q'; give one of yolo-lat-p, yolo-lat-n, yolo-lat-s, yolo-lat-m, "),
            (str(resource("cfg/models/yolo-lat.yaml")), "p", "has no scale 'p'; give scale= one of n, s, m, l, x"),
            ("yolov8", None, "no model 'yolov8'.*; known models: yolo-lat-p, yolo-lat-n, "),
            ("yolo-last-n", None, r"did you mean 'yolo-lat-n'\?"),
            ("yolo-lat", None, "needs a scale; give scale= one of p, n, s, m, l, x"),
            ("yolo-lat", "q", "has no scale 'q'"),
            ("yolo-lat-n", "s", "already names scale 'n'"),
            ("yolo-lat-p", "n", "already names scale 'p'"),
            ("missing.yaml", None, "no model 'missing.yaml'"),
            ("/missing/x.yaml", None, "no model '/missing/x.yaml'"),
            ("**x.yaml", None, r"no model '\*\*x.yaml'"),
            ("*.yaml", None, r"no model '\*.yaml'"),
            ("yolov8n.yaml", "s", "already names scale 'n'"),
            ("yolov9s.yaml", "s", "yolov9s.yaml has no scales; drop scale=s"),
        ],
    )
    def test_wrong_names_list_the_right_ones(self, model: str, scale: str | None, message: str) -> None:
        with pytest.raises(UserError, match=message):
            load_model_yaml(model, scale)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("nc: [", "line 1: not valid YAML"),
            ("- 1", "not a model YAML"),
            ("nc: 80\nbackbone: []", "not a model YAML"),
            ("\x00\x01", "not valid YAML"),
        ],
    )
    def test_broken_files(self, tmp_path: Path, text: str, message: str) -> None:
        file = tmp_path / "model.yaml"
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            load_model_yaml(file)


def edited(row: int, value: list, part: str = "head") -> dict:
    content = load_model_yaml("yolo-lat-p")
    content = copy.deepcopy(content)
    content[part][row] = value
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (edited(1, [[5, -1], 1, "HyperLinc", [256]]), r"row 9 \(HyperLinc\): unknown module 'HyperLinc'; did you mean"),
        (edited(1, [[5, -1], 1, "HyperLink", [-8, [1, 2]]]), r"row 9 \(HyperLink\): the first argument is the output"),
        (edited(1, [[5, -1], 1, "HyperLink", ["wide"]]), "the first argument is the output width"),
        (edited(1, [[5, 40], 1, "HyperLink", [256]]), "must name earlier rows"),
        (edited(1, [[5, -1], 0, "HyperLink", [256]]), "'repeats' is 0"),
        (edited(1, [[5, -1], 3, "HyperLink", [256, [1, 2]]]), "cannot be repeated 3 times"),
        (edited(1, [[5, -1], 1, "HyperLink", [256]]), r"row 9 \(HyperLink\): its inputs .* do not fit together"),
        (edited(2, [[9, 8], 1, "CrossScaleELA", [256, 5]]), "heads=5 does not divide the width 64"),
        (edited(2, [[9, 8], 1, "CrossScaleELA", [256, 4, 8, [7]]]), "must name levels"),
        (edited(2, [[9, 8], 1, "CrossScaleELA", [256, 4, 8, None, "Softmax"]]), "unknown kernel 'Softmax'"),
        (edited(2, [[9, 8], 1, "ELABlock", [256]]), "takes one feature map, not 2"),
        (edited(3, [10, 1, "Conv", [256, 1, 1]]), r"row 11 \(Conv\): reads a row that returns several maps"),
        (edited(3, [[9, 10], 1, "Level", [256, 0]]), "reads a row that returns several maps"),
        (edited(3, [10, 1, "Level", [256, 2]]), r"row 11 \(Level\): .*level 2 is not among the 2 maps; use 0 to 1"),
        (edited(3, [10, 1, "Level", [256]]), r"row 11 \(Level\): cannot be built"),
        (edited(3, [10, 3, "Level", [256, 0]]), "cannot be repeated 3 times"),
        (edited(7, [[10, 13], 1, "LatDetect", ["nc"]]), "reads a row that returns several maps"),
        (
            edited(7, [-1, 1, "LatDetect", ["nc"]]),
            r"takes a list of maps, and row -1 returns one; write \[\[-1\], \.\.\.",
        ),
        (edited(1, [5, 1, "HyperLink", [256]]), r"takes a list of maps, and row 5 returns one; write \[\[5\], \.\.\."),
        (
            edited(7, [13, 1, "Conv", [256, 1, 1]]),
            "its last row is Conv, no head of YOLO's; end with LatDetect or Detect",
        ),
        (edited(2, [[9, 8], 1, "CrossScaleELA", [256, 4, 0]]), "key_dim=0 leaves keys no channel"),
        (edited(2, [[9, 8], 1, "CrossScaleELA", [256, 4, 8, {"local": 4}]]), "local=4 is no odd side"),
        (
            edited(2, [[9, 8], 1, "CrossScaleELA", [256, 4, 8, [0, 0]]]),
            r"memory=\[0, 0\] must name levels .*, each once",
        ),
        (
            edited(2, [[9, 8], 1, "CrossScaleELA", [256, 4, 8, [1], {"attention": "none"}]]),
            r"memory=\[1\] is for levels that share",
        ),
        (edited(3, [-1, 2, "LocalBlock", [256, 4]], "backbone"), r"row 3 \(LocalBlock\): .*k=4 is no odd side"),
        (edited(1, [-1, "HyperLink"]), r"a row is \[from, repeats, module"),
        (edited(2, [-1, 1, "Conv", ["a"]], "backbone"), r"row 2 \(Conv\): cannot be built"),
        (edited(3, [-1, 2, "LocalBlock", [256, 4, 2, 9, 9]], "backbone"), r"row 3 \(LocalBlock\): cannot be built"),
    ],
)
def test_bad_rows_are_named(content: dict, message: str) -> None:
    activation = Conv.default_act
    with pytest.raises(UserError, match=message):
        LatModel(content, verbose=False)
    assert Conv.default_act is activation  # the YAML's ReLU must not leak into models built later


def test_unknown_row_in_an_otherwise_stock_yaml() -> None:
    content = tasks.yaml_model_load("yolov8n.yaml")
    content["backbone"][2][2] = "C2ff"
    with pytest.raises(UserError, match="unknown module 'C2ff'; did you mean 'C2f'"):
        LatModel(content, verbose=False)


def test_gflops_count_what_runs() -> None:
    """A 3x3 convolution at stride 1 costs 2·9·c1·c2 operations a position."""
    content = {"nc": 1, "backbone": [[-1, 1, "Conv", [16, 3, 2]]], "head": [[[0], 1, "Detect", ["nc"]]]}
    model = tasks.DetectionModel(content, verbose=False).eval()
    stem = 2 * 9 * 3 * 16 * 32 * 32
    rest = sum(
        2 * m.weight.numel() * 32 * 32
        for n, m in model.named_modules()
        if isinstance(m, torch.nn.Conv2d) and n[6] != "0"
    )
    rest -= 2 * 16 * 32 * 32  # the DFL convolution runs on 4 rows of 16 bins instead
    assert count_gflops(model, 64) == pytest.approx((stem + rest + 2 * 16 * 4 * 32 * 32) / 1e9)
    bigger = LatModel(load_model_yaml("yolo-lat-p"), verbose=False)
    assert count_gflops(bigger, 640) == pytest.approx(4 * count_gflops(bigger, 320), rel=1e-3)


def test_yaml_files_name_their_scales_like_their_origin() -> None:
    for stem, origin in {"v8": "v8/yolov8", "12": "12/yolo12", "26": "26/yolo26"}.items():
        ours = yaml.safe_load(resource(f"cfg/models/yolo-lat-{stem}.yaml").read_text())
        stock = yaml.safe_load((DEFAULT_CFG_PATH.parent / f"models/{origin}.yaml").read_text())
        assert ours["scales"] == stock["scales"]
        assert ours.get("reg_max") == stock.get("reg_max")
        assert ours.get("end2end") == stock.get("end2end")


def test_info_reports_layers_parameters_and_gflops() -> None:
    model = LatModel(load_model_yaml("yolo-lat-p"), verbose=False)
    _, parameters, gradients, gflops = model.info(imgsz=320)
    assert parameters == gradients == count_parameters(model)
    assert gflops == count_gflops(model, 320)
    assert model.info(verbose=False) is None
