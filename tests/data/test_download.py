"""Downloads from a real server on this machine: only when asked for, whole, as the digest says, and never outside."""

import functools
import hashlib
import io
import socket
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from yolo_lat.data import download as download_module
from yolo_lat.data.download import download
from yolo_lat.data.reader import read_split
from yolo_lat.data.registry import load_dataset
from yolo_lat.errors import UserError

IMAGE = cv2.imencode(".png", np.zeros((16, 20, 3), np.uint8))[1].tobytes()
TREE = {
    f"{kind}/{split}/a.{suffix}": content
    for split in ("train", "val")
    for kind, suffix, content in (("images", "png", IMAGE), ("labels", "txt", b"0 0.5 0.5 1 1\n"))
}


@dataclass
class Server:
    """What is served by path, and what was asked for."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    missing: int = 0  # bytes left out at the end, though Content-Length counts them
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.partition("?")[0]
            served.asked.append(path)
            if path not in served.files:
                self.send_error(404)
                return
            content = served.files[path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) - served.missing])

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Server(f"http://127.0.0.1:{http.server_port}")
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    yield served
    http.shutdown()
    thread.join()
    http.server_close()


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def tarred(files: dict[str, bytes], *more: tarfile.TarInfo, mode: str = "w:gz") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for entry in more:
            archive.addfile(entry)
    return stream.getvalue()


MAKERS = {".zip": zipped, ".tar": functools.partial(tarred, mode="w"), ".tgz": tarred, ".tar.gz": tarred}
MAKERS |= {f".tar.{kind}": functools.partial(tarred, mode=f"w:{kind}") for kind in ("xz", "bz2")}


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


def under(folder: str, files: dict[str, bytes] = TREE) -> dict[str, bytes]:
    return {f"{folder}/{name}": content for name, content in files.items()}


@pytest.fixture
def home(tmp_path) -> Path:
    """The folder of the data YAML; what lies beside it must stay as it is."""
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def spec(home: Path, entry, **keys):
    content = {"path": "nuts", "train": "images/train", "val": "images/val", "names": ["nut"], "download": entry} | keys
    (home / "nuts.yaml").write_text(yaml.safe_dump(content))
    return load_dataset(home / "nuts.yaml")


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def refusal(home: Path, entry) -> str:
    """Return the message of a failed download, after which there is nothing new."""
    with pytest.raises(UserError) as caught:
        download(spec(home, entry))
    assert len(str(caught.value).splitlines()) == 1
    assert files(home.parent) == {"home/nuts.yaml"}
    assert not list(home.rglob(".download-*"))
    return str(caught.value)


def assert_reads(home: Path) -> None:
    for split in ("train", "val"):
        images = read_split(load_dataset(home / "nuts.yaml"), split, progress=False).images
        assert [image.class_ids.tolist() for image in images] == [[0]]


@pytest.mark.parametrize("suffix", MAKERS)
def test_an_archive_is_unpacked_beside_the_folder_of_the_data(server, home, suffix):
    server.files[f"/x/nuts{suffix}"] = MAKERS[suffix](under("nuts"))
    download(spec(home, f"{server.url}/x/nuts{suffix}?version=1"))
    assert files(home) == {"nuts.yaml", *under("nuts")}
    assert_reads(home)


def test_several_archives_each_into_its_folder(server, home):
    parts = {split: {n: c for n, c in TREE.items() if f"/{split}/" in n} for split in ("train", "val")}
    server.files = {
        "/train.zip": zipped(parts["train"]),
        "/val.tgz": tarred(parts["val"]),
        "/notes.zip": zipped({"a": b""}),
    }
    digest = hashlib.sha256(server.files["/train.zip"]).hexdigest().upper()
    entries = [
        {"url": f"{server.url}/train.zip", "sha256": digest},
        {"url": f"{server.url}/val.tgz", "into": "."},
        {"url": f"{server.url}/notes.zip", "into": "notes/old"},
    ]
    download(spec(home, entries))
    assert files(home / "nuts") == {*TREE, "notes/old/a"}
    assert_reads(home)


def test_nothing_is_fetched_unless_asked_for_nor_twice(server, home):
    server.files["/nuts.zip"] = zipped(under("nuts"))
    described = spec(home, f"{server.url}/nuts.zip")
    with pytest.raises(UserError, match=r"no such path .* add download=true"):
        read_split(described, "train")
    assert server.asked == []
    download(described)
    download(described)
    assert_reads(home)
    assert server.asked == ["/nuts.zip"]


def test_what_is_there_stays(server, home):
    server.files["/nuts.zip"] = zipped(under("nuts"))
    (home / "nuts/images/train").mkdir(parents=True)
    (home / "nuts/images/train/mine.png").write_bytes(IMAGE)
    download(spec(home, f"{server.url}/nuts.zip"))
    assert files(home) == {"nuts.yaml", *under("nuts"), "nuts/images/train/mine.png"}


def test_another_digest_is_refused(server, home):
    server.files["/nuts.zip"] = content = zipped(under("nuts"))
    message = refusal(home, {"url": f"{server.url}/nuts.zip", "sha256": "0" * 64})
    assert f"/nuts.zip: has the SHA-256 {hashlib.sha256(content).hexdigest()} and not {'0' * 64}" in message


@pytest.mark.parametrize("digest", ["abc", 5, "g" * 64, ["0"]])
def test_what_is_no_digest_is_refused(server, home, digest):
    assert "64 hexadecimal digits" in refusal(home, {"url": f"{server.url}/nuts.zip", "sha256": digest})
    assert server.asked == []


def test_what_a_server_does_not_have_is_named(server, home):
    assert f"{server.url}/no.zip: cannot be fetched (HTTP Error 404: Not Found)" in refusal(
        home, f"{server.url}/no.zip"
    )


@pytest.mark.timeout(30)
def test_a_server_that_does_not_answer_is_named(home, monkeypatch):
    monkeypatch.setattr(download_module, "_STALLED", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/nuts.zip"
        assert f"{url}: cannot be fetched (timed out)" in refusal(home, url)


def test_a_server_that_is_not_there_is_named(home):
    assert "cannot be fetched" in refusal(home, "http://127.0.0.1:1/nuts.zip")
    assert "cannot be fetched" in refusal(home, "http://127.0.0.1:99999/nuts.zip")


def flipped(content: bytes) -> bytes:
    """Change bytes of the first file's content."""
    return content[:60] + bytes(255 - byte for byte in content[60:90]) + content[90:]


