"""All that reads what someone else made, as functions of bytes: they return, or raise UserError, or are wrong."""

from __future__ import annotations

import io
import os
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fault_injection import seeds

Run = Callable[[bytes], None]
LONGEST = 2000  # characters of a message


class WrongError(AssertionError):
    """A reader let something pass that it must not, or refused it in a way that nobody can read."""


@dataclass(frozen=True)
class Target:
    """A reader to feed.

    Attributes:
        make: given an empty folder to work in, returns the function of bytes.
        seeds: inputs to begin with.
        share: of all executions; slower readers get fewer.
        longest: bytes of an input at most.
    """

    make: Callable[[Path], Run]
    seeds: Callable[[], list[bytes]]
    share: float
    longest: int = 1024


def execute(run: Run, content: bytes) -> str:
    """Return "read" or "refused".

    Raises:
        Exception: whatever else came of it, which is a fault of the product.
    """
    from yolo_lat.errors import UserError
    from yolo_lat.serve.refusal import RefusalError

    try:
        run(content)
    except (UserError, RefusalError) as error:
        _check_sentence(str(error))
        return "refused"
    return "read"


def _check_sentence(text: str) -> None:
    if len(text.splitlines()) != 1 or not 10 < len(text) < LONGEST:
        raise WrongError(f"not one sentence of 10 to {LONGEST} characters: {text[:300]!r}")


# Annotations


def _spec(folder: Path) -> Any:
    from yolo_lat.data.spec import DatasetSpec

    return DatasetSpec("fuzz", folder / "data.yaml", folder, ("cat", "dog"), {})


def _check_labels(images: list[Any], faults: list[Any]) -> None:
    from yolo_lat.errors import UserError

    for image in images:
        count = len(image.class_ids)
        if (image.boxes_xywh.shape, image.areas.shape, image.crowd.shape) != ((count, 4), (count,), (count,)):
            raise WrongError("arrays of different lengths")
        if (
            not all(np.isfinite(a).all() for a in (image.boxes_xyxy, image.areas))
            or (image.boxes_xywh[:, 2:] < 0).any()
        ):
            raise WrongError("a box that is none")
        if not ((image.class_ids >= 0) & (image.class_ids < 2)).all():
            raise WrongError("a class that there is none of")
    for fault in faults:
        _check_sentence(fault.message)
    if faults:
        raise UserError(faults[0].message)


def yolo_labels(folder: Path) -> Run:
    from yolo_lat.data.yolo_txt import read_yolo_labels

    (folder / "labels").mkdir()
    spec = _spec(folder)

    def run(content: bytes) -> None:
        (folder / "labels/a.txt").write_bytes(content)
        faults: list[Any] = []
        _check_labels([read_yolo_labels(folder / "images/a.png", 1, (60, 40), spec, faults.append)], faults)

    return run


def voc_labels(folder: Path) -> Run:
    from yolo_lat.data.voc_xml import read_voc_labels, voc_names

    (folder / "Annotations").mkdir()
    spec, image = _spec(folder), folder / "images/a.png"

    def run(content: bytes) -> None:
        (folder / "Annotations/a.xml").write_bytes(content)
        faults: list[Any] = []
        labels = read_voc_labels(image, 1, (60, 40), spec, faults.append)
        voc_names([image], [].append)
        _check_labels([labels], faults)

    return run


def coco_labels(folder: Path) -> Run:
    from yolo_lat.data.coco_json import read_coco

    spec, file = _spec(folder), folder / "a.json"

    def run(content: bytes) -> None:
        file.write_bytes(content)
        faults: list[Any] = []
        found = read_coco(file, folder, spec, lambda paths: [(60, 40)] * len(paths), lambda paths: paths, faults.append)
        _check_labels(found.images, faults)

    return run


def coco_results(folder: Path) -> Run:
    from yolo_lat.data.labels import DetectionSplit, image_labels
    from yolo_lat.engine.evaluate import evaluate_detections, read_results

    image = image_labels(folder / "a.png", 1, (60, 40), [0], [[6, 4, 30, 20]])
    split, file = DetectionSplit("fuzz val", ("cat", "dog"), (3, 7), [image]), folder / "a.json"

    def run(content: bytes) -> None:
        file.write_bytes(content)
        rows = read_results(file, split)
        if not all(np.isfinite([*row["bbox"], row["score"]]).all() for row in rows):
            raise WrongError("a detection that is none")
        if len(content) % 64 == 0:  # slow
            evaluate_detections(split, rows, fast=True)

    return run


