"""A run over a collection, from its options to its summary."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import socket
import sys
import tarfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

# Ray reads both as it starts. Its C++ half writes an error for every pool of actors that Ray Data makes.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")

import onnxruntime
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import ray.data
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

from yolo_lat import __version__
from yolo_lat.collection.options import HOW, CollectionOptions
from yolo_lat.collection.results import write_coco, write_failures
from yolo_lat.collection.run_folder import DETECTIONS, Part, RunFolder
from yolo_lat.collection.sources import IMAGES, Checked, Source, open_source
from yolo_lat.collection.worker import Worker, failures
from yolo_lat.deploy import OnnxDetector
from yolo_lat.deploy.benchmark.plan import available_cores
from yolo_lat.errors import UserError

_BLOCK = 8 * 2**20  # bytes of images that Ray Data moves at once
_STORE = 256 * 2**20  # bytes of Ray's object store for each actor, and for two more
_CALLS = 4  # threads of an actor with a GPU, so that some decode while one detects
_FIRST = 100  # images a worker in the first part, which tells how long the others may be
_GROWTH = 10  # from part to part at most, since the first is mostly waiting for actors
_ROWS = 50_000  # of a file of a part at least, where it has so many
_CHECKED = 16  # files that one task looks at
_RETRIES = 3  # of a batch whose actor died; Ray Data's own number has no end


@dataclass(frozen=True)
class CollectionResult:
    """What a run did.

    Attributes:
        folder: where it wrote to.
        summary: as in `summary.json`.
    """

    folder: Path
    summary: dict[str, Any]


def run_collection(
    options: CollectionOptions, go_on: bool = False, say: Callable[[str], None] = print
) -> CollectionResult:
    """Detect in every image of a collection.

    Args:
        options: what to do.
        go_on: go on with the run in `project/name` if there is one, which must have been asked for the same.
        say: what takes lines about the progress.

    Raises:
        UserError: something in the options cannot be used, or an input breaks off while it is read.

    Example:
        >>> result = run_collection(CollectionOptions("best.onnx", "shards"))
        >>> result.summary["images"], result.summary["failed"]
        (1000000, 12)
    """
    path = Path(options.project, options.name or _folder_name(options.source))
    run = _Run(options, say)
    if go_on and path.exists():
        with RunFolder.existing(path) as folder:
            return run.go_on(folder)
    return run.start(path)


def resume_collection(path: str | Path, say: Callable[[str], None] = print, **how: Any) -> CollectionResult:
    """Go on with an unfinished run after its last finished part.

    Args:
        path: folder of the run.
        say: what takes lines about the progress.
        how: those of `CollectionOptions` that `HOW` names; what is not given has its default.

    Raises:
        UserError: no unfinished run there, or its model has changed.
    """
    with RunFolder.existing(Path(path)) as folder:
        what = {key: value for key, value in folder.settings.items() if key in CollectionOptions.__dataclass_fields__}
        return _Run(CollectionOptions(**what, **how), say).go_on(folder)


class _Run:
    def __init__(self, options: CollectionOptions, say: Callable[[str], None]) -> None:
        self._options, self._say = options, say
        self._source, self._inputs = open_source(options.source, options.column, options.id)
        self._detect = {key: getattr(options, key) for key in ("conf", "iou", "max_det", "imgsz", "box_vote")}
        self._names = OnnxDetector(options.model, threads=1, **self._detect).names
        self._settings = _settings(options)

    def start(self, path: Path) -> CollectionResult:
        """Begin a run in a new folder."""
        with _ray_started(self._options) as workers, RunFolder.new(path, self._settings, self._inputs) as folder:
            return self._run(folder, workers)

    def go_on(self, folder: RunFolder) -> CollectionResult:
        """Go on with a run of the same settings."""
        for key, value in self._settings.items():
            if folder.settings.get(key) != value:
                raise UserError(
                    f"resume={folder.path}: was begun with another {key}, {folder.settings.get(key)}; give that one, "
                    "or start another run"
                )
        with _ray_started(self._options) as workers:
            return self._run(folder, workers)

    def _run(self, folder: RunFolder, workers: int) -> CollectionResult:
        total, parts = folder.total, folder.parts()
        done = parts[-1].stop if parts else 0
        first = workers * (_FIRST if self._source.kind == IMAGES else 1)
        size = _next_size(parts[-1], self._options.part, first) if parts else first
        self._say(f"{folder.path}: {total:,} inputs of {self._source.kind}, {done:,} done, {workers} workers")
        inputs, begun, before = folder.inputs(done), time.monotonic(), done
        while files := list(islice(inputs, size)):
            try:
                parts.append(self._run_part(folder, files, done, workers))
            except KeyboardInterrupt:
                raise KeyboardInterrupt(f"to go on: yolo-lat predict engine=ray resume={folder.path}") from None
            except RayError as error:
                if (problem := _explain(error)) is None:
                    raise
                raise UserError(
                    f"inputs {files[0]} to {files[-1]}: {problem}; mend that, then go on with resume={folder.path}"
                ) from error
            done = parts[-1].stop
            size = _next_size(parts[-1], self._options.part, first)
            left = (time.monotonic() - begun) / (done - before) * (total - done)
            self._say(_progress(parts, total, left))
        return self._complete(folder, parts)

    def _run_part(self, folder: RunFolder, files: list[str], start: int, workers: int) -> Part:
        begun = time.monotonic()
        checked = self._check(files)
        failed = [failure for found in checked for failure in found.failures]
        readable = [file for file, found in zip(files, checked, strict=True) if found.images]
        target = folder.new_part()
        if failed:
            pq.write_table(failures(failed), target / "unreadable.parquet")
        if readable:
            on_gpu = self._options.device == "cuda"
            arguments = {**self._detect, "max_batch": self._options.batch}
            self._source.read(readable).map_batches(
                Worker,
                fn_constructor_args=(self._source, self._settings["model"], self._options.device, arguments),
                batch_size=self._options.batch,
                batch_format="pyarrow",
                zero_copy_batch=True,
                num_cpus=1,
                num_gpus=1 if on_gpu else 0,
                max_task_retries=_RETRIES,
                compute=ray.data.ActorPoolStrategy(
                    size=workers,
                    max_concurrent_calls_per_actor=_CALLS if on_gpu else 1,
                    enable_true_multi_threading=on_gpu,
                ),
            ).write_parquet(str(target.absolute()), min_rows_per_file=_ROWS)
        images, errors, detections = _count(target)
        expected = sum(found.images for found in checked) + len(failed)
        if images != expected:
            raise RuntimeError(f"{target} has {images} rows for {expected} images and failures")
        part = Part(start, start + len(files), images, errors, detections, time.monotonic() - begun)
        folder.finish(target, part)
        return part

    def _check(self, files: list[str]) -> list[Checked]:
        """Look at input files; tars and Parquet files by tasks of Ray, since each has to be opened."""
        if self._source.kind == IMAGES:
            return self._source.check(files)
        check = ray.remote(Source.check)
        groups = [files[first : first + _CHECKED] for first in range(0, len(files), _CHECKED)]
        return [found for group in ray.get([check.remote(self._source, group) for group in groups]) for found in group]

    def _complete(self, folder: RunFolder, parts: list[Part]) -> CollectionResult:
        detections = folder.path / DETECTIONS
        write_failures(detections, folder.path / "failed.csv")
        if self._options.coco:
            write_coco(detections, self._names, folder.path / "detections.json")
        seconds = sum(part.seconds for part in parts)
        summary = {
            **self._settings,
            "inputs": parts[-1].stop,
            "parts": len(parts),
            **{key: sum(getattr(part, key) for part in parts) for key in ("images", "failed", "detections")},
            "seconds": round(seconds, 1),
            "images_per_second": round(sum(part.images for part in parts) / seconds, 1),
            "versions": {"yolo_lat": __version__, "ray": ray.__version__, "onnxruntime": onnxruntime.__version__},
        }
        folder.complete(summary)
        return CollectionResult(folder.path, summary)


@contextmanager
def _ray_started(options: CollectionOptions) -> Iterator[int]:
    """Start Ray, or join a cluster, unless that was done before; yield the number of actors.

    Raises:
        UserError: no cluster there, or fewer cores or GPUs than asked for.
    """
    ours = not ray.is_initialized()
    if not ours and options.address is not None:
        raise UserError(f"address={options.address}: this process has started Ray already; leave it out")
    if ours:
        _start(options)
    context = ray.data.DataContext.get_current()
    before = context.target_max_block_size, context.enable_progress_bars
    context.target_max_block_size, context.enable_progress_bars = _BLOCK, sys.stderr.isatty()
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what it says of errors comes as an exception too
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="ray")
            # Nothing else bounds the retries of an actor yet; pyproject.toml excludes 2.64, which drops this way.
            warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
            yield _count_workers(options)
    finally:
        context.target_max_block_size, context.enable_progress_bars = before
        if ours:
            ray.shutdown()


def _start(options: CollectionOptions) -> None:
    quiet: dict[str, Any] = {"include_dashboard": False, "logging_level": logging.CRITICAL, "log_to_driver": False}
    if options.address is None:
        workers = options.workers or available_cores()
        # Two cores more than there are actors, to read and to write, which mostly waits.
        here = {"num_cpus": max(workers + 2, available_cores()), "object_store_memory": _STORE * (workers + 2)}
        ray.init("local", **here, **quiet)
        return
    try:
        # Ray itself waits for minutes for one that is not there.
        if address := re.fullmatch(r"(.+):(\d+)", options.address):
            socket.create_connection((address[1].strip("[]"), int(address[2])), timeout=10).close()
        ray.init(options.address, **quiet)
    except (OSError, OverflowError, ValueError, RayError) as error:
        raise UserError(
            f"address={options.address}: no Ray cluster of version {ray.__version__} answers ({_line(error)}); pass "
            "host:port of its head, or auto on one of its nodes, or leave it out to run on this machine"
        ) from error


def _count_workers(options: CollectionOptions) -> int:
    """Return the number of actors, after checking that Ray has what they need."""
    has = {kind: int(ray.cluster_resources().get(kind, 0)) for kind in ("CPU", "GPU")}
    if options.device == "cuda":
        workers = options.workers or max(has["GPU"], 1)
        if has["GPU"] < workers:
            raise UserError(
                f"device=cuda: {workers} workers need a GPU each, and Ray finds {has['GPU']}; pass fewer workers, or "
                "device=cpu"
            )
    else:
        workers = options.workers or (available_cores() if options.address is None else max(has["CPU"] - 2, 1))
    if has["CPU"] < workers + 1:
        raise UserError(
            f"workers={workers} need {workers + 1} CPUs of Ray, one for reading, and it has {has['CPU']}; pass fewer"
        )
    if options.device == "cuda":
        try:
            ray.get(ray.remote(num_gpus=1)(_open_on_cuda).remote(str(Path(options.model).absolute())))
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, UserError) else error) from None
    return workers


def _open_on_cuda(model: str) -> None:
    OnnxDetector(model, "cuda")


def _settings(options: CollectionOptions) -> dict[str, Any]:
    """Return what decides the results of a run, to be written down."""
    settings = {key: value for key, value in asdict(options).items() if key not in (*HOW, "project", "name")}
    if "://" not in options.source:
        settings["source"] = str(Path(options.source).absolute())
    settings["model"] = str(Path(options.model).absolute())
    if isinstance(options.imgsz, Sequence):
        settings["imgsz"] = list(options.imgsz)
    return {**settings, "sha256": hashlib.sha256(Path(options.model).read_bytes()).hexdigest()}


def _folder_name(source: str) -> str:
    """Return a name for the run on a source: the last part of its path that is more than a pattern."""
    names = [re.sub(r"[^\w-]+", "-", Path(part).stem).strip("-") for part in source.split("/")]
    return next(filter(None, reversed(names)), "collection")


def _next_size(part: Part, seconds: float, first: int) -> int:
    """Return how many inputs the part after `part` gets, so that it takes so many seconds."""
    return max(first, int((part.stop - part.start) * min(seconds / max(part.seconds, 1e-3), _GROWTH)))


def _count(folder: Path) -> tuple[int, int, int]:
    """Return the numbers of rows, of errors and of detections in the Parquet files of a part."""
    images = errors = detections = 0
    for path in folder.glob("*.parquet"):
        rows = pq.read_table(path, columns=["scores", "error"])
        images += rows.num_rows
        errors += rows.num_rows - rows["error"].null_count
        detections += pc.sum(pc.list_value_length(rows["scores"])).as_py() or 0
    return images, errors, detections


def _progress(parts: list[Part], total: int, left: float) -> str:
    images, failed, seconds = (sum(getattr(part, key) for part in parts) for key in ("images", "failed", "seconds"))
    rate, left_text = f"{images / seconds:.1f} images/s", f"about {timedelta(seconds=round(left))} left"
    return f"{parts[-1].stop:,} of {total:,} inputs: {images:,} images, {failed:,} failed, {rate}, {left_text}"


def _explain(error: RayError) -> str | None:
    """Return what the user can mend of an error that ended a part, None for a bug of ours."""
    if found := re.search(r"yolo_lat\.errors\.UserError: (.*)", str(error)):
        return found[1]
    cause = error.cause if isinstance(error, RayTaskError) else None
    if isinstance(error, OutOfMemoryError):
        return "memory ran out, lower batch= or workers="
    if isinstance(error, RayActorError):
        return f"actors died {_RETRIES + 1} times at the same images, of too little memory or of one that is broken"
    return _line(cause) if isinstance(cause, OSError | tarfile.TarError | pa.ArrowException) else None


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]
