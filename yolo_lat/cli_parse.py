"""The grammar of the command line: `key=value` words, as Ultralytics' `yolo` takes them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from yolo_lat.cli_modes import Mode
from yolo_lat.errors import UserError

_VERBATIM_KEYS = frozenset(
    {"name", "project", "json", "predictions", "directory", "data", "sheet", "figure", "file"}
    | {"runs", "models", "reference", "settings", "folder", "against", "record", "commit", "host", "output"}
)
_MODEL_SUFFIXES = frozenset({".pt", ".yaml", ".yml", ".onnx", ".safetensors"})
_KEY_VALUE = re.compile(r"\s*\w*\s*=")  # other words with = are names such as coco-subset:train=2000
_BRACKETS = {"[": "]", "(": ")"}


def parse(mode: Mode, words: Iterable[str]) -> dict[str, Any]:
    """Return the `key=value` words as a dict with converted values; words without a key are those of `mode.words`.

    Raises:
        UserError: A word is not `key=value`, or its key is unknown to `mode`, repeated, or lacks a value that it takes.
    """
    options: dict[str, Any] = {}
    accepted = mode.accepted()
    for word in merge_fragments(_without_dashes(mode, words)):
        if mode.words and not word.startswith("-") and word not in accepted and not _KEY_VALUE.match(word):
            key, value = mode.words, [*options.pop(mode.words, []), word] if mode.several else word
        else:
            key, value = _parse_word(mode, word)
        if key in options:
            raise UserError(f"key '{key}' is given twice; keep one of them")
        options[key] = value
    for key, only in (("mode", mode.name), ("task", "detect")):
        if (given := options.pop(key, only)) != only:
            raise UserError(f"{key}={given} contradicts yolo-lat {mode.name}; leave {key}= out")
    return options


def _without_dashes(mode: Mode, words: Iterable[str]) -> list[str]:
    """Write `--key value` and `--key=value` as `key=value`, for fingers that are used to them."""
    plain: list[str] = []
    accepted, takes_value = mode.accepted(), False
    for word in words:
        if takes_value and not word.startswith("--"):
            plain[-1] += f"={word}"
            takes_value = False
        elif word.startswith("--"):
            key, equals, _ = word[2:].partition("=")
            takes_value = not equals and key in accepted and not accepted[key].stands_alone
            plain.append(word[2:])
        else:
            plain.append(word)
    return plain


def merge_fragments(words: Iterable[str]) -> list[str]:
    """Join what the shell took apart: `key = value`, `key= value`, `key =value` and `key=[1, 2]`."""
    merged: list[str] = []
    for word in words:
        previous = merged[-1] if merged else ""
        lacks_value = previous.count("=") == 1 and previous.endswith("=") and "=" not in word
        if previous and (word.startswith("=") or lacks_value or _is_open(previous)):
            merged[-1] += word
        else:
            merged.append(word)
    return merged


def _is_open(word: str) -> bool:
    """Whether the value of `key=value` begins with a bracket that is not closed yet."""
    value = word.partition("=")[2]
    closing = _BRACKETS.get(value[:1])
    return closing is not None and value.count(value[0]) > value.count(closing)


def _parse_word(mode: Mode, word: str) -> tuple[str, Any]:
    key, equals, text = (part.strip() for part in word.partition("="))
    if key.startswith("-"):
        raise UserError(f"'{word}' has dashes; write {key.lstrip('-')}={text or 'VALUE'}")
    accepted = mode.accepted()
    if not equals and key not in accepted and _exists(key):
        role = "model" if Path(key).suffix in _MODEL_SUFFIXES else "source"
        raise UserError(f"'{key}' is a path without a key; write {role}={key}")
    mode.check_key(key)
    if not equals and accepted[key].stands_alone:
        return key, True
    if not text:
        raise UserError(f"key '{key}' has no value; write {key}={accepted[key].default or 'VALUE'}")
    if _is_open(word):
        raise UserError(f"'{word}' lacks its closing '{_BRACKETS[text[0]]}'; add it")
    value = text if key in _VERBATIM_KEYS and text.lower() != "none" else parse_value(text)
    accepted[key].check(value)
    return key, value


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # no file can have such a name
        return False


def parse_value(text: str) -> Any:
    """Convert text as Ultralytics does: None, True, False in any case, a Python literal, else the text itself."""
    named = {"none": None, "true": True, "false": False}
    if text.lower() in named:
        return named[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
