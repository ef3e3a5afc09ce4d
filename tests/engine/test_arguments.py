"""Arguments that Ultralytics would change, ignore or trip over: one sentence each, before anything is written."""

import copy
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from ultralytics.utils import DEFAULT_CFG_DICT
from ultralytics.utils import ROOT as ULTRALYTICS

from yolo_lat import YOLOLAT
from yolo_lat.engine.arguments import check_precision
from yolo_lat.engine.mode_keys import OTHER_TASKS, REMOVED, check_use
from yolo_lat.engine.train_options import freeze_list
from yolo_lat.errors import UserError


@pytest.fixture
def detector(run):
    return YOLOLAT(run.best)


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("mode", ["train", "val", "predict", "export", "info"])
@pytest.mark.parametrize(
    ("imgsz", "wanted"),
    [
        (100, "100 is not a multiple of the model's stride 32; use 96 or 128"),
        (31, "31 is not a multiple of the model's stride 32; use 32 or 64"),
        (0, "0 is not a multiple of the model's stride 32; use 32 or 64"),
        ("abc", "abc: must be a whole number of pixels"),
        (64.0, "64.0: must be a whole number of pixels"),
        (True, "True: must be a whole number of pixels"),
    ],
)
def test_an_image_size_that_cannot_be(detector, run, mode, imgsz, wanted):
    arguments = {} if mode in ("export", "info") else {"source": "x.jpg"} if mode == "predict" else {"data": run.data}
    message = refusal(getattr(detector, mode), imgsz=imgsz, **arguments)
    assert message == f"imgsz={wanted}"


def test_training_and_validation_take_one_image_size(detector, run):
    for mode in (detector.train, detector.val):
        assert "give one number" in refusal(mode, data=run.data, imgsz=[64, 96])
    assert "give one number or two" in refusal(detector.predict, "x.jpg", imgsz=[64, 96, 96])
    image = torch.zeros(1, 3, 64, 96)
    assert detector.predict(image, imgsz=[64, 96], device="cpu", verbose=False)[0].orig_shape == (64, 96)


def test_an_onnx_of_one_size_runs_at_that_size_only(onnx_file, dynamic_onnx_file):
    photo = torch.zeros(96, 96, 3, dtype=torch.uint8).numpy()
    assert "is exported for [96, 96] alone" in refusal(YOLOLAT(onnx_file).predict, photo, imgsz=64)
    YOLOLAT(onnx_file).predict(photo, imgsz=96, verbose=False)
    assert "multiple of the model's stride 32" in refusal(YOLOLAT(dynamic_onnx_file).predict, photo, imgsz=70)


@pytest.mark.parametrize("device", [0, "0", [0, 1], "cuda:0", "0,foo", "foo"])
@pytest.mark.parametrize("mode", ["train", "val", "predict", "export"])
def test_a_device_that_is_not_there_is_refused(detector, run, monkeypatch, mode, device):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    arguments = {} if mode == "export" else {"source": "x.jpg"} if mode == "predict" else {"data": run.data}
    assert f"device={device}: " in refusal(getattr(detector, mode), device=device, **arguments)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has an Apple GPU")
def test_apple_gpus_are_refused_elsewhere(detector):
    assert "device=mps" in refusal(detector.predict, "x.jpg", device="mps")


@pytest.mark.parametrize("below", ["", "/below/it"])
def test_a_run_folder_that_is_a_file_is_refused(detector, run, tmp_path, below):
    (tmp_path / "taken").touch()
    place = f"{tmp_path}/taken{below}"
    for mode in (detector.train, detector.val):
        assert f"project={place}: {tmp_path}/taken is a file" in refusal(mode, data=run.data, project=place)


@pytest.mark.parametrize("mode", ["train", "export", "info", "save"])
def test_an_exported_model_only_predicts_and_validates(onnx_file, mode):
    arguments = {"data": "shapes"} if mode == "train" else {}
    assert "static.onnx can only be run and validated" in refusal(getattr(YOLOLAT(onnx_file), mode), **arguments)


