"""How many pictures a second `yolo-lat serve` answers at rising concurrency, and how fast, with and without batches.

    python tools/serve_load.py OUT.json MODEL.onnx PICTURES [--imgsz 320,96] [--connections 1,2,4] [--rounds N]

for example

    python tools/serve_load.py docs/results/serve-cpu.json best.onnx shapes/images/val --threads 2

For each size of input two servers run on the loopback address, one with batches of up to `--max-batch` and one without,
and take turns in every round; the client, a closed loop over kept connections, shares the processor with them. A row
has, of pictures that were answered, the median over rounds of how many a second, percentiles of their times, and the
processor time of the server for each, which other programs on the machine disturb least. Its gain is the median over
rounds of the ratio to the server without batches. Errors are 503 of a full queue. Then the first server gets damaged
and oversized uploads, and has to refuse each with the right status.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import platform
import statistics
import struct
import subprocess
import sys
import time
import urllib.request
import zlib
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

SECONDS = 120  # for one measurement, at most
REFUSED = 20  # tries of each upload that is to be refused
PACKAGES = ("fastapi", "uvicorn", "python-multipart", "prometheus-client", "numpy", "opencv-python")


@dataclass
class Row:
    """One number of connections on one server, over all rounds."""

    imgsz: int
    batching: bool
    connections: int
    seconds: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    per_second: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    batches: float = 0
    pictures: float = 0

    def summary(self, without: Row) -> dict[str, Any]:
        """Return what is written of it, beside the row of the server without batches."""
        p50, p99 = np.percentile(np.array(self.seconds) * 1000, (50, 99))
        return {
            "imgsz": self.imgsz,
            "batching": self.batching,
            "connections": self.connections,
            "requests": sum(self.statuses.values()),
            "per_second": round(statistics.median(self.per_second), 1),
            "gain": round(
                statistics.median(a / b for a, b in zip(self.per_second, without.per_second, strict=True)), 2
            ),
            "p50_ms": round(float(p50), 1),
            "p99_ms": round(float(p99), 1),
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "errors": sum(self.statuses.values()) - len(self.seconds),
            "cpu_ms": round(sum(self.cpu_seconds) / len(self.seconds) * 1000, 2),
            "mean_batch": round(self.pictures / max(self.batches, 1), 2),
        }


class Served:
    """`yolo-lat serve` as a process of its own on a free port of the loopback address."""

    def __init__(self, *words: str) -> None:
        command = [sys.executable, "-m", "yolo_lat", "serve", "port=0", *words]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        line = self.process.stdout.readline() if self.process.stdout else ""
        if "POST to http://127.0.0.1:" not in line:
            raise SystemExit(f"the server did not start: {' '.join(words)}")
        self.port = int(line.rsplit(":", 1)[1].partition("/")[0])

    def get(self, path: str) -> str:
        """Return what a page says."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return str(answer.read().decode())

    def batches(self) -> tuple[float, float]:
        """Return how many batches have run, and how many pictures in them."""
        lines = dict(line.rsplit(" ", 1) for line in self.get("/metrics").splitlines() if line[0] != "#")
        return float(lines["yolo_lat_batch_size_count"]), float(lines["yolo_lat_batch_size_sum"])

    def cpu_seconds(self) -> float:
        """Return the processor time it has used, of all its threads."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> int:
        """Return the exit status after SIGTERM."""
        self.process.terminate()
        return self.process.wait(30)


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> int:
    """Send one request over a kept connection and return the status of its answer."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
    await reader.readexactly(length)
    return int(head[9:12])


async def load(port: int, requests: list[bytes], connections: int, row: Row) -> None:
    """Send all requests over so many connections, each as soon as the one before on it is answered."""
    waiting = iter(requests)

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for request in waiting:
            begun = time.perf_counter()
            status = await exchange(reader, writer, request)
            if status == 200:
                row.seconds.append(time.perf_counter() - begun)
            row.statuses[status] = row.statuses.get(status, 0) + 1
        writer.close()

    begun, answered = time.perf_counter(), len(row.seconds)
    async with asyncio.timeout(SECONDS):
        await asyncio.gather(*(client() for _ in range(connections)))
    row.per_second.append((len(row.seconds) - answered) / (time.perf_counter() - begun))


def post(content: bytes, query: str = "", kind: str = "image/jpeg") -> bytes:
    """Return the bytes of a request."""
    head = f"POST /detect{query} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}"
    return head.encode() + b"\r\n\r\n" + content


