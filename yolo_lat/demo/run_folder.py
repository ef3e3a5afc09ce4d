"""The folder of a run: finished parts while it goes on, whole files at its end.

A part is `parts/00000.mp4` (or no video), `parts/00000.jsonl` and, written last, `parts/00000.json`: only with that
file is it complete. Files under work have names that end in `.partial`.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from yolo_lat.demo.records import write_csv
from yolo_lat.demo.video_writer import join_videos
from yolo_lat.errors import UserError
from yolo_lat.run_lock import lock_run
from yolo_lat.typed_json import read_typed, typed
from yolo_lat.unfinished import write_whole

RUN, PARTS, VIDEO, LINES, TABLE, SUMMARY = (
    *("run.json", "parts", "video.mp4", "detections.jsonl", "detections.csv", "summary.json"),
)


@dataclass(frozen=True)
class Part:
    """What is known of a complete part.

    Attributes:
        frames: number of frames in it.
        next_frame: number of the frame after it.
        start_s: presentation time of its first frame.
        whole: whether it has the full length, so that a run may go on after it.
        tracker: state of the tracker after it.
        faults: counts of faults until its end.
        dropped: frames dropped until its end.
    """

    frames: int
    next_frame: int
    start_s: float
    whole: bool
    tracker: dict[str, Any] | None
    faults: dict[str, int]
    dropped: int


class RunFolder:
    """A folder that holds a run.

    Args:
        path: an existing folder, from `new` or `existing`.
        settings: what the run was asked to do.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, settings
        self._lock = lock_run(path, RUN)
        (path / PARTS).mkdir(exist_ok=True)

    @classmethod
    def new(cls, project: Path, name: str, settings: dict[str, Any]) -> RunFolder:
        """Make `project/name`, or `project/name-2`, ... where that exists."""
        wanted = project / name
        project.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            path = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
            try:
                path.mkdir(parents=True)
                break
            except FileExistsError:
                number += 1
        write_whole(path / RUN, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
        return cls(path, settings)

    @classmethod
    def existing(cls, path: Path) -> RunFolder:
        """Open the folder of an unfinished run, and remove what was under work in it.

        So is the last part of a file if it was cut off, since only a full one ends where a batch ends.

        Raises:
            UserError: no such run, one that is complete, or one that another process is at.
        """
        try:
            settings = read_typed(dict[str, Any], path / RUN)
            options = typed(dict[str, Any], settings.get("options"), "options")
            for key, kind in (("model", str), ("source", str), ("zones", str | None)):
                typed(kind, options.get(key), f"options.{key}")
            typed(bool, settings.get("live"), "live")
            typed(dict[str, str], settings.get("fingerprint"), "fingerprint")
        except (OSError, ValueError) as error:
            raise UserError(f"resume={path}: holds no readable {RUN}; give the folder of a run of demo") from error
        if not (path / PARTS).is_dir():
            raise UserError(f"resume={path}: this run is complete; start another without resume=")
        folder = cls(path, settings)
        parts = [(number, part) for number, part in folder.parts() if part.whole or settings["live"]]
        keep = {name for number, _ in parts for name in folder._names(number)}
        for file in (path / PARTS).iterdir():
            if file.name not in keep:
                file.unlink()
        return folder

    def parts(self) -> Iterator[tuple[int, Part]]:
        """Yield the complete parts, from the first to the last before a gap.

        Raises:
            UserError: a damaged one.
        """
        number = 0
        while (file := self.part(number, "json")).is_file():
            try:
                yield number, read_typed(Part, file)
            except (OSError, ValueError) as error:
                raise self._damaged(file, error) from error
            number += 1

    def part(self, number: int, suffix: str) -> Path:
        """Return the path of a file of a part."""
        return self.path / PARTS / f"{number:05d}.{suffix}"

    def complete_part(self, number: int, part: Part) -> None:
        """Give the files of a part their names; the last of them makes it count."""
        for suffix in ("mp4", "jsonl"):
            partial = self.part(number, f"{suffix}.partial")
            if partial.exists():
                partial.replace(self.part(number, suffix))
        self._write(f"{PARTS}/{number:05d}.json", json.dumps(asdict(part)))

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield the frames of all complete parts.

        Raises:
            UserError: a damaged one.
        """
        for number, _ in self.parts():
            file = self.part(number, "jsonl")
            try:
                with file.open(encoding="utf-8") as lines:
                    for line in lines:
                        yield typed(dict[str, Any], json.loads(line))
            except (OSError, ValueError, RecursionError) as error:
                raise self._damaged(file, error) from error

    def join(self, csv: bool, summary: dict[str, Any]) -> list[Path]:
        """Write the whole files from the complete parts and return them."""
        numbers = list(self.parts())
        lines = self.path / f"{LINES}.partial"
        with lines.open("wb") as out:
            for number, _ in numbers:
                with self.part(number, "jsonl").open("rb") as part:
                    shutil.copyfileobj(part, out)
        made = []
        videos = [(self.part(number, "mp4"), part.start_s) for number, part in numbers]
        videos = [(path, start_s - videos[0][1]) for path, start_s in videos if path.is_file()]
        if videos:
            join_videos(videos, self.path / f"{VIDEO}.partial")
            made.append(VIDEO)
        if csv:
            write_csv(lines, self.path / f"{TABLE}.partial")
            made.append(TABLE)
        made.append(LINES)
        for name in made:
            (self.path / f"{name}.partial").replace(self.path / name)
        self._write(SUMMARY, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
        return [self.path / name for name in (*made, SUMMARY)]

    def close(self, complete: bool) -> None:
        """Let go of the folder; of a run that is complete, remove the parts."""
        if complete:
            shutil.rmtree(self.path / PARTS)
        self._lock.close()

    def discard(self) -> None:
        """Remove the folder of a run that came to nothing."""
        self._lock.close()
        shutil.rmtree(self.path)

    def _damaged(self, file: Path, error: Exception) -> UserError:
        reason = " ".join(str(error).split())[:200]
        return UserError(f"{file}: this part is damaged ({reason}); remove it and those after it, then go on")

    @staticmethod
    def _names(number: int) -> set[str]:
        return {f"{number:05d}.{suffix}" for suffix in ("mp4", "jsonl", "json")}

    def _write(self, name: str, text: str) -> None:
        write_whole(self.path / name, text)


def folder_name(source: str) -> str:
    """Return a name for the run on a source: the stem of a file, the host of an address, camera-0."""
    text = str(source)
    if text.isdecimal():
        return f"camera-{text}"
    name = text.split("://", 1)[-1].split("/")[0].rpartition("@")[2] if "://" in text else Path(text).stem
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "demo"
