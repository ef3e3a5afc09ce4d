"""Small images packed as each kind of source, some of them broken."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def encoded(count: int, seed: int = 0, suffix: str = ".png") -> dict[str, bytes]:
    """Encoded images of several sizes with coloured squares, by name."""
    rng = np.random.default_rng(seed)
    files = {}
    for number in range(count):
        height, width = rng.integers(40, 100, 2)
        image = np.zeros((height, width, 3), np.uint8)
        for _ in range(3):
            y, x = rng.integers(0, (height - 16, width - 16))
            image[y : y + 16, x : x + 16] = rng.integers(0, 256, 3)
        files[f"{number:05d}{suffix}"] = cv2.imencode(suffix, image)[1].tobytes()
    return files


def broken(whole: bytes) -> dict[str, bytes]:
    """What is no image or none that is whole, by name."""
    return {"cut.png": whole[: len(whole) // 2], "empty.jpg": b"", "noise.png": b"no image at all", "gif.jpg": gif()}


def gif() -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (20, 20)).save(stream, "GIF")
    return stream.getvalue()


def as_folder(folder: Path, files: dict[str, bytes]) -> Path:
    """Every other image in a folder of its own; a text file among them."""
    for number, (name, content) in enumerate(files.items()):
        target = folder / ("deep/er" if number % 2 else "") / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    (folder / "notes.txt").write_text("no image")
    return folder


def as_tar(path: Path, files: dict[str, bytes]) -> Path:
    """Each image with a JSON beside it, as WebDataset has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            stem = name.partition(".")[0]
            for member, data in ((name, content), (f"{stem}.json", b"{}")):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def as_parquet(path: Path, files: dict[str, bytes]) -> Path:
    """A column of bytes and one of names, in small row groups."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"name": list(files), "jpeg": list(files.values())}), path, row_group_size=7)
    return path


def as_hugging_face(path: Path, files: dict[str, bytes]) -> Path:
    """The images as `datasets` of Hugging Face writes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": content, "path": name} for name, content in files.items()]
    pq.write_table(pa.table({"label": list(range(len(images))), "image": images}), path)
    return path