BREAKS = {
    "empty": lambda content: b"",
    "other": lambda content: b"not an archive",
    "half": lambda content: content[: len(content) // 2],
    "flipped": flipped,
}


@pytest.mark.parametrize(
    ("suffix", "how"),
    # Nothing in a plain tar tells that it is cut between two files; the number of bytes does, below.
    [(s, how) for s in MAKERS for how in BREAKS if s != ".tar" or how in ("empty", "other")],
)
def test_a_broken_archive_is_named(server, home, suffix, how):
    server.files[f"/nuts{suffix}"] = BREAKS[how](MAKERS[suffix](under("nuts")))
    wanted = f"{server.url}/nuts{suffix}: is a broken archive; try again or fetch it by hand"
    assert refusal(home, f"{server.url}/nuts{suffix}") == wanted


def test_a_download_cut_short_is_refused_even_where_the_archive_would_do(server, home):
    whole = tarred(under("nuts"), mode="w")
    server.files["/nuts.tar"], server.missing = whole, 512  # of the zeros at the end
    message = refusal(home, f"{server.url}/nuts.tar")
    assert f"cannot be fetched ({len(whole) - 512} of {len(whole)} bytes came); try again" in message


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "nuts/../../evil.txt", "../../evil.txt"])
@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_names_that_lead_out_are_refused(server, home, name, suffix):
    name = str(home.parent / "evil.txt") if name.startswith("/") else name
    harmful = {**under("nuts"), name: b"evil"}
    server.files[f"/nuts{suffix}"] = zipped(harmful) if suffix == ".zip" else tarred(harmful)
    entry = {"url": f"{server.url}/nuts{suffix}", "into": "."}
    if suffix == ".zip" or not name.startswith("/"):
        assert "do not use this archive" in refusal(home, entry)
    else:  # tar's filter takes the leading slash off, so that the file lands inside
        with pytest.raises(UserError, match="no such path"):
            download(spec(home, entry))
        assert not (home.parent / "evil.txt").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("target", ["/etc", "../../..", "../../home/nuts.yaml"])
