"""Two machines train one model: two network namespaces joined by a cable, each with a torchrun of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from test_ranks import ARGS, EXACT, REPO, SCRIPT, epochs, losses, same, train, weights

from yolo_lat.engine.rank_watch import KEEP_ALIVE

pytestmark = pytest.mark.slow
LOST = KEEP_ALIVE["TCP_KEEPIDLE"] + KEEP_ALIVE["TCP_KEEPINTVL"] * KEEP_ALIVE["TCP_KEEPCNT"]  # seconds
NODES = ("latnode0", "latnode1")
ADDRESSES = ("10.98.7.1", "10.98.7.2")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture(scope="module", autouse=True)
def network() -> Iterator[None]:
    """Two namespaces and the cable between them, whose ends are called `cable` on both sides."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and the program ip")
    try:
        ip("netns", "add", NODES[0])
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    try:
        ip("netns", "add", NODES[1])
        ip("link", "add", "cable", "netns", NODES[0], "type", "veth", "peer", "name", "cable", "netns", NODES[1])
        for node, address in zip(NODES, ADDRESSES, strict=True):
            ip("-n", node, "addr", "add", f"{address}/24", "dev", "cable")
            for device in ("cable", "lo"):
                ip("-n", node, "link", "set", device, "up")
        yield
    finally:
        for node in NODES:
            subprocess.run(["ip", "netns", "del", node], check=False, capture_output=True)


def start(data: Path, project: Path, name: str, **changes) -> list[subprocess.Popen[str]]:
    """Start a torchrun on each node, as one would by hand."""
    project.mkdir(exist_ok=True)
    args = ARGS | {"data": str(data), "project": str(project), "name": name} | changes
    processes = []
    for number, node in enumerate(NODES):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        meeting = ["--node-rank", str(number), "--master-addr", ADDRESSES[0], "--master-port", "29417"]
        command = ["ip", "netns", "exec", node, *torchrun, *meeting, str(SCRIPT), json.dumps(args)]
        environment = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "cable"}
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True))
    return processes


def ends(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Return exit status and messages of each node."""
    messages = [process.communicate(timeout=300)[1] for process in processes]
    return [(process.returncode, said) for process, said in zip(processes, messages, strict=True)]


@pytest.fixture(scope="module")
def two(run, tmp_path_factory) -> Path:
    """The folder of a training on two nodes, `two`."""
    project = tmp_path_factory.mktemp("nodes")
    for status, said in ends(start(run.data, project, "two", weights=str(run.safetensors), **EXACT)):
        assert status == 0, said[-3000:]
    return project


def test_two_nodes_have_the_losses_of_one_process(run, two) -> None:
    done = train(run.data, two, "one", weights=str(run.safetensors), **EXACT)
    assert done.returncode == 0, done.stderr[-3000:]
    torch.testing.assert_close(losses(two, "two"), losses(two, "one"), rtol=1e-4, atol=1e-6)
    assert torch.equal(losses(two, "two"), losses(two, "two", 1))


def test_a_killed_node_ends_the_other_and_both_go_on(run, two) -> None:
    began = time.monotonic()
    (status, said), (other, _) = ends(start(run.data, two, "cut", weights=str(run.safetensors), die=4, **EXACT))
    assert status != 0 != other
    assert time.monotonic() - began < 90
    last = two / "cut/weights/last.pt"
    assert "error: rank 1 (process " in said
    assert f"to go on from its last epoch: yolo-lat train resume={last}" in said
    for status, said in ends(start(run.data, two, "cut", weights=str(last), resume=str(last), frozen=True)):
        assert status == 0, said[-3000:]
    assert same(weights(two, "cut"), weights(two, "two"))
    assert epochs(two, "cut") == epochs(two, "two")


def test_a_node_whose_cable_is_pulled_is_missed_in_time(shapes, tmp_path) -> None:
    processes = start(shapes, tmp_path, "far", epochs=500)
    try:
        while not (tmp_path / "far/weights/resume.pt").exists():
            assert all(process.poll() is None for process in processes)
            time.sleep(0.1)
        ip("-n", NODES[1], "link", "set", "cable", "down")
        began = time.monotonic()
        said = processes[0].communicate(timeout=LOST + 25)[1]
        assert time.monotonic() - began < LOST + 10
        assert "error: rank 1 (process " in said
        assert processes[0].returncode != 0
        assert processes[1].wait(timeout=30) != 0
    finally:
        ip("-n", NODES[1], "link", "set", "cable", "up")
        for process in processes:
            process.kill()
