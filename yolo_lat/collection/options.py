"""What a run over a collection may be told, checked once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from yolo_lat.errors import UserError

# How to run, which a run that goes on may be told anew; the others decide what comes out.
HOW = ("batch", "device", "workers", "address", "part", "coco")
_WHOLE: dict[str, tuple[int, int]] = {"max_det": (1, 100_000), "batch": (1, 4096), "workers": (1, 100_000)}
_NUMBERS: dict[str, tuple[float, float]] = {"conf": (0, 1), "iou": (0, 1), "box_vote": (0, 1), "part": (0, 86_400)}
_OPEN = ("workers", "box_vote")  # None for as many as there are, and for no votes


@dataclass(frozen=True)
class CollectionOptions:
    """What to detect, with which model, where.

    Attributes:
        model: the `.onnx` file; on a cluster, every node finds it, the source and the output under the same path.
        source: folder of images, of WebDataset `.tar` files or of Parquet files; one such file; a pattern of them; or
            an address of one of these that pyarrow opens, such as `s3://bucket/folder`.
        conf, iou, max_det, imgsz, box_vote: as for `OnnxDetector`.
        batch: most images that run at once.
        device: "cpu" or "cuda"; CUDA is used or refused.
        workers: actors that detect, one CPU core or one GPU each; None for every core or GPU that Ray has.
        address: of a Ray cluster; None starts Ray on this machine, for this run alone.
        column: Parquet column that holds the encoded images; None for the only one that can.
        id: Parquet column that names each image; None for the `path` beside its bytes, else a hash of file and row.
        part: seconds that a part takes, about; a run that goes on repeats less than one.
        coco: write `detections.json` too.
        project, name: the run's folder is `project/name`, the name of the source unless given.

    Raises:
        UserError: a value outside its range, or a model that is no `.onnx` file.
    """

    model: str
    source: str
    conf: float = 0.25
    iou: float = 0.7
    max_det: int = 300
    imgsz: int | Sequence[int] | None = None
    box_vote: float | None = None
    batch: int = 16
    device: str = "cpu"
    workers: int | None = None
    address: str | None = None
    column: str | None = None
    id: str | None = None
    part: float = 300
    coco: bool = True
    project: str = "runs/collection"
    name: str | None = None

    def __post_init__(self) -> None:
        if Path(self.model).suffix.lower() != ".onnx":
            raise UserError(
                f"model={self.model} is no .onnx file, which engine=ray needs; make one of weights: "
                "yolo-lat export model=best.pt dynamic=true"
            )
        if not Path(self.model).is_file():
            raise UserError(f"model={self.model}: no such file; correct the path")
        if self.device not in ("cpu", "cuda"):
            raise UserError(
                f"device={self.device} cannot be chosen, since Ray hands out the GPUs; pass device=cuda, and workers= "
                "for their number, or device=cpu"
            )
        for kinds, ranges in ((int, _WHOLE), ((int, float), _NUMBERS)):
            for name, (low, high) in ranges.items():
                value = getattr(self, name)
                if name in _OPEN and value is None:
                    continue
                if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
                    whole = "whole " if kinds is int else ""
                    raise UserError(f"{name}={value} is out of range; pass a {whole}number from {low} to {high}")
        if not isinstance(self.coco, bool):
            raise UserError(f"coco={self.coco} is neither True nor False; pass one of them")