def test_links_that_lead_out_are_refused(server, home, kind, target):
    server.files["/nuts.tar"] = tarred(under("nuts"), link("nuts/way", target, kind), mode="w")
    message = refusal(home, f"{server.url}/nuts.tar")
    assert message.startswith(f"{server.url}/nuts.tar: ")


def test_devices_are_refused(server, home):
    server.files["/nuts.tar"] = tarred(under("nuts"), link("nuts/pipe", "", tarfile.FIFOTYPE), mode="w")
    assert "do not use this archive" in refusal(home, f"{server.url}/nuts.tar")


def test_links_inside_are_kept(server, home):
    tree = {name: content for name, content in TREE.items() if "/train/" in name}
    links = [link("nuts/images/val", "train"), link("nuts/labels/val", "train")]
    server.files["/nuts.tar"] = tarred(under("nuts", tree), *links, mode="w")
    download(spec(home, f"{server.url}/nuts.tar"))
    assert_reads(home)


@pytest.mark.parametrize(
    "script",
    [
        "from pathlib import Path\nPath('ran').touch()\n",
        "Path('ran').touch()",
        "bash -c 'touch ran'",
        "touch ran; curl http://127.0.0.1/a.zip",
        "http://127.0.0.1/a b.zip",
        "http://127.0.0.1/a.zip\ntouch ran",
        "http://127.0.0.1/a.sh",
        "file:///tmp/a.zip",
        "ftp://127.0.0.1/a.zip",
        "a.zip",
        "http://[::1/a.zip",
        5,
        {"into": "."},
        [["http://127.0.0.1/a.zip"]],
    ],
)
def test_scripts_and_other_addresses_are_refused_and_never_run(server, home, script, monkeypatch):
    monkeypatch.chdir(home)
    message = refusal(home, script)
    assert message.startswith(f"{home}/nuts.yaml, key download: ")
    assert "is not the URL of a .zip" in message
    assert "scripts are never run" in message
    assert server.asked == []


def test_nothing_to_download_from(home):
    (home / "nuts").mkdir()
    with pytest.raises(UserError, match="key download: is missing, so download=true has nothing to fetch for nuts"):
        download(spec(home, None))


@pytest.mark.parametrize("into", ["../..", "/", "a\0", 1.5])
def test_a_folder_outside_is_refused(server, home, into):
    message = refusal(home, {"url": f"{server.url}/nuts.zip", "into": into})
    assert f"{home}/nuts.yaml, key download" in message
    assert "into" in message
    assert server.asked == []


def test_a_place_that_cannot_be_written_is_named(server, home):
    server.files["/nuts.zip"] = zipped(under("nuts"))
    described = spec(home, {"url": f"{server.url}/nuts.zip", "into": "."})
    (home / "nuts").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="nuts: cannot be written"):
        download(described)


def test_a_locked_archive_is_named(server, home):
    content = bytearray(zipped(under("nuts")))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flag of encryption
        content[content.index(mark) + offset] |= 1
    server.files["/nuts.zip"] = bytes(content)
    assert "/nuts.zip: cannot be unpacked" in refusal(home, f"{server.url}/nuts.zip")


def test_an_archive_of_something_else_says_what_is_still_missing(server, home):
    server.files["/nuts.zip"] = zipped({"README": b"sold out"})
    with pytest.raises(UserError, match="split train of nuts: no such path"):
        download(spec(home, f"{server.url}/nuts.zip"))
