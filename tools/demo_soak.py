"""How `yolo-lat demo` holds up on a stream for many minutes: memory, delay from capture to file, frames a second.

    python tools/demo_soak.py OUT.json MODEL.onnx VIDEO [--minutes N] [--rate FPS] [--break-every S] [--no-save]

for example

    python tools/demo_soak.py soak.json best.onnx cars.mp4 --minutes 30

A process of its own sends the video over and over as MJPEG over HTTP on the loopback address. It is killed now and then
and started again two seconds later, which the demo has to survive. Memory is the resident set of the demo's process,
sampled once a second; its growth is that of the median of the last fifth of the samples over that of the second fifth.
The delay is from the moment a frame is decoded to the moment it has been drawn and written.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from typing import Any

import cv2
import onnxruntime
import psutil
from rich.console import Console

from yolo_lat.demo.session import DemoOptions, run_demo
from yolo_lat.deploy.benchmark.environment import describe_machine

MOST_FRAMES = 300  # of the video, so that the sender's memory stays small


def main() -> None:
    """Run the demo on a stream and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("model")
    parser.add_argument("video", type=Path)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--rate", type=float, default=30)
    parser.add_argument("--imgsz", type=int)
    parser.add_argument("--break-every", type=float, default=60, metavar="S", help="0 never")
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--send", type=int, metavar="PORT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.send:
        send(args.video, args.send, args.rate)
    record = soak(args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({key: value for key, value in record.items() if key != "memory_mb"}, indent=1))


def soak(args: argparse.Namespace) -> dict[str, Any]:
    """Return the whole record."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, __file__, "-", "-", str(args.video), "--rate", str(args.rate), "--send", str(port)]
    sender = Sender(command, port)
    memory: list[float] = []
    process, done = psutil.Process(), threading.Event()

    def watch() -> None:
        began = broken = time.monotonic()
        while not done.wait(1):
            memory.append(round(process.memory_info().rss / 2**20, 2))
            now = time.monotonic()
            if args.break_every and now - broken > args.break_every:
                broken = now
                sender.restart(2)
            if now - began > 60 * args.minutes:
                os.kill(os.getpid(), signal.SIGINT)
                return

    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, sender:
        url = f"http://127.0.0.1:{port}/"
        options = DemoOptions(
            args.model, url, imgsz=args.imgsz, show=False, save=not args.no_save, project=folder, retry=60
        )
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            summary = run_demo(options, Console(file=said, width=200)).summary
        finally:
            done.set()
            watcher.join()
    fifth = max(len(memory) // 5, 1)
    early, late = statistics.median(memory[fifth : 2 * fifth] or memory), statistics.median(memory[-fifth:])
    return {
        "command": "python tools/demo_soak.py "
        + shlex.join([args.out.name, Path(args.model).name, args.video.name, *sys.argv[4:]]),
        "model": {"file": Path(args.model).name, "metadata": described(args.model)},
        "machine": describe_machine("cpu", os.cpu_count() or 1),
        "versions": {
            "onnxruntime": onnxruntime.__version__,  # of whichever of its packages is installed
            **{name: version(name) for name in ("av", "opencv-python", "numpy")},
        },
        "minutes": args.minutes,
        "rate": args.rate,
        "saved": not args.no_save,
        "memory_growth_percent": round(100 * (late / early - 1), 2),
        "threads_at_end": threading.active_count(),
        "restarts": sender.restarts,
        "summary": summary,
        "memory_mb": memory,
    }


def described(model: str) -> dict[str, str]:
    """Return what an exported model says of itself."""
    written = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).get_modelmeta()
    kept = ("description", "parameters", "imgsz", "precision", "target")
    return {key: written.custom_metadata_map[key] for key in kept if key in written.custom_metadata_map}


class Sender:
    """The process that sends the video."""

    def __init__(self, command: list[str], port: int) -> None:
        self._command, self._port, self.restarts = command, port, 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Sender:
        self._start()
        return self

    def __exit__(self, *error: object) -> None:
        self._kill()

    def restart(self, pause_s: float) -> None:
        """Kill it and start it again after a pause."""
        self._kill()
        time.sleep(pause_s)
        self._start()
        self.restarts += 1

    def _start(self) -> None:
        self._process = subprocess.Popen(self._command)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1):
                return
            time.sleep(0.05)
        raise TimeoutError("the sender does not listen")

    def _kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None


def send(video: Path, port: int, rate: float) -> None:
    """Serve the frames of a video over and over as MJPEG, for ever."""
    capture, pictures = cv2.VideoCapture(str(video)), []
    while len(pictures) < MOST_FRAMES and (read := capture.read())[0]:
        pictures.append(cv2.imencode(".jpg", read[1])[1].tobytes())

    class Camera(BaseHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            due = time.monotonic()
            with contextlib.suppress(OSError):
                for data in cycle(pictures):
                    head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(data)
                    self.wfile.write(head + data + b"\r\n")
                    due += 1 / rate
                    time.sleep(max(due - time.monotonic(), 0))

    ThreadingHTTPServer(("127.0.0.1", port), Camera).serve_forever()


if __name__ == "__main__":
    main()
