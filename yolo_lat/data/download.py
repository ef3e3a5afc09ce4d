"""Fetch the archives that a data set names, which happens only when a download is asked for."""

from __future__ import annotations

import hashlib
import lzma
import re
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeGuard
from urllib.parse import urlparse
from urllib.request import urlopen

from rich.console import Console
from rich.progress import wrap_file

from yolo_lat.data.data_yaml import path_in
from yolo_lat.data.faults import shown
from yolo_lat.data.spec import SPLITS, DatasetSpec
from yolo_lat.errors import UserError

_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_STALLED = 60  # seconds without a byte from the server
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError)


@dataclass(frozen=True)
class Archive:
    """An archive to fetch, and the folder to unpack it into."""

    url: str
    into: Path
    sha256: str | None = None


def download(spec: DatasetSpec) -> None:
    """Fetch and unpack what `spec.download` names, unless training and validation data are there.

    A plain URL is unpacked beside the folder of the data set, as Ultralytics does: its archives hold that folder. A
    mapping `{url, into, sha256}` says where, relative to the folder, and may name the SHA-256 digest in hexadecimal.

    Raises:
        UserError: nothing to download from, a script instead of a URL, a server that does not deliver, or an archive
            that is broken or leads out of its folder.
    """
    if not any(spec.missing(split) for split in SPLITS[:2]):
        return
    for archive in archives(spec):
        try:
            archive.into.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=archive.into, prefix=".download-") as folder:
                file, unpacked = Path(folder) / "archive", Path(folder) / "unpacked"
                _fetch(archive, file)
                _unpack(file, unpacked, archive.url)
                _merge(unpacked, archive.into)
        except OSError as error:
            raise UserError(f"{archive.into}: cannot be written ({error}); make room and allow writing") from error
    for split in SPLITS[:2]:
        spec.split(split)


def archives(spec: DatasetSpec) -> list[Archive]:
    """Return what the key `download` names.

    Raises:
        UserError: it names nothing that can be fetched.
    """
    where = f"{spec.file}, key download"
    if not spec.download:
        raise UserError(f"{where}: is missing, so download=true has nothing to fetch for {spec.name}; leave it out")
    found = []
    for entry in spec.download if isinstance(spec.download, list) else [spec.download]:
        row = entry if isinstance(entry, dict) else {"url": entry, "into": ".."}
        url, digest = row.get("url"), row.get("sha256")
        if not _is_archive(url):
            raise UserError(
                f"{where}: {shown(url)} is not the URL of a {', '.join(_ARCHIVES)} archive, and scripts are never run; "
                "fetch the data by hand"
            )
        if digest is not None and not re.fullmatch("[0-9a-fA-F]{64}", str(digest)):
            raise UserError(f"{where}: sha256 {shown(digest)} is not 64 hexadecimal digits; correct it")
        into = path_in(spec.root, row.get("into", "."), f"{where}, into")
        if not into.is_relative_to(spec.root.parent):
            raise UserError(f"{where}: into '{row['into']}' leads out of {spec.root.parent}; correct it")
        found.append(Archive(url, into, digest and str(digest).lower()))
    return found


def _is_archive(url: Any) -> TypeGuard[str]:
    if not isinstance(url, str) or not re.fullmatch(r"https?://[!-~]+", url):  # no scripts, no spaces
        return False
    try:
        return urlparse(url).path.endswith(_ARCHIVES)
    except ValueError:  # half of an IPv6 address
        return False


def _fetch(archive: Archive, file: Path) -> None:
    """Fetch an archive whole, and as its digest says."""
    digest = hashlib.sha256()
    try:
        with urlopen(archive.url, timeout=_STALLED) as answer, file.open("wb") as target:
            size = int(answer.headers.get("Content-Length", 0))
            console = Console(stderr=True)
            with wrap_file(
                answer, size, console=console, description=archive.url, disable=not console.is_terminal, transient=True
            ) as source:
                while block := source.read(1 << 20):
                    digest.update(block)
                    target.write(block)
            if size and target.tell() != size:
                raise OSError(f"{target.tell()} of {size} bytes came")
    except (OSError, HTTPException, ValueError, OverflowError) as error:
        raise UserError(f"{archive.url}: cannot be fetched ({error}); try again or fetch it by hand") from error
    if archive.sha256 not in (None, digest.hexdigest()):
        raise UserError(
            f"{archive.url}: has the SHA-256 {digest.hexdigest()} and not {archive.sha256}; correct sha256 or do not "
            "use this archive"
        )


def _unpack(file: Path, folder: Path, url: str) -> None:
    try:
        if urlparse(url).path.endswith(".zip"):
            with zipfile.ZipFile(file) as archive:
                for name in archive.namelist():
                    if Path(name).is_absolute() or ".." in Path(name).parts:
                        raise UserError(f"{url}: its entry '{name}' leads out of the folder; do not use this archive")
                archive.extractall(folder)
        else:
            with tarfile.open(file) as archive:
                archive.extractall(folder, filter="data")
    except tarfile.FilterError as error:
        raise UserError(f"{url}: {error}; do not use this archive") from error
    except _BROKEN as error:
        if getattr(error, "errno", None) is not None:  # not the archive but the disk
            raise
        raise UserError(f"{url}: is a broken archive; try again or fetch it by hand") from error
    except RuntimeError as error:  # of zipfile, for a password or a rare compression
        raise UserError(f"{url}: cannot be unpacked ({error}); unpack it by hand") from error


def _merge(source: Path, target: Path) -> None:
    """Move the content of one folder into another that may hold part of it."""
    for path in source.iterdir():
        there = target / path.name
        if path.is_dir() and there.is_dir():
            _merge(path, there)
        else:
            shutil.move(path, there)
