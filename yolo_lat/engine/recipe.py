"""Training recipes: YAMLs of training keys, those in cfg/train by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ultralytics.cfg import check_cfg
from ultralytics.utils import DEFAULT_CFG_DICT

from yolo_lat.data.files import read_yaml
from yolo_lat.engine.mode_keys import check_use
from yolo_lat.engine.train_options import OWN_OPTIONS
from yolo_lat.errors import UserError, nearest
from yolo_lat.resources import resource

DEFAULTS = DEFAULT_CFG_DICT | {name: option.default for name, option in OWN_OPTIONS.items()}
_KEYS = (*DEFAULTS, "augmentations")


def recipe_names() -> list[str]:
    """Return the names of the recipes that ship with the package."""
    return sorted(file.stem for file in resource("cfg/train").glob("*.yaml"))


def find_recipe(cfg: str | Path) -> Path:
    """Return the file of a recipe, given its path or the name of one that ships with the package.

    Raises:
        UserError: there is none.
    """
    file, names = Path(cfg), recipe_names()
    if file.is_file():
        return file
    if str(cfg) in names:
        return resource("cfg/train") / f"{cfg}.yaml"
    raise UserError(f"cfg={cfg}: no such recipe{nearest(str(cfg), names)}; give a .yaml or one of {', '.join(names)}")


def read_recipe(file: Path) -> dict[str, Any]:
    """Return the keys and values of a recipe.

    Raises:
        UserError: not a YAML of training keys, a value that cannot be used, or one that does nothing in training.
    """
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds no 'key: value' lines; write training keys such as epochs: 100")
    if "save_dir" in content:  # Ultralytics would write over what is there
        raise UserError(f"{file}: save_dir names the folder of the run that this was written by; take the line out")
    for key in content:
        if key not in _KEYS:
            raise UserError(f"{file}: unknown key '{key}'{nearest(str(key), _KEYS) or '; see yolo-lat train --help'}")
    try:
        check_cfg({key: value for key, value in content.items() if key in DEFAULT_CFG_DICT and key != "augmentations"})
        check_use("train", content, DEFAULTS)
    except (TypeError, ValueError, UserError) as error:
        raise UserError(f"{file}: {error}") from error
    return content
