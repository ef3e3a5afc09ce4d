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
    from rich.table import Table

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


def default_weights() -> Pretrained | None:
    """Return the weights that are used where none are named: those that the registry's key `default` names."""
    default = read_registry()["default"]
    return find_pretrained(default) if default else None


def pretrained_table() -> Table:
    """Return all weights that ship: what they were trained on, what they find, their size and AP."""
    from rich.table import Table

    registry = read_registry()
    table = Table(title=f"Weights by name; they lie in {resource('weights')}", title_justify="left", show_lines=True)
    table.add_column("name", no_wrap=True)
    table.add_column("trained on, finds, note", ratio=1, overflow="fold")
    for column in ("px", "parameters", "AP", "AP50"):
        table.add_column(column, justify="right")
    for name in registry["weights"]:
        found = find_pretrained(name)
        assert found is not None
        about = f"{found.data}, {found.epochs} epochs: {', '.join(found.classes)}\n{found.note}"
        table.add_row(
            name + ("\n(used where no model is given)" if name == registry["default"] else ""),
            about,
            str(found.imgsz),
            f"{found.parameters:,}",
            f"{found.coco['AP']:.3f}",
            f"{found.coco['AP50']:.3f}",
        )
    return table
