"""The `yolo-lat` command: `yolo-lat MODE key=value ...`, with the grammar and keys of Ultralytics' `yolo`.

Help and mistakes answer at once: torch and Ultralytics are imported by the mode that needs them.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import time
from collections.abc import Sequence

from yolo_lat import __version__, missing_package
from yolo_lat.cli_benchmark import RUN_BENCHMARK
from yolo_lat.cli_collection import PREDICT_RAY, RUN_COLLECTION
from yolo_lat.cli_data import RUN_DATA
from yolo_lat.cli_demo import RUN_DEMO
from yolo_lat.cli_help import group_help, mode_help, overview
from yolo_lat.cli_modes import MODES
from yolo_lat.cli_parse import merge_fragments, parse
from yolo_lat.cli_run import RUN_ENGINE
from yolo_lat.cli_serve import RUN_SERVE
from yolo_lat.cli_web import RUN_WEB
from yolo_lat.errors import UserError, nearest

RUN = RUN_ENGINE | RUN_COLLECTION | RUN_BENCHMARK | RUN_SERVE | RUN_DATA | RUN_DEMO | RUN_WEB
_HELP_WORDS = frozenset({"--help", "-h", "help"})
_INPUT_ERRORS = (UserError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_AFTER_THE_FIRST = 5  # seconds that one of several processes waits, which end when the first has told the same
# What a system refuses that Python has no class of errors for.
_REMEDIES = {
    errno.ENOSPC: "make room or choose another folder",
    errno.EDQUOT: "make room or choose another folder",
    errno.EROFS: "choose another folder",
    errno.EACCES: "choose another folder or file, or change its permissions",
    errno.EPERM: "choose another folder or file, or change its permissions",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EEXIST: "choose another folder or file",
    errno.ENOTDIR: "choose another folder or file",
    errno.EFBIG: "choose another disk, which takes files of that size",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ELOOP: "correct the links",
}
_MEMORY_SIGNS = ("out of memory", "can't allocate memory", "memoryerror")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit status.

    Args:
        argv: Words after the program's name; `sys.argv[1:]` when None.

    Raises:
        SystemExit: 0 when done, 2 for input that cannot be used, 130 when interrupted, 141 when the reader of standard
            output went away.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # help has signs such as ↔ that some code pages lack
    try:
        dispatch(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except KeyboardInterrupt as interrupt:
        print("; ".join(["yolo-lat: interrupted", *map(str, interrupt.args)]), file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is printed from here on
        raise SystemExit(141) from None
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        if os.environ.get("RANK", "0") != "0":
            time.sleep(_AFTER_THE_FIRST)
        print(f"yolo-lat: error: {message}", file=sys.stderr)
        raise SystemExit(2) from None
    raise SystemExit(0)


def dispatch(words: Sequence[str]) -> None:
    """Print help or the version, or parse `words` and run their mode."""
    words = list(words)
    if words and words[0] in _HELP_WORDS:
        words = [*words[1:], "--help"]  # yolo-lat help train
    name, rest = _mode_name(words)
    if name == "predict":
        name, rest = _predict_mode(rest)
    if name == "--version":
        print(f"yolo-lat {__version__}")
    elif not name:
        print(overview())
    elif name not in MODES:
        print(group_help(name))
    elif _HELP_WORDS.intersection(rest):
        print(mode_help(MODES[name]))
        if actions := _actions(name):
            print(f"\nSee also: yolo-lat {name} {' and '.join(actions)} --help")
    else:
        RUN[name](parse(MODES[name], rest))


def _mode_name(words: list[str]) -> tuple[str, list[str]]:
    """Return the name of the mode, one word or two, and the words after it.

    The name is empty, or that of a group such as `data`, where help on it is asked for. A mode may have the name of a
    group: `demo` is meant unless `demo web` is said.
    """
    if not words or words[0] in _HELP_WORDS:
        return "", []
    first, *rest = words
    if actions := _actions(first):
        if not rest or rest[0] in _HELP_WORDS:
            return first, rest
        if rest[0] in actions:
            return f"{first} {rest[0]}", rest[1:]
        hint = "" if "=" in rest[0] else nearest(rest[0], actions)
        if hint or first not in MODES:
            raise UserError(f"unknown action '{rest[0]}' of {first}{hint or '; use one of ' + ', '.join(actions)}")
    if first not in MODES and first != "--version":
        names = dict.fromkeys(name.partition(" ")[0] for name in MODES)
        raise UserError(f"unknown mode '{first}'{nearest(first, names) or '; use one of ' + ', '.join(names)}")
    return first, rest


def _predict_mode(words: list[str]) -> tuple[str, list[str]]:
    """Return the mode of predict that the words ask for, and those of them that are not `engine=ray`."""
    words = merge_fragments(words)
    others = [word for word in words if word not in ("engine=ray", "--engine=ray")]
    return (PREDICT_RAY, others) if len(others) < len(words) else ("predict", words)


def _actions(group: str) -> list[str]:
    """Return the second words of the modes that begin with the word `group`."""
    return [name.partition(" ")[2] for name in MODES if name.startswith(f"{group} ")]


def _system_error(error: Exception, remedy: str) -> str:
    """Return one line for what the system refused: which file, why, and what to do."""
    names = [str(name) for name in (getattr(error, "filename2", None), getattr(error, "filename", None)) if name]
    return ": ".join([*names[:1], f"{getattr(error, 'strerror', None) or error}; {remedy}"])


def explain(error: Exception) -> str | None:
    """Return one line for an error that the user can mend, None for one that is a bug of ours."""
    if isinstance(error, ModuleNotFoundError) and (missing := missing_package(error)):
        return str(missing)
    line = " ".join(str(error).split())
    wrapped = isinstance(error.__cause__, _INPUT_ERRORS)  # Ultralytics wraps those about data sets in a RuntimeError
    if remedy := _REMEDIES.get(getattr(error, "errno", None) or 0):
        return _system_error(error, remedy)
    if wrapped or isinstance(error, _INPUT_ERRORS):
        return line
    symptom = f"{type(error).__name__}: {line}".removesuffix(": ")
    if isinstance(error, MemoryError | RuntimeError) and any(sign in symptom.lower() for sign in _MEMORY_SIGNS):
        return f"memory ran out, lower batch= or imgsz= ({symptom})"
    return None
