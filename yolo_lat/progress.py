"""Bars that show how far a loop is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import Progress


@contextmanager
def show_progress(label: str, total: int, wanted: bool = True) -> Iterator[Callable[[], None]]:
    """Show a bar on stderr, if that is a terminal, while a block runs; yields what to call after each of `total` steps.

    It ends with its block. An error in a loop over `rich.progress.track` would leave that, and the thread it waits for,
    to the garbage collector, which may run where a lock of `threading` is held, and then waits for ever.
    """
    if not (wanted and sys.stderr.isatty()):
        yield lambda: None
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        yield partial(bar.advance, bar.add_task(label, total=total))
