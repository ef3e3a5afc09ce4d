"""Weights on disk: what is written comes back to the bit, and what is damaged or foreign is refused by name."""

import json
import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from ultralytics import YOLO

from yolo_lat import YOLOLAT
from yolo_lat.engine.checkpoint import load_pt, load_safetensors, onnx_metadata, save_safetensors
from yolo_lat.errors import UserError

IMAGE = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))


def outputs(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(IMAGE)[0]


def refusal(load, *args) -> str:
    with pytest.raises(UserError) as caught:
        load(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_safetensors_of_a_run_equal_its_pt_to_the_bit(run):
    from_pt, from_safetensors = load_pt(run.best)[0], load_safetensors(run.safetensors)
    assert torch.equal(outputs(from_pt), outputs(from_safetensors))
    assert outputs(from_pt).std() > 0
    assert from_safetensors.names == from_pt.names
    assert from_safetensors.args["imgsz"] == 96


def test_safetensors_are_read_without_pickle(run, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a safetensors file went through pickle")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    with pytest.raises(UserError):
        load_pt(run.best)  # shows that the trap is set
    assert load_safetensors(run.safetensors).names[0] == "circle"


def test_safetensors_carry_all_that_rebuilds_the_model(run):
    with safe_open(run.safetensors, framework="pt") as file:
        metadata = file.metadata()
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16, torch.int64}  # noqa: SIM118
    assert json.loads(metadata["yaml"])["scale"] == "p"
    assert "/" not in json.loads(metadata["yaml"])["yaml_file"]
    assert metadata["licence"] == "AGPL-3.0-or-later"


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_save_and_reload(run, tmp_path, suffix):
    model = YOLOLAT(run.best)
    file = tmp_path / f"copy{suffix}"
    model.save(file)
    assert torch.equal(outputs(YOLOLAT(file).model), outputs(model.model))


def test_a_model_can_be_saved_after_it_has_predicted_and_validated(run, tmp_path):
    model = YOLOLAT(run.best)
    before = outputs(model.model).clone()
    model.predict(torch.zeros(1, 3, 96, 96), device="cpu", verbose=False)
    model.val(data=run.data, imgsz=96, device="cpu", plots=False, verbose=False, project=tmp_path)
    model.save(tmp_path / "x.safetensors")
    assert torch.equal(outputs(load_safetensors(tmp_path / "x.safetensors")), before)


def test_a_fused_model_is_refused(run, tmp_path):
    model = YOLOLAT(run.best)
    model.fuse(verbose=False)
    assert "x.safetensors: a fused model cannot be saved" in refusal(model.save, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_refused(run, tmp_path):
    model = load_safetensors(run.safetensors)
    assert "x.safetensors: cannot be written" in refusal(save_safetensors, model, tmp_path / "no/x.safetensors")
    (tmp_path / "dir.safetensors").mkdir()
    assert "cannot be written" in refusal(save_safetensors, model, tmp_path / "dir.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["dir.safetensors"]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".onnx"])
def test_truncated_weights_are_refused(run, onnx_file, tmp_path, suffix, share):
    whole = {".pt": run.best, ".safetensors": run.safetensors, ".onnx": onnx_file}[suffix].read_bytes()
    file = tmp_path / f"cut{suffix}"
    file.write_bytes(whole[: int(len(whole) * share)])
    assert refusal(YOLOLAT, file).startswith(f"{file}: ")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".onnx"])
@pytest.mark.parametrize("content", [b"hello\n", b"\0" * 64, pickle.dumps({"model": 5}), b"{}" * 40])
def test_what_is_no_weights_is_refused(tmp_path, suffix, content):
    file = tmp_path / f"x{suffix}"
    file.write_bytes(content)
    assert refusal(YOLOLAT, file).startswith(f"{file}: ")


@pytest.mark.parametrize(
    "content", [{"model": 5}, {"weights": torch.zeros(2)}, [1, 2], {"model": torch.nn.Linear(1, 1)}]
)
def test_foreign_pickles_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    assert "x.pt: not a checkpoint of a detector" in refusal(YOLOLAT, tmp_path / "x.pt")


def test_other_safetensors_are_refused(run, tmp_path):
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(2)}, file)
    assert "has no YOLO-LAT model inside" in refusal(YOLOLAT, file)
    with safe_open(run.safetensors, framework="pt") as source:
        metadata, state = source.metadata(), {key: source.get_tensor(key) for key in source.keys()}  # noqa: SIM118
    damages = [{"yaml": "{"}, {"yaml": "[]"}, {"names": "5"}, {"args": "?"}, {"names": '{"a": "b"}'}, {"yaml": "{}"}]
    for damage in damages:
        save_file(state, file, metadata | damage)
        assert str(file) in refusal(YOLOLAT, file), damage
    state.popitem()
    save_file(state, file, metadata)
    assert "damaged or incompatible weights" in refusal(YOLOLAT, file)


def test_a_checkpoint_of_another_task_is_refused(tmp_path):
    YOLO("yolov8n-seg.yaml").save(tmp_path / "seg.pt")
    assert "seg.pt: a model for 'segment'" in refusal(YOLOLAT, tmp_path / "seg.pt")


def test_a_stock_detector_is_loaded(tmp_path):
    YOLO("yolov8n.yaml").save(tmp_path / "stock.pt")
    model = YOLOLAT(tmp_path / "stock.pt")
    model.save(tmp_path / "stock.safetensors")
    assert torch.equal(outputs(YOLOLAT(tmp_path / "stock.safetensors").model), outputs(model.model))


@pytest.mark.parametrize("name", ["no.pt", "no.safetensors", "no.onnx", "folder.pt"])
def test_missing_weights_are_refused(tmp_path, name):
    (tmp_path / "folder.pt").mkdir()
    assert f"{name}: no such weights; correct the path" in refusal(YOLOLAT, tmp_path / name)


def test_onnx_metadata(onnx_file, dynamic_onnx_file, run):
    names = dict(load_pt(run.best)[0].names)
    metadata = onnx_metadata(onnx_file)
    assert metadata.pop("args").items() >= {"batch": 1, "opset": 18}.items()
    layout = {"output": "raw", "preprocessing": None, "nms_free": False, "dynamic": False}
    assert metadata == {"names": names, "stride": 32, "imgsz": [96, 96], **layout}
    assert onnx_metadata(dynamic_onnx_file)["dynamic"] is True


def test_unknown_models_suggest_a_name():
    assert "did you mean 'yolo-lat-n'?" in refusal(YOLOLAT, "yolo-lat-nn")
    assert "drop scale=n" in refusal(YOLOLAT, "x.pt", "n")
