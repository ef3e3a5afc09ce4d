"""A folder that appears under its name only when it is complete, and not at all when its making fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from yolo_lat.errors import UserError
from yolo_lat.unfinished import unfinished_folder


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
        UserError: `target` exists and is not an empty folder, before or after.
    """
    check_new(target)
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    with unfinished_folder(target) as folder:
        yield folder
        check_new(target)  # someone else may have been faster
        try:
            if target.exists():
                target.rmdir()
            folder.rename(target)
        except OSError:
            check_new(target)
            raise