def test_data_is_one_data_set(detector, tmp_path):
    assert "data is missing" in refusal(YOLOLAT("yolo-lat-p").train)
    assert "must be one data YAML" in refusal(detector.train, data=["a.yaml", "b.yaml"])


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"format": "foo"}, "format=foo: unknown; use one of torchscript, onnx"),
        ({"format": "onx"}, "did you mean 'onnx'?"),
        ({"format": "torchscript", "opset": 17}, "argument 'opset' is not supported for format='torchscript'"),
        ({"format": "ncnn", "nms": True, "dynamic": True}, "argument 'dynamic' is not supported"),
        ({"quantize": 32, "half": True}, "half=True and quantize=32: a file has one precision; keep one of them"),
        ({"opset": 99}, "opset=99: torch writes 23 at most; leave it out for 18"),
        (
            {"format": "torchscript", "quantize": 16},
            "format=torchscript: FP16 TorchScript export is only supported on GPU",
        ),
    ],
)
def test_export_refuses_what_it_cannot_do(detector, arguments, wanted):
    assert wanted in refusal(detector.export, **arguments)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        *(({"batch": value}, f"batch={value}: must be a whole number from 1, -1 for") for value in (0, -5, 1.5, True)),
        ({"cache": "banana"}, "cache=banana: must be True, False, ram, disk, device or pinned"),
        ({"compile": "banana"}, "compile=banana: must be True, False or one of default, "),
        ({"time": -1}, "time=-1: must be a number of hours above 0"),
        ({"batch": float("inf")}, "batch=inf: must be a whole number from 1, -1 for"),
        ({"workers": True}, "workers=True: must be a whole number from 0"),
        ({"workers": -1}, "workers=-1: must be a whole number from 0"),
        ({"close_mosaic": -3}, "close_mosaic=-3: must be a whole number of epochs from 0"),
        ({"warmup_epochs": -1}, "warmup_epochs=-1: must be a number of epochs from 0"),
        ({"classes": 99}, "classes=99: must be the number of a class, from 0 to "),
        ({"freeze": 999}, "freeze=999: leaves nothing to train; freeze fewer of the 16 layers"),
        ({"freeze": -1}, "freeze=-1: must be a number of layers from 0, or names of layers"),
        ({"freeze": "head"}, "freeze=head: the model has no layer head; give numbers, or names like 16.cv2"),
        ({"freeze": ["15.cv2", 16]}, "freeze=['15.cv2', 16]: the model has no layer 16;"),
        ({"pretrained": "yolov8n.pt"}, "pretrained=yolov8n.pt: no such weights; correct the path"),
        ({"pretrained": "https://example.org/a.pt"}, "pretrained=https://example.org/a.pt: no such weights; "),
        ({"pretrained": "banana"}, "pretrained=banana: no trained weights; give a .pt, safetensors or a name of"),
    ],
)
def test_training_refuses_what_means_nothing(run, tmp_path, arguments, wanted):
    words = {"data": run.data, "project": tmp_path / "runs", "epochs": 1, "imgsz": 64, "device": "cpu", **arguments}
    assert refusal(YOLOLAT("yolo-lat-p").train, **words).startswith(wanted)
    assert not (tmp_path / "runs").exists()


def test_layers_to_freeze_are_told_in_any_form():
    model = YOLOLAT("yolo-lat-p").model
    for freeze in (None, 0, 3, [2, "15.cv2"]):
        assert freeze_list(freeze, model) == freeze
    assert freeze_list("15.cv2", model) == ["15.cv2"]
    assert freeze_list((0, 1), model) == [0, 1]  # 1 has no weights at this depth


def test_what_is_frozen_stays(run, tmp_path):
    words = {"epochs": 1, "imgsz": 64, "device": "cpu", "workers": 0, "plots": False, "val": False}
    YOLOLAT(run.best).train(data=run.data, project=tmp_path, name="run", freeze="15.cv2", **words)
    before, after = (
        load_file(file) for file in (run.best.with_name("best.safetensors"), tmp_path / "run/weights/last.safetensors")
    )
    changed = {name for name, value in after.items() if name.endswith("conv.weight") and not value.equal(before[name])}
    assert not [name for name in changed if name.startswith("model.15.cv2")]
    assert "model.15.cv3.0.0.conv.weight" in changed


def test_weights_are_taken_over_in_every_form(run, tmp_path):
    model = YOLOLAT(run.best)
    model.save(tmp_path / "a.safetensors")
    model.save(tmp_path / "a.pt")
    expected = model.model.state_dict()
    for file in (tmp_path / "a.safetensors", str(tmp_path / "a.pt"), model.model):
        other = YOLOLAT(run.best)
        for parameter in other.model.parameters():
            torch.nn.init.zeros_(parameter)
        found = other.load(file).model.state_dict()
        assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [
        ("yolov8n.pt", "yolov8n.pt: no such weights; correct the path"),
        ("x.onnx", "x.onnx: no trained weights; give a .pt"),
    ],
)
def test_weights_that_are_not_there_are_not_fetched(weights, wanted):
    assert refusal(YOLOLAT("yolo-lat-p").load, weights).startswith(wanted)


