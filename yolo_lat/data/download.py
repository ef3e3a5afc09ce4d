"""Fetch the archives that a data set names, which happens only when a download is asked for."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

from yolo_lat.data.spec import SPLITS, DatasetSpec
from yolo_lat.errors import UserError

_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


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
        archive.into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=archive.into, prefix=".download-") as folder:
            file = Path(folder) / Path(urlparse(archive.url).path).name
            _fetch(archive, file)
            unpacked = Path(folder) / "unpacked"
            _unpack(file, unpacked, archive.url)
            _merge(unpacked, archive.into)
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
        url = str(row.get("url", ""))
        if urlparse(url).scheme not in ("http", "https") or not urlparse(url).path.endswith(_ARCHIVES) or " " in url:
            first = url.strip().split("\n")[0][:60]
            raise UserError(
                f"{where}: '{first}' is not the URL of a {', '.join(_ARCHIVES)} archive, and scripts are never run; "
                "fetch the data by hand"
            )
        into = (spec.root / str(row.get("into", "."))).resolve()
        if not into.is_relative_to(spec.root.parent):
            raise UserError(f"{where}: into '{row['into']}' leads out of {spec.root.parent}; correct it")
        found.append(Archive(url, into, row.get("sha256")))
    return found


def _fetch(archive: Archive, file: Path) -> None:
    from torch.hub import download_url_to_file  # seconds to import, and seldom needed

    try:
        download_url_to_file(archive.url, str(file), archive.sha256)
    except RuntimeError as error:  # its message names both digests
        raise UserError(f"{archive.url}: is not the file that sha256 names ({error}); correct one of them") from error
    except OSError as error:
        raise UserError(f"{archive.url}: cannot be fetched ({error}); try again or fetch it by hand") from error


def _unpack(file: Path, folder: Path, url: str) -> None:
    try:
        if file.suffix == ".zip":
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
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise UserError(f"{url}: is a broken archive ({error}); try again") from error


def _merge(source: Path, target: Path) -> None:
    """Move the content of one folder into another that may hold part of it."""
    for path in source.iterdir():
        there = target / path.name
        if path.is_dir() and there.is_dir():
            _merge(path, there)
        else:
            shutil.move(path, there)
