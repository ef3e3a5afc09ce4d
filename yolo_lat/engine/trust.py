"""Which pickled checkpoints may run code when they are opened: those that the user says he made himself.

A file's name is kept in the environment, so that the processes of a training on several GPUs, or of a benchmark, know
it too. Needs no torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_VARIABLE = "YOLO_LAT_TRUSTED_FILES"


def trust_files(files: Iterable[Any]) -> None:
    """Let those of `files` that are paths of a .pt be opened whatever they hold, here and in later child processes."""
    named = {_marked(file) for file in files if isinstance(file, str | Path) and Path(file).suffix.lower() == ".pt"}
    os.environ[_VARIABLE] = json.dumps(sorted(_trusted() | named))


def is_trusted(file: str | Path) -> bool:
    """Whether `trust_files` was told of a file."""
    return _marked(file) in _trusted()


def _trusted() -> set[str]:
    return set(json.loads(os.environ.get(_VARIABLE, "[]")))


def _marked(file: str | Path) -> str:
    return str(Path(file).resolve())