def test_classes_are_those_of_the_model(detector, run):
    last = len(detector.names) - 1
    for classes in (last + 1, [0, last + 1], [-1], ["circle"], True):
        wanted = f"must be the number of a class, from 0 to {last}"
        assert wanted in refusal(detector.predict, np.zeros((64, 64, 3), np.uint8), classes=classes)
        assert wanted in refusal(detector.val, data=run.data, classes=classes)


@pytest.mark.parametrize("kind", [np.float32, np.float64, bool, np.int32])
def test_arrays_are_bytes(detector, kind):
    image = np.zeros((64, 64, 3), kind)
    for source in (image, [np.zeros((64, 64, 3), np.uint8), image]):
        assert refusal(detector.predict, source).startswith(f"source: an image of {np.dtype(kind)}; give bytes")


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        (np.zeros((2, 64, 64, 3), np.uint8), "source: an array of shape (2, 64, 64, 3); give (height, width, 3)"),
        (np.zeros((3, 64, 64), np.uint8), "source: an array of shape (3, 64, 64); give (height, width, 3)"),
        ([np.zeros((64, 64, 6), np.uint8)], "source: an array of shape (64, 64, 6); give (height, width, 3)"),
        (np.zeros(64, np.uint8), "source: an array of shape (64,); give (height, width, 3)"),
        (
            np.zeros((0, 64, 3), np.uint8),
            "source: Expected a single (H, W, C) image, but got array of shape (0, 64, 3)",
        ),
        (
            torch.zeros(1, 1, 64, 64),
            "source: a tensor of shape (1, 1, 64, 64); give (images, 3, height, width), values",
        ),
        (torch.zeros(64, 64), "source: a tensor of shape (64, 64); give (images, 3, height, width), values"),
        (torch.full((1, 3, 64, 64), torch.nan), "source: a tensor with values that are not finite"),
        (torch.zeros(1, 3, 65, 64), "source: torch.Tensor inputs should be BCHW"),
        (b"bytes", "source: Unsupported image type (bytes); give an image, a file, an array or a list of these"),
        ((image for image in ()), "source: Unsupported image type (generator); give an image"),
        (
            [[np.zeros((64, 64, 3), np.uint8)]],
            "source: type list is not a supported Ultralytics prediction source type",
        ),
        ([torch.zeros(3, 64, 64)], "source: type Tensor is not a supported Ultralytics prediction source type"),
    ],
)
def test_sources_that_are_no_images(detector, source, wanted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(detector.predict, source, verbose=False).startswith(wanted)
    assert not Path("runs").exists()


@pytest.mark.parametrize("shape", [(64, 96), (64, 96, 1), (64, 96, 2), (64, 96, 4)])
def test_grey_images_and_those_with_transparency_are_taken(detector, shape):
    assert detector.predict(np.zeros(shape, np.uint8), verbose=False)[0].orig_shape == (64, 96)


def test_numbers_of_numpy_and_ranges_are_taken(detector, run):
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    found = detector.predict(image, imgsz=np.int64(64), classes=range(2), conf=np.float32(0.001), verbose=False)[0]
    plain = detector.predict(image, imgsz=64, classes=[0, 1], conf=float(np.float32(0.001)), verbose=False)[0]
    assert torch.equal(found.boxes.data, plain.boxes.data)
    assert len(found) > 0
    assert "imgsz=100 is not a multiple" in refusal(detector.val, data=run.data, imgsz=np.int64(100))


@pytest.mark.parametrize("batch", [0, -1, 0.5, True, "4"])
def test_only_training_finds_a_batch_by_itself(detector, run, batch):
    for mode, arguments in (("predict", {"source": "x.jpg"}), ("val", {"data": run.data}), ("export", {})):
        message = refusal(getattr(detector, mode), batch=batch, **arguments)
        assert message.startswith(
            (f"batch={batch}: must be a whole number from 1 in {mode}", "'batch=4' is of invalid")
        )


def test_numbers_that_may_not_be_negative(detector, run):
    assert refusal(detector.val, data=run.data, workers=-1) == "workers=-1: must be a whole number from 0 in val"
    for name in ("box", "cls", "dfl"):
        assert refusal(detector.train, data=run.data, **{name: -0.5}) == f"{name}=-0.5: must be a weight from 0"


def test_an_object_is_one_model_for_one_task(detector, run):
    for mode, arguments in (
        ("predict", {"source": "x.jpg"}),
        ("val", {"data": run.data}),
        ("train", {"data": run.data}),
    ):
        for name, value in (("model", "yolo-lat-n"), ("task", "segment")):
            message = refusal(getattr(detector, mode), **arguments, **{name: value})
            assert message.startswith(f"{name}={value}: this object has one, ")
    assert YOLOLAT("yolo-lat-p", task="detect").task == "detect"
    assert refusal(YOLOLAT, "yolo-lat-p", task="segment") == "task=segment: there is detection alone; leave it out"


@pytest.mark.parametrize("model", [None, 5, "", " ", torch.nn.Identity()])
def test_a_model_is_named(model):
    assert refusal(YOLOLAT, model) == (
        f"model of {type(model).__name__}: give a name, a model YAML or weights, as a text or a path"
    )


def test_own_parts_are_classes_and_a_recipe_is_a_file(detector, run):
    image = np.zeros((64, 64, 3), np.uint8)
    assert refusal(detector.train, data=run.data, trainer=5).startswith("trainer=5: must be a class")
    assert refusal(detector.val, data=run.data, validator="x").startswith("validator=x: must be a class")
    assert refusal(detector.predict, image, predictor=3).startswith("predictor=3: must be a class")
    assert refusal(detector.train, data=run.data, cfg={"epochs": 1}).startswith("cfg: must be the name or the file")


def test_a_model_that_has_predicted_can_be_copied_and_pickled(detector):
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    expected = detector.predict(image, conf=0.001, verbose=False)[0].boxes.data
    assert len(expected) > 0
    for copied in (copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))):
        assert torch.equal(copied.predict(image, conf=0.001, verbose=False)[0].boxes.data, expected)
    assert detector.predictor is not None


