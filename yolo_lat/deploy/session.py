"""Opening ONNX Runtime sessions on exactly the device asked for, with the settings that decide their speed."""

from __future__ import annotations

import ctypes
import io
import re
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from yolo_lat.deploy.external_data import check_external_data
from yolo_lat.errors import UserError

# ONNX Runtime's errors have no base class of their own.
ORT_ERRORS: tuple[type[Exception], ...] = tuple(
    e for e in vars(ort_state).values() if isinstance(e, type) and issubclass(e, Exception)
)

_UNREADABLE: tuple[type[Exception], ...] = (*ORT_ERRORS, ValueError, OSError)

_CUDA = "CUDAExecutionProvider"


@dataclass(frozen=True)
class SessionSettings:
    """What a session may be told beside its device; the defaults are ONNX Runtime's own but for `tf32`.

    Attributes:
        threads: CPU threads of one inference; None for ONNX Runtime's choice, one per physical core.
        cuda_graph: capture the kernels once and replay them; needs fixed shapes and bound input and output.
        prefer_nhwc: run convolutions channels last on CUDA.
        fuse_conv_bias: add a convolution's bias within its CUDA kernel.
        tf32: let float32 models multiply in TensorFloat-32 on CUDA, 10 bits of mantissa.
        profile: write ONNX Runtime's profile to files that begin with this path.
    """

    threads: int | None = None
    cuda_graph: bool = False
    prefer_nhwc: bool = False
    fuse_conv_bias: bool = False
    tf32: bool = False
    profile: Path | None = None

    def cuda_options(self, device_id: int) -> dict[str, str]:
        """Return the options of CUDAExecutionProvider."""
        flags = {
            "enable_cuda_graph": self.cuda_graph,
            "prefer_nhwc": self.prefer_nhwc,
            "fuse_conv_bias": self.fuse_conv_bias,
            "use_tf32": self.tf32,
        }
        return {"device_id": str(device_id), **{name: str(int(value)) for name, value in flags.items()}}


def device_name(device: str | int) -> str:
    """Return a device as `parse_device` takes it; N alone is short for cuda:N."""
    return f"cuda:{device}" if str(device).isdecimal() else str(device)


def parse_device(device: str) -> int | None:
    """Return the number of a CUDA device, None for the CPU.

    Raises:
        UserError: the name of another kind of device.
    """
    wanted = re.fullmatch(r"cpu|cuda(?::(\d+))?", device)
    if not wanted:
        raise UserError(f"device '{device}' is unknown; pass 'cpu', 'cuda' or 'cuda:N'")
    return None if device == "cpu" else int(wanted[1] or 0)


def open_session(path: Path, device: str = "cpu", settings: SessionSettings | None = None) -> ort.InferenceSession:
    """Open an `.onnx` file on exactly the device asked for.

    Args:
        path: the file.
        device: "cpu", "cuda" or "cuda:N".
        settings: defaults to `SessionSettings()`.

    Raises:
        UserError: a missing or unreadable file, one whose weights lie outside its folder, a device that is not there
            or whose libraries are missing, or a model that no CUDA graph can hold where one is asked for.
    """
    settings, device_id = settings or SessionSettings(), parse_device(device)
    if not path.is_file():
        raise UserError(f"{path} is not a file; pass the path of an .onnx model")
    if settings.cuda_graph and device_id is None:
        raise UserError(f"cuda_graph=True has no meaning on device '{device}'; pass device='cuda' or leave it out")
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors; its warnings on graph placement mean nothing to a user
    options.intra_op_num_threads = settings.threads or 0
    # Threads that spin after a run take the processor from whatever comes next: another model, a camera, a video.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if settings.profile:
        options.enable_profiling, options.profile_file_prefix = True, str(settings.profile)
    try:
        check_external_data(path)
        if device_id is None:
            return _open(path, options, ["CPUExecutionProvider"])
        return _open_on_cuda(path, options, device, settings.cuda_options(device_id))
    except UserError:
        raise
    except _UNREADABLE as error:
        if settings.cuda_graph and "graph capture" in str(error):
            raise UserError(
                f"{path} cannot run as a CUDA graph ({first_line(error)}); export it with fixed sizes and without "
                "nms=True, or leave cuda_graph out"
            ) from error
        raise UserError(
            f"onnxruntime {ort.__version__} cannot open {path} on {device} ({first_line(error)}); if the file is "
            "damaged, no ONNX model or too new, export it again, and on CUDA check the number of the device"
        ) from error


def _open(path: Path, options: ort.SessionOptions, providers: list[Any]) -> ort.InferenceSession:
    # Without enable_fallback=0 the session retries on the CPU when the GPU fails, also in the middle of a run.
    return ort.InferenceSession(str(path), options, providers=providers, enable_fallback=0)


def _open_on_cuda(
    path: Path, options: ort.SessionOptions, device: str, cuda_options: dict[str, str]
) -> ort.InferenceSession:
    """Open a session that runs on CUDA, or raise UserError with what CUDA lacks."""
    if _CUDA not in ort.get_available_providers():
        raise UserError(
            f"device '{device}' needs {_CUDA}, which this onnxruntime {ort.__version__} lacks; "
            "uninstall onnxruntime and install onnxruntime-gpu, or pass device='cpu'"
        )
    _load_cuda_libraries()
    # A provider that fails to load is reported on standard error alone, at length, and named in one sentence below.
    ort.set_default_logger_severity(4)
    try:
        session = _open(path, options, [(_CUDA, cuda_options), "CPUExecutionProvider"])
    except ORT_ERRORS:
        if not _missing_library():
            raise
        session = None
    finally:
        ort.set_default_logger_severity(2)  # ONNX Runtime's default; the value before cannot be read
    if session and _CUDA in session.get_providers():
        return session
    reason = _missing_library() or "onnxruntime names no reason"
    remedy = (
        "install NVIDIA's driver"
        if "libcuda.so" in reason
        else f"pip install 'yolo-lat[cuda]' brings the CUDA and cuDNN that onnxruntime {ort.__version__} needs"
    )
    raise UserError(f"{_CUDA} did not start for device '{device}' ({reason}); {remedy}, or pass device='cpu'")


@cache
def _load_cuda_libraries() -> None:
    """Load the CUDA libraries of the nvidia-* wheels, where there are any."""
    with redirect_stdout(io.StringIO()):  # it prints a line for each that it does not find
        ort.preload_dlls()


def _missing_library() -> str:
    """Return why the loader refuses ONNX Runtime's CUDA provider, as "libcublas.so.13: cannot open ...", or "".

    Only after a session on CUDA was tried: the provider may not be loaded before ONNX Runtime has set up its host.
    """
    prefix, suffix = ("", "dll") if sys.platform == "win32" else ("lib", "so")
    library = Path(ort_state.__file__).with_name(f"{prefix}onnxruntime_providers_cuda.{suffix}")
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return str(error)
    return ""


def first_line(error: BaseException) -> str:
    """Return the part of an ONNX Runtime message that fits into a sentence."""
    return str(error).strip().splitlines()[0]
