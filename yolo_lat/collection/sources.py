"""The inputs of a collection: which files there are, what is wrong with them, and Ray Data's readers for them."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
from pyarrow import fs

from yolo_lat.data.images import IMAGE_SUFFIXES
from yolo_lat.errors import UserError

IMAGES, TARS, PARQUET = "images", "WebDataset", "Parquet"
_KINDS = dict.fromkeys(IMAGE_SUFFIXES, IMAGES) | {".tar": TARS, ".parquet": PARQUET}
_READERS_OWN = ("path", "row_hash")  # columns that Ray Data's reader adds
_TAR_END = 2 * tarfile.RECORDSIZE  # bytes behind the last member, more than the padding of an ordinary tar
# What Ray Data takes for the key of a sample: all up to the first dot of the file's name.
_KEY = re.compile(r"((?:.*/)?[^./][^.]*)\.([^/]*)$")


@dataclass(frozen=True)
class Checked:
    """What a look at an input file found before it is read.

    Attributes:
        images: images that a reader gives of it, 0 if it cannot be read.
        failures: names of images, or of the file, that a reader cannot give, and why.
    """

    images: int
    failures: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Source:
    """A collection of image files, of WebDataset tars or of Parquet files below one folder.

    Attributes:
        kind: IMAGES, TARS or PARQUET.
        root: the folder, as `filesystem` names it.
        filesystem: where it lies.
        column, id: of Parquet, see `CollectionOptions`.
    """

    kind: str
    root: str
    filesystem: fs.FileSystem
    column: str = ""
    id: str = ""

    def path(self, file: str) -> str:
        """Return the path of an input file for the filesystem."""
        return f"{self.root}/{file}"

    def check(self, files: list[str]) -> list[Checked]:
        """Look at input files: at the entries of tars and at the footers of Parquet files, without reading images."""
        if self.kind == IMAGES:
            infos = self.filesystem.get_file_info([self.path(file) for file in files])
            return [
                Checked(1) if info.type == fs.FileType.File else Checked(0, ((file, "no such file any more"),))
                for file, info in zip(files, infos, strict=True)
            ]
        found = [self._check_tar(file) if self.kind == TARS else self._check_parquet(file) for file in files]
        return [
            check if check.images or check.failures else Checked(0, ((file, "holds no image"),))
            for file, check in zip(files, found, strict=True)
        ]

    def _check_tar(self, file: str) -> Checked:
        seen, last, images, failures = set[str](), "", 0, list[tuple[str, str]]()
        try:
            with self.filesystem.open_input_file(self.path(file)) as stream, tarfile.open(fileobj=stream) as tar:
                for member in tar:
                    if not (member.isreg() and is_image(member.name)):
                        continue
                    parts = _KEY.match(member.name)
                    if not parts:
                        failures.append((f"{file}/{member.name}", "its name begins with a dot, so it has no key"))
                        continue
                    if member.name in seen or (parts[1] != last and f"{parts[1]}." in seen):
                        return Checked(0, ((file, f"the files of sample {parts[1]} are not together; pack it anew"),))
                    last, images = parts[1], images + 1
                    seen |= {member.name, f"{last}."}
                stream.seek(tar.offset)
                end = stream.read(_TAR_END)
        except (OSError, tarfile.TarError, EOFError, ValueError) as error:
            return Checked(0, ((file, f"cannot be read as a tar ({error})"),))
        # Readers take what lacks the empty block at the end, or goes on behind it, for a tar that ends there.
        if len(end) < tarfile.BLOCKSIZE or any(end):
            return Checked(0, ((file, "is cut off, or goes on behind its end; pack it anew"),))
        return Checked(images, tuple(failures))

    def _check_parquet(self, file: str) -> Checked:
        try:
            with self.filesystem.open_input_file(self.path(file)) as stream:
                parquet = pq.ParquetFile(stream)
                lacking = {self.column, self.id} - {"", *parquet.schema_arrow.names}
                if lacking:
                    return Checked(0, ((file, f"lacks the column {min(lacking)}"),))
                return Checked(parquet.metadata.num_rows)
        except (OSError, pa.ArrowException) as error:
            return Checked(0, ((file, f"cannot be read as Parquet ({error})"),))

    def read(self, files: list[str]) -> ray.data.Dataset:
        """Return a dataset of the encoded images of input files, to be taken apart by `contents`."""
        paths = [self.path(file) for file in files]
        if self.kind == IMAGES:
            return ray.data.read_binary_files(paths, filesystem=self.filesystem, include_paths=True)
        if self.kind == TARS:
            return ray.data.read_webdataset(paths, filesystem=self.filesystem, fileselect=is_image, decoder=_sample)
        columns = [self.column, *filter(None, [self.id]), *_READERS_OWN]
        return ray.data.read_parquet(
            paths, filesystem=self.filesystem, columns=columns, include_paths=True, include_row_hash=True
        )

    def contents(self, rows: pa.Table) -> Iterator[tuple[str, bytes | None]]:
        """Yield the name and the bytes of every image in rows that `read` gave; None where there are none."""
        for row in rows.to_pylist():
            if self.kind == IMAGES:
                yield self._name(row["path"]), row["bytes"]
            elif self.kind == TARS:
                file = self._name(row["path"])
                yield from zip((f"{file}/{name}" for name in row["names"]), row["images"], strict=True)
            else:
                content, name = row[self.column], row[self.id] if self.id else None
                if isinstance(content, dict):  # Hugging Face's form
                    name, content = name or content.get("path"), content["bytes"]
                name = f"row {row['row_hash']:016x}" if name is None else name
                yield f"{self._name(row['path'])}/{name}", content

    def _name(self, path: str) -> str:
        return path.removeprefix(f"{self.root}/")


def open_source(source: str, column: str | None = None, id_column: str | None = None) -> tuple[Source, Iterator[str]]:
    """Return a source, and its input files in order, relative to its root; they are listed as they are asked for.

    Raises:
        UserError: nothing there, files of several kinds, or no column with images.
    """
    filesystem, path = _filesystem(source)
    info, pattern = filesystem.get_file_info(path), "*"
    if info.type == fs.FileType.NotFound and (wild := re.search(r"[^/]*[*?[].*", path)):
        path, pattern = path[: wild.start()].rstrip("/"), wild[0]
        info = filesystem.get_file_info(path)
    if info.type == fs.FileType.NotFound:
        raise UserError(f"source={source}: no such file or folder; correct the path")
    single = PurePosixPath(path).name if info.type == fs.FileType.File else ""
    if single:
        path = str(PurePosixPath(path).parent)

    def files() -> Iterator[str]:
        names = [single] if single else (name.removeprefix(f"{path}/") for name in _walk(filesystem, path))
        return (name for name in names if _kind(name) and fnmatch(name, pattern))

    first_file = next(files(), None)
    if first_file is None:
        kinds = ", ".join(sorted(_KINDS))
        raise UserError(f"source={source}: holds no image, .tar or .parquet; it takes files of {kinds}")
    kind = _kind(first_file)
    if kind != PARQUET and (column or id_column):
        raise UserError(f"column= and id= name columns of Parquet, and source={source} holds {kind}; leave them out")
    if kind == PARQUET:
        column = _image_column(filesystem, f"{path}/{first_file}", column, id_column)
        for key, name in (("column", column), ("id", id_column)):
            if name in _READERS_OWN:
                raise UserError(f"{key}={name}: the reader has a column {name} of its own; rename that of the files")
    return Source(kind, path, filesystem, column or "", id_column or ""), _of_one_kind(files(), kind, source)


def is_image(name: str) -> bool:
    """Return whether a file is an image by its suffix."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def _sample(sample: dict[str, Any]) -> dict[str, Any]:
    """Give every sample of a tar the same columns, whatever its images are called; no lists, since Ray unpacks some."""
    images = {f"{sample['__key__']}.{suffix}": data for suffix, data in sample.items() if not suffix.startswith("__")}
    return {"path": sample["__url__"], "names": tuple(images), "images": tuple(images.values())}