def test_a_model_moves_to_devices_that_are_there(detector):
    assert detector.to("cpu") is detector
    assert detector.to(torch.float32) is detector
    for device in ("cuda:77", torch.device("cuda", 77), 77):
        assert "not among the" in refusal(detector.to, device)
    assert "not among the" in refusal(detector.to, device="cuda:77")


def test_an_exported_model_is_not_compiled(onnx_file):
    model, image = YOLOLAT(onnx_file), np.zeros((96, 96, 3), np.uint8)
    assert refusal(model.predict, image, compile=True).startswith("compile=True: torch compiles its own models, and ")
    assert len(model.predict(image, verbose=False)) == 1


def test_a_tracker_that_is_none_does_no_harm(detector, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = np.zeros((64, 64, 3), np.uint8)
    assert refusal(detector.track, image, tracker="x.yaml").startswith(
        "tracker=x.yaml: no such file; give one, or bytetrack"
    )
    assert refusal(detector.track, image, tracker=5).startswith("tracker=5: no such file; give one, or bytetrack")
    for tracker in (None, "ocsort.yaml", None):
        assert detector.track(image, tracker=tracker, verbose=False)[0].boxes is not None
    file = Path("own.yaml")
    stock = yaml.safe_load((ULTRALYTICS / "cfg/trackers/bytetrack.yaml").read_text())
    file.write_text(yaml.safe_dump({**stock, "tracker_type": "bytetrak"}))
    assert "own.yaml, key tracker_type: bytetrak is unknown; did you mean 'bytetrack'?" in refusal(
        detector.track, image, tracker=file
    )
    file.write_text(yaml.safe_dump({key: stock[key] for key in stock if key != "match_thresh"}))
    assert refusal(detector.track, image, tracker=str(file)).startswith("own.yaml: lacks match_thresh; copy ")
    assert not Path("runs").exists()
    file.write_text(yaml.safe_dump(stock))
    for tracker in (str(file), "botsort.yaml", None):
        assert len(detector.track(image, verbose=False, **({"tracker": tracker} if tracker else {}))) == 1


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"half": True}, "half=True: a CPU computes in float32; leave it out, or use a GPU"),
        ({"quantize": 16}, "quantize=16: a CPU computes in float32; leave it out, or use a GPU"),
        ({"quantize": 8}, "quantize=8: is for exports; export with it, and use that file"),
        ({"int8": True}, "int8=True: is for exports; export with it, and use that file"),
    ],
)
def test_no_precision_is_passed_over(detector, run, arguments, wanted):
    image = np.zeros((64, 64, 3), np.uint8)
    assert refusal(detector.predict, image, device="cpu", **arguments) == wanted
    assert refusal(detector.val, data=run.data, device="cpu", **arguments) == wanted


