"""One process at a time in the folder of a run."""

from __future__ import annotations

import sys
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
