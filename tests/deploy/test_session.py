"""Opening sessions: on CUDA or not at all, with a sentence that names what CUDA lacks."""

import ctypes

import onnxruntime as ort
import pytest
import torch
from hand_made_onnx import NAMES, fixed_output, raw_output

from yolo_lat.deploy import session as session_module
from yolo_lat.deploy.session import SessionSettings, open_session
from yolo_lat.errors import UserError


@pytest.fixture
def path(tmp_path):
    return fixed_output(tmp_path / "m.onnx", raw_output(), NAMES)


@pytest.fixture
def broken_cuda(monkeypatch):
    """Pretend that there is a CUDA provider that does not load; `broken_cuda.reason` is what the loader says of it."""

    class Broken:
        reason = ""
        preloads = 0
        raises = False
        opened: tuple = ()

    def load(library, *args):
        if Broken.reason and "onnxruntime_providers_cuda" in library:
            raise OSError(Broken.reason)

    def preload():
        Broken.preloads += 1
        print("Failed to load libcublasLt.so.13")

    def without_cuda(model, options, providers, enable_fallback):
        Broken.opened = (providers, enable_fallback)
        if Broken.raises:
            raise session_module.ort_state.EPFail("[ONNXRuntimeError] : 11 : EP_FAIL : CUDA failure 35")
        return open_plain(model, options, providers=["CPUExecutionProvider"])

    open_plain = ort.InferenceSession
    session_module._load_cuda_libraries.cache_clear()
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "preload_dlls", preload, raising=False)
    monkeypatch.setattr(ort, "InferenceSession", without_cuda)
    monkeypatch.setattr(ctypes, "CDLL", load)
    yield Broken
    session_module._load_cuda_libraries.cache_clear()


@pytest.mark.parametrize("raises", [False, True], ids=["goes-on-without", "raises"])
@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        ("libcublasLt.so.13: cannot open shared object file", r"pip install 'yolo-lat\[cuda\]' brings the CUDA"),
        ("libcuda.so.1: cannot open shared object file", "install NVIDIA's driver"),
    ],
    ids=["toolkit", "driver"],
)
def test_the_missing_library_is_named(path, broken_cuda, capfd, reason, remedy, raises):
    broken_cuda.reason, broken_cuda.raises = reason, raises
    for device, device_id in (("cuda", "0"), ("cuda:1", "1")):
        with pytest.raises(UserError, match=rf"^CUDA\w+ did not start for device '{device}' \({reason}\); {remedy}"):
            open_session(path, device)
        providers, enable_fallback = broken_cuda.opened
        options = {"device_id": device_id, "enable_cuda_graph": "0", "prefer_nhwc": "0", "fuse_conv_bias": "0"}
        assert providers == [("CUDAExecutionProvider", options | {"use_tf32": "0"}), "CPUExecutionProvider"]
        assert not enable_fallback
    assert broken_cuda.preloads == 1
    assert capfd.readouterr() == ("", "")


def test_cuda_that_fails_otherwise_is_refused_too(path, broken_cuda):
    with pytest.raises(UserError, match=r"did not start for device 'cuda' \(onnxruntime names no reason\)"):
        open_session(path, "cuda")
    broken_cuda.raises = True
    with pytest.raises(UserError, match=r"cannot open .*m\.onnx on cuda \(.*CUDA failure 35\)"):
        open_session(path, "cuda")


def test_an_onnxruntime_without_cuda_is_refused(path, monkeypatch):
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(UserError, match=r"needs CUDAExecutionProvider.* install onnxruntime-gpu"):
        open_session(path, "cuda:0")


@pytest.mark.skipif(
    torch.cuda.is_available() or "CUDAExecutionProvider" not in ort.get_available_providers(),
    reason="needs onnxruntime-gpu where there is no GPU",
)
def test_the_library_that_is_really_missing_is_named(path, capfd):
    with pytest.raises(UserError, match=r"did not start for device 'cuda' \(lib\w+\.so[.\d]*: .*\); .*or pass device"):
        open_session(path, "cuda")
    assert capfd.readouterr() == ("", "")


def test_a_cuda_graph_needs_cuda(path):
    with pytest.raises(UserError, match="cuda_graph=True has no meaning on device 'cpu'"):
        open_session(path, "cpu", SessionSettings(cuda_graph=True))


def test_a_model_that_no_graph_can_hold_is_refused(path, broken_cuda, monkeypatch):
    message = "This session cannot use the graph capture feature as requested by the user\nas nodes are on the CPU"

    def refuse(*args, **kwargs):
        raise session_module.ort_state.Fail(message)

    monkeypatch.setattr(ort, "InferenceSession", refuse)
    with pytest.raises(UserError, match=r"m\.onnx cannot run as a CUDA graph \(This session .*leave cuda_graph out$"):
        open_session(path, "cuda", SessionSettings(cuda_graph=True))


def test_a_profile_is_written_where_asked(path, tmp_path):
    session = open_session(path, settings=SessionSettings(profile=tmp_path / "profile"))
    assert session.end_profiling().startswith(str(tmp_path / "profile"))