def _kind(name: str) -> str:
    return _KINDS.get(PurePosixPath(name).suffix.lower(), "")


def _of_one_kind(files: Iterator[str], kind: str, source: str) -> Iterator[str]:
    for file in files:
        if _kind(file) != kind:
            raise UserError(
                f"source={source}: holds {kind} and {file} too; name one kind with a pattern such as '{source}/*.tar'"
            )
        yield file


def _filesystem(source: str) -> tuple[fs.FileSystem, str]:
    """Return the filesystem of a path or address, and the path in it."""
    if "://" not in source:
        return fs.LocalFileSystem(), Path(source).absolute().as_posix()
    try:
        filesystem, path = fs.FileSystem.from_uri(source)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"source={source}: pyarrow cannot open it ({error}); correct the address") from error
    return filesystem, path.rstrip("/")


def _walk(filesystem: fs.FileSystem, folder: str) -> Iterator[str]:
    """Yield the files below a folder to any depth, in the same order every time, one folder in memory at a time."""
    folders = [folder]
    while folders:
        entries = sorted(filesystem.get_file_info(fs.FileSelector(folders.pop())), key=lambda entry: entry.path)
        yield from (entry.path for entry in entries if entry.type == fs.FileType.File)
        folders += [entry.path for entry in reversed(entries) if entry.type == fs.FileType.Directory]


def _image_column(filesystem: fs.FileSystem, path: str, column: str | None, id_column: str | None) -> str:
    """Return the column of a Parquet file that holds encoded images."""
    try:
        with filesystem.open_input_file(path) as stream:
            schema: Any = pq.read_schema(stream)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({error}); remove or replace it") from error
    for wanted in filter(None, (column, id_column)):
        if wanted not in schema.names:
            raise UserError(f"{path}: has no column {wanted}; it has {', '.join(schema.names)}")
    if column:
        return column
    able = [field.name for field in schema if _holds_bytes(field.type)]
    if len(able) != 1:
        raise UserError(
            f"{path}: {', '.join(able) or 'no column'} could hold encoded images; name the column with column="
        )
    return str(able[0])


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
