"""Measure what reading and checking large data sets costs, on tiny images, and record it.

    python tools/data_scale.py docs/results/data-scale.json [COUNT ...]

COUNT defaults to 25000 50000 100000 images. `read` is what training does with the images and labels of split train,
nine tenths of them; `check` is `yolo-lat data check` on all. `cpu` are seconds of all processes on one core, `mb` is
the growth of the main process at its peak.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "tests/data/big_dataset.py"


def main() -> None:
    """Generate a data set of each size, measure, and write the record after each."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    out, counts = Path(sys.argv[1]), [int(word) for word in sys.argv[2:]] or [25_000, 50_000, 100_000]
    record = {
        "command": " ".join(["python tools/data_scale.py", *sys.argv[1:]]),
        "cpu": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "runs": [],
    }
    sys.path.insert(0, str(SCRIPT.parent))
    from big_dataset import generate

    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            generate(Path(folder) / "set", count)
            for form in ("yolo", "coco"):
                for what in ("read", "check"):
                    command = [sys.executable, str(SCRIPT), str(Path(folder) / "set"), form, what]
                    environment = os.environ | {"PYTHONPATH": str(ROOT)}
                    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
                    row = {"format": form, "what": what, **json.loads(done.stdout.splitlines()[-1])}
                    record["runs"].append(row)
                    print(json.dumps(row), flush=True)
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
