"""One profiled session, in a process of its own: `python -m yolo_lat.deploy.benchmark.profiled ARGUMENTS-AS-JSON`.

Its environment must be settled before CUDA starts, hence the process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import Any

import numpy as np

from yolo_lat.deploy.benchmark.contenders import check_provider
from yolo_lat.deploy.runner import Runner
from yolo_lat.deploy.session import SessionSettings, open_session


def main(arguments: dict[str, Any]) -> None:
    """Run a session and print the median of its runs in milliseconds, and the file of its profile if it has one.

    Args:
        arguments: `path`, `device`, `threads`, `shape`, `warmup`, `runs`; `profile`, the beginning of the profile's
            path, or None; `layout`, whether convolutions run channels last with their bias on CUDA.
    """
    path, device = Path(arguments["path"]), arguments["device"]
    prefix = arguments["profile"]
    settings = SessionSettings(
        threads=arguments["threads"],
        prefer_nhwc=arguments["layout"],
        fuse_conv_bias=arguments["layout"],
        profile=Path(prefix) if prefix else None,
    )
    session = open_session(path, device, settings)
    check_provider(session, device, path)
    runner = Runner(session, device, tuple(arguments["shape"]))
    rng = np.random.default_rng(0)
    pixels = rng.random(arguments["shape"], dtype=np.float32)
    runner.input[:] = pixels * 255 if runner.input.dtype == np.uint8 else pixels
    runner.upload()
    for _ in range(arguments["warmup"]):
        runner.run()
    times = []
    for _ in range(arguments["runs"]):
        start = perf_counter_ns()
        runner.run()
        times.append((perf_counter_ns() - start) / 1e6)
    file = session.end_profiling() if prefix else None
    print(json.dumps({"median_ms": median(times), "file": file}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
