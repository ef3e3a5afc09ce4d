"""Where the files that ship beside the code are: `cfg/`, `weights/` and `datasets.yaml`."""

from __future__ import annotations

from pathlib import Path

import yaml

_PACKAGE = Path(__file__).resolve().parent


def resource(name: str) -> Path:
    """Return the path of a shipped file or folder, inside the installed package or beside it in a checkout."""
    installed = _PACKAGE / name
    return installed if installed.exists() else _PACKAGE.parent / name


def model_names() -> list[str]:
    """Return the names of all shipped models, family by family, each as `<family>-<scale>`; reads them without torch.

    A YAML with one scale may be called by that name, as yolo-lat-p.yaml is: one of the family with rows of its own.
    """
    families: dict[str, list[str]] = {}
    for file in sorted(resource("cfg/models").glob("*.yaml"), key=lambda file: file.stem, reverse=True):
        scales = yaml.safe_load(file.read_text(encoding="utf-8")).get("scales", {})
        family = next((file.stem.removesuffix(f"-{scale}") for scale in scales if len(scales) == 1), file.stem)
        families.setdefault(family, []).extend(f"{family}-{scale}" for scale in scales)
    return [name for family in sorted(families, key=lambda family: (len(family), family)) for name in families[family]]
