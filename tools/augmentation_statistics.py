"""Compare the training samples that Ultralytics makes on the host with those made on the device.

    python tools/augmentation_statistics.py OUT.json DATA.yaml IMGSZ [SAMPLES]

Both take the same hyper-parameters, Ultralytics' defaults, and the same first images of split train. SAMPLES defaults
to 1000. Prints a table of quantiles, writes OUT.json and a figure beside it, OUT.png. `deviation` is the largest of the
differences between the two shares below five thresholds, in standard errors; samples, not boxes, count as independent.
`fill` is the share of a sample that has the most frequent exactly grey colour, which is what no image covers.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import ultralytics
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from ultralytics.cfg import get_cfg

import yolo_lat
from yolo_lat.data.dataset import LatDataset
from yolo_lat.data.device import Augment, DeviceLoader, build_cache
from yolo_lat.data.labels import DetectionSplit
from yolo_lat.data.reader import read_split
from yolo_lat.data.registry import load_dataset

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
OF_BOXES = ("box side", "box aspect", "box centre x", "box centre y")
OF_SAMPLES = ("boxes", "red mean", "green mean", "blue mean", "red std", "green std", "blue std", "fill")
MOST_IMAGES = 2000
BATCH = 16

Sample = tuple[np.ndarray, np.ndarray]  # (3, s, s) uint8 RGB, and (n, 4) relative centre and size
Statistics = dict[str, list[np.ndarray]]  # of every sample, what was measured in it


def main() -> None:
    """Measure both, print the table, write the record and the figure."""
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    out, data, imgsz = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    samples = int(sys.argv[4]) if len(sys.argv) == 5 else 1000
    split = read_split(load_dataset(data), "train")
    split = replace(split, images=split.images[:MOST_IMAGES])
    settings = {"imgsz": imgsz}
    host = measure(host_samples(split, samples, settings))
    device = measure(device_samples(split, samples, settings))
    deviations = {name: deviation(host[name], device[name]) for name in host}
    record = {
        "command": f"python tools/augmentation_statistics.py {out.name} {Path(data).name} {' '.join(sys.argv[3:])}",
        "versions": {
            "ultralytics": ultralytics.__version__,
            "torch": torch.__version__,
            "yolo-lat": yolo_lat.__version__,
        },
        "images": len(split.images),
        "samples": samples,
        "quantiles": list(QUANTILES),
        "statistics": {
            name: {"host": quantiles(host[name]), "device": quantiles(device[name]), "deviation": deviations[name]}
            for name in host
        },
    }
    print(table(record))
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw(host, device, out.with_suffix(".png"))


def host_samples(split: DetectionSplit, count: int, settings: dict[str, Any], seed: int = 0) -> Iterator[Sample]:
    """Yield samples of Ultralytics' pipeline, every image in memory, so that a mosaic draws from all."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - what Ultralytics draws from
    hyp = get_cfg(overrides=settings)
    data = {"names": dict(enumerate(split.names)), "channels": 3}
    dataset = LatDataset(
        split, imgsz=hyp.imgsz, augment=True, hyp=hyp, batch_size=BATCH, cache="ram", stride=32, data=data
    )
    for number in range(count):
        item = dataset[number % len(dataset)]
        yield item["img"].numpy(), item["bboxes"].numpy()


def device_samples(split: DetectionSplit, count: int, settings: dict[str, Any], seed: int = 0) -> Iterator[Sample]:
    """Yield samples that are made on the device, the CPU where there is no CUDA."""
    hyp = get_cfg(overrides=settings)
    cache = build_cache(split, hyp.imgsz, "cuda" if torch.cuda.is_available() else "cpu")
    loader = DeviceLoader(cache, Augment.from_args(hyp), BATCH, seed=seed, shuffle=False)
    while count > 0:
        for batch in loader:
            for image, boxes, valid in zip(batch["img"].cpu(), batch["boxes"].cpu(), batch["valid"].cpu(), strict=True):
                if count > 0:
                    yield image.numpy(), boxes[valid].numpy()
                count -= 1
        loader.set_epoch(loader.epoch + 1)


def measure(samples: Iterable[Sample]) -> Statistics:
    """Measure samples, pixels for sizes; aspect is the logarithm of width over height."""
    found: Statistics = {name: [] for name in (*OF_BOXES, *OF_SAMPLES)}
    for image, boxes in samples:
        x, y, w, h = boxes.reshape(-1, 4).astype(np.float64).T
        of_boxes = (np.sqrt(w * h) * image.shape[1], np.log(w / h), x, y)
        grey = image[0][(image[0] == image[1]) & (image[0] == image[2])]
        fill = np.bincount(grey, minlength=1).max() / image[0].size
        flat = image.reshape(3, -1)
        of_samples = np.array([len(boxes), *flat.mean(axis=1), *flat.std(axis=1), fill])
        for name, values in zip(found, (*of_boxes, *of_samples.reshape(-1, 1)), strict=True):
            found[name].append(values)
    return found


def quantiles(values: list[np.ndarray]) -> list[float]:
    """Return the `QUANTILES`, rounded."""
    return [round(float(value), 4) for value in np.quantile(np.concatenate(values), QUANTILES)]


def deviation(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    """Return how far apart two statistics are at most, in standard errors, at the quantiles of both together."""
    thresholds = np.quantile(np.concatenate([*a, *b]), QUANTILES)
    largest = 0.0
    for threshold in thresholds:
        (share_a, variance_a), (share_b, variance_b) = (_share_below(values, threshold) for values in (a, b))
        if variance_a + variance_b > 0:
            largest = max(largest, abs(share_a - share_b) / float(np.sqrt(variance_a + variance_b)))
    return round(largest, 2)


def _share_below(values: list[np.ndarray], threshold: float) -> tuple[float, float]:
    """Return the share of values up to `threshold` and its variance, values of one sample going together."""
    below = np.array([(value <= threshold).sum() for value in values], dtype=np.float64)
    counts = np.array([len(value) for value in values], dtype=np.float64)
    share = below.sum() / counts.sum()
    return float(share), float(((below - share * counts) ** 2).sum() / counts.sum() ** 2)


def table(record: dict[str, Any]) -> str:
    """Return the statistics as text, host above device."""
    lines = [f"{'':14}{'':8}" + "".join(f"{f'{q:.0%}':>10}" for q in QUANTILES) + f"{'deviation':>12}"]
    for name, row in record["statistics"].items():
        for side in ("host", "device"):
            values = "".join(f"{value:10.3f}" for value in row[side])
            last = f"{row['deviation']:12.2f}" if side == "device" else ""
            lines.append(f"{name if side == 'host' else '':14}{side:8}{values}{last}")
    return "\n".join(lines)


def draw(host: Statistics, device: Statistics, path: Path) -> None:
    """Draw the distributions of both over one another."""
    figure = Figure(figsize=(14, 9), layout="constrained", dpi=110)
    for axes, name in zip(figure.subplots(3, 4).flat, host, strict=True):
        both = [np.concatenate(values[name]) for values in (host, device)]
        edges = np.histogram_bin_edges(np.concatenate(both), 40)
        for values, label, colour in zip(both, ("host", "device"), ("C0", "C1"), strict=True):
            axes.hist(values, edges, density=True, histtype="step", label=label, color=colour)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
    figure.axes[0].legend(fontsize=8)
    FigureCanvasAgg(figure).print_png(str(path))


if __name__ == "__main__":
    main()
