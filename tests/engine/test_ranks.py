"""Two processes train as one does, and end together."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from yolo_lat import YOLOLAT
from yolo_lat.data.device.loader import flat, padded
from yolo_lat.engine import launch, ranks
from yolo_lat.engine.train_options import check_several
from yolo_lat.engine.trainer import LatTrainer
from yolo_lat.engine.validator import LatMetrics
from yolo_lat.errors import UserError

SCRIPT, REPO = Path(__file__).with_name("rank_script.py"), Path(__file__).parents[2]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ARGS = {"imgsz": 64, "batch": 8, "nbs": 16, "device": "cpu", "plots": False, "epochs": 2, "optimizer": "SGD"}
ARGS |= {"lr0": 1e-3, "warmup_epochs": 0, "close_mosaic": 1}
EXACT = {"frozen": True, "val_period": 2}


def train(data: Path, project: Path, name: str, *launcher: str, **changes) -> subprocess.CompletedProcess[str]:
    project.mkdir(exist_ok=True)
    args = ARGS | {"data": str(data), "project": str(project), "name": name} | changes
    command = [*(launcher or [sys.executable]), str(SCRIPT), json.dumps(args)]
    paths = os.pathsep.join([str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def losses(project: Path, name: str, rank: int = 0) -> torch.Tensor:
    lines = (project / f"{name}-{rank}.jsonl").read_text().splitlines()
    return torch.tensor([list(json.loads(line).values()) for line in lines])


def epochs(project: Path, name: str) -> list[list[str]]:
    with (project / name / "results.csv").open() as file:
        return [[v for k, v in row.items() if not k.startswith(("time", "speed"))] for row in csv.DictReader(file)]


def weights(project: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(project / name / "weights/last.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def pair(run, tmp_path_factory) -> Path:
    """The folder of a training in two processes, `two`."""
    project = tmp_path_factory.mktemp("ranks")
    done = train(run.data, project, "two", *TORCHRUN, weights=str(run.safetensors), **EXACT)
    assert done.returncode == 0, done.stderr[-3000:]
    return project


class TestTwoProcesses:
    def test_have_the_losses_of_one_in_every_batch(self, run, pair) -> None:
        done = train(run.data, pair, "one", weights=str(run.safetensors), **EXACT)
        assert done.returncode == 0, done.stderr[-3000:]
        one, two = losses(pair, "one"), losses(pair, "two")
        assert one.shape == (6, 3)
        assert torch.equal(two, losses(pair, "two", 1))
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6)
        assert (one[0] - one[3]).abs().max() > 1e-3  # the second epoch is another one, so that equality means something
        one = weights(pair, "one")
        for name, value in weights(pair, "two").items():
            torch.testing.assert_close(value, one[name], rtol=2e-3, atol=2e-3)  # stored in float16

    def test_evaluate_as_one_does(self, run, pair) -> None:
        found = json.loads((pair / "two/metrics.json").read_text())
        alone = YOLOLAT(str(pair / "two/weights/best.pt")).val(
            data=run.data, imgsz=64, batch=8, device="cpu", plots=False, project=pair, name="val"
        )
        assert found == pytest.approx(alone.coco, abs=1e-9)
        assert found["AP"] > 0
        rows = [json.loads((pair / name / "predictions.json").read_text()) for name in ("two", "val")]
        assert {row["image_id"] for row in rows[0]} == {row["image_id"] for row in rows[1]}

    def test_write_once(self, pair) -> None:
        assert {f.name for f in (pair / "two/weights").iterdir()} == {
            f"{name}.{kind}" for name in ("best", "last") for kind in ("pt", "safetensors")
        }
        assert [row[0] for row in epochs(pair, "two")] == ["1", "2"]
        assert sorted(f.name for f in pair.iterdir() if f.is_dir() and f.name.startswith("two")) == ["two"]

    @pytest.mark.slow
    def test_that_a_trainer_launches_train_like_any(self, run, pair, monkeypatch) -> None:
        """What `device=0,1` does, with processes that have no GPU."""
        monkeypatch.setenv("PYTHONPATH", str(REPO))
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        args = ARGS | {"data": str(run.data), "project": str(pair), "name": "launched", "val_period": 2}
        model = YOLOLAT(str(run.safetensors))
        trainer = LatTrainer(overrides={**args, "model": str(run.safetensors), "task": "detect", "mode": "train"})
        trainer.model = trainer.get_model(model.model.yaml, model.model)
        launch.run(trainer, 2)
        assert [row[0] for row in epochs(pair, "launched")] == ["1", "2"]
        assert LatMetrics.read(pair / "launched/metrics.json").coco["AP"] > 0


def die_as_the_second(trainer: LatTrainer) -> None:
    if ranks.PLACE == 1:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_trainer_names_the_process_that_it_lost(run, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    args = ARGS | {"data": str(run.data), "project": str(tmp_path), "name": "lost", "model": str(run.safetensors)}
    trainer = LatTrainer(overrides={**args, "task": "detect", "mode": "train"})
    trainer.model = trainer.get_model(YOLOLAT(str(run.safetensors)).model.yaml)
    trainer.add_callback("on_train_batch_end", die_as_the_second)
    with pytest.raises(UserError, match=r"^rank 1 \(process \d+\) has ended with signal 9 before the training$"):
        launch.run(trainer, 2)


@pytest.mark.slow
def test_images_on_the_device_are_shared_out(run, tmp_path) -> None:
    done = train(run.data, tmp_path, "two", *TORCHRUN, weights=str(run.safetensors), cache="device")
    assert done.returncode == 0, done.stderr[-3000:]
    shares = [set((tmp_path / f"two-{rank}.images").read_text().splitlines()) for rank in (0, 1)]
    assert [len(share) for share in shares] == [12, 12]
    assert not shares[0] & shares[1]
    assert torch.equal(losses(tmp_path, "two"), losses(tmp_path, "two", 1))
    alone = YOLOLAT(str(tmp_path / "two/weights/best.pt")).val(
        data=run.data, imgsz=64, batch=8, device="cpu", plots=False, project=tmp_path, name="val"
    )
    assert json.loads((tmp_path / "two/metrics.json").read_text()) == pytest.approx(alone.coco, abs=1e-9)


class TestAKilledProcess:
    def test_ends_the_others_at_once_with_its_name(self, shapes, tmp_path) -> None:
        began = time.monotonic()
        done = train(shapes, tmp_path, "two", *TORCHRUN, die=4, epochs=200)
        assert done.returncode != 0
        assert time.monotonic() - began < 90
        assert "error: rank 1 (process " in done.stderr
        said = ") has ended before the training; to go on from its last epoch: yolo-lat train resume="
        assert said in (REPO / "docs/distributed.md").read_text()
        assert f"{said}{tmp_path}/two/weights/last.pt" in done.stderr
        assert (tmp_path / "two/weights/resume.pt").is_file()

    @pytest.mark.slow
    def test_is_replaced_by_max_restarts_and_the_end_is_the_same(self, run, pair) -> None:
        done = train(
            run.data, pair, "again", *TORCHRUN, "--max-restarts", "1", die=4, weights=str(run.safetensors), **EXACT
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert (pair / "died").is_file()
        assert same(weights(pair, "again"), weights(pair, "two"))
        assert epochs(pair, "again") == epochs(pair, "two")


@pytest.mark.slow
def test_a_training_goes_on_in_another_number_of_processes(run, pair, tmp_path) -> None:
    """One process goes on where two were killed, which leaves a gradient that waits for more batches."""
    done = train(run.data, tmp_path, "moved", *TORCHRUN, die=4, weights=str(run.safetensors), **EXACT)
    assert done.returncode != 0
    last = tmp_path / "moved/weights/last.pt"
    done = train(run.data, tmp_path, "moved", weights=str(last), resume=str(last), frozen=True)
    assert done.returncode == 0, done.stderr[-3000:]
    two = losses(pair, "two")
    torch.testing.assert_close(losses(tmp_path, "moved")[-3:], two[-3:], rtol=1e-3, atol=1e-5)
    assert [row[0] for row in epochs(tmp_path, "moved")] == ["1", "2"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"batch": 9}, r"^batch=9: cannot be divided among 2 processes; use 8 or 10$"),
            ({"batch": -1}, r"^batch=-1: cannot be divided among 2 processes; use 2 or 4$"),
            ({"sync_bn": True}, r"^sync_bn=True: torch has it for GPUs alone; drop it, or train on GPUs$"),
            ({"rect": True}, r"^rect=True: is for one process, and 2 train; drop it$"),
        ],
    )
    def test_what_does_not_go_together(self, changes, message) -> None:
        args = {"batch": 8, "sync_bn": False, "cuda_graph": False, "rect": False, "compile": False}
        with pytest.raises(UserError, match=message):
            check_several(SimpleNamespace(**(args | {"distill_model": None} | changes)), 2, False)

    def test_graphs_of_synchronized_statistics(self) -> None:
        with pytest.raises(UserError, match=r"^sync_bn=True: its messages cannot be captured; drop it, or cuda_graph$"):
            check_several(SimpleNamespace(batch=8, sync_bn=True, cuda_graph=True), 2, True)

    def test_synchronized_statistics_of_one_process(self, shapes, tmp_path) -> None:
        with pytest.raises(UserError, match=r"^sync_bn=True: is for several GPUs"):
            YOLOLAT("yolo-lat-p").train(data=shapes, sync_bn=True, project=tmp_path, device="cpu")
        assert not list(tmp_path.iterdir())

    @pytest.mark.slow
    def test_are_told_once(self, shapes, tmp_path) -> None:
        command = [*TORCHRUN, "-m", "yolo_lat", "train", "model=yolo-lat-p", f"data={shapes}", "batch=9", "device=cpu"]
        environment = os.environ | {"PYTHONPATH": str(REPO)}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode != 0
        assert done.stderr.count("yolo-lat: error:") == 1
        assert "batch=9: cannot be divided among 2 processes" in done.stderr
        assert not list(tmp_path.iterdir())


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 8), st.integers(1, 5))
def test_a_share_of_the_images_keeps_the_groups(count, group, size, processes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "RANKS", processes)
        shares = []
        for place in range(processes):
            patch.setattr(ranks, "PLACE", place)
            shares.append(ranks.own_share(count, group, size))
    assert sorted(i for share in shares for batch in share for i in batch) == list(range(count))
    batches = [batch for share in shares for batch in share]
    assert all(0 < len(batch) <= size and len({i // group for i in batch}) == 1 for batch in batches)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=5), st.integers(0, 2**31))
def test_padding_is_undone_by_flat(counts, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    owners = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).float()
    total = len(owners)
    given_ = {
        "img": torch.empty(len(counts), 3, 1, 1),
        "batch_idx": owners,
        "cls": torch.randint(0, 80, (total, 1), generator=generator).float(),
        "bboxes": torch.rand(total, 4, generator=generator),
    }
    back = flat(padded(given_) | {"total": total})
    assert all(torch.equal(back[key], given_[key]) for key in back)
    mixed = torch.randperm(total, generator=generator)
    shuffled = given_ | {key: given_[key][mixed] for key in ("batch_idx", "cls", "bboxes")}
    assert torch.equal(padded(shuffled)["valid"], padded(given_)["valid"])


WATCHED = """
import os, sys, time
from yolo_lat.engine import rank_watch
from yolo_lat.engine.rank_watch import RankWatch
rank, ranks, folder, what = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
rank_watch._GREETING = 2
strangers = []
def from_main(value):
    import json, pathlib, socket
    place = pathlib.Path(folder, "said.json")
    if value is not None:
        for words in (b"", b"\\xff\\xfe\\n", b"hello\\n") if what == "strangers" else ():
            strangers.append(socket.create_connection(("localhost", value[0])))
            strangers[-1].sendall(words)
        place.with_suffix(".tmp").write_text(json.dumps(value))
        place.with_suffix(".tmp").rename(place)
    while not place.exists():
        time.sleep(0.01)
    return json.loads(place.read_text())
