"""Run the tests that need a CUDA device and record what they said, for machines that have none.

    python tools/gpu_tests.py docs/results/gpu-tests.json [COMMIT]

The file names the hardware, the versions and the command; it is written only when a CUDA device was really there.
COMMIT is for a copy of the tree without its git history.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from importlib.metadata import version
from pathlib import Path

import torch

COMMAND = ["-m", "pytest", "-m", "gpu", "-n", "8", "tests"]  # most of their time is Python's, not the GPU's


def main() -> None:
    """Run, record, and leave with pytest's exit status."""
    if len(sys.argv) not in (2, 3) or not torch.cuda.is_available():
        sys.exit(f"{__doc__}\nneeds a file to write and a CUDA device; torch sees {torch.cuda.device_count()}")
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        status = subprocess.run([sys.executable, *COMMAND, f"--junitxml={report}"], cwd=root, check=False).returncode
        cases = list(ET.parse(report).iter("testcase"))
    tests = {f"{case.get('classname')}::{case.get('name')}": case[0].tag if len(case) else "passed" for case in cases}
    record = {
        "command": "python tools/gpu_tests.py docs/results/gpu-tests.json",
        "commit": sys.argv[2] if len(sys.argv) == 3 else _output(["git", "rev-parse", "HEAD"]),
        "gpu": torch.cuda.get_device_name(),
        "driver": _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "ultralytics", "onnxruntime-gpu", "numpy")},
        "passed": sum(outcome == "passed" for outcome in tests.values()),
        "not_passed": {name: outcome for name, outcome in tests.items() if outcome != "passed"},
        "tests": sorted(tests),
    }
    Path(sys.argv[1]).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{record['passed']} of {len(tests)} passed on {record['gpu']}")
    sys.exit(status)


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
