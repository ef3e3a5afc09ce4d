"""What `yolo-lat predict engine=ray` does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from yolo_lat.cli_run import require
from yolo_lat.errors import UserError

PREDICT_RAY = "predict engine=ray"
_TEXTS = ("model", "source", "device", "address", "column", "id", "project", "name")


def _predict_ray(options: dict[str, Any]) -> None:
    resume = options.pop("resume", False)
    if not isinstance(resume, str):
        require(PREDICT_RAY, options, "model", "source")
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    given |= {key: str(given[key]) for key in _TEXTS if key in given}
    from yolo_lat.collection import CollectionOptions, resume_collection, run_collection
    from yolo_lat.collection.options import HOW

    if isinstance(resume, str):
        if other := sorted(given.keys() - {*HOW}):
            raise UserError(f"resume={resume} goes on as the run began; leave {other[0]}= out")
        result = resume_collection(resume, _say, **given)
    else:
        result = run_collection(CollectionOptions(**given), bool(resume), _say)
    images, failed, detections = (result.summary[key] for key in ("images", "failed", "detections"))
    print(f"images: {images}, detections: {detections}, failed: {failed}, saved to {result.folder}")
    if failed:
        print(f"what failed, and why: {result.folder / 'failed.csv'}")
        raise SystemExit(1)


def _say(line: str) -> None:
    print(line, flush=True)


RUN_COLLECTION: dict[str, Callable[[dict[str, Any]], None]] = {PREDICT_RAY: _predict_ray}
