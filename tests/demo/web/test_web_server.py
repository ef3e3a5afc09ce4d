"""The server: what it sends and with which headers, what it refuses, and the command that starts it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from http.client import HTTPConnection, HTTPResponse
from urllib.request import urlopen

import pytest
from hand_made_onnx import colour_detector
from web_site import serving, stand_in

from yolo_lat.cli import main
from yolo_lat.demo.web import site as site_module
from yolo_lat.demo.web.server import PageServer
from yolo_lat.demo.web.site import VENDOR, build_site
from yolo_lat.errors import UserError

MIME = {
    "/": "text/html; charset=utf-8",
    "/index.html": "text/html; charset=utf-8",
    "/?conf=1": "text/html; charset=utf-8",
    "/app.js": "text/javascript; charset=utf-8",
    "/style.css": "text/css; charset=utf-8",
    "/icon.svg": "image/svg+xml",
    "/models.json": "application/json; charset=utf-8",
    "/models/colours.onnx": "application/octet-stream",
    "/models/%63olours.onnx": "application/octet-stream",
    "/vendor/ort.wasm.min.mjs": "text/javascript; charset=utf-8",
    "/vendor/ort-wasm-simd-threaded.wasm": "application/wasm",
    "/vendor/LICENSE": "text/plain; charset=utf-8",
}
TRAVERSALS = [
    *("/../server.py", "/static/../server.py", "/vendor/../../server.py", "/%2e%2e/server.py", "/..%2fserver.py"),
    *("//etc/passwd", "/%2fetc%2fpasswd", "/..\\server.py", "/models/", "/vendor", "/.", "/index.html/", "/%00"),
    *("/models/colours.onnx%00.html", "/models/../../../secret.txt", "/%ff%fe", "/INDEX.HTML", "/server.py"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    (folder / "secret.txt").write_text("secret")
    return build_site([colour_detector(folder / "colours.onnx")], vendor=stand_in(folder / "vendor"))


@pytest.fixture(scope="module")
def server(site):
    with serving(site) as running:
        yield running


def ask(server: PageServer, path: str, method: str = "GET", host: str | None = None) -> tuple[HTTPResponse, bytes]:
    connection = HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    try:
        connection.putrequest(method, path, skip_host=host is not None)
        if host:
            connection.putheader("Host", host)
        connection.endheaders()
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def test_every_file_of_the_site_is_served_as_it_is(server, site):
    for name, asset in site.items():
        response, content = ask(server, f"/{name}")
        assert (response.status, content) == (200, asset.read()), name


@pytest.mark.parametrize("path", MIME)
def test_content_types(server, path):
    response, content = ask(server, path)
    assert (response.status, response.headers["Content-Type"]) == (200, MIME[path])
    assert int(response.headers["Content-Length"]) == len(content) > 0


@pytest.mark.parametrize("path", ["/", "/app.js", "/no-such-file"])
def test_headers_shut_out_every_other_host(server, path):
    headers = ask(server, path)[0].headers
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert headers["X-Content-Type-Options"] == "nosniff"
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self' 'wasm-unsafe-eval'")
    assert "http" not in policy
    assert "'unsafe-eval'" not in policy
    assert "'unsafe-inline'" not in policy
    assert "Python" not in headers["Server"]


def test_head_sends_the_headers_alone(server):
    whole, content = ask(server, "/app.js")
    head, nothing = ask(server, "/app.js", "HEAD")
    assert (head.status, nothing) == (200, b"")
    assert head.headers["Content-Length"] == str(len(content)) == whole.headers["Content-Length"]


@pytest.mark.parametrize("path", TRAVERSALS)
def test_nothing_outside_the_site_is_found(server, path):
    response, content = ask(server, path)
    assert response.status == 404
    assert b"secret" not in content
    assert b"Directory" not in content


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_nothing_can_be_written(server, method):
    assert ask(server, "/index.html", method)[0].status == 501


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost.evil.example", "", "[::2]:80", "[::1"])
def test_a_foreign_name_for_this_machine_gets_nothing(server, host):
    assert ask(server, "/models.json", host=host or " ")[0].status == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000", "[::1]"])
def test_the_names_of_this_machine_are_known(server, host):
    assert ask(server, "/models.json", host=host)[0].status == 200


def test_garbage_is_answered_and_survived(server):
    for line in (b"GET\r\n\r\n", b"\x00\xff\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"A" * 70_000 + b"\r\n\r\n"):
        with socket.create_connection(server.server_address[:2], timeout=10) as connection:
            connection.sendall(line)
            connection.shutdown(socket.SHUT_WR)
            assert b"200 OK" not in connection.recv(100)
    assert ask(server, "/")[0].status == 200


def test_a_connection_serves_several_requests_and_may_be_cut(server, capsys):
    connection = HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    for _ in range(3):
        connection.request("GET", "/app.js")
        assert connection.getresponse().read()
    connection.request("GET", "/models/colours.onnx")
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()  # with a reset
    assert ask(server, "/")[0].status == 200
    assert capsys.readouterr().err == ""


def test_a_model_that_was_moved_away_is_not_there(tmp_path):
    model = colour_detector(tmp_path / "colours.onnx")
    with serving(build_site([model], vendor=stand_in(tmp_path / "vendor"))) as server:
        model.unlink()
        assert ask(server, "/models/colours.onnx")[0].status == 404


def test_it_is_bound_to_loopback_and_other_addresses_take_any_name(server, site):
    assert server.server_address[0] == "127.0.0.1"
    assert server.url == f"http://localhost:{server.server_address[1]}/"
    with serving(site, "0.0.0.0") as wide:
        assert ask(wide, "/", host="my-machine:8000")[0].status == 200


def test_it_serves_by_ipv6(site):
    try:
        with serving(site, "::1") as server, urlopen(f"http://[::1]:{server.server_address[1]}/", timeout=10) as answer:
            assert answer.status == 200
    except UserError as error:
        pytest.skip(str(error))


def test_addresses_that_cannot_be_bound(site, server):
    port = server.server_address[1]
    with pytest.raises(UserError, match=rf"cannot serve on 127\.0\.0\.1:{port} \(.*\); pass another port=, or 0"):
        PageServer(site, port=port)
    with pytest.raises(UserError, match=r"cannot serve on no\.such\.host\.invalid:0"):
        PageServer(site, "no.such.host.invalid", 0)


# The command


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setattr(site_module.build_site, "__defaults__", (0.25, stand_in(tmp_path / "vendor")))
    return colour_detector(tmp_path / "colours.onnx")


def run(capsys, *words: object) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as leave:
        main(["demo", "web", *map(str, words)])
    captured = capsys.readouterr()
    return leave.value.code, captured.out, captured.err


def test_the_command_writes_a_folder(model, tmp_path, capsys):
    status, out, err = run(capsys, f"model={model},{model}", f"output={tmp_path / 'page'}")
    assert (status, err) == (0, "")
    assert out.startswith(f"{tmp_path / 'page'}: ")
    assert (tmp_path / "page/index.html").is_file()
    assert (tmp_path / "page/models/colours-2.onnx").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "demo web needs model=, for example: yolo-lat demo web model=best.onnx"),
        (["model={model}", "port=80000"], "port=80000 is no port; pass a number from 0"),
        (["model={model}", "port=http"], "port=http is no port"),
        (["model={model}", "conf=high"], "conf=high is no threshold; pass a number from 0.01 to 1"),
        (["model={model}", "output=x", "port=1"], "output= writes a folder and serves nothing; leave port= out"),
        (["model={model}", "output=."], "output=. exists already; name a new folder"),
        (["model=yolo-lat-n"], "yolo-lat-n is not a file; pass the path of an .onnx model"),
    ],
)
def test_mistakes_are_one_sentence(model, capsys, words, message):
    status, out, err = run(capsys, *(word.format(model=model) for word in words))
    assert (status, out) == (2, "")
    assert err.startswith(f"yolo-lat: error: {message}")
    assert err.count("\n") == 1


@pytest.mark.skipif(not VENDOR.is_dir(), reason="onnxruntime-web was not built; run python tools/build_web.py")
@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_the_command_serves_until_ctrl_c(tmp_path):
    model = colour_detector(tmp_path / "colours.onnx")
    words = [sys.executable, "-m", "yolo_lat", "demo", "web", f"model={model}", "port=0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            address = process.stdout.readline().split()[0]
            with urlopen(address, timeout=10) as answer:
                assert b"<title>YOLO-LAT" in answer.read()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=10)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (0, "ended\n", "")