# YAML


def data_yaml(folder: Path) -> Run:
    from yolo_lat.data import data_yaml as module

    (folder / "images").mkdir()
    # A YAML may name any folder, and all of a disk may be searched for images.
    module.list_images = lambda _: []  # type: ignore[assignment]
    (folder / "a.json").write_bytes(seeds.COCO)
    file = folder / "data.yaml"

    def run(content: bytes) -> None:
        file.write_bytes(content)
        spec = module.read_data_yaml(file)
        for split in spec.splits:
            spec.missing(split)
        if len(set(spec.names)) != len(spec.names):
            raise WrongError("a class name twice")

    return run


def registry_yaml(folder: Path) -> Run:
    from yolo_lat.data import data_yaml as module
    from yolo_lat.data.registry import load_dataset, registry

    module.list_images = lambda _: []  # type: ignore[assignment]
    os.environ["YOLO_LAT_DATASETS"] = str(folder)
    _keep_shipped_registry(folder)

    def run(content: bytes) -> None:
        (folder / "datasets.yaml").write_bytes(content)
        for name, entry in registry().items():
            if entry["file"] == folder / "datasets.yaml":
                load_dataset(name)

    return run


def _keep_shipped_registry(folder: Path) -> None:
    """Read the package's own YAML once, which takes longer than all else; those in `folder` are read every time."""
    from yolo_lat.data import registry

    read, shipped = registry.read_yaml, registry.read_yaml(registry.resource("datasets.yaml"))
    registry.read_yaml = lambda file: dict(shipped) if file.parent != folder else read(file)  # type: ignore[assignment]


def recipe_yaml(folder: Path) -> Run:
    from yolo_lat.engine.recipe import read_recipe

    file = folder / "recipe.yaml"

    def run(content: bytes) -> None:
        file.write_bytes(content)
        read_recipe(file)

    return run


def zones_yaml(folder: Path) -> Run:
    from yolo_lat.demo.zones import Zones, read_zones

    file, boxes = folder / "zones.yaml", np.array([[1.0, 1, 9, 9]])

    def run(content: bytes) -> None:
        file.write_bytes(content)
        zones = Zones(*read_zones(file), (640, 480))
        zones.update(boxes, np.array([0]), np.array([1]), (640, 480))
        zones.outlines((320, 240))

    return run


_MOST, _MOST_REPEATS = 64, 3  # a YAML may describe a network that needs any memory and time; SECURITY.md says so


def model_yaml(folder: Path) -> Run:
    from ultralytics.utils import LOGGER

    from yolo_lat.nn import LatModel, load_model_yaml

    LOGGER.setLevel("CRITICAL")
    file = folder / "model.yaml"

    def small(value: Any) -> bool:
        if isinstance(value, dict):
            return all(map(small, [*value, *value.values()]))
        if isinstance(value, list):
            return len(value) < 20 and all(map(small, value))
        return not isinstance(value, int | float) or abs(value) <= _MOST

    def run(content: bytes) -> None:
        file.write_bytes(content)
        read = load_model_yaml(file)
        rows = [row for key in ("backbone", "head") if isinstance(read[key], list) for row in read[key]]
        repeats = [row[1] for row in rows if isinstance(row, list) and len(row) > 1 and isinstance(row[1], int)]
        if small(read) and max(repeats, default=0) <= _MOST_REPEATS:
            LatModel(read, verbose=False)

    return run


# The command line


def command_line(folder: Path) -> Run:
    from yolo_lat import cli
    from yolo_lat.cli_modes import MODES
    from yolo_lat.cli_parse import parse
    from yolo_lat.data.registry import load_dataset
    from yolo_lat.errors import UserError

    os.chdir(folder)
    os.environ["YOLO_LAT_DATASETS"] = str(folder)
    _keep_shipped_registry(folder)
    modes = [*MODES]

    def run(content: bytes) -> None:
        words = [os.fsdecode(word) for word in content[1:].split(b"\0")]
        name, rest = modes[(content or b"\0")[0] % len(modes)], words
        try:
            if content[:1] > b"\xf0":
                name, rest = cli._mode_name(words)
            options = parse(MODES[name], rest) if name in MODES else {}
            if "shapes" not in str(options.get("data", "shapes")):  # which is drawn where it is missing
                load_dataset(options["data"])
        except Exception as error:
            if message := cli.explain(error):  # what the command line prints, as words come from nowhere else
                raise UserError(message) from error
            raise

    return run


