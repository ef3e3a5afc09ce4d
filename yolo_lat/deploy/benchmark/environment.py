"""The machine and the versions that a measurement is worth nothing without."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort

from yolo_lat import __version__
from yolo_lat.deploy.benchmark.plan import available_cores
from yolo_lat.deploy.session import parse_device
from yolo_lat.errors import UserError

_FIXED = {"name": "device", "driver_version": "driver", "clocks.max.sm": "clock_max", "power.limit": "power_limit"}
_CHANGING = ("clocks.sm", "clocks.mem", "temperature.gpu", "memory.used")


def smi_name(number: int) -> str:
    """Return what `nvidia-smi -i` takes for a GPU as CUDA counts, which begins with those of CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return visible[number].strip() if visible != [""] and number < len(visible) else str(number)


def gpu_query(number: int, fields: tuple[str, ...]) -> dict[str, str]:
    """Ask `nvidia-smi` about a GPU.

    Args:
        number: as CUDA counts.
        fields: names of its `--query-gpu`.

    Raises:
        UserError: it is missing or does not answer; a speed without the name of its GPU is not reported.
    """
    command = ["nvidia-smi", "-i", smi_name(number), f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(
            f"'{shlex.join(command)}' fails ({error}), so that the GPU and its clocks are unknown; install the "
            "driver's tools, since a speed is only reported with them"
        ) from error
    values = [value.strip() for value in answer.strip().splitlines()[0].split(",")]
    return dict(zip(fields, values, strict=True))


def describe_machine(device: str, threads: int) -> dict[str, Any]:
    """Return the hardware that decides speed.

    Args:
        device: "cpu" or "cuda:N".
        threads: CPU threads of each inference.

    Raises:
        UserError: a GPU of which nothing is known.
    """
    cpu = {"cpu": _cpu_name(), "cores": available_cores(), "threads": threads, "os": platform.platform()}
    number = parse_device(device)
    if number is None:
        return {"device": cpu["cpu"], **cpu}
    answer = gpu_query(number, (*_FIXED, *_CHANGING))
    return {**{name: answer[key] for key, name in _FIXED.items()}, **cpu}


def state(device: str) -> dict[str, str]:
    """Return clocks and the like, which change while measuring; empty where the machine does not tell."""
    number = parse_device(device)
    if number is not None:
        return gpu_query(number, _CHANGING)
    files = {"governor": "scaling_governor", "frequency_khz": "scaling_cur_freq"}
    folder = Path("/sys/devices/system/cpu/cpu0/cpufreq")
    return {name: (folder / file).read_text().strip() for name, file in files.items() if (folder / file).is_file()}


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def versions(commit: str | None = None) -> dict[str, str]:
    """Return the versions of what takes part; torch and Ultralytics only where they are installed.

    Args:
        commit: of the code, if this is a copy whose git history does not tell.
    """
    found = {"yolo_lat": __version__, "python": platform.python_version(), "onnxruntime": ort.__version__}
    found |= {"numpy": np.__version__, "opencv": cv2.__version__}
    for package in ("torch", "ultralytics", "onnx", "onnxslim"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    names = {distribution.metadata["Name"]: distribution.version for distribution in distributions()}
    found["onnxruntime_package"] = next((n for n in ("onnxruntime-gpu", "onnxruntime") if n in names), "unknown")
    if "CUDAExecutionProvider" in ort.get_available_providers():
        found["cuda"] = str(getattr(ort, "cuda_version", "")) or "unknown"
        cudnn = sorted(f"{name} {value}" for name, value in names.items() if name and name.startswith("nvidia-cudnn"))
        found["cudnn"] = ", ".join(cudnn) or "of the system"
    return found | ({"commit": commit} if commit else _commit())


def _commit() -> dict[str, str]:
    """Return the commit of a checkout, and whether files differ from it."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return {}
    answers = []
    for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            done = subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, check=True)
        except (OSError, subprocess.SubprocessError):
            return {}
        answers.append(done.stdout.strip())
    return {"commit": answers[0], "dirty": "yes" if answers[1] else "no"}


def command_line() -> str:
    """Return the command as it would be typed again."""
    return shlex.join(["yolo-lat", *sys.argv[1:]])