def bomb(side: int) -> bytes:
    """Return a PNG whose head promises so many pixels a side."""
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = (head, b"IDAT" + zlib.compress(b""))
    framed = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def refused_uploads(picture: bytes) -> dict[str, tuple[bytes, int]]:
    """Return requests that are to be refused, each with its status."""
    stream = io.BytesIO()
    Image.new("RGB", (9000, 9000)).save(stream, "PNG")
    return {
        "empty": (post(b""), 400),
        "cut off JPEG": (post(picture[: len(picture) // 2]), 400),
        "noise": (post(np.random.default_rng(0).bytes(1000)), 415),
        "address in place of a picture": (post(b"http://127.0.0.1/picture.jpg"), 415),
        "JSON": (post(b"{}", kind="application/json"), 415),
        "form without a boundary": (post(b"--x--", kind="multipart/form-data"), 400),
        "wrong query": (post(picture, "?conf=7"), 422),
        "21 MB": (post(bytes(21_000_000)), 413),
        "81 megapixels in a small PNG": (post(stream.getvalue()), 413),
        "promise of 10^9 pixels": (post(bomb(31_623)), 413),
    }


async def refuse(port: int, uploads: dict[str, tuple[bytes, int]]) -> list[dict[str, Any]]:
    """Send each upload several times, with its own connection, and count the right answers."""
    counts = []
    for name, (request, status) in uploads.items():
        right = 0
        for _ in range(REFUSED):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            async with asyncio.timeout(20):
                right += await exchange(reader, writer, request) == status
            writer.close()
        counts.append({"upload": name, "status": status, "sent": REFUSED, "refused": right})
    return counts


def show(result: dict[str, Any]) -> None:
    """Print the rows as tables."""
    table = Table(title="yolo-lat serve")
    columns = (
        "imgsz",
        "batching",
        "connections",
        "requests",
        "per_second",
        "gain",
        "p50_ms",
        "p99_ms",
        "cpu_ms",
        "errors",
        "mean_batch",
    )
    for name in columns:
        table.add_column(name, justify="right")
    for row in result["rows"]:
        table.add_row(*(("on" if row[c] else "off") if c == "batching" else str(row[c]) for c in columns))
    refused = Table("upload", "status", "refused", title="uploads that are to be refused")
    for row in result["refused"]:
        refused.add_row(row["upload"], str(row["status"]), f"{row['refused']}/{row['sent']}")
    console = Console(width=120)
    console.print(table)
    console.print(refused)


def machine() -> dict[str, Any]:
    """Return what the numbers depend on."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
    packages = {name: version(name) for name in PACKAGES}
    import onnxruntime

    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "versions": {"python": platform.python_version(), "onnxruntime": onnxruntime.__version__, **packages},
    }


def measure(given: argparse.Namespace, imgsz: int, contents: list[bytes]) -> dict[str, Any]:
    """Load two servers in turns, then upload to the first what is to be refused, and end both."""
    requests = [post(content) for content in contents]
    words = (f"model={given.model}", f"imgsz={imgsz}", f"threads={given.threads}")
    by_itself = Served(*words)
    chosen = json.loads(by_itself.get("/health"))["max_batch"]
    by_itself.end()
    servers = {
        True: Served(*words, f"max_batch={given.max_batch}", f"wait_ms={given.wait_ms}"),
        False: Served(*words, "max_batch=1", "wait_ms=0"),
    }
    rows = [Row(imgsz, on, int(number)) for number in given.connections.split(",") for on in servers]
    for server in servers.values():
        asyncio.run(load(server.port, 3 * requests, given.max_batch, Row(imgsz, False, 0)))  # warms up
    for _ in range(given.rounds):
        for row in rows:
            server = servers[row.batching]
            before, cpu = server.batches(), server.cpu_seconds()
            count = max(given.requests, 2 * row.connections)
            asyncio.run(load(server.port, list(islice(cycle(requests), count)), row.connections, row))
            row.cpu_seconds.append(server.cpu_seconds() - cpu)
            after = server.batches()
            row.batches, row.pictures = row.batches + after[0] - before[0], row.pictures + after[1] - before[1]
    return {
        "imgsz": imgsz,
        "chosen": chosen,
        "rows": [row.summary(rows[index | 1]) for index, row in enumerate(rows)],
        "refused": asyncio.run(refuse(servers[True].port, refused_uploads(contents[0]))),
        "alive": json.loads(servers[True].get("/health"))["status"] == "ok",
        "exit": [server.end() for server in servers.values()],
    }


def main() -> None:
    """Measure, write what came out and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("pictures", type=Path, help="folder of JPEG or PNG files")
    parser.add_argument("--imgsz", default="320")
    parser.add_argument("--connections", default="1,2,4,8,16,32,96")
    parser.add_argument(
        "--requests", type=int, default=300, help="of each row in each round, 2 for each connection at least"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--wait-ms", type=float, default=4)
    parser.add_argument("--about", default="", help="what the model is")
    parser.add_argument("--commit", default="")
    given = parser.parse_args()
    load_average = os.getloadavg()[0]
    out = given.out.name if given.out.is_absolute() else given.out.as_posix()
    files = sorted(file for file in given.pictures.iterdir() if file.suffix in {".jpg", ".png"})
    contents = [file.read_bytes() for file in files]
    parts = [measure(given, int(imgsz), contents) for imgsz in given.imgsz.split(",")]
    result = {
        "command": f"python tools/serve_load.py {out} {given.model.name} {given.pictures.name} "
        f"--imgsz {given.imgsz} --threads {given.threads} --max-batch {given.max_batch} --rounds {given.rounds}",
        "model": {
            "file": given.model.name,
            "about": given.about,
            "megabytes": round(given.model.stat().st_size / 1e6, 2),
        },
        "pictures": {
            "files": len(files),
            "size": list(Image.open(files[0]).size),
            "mean_bytes": round(statistics.mean(map(len, contents))),
        },
        "settings": {
            "threads": given.threads,
            "max_batch": given.max_batch,
            "wait_ms": given.wait_ms,
            "queue": 64,
            "requests_of_a_round": given.requests,
            "rounds": given.rounds,
        },
        "machine": machine(),
        "load_average_before": round(load_average, 1),
        "commit": given.commit,
        "max_batch_chosen_unless_given": {str(part["imgsz"]): part["chosen"] for part in parts},
        "rows": [row for part in parts for row in part["rows"]],
        "refused": parts[0]["refused"],
        "alive_after_refusals": all(part["alive"] for part in parts),
        "exit_status_after_sigterm": [status for part in parts for status in part["exit"]],
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    show(result)


if __name__ == "__main__":
    main()
