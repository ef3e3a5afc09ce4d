"""Fuzz one target, guided by coverage, in a process of its own.

    python -m fault_injection.fuzz TARGET EXECUTIONS SEED RESULT.json FOLDER

needs `atheris`, which runs on Linux. FOLDER is empty and in memory; inputs that reach new code are kept there.
"""

from __future__ import annotations

import base64
import json
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

_SECONDS, _MEMORY_MB = 60, 6000  # of one execution, and of the process
_SAVE_EVERY = 1000


class Log:
    """Counts what comes of executions, and keeps one input of each kind of failure."""

    def __init__(self, file: Path) -> None:
        self.file, self.outcomes, self.begun = file, Counter[str](), time.monotonic()
        self.failures: dict[str, dict[str, Any]] = {}
        self.slowest = 0.0

    def failed(self, error: BaseException, content: bytes) -> None:
        """Keep the first input that fails at a place in a way."""
        frames = traceback.extract_tb(error.__traceback__)
        place = next((f for f in reversed(frames) if "yolo_lat" in f.filename), frames[-1])
        where = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
        kept = {"message": str(error)[:300], "times": 0, "input": base64.b64encode(content[:20000]).decode()}
        self.failures.setdefault(where, kept)["times"] += 1

    def save(self) -> None:
        """Write what is known so far."""
        content = {
            "executions": sum(self.outcomes.values()),
            **self.outcomes,
            "seconds": round(time.monotonic() - self.begun, 1),
            "slowest_s": round(self.slowest, 2),
            "failures": self.failures,
        }
        self.file.write_text(json.dumps(content), encoding="utf-8")


def main(name: str, executions: int, seed: int, file: Path, folder: Path) -> None:
    """Fuzz, and leave what was found in `file`."""
    import atheris

    with atheris.instrument_imports(include=["yolo_lat", "yaml"]):
        import yolo_lat  # noqa: F401 - before Ultralytics
        from fault_injection.targets import TARGETS, execute

        target = TARGETS[name]
        (work := folder / "work").mkdir()
        run = target.make(work)
        for content in target.seeds():
            run_quietly(run, execute, content)  # what it imports is to be instrumented too
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, content in enumerate(target.seeds()):
        (corpus / str(number)).write_bytes(content)
    log = Log(file)

    def once(content: bytes) -> None:
        begin = time.monotonic()
        try:
            log.outcomes[execute(run, content)] += 1
        except Exception as error:
            log.outcomes["failed"] += 1
            log.failed(error, content)
        log.slowest = max(log.slowest, time.monotonic() - begin)
        done = sum(log.outcomes.values())
        if done % _SAVE_EVERY == 0 or done >= executions:  # the process ends without asking anyone
            log.save()

    limits = [f"-timeout={_SECONDS}", f"-rss_limit_mb={_MEMORY_MB}", f"-max_len={target.longest}", "-close_fd_mask=3"]
    where = [f"-artifact_prefix={folder}/", str(corpus)]
    atheris.Setup([sys.argv[0], f"-runs={executions}", f"-seed={seed + 1}", "-len_control=0", *limits, *where], once)
    atheris.Fuzz()


def run_quietly(run: Any, execute: Any, content: bytes) -> None:
    """Execute once; failures are found again, and counted, later."""
    try:
        execute(run, content)
    except Exception:
        return


if __name__ == "__main__":
    name, executions, seed, file, folder = sys.argv[1:]
    main(name, int(executions), int(seed), Path(file), Path(folder))
