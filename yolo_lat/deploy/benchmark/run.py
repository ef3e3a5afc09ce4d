"""The whole benchmark: export, trial, rounds, cell by cell."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from rich.progress import Progress

from yolo_lat.deploy.benchmark.contenders import CONTENDERS, Contender, Pipeline, cpu_nodes, input_shape
from yolo_lat.deploy.benchmark.environment import command_line, describe_machine, state, versions
from yolo_lat.deploy.benchmark.export import ModelFile, make_file, measure_accuracy
from yolo_lat.deploy.benchmark.images import Pictures, load_pictures
from yolo_lat.deploy.benchmark.measure import FAILURES, Search, first_sentence, interleave, ratio
from yolo_lat.deploy.benchmark.memory import METHOD, device_memory_mb, host_memory_mb
from yolo_lat.deploy.benchmark.plan import Cell, Entry, Plan
from yolo_lat.deploy.benchmark.prepare import AS_GIVEN, Files, Key, exporters, key_of, prepare, progress_bar
from yolo_lat.deploy.benchmark.record import Accuracy, Measured, Model, Record, Result
from yolo_lat.deploy.benchmark.settings import VARIANTS, Setting, Variant
from yolo_lat.deploy.session import open_session


class Benchmark:
    """A benchmark on its way.

    Args:
        plan: what to measure.
        save: is given the record after every cell.

    Attributes:
        record: what is measured so far.
    """

    def __init__(self, plan: Plan, save: Callable[[Record], None] = lambda record: None) -> None:
        self.plan, self._save = plan, save
        self.pictures: Pictures = load_pictures(plan.data, plan.source, plan.seed)
        how = {key: getattr(plan, key) for key in ("rounds", "runs", "warmup", "trial", "seed", "data")}
        how |= {
            "references": list(plan.references),
            "pictures": f"{len(self.pictures.images_bgr)}, {self.pictures.origin}",
            "settings": [asdict(setting) for setting in plan.settings],
            "search": "every setting"
            if plan.exhaustive
            else "layouts with a CUDA graph, then the best of them without; all where no graph can be captured",
            "variants": [{"name": variant.name, "export": dict(variant.export)} for variant in VARIANTS],
        }
        machine = describe_machine(plan.device, plan.threads) | {"before": state(plan.device)}
        started = datetime.now().astimezone().isoformat(timespec="seconds")
        memory = METHOD[plan.device.partition(":")[0]]
        self._chosen: dict[Key, Setting] = {}  # at forward, for pipeline
        self.record = Record(command_line(), started, machine, versions(plan.commit), how, memory)

    def run(self) -> Record:
        """Measure every cell and return the record.

        Raises:
            UserError: a model, a file or data that do not fit what is asked for.
        """
        plan = self.plan
        with progress_bar() as progress:
            with exporters(plan) as pool:  # gone before anything is timed
                files = prepare(plan, pool, progress)
                self._describe(files)
                self._accuracy(pool, files, progress)
            cells = list(plan.cells())
            bar = progress.add_task("Measuring", total=len(cells) * len(plan.entries) * (2 + plan.rounds))
            with _opencv_threads(plan.threads):
                for cell in cells:
                    progress.update(bar, description=f"Measuring {cell}")
                    results = self._measure(cell, files, partial(progress.advance, bar))
                    self.record.cells.append(Measured(**asdict(cell), results=results))
                    self.record.machine["after"] = state(plan.device)
                    self.record.complete = cell == cells[-1]
                    self._save(self.record)
        return self.record

    def _describe(self, files: Files) -> None:
        """Note what is known of the models."""
        for entry in self.plan.entries:
            own = {key: forms[0][1] for key, forms in files.found.items() if key[0] == entry.name}
            weights = entry.weights(self.plan.seed)
            gflops = {str(key[1]): file.gflops for key, file in own.items() if file.gflops is not None}
            parameters = next((file.parameters for file in own.values()), None)
            self.record.models.append(Model(entry.name, entry.source, weights, parameters, gflops))

    def _accuracy(self, pool: Executor | None, files: Files, progress: Progress) -> None:
        """Measure AP of models with trained weights, where data are given."""
        plan = self.plan
        if plan.data is None or pool is None:
            return
        trained = [entry for entry in plan.entries if entry.is_trained]
        bar = progress.add_task("Evaluating", total=len(trained) * len(plan.imgsz) * len(plan.precision))
        for entry in trained:
            for imgsz in plan.imgsz:
                for precision in plan.precision:
                    progress.update(bar, description=f"Evaluating {entry.name}")
                    found = self._evaluate(pool, entry, Cell(imgsz, 1, precision, "forward"), files)
                    self.record.model(entry.name).accuracy.append(found)
                    progress.advance(bar)

    def _evaluate(self, pool: Executor, entry: Entry, cell: Cell, files: Files) -> Accuracy:
        plan = self.plan
        usual = AS_GIVEN if entry.is_onnx else VARIANTS[0]
        variant, file = files.found.get(key_of(entry.name, cell), [(usual, None)])[0]
        try:
            if file is None and not entry.is_onnx:
                task = pool.submit(make_file, entry, cell, VARIANTS[0], plan.device, plan.seed, plan.folder)
                file = task.result()
            path = file.path if file else entry.source
            numbers = pool.submit(measure_accuracy, path, str(plan.data), cell.imgsz, plan.device).result()
        except Exception as error:  # speed is measured all the same, with the reason in place of an accuracy
            return Accuracy(cell.imgsz, cell.precision, None, None, f"not measured: {first_sentence(error)}")
        note = f"{plan.data} val, {variant.name}"
        return Accuracy(cell.imgsz, cell.precision, numbers["AP"], numbers["AP50"], note)

    def _measure(self, cell: Cell, files: Files, advance: Callable[[], None]) -> list[Result]:
        """Choose settings, measure interleaved rounds, and close every session of a cell."""
        results = {entry.name: Result(entry.name) for entry in self.plan.entries}
        contenders: dict[str, Contender] = {}
        for name, result in results.items():
            key = key_of(name, cell)
            result.trials = files.failed.get(key, [])
            if key not in files.found:
                result.error = result.trials[0].error
            elif contender := self._choose(cell, files.found[key], result):
                contenders[name] = contender
            advance()
        times, errors = interleave(contenders, self.plan.rounds, self.plan.runs, self.plan.warmup, block_done=advance)
        for name, found in times.items():
            summarise(results[name], found)
            if isinstance(contender := contenders[name], Pipeline):
                results[name].detections = round(contender.boxes / contender.images, 3)
            for reference in self.plan.references:
                if reference in times:
                    results[name].ratios[reference] = ratio(times[reference], found)
        for name, error in errors.items():
            results[name].error = error
        contenders.clear()
        gc.collect()  # sessions are closed by their last reference
        return list(results.values())

    def _choose(self, cell: Cell, forms: list[tuple[Variant, ModelFile]], result: Result) -> Contender | None:
        """Try settings, and for `pipeline` variants, and return the fastest, opened; or note why there is none."""
        plan = self.plan
        paths = {variant.name: file for variant, file in forms}

        def open_contender(setting: Setting, variant: Variant) -> Contender:
            path = Path(paths[variant.name].path)
            return CONTENDERS[cell.boundary](path, plan.device, setting, plan.threads, cell, self.pictures)

        search = Search(open_contender, plan.warmup, plan.trial, partial(device_memory_mb, plan.device))
        first = forms[0][0]
        if known := self._chosen.get(key_of(result.model, cell)):
            search.attempt(known, first)
        else:
            search.settings(plan.settings, first, plan.exhaustive)
        if cell.boundary == "pipeline" and search.choice:
            setting = search.choice[0]
            for variant, _ in forms[1:]:
                search.attempt(setting, variant)
        result.trials = result.trials + search.trials
        if search.best is None or search.choice is None:
            result.error = search.trials[0].error
            return None
        setting, variant = search.choice
        self._chosen[key_of(result.model, cell)] = setting
        file = paths[variant.name]
        result.setting, result.variant = setting.name, variant.name
        result.provider, result.file, result.sha256 = search.best.provider, Path(file.path).name, file.sha256
        try:
            result.cpu_nodes = cpu_nodes(Path(file.path), plan.device)
            result.memory_mb = self._memory(file, cell, search)
        except FAILURES as error:
            result.error = first_sentence(error)
            return None
        return search.best

    def _memory(self, file: ModelFile, cell: Cell, search: Search) -> float | None:
        """Return the memory of the chosen session in MiB; that of `pipeline` is what `forward` has."""
        if cell.boundary == "pipeline":
            return None
        if self.plan.device != "cpu":
            assert search.choice
            chosen = (search.choice[0].name, search.choice[1].name)
            return next(trial.memory_mb for trial in search.trials if (trial.setting, trial.variant) == chosen)
        session = open_session(Path(file.path), "cpu")
        return host_memory_mb(file.path, self.plan.threads, input_shape(session, cell, Path(file.path)))


def summarise(result: Result, times: np.ndarray) -> None:
    """Fill in the statistics of (rounds, runs) milliseconds."""
    result.rounds_ms = np.median(times, axis=1).round(5).tolist()
    percentiles = np.percentile(times, [50, 5, 95]).round(5).tolist()
    result.median_ms, result.p5_ms, result.p95_ms = percentiles


@contextmanager
def _opencv_threads(threads: int) -> Iterator[None]:
    """Let OpenCV use as many threads as the sessions."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(threads)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
