"""What the command line knows about its modes and keys.

The keys of Ultralytics are read from its `cfg/default.yaml` as text: importing Ultralytics (and torch) takes seconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from yolo_lat.cli_kinds import COUNT, ENGINE_KINDS, NUMBER, PATH, RESUME, SEED, SIZE, SOURCE, WHOLE, Kind, one_of
from yolo_lat.engine.mode_keys import OTHER_TASKS, does_nothing
from yolo_lat.engine.train_options import DEPRECATED_KEYS, OWN_OPTIONS
from yolo_lat.errors import UserError, nearest

# Keys that may stand alone for key=True although their default is not a boolean, as in Ultralytics.
BARE_KEYS = ("half", "int8", "end2end", "nms")
# Known, but refused unless they ask for nothing: of other tasks, or with results that only Python callers see.
HIDDEN_KEYS = (*OTHER_TASKS, "embed")
# What Ultralytics says of its keys that is not so here.
_OUR_TEXTS = {"amp": "precision: True (bfloat16 on GPUs that have it, otherwise float16), 'fp16', 'bf16' or False"}
_HEADING = re.compile(r"# (.+?) -{3,}$")
_SETTING = re.compile(r"(\w+):\s*(.*?)\s*#\s*(?:\([^)]*\)\s*)?(.+)$")


@dataclass(frozen=True)
class Key:
    """One `key=value` of the command line.

    Attributes:
        name: the word before the equals sign.
        default: as the user would write it, empty when there is none.
        text: what it does, in a line.
        kind: the values that it takes, besides None where it has no default; unless given, what takes them checks them.
    """

    name: str
    default: str
    text: str
    kind: Kind | None = None

    @property
    def stands_alone(self) -> bool:
        """Whether the bare word `name` means `name=True`."""
        return self.default in {"True", "False"} or self.name in BARE_KEYS

    def check(self, value: Any) -> None:
        """Raise UserError for a value that the key does not take."""
        absent = value is None and not self.default
        if self.kind is not None and not absent and not self.kind.holds(value):
            raise UserError(f"{self.name}={value}: must be {self.kind.text}")


@dataclass(frozen=True)
class Mode:
    """One mode of the command line, enough to explain and check it.

    Attributes:
        name: First word of the command.
        summary: One sentence for the overview.
        examples: Complete commands; the first is quoted by errors about missing keys.
        keys: Keys of ours, and those of Ultralytics whose meaning or default differs in this mode.
        general: Names of Ultralytics keys that the help lists although their section is not in `sections`.
        sections: Sections of Ultralytics' `default.yaml` that the help lists. A mode without any takes only `keys`.
        words: The key that words without `key=` are values of, if there is one.
        several: Whether there may be more than one such word.
    """

    name: str
    summary: str
    examples: tuple[str, ...]
    keys: tuple[Key, ...]
    general: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()
    words: str = ""
    several: bool = False

    @property
    def usage(self) -> str:
        """Return how a command in this mode looks."""
        words = [self.words.upper()] * (1 + self.several)
        return " ".join(["yolo-lat", self.name, *filter(None, words), "..." if self.several else "key=value ..."])

    def accepted(self) -> dict[str, Key]:
        """Return every key that may be given in this mode, by name."""
        keys: dict[str, Key] = {}
        if self.sections:
            keys |= {name: Key(name, "", "") for name in DEPRECATED_KEYS}
            keys |= {key.name: key for section in engine_sections().values() for key in section}
        return keys | {key.name: key for key in self.keys}

    def check_key(self, name: str) -> None:
        """Raise UserError unless the key `name` may be given in this mode."""
        accepted = self.accepted()
        if name in accepted:
            return
        if owners := [mode.name for mode in MODES.values() if name in {key.name for key in mode.keys}]:
            hint = f"; it belongs to {' and '.join(owners)}"
        else:
            hint = nearest(name, accepted) or f"; yolo-lat {self.name} --help lists the keys"
        raise UserError(f"unknown key '{name}' for {self.name}{hint}")

    def groups(self) -> Iterator[tuple[str, list[Key]]]:
        """Yield the titles and keys of the help, every key once."""
        accepted = self.accepted()
        apart = {*(key.name for key in self.keys), *HIDDEN_KEYS}
        yield "Main keys", list(self.keys)
        if self.general:
            yield "General keys", [accepted[name] for name in self.general]
        for title in self.sections:
            section = engine_sections()[title]
            yield title, [key for key in section if key.name not in apart and not does_nothing(self.name, key.name)]


_MODEL_IS = (
    "model name such as yolo-lat-n, weights such as yolo-lat-n-voc12, or a .yaml, .pt, .safetensors or .onnx file"
)
_MODEL = Key("model", "", _MODEL_IS)
_MODEL_OR_BEST = Key("model", "", f"{_MODEL_IS}; the best weights that ship unless given")
_DATA = Key("data", "", "data set name such as coco, or a data .yaml file")
_SCALE = Key("scale", "", "which scale of a model .yaml to build: p, n, s, m, l or x")
_TRUST = Key("trust", "False", "open a .pt whatever it holds, which may run code; for files that you made yourself")
_SOURCE = Key("source", "", "image, video, folder, URL or stream; 0 is the first webcam", SOURCE)
_BATCH = Key("batch", "1", "images per batch", COUNT)
_HALF = Key("half", "False", "compute in 16-bit floating point, short for quantize=16")
_WHERE = ("device", "project", "name", "exist_ok")
_DOWNLOAD = Key("download", "False", "fetch the data set first where it is missing and its YAML says from where")
_AUGMENTATIONS = Key("augmentations", "", "list of albumentations transforms, easier to write in a recipe")
_DATA_WORD = Key("data", "", "data set name such as coco, or a data .yaml file; the word alone will do")
_DIRECTORY = Key("directory", "", "new folder for the data set and its data.yaml")
_IMAGES = Key("images", "copy", "copy the image files, or link to them")
_CROWD = Key("crowd", "", "drop leaves crowds out, keep makes them ordinary boxes; YOLO, which has none, needs one")
_OUTSIDE = Key("outside", "", "clip cuts boxes at the edge of the image")
_SHEET = (Key("samples", "24", "number of images", WHOLE), Key("seed", "0", "which images are drawn"))
_SPLIT = Key("split", "train", "train, val or test", one_of("train", "val", "test"))
_BOX_VOTE = Key(
    "box_vote",
    "",
    "overlap, 0.8 say, from which boxes vote on the one that suppression keeps: it becomes their mean, which is more "
    "precise",
    NUMBER,
)
_RUN = (_MODEL_OR_BEST, _SOURCE, _SCALE, _TRUST, _BATCH)
_DETECT = ("imgsz", "save", "iou", "max_det", "quantize", "nms", *_WHERE)

MODES = {
    mode.name: mode
    for mode in (
        Mode(
            "train",
            "Train a detector, or continue an interrupted training.",
            examples=(
                "yolo-lat train model=yolo-lat-n data=coco epochs=300 device=0,1",
                "yolo-lat train model=cfg/models/yolo-lat.yaml scale=n data=my-data.yaml cfg=small",
                "yolo-lat train model=yolo-lat-p data=my-data.yaml cache=device cuda_graph device=0",
                "yolo-lat train resume=runs/detect/train/weights/last.pt",
            ),
            keys=(
                _MODEL,
                _DATA,
                _TRUST,
                Key(
                    "scale",
                    "0.5",
                    "a letter, p, n, s, m, l or x, is the scale of a model .yaml to build; "
                    "a number is Ultralytics' augmentation gain, resizing by 1 - gain to 1 + gain",
                ),
                Key(
                    "cfg",
                    "",
                    "recipe: a .yaml of these keys, or coco-p, -n, -s, -m, -l, -x, small, finetune, inspection",
                    PATH,
                ),
                Key(
                    "cache",
                    "False",
                    "ram or disk keep decoded images there; device keeps them in the GPU's memory and augments them "
                    "there, pinned in the host's where a GPU reads them if its own is too small",
                ),
                *(Key(name, str(option.default), option.text) for name, option in OWN_OPTIONS.items()),
                _AUGMENTATIONS,
                _DOWNLOAD,
                Key("resume", "False", "path of the last.pt to continue from, or True to continue from model=", RESUME),
            ),
            sections=("Train settings", "Hyperparameters", "Val/Test settings"),
        ),
        Mode(
            "val",
            "Measure COCO mAP of a model, or of a file of predictions.",
            examples=(
                "yolo-lat val model=best.pt data=coco",
                "yolo-lat val model=yolo-lat-n-voc12 data=voc12.yaml",
                "yolo-lat val model=best.pt data=my-data.yaml split=test json=metrics.json",
                "yolo-lat val model=best.pt data=my-data.yaml box_vote=0.8",
                "yolo-lat val predictions=results.json data=my-data.yaml json=metrics.json",
            ),
            keys=(
                _MODEL,
                _DATA,
                _SCALE,
                _TRUST,
                Key("predictions", "", "COCO results JSON to score in place of a model"),
                Key("json", "", "file to write the twelve COCO numbers to, by name"),
                _DOWNLOAD,
                Key("batch", "16", "images per batch", COUNT),
                Key("rect", "True", "pad each batch to its own rectangle rather than to a square"),
                _BOX_VOTE,
                _HALF,
            ),
            general=("imgsz", "workers", "augment", "agnostic_nms", "classes", "single_cls", *_WHERE),
            sections=("Val/Test settings",),
        ),
        Mode(
            "predict",
            "Detect objects in images or videos and save the annotated copies.",
            examples=(
                "yolo-lat predict source=street.jpg",
                "yolo-lat predict model=best.pt source=cars.mp4 conf=0.4 save=False show",
            ),
            keys=(
                *_RUN,
                Key("conf", "0.25", "confidence threshold"),
                _BOX_VOTE,
                _HALF,
                Key("engine", "", "ray detects in a large collection, with keys of its own"),
            ),
            general=_DETECT,
            sections=("Predict settings", "Visualize settings"),
        ),
        Mode(
            "predict engine=ray",
            "Detect in a large collection on Ray Data, on this machine or a cluster; needs no torch.",
            examples=(
                "yolo-lat predict engine=ray model=best.onnx source=photos",
                "yolo-lat predict engine=ray model=best.onnx source='shards/*.tar' device=cuda workers=8",
                "yolo-lat predict engine=ray model=best.onnx source=tables column=jpeg address=auto resume",
                "yolo-lat predict engine=ray resume=runs/collection/photos",
            ),
            keys=(
                Key("model", "", "exported .onnx file; with dynamic=true it runs batches"),
                Key(
                    "source",
                    "",
                    "folder of images, WebDataset .tar or Parquet files, such a file, a pattern, or an address such as "
                    "s3://bucket/folder",
                ),
                Key("conf", "0.25", "confidence threshold"),
                Key("iou", "0.7", "overlap of two boxes of a class above which the worse one goes"),
                Key("max_det", "300", "most boxes of an image"),
                _BOX_VOTE,
                Key("imgsz", "", "input size in pixels of a model of dynamic size; as exported unless given"),
                Key("batch", "16", "most images to run at once"),
                Key("device", "cpu", "cpu, or cuda, a GPU for each worker"),
                Key("workers", "", "actors that detect, a core or a GPU each; as many as there are unless given"),
                Key("address", "", "of a Ray cluster, or auto; unless given, Ray is started on this machine"),
                Key("column", "", "Parquet column of the encoded images; the only one that can be unless given"),
                Key("id", "", "Parquet column that names the images"),
                Key("part", "300", "seconds that a part takes, about; a run that goes on repeats less than one"),
                Key("coco", "True", "write detections.json, in COCO's format, beside the Parquet files"),
                Key("project", "runs/collection", "folder of the run's own folder"),
                Key("name", "", "name of the run's folder; from the source unless given"),
                Key("resume", "False", "True goes on with this run if it was begun; a folder, with the run in it"),
            ),
        ),
        Mode(
            "track",
            "Detect objects in a video and follow each under one number.",
            examples=(
                "yolo-lat track source=cars.mp4",
                "yolo-lat track model=best.pt source=0 tracker=bytetrack.yaml show",
            ),
            keys=(*_RUN, Key("conf", "0.1", "confidence threshold"), _BOX_VOTE, _HALF),
            general=_DETECT,
            sections=("Tracker settings", "Predict settings", "Visualize settings"),
        ),
        Mode(
            "export",
            "Write a model to ONNX or another deployment format.",
            examples=(
                "yolo-lat export model=best.pt",
                "yolo-lat export model=best.pt format=onnx half=True dynamic=True",
                "yolo-lat export model=best.pt format=onnx int8=True data=my-data.yaml",
            ),
            keys=(
                _MODEL,
                _SCALE,
                _TRUST,
                Key("format", "onnx", "target format: onnx, torchscript, openvino, engine (TensorRT), ..."),
                _BATCH,
                _HALF,
                Key("int8", "False", "quantise to 8-bit integers, short for quantize=8; needs data="),
                Key(
                    "preprocess", "False", "ONNX takes letterboxed bytes, (batch, height, width, BGR), and scales them"
                ),
                Key("best_class", "False", "ONNX returns each box's best class only, (batch, 6, boxes)"),
                Key("target", "", "gpu or cpu, which an ONNX file is to be fast on; gpu unless quantised to INT8"),
            ),
            general=("imgsz", "device", "quantize", "nms", "data", "fraction"),
            sections=("Export settings",),
        ),
        Mode(
            "info",
            "Print the layers, parameters and GFLOPs of a model, or which weights ship.",
            examples=(
                "yolo-lat info model=yolo-lat-n",
                "yolo-lat info model=cfg/models/yolo-lat.yaml scale=s detailed=True",
                "yolo-lat info table",
                "yolo-lat info weights",
            ),
            keys=(
                _MODEL,
                _SCALE,
                _TRUST,
                Key("imgsz", "640", "image size in pixels that GFLOPs are counted at", SIZE),
                Key("detailed", "False", "list every layer"),
                Key("table", "False", "compare every model of ours with YOLOv8, 11, 12 and 26, n and s"),
                Key("weights", "False", "list the trained weights that ship: their data, classes and AP"),
            ),
        ),
        Mode(
            "quickstart",
            "Try every step on a small synthetic data set, offline.",
            examples=("yolo-lat quickstart", "yolo-lat quickstart directory=/tmp/first-try epochs=5"),
            keys=(
                Key("directory", "runs/quickstart", "folder for the results; the data set goes to ./datasets/shapes"),
                Key("epochs", "24", "number of epochs to train for"),
                Key("seed", "0", "random seed of training", SEED),
            ),
        ),
        Mode(
            "compare",
            "Set evaluated runs side by side, with bootstrap confidence intervals.",
            examples=(
                "yolo-lat compare runs/detect/val runs/detect/val-2",
                "yolo-lat compare runs/detect/val* resamples=2000 json=comparison.json figure=comparison.png",
            ),
            keys=(
                Key("runs", "", "folders that validation wrote; differences are to the first"),
                Key("resamples", "1000", "number of bootstrap samples of the images"),
                Key("seed", "0", "random seed of the samples"),
                Key("confidence", "0.95", "share of the samples that an interval covers"),
                Key("json", "", "file to write every number to"),
                Key("figure", "", "picture of the intervals to write, a .png"),
            ),
            words="runs",
            several=True,
        ),
        Mode(
            "benchmark",
            "Measure the speed of models beside one another, by a written procedure.",
            examples=(
                "yolo-lat benchmark models=yolo-lat-p,yolov8n,yolo26n imgsz=320 threads=2 json=out.json",
                "yolo-lat benchmark models=mine=best.pt,yolo26n device=0 imgsz=320,640 batch=1,32 json=out.json",
                "yolo-lat benchmark record=new.json against=old.json figure=speed.png",
            ),
            keys=(
                Key("models", "", "names, .yaml, .pt, .safetensors or .onnx, with commas; NAME=PATH to name a file"),
                _TRUST,
                Key("device", "cpu", "cpu, or the number of a CUDA device"),
                Key("imgsz", "640", "sides of the input in pixels, with commas"),
                Key("batch", "1", "images per batch, with commas"),
                Key("precision", "", "fp32 and fp16, with commas; fp32 on the CPU and fp16 on CUDA unless given"),
                Key(
                    "boundary",
                    "forward,pipeline",
                    "forward: tensor to raw output on the device; pipeline: pictures to boxes in host memory",
                ),
                Key("reference", "", "models that ratios are formed to; yolo26n and yolo12n if they are measured"),
                Key("rounds", "5", "interleaved rounds, A B C A B C"),
                Key("runs", "50", "timed runs of each model in a round"),
                Key("warmup", "10", "runs before the first round"),
                Key("trial", "20", "runs that each setting is tried with"),
                Key("settings", "", "the settings to try, with commas; all of the device's list unless given"),
                Key("threads", "", "CPU threads of a session and of OpenCV; every core unless given"),
                Key("data", "", "data set whose validation images are shown, and that trained models are scored on"),
                Key("source", "", "folder of pictures to show instead"),
                Key("seed", "0", "random seed of untrained weights and of the order of pictures"),
                Key("folder", "runs/benchmark/models", "where exported files are kept and found again"),
                Key("commit", "", "of the code, for a copy of it without git history"),
                Key("json", "", "file to write the record to, whole after each part"),
                Key("figure", "", "picture of the record to write, a .png"),
                Key("against", "", "older record of the same machine and versions to compare with"),
                Key("record", "", "show this record, or several with commas, instead of measuring"),
            ),
        ),
        Mode(
            "profile",
            "Show which operators and layers a model spends its time in.",
            examples=(
                "yolo-lat profile model=yolo-lat-p imgsz=320 threads=2",
                "yolo-lat profile model=best.pt device=0 batch=32 json=profile.json figure=profile.png",
            ),
            keys=(
                _MODEL,
                _TRUST,
                Key("device", "cpu", "cpu, or the number of a CUDA device"),
                Key("imgsz", "640", "side of the input in pixels"),
                Key("batch", "1", "images per batch"),
                Key("precision", "", "fp32 or fp16; fp32 on the CPU and fp16 on CUDA unless given"),
                Key("layout", "True", "on CUDA, run convolutions channels last, each with its bias"),
                Key("runs", "20", "runs to profile"),
                Key("warmup", "10", "runs before them"),
                Key("threads", "", "CPU threads of the session; every core unless given"),
                Key("seed", "0", "random seed of untrained weights"),
                Key("folder", "runs/benchmark/models", "where the exported file is kept and found again"),
                Key("json", "", "file to write every number to"),
                Key("figure", "", "bar chart to write, a .png"),
            ),
        ),
        Mode(
            "demo",
            "Detect, follow and count live or in files; show it in a window, write a video and every box.",
            examples=(
                "yolo-lat demo model=best.onnx source=cars.mp4",
                "yolo-lat demo model=best.onnx source=0 save=False",
                "yolo-lat demo model=best.onnx source=rtsp://192.168.1.20/stream zones=zones.yaml csv",
                "yolo-lat demo resume=runs/demo/cars",
            ),
            keys=(
                Key("model", "", "exported .onnx file, or a name, .yaml, .pt or .safetensors, which need torch"),
                _TRUST,
                Key("source", "", "video, picture, folder, pattern, rtsp:// or http:// address; 0 is the first camera"),
                Key("device", "cpu", "cpu, cuda, cuda:N, or the number N of a CUDA device"),
                Key("imgsz", "", "input size in pixels of a model of dynamic size; as exported unless given"),
                Key("conf", "0.25", "confidence threshold"),
                Key("iou", "0.7", "overlap of two boxes of a class above which the worse one goes"),
                Key("max_det", "300", "most boxes of a frame"),
                _BOX_VOTE,
                Key("batch", "1", "frames of a file to detect in at once"),
                Key("track", "True", "number the objects and draw their trails; off for pictures unless given"),
                Key("zones", "", "YAML of lines and polygons to count at"),
                Key("csv", "False", "write detections.csv beside detections.jsonl"),
                Key("show", "", "True or False: open a window, or not; where there is a display unless given"),
                Key("save", "True", "write the annotated video or pictures, and every box"),
                Key("project", "runs/demo", "folder of the run's own folder"),
                Key("name", "", "name of the run's folder; from the source unless given"),
                Key("resume", "", "folder of an interrupted run on a file, to go on with; its other keys hold"),
                Key("part", "300", "frames of a part; a run that goes on repeats less than one"),
                Key("timeout", "10", "seconds without a frame after which a stream is opened again"),
                Key("retry", "300", "seconds to keep trying to open a lost camera or stream"),
            ),
        ),
        Mode(
            "demo web",
            "Detect in the browser: serve one page for webcam, pictures and videos, or write it as a folder.",
            examples=(
                "yolo-lat demo web model=best.onnx",
                "yolo-lat demo web model=p.onnx,n.onnx port=0 open",
                "yolo-lat demo web model=p.onnx output=site",
            ),
            keys=(
                Key("model", "", "exported .onnx files, with commas; the page has a menu of them"),
                Key("conf", "0.25", "confidence threshold that the page starts with"),
                Key("host", "127.0.0.1", "address to serve on; 0.0.0.0 lets other machines in"),
                Key("port", "8000", "port to serve on; 0 takes any that is free"),
                Key("open", "False", "open the page in the browser of this machine"),
                Key("output", "", "new folder to write the page to, for any web host, instead of serving it"),
            ),
        ),
        Mode(
            "serve",
            "Answer pictures over HTTP with detections, run together in batches; needs no torch.",
            examples=(
                "yolo-lat serve model=best.onnx",
                "yolo-lat serve model=best.onnx device=cuda max_batch=32 queue=256 port=9000",
            ),
            keys=(
                Key("model", "", "exported .onnx file; with dynamic=true it runs batches"),
                Key("host", "127.0.0.1", "address to serve on; 0.0.0.0 lets other machines in, without a password"),
                Key("port", "8000", "port to serve on; 0 takes any that is free"),
                Key("device", "cpu", "cpu, cuda, cuda:N, or the number N of a CUDA device"),
                Key("imgsz", "", "input size in pixels of a model of dynamic size; as exported unless given"),
                Key("threads", "", "CPU threads of one inference; every core unless given"),
                Key("conf", "0.25", "confidence threshold of requests that name none"),
                Key("iou", "0.7", "overlap that is suppressed, of requests that name none"),
                Key("max_det", "300", "most boxes of a picture, of requests that name none"),
                _BOX_VOTE,
                Key(
                    "max_batch", "", "most pictures to run at once; unless given, what a measurement at the start finds"
                ),
                Key("wait_ms", "4", "how long a picture waits for others on their way to join its batch, milliseconds"),
                Key("queue", "64", "most pictures waiting or running; further ones are answered 503"),
                Key("timeout", "10", "seconds for a body to arrive, and again for its answer"),
                Key("max_mb", "20", "largest body in megabytes"),
                Key("max_megapixels", "50", "largest picture"),
                Key("workers", "2", "threads that decode and encode pictures"),
            ),
        ),
        Mode(
            "data check",
            "Examine a data set: broken files, wrong boxes, leakage, statistics.",
            examples=(
                "yolo-lat data check my-data.yaml",
                "yolo-lat data check coco json=report.json sheet=look-at-these.jpg",
            ),
            keys=(
                _DATA_WORD,
                Key("json", "", "file to write the whole report to"),
                Key("sheet", "", "picture of the images to look at first, with their boxes"),
                Key("workers", "", "number of threads; one a core unless given"),
                _DOWNLOAD,
            ),
            words="data",
        ),
        Mode(
            "data convert",
            "Write a data set in another format: COCO JSON, YOLO txt or Pascal VOC XML.",
            examples=(
                "yolo-lat data convert my-data.yaml format=coco directory=my-data-coco",
                "yolo-lat data convert coco-subset:train=2000,val=500,seed=1 format=yolo directory=small crowd=drop",
            ),
            keys=(
                _DATA_WORD,
                Key("format", "", "coco, yolo or voc"),
                _DIRECTORY,
                _IMAGES,
                _CROWD,
                _OUTSIDE,
                _DOWNLOAD,
            ),
            words="data",
        ),
        Mode(
            "data split",
            "Divide a data set anew into train, val and test, by seed and stratified by class.",
            examples=(
                "yolo-lat data split my-data.yaml directory=resplit",
                "yolo-lat data split my-data.yaml directory=resplit train=0.7 val=0.3 test=0 seed=3",
            ),
            keys=(
                _DATA_WORD,
                _DIRECTORY,
                Key("train", "0.8", "share of the images for training", NUMBER),
                Key("val", "0.1", "share for validation", NUMBER),
                Key("test", "0.1", "share for testing", NUMBER),
                Key("seed", "0", "random seed"),
                Key("stratify", "True", "give each split its share of every class"),
                Key("group", "", "folder keeps the images of a folder together, in one split"),
                Key("format", "", "coco, yolo or voc; that of the source unless given"),
                _IMAGES,
                _CROWD,
                _OUTSIDE,
            ),
            words="data",
        ),
        Mode(
            "data show",
            "Draw images of a data set with their boxes.",
            examples=("yolo-lat data show my-data.yaml", "yolo-lat data show voc split=val samples=40 file=voc.png"),
            keys=(
                _DATA_WORD,
                _SPLIT,
                *_SHEET,
                Key("file", "sheet.jpg", "picture to write", PATH),
                _DOWNLOAD,
            ),
            words="data",
        ),
        Mode(
            "data preview",
            "Draw training samples as the model will see them: augmented, with their boxes.",
            examples=(
                "yolo-lat data preview my-data.yaml cfg=recipe.yaml",
                "yolo-lat data preview shapes mosaic=0 degrees=20 samples=9 imgsz=256",
            ),
            keys=(
                _DATA_WORD,
                Key("cfg", "", "training recipe, as for train", PATH),
                _AUGMENTATIONS,
                _SPLIT,
                Key("imgsz", "640", "image size in pixels"),
                Key("samples", "16", "number of samples", WHOLE),
                Key("seed", "0", "random seed", WHOLE),
                Key("file", "preview.jpg", "picture to write", PATH),
            ),
            sections=("Hyperparameters",),
            words="data",
        ),
        Mode(
            "data list",
            "List the data sets known by name, or explain one: its files, size and licence.",
            examples=("yolo-lat data list", "yolo-lat data list coco"),
            keys=(Key("name", "", "one of them"),),
            words="name",
        ),
    )
}


@cache
def engine_sections() -> dict[str, list[Key]]:
    """Return the keys of the installed Ultralytics by section of its `default.yaml`, in the order of the file."""
    spec = find_spec("ultralytics")
    if spec is None or spec.origin is None:
        raise UserError("this needs ultralytics, which is not installed; run: pip install 'yolo-lat[train]'")
    title, sections = "", dict[str, list[Key]]()
    for line in Path(spec.origin).with_name("cfg").joinpath("default.yaml").read_text(encoding="utf-8").splitlines():
        if heading := _HEADING.match(line):
            title = heading[1]
        elif setting := _SETTING.match(line):
            name, default, text = setting.groups()
            key = Key(name, default, _OUR_TEXTS.get(name, text), ENGINE_KINDS.get(name))
            sections.setdefault(title, []).append(key)
    return sections