# Weights and states


def _watched(run: Run) -> Run:
    """Let nothing pass that starts a program, opens a connection or writes a file."""
    events: list[str] = []
    watching = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not watching:
            return
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if writes or event.startswith(
            ("os.system", "subprocess", "os.exec", "os.fork", "os.spawn", "os.posix", "socket")
        ):
            events.append(event)

    sys.addaudithook(hook)

    def watched(content: bytes) -> None:
        nonlocal watching
        watching = True
        try:
            run(content)
        finally:
            watching = False
            if found := events[:]:
                events.clear()
                raise WrongError(f"opening a file did {found}")

    return watched


def _archive(content: bytes) -> bytes:
    """Return an archive of torch around a pickle, unless the bytes are one themselves."""
    if content[:2] in (b"PK", b"\0P"):
        return content
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in {**seeds.storages(), "data.pkl": content}.items():
            archive.writestr(f"archive/{name}", data)
    return stream.getvalue()


def checkpoint_pt(folder: Path) -> Run:
    from ultralytics.utils import LOGGER

    from yolo_lat.engine.checkpoint import load_pt

    LOGGER.setLevel("CRITICAL")
    file = folder / "a.pt"
    load = _watched(lambda _: load_pt(file))

    def run(content: bytes) -> None:
        file.write_bytes(_archive(content))
        load(content)

    return run


def resume_pt(folder: Path) -> Run:
    from yolo_lat.engine.resume import read_state

    load = _watched(lambda _: read_state(folder / "last.pt"))

    def run(content: bytes) -> None:
        (folder / "resume.pt").write_bytes(_archive(content))
        load(content)

    return run


def safetensors(folder: Path) -> Run:
    from ultralytics.utils import LOGGER

    from yolo_lat import YOLOLAT

    LOGGER.setLevel("CRITICAL")
    file = folder / "a.safetensors"
    load = _watched(lambda _: YOLOLAT(file))
    weights = seeds.tiny_safetensors()
    size = int.from_bytes(weights[:8], "little")

    def run(content: bytes) -> None:
        # The header is what can be wrong; weights are numbers of any value.
        whole = (
            content[1:]
            if content[:1] == b"\xff"
            else len(content).to_bytes(8, "little") + content + weights[8 + size :]
        )
        file.write_bytes(whole)
        load(content)

    return run


def onnx_file(folder: Path) -> Run:
    from yolo_lat import YOLOLAT

    file = folder / "a.onnx"

    def run(content: bytes) -> None:
        file.write_bytes(content)
        YOLOLAT(file)

    return run


def onnx_metadata(folder: Path) -> Run:
    import onnx

    from yolo_lat import YOLOLAT
    from yolo_lat.deploy import OnnxDetector

    file = folder / "a.onnx"
    model = onnx.load_from_string(seeds.onnx_seeds()[0])
    keys = [entry.key for entry in model.metadata_props] + ["args", "preprocessing", "output"]

    def run(content: bytes) -> None:
        values = [part.decode("utf-8", "replace") for part in content.split(b"\n")]
        onnx.helper.set_model_props(model, dict(zip(keys, values, strict=False)))
        onnx.save(model, file)
        from yolo_lat.errors import UserError

        refused = None
        for load in (YOLOLAT, lambda path: OnnxDetector(path, threads=1)):
            try:
                load(file)
            except UserError as error:
                refused = error
        if refused:
            raise refused

    return run


# Pictures


def image_file(folder: Path) -> Run:
    from yolo_lat.data.images import check_pixels, image_size
    from yolo_lat.data.inspect_image import inspect

    os.environ["YOLO_LAT_MAX_MEGAPIXELS"] = "1"
    file = folder / "a.png"

    def run(content: bytes) -> None:
        from yolo_lat.errors import UserError

        file.write_bytes(content)
        refused = None
        for look in (check_pixels, image_size, lambda path: inspect(path, str)):
            try:
                look(file)
            except UserError as error:
                _check_sentence(str(error))
                refused = error
        if refused:
            raise refused

    return run


