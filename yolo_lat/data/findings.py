"""What a check found wrong or worth a look, counted by kind."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

LISTED = 10_000  # findings of a kind that are kept word by word; all are counted, and memory stays bounded


@dataclass(frozen=True)
class Kind:
    """A kind of finding.

    Attributes:
        error: whether it keeps the check from passing.
        weight: how much an image that has it deserves a look.
        title: for tables and tiles.
    """

    error: bool
    weight: float
    title: str


KINDS = {
    "split": Kind(True, 0, "split missing or unreadable"),
    "image": Kind(True, 10, "missing or broken image"),
    "size": Kind(True, 8, "another size than annotated"),
    "labels": Kind(True, 4, "malformed annotation"),
    "class": Kind(True, 4, "unknown class"),
    "leak": Kind(True, 6, "same picture in two splits"),
    "damaged": Kind(False, 7, "damaged image data"),
    "outside": Kind(False, 3, "boxes reach outside"),
    "no area": Kind(False, 3, "boxes without area in the image"),
    "tiny": Kind(False, 1, "boxes under 2 px"),
    "repeated": Kind(False, 2, "same box twice"),
    "contested": Kind(False, 3, "one box, several classes"),
    "unlabelled": Kind(False, 1, "no label file"),
    "orphan": Kind(False, 0, "label file without image"),
    "shared": Kind(False, 3, "images share a label file"),
    "suffix": Kind(False, 1, "suffix of another format"),
    "copy": Kind(False, 2, "same picture twice"),
    "alike": Kind(False, 2, "probably the same picture"),
    "corners": Kind(False, 0, "corners counted from 0"),
    "classes": Kind(False, 0, "classes without boxes"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found.

    Attributes:
        kind: a key of `KINDS`; that of a reader's `Fault` keeps its name.
        file: where it is.
        message: one sentence: what, where and what to do.
        image: the image to look at, where it is about one.
    """

    kind: str
    file: Path
    message: str
    image: Path | None = None


@dataclass
class Findings:
    """All findings, counted, and the first `LISTED` of each kind."""

    counts: Counter[str] = field(default_factory=Counter)
    listed: dict[str, list[Finding]] = field(default_factory=dict)

    def add(self, finding: Finding) -> None:
        """Count a finding, and keep it while there is room."""
        self.counts[finding.kind] += 1
        kept = self.listed.setdefault(finding.kind, [])
        if len(kept) < LISTED:
            kept.append(finding)

    def total(self, error: bool) -> int:
        """Return how many errors there are, or how many warnings."""
        return sum(count for kind, count in self.counts.items() if KINDS[kind].error == error)

    def by_image(self) -> dict[Path, list[Finding]]:
        """Return the findings about each image, the image most in need of a look first."""
        images: dict[Path, list[Finding]] = {}
        for kind in KINDS:
            for finding in self.listed.get(kind, []):
                if finding.image is not None:
                    images.setdefault(finding.image, []).append(finding)

        def urgency(image: Path) -> tuple[float, Path]:
            return -sum(KINDS[kind].weight for kind in {finding.kind for finding in images[image]}), image

        return {image: images[image] for image in sorted(images, key=urgency)}
