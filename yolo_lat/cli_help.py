"""The help text of the command line."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator

from yolo_lat import __version__
from yolo_lat.cli_modes import MODES, Key, Mode


def overview() -> str:
    """Return the text of `yolo-lat --help`."""
    modes = MODES.values()
    lines = [f"yolo-lat {__version__}: object detection with 2D exact linear attention (ELA)", ""]
    lines += ["usage: yolo-lat MODE key=value ...", "", "Modes:"]
    lines += _columns([(mode.name, mode.summary) for mode in modes])
    lines += ["", "Examples:", *(f"  {mode.examples[0]}" for mode in modes), ""]
    lines += ["yolo-lat MODE --help explains the keys of a mode; yolo-lat --version prints the version."]
    return "\n".join(lines)


def group_help(group: str) -> str:
    """Return the text of `yolo-lat GROUP --help` for modes of two words, such as data."""
    modes = [mode for mode in MODES.values() if mode.name.startswith(f"{group} ")]
    lines = [f"usage: yolo-lat {group} ACTION ...", "", "Actions:"]
    lines += _columns([(mode.name.removeprefix(f"{group} "), mode.summary) for mode in modes])
    lines += ["", "Examples:", *(f"  {example}" for mode in modes for example in mode.examples), ""]
    lines += [f"yolo-lat {group} ACTION --help explains the keys of an action."]
    return "\n".join(lines)


def mode_help(mode: Mode) -> str:
    """Return the text of `yolo-lat MODE --help`."""
    lines = [f"usage: {mode.usage}", "", mode.summary, "", "Examples:"]
    lines += [f"  {example}" for example in mode.examples]
    groups = list(mode.groups())
    for (title, _), table in zip(groups, _aligned([keys for _, keys in groups]), strict=True):
        lines += ["", f"{title}:", *table]
    return "\n".join(lines)


def _aligned(tables: list[list[Key]]) -> Iterator[list[str]]:
    """Yield the lines of each table of keys: name, default and text, aligned across all tables."""
    width = max(len(key.name) for table in tables for key in table)
    default_width = max(len(key.default) for table in tables for key in table)
    for table in tables:
        yield _columns([(f"{key.name:<{width}}  {key.default or '-':<{default_width}}", key.text) for key in table])


def _columns(rows: list[tuple[str, str]]) -> list[str]:
    """Return aligned lines of `left` and `right` with the right column wrapped to the terminal."""
    left_width = max((len(left) for left, _ in rows), default=0)
    indent = " " * (left_width + 4)
    right_width = max(shutil.get_terminal_size().columns - len(indent), 24)
    lines = []
    for left, right in rows:
        first, *rest = textwrap.wrap(right, right_width, break_on_hyphens=False)
        lines += [f"  {left:<{left_width}}  {first}", *(indent + line for line in rest)]
    return lines
