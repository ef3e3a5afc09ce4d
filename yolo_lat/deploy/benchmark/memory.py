"""Memory that one session takes; `python -m yolo_lat.deploy.benchmark.memory FILE THREADS SHAPE...` for the CPU."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from yolo_lat.deploy.benchmark.environment import gpu_query
from yolo_lat.deploy.runner import DTYPES
from yolo_lat.deploy.session import SessionSettings, open_session, parse_device

_STATUS = Path("/proc/self/status")

METHOD = {
    "cpu": "growth of the peak resident memory of a fresh process by opening the session and three runs",
    "cuda": "growth of the GPU's used memory (nvidia-smi) by opening the session in the measuring process and running "
    "it, so without CUDA's context and libraries once another session is open",
}


def device_memory_mb(device: str) -> float | None:
    """Return how many MiB of a device all processes use; None for the CPU, and where the driver does not tell."""
    number = parse_device(device)
    if number is None:
        return None
    found = re.fullmatch(r"([\d.]+) *MiB", gpu_query(number, ("memory.used",))["memory.used"])
    return float(found[1]) if found else None


def host_memory_mb(path: str, threads: int, shape: tuple[int, ...]) -> float | None:
    """Return how many MiB a CPU session adds to the peak resident memory of a fresh process; None but on Linux."""
    if not _STATUS.is_file():
        return None
    words = [sys.executable, "-m", __name__, path, str(threads), *map(str, shape)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=600)
    return float(done.stdout.split()[-1])


def main(words: list[str]) -> None:
    """Open the session, run it three times, and print the growth in MiB."""
    path, threads, *shape = words
    before = _peak_mb()
    session = open_session(Path(path), "cpu", SessionSettings(threads=int(threads)))
    node = session.get_inputs()[0]
    batch = np.zeros([int(side) for side in shape], DTYPES[node.type])
    for _ in range(3):
        session.run(None, {node.name: batch})
    print(round(_peak_mb() - before, 1))


def _peak_mb() -> float:
    """Return the peak resident memory of this process in MiB; getrusage would count the parent's before the exec."""
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return float(lines["VmHWM"].split()[0]) / 1024


if __name__ == "__main__":
    main(sys.argv[1:])