def born():
    with open(os.path.join(folder, f"child-{rank}"), "w") as file:
        file.write(str(os.getpid()))
    time.sleep(0.5)  # in which the watch has not let go yet, as it is registered later
os.register_at_fork(after_in_child=born)
watch = RankWatch(rank, ranks, rank == 0, "localhost", from_main)
watch.hint = "; go on"
if what == "fork" and os.fork() == 0:
    os.closerange(0, 3)
    time.sleep(90)
    os._exit(0)
print("watching", flush=True)
sys.stdin.readline()
if what == "close":
    watch.close()
elif what == "give up" and rank == 0:
    print("told", file=sys.stderr)
    watch.give_up()
"""


def wait_for(file: Path) -> str:
    """Return what another process writes, once it has."""
    deadline = time.monotonic() + 30
    while not file.exists() or not file.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return file.read_text()


class TestRankWatch:
    @pytest.fixture
    def start(self, tmp_path):
        """Start watched processes, and end what is left of them."""
        started: list[subprocess.Popen[str]] = []

        def start(count: int, what: str = "wait") -> list[subprocess.Popen[str]]:
            for rank in range(count):
                command = [sys.executable, "-c", WATCHED, str(rank), str(count), str(tmp_path), what]
                environment = os.environ | {"PYTHONPATH": str(REPO)}
                pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
                started.append(subprocess.Popen(command, env=environment, text=True, **pipes))
            assert [process.stdout.readline() for process in started] == ["watching\n"] * count
            return started

        yield start
        for process in started:
            process.kill()
            process.communicate()

    @pytest.mark.parametrize("victim", [0, 1, 2])
    def test_names_who_ended(self, start, victim) -> None:
        processes = start(3)
        processes[victim].send_signal(signal.SIGKILL)
        others = [process for process in processes if process is not processes[victim]]
        assert [process.wait(30) for process in others] == [1, 1]
        said = [process.stderr.read() for process in others]
        name = f"rank {victim} (process {processes[victim].pid} on {socket.gethostname()})"
        assert f"yolo-lat: error: {name} has ended before the training; go on\n" in said
        assert "".join(said).count("yolo-lat: error:") == 1

    def test_is_not_deceived_by_processes_of_one_that_ended(self, start) -> None:
        processes = start(2, "fork")
        processes[1].send_signal(signal.SIGKILL)
        assert processes[0].wait(30) == 1
        assert "error: rank 1 (process " in processes[0].stderr.read()

    def test_names_who_ended_though_asked_to_end_before_that_was_seen(self, start) -> None:
        """As whoever started them may: a process that cannot run finds both when it goes on."""
        processes = start(2)
        processes[0].send_signal(signal.SIGSTOP)
        processes[1].kill()
        processes[1].wait(30)
        processes[0].send_signal(signal.SIGTERM)
        processes[0].send_signal(signal.SIGCONT)
        assert processes[0].wait(30) == 1
        assert "error: rank 1 (process " in processes[0].stderr.read()

    @pytest.mark.parametrize("count", [2, 3])
    def test_names_who_ended_though_its_connection_stays_open_for_a_moment(self, start, tmp_path, count) -> None:
        """In a process that it has just forked, a data loader's worker say, while all others are asked to end."""
        processes = start(count, "fork")
        wait_for(tmp_path / "child-1")
        processes[1].kill()
        processes[1].wait(30)
        others = [process for process in processes if process is not processes[1]]
        for process in others:
            process.terminate()
        said = [(process.wait(30), process.stderr.read()) for process in others]
        assert said[0][0] == 1
        assert "error: rank 1 (process " in said[0][1]
        assert all(status in {1, 143} and not words for status, words in said[1:])

    def test_ends_without_a_word_when_all_are_asked_to(self, start) -> None:
        processes = start(3)
        for process in processes:
            process.terminate()
        assert [process.wait(30) for process in processes] == [143, 143, 143]
        assert [process.stderr.read() for process in processes] == ["", "", ""]

    def test_ends_without_a_word_when_asked_to(self, start) -> None:
        processes = start(2)
        processes[0].terminate()
        assert processes[0].wait(30) == 143
        assert processes[0].stderr.read() == ""
        assert processes[1].wait(30) == 1

    def test_leaves_signals_of_forked_processes_alone(self, start, tmp_path) -> None:
        """From their first moment on, a data loader that is closed right away say."""
        processes = start(2, "fork")
        deadline = time.monotonic() + 30
        child = psutil.Process(int(wait_for(tmp_path / "child-0")))
        child.terminate()
        while child.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.2)
        assert processes[0].poll() is None

    def test_is_not_put_off_by_connections_of_others(self, start) -> None:
        processes = start(2, "strangers")
        processes[1].kill()
        assert processes[0].wait(30) == 1
        assert "error: rank 1 (process " in processes[0].stderr.read()

    def test_is_silent_when_all_are_done(self, start) -> None:
        processes = start(3, "close")
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        assert [process.wait(30) for process in processes] == [0, 0, 0]
        assert [process.stderr.read() for process in processes] == ["", "", ""]

    def test_is_silent_when_the_user_was_told(self, start) -> None:
        processes = start(2, "give up")
        processes[0].stdin.write("\n")
        processes[0].stdin.flush()
        assert [process.wait(30) for process in processes] == [0, 2]
        assert [process.stderr.read() for process in processes] == ["told\n", ""]


