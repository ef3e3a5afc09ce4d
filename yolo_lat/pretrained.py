"""Trained weights that ship with the package, known by name: `weights/` and its `registry.json`.

Needs no torch. Each file has an entry with its SHA-256, what it was trained on and its numbers, and a model card
`weights/NAME.md`; `tools/add_weights.py` writes all three.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo_lat.errors import UserError
from yolo_lat.resources import resource

if TYPE_CHECKING:
    from rich.console import Group

REGISTRY = "registry.json"


@dataclass(frozen=True)
class Pretrained:
    """One entry of the registry.

    Attributes:
        name: such as `yolo-lat-n-voc12`.
        file: safetensors, in the registry's folder.
        sha256: of the file, in hexadecimal.
        model: name of the model YAML and scale, such as `yolo-lat-n`.
        data: what it was trained on, in a word.
        classes: names of what it detects.
        imgsz: side of the images in training, pixels.
        epochs, seed: of the training.
        parameters: as deployed.
        coco: COCO's twelve numbers on the validation split, by name.
        note: what to know before use, one sentence.
    """

    name: str
    file: Path
    sha256: str
    model: str
    data: str
    classes: tuple[str, ...]
    imgsz: int
    epochs: int
    seed: int
    parameters: int
    coco: dict[str, float]
    note: str

    @property
    def card(self) -> Path:
        """Return the model card, Markdown."""
        return self.file.with_suffix(".md")

    def checked(self) -> Path:
        """Return the file, once its SHA-256 is found to be that of the registry.

        Raises:
            UserError: it is missing or damaged.
        """
        remedy = "install yolo-lat again"
        if not self.file.is_file():
            raise UserError(f"{self.file}: the weights {self.name} are missing; {remedy}")
        found = sha256(self.file)
        if found != self.sha256:
            raise UserError(
                f"{self.file}: damaged, the SHA-256 is {found[:12]}... and not {self.sha256[:12]}...; {remedy}"
            )
        return self.file


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def read_registry(folder: Path | None = None) -> dict[str, Any]:
    """Return the content of `registry.json`: `default`, a name or None, and `weights`, an entry for each name.

    Args:
        folder: where it lies; that of the package unless given. Without the file the registry is empty.
    """
    file = (folder or resource("weights")) / REGISTRY
    if not file.is_file():
        return {"default": None, "weights": {}}
    return dict(json.loads(file.read_text(encoding="utf-8")))


def pretrained_names() -> list[str]:
    """Return the names of all weights that ship."""
    return list(read_registry()["weights"])


def find_pretrained(name: str) -> Pretrained | None:
    """Return the entry of that name, None if there is none."""
    entry = read_registry()["weights"].get(name)
    if entry is None:
        return None
    values = {**entry, "file": resource("weights") / entry["file"], "classes": tuple(entry["classes"])}
    return Pretrained(name, **{key: values[key] for key in Pretrained.__dataclass_fields__ if key != "name"})


def find_weights(weights: str | Path, key: str = "") -> Path:
    """Return the file of trained weights.

    Args:
        weights: a .pt, safetensors, or the name of weights that ship.
        key: the argument that named them, for messages.

    Raises:
        UserError: none of these, or no such file.
    """
    shipped = find_pretrained(str(weights))
    file = shipped.checked() if shipped else Path(weights)
    given = f"{key}={weights}" if key else str(weights)
    if file.suffix.lower() not in (".pt", ".safetensors"):
        raise UserError(f"{given}: no trained weights; give a .pt, safetensors or a name of `info weights`")
    if not file.is_file():
        raise UserError(f"{given}: no such weights; correct the path")
    return file


def default_weights() -> Pretrained | None:
    """Return the weights that are used where none are named: those that the registry's key `default` names."""
    default = read_registry()["default"]
    return find_pretrained(default) if default else None


def pretrained_table() -> Group:
    """Return all weights that ship, their size and AP in a table, and below what they were trained on and find."""
    from rich.box import SIMPLE
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table

    registry = read_registry()
    shipped = [found for found in map(find_pretrained, registry["weights"]) if found is not None]
    table = Table(title=f"Weights by name; they lie in {resource('weights')}", title_justify="left", box=SIMPLE)
    table.add_column("name", no_wrap=True)
    for column in ("epochs", "px", "parameters", "AP", "AP50"):
        table.add_column(column, justify="right", no_wrap=True)
    for found in shipped:
        sizes = (f"{found.epochs}", f"{found.imgsz}", f"{found.parameters:,}")
        table.add_row(found.name, *sizes, *(f"{found.coco[key]:.3f}" for key in ("AP", "AP50")))
    about = dict.fromkeys(f"{found.data}: {found.note} Finds {', '.join(found.classes)}." for found in shipped)
    lines = [*about, *([f"{registry['default']} is used where no model is given."] if registry["default"] else [])]
    return Group(table, *(Padding(line, (0, 0, 1, 0)) for line in lines))
