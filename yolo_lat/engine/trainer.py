"""Training: Ultralytics' trainer on our data sets, our models, our loop and COCO's numbers."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from copy import copy
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from ultralytics.cfg import get_save_dir
from ultralytics.data.build import InfiniteDataLoader, build_dataloader, seed_worker
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG, LOCAL_RANK, LOGGER, colorstr
from ultralytics.utils.callbacks import get_default_callbacks
from ultralytics.utils.plotting import plot_images
from ultralytics.utils.torch_utils import (
    autocast,
    init_seeds,
    parse_device,
    strip_optimizer,
    torch_distributed_zero_first,
    unwrap_model,
)

from yolo_lat.data.augment import check_augmentations
from yolo_lat.data.dataset import LatDataset, build_dataset
from yolo_lat.data.device.loader import padded
from yolo_lat.data.labels import DetectionSplit
from yolo_lat.data.order import SampleKeys, SampleOrder
from yolo_lat.data.reader import read_split
from yolo_lat.data.registry import load_dataset
from yolo_lat.data.spec import DatasetSpec
from yolo_lat.ela import choose_form
from yolo_lat.engine import launch, ranks
from yolo_lat.engine.arguments import check_classes
from yolo_lat.engine.checkpoint import pt_to_safetensors
from yolo_lat.engine.device_data import TrainBatches, ValBatches, device_cache
from yolo_lat.engine.distillation import Distillation, check_teacher, load_teacher
from yolo_lat.engine.fast_step import FusedEMA, TrainStep, fast_optimizer
from yolo_lat.engine.loop import TrainLoop
from yolo_lat.engine.offline import quiet
from yolo_lat.engine.ranks import MAIN, PLACE, RANKS
from yolo_lat.engine.resume import FILE_NAME, check_same_classes, read_state, staged
from yolo_lat.engine.static_loss import static_criterion
from yolo_lat.engine.train_options import (
    DEVICE_CACHES,
    LOGGERS,
    OWN_OPTIONS,
    check_device_cache,
    check_gpu_wishes,
    check_several,
    check_values,
    logger_names,
    take_own,
)
from yolo_lat.engine.trust import trust_files
from yolo_lat.engine.validator import LatMetrics, LatValidator, ultralytics_data, val_loader
from yolo_lat.errors import UserError
from yolo_lat.nn.attention import ProjectedELA
from yolo_lat.nn.model import LatModel
from yolo_lat.nn.zoo import load_model_yaml
from yolo_lat.run_lock import lock_folder
from yolo_lat.unfinished import new_folder_of_run


class LatTrainer(DetectionTrainer):
    """Train a detector.

    Arguments, both splits and `augmentations` are read and checked before the run folder is made. With cache=device
    images live on the device, are augmented there, and the step does not wait for it; otherwise data loading and step
    are Ultralytics'. The loop is ours (`yolo_lat.engine.loop`) either way.

    Several processes, which torchrun or `device=0,1` starts, divide each batch between them. They add up their
    gradients before each update, and divide by what one process would divide by, so that they train as one process
    does. `world_size`, by which Ultralytics would wrap the model for that, stays that of one.

    Attributes:
        state: of a training to go on from, until it is restored.
        teaching: the student with its teacher where there is one, and `model` then.
        last_batch, last_update: numbers of the last batch and of the last one after which parameters were updated.
        stopped_early: whether the last epoch was one too many without a gain.

    Raises:
        UserError: arguments that do not go together, augmentations that cannot be used, data that cannot be read, a
            batch that does not fit into memory.
    """

    wdir: Path
    last: Path
    best: Path
    ema: Any
    optimizer: Any
    model: Any
    validator: Any
    amp: Any
    world_size: int

    def __init__(
        self, cfg: Any = DEFAULT_CFG, overrides: dict[str, Any] | None = None, _callbacks: dict[str, Any] | None = None
    ) -> None:
        self.splits: dict[str, DetectionSplit] = {}
        self.state: dict[str, Any] | None = None
        self.last_batch = self.last_update = -1
        self.stopped_early = False
        self.fast: TrainStep | None = None
        self.teaching: Distillation | None = None
        self._teacher: DetectionModel | None = None
        self._let_go: Callable[[], Any] = lambda: None
        overrides = dict(overrides or {})
        self._given = OWN_OPTIONS.keys() & overrides.keys()
        self._own, self._folder = take_own(overrides), overrides.pop("save_dir", None)
        joined = ranks.join(overrides.get("device"))
        # `check_resume`, which the base calls before it takes them over, adds those of the loggers.
        given = _callbacks or get_default_callbacks()
        self._listening = {event: list(found) for event, found in given.items()}
        super().__init__(cfg, overrides, self._listening)
        if joined is not None:
            self.device, self.world_size = joined, min(self.world_size, 1)
            init_seeds(self.args.seed, deterministic=self.args.deterministic)  # the same in all, as in one alone
            if joined.type == "cuda":
                torch.cuda.set_device(joined)
        if self.device.type == "cuda" and self.args.amp is True and torch.cuda.is_bf16_supported(False):
            self.args.amp = "bf16"  # needs no scaled gradients, whose check for overflow waits for the device

    @property
    def on_device(self) -> bool:
        """Whether the training data live on the device."""
        return self.args.cache in DEVICE_CACHES

    @property
    def criterion(self) -> Any:
        """Return the loss."""
        if self.fast is not None:
            return self.fast.criterion
        model = unwrap_model(self.model)
        if getattr(model, "criterion", None) is None:
            model.criterion = model.init_criterion()
        return model.criterion

    def check_resume(self, overrides: dict[str, Any]) -> None:
        """Settle the arguments, those of the checkpoint if training goes on, and check what they name.

        Augmentations become plain data: Ultralytics would take a recipe's for transforms that it has stored itself.
        """
        super().check_resume(overrides)
        check_values(self.args)
        for name, value in self._own.items():
            known = self.resume and name not in self._given
            before = getattr(self.args, name, value)
            if name == "distill_on" and self.resume and not known and value != before:
                raise UserError(f"distill_on={value}: the run learns from its teacher's {before}; drop it to go on")
            setattr(self.args, name, before if known else value)
        for name in logger_names(self.args.loggers) if MAIN else ():
            found = import_module(f"ultralytics.utils.callbacks.{LOGGERS[name]}").callbacks
            for event, callback in found.items():
                self._listening.setdefault(event, []).append(callback)
        device = parse_device(self.args.device)
        check_device_cache(self.args, device, torch.cuda.is_available())
        gpu = device != "cpu" and torch.cuda.is_available()
        check_several(self.args, max(RANKS, len(device.split(","))), gpu)
        check_gpu_wishes(self.args, gpu)
        entries, imgsz = getattr(self.args, "augmentations", None), self.args.imgsz
        side = max(imgsz) if isinstance(imgsz, list | tuple) else imgsz
        self.args.augmentations = check_augmentations(entries, side)
        if self.args.distill_model is not None:
            self._teacher = load_teacher(self.args.distill_model)
        elif self.args.distill_on != OWN_OPTIONS["distill_on"].default:
            raise UserError(f"distill_on={self.args.distill_on}: needs a teacher; add distill_model=, or drop it")
        elif self.args.dis != DEFAULT_CFG.dis:
            raise UserError(f"dis={self.args.dis}: needs a teacher; add distill_model=, or drop it")
        if self.resume:
            self.state = read_state(Path(self.args.model))
        if self.args.data:
            spec = load_dataset(self.args.data)
            check_classes(self.args.classes, spec.names)
            if self.resume and not self.args.single_cls:
                check_same_classes(Path(self.args.model), spec)
            if self._teacher is not None and self.args.distill_on == "outputs":
                check_teacher(list(self._teacher.names.values()), spec.names, self.args)
            self._read(spec, self.args.split)
        if self.resume and Path(self.args.model).parent.name == "weights":  # the folder may have been moved
            self.args.save_dir = str(Path(self.args.model).absolute().parents[1])
        if self._folder:
            self.args.save_dir = self._folder
        elif RANKS == 1:
            folder = new_folder_of_run(Path(get_save_dir(self.args)), bool(self.resume) or self.args.exist_ok)
            self._let_go = weakref.finalize(self, lock_folder(folder))
            self.args.save_dir = str(folder)
        if RANKS > 1:
            self.args.save_dir = ranks.from_main(str(launch.run_folder(self.args) if MAIN else ""))
            last = Path(self.args.save_dir, "weights/last.pt")
            ranks.expect_end(f"; to go on from its last epoch: yolo-lat train resume={last}")

    def _read(self, spec: DatasetSpec, split: str) -> None:
        self.splits = {
            "train": read_split(spec, "train", progress=MAIN),
            "val": read_split(spec, split, progress=MAIN),
        }
        for part in self.splits.values():
            if not part.labelled:
                raise UserError(f"{part.name} has no annotations, and training needs them; choose another split")

    def get_dataset(self) -> dict[str, Any]:
        """Return the data set's description in Ultralytics' keys."""
        data = ultralytics_data(load_dataset(self.args.data))
        data.setdefault(self.args.split, data["val"])
        if self.args.single_cls:
            data.update(names={0: "item"}, nc=1)
        return data

    def build_dataset(self, img_path: Any, mode: str = "train", batch: int | None = None) -> LatDataset:
        """Build the training set, augmented, or the validation set, letterboxed."""
        return build_dataset(
            self.splits[mode],
            self.args,
            batch,
            stride=max(int(unwrap_model(self.model).stride.max()), 32),
            augment=mode == "train",
            prefix=colorstr(f"{mode}: "),
        )

    def get_dataloader(self, dataset_path: Any, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any:
        """Return what makes this process's batches: from the device's memory, or in a reproducible order."""
        # With cache=disk the first process writes beside the images what the others then find.
        with torch_distributed_zero_first(LOCAL_RANK) if self.args.cache == "disk" else nullcontext():
            dataset = self.build_dataset(dataset_path, mode, batch_size)
        size = batch_size // RANKS
        if self.on_device:
            cache = device_cache(dataset, self.args, self.device)
            if mode == "train":
                return TrainBatches(dataset, cache, self.args, size)
            return ValBatches(dataset, cache, size)
        if mode != "train":
            return val_loader(dataset, batch_size, self.args.workers * 2, self.device)
        batch_size = min(batch_size, len(dataset))
        loader = build_dataloader(dataset, size, self.args.workers, shuffle=False, rank=-1, device=self.device)
        dataset.order = SampleOrder(
            len(dataset), batch_size, self.args.seed, not self.args.rect, max(loader.num_workers, 1)
        )
        return InfiniteDataLoader(
            dataset=dataset,
            batch_size=-(-batch_size // RANKS),
            sampler=SampleKeys(dataset.order, PLACE, RANKS),
            num_workers=loader.num_workers,
            prefetch_factor=4 if loader.num_workers else None,
            pin_memory=loader.pin_memory,
            collate_fn=loader.collate_fn,
            worker_init_fn=seed_worker,
        )

    def data_source(self) -> str:
        """Return in words where batches come from, for the log."""
        if self.on_device:
            loader = self.train_loader.loader
            return f"images in the memory of {self.device}, augmented there ({loader.renderer})"
        return f"{self.train_loader.num_workers * RANKS} dataloader workers"

    def attention_form(self) -> str:
        """Return in words how the model's attention is computed, empty for a model without."""
        layer = next((m for m in unwrap_model(self.model).modules() if isinstance(m, ProjectedELA)), None)
        if layer is None:
            return ""
        half = torch.bfloat16 if self.args.amp == "bf16" else torch.float16
        widths = layer.widths[0] // layer.heads, layer.widths[2] // layer.heads
        choice = choose_form(layer.kernel, self.device, half if self.amp else torch.float32, widths)
        return f"attention in its {choice.form} form: {choice.reason}"

    def begin_epochs(self, epoch: int) -> None:
        """Let the training data start with an epoch, whatever was made ahead."""
        if isinstance(self.train_loader, TrainBatches):
            self.train_loader.epoch = epoch
        elif isinstance(self.train_loader.sampler, SampleKeys):
            self.train_loader.reset()
            self.train_loader.sampler.epoch = epoch

    def _close_dataloader_mosaic(self) -> None:
        if isinstance(self.train_loader, TrainBatches):
            self.train_loader.loader.close_mosaic()
        else:
            super()._close_dataloader_mosaic()
            self.train_loader.reset()

    def _setup_train(self) -> None:
        super()._setup_train()
        self.amp = ranks.from_main(self.amp)
        ranks.copy_from_main(list(self.model.state_dict().values()))
        if not self.on_device and RANKS == 1 and self.teaching is None:
            return
        self.optimizer = fast_optimizer(self.optimizer)
        self._setup_scheduler()
        self.ema = self._average(self.ema.updates)
        dtype = torch.bfloat16 if self.args.amp == "bf16" else torch.float16
        criterion = static_criterion(self._student)
        if self.teaching is not None:
            self.teaching.criterion = criterion  # of the student
        self.fast = TrainStep(
            self.model,
            criterion,
            self.optimizer,
            self.ema,
            self.scaler,
            dtype if self.amp else None,
            capture=self.args.cuda_graph,
        )
        if self.start_epoch and hasattr(self.criterion, "update"):
            self.criterion.updates = self.start_epoch - 1
            self.criterion.update()

    def _do_train(self) -> None:
        self._setup_train()
        TrainLoop(self).run()
        if MAIN:
            launch.finish(self.save_dir)
        if self.fast is not None:
            self.fast.forget()  # graphs hold messages to other processes
        ranks.leave()

    def train_step(self, batch: dict[str, Any], update: bool) -> dict[str, torch.Tensor]:
        """Run forward and backward on a batch, and step the optimizer where `update`; returns losses by name.

        Raises:
            UserError: the device's memory does not hold the batch.
        """
        try:
            if self.fast is not None:
                if not self.on_device:
                    batch |= padded(batch)
                if self.args.multi_scale or not self.on_device:
                    batch = self.preprocess_batch(batch)
                losses = self.fast.step(batch, update)
                self.loss, self.loss_items = self.fast.loss, dict(zip(self.fast.names, losses, strict=True))
                return self.loss_items
            with autocast(torch.bfloat16 if self.args.amp == "bf16" else self.amp, device=self.device.type):
                loss, self.loss_items = self.model(self.preprocess_batch(batch))
                self.loss = loss.sum()
            self.scaler.scale(self.loss).backward()
        except RuntimeError as error:
            if "out of memory" not in str(error).lower():
                raise
            raise UserError(
                f"batch={self.batch_size} at imgsz={self.args.imgsz} does not fit into the memory of {self.device}; "
                "lower batch= or imgsz="
            ) from error
        if update:
            self.optimizer_step()
        return self.loss_items

    def resume_training(self, ckpt: dict[str, Any] | None) -> None:
        """Leave it to the loop to go on from the whole state; without one go on from what the checkpoint holds."""
        if self.state is None:
            super().resume_training(ckpt)
            if self.resume:
                LOGGER.warning(
                    f"{self.args.model} has no resume.pt beside it: training goes on from the averaged weights, with "
                    "other random numbers than it would have had"
                )

    def _load_checkpoint_state(self, ckpt: dict[str, Any]) -> None:
        super()._load_checkpoint_state(ckpt)
        if self.fast is not None:  # Ultralytics has put its own average in the place of ours
            loaded, self.ema = self.ema, self._average(self.ema.updates)
            self.ema.ema.load_state_dict(loaded.ema.state_dict())
            self.fast.ema = self.ema
            self.fast.forget()

    def set_model_attributes(self) -> None:
        """Give the model what it has of the data set and the arguments."""
        super().set_model_attributes()
        if self.args.sync_bn:
            self.model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        if self._teacher is not None:
            self.model = self.teaching = Distillation(self.model, self._teacher, self.args.distill_on)

    @property
    def _student(self) -> Any:
        """The model that is trained and kept, without its teacher if it has one."""
        return unwrap_model(self.model) if self.teaching is None else self.teaching.student_model

    def _average(self, updates: int) -> FusedEMA:
        """Begin an average of the model."""
        if self.teaching is None:
            return FusedEMA(self.model, updates=updates)
        self.teaching.let_go()
        average = FusedEMA(self._student, updates=updates)
        self.teaching.bare(average.ema)
        return average

    def _handle_nan_recovery(self, epoch: int) -> bool:
        model, self.model = self.model, self._student  # the checkpoint has no teacher
        if self.teaching is not None:
            self.teaching.let_go()
        try:
            return bool(super()._handle_nan_recovery(epoch))
        except RuntimeError as error:
            raise UserError(f"{error}; lower lr0=, or give amp=False") from error
        finally:
            self.model = model
            if self.teaching is not None:
                self.teaching.mend()

    def validate(self) -> Any:
        """Evaluate the averaged model, each process on its part of the images; the first one gets the numbers."""
        ranks.copy_from_main(list(self.ema.ema.buffers()))
        return super().validate()

    def save_model(self) -> bool:
        """Write last.pt, best.pt and those that `save_period` asks for, each whole or not at all."""
        folder, names = self.wdir, (self.last, self.best)
        with staged(folder) as stage:
            self.wdir, self.last, self.best = stage, stage / self.last.name, stage / self.best.name
            try:
                saved = bool(super().save_model())
            finally:
                self.wdir, (self.last, self.best) = folder, names
        trust_files(names)  # our own, whatever classes the model has
        return saved

    def train(self) -> None:
        """Train, in other processes if there are several devices.

        Raises:
            UserError: one of them has ended before its time.
        """
        try:
            if not self.ddp:
                super().train()
                return
            launch.run(self, len(self.args.device.split(",")))
            trust_files((self.last, self.best))  # which those processes have written
            self.validator = SimpleNamespace(metrics=LatMetrics.read(self.save_dir / "metrics.json"))
        finally:
            self._let_go()

    def plot_training_samples(self, batch: dict[str, Any], ni: int) -> None:
        """Draw a batch with its boxes."""
        shown = self.train_loader.labelled(batch) if isinstance(self.train_loader, TrainBatches) else batch
        file = self.save_dir / f"train_batch{ni}.jpg"
        plot_images(labels=shown, paths=shown["im_file"], fname=file, on_plot=self.on_plot)

    def get_model(
        self,
        cfg: str | dict[str, Any],
        weights: torch.nn.Module | None = None,
        verbose: bool = True,
    ) -> LatModel:
        """Build the model for the data set's classes and load weights into it."""
        content = cfg if isinstance(cfg, dict) else load_model_yaml(cfg)
        model = LatModel(content, ch=self.data["channels"], nc=self.data["nc"], verbose=verbose and MAIN)
        self.set_model_names_for_load(model)
        if weights:
            model.load(weights)
        return model

    def get_validator(self) -> LatValidator:
        """Return the validator that runs after each epoch."""
        return LatValidator(
            self.test_loader, save_dir=self.save_dir, args=self._stock_args(), _callbacks=self.callbacks
        )

    def _stock_args(self) -> SimpleNamespace:
        """Return the arguments that Ultralytics knows."""
        args = copy(self.args)
        for name in OWN_OPTIONS:
            delattr(args, name)
        args.cache = False if self.on_device else args.cache
        return args

    def final_eval(self) -> None:
        """Strip the checkpoints of the optimizer, validate the best as `val` does, and write safetensors too."""
        if MAIN:
            with staged(self.wdir) as stage, quiet():
                results = strip_optimizer(self.last, str(stage / self.last.name)).get("train_results")
                strip_optimizer(self.best, str(stage / self.best.name), updates={"train_results": results})
        LOGGER.info(f"\nValidating {self.best}...")
        self.validator.args.plots, self.validator.args.compile = self.args.plots, False
        if self.on_device:
            self.validator.dataloader, self.validator.args.rect = None, True
        with ranks.main_file(self.best) as best:
            self.metrics = self.validator(model=best)
        self.metrics.pop("fitness", None)
        self.epoch += 1  # for loggers, which take this for one more epoch
        self.run_callbacks("on_fit_epoch_end")
        self.epoch -= 1
        if MAIN:
            for checkpoint in (self.best, self.last):
                pt_to_safetensors(checkpoint, checkpoint.with_suffix(".safetensors"))


def resumable(checkpoint: dict[str, Any] | None, path: str | Path) -> bool:
    """Whether a checkpoint, loaded from `path`, belongs to an unfinished training."""
    if checkpoint is not None and Path(path).with_name(FILE_NAME).is_file():
        return True
    if checkpoint is None or checkpoint.get("optimizer") is None:
        return False
    return 0 <= checkpoint.get("epoch", -1) < checkpoint["train_args"]["epochs"] - 1


def find_checkpoint(path: str | Path) -> Path:
    """Return the checkpoint to resume from.

    Raises:
        UserError: no such file.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"resume={path}: no such checkpoint; give the last.pt in the weights folder of a run")
    return file
