"""The command itself, as a process: what it prints, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from serving import encoded, squares, wait_until

ROOT = Path(__file__).resolve().parents[2]
Start = Callable[..., subprocess.Popen[str]]
SECONDS = 60  # for a server to answer or end, on the slowest machine
# The command with a longer wait for a batch than settings allow, so that no test has to be faster than it.
PATIENT = """
from yolo_lat.cli import main
from yolo_lat.serve import settings

settings._NUMBERS["wait_ms"] = (0, 60_000)
main()
"""


@pytest.fixture
def start(model: Path) -> Iterator[Start]:
    """Start `yolo-lat serve` with more keys; whatever still runs afterwards is killed."""
    started: list[subprocess.Popen[str]] = []

    def run(*words: str, program: tuple[str, str] = ("-m", "yolo_lat")) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *program, "serve", f"model={model}", "threads=1", "max_batch=8", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def address(process: subprocess.Popen[str]) -> str:
    """Wait until it serves and return where."""
    line = process.stdout.readline()
    match = re.fullmatch(
        r"serving colours\.onnx on CPUExecutionProvider, 64x64 px, up to 8 pictures at once: "
        r"POST to (http://127\.0\.0\.1:\d+)/detect\n",
        line,
    )
    assert match, line + process.stderr.read()
    return match[1]


def refuses_connections(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=SECONDS).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM that a process can answer")
def test_sigterm_answers_what_was_begun_and_refuses_what_comes(start):
    process = start("port=0", "wait_ms=60000", f"timeout={SECONDS}", program=("-c", PATIENT))
    url = address(process)
    port = httpx.URL(url).port
    content = encoded(squares(0))
    with (
        httpx.Client(base_url=url, timeout=SECONDS) as client,
        socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as slow,
        ThreadPoolExecutor(3) as pool,
    ):
        assert client.get("/ready").status_code == 200
        head = f"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n".encode()
        slow.sendall(head + content[:-1])  # the others wait for it
        wait_until(lambda: "yolo_lat_in_flight 2.0" in client.get("/metrics").text)  # this is one of the two
        begun = [pool.submit(client.post, "/detect", content=encoded(squares(i))) for i in range(3)]
        wait_until(lambda: client.get("/health").json()["queue"]["waiting"] == 3)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: refuses_connections(port))
        time.sleep(0.3)  # by then a server would have ended that does not wait
        slow.sendall(content[-1:])
        assert slow.recv(1000).startswith(b"HTTP/1.1 200")
        assert [future.result().json()["batch"] for future in begun] == [4] * 3
    out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, out) == (0, "")
    assert err.count("POST /detect 200") == 4
    assert "Traceback" not in err


def test_ctrl_c_ends_it_as_it_ends_the_other_modes(start):
    process = start("port=0")
    address(process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err) == (130, "yolo-lat: interrupted\n")


def test_every_request_has_an_id_in_the_log(start):
    process = start("port=0")
    with httpx.Client(base_url=address(process), timeout=SECONDS) as client:
        ids = [client.post("/detect", content=encoded(squares(i))).headers["x-request-id"] for i in range(2)]
        ids.append(client.post("/detect?conf=9").headers["x-request-id"])
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=SECONDS)
    found = re.findall(r"^\S+ \S+ INFO request=(\w{12}) POST /detect (\d+) [\d.]+ ms$", err, re.MULTILINE)
    assert found == [(ids[0], "200"), (ids[1], "200"), (ids[2], "422")]


def test_a_port_that_is_taken_is_named(start):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        process = start(f"port={port}")
        out, err = process.communicate(timeout=SECONDS)
    with suppress(ValueError):
        err = err[err.index("yolo-lat:") :]
    assert (process.returncode, out) == (2, "")
    assert (
        err == f"yolo-lat: error: cannot listen on host=127.0.0.1 port={port} (Address already in use); pass another\n"
    )


def test_it_runs_without_torch(start):
    """No torch in the process, by what it has mapped into memory."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc")
    process = start("port=0")
    httpx.post(f"{address(process)}/detect", content=encoded(squares(0)), timeout=SECONDS)
    libraries = Path(f"/proc/{process.pid}/maps").read_text()
    assert "onnxruntime" in libraries
    assert "libtorch" not in libraries
