"""Put faults in the way of every reader and command, and record what was lost.

    python tools/faults.py OUT.json [--only fuzz,kill,disk,places,clock,pairs] [--executions 1000000] [--kills 50]

for example

    python tools/faults.py docs/results/faults.json --only fuzz --executions 1000000

fuzz: readers of files, requests and command lines get bytes, guided by coverage (`atheris`, which runs on Linux); they
return or refuse in one sentence. kill: SIGKILL at random moments of train, export, data convert, predict and predict
engine=ray, and the command again. disk: disks of too few bytes. places: folders that cannot be written to. clock: the
time of day jumps by days and years. pairs: two processes in one folder. Disks and folders take the right to mount.

Results are written after each row. Rows that are there already are not done again, unless `--again` names them or their
part. The exit status is 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# Before torch is imported: results are to be the same bit for bit, and two commands may run at once.
os.environ["OMP_NUM_THREADS"] = "1"

import yolo_lat  # noqa: F401 - before Ultralytics

HERE = Path(__file__).resolve().parent
PARTS = ("fuzz", "kill", "disk", "places", "clock", "pairs")
PACKAGES = ("atheris", "torch", "ultralytics", "onnx", "onnxruntime-gpu", "ray", "pyarrow", "numpy", "pillow")
_FULL_DISKS, _SLOWER = 10, 5  # disks for a command; kills of a run on Ray are fewer by this factor
_STARTS = 20  # pairs of each kind


def main() -> None:
    """Run the parts, record them, and leave with 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between")
    parser.add_argument("--rows", default="", help="words that a row's name must have one of, with commas between")
    parser.add_argument("--again", action="store_true", help="do rows anew that the record has")
    parser.add_argument("--executions", type=int, default=1_000_000, help="of all fuzzed readers together")
    parser.add_argument("--kills", type=int, default=50, help="of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commit", help="of the code, if this is a copy whose git history does not tell")
    given = parser.parse_args()
    wanted = given.only.split(",")
    if unknown := [part for part in wanted if part not in PARTS]:
        parser.error(f"--only {unknown[0]}: no such part; use {', '.join(PARTS)}")
    record = Record(given.record, given)
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    tempfile.gettempdir()  # this process keeps its own; those that it starts get one that goes with them
    with tempfile.TemporaryDirectory(prefix="faults-", dir=memory) as folder:
        work = Path(folder)
        work.chmod(0o755)
        os.environ["TMPDIR"] = str(work / "tmp")
        (work / "tmp").mkdir()
        (work / "tmp").chmod(0o1777)
        if "fuzz" in wanted:
            fuzz(record, work / "fuzz", given.executions, given.seed)
        if set(wanted) - {"fuzz"}:
            commands(record, work, wanted, given)
    lost = record.lost()
    print(f"{given.record}: {'nothing was lost' if not lost else 'lost: ' + '; '.join(lost)}")
    sys.exit(bool(lost))


class Record:
    """The record, written after each row.

    Args:
        file: it; rows that are in there stay.
        given: arguments of the command line.
    """

    def __init__(self, file: Path, given: argparse.Namespace) -> None:
        from yolo_lat.deploy.benchmark.environment import describe_machine, versions

        self._file, self._given = file, given
        self.content: dict[str, Any] = {"parts": {}}
        if file.is_file():
            self.content = json.loads(file.read_text(encoding="utf-8"))
        self._about = {
            "command": shlex.join(["python", "tools/faults.py", *sys.argv[1:]]),
            "seed": given.seed,
            "machine": describe_machine("cpu", 1),
            "versions": versions(given.commit) | _installed(),
        }

    def rows(self, part: str, names: list[str]) -> Iterator[tuple[str, Callable[[dict[str, Any]], None]]]:
        """Yield the rows of a part that are to be done, each with what takes its result."""
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        rows = self.content["parts"].setdefault(part, {})
        words = self._given.rows.split(",")
        todo = [n for n in names if any(word in n for word in words) and (self._given.again or n not in rows)]
        columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(part, total=len(todo))
            for name in todo:
                bar.update(task, description=f"{part}: {name}")
                begun = time.monotonic()

                def save(row: dict[str, Any], name: str = name, begun: float = begun) -> None:
                    about = {"seconds": round(time.monotonic() - begun, 1), "date": time.strftime("%Y-%m-%d")}
                    rows[name] = row | about | self._about
                    self._write()

                yield name, save
                bar.advance(task)

    def _write(self) -> None:
        from yolo_lat.unfinished import write_whole

        rows = [row for part in self.content["parts"].values() for row in part.values()]
        fuzzed = self.content["parts"].get("fuzz", {}).values()
        content = {
            "what": "each fault, how often it was tried, and what was lost",
            "executions": sum(row["tried"] for row in fuzzed),
            "tries of other faults": sum(row["tried"] for row in rows) - sum(row["tried"] for row in fuzzed),
            "lost": self.lost(),
            "parts": self.content["parts"],
        }
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self._file, json.dumps(content, indent=1) + "\n")

    def lost(self) -> list[str]:
        """Return all that was lost."""
        return [
            f"{part}, {name}: {lost}"
            for part, rows in self.content["parts"].items()
            for name, row in rows.items()
            for lost in row["lost"]
        ]