def upload(folder: Path) -> Run:
    from yolo_lat.serve.pictures import decode
    from yolo_lat.serve.uploads import check_type, picture_of

    def run(content: bytes) -> None:
        header, _, body = content.partition(b"\n\n")
        kind = header.decode("latin-1")
        check_type(kind)
        picture = picture_of(bytearray(body), kind)
        if decode(picture, 1_000_000).image_bgr.size > 3_000_000:
            raise WrongError("a picture of more pixels than allowed")

    return run


# Records and states of runs


def benchmark_record(folder: Path) -> Run:
    from yolo_lat.deploy.benchmark.record import differences, read_record
    from yolo_lat.deploy.benchmark.table import tables

    file = folder / "a.json"

    def run(content: bytes) -> None:
        file.write_bytes(content)
        record = read_record(file)
        differences(record, record)
        tables(record)

    return run


def collection_state(folder: Path) -> Run:
    from yolo_lat.collection.run_folder import RunFolder, _write_inputs

    files = [folder / "run.json", folder / "detections/0-1/_part.json", folder / "inputs.parquet"]
    files[1].parent.mkdir(parents=True)
    _write_inputs(files[2], iter(["a", "b"]))
    whole = {files[0]: b'{"model": "a"}', files[2]: files[2].read_bytes()}
    whole[files[1]] = b'{"start": 0, "stop": 1, "images": 1, "failed": 0, "detections": 2, "seconds": 0.5}'

    def run(content: bytes) -> None:
        for file, right in whole.items():
            file.write_bytes(right)
        files[(content or b"\0")[0] % 3].write_bytes(content[1:])
        with RunFolder.existing(folder) as state:
            state.settings.get("model")
            sum(part.stop + part.images for part in state.parts())
            if not all(isinstance(name, str) for name in [*state.inputs(0)]) or state.total < 0:
                raise WrongError("an input that is no path")

    return run


def demo_state(folder: Path) -> Run:
    from yolo_lat.demo.run_folder import RunFolder

    parts = folder / "parts"
    settings = b'{"options": {"model": "a.onnx", "source": "a.mp4"}, "live": false, "fingerprint": {}}'
    part = b'{"frames": 2, "next_frame": 2, "start_s": 0.0, "whole": true, "tracker": null, "faults": {}, "dropped": 0}'

    def run(content: bytes) -> None:
        parts.mkdir(exist_ok=True)
        which = (content or b"\0")[0] % 3
        for number, (file, right) in enumerate(
            ((folder / "run.json", settings), (parts / "00000.json", part), (parts / "00000.jsonl", b'{"frame": 0}\n'))
        ):
            file.write_bytes(content[1:] if which == number else right)
        state = RunFolder.existing(folder)
        try:
            sum(part.next_frame for _, part in state.parts())
            list(state.records())
        finally:
            state.close(complete=False)

    return run


TARGETS: dict[str, Target] = {
    "YOLO label files": Target(yolo_labels, seeds.rows, 12, 256),
    "COCO JSON": Target(coco_labels, lambda: [seeds.COCO], 8, 1024),
    "Pascal VOC XML": Target(voc_labels, seeds.voc_seeds, 12, 512),
    "COCO results": Target(coco_results, seeds.results, 8, 512),
    "data YAML": Target(data_yaml, seeds.data_yamls, 4, 256),
    "registry of data sets": Target(registry_yaml, seeds.registries, 1, 512),
    "recipe": Target(recipe_yaml, seeds.recipes, 4, 256),
    "zones": Target(zones_yaml, seeds.zones, 4, 256),
    "model YAML": Target(model_yaml, lambda: [seeds.MODEL], 3, 512),
    "command line": Target(command_line, seeds.commands, 12, 512),
    "checkpoint (.pt)": Target(checkpoint_pt, seeds.pickles, 3, 32768),
    "state of a training (resume.pt)": Target(resume_pt, seeds.pickles, 6, 4096),
    "safetensors": Target(safetensors, seeds.headers, 3, 8192),
    "ONNX file": Target(onnx_file, seeds.onnx_seeds, 8, 1024),
    "metadata of an ONNX file": Target(onnx_metadata, seeds.settings, 1, 256),
    "image file": Target(image_file, seeds.pictures, 6, 1024),
    "upload": Target(upload, seeds.uploads, 6, 1024),
    "record of a benchmark": Target(benchmark_record, seeds.records, 6, 2048),
    "state of a collection run": Target(collection_state, seeds.collection_seeds, 4, 1024),
    "state of a demo run": Target(demo_state, seeds.demo_seeds, 6, 512),
}
