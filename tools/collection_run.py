"""A run of `yolo-lat predict engine=ray` over many small images, killed in its middle and started again.

    python tools/collection_run.py OUT.json MODEL.onnx FOLDER [--images N] [--workers N] [--imgsz 96,320] [--part S]

for example

    python tools/collection_run.py docs/results/collection-cpu.json shapes-p.onnx collection

FOLDER gets WebDataset tars of shapes, 64 to 96 px, one image in ten thousand cut off, and the runs. First the speed of
a detector without Ray is measured, then that of one actor and of all of them on some of the tars. Then all tars are
taken: the command is killed by SIGKILL half a part after its second part, started again with `resume`, and every image
has to be in the results once. Memory is that of the command and of all processes of Ray below it, once a second: the
resident sets, in which what processes share counts for each, and the proportional ones, in which it counts once. Growth
is that of the median of the last fifth of the samples after the restart over that of the second fifth.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
from rich.console import Console

from yolo_lat.collection.results import read_rows, write_coco
from yolo_lat.collection.sources import open_source
from yolo_lat.collection.worker import decode
from yolo_lat.data.shapes import render
from yolo_lat.deploy import OnnxDetector
from yolo_lat.deploy.benchmark.environment import describe_machine
from yolo_lat.errors import UserError

IN_TAR = 1000
DRAWN = 500  # different images; names are different for all
BROKEN_EVERY = 10_000
BATCH = 16
FLAT = 0.1  # growth of memory from which on it is not called flat
PACKAGES = ("ray", "pyarrow", "numpy", "opencv-python", "onnxruntime-gpu", "onnxruntime")


def write_tars(folder: Path, images: int) -> list[str]:
    """Write the tars unless they are there, and return the names of all images as results have them."""
    names = [f"{n // IN_TAR:04d}.tar/{n:08d}.{'png' if n % 2 else 'jpg'}" for n in range(images)]
    if folder.exists():
        return names
    partial = folder.with_name(f".{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    drawn = [render(np.random.default_rng(n), 64 + n % 33)[0] for n in range(DRAWN)]
    encoded = {kind: [cv2.imencode(f".{kind}", image)[1].tobytes() for image in drawn] for kind in ("jpg", "png")}
    for first in range(0, images, IN_TAR):
        with tarfile.open(partial / f"{first // IN_TAR:04d}.tar", "w") as tar:
            for n in range(first, min(first + IN_TAR, images)):
                name = names[n].rpartition("/")[2]
                content = encoded[name.rpartition(".")[2]][n % DRAWN]
                if n % BROKEN_EVERY == BROKEN_EVERY // 2:
                    content = content[: len(content) // 2]
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    partial.rename(folder)
    return names


class Watched:
    """The memory and processor time of a process and of all below it, read once a second by a thread until it ends."""

    def __init__(self, process: subprocess.Popen[Any]) -> None:
        self.samples: list[tuple[float, float, float, int]] = []  # seconds, MB resident, MB proportional, processes
        self.seen: dict[int, psutil.Process] = {}
        self._cpu: dict[int, float] = {}
        self._process, self._begun = process, time.monotonic()
        threading.Thread(target=self._sample, daemon=True).start()

    def _sample(self) -> None:
        while self._process.poll() is None:
            resident = proportional = 0.0
            count = 0
            try:
                top = psutil.Process(self._process.pid)
                family = [top, *top.children(recursive=True)]
            except psutil.NoSuchProcess:
                break
            for member in family:
                try:
                    text = Path(f"/proc/{member.pid}/smaps_rollup").read_text()
                except OSError:
                    continue
                sizes = dict(re.findall(r"^(Rss|Pss):\s+(\d+) kB", text, re.MULTILINE))
                if sizes:
                    resident, proportional = resident + int(sizes["Rss"]), proportional + int(sizes["Pss"])
                    count += 1
                self.seen[member.pid] = member
                with contextlib.suppress(psutil.NoSuchProcess):
                    self._cpu[member.pid] = sum(member.cpu_times()[:2])
            since = time.monotonic() - self._begun
            self.samples.append((round(since, 1), round(resident / 1e3), round(proportional / 1e3), count))
            time.sleep(1)

    @property
    def cpu_seconds(self) -> float:
        """Processor time of all, as last seen of each."""
        return sum(self._cpu.values())

    @property
    def own_cpu_seconds(self) -> float:
        """Processor time of the process alone."""
        return self._cpu.get(self._process.pid, 0.0)

    def survivors(self) -> list[psutil.Process]:
        """Return the processes below it that still run."""
        return [member for member in self.seen.values() if member.is_running() and member.status() != "zombie"]


def growth(samples: list[tuple[float, float, float, int]], column: int) -> float:
    """Return the growth of the median of the last fifth over that of the second."""
    values, fifth = [sample[column] for sample in samples], len(samples) // 5
    return statistics.median(values[-fifth:]) / statistics.median(values[fifth : 2 * fifth]) - 1


def started(runs: Path, *words: str) -> subprocess.Popen[Any]:
    """Start the command; what it says goes to a file beside the runs."""
    command = [sys.executable, "-m", "yolo_lat", "predict", "engine=ray", f"batch={BATCH}", *words]
    with runs.with_name("log.txt").open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def speed_without_ray(model: Path, imgsz: int, tars: list[Path]) -> float:
    """Return images a second of one detector with one thread that reads, decodes and detects in a loop."""
    cv2.setNumThreads(1)
    detector = OnnxDetector(model, threads=1, max_batch=BATCH, imgsz=imgsz)
    count, begun, images = 0, time.monotonic(), list[np.ndarray]()
    for path in tars:
        with tarfile.open(path) as tar:
            for member in tar:
                stream = tar.extractfile(member)
                try:
                    images.append(decode(stream.read() if stream else None))
                except UserError:
                    continue
                if len(images) == BATCH:
                    detector(images)
                    count += BATCH
                    images.clear()
    return count / (time.monotonic() - begun)


def speed(model: Path, imgsz: int, pattern: str, runs: Path, workers: int) -> dict[str, Any]:
    """Return images a second of a run once it goes, and what it takes to begin a part.

    Both are from the first part and the longest, in which all but the number of images is the same.
    """
    folder = runs / f"speed-{imgsz}-{workers}"
    shutil.rmtree(folder, ignore_errors=True)
    words = (f"model={model}", f"source={pattern}", f"workers={workers}", f"imgsz={imgsz}", "part=86400")
    begun = time.monotonic()
    process = started(runs, *words, f"project={runs}", f"name={folder.name}")
    watched = Watched(process)
    process.wait()
    seconds = time.monotonic() - begun
    parts = [json.loads(path.read_text()) for path in sorted(folder.glob("detections/*/_part.json"))]
    first, longest = parts[0], max(parts, key=lambda part: part["images"])
    per_second = (longest["images"] - first["images"]) / (longest["seconds"] - first["seconds"])
    images = sum(part["images"] for part in parts)
    return {
        "imgsz": imgsz,
        "workers": workers,
        "images_per_second": round(per_second, 1),
        "seconds_to_begin_a_part": round(first["seconds"] - first["images"] / per_second, 1),
        "images": images,
        "parts": len(parts),
        "seconds_of_command": round(seconds, 1),
        "cpu_seconds_of_command": round(watched.cpu_seconds, 1),
    }


def killed_and_restarted(words: list[str], run: Path, part: float, images: int) -> tuple[dict[str, Any], list[Watched]]:
    """Return what happened, and the memory of the run until it was killed and after that."""
    begun = time.monotonic()
    first = started(run.parent, *words)
    memories = [Watched(first)]
    while len(finished := list(run.glob("detections/0*/_part.json"))) < 2:
        if first.poll() is not None:
            raise SystemExit("the run ended before it could be killed; give more images or a lower --part")
        time.sleep(0.5)
    time.sleep(part / 2)
    first.send_signal(signal.SIGKILL)
    first.wait()
    killed = time.monotonic()
    kept = {path: path.stat().st_mtime_ns for path in run.glob("detections/0*/*")}
    done = sum(json.loads(path.read_text())["images"] for path in run.glob("detections/0*/_part.json"))
    lost = time.time() - max(path.stat().st_mtime for path in finished)
    second = started(run.parent, *words, "resume")
    memories.append(Watched(second))
    status = second.wait()
    ended = time.monotonic()
    while (left := memories[0].survivors()) and time.monotonic() < ended + 60:
        time.sleep(1)
    return {
        "seconds_until_kill": round(killed - begun, 1),
        "images_done_at_kill": done,
        "seconds_of_work_repeated": round(lost, 1),
        "seconds_after_restart": round(ended - killed, 1),
        "cpu_ms_per_image_after_restart": round(1000 * memories[1].cpu_seconds / (images - done), 2),
        "own_cpu_ms_per_image_after_restart": round(1000 * memories[1].own_cpu_seconds / (images - done), 3),
        "exit_status": status,
        "finished_parts_untouched": all(path.stat().st_mtime_ns == since for path, since in kept.items()),
        "processes_of_killed_run_left": len(left),
    }, memories


def listing_speed(files: int = 100_000) -> float:
    """Return how many image files a second are listed in folders of a thousand."""
    with tempfile.TemporaryDirectory() as name:
        for n in range(files):
            path = Path(name, f"{n // 1000:04d}", f"{n:08d}.jpg")
            if n % 1000 == 0:
                path.parent.mkdir()
            path.touch()
        begun = time.monotonic()
        _, listed = open_source(name)
        count = sum(1 for _ in listed)
        return count / (time.monotonic() - begun)


def checking_speed(tars: Path) -> float:
    """Return how many images a second the check of tars before they are read passes."""
    source, files = open_source(str(tars))
    begun = time.monotonic()
    return sum(check.images for check in source.check(list(files)[:10])) / (time.monotonic() - begun)


def size_of(path: Path) -> int:
    return (
        sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size
    )


def main() -> None:
    """Measure, kill, restart, check and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--imgsz", default="96,320", help="sizes to measure speed at; all images are taken at the first"
    )
    parser.add_argument("--part", type=float, default=60, help="seconds of a part")
    parser.add_argument("--about", default="", help="what the model is")
    parser.add_argument("--commit", default="")
    given = parser.parse_args()
    load = os.getloadavg()[0]
    tars, runs = given.folder / "shards", given.folder / "runs"
    names = write_tars(tars, given.images)
    sizes = [int(size) for size in given.imgsz.split(",")]
    some = [f"{tars}/*0.tar", *[f"{tars}/*[0-3]0.tar"] * (len(sizes) - 1)]
    rates = {
        "without_ray_one_thread": {
            str(size): round(speed_without_ray(given.model, size, sorted(tars.glob("*0.tar"))[:2]), 1) for size in sizes
        },
        "runs": [
            speed(given.model, size, pattern, runs, workers)
            for size, pattern in zip(sizes, some, strict=True)
            for workers in sorted({1, given.workers})
        ],
        "listed_files_per_second": round(listing_speed()),
        "checked_images_per_second": round(checking_speed(tars)),
    }
    shutil.rmtree(runs / "all", ignore_errors=True)
    words = [f"model={given.model}", f"source={tars}", f"workers={given.workers}", f"part={given.part}"]
    words += [f"imgsz={sizes[0]}", f"project={runs}", "name=all"]
    story, memories = killed_and_restarted(words, runs / "all", given.part, given.images)
    begun = time.monotonic()
    write_coco(runs / "all/detections", OnnxDetector(given.model).names, given.folder / "again.json")
    rates["written_coco_images_per_second"] = round(given.images / (time.monotonic() - begun))
    counts = Counter(row["image"] for row in read_rows(runs / "all/detections", ["image"]))
    summary = json.loads((runs / "all/summary.json").read_text())
    expected = Counter(names)
    growths = {"resident": growth(memories[1].samples, 1), "proportional": growth(memories[1].samples, 2)}
    result = {
        "command": f"python tools/collection_run.py {given.out.as_posix()} {given.model.name} {given.folder.name} "
        f"--images {given.images} --workers {given.workers} --imgsz {given.imgsz} --part {given.part:g}",
        "model": {"file": given.model.name, "about": given.about},
        "machine": describe_machine("cpu", 1),
        "versions": {"python": sys.version.split()[0], **{name: installed(name) for name in PACKAGES}},
        "load_average_before": round(load, 1),
        "commit": given.commit,
        "images": {
            "count": given.images,
            "tars": len(list(tars.iterdir())),
            "mean_bytes": size_of(tars) // given.images,
        },
        "speed": rates,
        "killed_run": story,
        "result": {
            **{key: summary[key] for key in ("images", "failed", "detections", "parts", "images_per_second")},
            "missing": sum((expected - counts).values()),
            "twice_or_unknown": sum((counts - expected).values()),
            "broken_in_source": sum(n % BROKEN_EVERY == BROKEN_EVERY // 2 for n in range(given.images)),
            "parquet_bytes_per_image": round(size_of(runs / "all/detections") / given.images, 1),
            "coco_bytes_per_image": round(size_of(runs / "all/detections.json") / given.images, 1),
        },
        "memory": {
            "growth": {name: round(value, 3) for name, value in growths.items()},
            "flat": max(growths.values()) < FLAT,
            "peak_resident_mb": max(sample[1] for memory in memories for sample in memory.samples),
            "peak_proportional_mb": max(sample[2] for memory in memories for sample in memory.samples),
            "columns": ["seconds", "resident_mb", "proportional_mb", "processes"],
            "until_kill": memories[0].samples[::5],
            "after_restart": memories[1].samples[::5],
        },
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    Console().print({key: value for key, value in result.items() if key != "memory"}, result["memory"]["growth"])
    right = not (result["result"]["missing"] or result["result"]["twice_or_unknown"]) and result["memory"]["flat"]
    raise SystemExit(0 if right else 1)


def installed(name: str) -> str | None:
    try:
        return version(name)
    except ImportError:
        return None


if __name__ == "__main__":
    main()