def _installed() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def fuzz(record: Record, folder: Path, executions: int, seed: int) -> None:
    """Fuzz each reader in a process of its own."""
    from fault_injection.targets import TARGETS

    total = sum(target.share for target in TARGETS.values())
    for name, save in record.rows("fuzz", list(TARGETS)):
        folder.mkdir(parents=True)
        runs = -int(-executions * TARGETS[name].share // total)
        result, log = folder / "result.json", folder / "log"
        words = [sys.executable, "-m", "fault_injection.fuzz", name, str(runs), str(seed), str(result)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE.parent), *sys.path]))}
        with log.open("wb") as stream:
            ended = subprocess.run([*words, str(folder)], stdout=stream, stderr=stream, env=environment, cwd=folder)
        found = (
            json.loads(result.read_text(encoding="utf-8")) if result.is_file() else {"executions": 0, "failures": {}}
        )
        lost = [f"{place}: {failure['message']}" for place, failure in found["failures"].items()]
        if ended.returncode or found["executions"] < runs:
            text = log.read_text(encoding="utf-8", errors="replace")[-1500:]
            lost.append(f"ended with {ended.returncode} after {found['executions']} executions: {text}")
        outcomes = {key: found[key] for key in ("read", "refused", "failed") if key in found}
        row = {"what": f"bytes for {name}", "tried": found["executions"], "outcomes": outcomes, "lost": lost}
        save(row | {"failures": found["failures"], "slowest_s": found.get("slowest_s")})
        subprocess.run(["rm", "-rf", str(folder)], check=True)


def commands(record: Record, work: Path, wanted: list[str], given: argparse.Namespace) -> None:
    """Disturb commands."""
    from fault_injection import clock, pairs, places
    from fault_injection.commands import Commands, make_material
    from fault_injection.kill import Killer

    starter = Commands(work / "logs")
    (work / "logs").chmod(0o777)
    material = make_material(work / "material", starter)
    if "kill" in wanted:
        killer = Killer(starter, material, work / "kill", given.seed)
        kinds = {
            **{"train": killer.train, "export": killer.export, "data convert": killer.convert},
            **{"predict": killer.predict, "predict engine=ray": killer.collection},
        }
        for name, save in record.rows("kill", list(kinds)):
            count = given.kills if name != "predict engine=ray" else -(-given.kills // _SLOWER)
            save(kinds[name](count).row())
    if "disk" in wanted:
        for name, save in record.rows("disk", list(places.WRITERS)):
            save(places.full_disk(name, starter, material, work / "places", _FULL_DISKS, given.seed).row())
    if "places" in wanted:
        for name, save in record.rows("places", list(places.WRITERS)):
            save(places.read_only(name, starter, material, work / "places").row())
    if "clock" in wanted:
        for name, save in record.rows("clock", list(clock.CLOCKS)):
            save(clock.CLOCKS[name](starter, material, work / "clock").row())
    if "pairs" in wanted:
        for name, save in record.rows("pairs", list(pairs.PAIRS)):
            save(pairs.PAIRS[name](starter, material, work / "pairs", _STARTS).row())


if __name__ == "__main__":
    main()
