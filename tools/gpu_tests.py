"""Run the tests that need a CUDA device, file by file, and record which passed, on what.

    python tools/gpu_tests.py docs/results/gpu-tests.json [COMMIT]

Needs the test extra and onnxruntime-gpu. COMMIT names the code where the working copy's git history does not tell it.
The record is written after every file, so an interrupted run loses none; the output of files with failures stands on
standard output. Leaves with status 1 if a test failed.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
PYTEST = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider"]
PROCESSES = ["-n", "6"]  # most of the tests' time is Python's, not the GPU's


def main() -> None:
    """Run, record, and leave with 1 if a test failed."""
    if len(sys.argv) not in (2, 3) or not torch.cuda.is_available():
        print(f"needs a file to write and a CUDA device; torch sees {torch.cuda.device_count()}", file=sys.stderr)
        sys.exit(2)
    outcomes: dict[str, str] = {}
    record: dict[str, Any] = {
        "command": "python tools/gpu_tests.py docs/results/gpu-tests.json",
        "commit": sys.argv[2] if len(sys.argv) == 3 else _output(["git", "rev-parse", "HEAD"]),
        "gpu": torch.cuda.get_device_name(),
        "driver": _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "triton", "ultralytics", "onnxruntime-gpu", "numpy")},
    }
    for file in files_with_gpu_tests():
        start = time.time()
        outcomes |= run(file)
        record["passed"] = sum(outcome == "passed" for outcome in outcomes.values())
        record["not_passed"] = {name: outcome for name, outcome in outcomes.items() if outcome != "passed"}
        record["tests"] = sorted(outcomes)
        Path(sys.argv[1]).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"{file}: {record['passed']} of {len(outcomes)} passed so far, {time.time() - start:.0f} s", flush=True)
    failed = [name for name, outcome in record["not_passed"].items() if outcome != "skipped"]
    print(f"{record['passed']} of {len(outcomes)} passed on {record['gpu']}; failed: {failed}")
    sys.exit(bool(failed))


def files_with_gpu_tests() -> list[str]:
    """Return the test files that have tests for a GPU, those of the attention operator first."""
    found = _output([*PYTEST, "--collect-only", "tests"], check=False).splitlines()
    return sorted(
        {line.partition("::")[0] for line in found if "::" in line}, key=lambda file: ("ela" not in file, file)
    )


def run(file: str) -> dict[str, str]:
    """Run the tests of one file and return their outcomes by name: passed, skipped, failure or error."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [*PYTEST, *PROCESSES, "--tb=short", f"--junitxml={report}", file]
        done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
        if done.returncode:
            told = [line for line in done.stdout.splitlines() if "[E:onnxruntime" not in line]
            print("\n".join(told)[-12000:], done.stderr[-2000:], flush=True)
        if not report.exists():
            return {file: "error"}
        cases = list(ET.parse(report).iter("testcase"))
    return {f"{case.get('classname')}::{case.get('name')}": case[0].tag if len(case) else "passed" for case in cases}


def _output(command: list[str], check: bool = True) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=check, cwd=ROOT).stdout.strip()


if __name__ == "__main__":
    main()
