"""Keep the engine offline and quiet: no telemetry, no integrations that nobody asked for, no font or data download."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import matplotlib
from PIL import Image
from ultralytics.data import dataset as data_sets
from ultralytics.data import utils as data_utils
from ultralytics.engine import exporter, trainer, validator
from ultralytics.utils import LOGGER, SETTINGS, USER_CONFIG_DIR, YAML, patches
from ultralytics.utils.events import events

from yolo_lat.unfinished import whole_file

_INTEGRATIONS = ("sync", "clearml", "comet", "dvc", "mlflow", "raytune", "tensorboard", "wandb", "vscode_msg")
_FONTS = ("Arial.ttf", "Arial.Unicode.ttf")
_stock_check = data_utils.check_det_dataset


def settle() -> None:
    """Switch telemetry, integrations and installs off, and give Ultralytics a font, so that it looks for none online.

    The settings file is that of this package (see `yolo_lat.__init__`), not the one that plain Ultralytics uses.
    """
    events.enabled = False
    for module in (data_utils, exporter, trainer, validator):  # each has the function under its own name
        module.check_det_dataset = check_dataset
    data_sets.load_dataset_cache_file = refuse_cache
    trainer.YAML = WholeYAML
    if find_spec("pi_heif") is None:
        Image.open = patches._image_open  # Ultralytics' own tries to install that package when a file is no image
    wanted = {key: False for key in _INTEGRATIONS if SETTINGS.get(key)}
    if wanted and "yolo-lat" in USER_CONFIG_DIR.parts:
        SETTINGS.update(wanted)
    font = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    for name in _FONTS:
        if not (USER_CONFIG_DIR / name).exists():
            shutil.copyfile(font, USER_CONFIG_DIR / name)


def check_dataset(dataset: str | Path, autodownload: bool = False, split: str = "") -> dict[str, Any]:
    """Do what `ultralytics.data.utils.check_det_dataset` does, but never run the key `download` of a data YAML."""
    return _stock_check(dataset, autodownload=False, split=split)


class WholeYAML(YAML):
    """Writes the arguments of a training whole or not at all."""

    @classmethod
    def save(cls, file: str | Path = "data.yaml", data: Any = None, header: str = "") -> None:
        """Write a YAML file; it appears under its name only when it is complete."""
        with whole_file(Path(file)) as partial:
            super().save(partial, data, header)


def refuse_cache(path: Path) -> NoReturn:
    """Let Ultralytics read labels from their files: its cache beside the data is a pickle, which may run code."""
    raise FileNotFoundError(f"{path}: label caches are not read")


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back what Ultralytics logs below a warning, such as advice to run commands of its own."""
    level = LOGGER.level
    LOGGER.setLevel("WARNING")
    try:
        yield
    finally:
        LOGGER.setLevel(level)
