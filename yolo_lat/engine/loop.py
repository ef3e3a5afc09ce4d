"""The loop of a training: epochs of steps, each followed by validation and a checkpoint.

The schedule is Ultralytics': warm-up, accumulation of gradients, closing of the mosaic, early stopping, callbacks. What
differs is what surrounds it. Nothing here asks the device for a number within an epoch but the progress line, twice a
second; the order and randomness of samples follow from seed and position; and the state after each epoch is kept whole,
so that a training can be killed and go on.
"""

from __future__ import annotations

import csv
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ultralytics.utils import LOGGER, TQDM, colorstr

from yolo_lat.engine.ranks import MAIN, from_main, mean_over_ranks
from yolo_lat.engine.resume import FILE_NAME, collect_gradients, restore_training, staged, write_state
from yolo_lat.engine.throughput import Throughput

if TYPE_CHECKING:
    from yolo_lat.engine.trainer import LatTrainer

_PROGRESS_EVERY = 0.5  # seconds
_CHECKPOINT_EVERY = 10.0  # seconds, where an epoch is shorter: writing one takes as long as a short epoch


class TrainLoop:
    """Runs a trainer that is set up.

    Args:
        trainer: it, from which everything else follows.
    """

    def __init__(self, trainer: LatTrainer) -> None:
        self.trainer = trainer
        self.speed = Throughput(trainer.device)
        self.batches = len(trainer.train_loader)
        self.warm_up = trainer._get_warmup_iterations(self.batches)
        self.full_accumulate = trainer.accumulate

    def run(self) -> None:
        """Train to the end, then validate the best weights."""
        t = self.trainer
        self.began = time.monotonic()  # clocks may be set meanwhile
        t.epoch_time, t.epoch_time_start = None, self.began
        t.run_callbacks("on_train_start")
        self._announce()
        resumed = t.state is not None
        if t.state is not None:
            restore_training(t, t.state)
            t.state = None
            if MAIN:
                self._cut_results()
        if t.args.close_mosaic:
            first = (t.epochs - t.args.close_mosaic) * self.batches
            t.plot_idx.extend([first, first + 1, first + 2])
        t.begin_epochs(t.start_epoch)
        self.mosaic_closed = not t.args.close_mosaic
        self.first_epoch = t.start_epoch
        epoch, t.epoch = t.start_epoch, t.start_epoch - 1
        self.last_checkpoint = t.epoch, float("-inf")  # its epoch, and when it was written
        self.replaces = (
            not resumed and t.last.is_file()
        )  # another training in this folder, which can be resumed until then
        if MAIN and t.args.save and not resumed and not self.replaces:
            write_state(t, t.wdir)  # else a kill between the first last.pt and its resume.pt would lose the beginning
        while epoch < t.epochs and not t.stop:
            t.epoch = epoch
            self._train_epoch()
            if self._finish_epoch():
                epoch += 1
        if MAIN and self.last_checkpoint[0] != t.epoch:  # out of time
            self._write_checkpoint()
        seconds = time.monotonic() - self.began
        LOGGER.info(f"\n{epoch - self.first_epoch} epochs completed in {seconds / 3600:.3f} hours.")
        t.final_eval()
        if MAIN:
            if t.args.plots:
                t.plot_metrics()
            t.run_callbacks("on_train_end")
            (t.wdir / FILE_NAME).unlink(missing_ok=True)
        t._clear_memory()
        for loader in (t.train_loader, t.test_loader):
            if hasattr(loader, "close"):
                loader.close()

    def _announce(self) -> None:
        t = self.trainer
        if form := t.attention_form():
            LOGGER.info(f"Computing {form}")
        LOGGER.info(
            f"Using {len(t.train_loader.dataset)} train, {len(t.test_loader.dataset)} val images for "
            f"fraction={t.args.fraction} at imgsz={t.args.imgsz}\n"
            f"Using {t.data_source()}\n"
            f"Logging results to {colorstr('bold', t.save_dir)}\n"
            f"Starting training for " + (f"{t.args.time} hours..." if t.args.time else f"{t.epochs} epochs...")
        )

    def _cut_results(self) -> None:
        """Drop what results.csv has of epochs that are done again."""
        file = Path(self.trainer.csv)
        if not file.is_file():
            return
        *whole, _ = file.read_text(encoding="utf-8").split("\n")  # the last one is empty, or was cut by a kill
        if not whole:
            file.unlink()  # as Ultralytics writes the header where there is no file
            return
        header, *rows = csv.reader(whole)
        kept = [row for row in rows if float(row[0]) <= self.trainer.start_epoch]
        with staged(file.parent) as stage:
            text = "".join(",".join(row) + "\n" for row in [header, *kept])
            (stage / file.name).write_text(text, encoding="utf-8")

    def _train_epoch(self) -> None:
        """Train on every batch of the trainer's epoch once."""
        t = self.trainer
        t.run_callbacks("on_train_epoch_start")
        t.scheduler.last_epoch = t.epoch - 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the optimizer has not stepped before its schedule
            t.scheduler.step()
        t._model_train()
        if not self.mosaic_closed and t.epoch >= t.epochs - t.args.close_mosaic:
            self.mosaic_closed = True
            t._close_dataloader_mosaic()
            t.begin_epochs(t.epoch)
        t.tloss = None
        self.speed.start_epoch()
        batches: Iterable[dict[str, Any]] = self.speed.watch(t.train_loader)
        bar = None
        if MAIN:
            if t.loss_names:
                LOGGER.info(t.progress_string())
            bar = TQDM(total=self.batches)
        shown = 0.0
        for i, batch in enumerate(batches):
            t.run_callbacks("on_train_batch_start")
            t.last_batch = i + self.batches * t.epoch
            self._set_schedule()
            items = self._step(batch)
            t.tloss = items if t.tloss is None else {k: (t.tloss[k] * i + v) / (i + 1) for k, v in items.items()}
            if bar is not None:
                bar.update(1)
                if time.perf_counter() - shown > _PROGRESS_EVERY or i + 1 == self.batches:
                    bar.set_description(self._line(batch, i + 1))
                    shown = time.perf_counter()
                if t.args.plots and t.last_batch in t.plot_idx:
                    t.plot_training_samples(batch, t.last_batch)
            t.run_callbacks("on_train_batch_end")
            if t.stop or self._out_of_time():
                break
        t.tloss = {name: mean_over_ranks(value) for name, value in t.tloss.items()}
        self.speed.finish_epoch()
        if bar is not None:
            bar.close()

    def _set_schedule(self) -> None:
        """Warm up: let accumulation, learning rates and momentum rise, the biases' learning rate fall."""
        t, now = self.trainer, self.trainer.last_batch
        if not self.warm_up or now > self.warm_up:
            return
        span = [0, self.warm_up]
        t.accumulate = max(1, int(np.interp(now, span, [1, self.full_accumulate]).round()))
        for group in t.optimizer.param_groups:
            start = t.args.warmup_bias_lr if group.get("param_group") == "bias" else 0.0
            group["lr"] = float(np.interp(now, span, [start, group["initial_lr"] * t.lf(t.epoch)]))
            if "momentum" in group:
                group["momentum"] = float(np.interp(now, span, [t.args.warmup_momentum, t.args.momentum]))

    def _step(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Train on a batch and return its losses by name, on the device."""
        t = self.trainer
        update = t.last_batch - t.last_update >= t.accumulate
        items = t.train_step(batch, update)
        if update:
            t.last_update = t.last_batch
        if not t.loss_names:
            t.loss_names = tuple(items)
            if MAIN:
                LOGGER.info(t.progress_string())
                t.metrics.update(dict.fromkeys(t.label_loss_items(prefix="val"), 0.0))
        return items

    def _line(self, batch: dict[str, Any], done: int) -> str:
        """Return the progress line: losses are read from the device here."""
        t = self.trainer
        objects = batch["total"] if "total" in batch else len(batch["cls"])
        losses = [float(value) for value in t.tloss.values()]
        remaining = self.speed.remaining(t.epoch - self.first_epoch + done / self.batches, t.epochs - self.first_epoch)
        return ("%11s" * 2 + "%11.4g" * (2 + len(losses)) + "  %s, %s left") % (
            f"{t.epoch + 1}/{t.epochs}",
            f"{t._get_memory():.3g}G",
            *losses,
            objects,
            batch["img"].shape[-1],
            self.speed.line(),
            remaining,
        )

    def _out_of_time(self) -> bool:
        """Whether `time=` hours are over."""
        t = self.trainer
        if t.args.time:
            t.stop |= time.monotonic() - self.began > t.args.time * 3600
            t.stop = from_main(bool(t.stop))
        return bool(t.stop)

    def _finish_epoch(self) -> bool:
        """Validate, record, keep a checkpoint; False where the epoch has to be done again."""
        t = self.trainer
        if hasattr(t.criterion, "update"):
            t.criterion.update()
        rates = {f"lr/pg{i}": group["lr"] for i, group in enumerate(t.optimizer.param_groups)}
        t.lr = rates | self.speed.columns()  # what loggers take beside losses and metrics
        t.run_callbacks("on_train_epoch_end")
        if MAIN:
            t.ema.update_attr(t.model, include=["yaml", "nc", "args", "names", "stride", "class_weights"])
        final = t.epoch + 1 >= t.epochs
        due = (t.epoch + 1) % t.args.val_period == 0
        validated = from_main(bool((t.args.val and due) or final or t.stopper.possible_stop or t.stop))
        t.fitness = None  # else the last one would make this epoch's weights the best again
        if validated:
            t._clear_memory(None if t.device.type == "mps" else 0.5)
            t.metrics, t.fitness = t.validate()
        if t._handle_nan_recovery(t.epoch):
            t.last_update = -1
            t.optimizer.zero_grad()
            t.begin_epochs(t.epoch)
            return False
        t.nan_recovery_attempts = 0
        collect_gradients(t)
        if MAIN:
            t.train_time_start = time.time() - (time.monotonic() - self.began)  # of the column "time"
            metrics = t.metrics if validated else dict.fromkeys(t.metrics, float("nan"))
            t.save_metrics({**t.label_loss_items(t.tloss), **metrics, **t.lr})
            t.stopped_early = validated and t.stopper(t.epoch + 1, t.fitness)
            t.stop |= t.stopped_early or final
            if (t.args.save and self._checkpoint_due(validated)) or final:
                self._write_checkpoint()
        now = time.monotonic()
        t.epoch_time, t.epoch_time_start = now - t.epoch_time_start, now
        if t.args.time:
            self._plan_epochs(now)
        t.run_callbacks("on_fit_epoch_end")
        t._clear_memory(None if t.device.type == "mps" else 0.5)
        t.stop = from_main(bool(t.stop))
        return True

    def _checkpoint_due(self, validated: bool) -> bool:
        """Whether the epoch's weights may be the best, are asked for, or the last checkpoint is old by now."""
        t = self.trainer
        asked = t.args.save_period > 0 and t.epoch % t.args.save_period == 0
        return validated or asked or time.monotonic() - self.last_checkpoint[1] >= _CHECKPOINT_EVERY

    def _write_checkpoint(self) -> None:
        t = self.trainer
        if self.replaces:
            (t.wdir / FILE_NAME).unlink(missing_ok=True)  # which goes with the last.pt that is replaced
            self.replaces = False
        if t.save_model():
            write_state(t, t.wdir)
            self.last_checkpoint = t.epoch, time.monotonic()
            t.run_callbacks("on_model_save")

    def _plan_epochs(self, now: float) -> None:
        """Reckon how many epochs fit into `time=` hours, which learning rates then follow."""
        t = self.trainer
        mean = from_main(now - self.began) / (t.epoch - self.first_epoch + 1)
        t.epochs = t.args.epochs = self.first_epoch + int(np.ceil(t.args.time * 3600 / mean))
        self.warm_up = t._get_warmup_iterations(self.batches)
        t._setup_scheduler()
        t.stop |= t.epoch >= t.epochs
