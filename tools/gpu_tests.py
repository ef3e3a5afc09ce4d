"""Run the tests that need a CUDA device, file by file, and record which passed, on what.

    python tools/gpu_tests.py docs/results/gpu-tests.json [--commit COMMIT] [--only deploy,fused]

Needs the test extra and onnxruntime-gpu. COMMIT names the code where the working copy's git history does not tell it.
The record is written after every file of tests, and keeps what it had of files that `--only` leaves out, each with the
commit and GPU of its run. Files with failures print their output, and the exit status is 1.
"""

from __future__ import annotations

import argparse
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path)
    parser.add_argument("--commit")
    parser.add_argument("--only", default="", help="words that a file's name must have one of, with commas between")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("needs a CUDA device, and torch sees none")
    about = {
        "commit": given.commit or _output(["git", "rev-parse", "HEAD"]),
        "gpu": torch.cuda.get_device_name(),
        "driver": _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]).splitlines()[0],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "triton", "ultralytics", "onnxruntime-gpu", "numpy")},
    }
    record: dict[str, Any] = {"command": "python tools/gpu_tests.py docs/results/gpu-tests.json", "files": {}}
    if given.record.is_file():
        record["files"] = json.loads(given.record.read_text(encoding="utf-8")).get("files", {})
    words, failed = given.only.split(","), 0
    for file in files_with_gpu_tests():
        if not any(word in file for word in words):
            continue
        start = time.time()
        outcomes = run(file)
        bad = {name: outcome for name, outcome in sorted(outcomes.items()) if outcome != "passed"}
        failed += sum(outcome != "skipped" for outcome in bad.values())
        record["files"][file] = {**about, "passed": sorted(outcomes.keys() - bad), "not_passed": bad}
        given.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(
            f"{file}: {len(outcomes) - len(bad)} of {len(outcomes)} passed, {time.time() - start:.0f} s",
            bad,
            flush=True,
        )
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
