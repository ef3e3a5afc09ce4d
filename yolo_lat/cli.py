"""The `yolo-lat` command: `yolo-lat MODE key=value ...`, with the grammar and keys of Ultralytics' `yolo`.

Help and mistakes answer at once: torch and Ultralytics are imported by the mode that needs them.
"""

from __future__ import annotations

import ast
import errno
import io
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo_lat import __version__
from yolo_lat.cli_help import MODES, Mode, mode_help, overview
from yolo_lat.errors import UserError, nearest

if TYPE_CHECKING:
    from yolo_lat.engine.model import YOLOLAT

SCALES = ("p", "n", "s", "m", "l", "x")
_HELP_WORDS = frozenset({"--help", "-h", "help"})
_VERBATIM_KEYS = frozenset({"name", "project", "json", "predictions", "directory"})
_MODEL_SUFFIXES = frozenset({".pt", ".yaml", ".yml", ".onnx", ".safetensors"})
_BRACKETS = {"[": "]", "(": ")"}
_INPUT_ERRORS = (UserError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
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
        print(f"yolo-lat: error: {message}", file=sys.stderr)
        raise SystemExit(2) from None
    raise SystemExit(0)


def dispatch(words: Sequence[str]) -> None:
    """Print help or the version, or parse `words` and run their mode."""
    first, *rest = words or ["--help"]
    if first in _HELP_WORDS and rest:
        (first, *_), rest = rest, ["--help"]
    if first in _HELP_WORDS:
        print(overview())
    elif first == "--version":
        print(f"yolo-lat {__version__}")
    elif first not in MODES:
        raise UserError(f"unknown mode '{first}'{nearest(first, MODES) or '; use one of ' + ', '.join(MODES)}")
    elif _HELP_WORDS.intersection(rest):
        print(mode_help(MODES[first]))
    else:
        RUN[first](parse(MODES[first], rest))


def explain(error: Exception) -> str | None:
    """Return one line for an error that the user can mend, None for one that is a bug of ours."""
    line = " ".join(str(error).split())
    wrapped = isinstance(error.__cause__, _INPUT_ERRORS)  # Ultralytics wraps those about data sets in a RuntimeError
    if wrapped or isinstance(error, _INPUT_ERRORS) or getattr(error, "errno", None) == errno.ENOSPC:
        return line
    symptom = f"{type(error).__name__}: {line}".removesuffix(": ")
    if isinstance(error, MemoryError | RuntimeError) and any(sign in symptom.lower() for sign in _MEMORY_SIGNS):
        return f"memory ran out, lower batch= or imgsz= ({symptom})"
    return None


def parse(mode: Mode, words: Iterable[str]) -> dict[str, Any]:
    """Return the `key=value` words as a dict with converted values.

    Raises:
        UserError: A word is not `key=value`, or its key is unknown to `mode`, repeated or without a value.
    """
    options: dict[str, Any] = {}
    for word in merge_fragments(words):
        key, value = _parse_word(mode, word)
        if key in options:
            raise UserError(f"key '{key}' is given twice; keep one of them")
        options[key] = value
    for key, only in (("mode", mode.name), ("task", "detect")):
        if (given := options.pop(key, only)) != only:
            raise UserError(f"{key}={given} contradicts yolo-lat {mode.name}; leave {key}= out")
    return options


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
    if not equals and key not in accepted and Path(key).exists():
        role = "model" if Path(key).suffix in _MODEL_SUFFIXES else "source"
        raise UserError(f"'{key}' is a path without a key; write {role}={key}")
    mode.check_key(key)
    if not equals and accepted[key].stands_alone:
        return key, True
    if not text:
        raise UserError(f"key '{key}' has no value; write {key}={accepted[key].default or 'VALUE'}")
    if _is_open(word):
        raise UserError(f"'{word}' lacks its closing '{_BRACKETS[text[0]]}'; add it")
    return key, text if key in _VERBATIM_KEYS and text.lower() != "none" else parse_value(text)


def parse_value(text: str) -> Any:
    """Convert text as Ultralytics does: None, True, False in any case, a Python literal, else the text itself."""
    named = {"none": None, "true": True, "false": False}
    if text.lower() in named:
        return named[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _require(mode: str, options: Mapping[str, Any], *keys: str) -> None:
    for key in keys:
        if options.get(key) is None:
            raise UserError(f"{mode} needs {key}=, for example: {MODES[mode].examples[0]}")


def _check_values(options: Mapping[str, Any]) -> None:
    """Raise UserError for values that Ultralytics would refuse later with a traceback."""
    from ultralytics.cfg import check_cfg

    try:
        check_cfg(dict(options))
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error


def _take_scale(mode: str, options: dict[str, Any]) -> str | None:
    """Take the model scale out of `options`; a number stays there for `train`, as the augmentation gain."""
    scale = options.get("scale")
    if scale is None or (mode == "train" and not isinstance(scale, str)):
        return None
    if scale not in SCALES:
        gain = " or a number, the augmentation gain" if mode == "train" else ""
        raise UserError(f"scale={scale} is no model scale; use one of {', '.join(SCALES)}{gain}")
    return str(options.pop("scale"))


def _load_model(mode: str, options: dict[str, Any]) -> YOLOLAT:
    """Take `model` and its scale out of `options`, check the rest and build the model."""
    scale = _take_scale(mode, options)
    _check_values(options)
    from yolo_lat.engine.model import YOLOLAT

    return YOLOLAT(str(options.pop("model")), scale=scale)


def _recipe(path: Path) -> dict[str, Any]:
    """Return the keys of a `cfg=` recipe, held to the same rules as those of the command line."""
    import yaml

    if not path.is_file():
        return {}  # one of those that Ultralytics ships, or its error
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"cfg={path} is not valid YAML: {error}") from error
    if not isinstance(recipe, dict):
        raise UserError(f"cfg={path} holds no 'key: value' lines")
    for key in recipe:
        MODES["train"].check_key(str(key))
    _check_values(recipe)
    return recipe


def _train(options: dict[str, Any]) -> None:
    resume = options.get("resume")
    if isinstance(resume, str):
        options.setdefault("model", resume)
    recipe = _recipe(Path(str(options["cfg"]))) if options.get("cfg") else {}
    _require("train", options, "model")
    if not resume:
        _require("train", recipe | options, "data")
    model = _load_model("train", options)
    try:
        model.train(**options)
    except KeyboardInterrupt:
        last = getattr(model.trainer, "last", None)
        if last is None or not Path(last).is_file():
            raise
        raise KeyboardInterrupt(f"to go on: yolo-lat train resume={shlex.quote(str(last))}") from None


def _val(options: dict[str, Any]) -> None:
    report, predictions = options.pop("json", None), options.pop("predictions", None)
    if predictions is None:
        _require("val", options, "model", "data")
        coco = _load_model("val", options).val(**options).coco
    else:
        coco = _score(predictions, options)
        print("\n".join(f"{name:<8}{value:.4f}" for name, value in coco.items()))
    if report is not None:
        Path(report).parent.mkdir(parents=True, exist_ok=True)
        Path(report).write_text(json.dumps(coco, indent=2) + "\n", encoding="utf-8")


def _score(predictions: str, options: Mapping[str, Any]) -> dict[str, float]:
    """Return the twelve COCO numbers of a COCO results JSON, by name."""
    _require("val", options, "data")
    if unused := sorted(set(options) - {"data", "split"}):
        raise UserError(f"{unused[0]}= has no effect on predictions=; leave it out")
    from yolo_lat.engine.evaluate import evaluate_predictions

    return evaluate_predictions(predictions, options["data"], options.get("split", "val")).numbers


def _predict(options: dict[str, Any], mode: str = "predict") -> None:
    _require(mode, options, "model", "source")
    options.setdefault("save", True)
    model = _load_model(mode, options)
    frames = sum(1 for _ in getattr(model, mode)(stream=True, **options))
    saved = any(options.get(key) for key in ("save", "save_txt", "save_crop"))
    print(f"frames: {frames}" + (f", saved to {model.predictor.save_dir}" if saved and frames else ""))


def _export(options: dict[str, Any]) -> None:
    _require("export", options, "model")
    options.setdefault("format", "onnx")
    print(_load_model("export", options).export(**options))


def _info(options: dict[str, Any]) -> None:
    if not options.pop("table", False):
        _require("info", options, "model")
        _load_model("info", options).info(**options)
        return
    if other := sorted(options.keys() - {"imgsz"}):
        raise UserError(f"table shows every model; leave {other[0]}= out")
    from rich.console import Console

    from yolo_lat.engine.table import size_table

    Console().print(size_table(**options))


def _quickstart(options: dict[str, Any]) -> None:
    values = {key.name: parse_value(key.default) for key in MODES["quickstart"].keys} | options
    _check_values({key: values[key] for key in ("epochs", "seed")})
    from yolo_lat.engine.quickstart import quickstart

    quickstart(directory=Path(values.pop("directory")), **values)


RUN: dict[str, Callable[[dict[str, Any]], None]] = {
    "train": _train,
    "val": _val,
    "predict": _predict,
    "track": partial(_predict, mode="track"),
    "export": _export,
    "info": _info,
    "quickstart": _quickstart,
}
