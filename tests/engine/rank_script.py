"""Trains in one or several processes, for test_ranks.py: `rank_script.py '{"name": ..., TRAINING ARGUMENTS}'`.

Beside those arguments: `weights` to begin with; `frozen` keeps the statistics of batch normalization, the one thing
that processes do not share on a CPU; `die` is the number of the batch after which rank 1 kills itself, once.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch

from yolo_lat import YOLOLAT
from yolo_lat.engine.ranks import PLACE, mean_over_ranks

args = json.loads(sys.argv[1])
weights, frozen, die = args.pop("weights", "yolo-lat-p"), args.pop("frozen", False), args.pop("die", None)
folder = Path(args["project"])


def freeze(trainer):
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()


def record(trainer):
    losses = {name: mean_over_ranks(value).item() for name, value in trainer.loss_items.items()}
    with (folder / f"{args['name']}-{PLACE}.jsonl").open("a") as file:
        print(json.dumps(losses), file=file)
    cached = getattr(trainer.train_loader, "loader", None)
    if cached is not None:
        (folder / f"{args['name']}-{PLACE}.images").write_text("\n".join(map(str, cached.cache.paths)))
    if PLACE == 1 and trainer.last_batch == die and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)


model = YOLOLAT(weights)
if frozen:
    model.add_callback("on_train_batch_start", freeze)
model.add_callback("on_train_batch_end", record)
model.train(**args)
