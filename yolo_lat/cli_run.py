"""What each mode of the command line does: hand its options to the engine.

Torch and Ultralytics are imported by the mode that needs them.
"""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo_lat.cli_modes import MODES
from yolo_lat.cli_parse import parse_value
from yolo_lat.errors import UserError
from yolo_lat.unfinished import new_folder_of_run, write_whole

if TYPE_CHECKING:
    from yolo_lat.engine.model import YOLOLAT

SCALES = ("p", "n", "s", "m", "l", "x")


def require(mode: str, options: Mapping[str, Any], *keys: str) -> None:
    """Raise UserError unless each of the keys has a value."""
    for key in keys:
        if options.get(key) is None:
            raise UserError(f"{mode} needs {key}=, for example: {MODES[mode].examples[0]}")


def value_of(mode: str, options: Mapping[str, Any], key: str) -> Any:
    """Return the value given for a key, or its default."""
    return options[key] if key in options else parse_value(MODES[mode].accepted()[key].default)


def file_to_write(key: str, value: Any, suffix: str = "") -> Path:
    """Return the file that a key names, in a folder that is there and takes files: it is written after all the work.

    Raises:
        UserError: it ends in something else than `suffix`, is a folder, or cannot be written.
    """
    file = Path(str(value))
    if suffix and file.suffix.lower() != suffix:
        raise UserError(f"{key}={value}: is no {suffix}; name it so")
    if file.is_dir():
        raise UserError(f"{key}={value}: is a folder; give a file in it")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=file.parent):
            return file
    except OSError as error:
        raise UserError(f"{key}={value}: cannot be written ({error.strerror}); choose another folder") from error


def fetch(options: dict[str, Any]) -> None:
    """Take `download` out of the options and, if it is true, fetch the data set."""
    if options.pop("download", False):
        from yolo_lat.data.download import download
        from yolo_lat.data.registry import load_dataset

        download(load_dataset(options["data"]))


def trust_if_asked(trust: Any, files: Iterable[Any]) -> None:
    """Let those of `files` that are a .pt be opened whatever they hold, if the key `trust` says so."""
    if not isinstance(trust, bool):
        raise UserError(f"trust={trust}: must be True or False")
    if trust:
        from yolo_lat.engine.trust import trust_files

        trust_files(files)


def check_values(options: Mapping[str, Any]) -> None:
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
    """Take `model`, its scale and `trust` out of `options`, check the rest and build the model."""
    scale, trust = _take_scale(mode, options), options.pop("trust", False)
    check_values(options)
    from yolo_lat.engine.model import YOLOLAT

    return YOLOLAT(str(options.pop("model")), scale=scale, trust=trust)


