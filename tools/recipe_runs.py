"""Train with the recipes of cfg/train on data sets in COCO JSON, several at once on one GPU, and record what came out.

    python tools/recipe_runs.py DATA OUT.json RECIPE:MODEL:SET:IMGSZ[:key=value,...] ...

for example

    python tools/recipe_runs.py ~/data docs/results/recipes.json small:yolo-lat-n:voc12:320 \
        inspection:yolo-lat-n:pcb:640:epochs=50

DATA holds a folder for each SET with images/train, images/val and annotations/train.json, val.json. Figures are the
twelve COCO numbers of the best epoch on val. Runs share the machine, so their seconds say nothing about speed. Each
run's folder stays as runs/recipes/OUT/0, 1, ..., so that MODEL of a later call may be one's weights/best.safetensors.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml


def main() -> None:
    """Start every run, wait for all, write the record; leave with status 1 if a run failed."""
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    data, out, runs = Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute(), sys.argv[3:]
    work = Path("runs/recipes", out.stem).absolute()
    work.mkdir(parents=True)
    processes = [start(run, number, data, work, len(runs)) for number, run in enumerate(runs)]
    record = {
        "command": " ".join(["python tools/recipe_runs.py", *sys.argv[1:]]),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cpu_cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "ultralytics", "pycocotools", "numpy")},
        "runs": [],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    begin, running = time.time(), set(range(len(runs)))
    while running:
        time.sleep(1)
        for number in [n for n in running if processes[n].poll() is not None]:
            running.remove(number)
            row = result(runs[number], work / str(number), processes[number].returncode, time.time() - begin)
            record["runs"].append(row)
            out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            print(json.dumps(row), flush=True)
    sys.exit(any(row["status"] for row in record["runs"]))


def start(run: str, number: int, data: Path, work: Path, total: int) -> subprocess.Popen[bytes]:
    """Start one training; the cores are shared out among all."""
    recipe, model, name, imgsz, *rest = run.split(":", 4)
    file = write_data_yaml(work, data / name)
    options = dict(word.split("=", 1) for word in rest[0].split(",")) if rest else {}
    options = {
        "cfg": recipe,
        "model": model,
        "data": str(file),
        "imgsz": imgsz,
        "device": "0" if torch.cuda.is_available() else "cpu",
        "workers": str(max((os.cpu_count() or 1) // total, 1)),
        "project": str(work),
        "name": str(number),
        **options,
    }
    words = [f"{key}={value}" for key, value in options.items()]
    with (work / f"{number}.log").open("wb") as log:
        return subprocess.Popen([sys.executable, "-m", "yolo_lat", "train", *words], stdout=log, stderr=log)


def write_data_yaml(folder: Path, root: Path) -> Path:
    """Write the data YAML of the set in `root` into a folder, under the set's name."""
    content = {
        "path": str(root),
        "train": "images/train",
        "val": "images/val",
        "coco_json": {split: f"annotations/{split}.json" for split in ("train", "val")},
    }
    file = folder / f"{root.name}.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def result(run: str, folder: Path, status: int, seconds: float) -> dict[str, Any]:
    """Return what a finished run left in its folder."""
    row: dict[str, Any] = {"run": run, "status": status, "seconds": round(seconds)}
    if status:
        return row | {"log": folder.with_suffix(".log").read_text(errors="replace")[-2000:]}
    rows = (folder / "results.csv").read_text(encoding="utf-8").splitlines()
    return row | {"epochs": len(rows) - 1, **json.loads((folder / "metrics.json").read_text(encoding="utf-8"))}


if __name__ == "__main__":
    main()