def test_an_exported_file_has_one_precision(onnx_file, run):
    model, image = YOLOLAT(onnx_file), np.zeros((96, 96, 3), np.uint8)
    for arguments in ({"half": True}, {"quantize": 16}, {"int8": True}):
        (name, value), *_ = arguments.items()
        wanted = f"{name}={value}: the file is in float32; leave it out, or export again"
        assert refusal(model.predict, image, **arguments) == wanted
        assert refusal(model.val, data=run.data, **arguments) == wanted
    assert len(model.predict(image, quantize=32, verbose=False)) == 1
    for told in ({"quantize": 16}, {"half": True}):  # our metadata, and those of Ultralytics before 8.4
        check_precision({"half": True}, told)
        assert "the file is in float16" in refusal(check_precision, {"quantize": 8}, told)
    assert "the file is in INT8" in refusal(check_precision, {"half": True}, {"int8": True})


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"confi": 0.3}, "confi: no such argument; did you mean 'conf'?"),
        ({"typo": 3}, "typo: no such argument"),
        ({"conf": "0.3"}, "'conf=0.3' is of invalid type str."),
        ({"conf": 2}, "'conf=2' is an invalid value."),
    ],
)
def test_names_and_values_that_are_none(detector, run, arguments, wanted):
    assert refusal(detector.predict, np.zeros((64, 64, 3), np.uint8), **arguments).startswith(wanted)
    for mode in (detector.train, detector.val):
        assert refusal(mode, data=run.data, **arguments).startswith(wanted)
    assert refusal(detector.export, **arguments).startswith(wanted)


def test_a_folder_of_a_models_name_does_not_hide_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("yolo-lat-p").mkdir()
    assert YOLOLAT("yolo-lat-p").model.yaml["scale"] == "p"
    Path("runs").mkdir()
    assert refusal(YOLOLAT, "runs").startswith("model=runs: is a folder; give a file, such as weights/best.pt")


def test_tuning_and_a_benchmark_in_the_process_are_not_offered(detector, run):
    assert refusal(detector.tune, data=run.data, iterations=1).startswith("tune: not offered")
    assert refusal(detector.benchmark, data=run.data, format="onnx").startswith("benchmark: not offered; run yolo-lat")


