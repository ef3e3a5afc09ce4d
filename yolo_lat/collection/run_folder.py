"""The folder of a run: the list of inputs, and the finished parts, each of which appears at once and whole.

`inputs.parquet` lists the input files in the order that they are taken. A part is a folder
`detections/000000000000-000000000200`, of the inputs from the first number up to the second, with Parquet files and,
in `_part.json`, what is known of it. It is written beside the others under a name that begins with a dot, which readers
of Parquet leave out, and then renamed: a killed run leaves finished parts, and one without a name that is removed.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from yolo_lat.errors import UserError
from yolo_lat.run_lock import lock_run
from yolo_lat.typed_json import read_typed

DETECTIONS = "detections"
_RUN, _INPUTS, _PART, _SUMMARY, _UNFINISHED = "run.json", "inputs.parquet", "_part.json", "summary.json", ".unfinished"
_SCHEMA = pa.schema([("file", pa.string())])
_ROWS = 100_000  # of a row group of the list of inputs


@dataclass(frozen=True)
class Part:
    """What is known of a finished part.

    Attributes:
        start, stop: numbers of its first input and of the one after its last.
        images: images in it, failed ones included.
        failed: those of them without a result, and input files that could not be read.
        detections: boxes in it.
        seconds: that it took.
    """

    start: int
    stop: int
    images: int
    failed: int
    detections: int
    seconds: float


class RunFolder:
    """The folder of a run that this process is at; use it as a context.

    Args:
        path: the folder.
        settings: what the run was asked to do.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, settings
        self._lock = lock_run(path, _RUN)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    @classmethod
    def new(cls, path: Path, settings: dict[str, Any], inputs: Iterable[str]) -> RunFolder:
        """Make the folder at `path`, or at `path`-2, ... where that exists, with the list of inputs.

        It appears with the list, so that one that is there can be gone on with; nothing is left if listing fails.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
        partial.mkdir()
        try:
            _write_inputs(partial / _INPUTS, iter(inputs))
            (partial / DETECTIONS).mkdir()
            (partial / _RUN).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
            return cls(_renamed(partial, path), settings)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    @classmethod
    def existing(cls, path: Path) -> RunFolder:
        """Open the folder of an unfinished run.

        Raises:
            UserError: no such run, one that is complete, or one that another process is at.
        """
        try:
            settings = read_typed(dict[str, Any], path / _RUN)
        except (OSError, ValueError) as error:
            raise UserError(
                f"resume={path}: holds no readable {_RUN}; give the folder of such a run, or another name"
            ) from error
        if (path / _SUMMARY).is_file():
            raise UserError(f"resume={path}: this run is complete; start another without resume=")
        return cls(path, settings)

    @property
    def total(self) -> int:
        """Number of input files.

        Raises:
            UserError: the list of them is damaged.
        """
        with self._list() as file:
            return int(file.metadata.num_rows)

    def inputs(self, start: int) -> Iterator[str]:
        """Yield the input files from number `start` on.

        Raises:
            UserError: the list of them is damaged.
        """
        with self._list() as file:
            batches = file.iter_batches(_ROWS)
            yield from islice((name for batch in batches for name in batch["file"].to_pylist()), start, None)

    def parts(self) -> list[Part]:
        """Return the finished parts in order.

        Raises:
            UserError: one is damaged, or missing between others.
        """
        parts = []
        for file in sorted((self.path / DETECTIONS).glob(f"*-*/{_PART}")):
            try:
                parts.append(read_typed(Part, file))
            except (OSError, ValueError) as error:
                raise UserError(
                    f"{file.parent}: this part is damaged ({_PART}: {error}); remove it and those after it to have "
                    "them done again"
                ) from error
        for before, after in zip([0, *(part.stop for part in parts)], parts, strict=False):
            if before != after.start:
                raise UserError(
                    f"{self.path / DETECTIONS}: the part of inputs {before} to {after.start} is missing; put it back, "
                    "or remove those after it too"
                )
        return parts

    @contextmanager
    def _list(self) -> Iterator[pq.ParquetFile]:
        """Open the list of inputs."""
        try:
            with pq.ParquetFile(self.path / _INPUTS) as file:
                if file.schema_arrow != _SCHEMA:
                    raise pa.ArrowInvalid("other columns")
                yield file
        except (OSError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{self.path / _INPUTS}: the list of inputs is damaged ({reason}); start another run"
            ) from error

    def new_part(self) -> Path:
        """Return an empty folder for the files of a part, to be given to `finish`."""
        for left in (self.path / DETECTIONS).glob(f"{_UNFINISHED}-*"):  # by a run that was killed
            shutil.rmtree(left)
        # Under a name of its own: a worker of the killed run that still writes finds its folder gone.
        folder = self.path / DETECTIONS / f"{_UNFINISHED}-{uuid.uuid4().hex[:8]}"
        folder.mkdir()
        return folder

    def finish(self, folder: Path, part: Part) -> None:
        """Give a written part its name, which makes it count."""
        (folder / _PART).write_text(json.dumps(asdict(part)) + "\n", encoding="utf-8")
        folder.rename(folder.with_name(f"{part.start:012d}-{part.stop:012d}"))

    def complete(self, summary: dict[str, Any]) -> None:
        """Write the summary, the last file of a run."""
        partial = self.path / f".{_SUMMARY}"
        partial.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        partial.replace(self.path / _SUMMARY)


def _renamed(folder: Path, wanted: Path) -> Path:
    """Rename a folder to `wanted`, `wanted`-2, ..., the first that nobody else has or takes meanwhile."""
    for number in count(1):
        path = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        if path.exists():
            continue
        try:
            return folder.rename(path)
        except OSError:
            if not path.exists():
                raise
    raise AssertionError("counting has no end")


def _write_inputs(path: Path, names: Iterator[str]) -> None:
    with pq.ParquetWriter(path, _SCHEMA) as writer:
        while rows := list(islice(names, _ROWS)):
            writer.write_table(pa.table({"file": rows}, _SCHEMA))
