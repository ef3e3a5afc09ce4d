"""A folder that appears under its name only when it is complete, and not at all when its making fails."""

from __future__ import annotations

import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from yolo_lat.errors import UserError

if sys.platform != "win32":
    import fcntl

_LOCK = ".lock"


def check_new(target: Path) -> None:
    """Raise UserError where a folder cannot be made because something is there already."""
    if target.is_dir():
        if any(target.iterdir()):
            raise UserError(f"{target}: exists and is not empty; choose a new folder or remove it")
    elif target.exists() or target.is_symlink():
        raise UserError(f"{target}: is a file; choose a new folder")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target`, which becomes `target` at the end.

    It is removed on an exception and on Ctrl-C. A killed process leaves it behind, as `.NAME.unfinished-...`; the next
    call for the same target removes it.

    Raises:
        UserError: `target` exists and is not an empty folder.
    """
    check_new(target)
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}.unfinished-"
    for left in target.parent.iterdir():
        if left.name.startswith(prefix) and left.is_dir():
            _remove_unless_in_use(left)
    folder = target.with_name(prefix + uuid.uuid4().hex[:8])
    folder.mkdir()
    try:
        with _locked(folder):
            yield folder
            (folder / _LOCK).unlink()
            check_new(target)  # someone else may have been faster
            if target.exists():
                target.rmdir()
            folder.rename(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; the system lets go of it when the process ends, however it ends."""
    with (folder / _LOCK).open("w") as stream:
        _lock(stream)
        yield


def _lock(stream: IO[str]) -> None:
    """Lock an open file; OSError if another process holds it. On Windows an open file cannot be deleted anyway."""
    if sys.platform != "win32":
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _remove_unless_in_use(folder: Path) -> None:
    try:
        if (folder / _LOCK).exists():
            with (folder / _LOCK).open("r+") as stream:
                _lock(stream)
            (folder / _LOCK).unlink()
    except OSError:  # another process is at work in it
        return
    shutil.rmtree(folder, ignore_errors=True)