def test_a_fused_model_is_neither_trained_nor_saved(detector, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    detector.fuse()
    remedy = "; load the weights again and take those"
    told = refusal(detector.train, data=run.data, epochs=1)
    assert told == f"train: a fused model has lost what training changes{remedy}"
    for name in ("a.pt", "a.safetensors"):
        assert refusal(detector.save, name) == f"{name}: a fused model cannot be saved{remedy}"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.onnx", "a", "a.pth"])
def test_weights_are_saved_under_endings_that_can_be_loaded(detector, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    told = refusal(detector.save, name)
    assert told == f"{name}: weights are written as .safetensors or .pt; name it so, or export it"
    assert refusal(detector.save, "no/a.pt") == "no/a.pt: its folder does not exist; make it, or choose another"
    detector.save("A.SAFETENSORS")
    assert load_file("A.SAFETENSORS").keys() == detector.model.state_dict().keys()
    detector.save("A.PT")
    assert YOLOLAT("A.PT").names == detector.names


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_an_idle_gpu_that_is_not_there_is_no_cpu(detector, run):
    wanted = "device=-1: torch sees no idle CUDA device; use device=cpu"
    assert refusal(detector.predict, np.zeros((64, 64, 3), np.uint8), device=-1) == wanted
    assert refusal(detector.val, data=run.data, device="-1") == wanted


ELSEWHERE = {
    "train": ({"source": "a.jpg"}, {"show": True}, {"dynamic": True}, {"line_width": 3}, {"dnn": True}),
    "val": ({"val": False}, {"fraction": 0.5}, {"epochs": 3}, {"save": False}, {"seed": 7}, {"cfg": "small"}),
    "predict": ({"data": "coco"}, {"workers": 2}, {"single_cls": True}, {"plots": False}, {"tracker": "botsort.yaml"}),
    "track": ({"embed": [3]}, {"cache": True}, {"val_period": 2}),
    "export": ({"project": "out"}, {"save_txt": True}, {"epochs": 3}, {"classes": [0]}),
}
ARGUMENTS = {
    "train": lambda run: {"data": run.data, "epochs": 1, "imgsz": 64, "device": "cpu"},
    "val": lambda run: {"data": run.data},
    "predict": lambda run: {"source": np.zeros((64, 64, 3), np.uint8)},
    "track": lambda run: {"source": np.zeros((64, 64, 3), np.uint8)},
    "export": lambda run: {},
}


@pytest.mark.parametrize(
    ("mode", "argument"), [(mode, argument) for mode, several in ELSEWHERE.items() for argument in several]
)
def test_arguments_of_other_modes_are_not_passed_over(run, tmp_path, monkeypatch, mode, argument):
    monkeypatch.chdir(tmp_path)
    ((name, value),) = argument.items()
    message = refusal(getattr(YOLOLAT(run.best), mode), **ARGUMENTS[mode](run), **argument)
    assert message.startswith(f"{name}={value}: is for ")
    assert message.endswith(f", and does nothing in {mode}; leave it out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", ARGUMENTS)
def test_arguments_of_other_tasks_and_of_the_past_are_not_passed_over(detector, run, mode):
    call = partial(refusal, getattr(detector, mode), **ARGUMENTS[mode](run))
    assert call(pose=3.0) == "pose=3.0: is for other tasks than detection; leave it out"
    assert call(keras=True) == "keras=True: no longer an argument of Ultralytics; leave it out"


def test_every_argument_of_ultralytics_has_a_mode_or_another_task():
    refused = {
        name: [mode for mode in ARGUMENTS if not used(mode, name)] for name in DEFAULT_CFG_DICT if name not in REMOVED
    }
    assert {name for name, modes in refused.items() if len(modes) == len(ARGUMENTS)} == set(OTHER_TASKS)


def used(mode: str, name: str) -> bool:
    try:
        check_use(mode, {name: True}, {})
    except UserError as error:
        return f"{name}=True: does nothing without" in str(error)
    return True


def test_values_that_ask_for_nothing_are_taken(detector, run):
    image = np.zeros((64, 64, 3), np.uint8)
    nothing = {"val": True, "epochs": 100, "pose": 12.0, "dnn": False, "fraction": 1.0, "keras": False, "embed": []}
    assert len(detector.predict(image, verbose=False, **nothing)) == 1


@pytest.mark.parametrize(
    ("mode", "arguments", "wanted"),
    [
        (
            "val",
            {"save_conf": True},
            "save_conf=True: does nothing without save_txt; add save_txt=True, or leave it out",
        ),
        ("predict", {"save_frames": True}, "save_frames=True: does nothing without save; add save=True"),
        ("val", {"visualize": True, "plots": False}, "visualize=True: does nothing without plots; add plots=True"),
        ("val", {"cache": "device"}, "cache=device: keeps nothing in val; use ram or disk, or leave it out"),
        ("val", {"dnn": True}, "dnn=True: OpenCV runs .onnx files alone; give one, or leave it out"),
        ("predict", {"dnn": True}, "dnn=True: OpenCV runs .onnx files alone"),
        ("predict", {"augment": True}, "augment=True: BEST runs at one scale alone; leave it out"),
        ("val", {"augment": True}, "augment=True: BEST runs at one scale alone; leave it out"),
        ("predict", {"nms": False}, "nms=False: BEST has no head that works without NMS; leave it out"),
        ("val", {"end2end": True}, "end2end=True: BEST has no head that works without NMS; leave it out"),
        ("export", {"format": "torchscript", "nms": False}, "nms=False: BEST has no head that works without NMS"),
    ],
    ids=str,
)
def test_what_a_mode_or_a_model_cannot_do_is_not_left_out(detector, run, mode, arguments, wanted):
    message = refusal(getattr(detector, mode), **ARGUMENTS[mode](run), **arguments)
    assert message.startswith(wanted.replace("BEST", str(run.best)))


def test_what_a_model_can_do_is_done(tmp_path):
    image = np.zeros((64, 64, 3), np.uint8)
    plain = YOLOLAT("yolov8n.yaml")
    assert len(plain.predict(image, imgsz=64, augment=True, verbose=False)) == 1
    assert refusal(YOLOLAT("yolo26n.yaml").predict, image, augment=True, nms=False).startswith(
        "augment=True: yolo26n.yaml and nms=False runs at one scale alone"
    )


def test_opencv_runs_an_exported_file(onnx_file, run):
    photo = sorted((run.data.parent / "images/val").iterdir())[0]
    ours, theirs = (
        YOLOLAT(onnx_file).predict(photo, conf=0.01, dnn=dnn, verbose=False)[0].boxes.data for dnn in (False, True)
    )
    assert len(ours) > 0
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-2)
    assert refusal(YOLOLAT(onnx_file).predict, photo, nms=False).startswith(f"nms=False: {onnx_file} has no head")


def test_heat_maps_need_gradients_and_a_picture(detector, run, onnx_file, tmp_path):
    photo = sorted((run.data.parent / "images/val").iterdir())[0]
    detector.predict(photo, visualize=True, project=tmp_path, name="run", verbose=False)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [f"{photo.stem}_cam.jpg"]
    detector.predict(photo, visualize=True, project=tmp_path, name="run", verbose=False)
    assert [path.name for path in (tmp_path / "run-2").iterdir()] == [f"{photo.stem}_cam.jpg"]
    tensor = torch.zeros(1, 3, 64, 64)
    assert refusal(detector.predict, tensor, visualize=True).startswith("visualize=True: a tensor has no picture")
    plain = YOLOLAT("yolov8n.yaml").predict
    assert "augment=True has several" in refusal(plain, photo, visualize=True, augment=True)
    assert f"{onnx_file} has no gradients to draw" in refusal(YOLOLAT(onnx_file).predict, photo, visualize=True)


@pytest.mark.parametrize("layers", [[3], [3, 14], (5, 7), 0])
def test_layers_are_embedded(detector, layers):
    images = [np.full((64, 64, 3), value, np.uint8) for value in (0, 200)]
    kept = {}
    numbers = [layers] if isinstance(layers, int) else layers
    hooks = [detector.model.model[n].register_forward_hook(partial(keep, kept, n)) for n in numbers]
    inputs = torch.stack([torch.full((3, 64, 64), value / 255) for value in (0, 200)])
    detector.model.eval()(inputs)
    for hook in hooks:
        hook.remove()
    expected = torch.cat([kept[number].mean((2, 3)) for number in sorted(numbers)], 1)
    found = torch.stack(detector.predict(images, embed=layers, imgsz=64, batch=2, verbose=False))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def keep(kept, number, _layer, _inputs, output):
    kept[number] = output


def test_the_last_layer_before_the_head_is_embedded_unless_told(detector):
    image = np.full((64, 64, 3), 90, np.uint8)
    (first,), (second,) = (
        call(image, imgsz=64, verbose=False) for call in (detector.embed, partial(detector.predict, embed=[14]))
    )
    assert first.shape == (64,)
    assert torch.equal(first, second)


@pytest.mark.parametrize("embed", [[15], [10], [99], [-1], ["a"], "5", True, [3, 1.5]])
def test_what_is_no_layer_is_not_embedded(detector, embed):
    message = refusal(detector.predict, np.zeros((64, 64, 3), np.uint8), embed=embed)
    assert message.startswith(f"embed={embed}: ")
    assert message.endswith("is no layer that gives one map; use 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14")


@pytest.mark.parametrize("argument", [{"save": True}, {"save_txt": True}, {"show": True}, {"box_vote": 0.8}])
def test_embedding_writes_nothing_and_says_so(detector, tmp_path, monkeypatch, argument):
    monkeypatch.chdir(tmp_path)
    ((name, value),) = argument.items()
    message = refusal(detector.predict, np.zeros((64, 64, 3), np.uint8), embed=[3], **argument)
    assert message == f"{name}={value}: needs boxes, and embed=[3] ends before there are any; drop one"
    assert not list(tmp_path.iterdir())


def test_an_exported_file_has_no_layers(onnx_file):
    image = np.zeros((96, 96, 3), np.uint8)
    for call in (YOLOLAT(onnx_file).embed, partial(YOLOLAT(onnx_file).predict, embed=[3])):
        assert "can only be run and validated" in refusal(call, image)
