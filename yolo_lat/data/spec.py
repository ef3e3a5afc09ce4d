"""The description of a data set: where its images and annotations lie and what its classes are called."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yolo_lat.errors import UserError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Subset:
    """A part of a split that depends on nothing but file names, seed and count; a smaller one lies in a larger one.

    Attributes:
        count: images.
        seed: another one gives another choice.
        origin: begins the message when there are not so many.
    """

    count: int
    seed: int = 0
    origin: str = field(repr=False, compare=False, default="the subset")

    def choose(self, paths: list[Path]) -> list[Path]:
        """Return `count` of the paths, in their order.

        Raises:
            UserError: there are not so many.
        """
        if self.count > len(paths):
            raise UserError(f"{self.origin} asks for {self.count} images, but there are {len(paths)}; ask for fewer")

        def rank(path: Path) -> bytes:
            name = f"{self.seed}/{path.name}".encode(errors="surrogateescape")  # a name need not be UTF-8
            return hashlib.blake2b(name, digest_size=8).digest()

        chosen = set(sorted(paths, key=rank)[: self.count])
        return [path for path in paths if path in chosen]


@dataclass(frozen=True)
class SplitSpec:
    """One split of a data set.

    Attributes:
        images: folders, image files, or text files that list image paths.
        annotations: the COCO JSON; None where each image has a label file of its own.
        subset: takes part of the images only.
    """

    images: tuple[Path, ...]
    annotations: Path | None = None
    subset: Subset | None = None

    def choose(self, paths: list[Path]) -> list[Path]:
        """Return the images that take part."""
        return paths if self.subset is None else self.subset.choose(paths)


@dataclass(frozen=True)
class DatasetSpec:
    """A data set as described by a YAML or the registry.

    Attributes:
        name: for messages and tables.
        file: the YAML it was read from.
        root: the folder that its paths start from.
        names: class names; a class's index is its position.
        splits: those of train, val and test that are described; their files may be missing.
        format: `yolo` label files, `coco` JSON or `voc` XML.
        voc_first_pixel: 1 where VOC corners count pixels from 1, as VOC itself does, 0 where they count from 0.
        download: what the key of that name says; nothing reads it unless a download is asked for.
        advice: how to come by missing files.
    """

    name: str
    file: Path
    root: Path
    names: tuple[str, ...]
    splits: Mapping[str, SplitSpec] = field(repr=False)
    format: str = "yolo"
    voc_first_pixel: int = 1
    download: Any = field(repr=False, default=None)
    advice: str = field(repr=False, default="correct it or put the data there")

    def split(self, split: str) -> SplitSpec:
        """Return one split, whose files exist.

        Raises:
            UserError: the data set does not describe it, or files are missing.
        """
        if split not in self.splits:
            raise UserError(f"{self.file}: has no split '{split}', only {', '.join(self.splits)}; add it or choose one")
        if missing := self.missing(split):
            paths = ", ".join(map(str, missing))
            raise UserError(f"{self.file}, split {split} of {self.name}: no such path {paths}; {self.advice}")
        return self.splits[split]

    def missing(self, split: str) -> list[Path]:
        """Return the files and folders of a split that do not exist."""
        part = self.splits[split]
        return [path for path in (*part.images, part.annotations) if path is not None and not path.exists()]