def recipe_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of the recipe that `cfg=` names, if it names one."""
    if not options.get("cfg"):
        return {}
    from yolo_lat.engine.recipe import find_recipe, read_recipe

    return read_recipe(find_recipe(options["cfg"]))


def _train(options: dict[str, Any]) -> None:
    resume = options.get("resume")
    if isinstance(resume, str):
        if options.get("model") not in (None, resume):
            raise UserError(f"model={options['model']}: resume={resume} goes on with its own; drop one of both")
        options["model"] = resume
    require("train", options, "model")
    if not resume:
        require("train", recipe_of(options) | options, "data")
    model = _load_model("train", options)
    try:
        model.train(**options)
    except KeyboardInterrupt:
        last = getattr(model.trainer, "last", None)
        if last is None or not Path(last).is_file():
            raise
        raise KeyboardInterrupt(f"to go on: yolo-lat train resume={shlex.quote(str(last))}") from None


def _val(options: dict[str, Any]) -> None:
    wanted, predictions = options.pop("json", None), options.pop("predictions", None)
    file = None if wanted is None else file_to_write("json", wanted)
    if predictions is None:
        require("val", options, "model", "data")
        metrics = _load_model("val", options).val(**options)
        coco = {} if file is None else metrics.coco  # a split without annotations has none
    else:
        coco = _score(predictions, options)
        print("\n".join(f"{name:<8}{value:.4f}" for name, value in coco.items()))
    if file is not None:
        write_whole(file, json.dumps(coco, indent=2) + "\n")


def _score(predictions: str, options: dict[str, Any]) -> dict[str, float]:
    """Return the twelve numbers of a COCO results JSON; writes a run folder where `project` or `name` asks for one."""
    require("val", options, "data")
    fetch(options)
    run = {key: options[key] for key in ("project", "name", "exist_ok") if key in options}
    if unused := sorted(options.keys() - run.keys() - {"data", "split", "plots"}):
        raise UserError(f"{unused[0]}= has no effect on predictions=; leave it out")
    from yolo_lat.engine.evaluate import evaluate_predictions

    asked = predictions, options["data"], options.get("split", "val")
    plots = options.get("plots", True)
    if not run.keys() & {"project", "name"}:
        return evaluate_predictions(*asked, None, plots).numbers
    wanted = Path(run.get("project") or "runs/detect", run.get("name") or "val")
    folder = wanted if run.get("exist_ok") else new_folder_of_run(wanted)
    try:
        result = evaluate_predictions(*asked, folder, plots)
    except UserError:
        if not run.get("exist_ok"):
            folder.rmdir()  # predictions or data that cannot be used leave nothing behind
        raise
    print(f"saved to {folder}")
    return result.numbers


def _predict(options: dict[str, Any], mode: str = "predict") -> None:
    if engine := options.pop("engine", None):
        raise UserError(f"engine={engine} is unknown; write engine=ray, or leave it out")
    if (embed := options.get("embed")) is not None and mode == "predict":
        raise UserError(
            f"embed={embed}: gives tensors, which are for Python alone; there it is YOLOLAT(...).embed(source)"
        )
    require(mode, options, "source")
    if options.get("model") is None:
        options["model"] = _best_shipped(mode)
    options.setdefault("save", True)
    model = _load_model(mode, options)
    frames = sum(1 for _ in getattr(model, mode)(stream=True, **options))
    saved = any(options.get(key) for key in ("save", "save_txt", "save_crop", "visualize"))
    print(f"frames: {frames}" + (f", saved to {model.predictor.save_dir}" if saved and frames else ""))


def _best_shipped(mode: str) -> str:
    """Return the name of the weights that are used where no model is given, and say which they are."""
    from yolo_lat.pretrained import default_weights

    best = default_weights()
    if best is None:
        raise UserError(f"{mode} needs model=, as this installation has no weights of its own; give weights or a model")
    measured = f"AP {best.coco['AP']:.3f} on {best.data}"
    print(
        f"model: {best.name}, the best of the weights for photographs that ship ({measured}), which finds "
        f"{', '.join(best.classes)}; give model= for another"
    )
    return best.name


def _export(options: dict[str, Any]) -> None:
    require("export", options, "model")
    options.setdefault("format", "onnx")
    print(_load_model("export", options).export(**options))


def _info(options: dict[str, Any]) -> None:
    if options.pop("weights", False):
        if options:
            raise UserError(f"weights shows all that ship; leave {min(options)}= out")
        from rich.console import Console

        from yolo_lat.pretrained import pretrained_table

        Console().print(pretrained_table())
        return
    if not options.pop("table", False):
        require("info", options, "model")
        _load_model("info", options).info(**options)
        return
    if other := sorted(options.keys() - {"imgsz"}):
        raise UserError(f"table shows every model; leave {other[0]}= out")
    from rich.console import Console

    from yolo_lat.engine.table import size_table

    Console().print(size_table(**options))


def _quickstart(options: dict[str, Any]) -> None:
    values = {key.name: parse_value(key.default) for key in MODES["quickstart"].keys} | options
    check_values({key: values[key] for key in ("epochs", "seed")})
    from yolo_lat.engine.quickstart import quickstart

    quickstart(directory=Path(values.pop("directory")), **values)


RUN_ENGINE: dict[str, Callable[[dict[str, Any]], None]] = {
    "train": _train,
    "val": _val,
    "predict": _predict,
    "track": partial(_predict, mode="track"),
    "export": _export,
    "info": _info,
    "quickstart": _quickstart,
}
