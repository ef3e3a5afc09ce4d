"""What a run of the demo is asked to do."""

from __future__ import annotations

import glob
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from yolo_lat.deploy.postprocess import is_threshold
from yolo_lat.errors import UserError


@dataclass(frozen=True)
class DemoOptions:
    """The keys of `yolo-lat demo`.

    Attributes:
        model: `.onnx` file, or a name, YAML, .pt or .safetensors, for which torch is needed.
        source: camera number, video, picture, folder, pattern or address.
        device: "cpu", "cuda", "cuda:N" or N.
        imgsz: input size in pixels of a model that has no fixed one.
        conf: least score.
        iou: most overlap of two boxes of a class.
        max_det: most boxes of a frame.
        box_vote: overlap from which boxes vote on those that suppression keeps; they do not unless given.
        batch: frames at once, of a source that is not live.
        track: number the objects; None is yes for videos and live sources, and no for pictures.
        zones: YAML of lines and polygons.
        csv: also write `detections.csv`.
        save: write a folder at all.
        show: open a window; None where a display is there.
        project: folder of the run's folder.
        name: name of the run's folder; from the source unless given.
        part: frames of a part, at most so many are done anew by a run that goes on.
        timeout: seconds without a frame after which a stream is opened again.
        retry: seconds to keep trying.

    Raises:
        UserError: a value that means nothing.
    """

    model: str
    source: str
    device: str = "cpu"
    imgsz: int | Sequence[int] | None = None
    conf: float = 0.25
    iou: float = 0.7
    max_det: int = 300
    batch: int = 1
    track: bool | None = None
    zones: str | None = None
    csv: bool = False
    save: bool = True
    show: bool | None = None
    project: str = "runs/demo"
    name: str | None = None
    part: int = 300
    timeout: float = 10
    retry: float = 300
    box_vote: float | None = None

    def __post_init__(self) -> None:
        for key, what in (("batch", "frames"), ("part", "frames"), ("max_det", "boxes")):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"{key}={value} is no number of {what}; give 1 or more")
        for key in ("timeout", "retry"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                raise UserError(f"{key}={value} is no number of seconds; give more than 0")
        for key in ("conf", "iou", "box_vote"):
            value = getattr(self, key)
            if not is_threshold(value) and (value is not None or key != "box_vote"):
                raise UserError(f"{key}={value} is no threshold; give a number from 0 to 1")
        for key in ("csv", "save", "track", "show"):
            value = getattr(self, key)
            if not isinstance(value, bool) and (value is not None or key in ("csv", "save")):
                raise UserError(f"{key}={value} is neither True nor False; give one of them")
        if self.zones and self.track is False:
            raise UserError("zones= counts objects by their numbers; leave track=False out")
        if self.csv and not self.save:
            raise UserError("csv=True writes into the folder that save=False leaves out; drop one of them")

    @property
    def part_frames(self) -> int:
        """Frames of a part: a whole number of batches, so that a run that goes on forms the same batches."""
        return math.ceil(self.part / self.batch) * self.batch

    def absolute(self) -> DemoOptions:
        """Return the same with full paths, so that the run can go on from another folder."""

        def full(text: str) -> str:
            return str(Path(text).absolute()) if Path(text).exists() or is_pattern(text) else text

        zones = None if self.zones is None else full(self.zones)
        return replace(self, model=full(self.model), source=full(self.source), zones=zones)

    def fingerprint(self) -> dict[str, str]:
        """Return what tells whether the files that a run depends on are still the same."""
        marks = {"model": _content(Path(self.model)), "source": _listing(self.source)}
        return marks | ({"zones": _content(Path(self.zones))} if self.zones else {})


def is_pattern(text: str) -> bool:
    """Return whether a text stands for several files, as `shots/*.jpg` does."""
    return "://" not in text and glob.has_magic(text) and not Path(text).exists()


def _content(file: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    if not file.is_file():
        return "no file"
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _listing(source: str) -> str:
    """Return the SHA-256 of the names, sizes and times of a source's files, which may be too large to be read twice."""
    files = [Path(source)]
    if files[0].is_dir():
        files = list(files[0].iterdir())
    elif is_pattern(source):
        files = list(map(Path, glob.glob(source, recursive=True)))  # noqa: PTH207 - Path.glob takes no full paths
    found = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    return hashlib.sha256(repr(sorted(found)).encode()).hexdigest() if found else "no file"
