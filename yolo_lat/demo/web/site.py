"""The files of the page: what is served, and what a static folder of it holds, are the same."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolo_lat import __version__
from yolo_lat.demo.web.models import describe
from yolo_lat.errors import UserError
from yolo_lat.unfinished import unfinished_folder

STATIC = Path(__file__).with_name("static")
VENDOR = STATIC / "vendor"
RUNTIMES = {  # what the page downloads for each way of running
    "wasm": ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"),
    "webgpu": ("ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm"),
}
_IOU, _MAX_DET = 0.7, 300  # as in `OnnxDetector`
_MIME = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json; charset=utf-8",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
    ".onnx": "application/octet-stream",
}
_TEXT = "text/plain; charset=utf-8"  # licences


@dataclass(frozen=True)
class Asset:
    """One file of the site: bytes, or where they are.

    Attributes:
        mime: its content type.
        content: the bytes, or a file that holds them.
    """

    mime: str
    content: bytes | Path

    def read(self) -> bytes:
        """Return the bytes."""
        return self.content.read_bytes() if isinstance(self.content, Path) else self.content


def build_site(models: Sequence[str | Path], conf: float = 0.25, vendor: Path = VENDOR) -> dict[str, Asset]:
    """Return the site's files by their path below its root, such as "index.html" and "models/p.onnx".

    Args:
        models: ONNX files, in the order of the page's menu.
        conf: the confidence threshold that the page starts with.
        vendor: where onnxruntime-web lies.

    Raises:
        UserError: onnxruntime-web is missing, no model is given, or one that the page cannot run.
    """
    if missing := [name for names in RUNTIMES.values() for name in names if not (vendor / name).is_file()]:
        raise UserError(
            f"the page needs onnxruntime-web, and {vendor / missing[0]} is missing; with npm installed, run "
            "'python tools/build_web.py' in a checkout of the repository, once"
        )
    if not models:
        raise UserError("the page needs a model; pass model=best.onnx, or several with commas")
    if not 0.01 <= conf <= 1:
        raise UserError(f"conf={conf} is beyond the page's slider; pass a number from 0.01 to 1")
    site = {
        file.relative_to(STATIC).as_posix(): Asset(_MIME[file.suffix], file)
        for file in sorted(STATIC.iterdir())
        if file.suffix in _MIME
    }
    for file in sorted(vendor.iterdir()):
        if file.is_file():
            site[f"vendor/{file.name}"] = Asset(_MIME.get(file.suffix, _TEXT), file)
    entries = []
    for path in map(Path, models):
        entry = describe(path)
        name = _free_name(path, site)
        site[name] = Asset(_MIME[".onnx"], path)
        entries.append({"label": Path(name).stem, "file": name, **entry})
    content = {
        "version": __version__,
        "limits": {"conf": conf, "iou": _IOU, "max_det": _MAX_DET},
        "runtimes": _runtimes(vendor),
        "models": entries,
    }
    site["models.json"] = Asset(_MIME[".json"], json.dumps(content, ensure_ascii=False, indent=1).encode())
    return site


def write_site(site: dict[str, Asset], folder: str | Path) -> Path:
    """Write the site as a folder for any web host; it appears under its name only when it is complete.

    Raises:
        UserError: something is there already, or the folder cannot be written.
    """
    folder = Path(folder)
    if folder.exists():
        raise UserError(f"output={folder} exists already; name a new folder or remove that one")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with unfinished_folder(folder) as unfinished:
            for name, asset in site.items():
                file = unfinished / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(asset.read())
            unfinished.rename(folder)
    except OSError as error:
        raise UserError(f"output={folder} cannot be written ({error.strerror}); choose another folder") from error
    return folder


def _free_name(path: Path, site: dict[str, Asset]) -> str:
    """Return a path for a model that is plain in a URL and not taken."""
    stem = re.sub(r"[^\w.-]+", "-", path.stem, flags=re.ASCII).strip("-.") or "model"
    number = 1
    while (name := f"models/{stem}{f'-{number}' if number > 1 else ''}.onnx") in site:
        number += 1
    return name


def _runtimes(vendor: Path) -> dict[str, Any]:
    """Return for each way of running the size of what the page downloads for it."""
    return {kind: sum((vendor / name).stat().st_size for name in names) for kind, names in RUNTIMES.items()}