def test_a_checkpoint_of_synchronized_statistics_is_like_any(run, tmp_path) -> None:
    model = YOLOLAT(str(run.best))
    plain = {key: value.clone() for key, value in model.model.state_dict().items()}
    model.model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model.model)
    model.save(tmp_path / "sync.pt")
    loaded = YOLOLAT(str(tmp_path / "sync.pt"))
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in loaded.model.modules())
    assert same(loaded.model.state_dict(), plain)
    loaded.save(tmp_path / "sync.safetensors")
    assert same(YOLOLAT(str(tmp_path / "sync.safetensors")).model.state_dict(), plain)
    loaded.export(imgsz=96)  # compares with the PyTorch model
    arguments = {"data": run.data, "imgsz": 96, "device": "cpu", "plots": False, "project": tmp_path}
    numbers = [YOLOLAT(str(file)).val(**arguments).coco for file in (run.best, tmp_path / "sync.pt")]
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
class TestTwoGpus:
    """By NCCL what the tests above show by gloo, and what they cannot: `sync_bn`, and `device=0,1` itself."""

    ONE, TWO = {"device": "0", "amp": False}, {"device": None, "amp": False}

    def test_have_the_losses_of_one_in_every_batch(self, run, tmp_path, monkeypatch) -> None:
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
        weights = str(run.safetensors)
        for name, launcher, place in (("one", (), self.ONE), ("two", TORCHRUN, self.TWO)):
            done = train(run.data, tmp_path, name, *launcher, weights=weights, **EXACT, **place)
            assert done.returncode == 0, done.stderr[-3000:]
        assert torch.equal(losses(tmp_path, "two"), losses(tmp_path, "two", 1))
        torch.testing.assert_close(losses(tmp_path, "two"), losses(tmp_path, "one"), rtol=1e-3, atol=1e-5)
        alone = YOLOLAT(str(tmp_path / "two/weights/best.pt")).val(
            data=run.data, imgsz=64, batch=8, device="0", plots=False, project=tmp_path, name="val"
        )
        found = json.loads((tmp_path / "two/metrics.json").read_text())
        assert found["AP"] == pytest.approx(alone.coco["AP"], abs=0.01)

    def test_share_statistics_with_sync_bn(self, run, tmp_path, monkeypatch) -> None:
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
        ways = {"one": ((), self.ONE), "two": (TORCHRUN, {**self.TWO, "sync_bn": True}), "apart": (TORCHRUN, self.TWO)}
        for name, (launcher, options) in ways.items():
            done = train(run.data, tmp_path, name, *launcher, weights=str(run.safetensors), **options)
            assert done.returncode == 0, done.stderr[-3000:]
        one, two, apart = (losses(tmp_path, name) for name in ways)
        torch.testing.assert_close(two, one, rtol=2e-3, atol=1e-5)
        assert (apart - one).abs().max() > 2 * (two - one).abs().max()

    def test_hold_and_augment_their_share(self, run, tmp_path) -> None:
        done = train(run.data, tmp_path, "two", *TORCHRUN, weights=str(run.safetensors), cache="device", device=None)
        assert done.returncode == 0, done.stderr[-3000:]
        shares = [set((tmp_path / f"two-{rank}.images").read_text().splitlines()) for rank in (0, 1)]
        assert [len(share) for share in shares] == [12, 12]
        assert not shares[0] & shares[1]

    def test_capture_their_steps_with_the_messages_in_them(self, run, tmp_path, monkeypatch) -> None:
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
        options = {"weights": str(run.safetensors), "cache": "device", "epochs": 8, "val_period": 8, **self.TWO}
        for name, captured in (("launched", False), ("captured", True)):
            done = train(run.data, tmp_path, name, *TORCHRUN, cuda_graph=captured, **options)
            assert done.returncode == 0, done.stderr[-3000:]
        found = losses(tmp_path, "captured")
        assert torch.equal(found, losses(tmp_path, "captured", 1))
        torch.testing.assert_close(found, losses(tmp_path, "launched"), rtol=5e-3, atol=1e-4)

    def test_are_started_by_their_numbers(self, shapes, tmp_path, monkeypatch) -> None:
        monkeypatch.setenv("PYTHONPATH", f"{REPO}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        args = {**ARGS, "device": "0,1", "data": shapes, "project": tmp_path, "name": "two", "cache": "device"}
        words = ["train", "model=yolo-lat-p", *(f"{key}={value}" for key, value in args.items())]
        command = [sys.executable, "-m", "yolo_lat", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert [row[0] for row in epochs(tmp_path, "two")] == ["1", "2"]
        assert (tmp_path / "two/metrics.json").is_file()

    def test_end_when_one_is_killed(self, shapes, tmp_path) -> None:
        done = train(shapes, tmp_path, "two", *TORCHRUN, die=4, epochs=2000, device=None)
        ended = time.time()
        assert done.returncode != 0
        assert "error: rank 1 (process " in done.stderr
        assert ended - (tmp_path / "died").stat().st_mtime < 30
