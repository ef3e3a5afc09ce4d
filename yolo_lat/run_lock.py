"""One process at a time in the folder of a run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

from yolo_lat.errors import UserError

if sys.platform != "win32":
    import fcntl


def lock_run(path: Path, name: str) -> IO[str]:
    """Hold the run of a folder by its file `name`, until what is returned is closed or the process ends, however.

    Raises:
        UserError: another process holds it.
    """
    stream = (path / name).open("r+", encoding="utf-8")
    if sys.platform != "win32":
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            stream.close()
            raise UserError(f"{path}: another process is at this run; wait for it or end it") from error
    return stream


def hold_folder(folder: Path) -> int | None:
    """Lock a folder itself, until the number that is returned is closed or the process ends, however.

    Returns:
        A file descriptor; None where another process holds the folder, or it is gone, and always on Windows.
    """
    if sys.platform == "win32":
        return None
    try:
        number = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(number), folder.stat()):
            return number
    except OSError:
        pass
    os.close(number)
    return None


def lock_folder(folder: Path) -> Callable[[], None]:
    """Hold the folder of a run, until what is returned is called or the process ends, however.

    Raises:
        UserError: another process holds it.
    """
    if sys.platform == "win32":
        return lambda: None
    if (number := hold_folder(folder)) is None:
        raise UserError(f"{folder}: another process is at this run; wait for it, end it, or give another name")
    _held.add(number)

    def let_go() -> None:
        _held.discard(number)
        os.close(number)

    return let_go


_held: set[int] = set()


def _close_held() -> None:
    """Let a fork, such as a worker that loads data, not hold what its parent does: it may outlive it."""
    while _held:
        os.close(_held.pop())


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_close_held)
