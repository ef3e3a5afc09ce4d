"""Starting the processes of a training on several GPUs, and finding again what a restart of theirs goes on with."""

from __future__ import annotations

import os
import signal
import socket
import sys
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psutil
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from ultralytics.cfg import get_save_dir
from ultralytics.utils.dist import ddp_cleanup, generate_ddp_file

from yolo_lat.engine.ranks import MAIN, RANKS, from_main, join
from yolo_lat.errors import UserError

if TYPE_CHECKING:
    from yolo_lat.engine.trainer import LatTrainer

LAUNCH_FILE = "launch.txt"  # in the folder of a run: which start of processes it belongs to
_TOLD = 2  # exit status of a process that has said what is wrong


def run(trainer: LatTrainer, processes: int) -> None:
    """Carry out a training in as many processes on this machine, each of which builds the trainer anew.

    Raises:
        UserError: a process that ended before its time.
        SystemExit: a process that has told the user what is wrong.
        KeyboardInterrupt: the user wants no more.
    """
    file = generate_ddp_file(trainer)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)(file)
    except ChildFailedError as error:
        failures = error.failures.values()
        if any(failure.exitcode == _TOLD for failure in failures):
            raise SystemExit(_TOLD) from None
        # The others end because of it, and it may not be the first that is noticed.
        killed = ((r, f) for r, f in error.failures.items() if f.exitcode < 0 and f.exitcode != -signal.SIGTERM)
        rank, first = next(killed, None) or error.get_first_failure()
        how = f"signal {-first.exitcode}" if first.exitcode < 0 else f"exit status {first.exitcode}"
        last = f"yolo-lat train resume={trainer.last}"
        hint = f"; to go on from its last epoch: {last}" if trainer.last.is_file() else ""
        raise UserError(f"rank {rank} (process {first.pid}) has ended with {how} before the training{hint}") from None
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise
    finally:
        ddp_cleanup(trainer, str(file))


def run_folder(args: SimpleNamespace) -> Path:
    """Return the folder of a run, and note there which start of processes it belongs to; for the first of them."""
    folder = Path(get_save_dir(args))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LAUNCH_FILE).write_text(_launch(), encoding="utf-8")
    return folder


def finish(folder: Path) -> None:
    """Note that a training has come to its end; for the first of several processes."""
    (folder / LAUNCH_FILE).unlink(missing_ok=True)


def interrupted_run(device: Any, project: Path) -> dict[str, Any]:
    """Return the arguments with which processes that torchrun has started again go on, none at their first start.

    How often a torchrun has started its processes differs between machines, so that the note in the folder counts.

    Args:
        device: the training argument.
        project: folder of the runs.

    Returns:
        `resume`, the checkpoint of the run that they had begun, or before its first checkpoint `save_dir`, its folder.
    """
    if RANKS == 1 or not dist.is_torchelastic_launched():
        return {}
    join(device)
    begun = None
    if MAIN:
        notes = (note for note in project.glob(f"*/{LAUNCH_FILE}") if note.read_text(encoding="utf-8") == _launch())
        begun = next((str(note.parent) for note in notes), None)
    folder = from_main(begun)
    if folder is None:
        return {}
    last = Path(folder, "weights/last.pt")
    return {"resume": str(last)} if from_main(last.is_file()) else {"save_dir": folder}


def _launch() -> str:
    """Return what is the same in all starts of processes by one torchrun: its run's name, or its process.

    In containers processes have the same numbers again and again, so that the time of the start counts too.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if name != "none":
        return name
    parent = psutil.Process(os.getppid())
    return f"process {parent.pid} on {socket.gethostname()}, started {parent.create_time()}"
