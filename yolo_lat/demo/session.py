"""A run of the demo from its options to its summary."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from yolo_lat.demo.decoding import without_password
from yolo_lat.demo.detectors import open_detector
from yolo_lat.demo.frames import Faults
from yolo_lat.demo.options import DemoOptions
from yolo_lat.demo.output import Output
from yolo_lat.demo.pipeline import Controls, Pipeline
from yolo_lat.demo.recorder import Recorder
from yolo_lat.demo.run_folder import RunFolder, folder_name
from yolo_lat.demo.sources import Source, open_source
from yolo_lat.demo.tracking import LOW_SCORE, ByteTracker
from yolo_lat.demo.window import KEYS, Window, no_display
from yolo_lat.demo.zones import read_zones
from yolo_lat.errors import UserError
from yolo_lat.interrupts import first_signal


@dataclass(frozen=True)
class DemoResult:
    """What a run did.

    Attributes:
        folder: where it wrote to, None if it did not.
        files: the whole files in it.
        summary: frames, rates, faults and counts, as in `summary.json`.
        unfinished: whether `resume_demo` can go on with it.
        signal: the signal that ended it, 0 for none.
    """

    folder: Path | None
    files: list[Path]
    summary: dict[str, Any]
    unfinished: bool = False
    signal: int = 0


def run_demo(options: DemoOptions, console: Console | None = None) -> DemoResult:
    """Detect, follow, count, draw, show and write until the source ends, or Ctrl-C or SIGTERM ends it.

    Raises:
        UserError: something in the options cannot be used, or a live source was lost for too long.

    Example:
        >>> result = run_demo(DemoOptions("yolo-lat-p.onnx", "cars.mp4", show=False))
        >>> result.folder, result.summary["frames"]
        (PosixPath('runs/demo/cars'), 377)
    """
    return _Session(options, console).run(None)


def resume_demo(
    path: str | Path, show: bool | None = None, device: str | None = None, console: Console | None = None
) -> DemoResult:
    """Go on with an unfinished run after its last full part.

    The result has the same frames, detections, numbers and counts as if the run had never stopped. What a camera or
    stream showed meanwhile is gone, so of a run on one the parts are only put together.

    Args:
        path: folder of the run.
        show: open a window; None where a display is there.
        device: the run's unless given.
        console: where to write messages.

    Raises:
        UserError: no unfinished run there, or its model, source or zones have changed.
    """
    folder = RunFolder.existing(Path(path))
    try:
        options = DemoOptions(**folder.settings["options"])
    except TypeError as error:
        raise UserError(f"resume={path}: this run is of another version; start it anew ({error})") from error
    return _Session(replace(options, show=show, device=device or options.device), console).run(folder)


class _Session:
    def __init__(self, options: DemoOptions, console: Console | None) -> None:
        self._options, self._console = options, console or Console(highlight=False)
        self._faults = Faults(self._tell)

    def _tell(self, message: str) -> None:
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)

    def run(self, folder: RunFolder | None) -> DemoResult:
        """Run from the start, or go on in the folder of a run."""
        options = self._options
        if folder and folder.settings["live"]:
            return self._put_together(folder)
        if folder and folder.settings["fingerprint"] != options.fingerprint():
            raise UserError(f"resume={folder.path}: its model, source or zones have changed; start another run")
        shapes = read_zones(options.zones) if options.zones else None
        source = open_source(options.source, self._faults, options.timeout, options.retry)
        shows = self._decide_on_window()
        track = not source.pictures if options.track is None else options.track
        if shapes and not track:
            raise UserError("zones= counts objects by their numbers, which pictures have only with track=True; add it")
        tracker = ByteTracker(options.conf) if track else None
        controls = Controls(options.conf, min(options.conf, LOW_SCORE) if track or shows else options.conf)
        detector = open_detector(
            options.model,
            options.device,
            controls.lowest,
            options.iou,
            options.max_det,
            options.imgsz,
            options.box_vote,
        )
        going_on = folder is not None
        folder = folder or self._new_folder(source)
        stop = threading.Event()
        with ExitStack() as stack:
            caught = stack.enter_context(first_signal(stop))
            window = Window(controls, stop) if shows else None
            if window:
                stack.callback(window.close)
            recorder = Recorder(folder, options.part_frames, source.rate, source.pictures) if folder else None
            screenshots = (folder.path if folder else Path()) / "screenshots"
            output = Output(shapes, controls, self._faults, recorder, window, not source.live, screenshots, self._tell)
            start = self._go_on(folder, source, output, tracker) if folder and going_on else 0
            progress = stack.enter_context(self._progress(source, shows))
            pipeline = Pipeline(source, detector, tracker, controls, options.batch, start, options.part_frames, stop)
            complete = False
            try:
                with pipeline:
                    for result in pipeline:
                        output.take(result, pipeline.dropped)
                        progress(output)
                        if controls.quit:
                            stop.set()
                complete = not (caught or controls.quit)
            finally:
                output.close()
                found = self._keep(folder, output.summary(source.name), complete or source.live)
        if not output.frames and complete:
            raise UserError(f"source={source.name}: no frame of it can be decoded; give a file that a player opens")
        self._report(found)
        return replace(found, signal=caught[0] if caught else 0)

    def _keep(self, folder: RunFolder | None, summary: dict[str, Any], complete: bool) -> DemoResult:
        """Put the whole files of a run into its folder, and leave its parts only where they are needed to go on."""
        if folder is None:
            return DemoResult(None, [], summary)
        if not summary["frames"]:
            folder.discard()
            return DemoResult(None, [], summary)
        files = folder.join(self._options.csv, summary)
        folder.close(complete)
        return DemoResult(folder.path, files, summary, not complete)

    def _decide_on_window(self) -> bool:
        """Return whether there is to be a window, and say so."""
        show = self._options.show
        if show is False:
            self._tell("no window, since show=False")
            return False
        why_not = no_display()
        if show and why_not:
            raise UserError(f"show=True: {why_not}; leave show= out to write a file")
        self._tell(f"no window ({why_not})" if why_not else f"window opens; keys: {KEYS}")
        return not why_not

    def _new_folder(self, source: Source) -> RunFolder | None:
        options = self._options
        if not options.save:
            self._tell("writing nothing, since save=False")
            return None
        settings = {
            "options": asdict(replace(options.absolute(), source=without_password(options.absolute().source))),
            "live": source.live,
            "fingerprint": options.fingerprint(),
        }
        folder = RunFolder.new(Path(options.project), options.name or folder_name(options.source), settings)
        self._tell(f"writing to {folder.path}")
        return folder

    def _go_on(self, folder: RunFolder, source: Source, output: Output, tracker: ByteTracker | None) -> int:
        """Bring everything to where the last full part ended; return the number of the next frame."""
        parts = [part for _, part in folder.parts()]
        for record in folder.records():
            output.replay(record)
        self._tell(f"writing to {folder.path}, going on after frame {output.frames}")
        if not parts:
            return 0
        last = parts[-1]
        output.dropped_before = last.dropped
        if source.pictures:  # a video is decoded from its beginning, and its faults are found again
            self._faults.counts.update(last.faults)
        if tracker and last.tracker:
            tracker.restore(last.tracker)
        return last.next_frame

    def _put_together(self, folder: RunFolder) -> DemoResult:
        """Join the parts of a run on a live source."""
        frames = sum(part.frames for _, part in folder.parts())
        self._tell(f"{folder.path}: what a live source showed since is gone; putting its {frames} frames together")
        found = self._keep(folder, {"source": folder.settings["options"]["source"], "frames": frames}, True)
        self._report(found)
        return found

    @contextmanager
    def _progress(self, source: Source, shows: bool) -> Iterator[Callable[[Output], None]]:
        """Show how far the run is, unless there is a window."""
        if shows:
            yield lambda output: None
            return
        columns = (
            *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}")),
            *(TimeElapsedColumn(), TimeRemainingColumn()),
        )
        with Progress(*columns, console=self._console, refresh_per_second=4) as bar:
            task = bar.add_task(escape(source.name[-40:]), total=source.total, speed="")

            def advance(output: Output) -> None:
                dropped = f", dropped {output.dropped}" if output.dropped else ""
                bar.update(task, completed=output.frames, speed=f"{output.stats.fps:.1f} FPS{dropped}")

            yield advance

    def _report(self, found: DemoResult) -> None:
        """Print what was counted and where it is."""
        if zones := found.summary.get("zones"):
            table = Table("zone", "class", "what", "count", title="counted")
            for zone, kinds in zones.items():
                for what, counter in kinds.items():
                    for name, count in counter.items() or [("-", 0)]:
                        table.add_row(escape(zone), escape(name), what, str(count))
            self._console.print(table)
        summary = found.summary
        words = [f"frames: {summary['frames']}"]
        words += [f"{summary['fps']:.1f} FPS"] if "fps" in summary else []
        counts = {"dropped": summary.get("dropped", 0)} | summary.get("faults", {})
        words += [f"{kind}: {count}" for kind, count in counts.items() if count]
        self._tell(", ".join(words))
        for file in found.files:
            self._tell(f"wrote {file}")
