"""Files and folders that appear under their names only when they are complete, whoever else writes them meanwhile."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from yolo_lat.run_lock import hold_folder

_MARK = ".unfinished-"
_ATTEMPTS = 5


@contextmanager
def unfinished_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder beside `target`, to make it in; what is in there at the end is removed.

    A killed process leaves it behind, as `.NAME.unfinished-...`; the next call for the same target removes it. One that
    another process is at is left alone (on Windows, where nothing tells, each is).

    Args:
        target: file or folder, in a folder that is there.

    Raises:
        OSError: no folder can be made there.
    """
    prefix = f".{target.name}{_MARK}"
    if sys.platform != "win32":
        for left in target.parent.iterdir():
            if left.name.startswith(prefix) and left.is_dir() and (held := hold_folder(left)) is not None:
                shutil.rmtree(left, ignore_errors=True)
                os.close(held)
    folder, held = _new_folder(target, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if held is not None:
            os.close(held)


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Yield a path whose file takes the place of `target` if the body succeeds, and is removed otherwise.

    Of several processes that write the same file at once, the one that ends last stays.

    Args:
        target: the file.

    Raises:
        OSError: no file can be written there; what was there before stays.
    """
    with unfinished_folder(target) as folder:
        yield folder / target.name
        (folder / target.name).replace(target)


def write_whole(target: Path, content: str | bytes) -> None:
    """Write a file, text as UTF-8; it appears under its name only when it is complete, and replaces what was there.

    Raises:
        OSError: it cannot be written; what was there before stays.
    """
    data = content.encode() if isinstance(content, str) else content
    number, name = tempfile.mkstemp(prefix=f".{target.name[:100]}{_MARK}", dir=target.parent)
    try:
        with os.fdopen(number, "wb") as stream:
            stream.write(data)
        Path(name).chmod(0o666 & ~umask())  # mkstemp lets nobody else read it
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def new_folder_of_run(wanted: Path, exist_ok: bool = False) -> Path:
    """Make the folder of a run: `wanted`, or the first of `wanted`-2, -3, ... that nobody else has or takes meanwhile.

    Args:
        wanted: a name, with or without such a number, which is counted up.
        exist_ok: take `wanted` though it is there.

    Raises:
        OSError: no folder can be made there.
    """
    wanted.parent.mkdir(parents=True, exist_ok=True)
    if exist_ok:
        wanted.mkdir(exist_ok=True)
        return wanted
    ending = re.fullmatch(r"(.+)-(\d+)", wanted.name)
    stem, first = (ending[1], int(ending[2])) if ending else (wanted.name, 1)
    for number in itertools.count(first):
        path = wanted.with_name(stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise AssertionError("counting has no end")


def _new_folder(target: Path, prefix: str) -> tuple[Path, int | None]:
    """Make a folder and hold it, where the disk has locks."""
    for _ in range(_ATTEMPTS):
        folder = target.with_name(prefix + uuid.uuid4().hex[:8])
        folder.mkdir()
        # Before it was held, another process may have taken it for one that was left behind.
        if (held := hold_folder(folder)) is not None or sys.platform == "win32":
            break
    return folder, held


def umask() -> int:
    """Return the permissions that the process withholds from new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
