"""What a server does not take: each gets its status and one sentence, and the server goes on."""

from __future__ import annotations

import io
import re
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from serving import Gated, Running, encoded, serving, squares, wait_until

from yolo_lat.serve import server as server_module

GOOD = encoded(squares(1))
FORM = {"Content-Type": "multipart/form-data; boundary=x"}


def png(width: int, height: int) -> bytes:
    """The head of a PNG of any size, and pixels for none of it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def webp(width: int, height: int, kind: bytes = b"VP8X") -> bytes:
    w, h = (width - 1).to_bytes(3, "little"), (height - 1).to_bytes(3, "little")
    data = {
        b"VP8X": bytes(4) + w + h,
        b"VP8 ": b"\x30\x01\x00\x9d\x01\x2a" + struct.pack("<HH", width & 0x3FFF, height & 0x3FFF),
        b"VP8L": b"\x2f" + ((width - 1 | height - 1 << 14) & 0xFFFFFFFF).to_bytes(4, "little") + bytes(5),
    }[kind]
    return b"RIFF" + struct.pack("<I", 4 + 8 + len(data)) + b"WEBP" + kind + struct.pack("<I", len(data)) + data


def bmp(width: int, height: int) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 64, 0, 0, 54) + head + bytes(64)


def tiff(width: int, height: int, **more: int) -> bytes:
    """A TIFF of one strip or tile that holds next to nothing."""
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 277: 1}
    tags |= {273: 8, 278: height, 279: 4} if not more else {322: more["tile"], 323: more["tile"], 324: 8, 325: 4}
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<I", 12) + bytes(4) + struct.pack("<H", len(tags)) + rows + bytes(4)


def jpeg(width: int, height: int) -> bytes:
    """A JPEG whose frame header was given another size."""
    stream = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stream, "JPEG")
    content = bytearray(stream.getvalue())
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(content)


def form(body: str) -> bytes:
    return body.replace("\n", "\r\n").encode()


def assert_refused(response: httpx.Response, status: int, words: str = "") -> None:
    assert response.status_code == status, response.text
    (sentence,) = [response.json()["error"]]
    assert set(response.json()) == {"error"}
    assert "\n" not in sentence
    assert words in sentence
    assert not re.search(r"Traceback|File \"|packages|\.py\b|<.*>", sentence)
    assert response.headers["x-request-id"]


@pytest.fixture(autouse=True)
def still_alive(running: Running) -> Iterator[None]:
    yield
    assert running.detect(GOOD).status_code == 200
    assert running.client.get("/ready").json() == {"ready": True}


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        pytest.param(b"", 400, "empty", id="empty"),
        pytest.param(b"x" * 100_001, 413, "larger than 0.1 MB", id="a byte too many"),
        pytest.param(b"hello", 415, "no JPEG, PNG, WebP, BMP or TIFF", id="text"),
        pytest.param(b"GIF89a" + bytes(50), 415, "no JPEG", id="gif"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "no JPEG", id="svg"),
        pytest.param(b"file:///etc/passwd", 415, "no JPEG", id="file URL"),
        pytest.param(b"/etc/passwd", 415, "no JPEG", id="path"),
        pytest.param(GOOD[:60], 400, "damaged or cut off", id="cut PNG"),
        pytest.param(encoded(squares(1), ".jpg")[:-40], 400, "JPEG is damaged", id="cut JPEG"),
        pytest.param(encoded(squares(1), ".webp")[:-40], 400, "WEBP is damaged", id="cut WebP"),
        pytest.param(encoded(squares(1), ".bmp")[:-400], 400, "BMP is damaged", id="cut BMP"),
        pytest.param(encoded(squares(1), ".tiff")[:-100], 400, "TIFF is damaged", id="cut TIFF"),
        pytest.param(b"\x89PNG\r\n\x1a\n", 400, "PNG is damaged", id="PNG without a head"),
        pytest.param(b"\xff\xd8\xff", 400, "JPEG is damaged", id="JPEG without a head"),
        pytest.param(b"RIFF\0\0\0\0WEBP", 400, "WEBP is damaged", id="WebP without a head"),
        pytest.param(b"BM", 400, "BMP is damaged", id="BMP without a head"),
        pytest.param(b"II*\0", 400, "TIFF is damaged", id="TIFF without a head"),
        pytest.param(png(0, 5), 400, "PNG is damaged", id="no pixel"),
        pytest.param(png(8, 8), 400, "PNG is damaged", id="a head alone"),
        pytest.param(png(400, 251), 413, "more than 0.1 megapixels", id="a row too many"),
        pytest.param(png(30_000, 30_000), 413, "more than", id="PNG bomb"),
        pytest.param(png(2**31 - 1, 2**31 - 1), 413, "more than", id="largest PNG"),
        pytest.param(jpeg(65_000, 65_000), 413, "more than", id="JPEG bomb"),
        pytest.param(webp(2**24, 2**24), 413, "more than", id="WebP bomb"),
        pytest.param(webp(16_383, 16_383, b"VP8 "), 413, "more than", id="lossy WebP bomb"),
        pytest.param(webp(16_384, 16_384, b"VP8L"), 413, "more than", id="lossless WebP bomb"),
        pytest.param(bmp(30_000, 30_000), 413, "more than", id="BMP bomb"),
        pytest.param(tiff(30_000, 30_000), 413, "more than", id="TIFF bomb"),
        pytest.param(tiff(16, 16, tile=30_000), 413, "more than", id="TIFF tile bomb"),
    ],
)
def test_bodies(running, content, status, words):
    assert_refused(running.detect(content), status, words)


def test_the_largest_that_is_allowed_is_answered(running):
    picture = encoded(squares(1, (248, 400)), ".bmp")[:100_000]
    assert running.detect(encoded(squares(1, (248, 400)))).status_code == 200
    assert_refused(running.detect(picture), 400, "BMP is damaged")


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("conf=0", "'conf': input should be greater than or equal to 0.01"),
        ("conf=1.01", "'conf': input should be less than or equal to 1"),
        ("conf=nan", "'conf'"),
        ("conf=a", "'conf': input should be a valid number"),
        ("iou=-0.1", "'iou'"),
        ("max_det=0", "'max_det'"),
        ("max_det=1001", "'max_det'"),
        ("max_det=1.5", "'max_det'"),
        ("format=xml", "'format': input should be 'json' or 'image'"),
        ("url=http://127.0.0.1/x.png", "'url': extra inputs are not permitted"),
        ("path=..%2F..%2Fetc%2Fpasswd", "'path': extra inputs are not permitted"),
        ("%0d%0aSet-Cookie:a=b", "extra inputs"),
    ],
)
def test_queries(running, query, words):
    response = running.client.post(f"/detect?{query}", content=GOOD)
    assert_refused(response, 422, words)
    assert "set-cookie" not in response.headers


@pytest.mark.parametrize(
    ("headers", "body", "status", "words"),
    [
        ({"Content-Type": "multipart/form-data"}, b"--x--", 400, "check its boundary"),
        (FORM, b"no form at all", 400, "cannot be read"),
        (FORM, form("--x\nContent-Disposition: form-data; name=file; filename=a\n\nabc"), 422, "0 files"),
        (FORM, form("--x--\n"), 422, "0 files"),
        (FORM, form('--x\nContent-Disposition: form-data; name="file"\n\n/etc/passwd\n--x--\n'), 422, "0 files"),
        (FORM, form('--x\nContent-Disposition: form-data; name="a"; filename="b"\n\nc\n--x--\n'), 422, "0 files"),
        (
            FORM,
            form('--x\nContent-Disposition: form-data; name="file"; filename="b"\n\nc\n') * 2 + b"--x--\r\n",
            422,
            "2",
        ),
        (
            FORM,
            form('--x\nContent-Disposition: form-data; name="file"; filename="b"\n\nc\n') * 9 + b"--x--\r\n",
            422,
            "8",
        ),
        (
            FORM,
            form('--x\nContent-Disposition: form-data; name="file"; filename="/etc/hosts"\n\n\n--x--\n'),
            415,
            "no J",
        ),
        (FORM, form("--x\n\nc\n--x--\n"), 400, "cannot be read"),
        ({"Content-Type": "application/json"}, b'{"url": "http://127.0.0.1/"}', 415, "is no picture"),
        ({"Content-Type": "text/html"}, GOOD, 415, "is no picture"),
    ],
)
def test_forms_and_types(running, headers, body, status, words):
    assert_refused(running.client.post("/detect", content=body, headers=headers), status, words)


def test_a_file_name_of_a_form_is_never_opened(running):
    response = running.client.post("/detect", files={"file": ("../../../../etc/passwd", GOOD)})
    assert response.status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/docs",
        "/redoc",
        "/detect/../../etc/passwd",
        "/..%2f..%2fetc/passwd",
        "//etc/passwd",
        "/static/../x",
        "/%00",
    ],
)
def test_there_are_no_other_pages(running, path):
    answer = raw(running, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404")
    assert b"root:" not in answer


def test_other_methods_are_named(running):
    response = running.client.put("/detect", content=GOOD)
    assert_refused(response, 405, "PUT")
    assert response.headers["allow"] == "POST"


def test_urls_are_not_fetched(running):
    """Nothing asks a server whose address stands in every place of a request."""
    asked: list[str] = []

    class Listener(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)

    with HTTPServer(("127.0.0.1", 0), Listener) as trap:
        Thread(target=trap.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{trap.server_address[1]}/a.png"
        running.detect(url.encode())
        running.detect(GOOD, url=url)
        running.client.post("/detect", data={"file": url})
        running.client.post("/detect", files={"file": (url, url.encode())})
        running.client.post("/detect", content=GOOD, headers={"Referer": url, "X-Forwarded-Host": url, "Origin": url})
        time.sleep(0.1)
        trap.shutdown()
    assert asked == []


def raw(running: Running, request: bytes, seconds: float = 30) -> bytes:
    """Send bytes and return what comes until the connection closes, or the first answer is there."""
    with socket.create_connection(("127.0.0.1", running.port), timeout=seconds) as connection:
        connection.sendall(request)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
        return answer


@pytest.mark.parametrize(
    "request_head",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET\r\n\r\n",
        b"POST /detect HTTP/9.9\r\nConnection: close\r\n\r\n",
        b"\0" * 100,
    ],
    ids=["tls", "no path", "version", "zeros"],
)
def test_what_is_no_http_gets_400(running, request_head):
    assert raw(running, request_head).startswith(b"HTTP/1.1 400")


def test_a_head_without_end_is_cut_off(running):
    line = b"X-Header: " + b"a" * 1000 + b"\r\n"
    assert raw(running, b"GET /health HTTP/1.1\r\n" + 100 * line).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("head", ["Content-Length: 900000000", "Transfer-Encoding: chunked"])
def test_413_comes_long_before_the_end_of_a_large_body(running, head):
    """The answer is there after little more than the limit, though most of the body was never sent."""
    with socket.create_connection(("127.0.0.1", running.port), timeout=30) as connection:
        connection.sendall(f"POST /detect HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode())
        connection.sendall(b"30000\r\n" + bytes(0x30000) + b"\r\n")  # 196,608 bytes
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")


def test_uploads_together_are_bounded(model):
    with serving(model, max_mb=0.01, timeout=60) as running:
        connections = []
        for _ in range(30):
            connection = socket.create_connection(("127.0.0.1", running.port), timeout=30)
            connection.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n" + bytes(9998))
            connections.append(connection)
        wait_until(lambda: running.metrics().get("yolo_lat_requests_total{path=/detect,status=503}", 0) >= 5)
        for connection in connections:
            connection.close()
        wait_until(lambda: running.metrics()["yolo_lat_in_flight"] == 1)  # the one that asks
        assert running.detect(GOOD).status_code == 200
        assert running.service.uploads._free == 25 * 10_000


def half_sent(running: Running, request: bytes) -> socket.socket:
    """Return a connection over which the beginning of a request was sent."""
    connection = socket.create_connection(("127.0.0.1", running.port), timeout=30)
    connection.sendall(request)
    return connection


def test_slow_bodies_get_408_and_hold_up_nobody(model, monkeypatch):
    request = b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\nP"
    with serving(model, timeout=60, queue=4) as running, ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(half_sent(running, request))
        wait_until(lambda: running.metrics()["yolo_lat_in_flight"] == 21)  # the one that asks is one more
        assert running.detect(GOOD).status_code == 200
        assert running.metrics()["yolo_lat_in_flight"] == 21
        monkeypatch.setattr(running.service.uploads, "_seconds", 0.3)
        for slow in [half_sent(running, request) for _ in range(20)]:
            with slow:
                assert slow.recv(1000).startswith(b"HTTP/1.1 408")


def test_slow_heads_are_closed_and_hold_up_nobody(model, monkeypatch):
    request = b"POST /detect HTTP/1.1\r\nX-"
    monkeypatch.setattr(server_module, "HEAD_SECONDS", 60)
    with serving(model) as running, ExitStack() as stack:
        connections = running.server.server_state.connections
        for _ in range(30):
            stack.enter_context(half_sent(running, request))
        wait_until(lambda: len(connections) == 30)
        assert running.detect(GOOD).status_code == 200
        with monkeypatch.context() as patch:
            patch.setattr(server_module, "HEAD_SECONDS", 0.3)
            dripping, *slow = [half_sent(running, sent) for sent in [request] * 30 + [b""]]
            with dripping:
                wait_until(lambda: drips_in_vain(dripping))
            for connection in slow:
                with connection, suppress(ConnectionResetError):
                    assert connection.recv(1000) == b""
        assert running.detect(GOOD).status_code == 200


def drips_in_vain(connection: socket.socket) -> bool:
    """Send a byte more of a head; True once the connection is closed."""
    try:
        connection.sendall(b"a")
    except ConnectionError:
        return True
    return False


def test_an_answer_that_nobody_takes_is_given_up(model, monkeypatch):
    """A picture of 600 kB goes back to a client that reads nothing, and to one that reads."""
    picture = encoded(np.random.default_rng(0).integers(0, 256, (400, 500, 3), np.uint8))
    head = f"POST /detect?format=image HTTP/1.1\r\nHost: x\r\nContent-Length: {len(picture)}\r\n\r\n".encode()
    monkeypatch.setattr(server_module, "_SEND_SECONDS", 0.2)
    with serving(model) as running, socket.socket() as deaf:
        connections = running.server.server_state.connections
        running.server.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.settimeout(10)
        deaf.connect(("127.0.0.1", running.port))
        wait_until(lambda: len(connections) == 1)
        (held,) = connections
        deaf.sendall(head + picture)
        wait_until(lambda: held not in connections)
        assert running.metrics()["yolo_lat_requests_total{path=/detect,status=200}"] == 1
        monkeypatch.setattr(server_module, "_SEND_SECONDS", 60)
        assert len(running.detect(picture, format="image").content) > 500_000


def test_connections_are_bounded(model, monkeypatch):
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 5)
    with serving(model) as running:
        assert running.detect(GOOD).status_code == 200
        more = [socket.create_connection(("127.0.0.1", running.port), timeout=30) for _ in range(8)]
        wait_until(lambda: len(running.server.server_state.connections) == 5)
        assert running.detect(GOOD).status_code == 200  # on the connection that was there before
        for connection in more:
            connection.close()


def test_a_full_queue_gets_503_and_when_to_come_again(model):
    with serving(model, Gated, queue=3, timeout=60) as running, ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(running.detect, GOOD) for _ in range(3)]
        wait_until(lambda: running.service.busy == 3)
        refused = running.detect(GOOD)
        assert_refused(refused, 503, "3 pictures are waiting already")
        assert refused.headers["retry-after"] == "1"
        assert running.client.get("/health").json()["queue"] | {"waiting": 0} == {"waiting": 0, "busy": 3, "limit": 3}
        running.service.detector.gate.set()
        assert [future.result(60).status_code for future in waiting] == [200] * 3
        assert running.detect(GOOD).status_code == 200


def test_what_takes_too_long_gets_504_and_is_not_run_later(model):
    with serving(model, Gated, timeout=2) as running, ThreadPoolExecutor(3) as pool:
        detector = running.service.detector
        late = [pool.submit(running.detect, GOOD)]
        wait_until(detector.entered.is_set)
        late += [pool.submit(running.detect, GOOD) for _ in range(2)]
        for future in late:
            assert_refused(future.result(60), 504, "no answer within 2 s")
        detector.gate.set()
        wait_until(lambda: running.detect(GOOD).status_code == 200)
        assert set(detector.batches) == {1}  # the two that waited together are out
        assert running.service.busy == 0


def test_clients_that_went_away_are_skipped(model):
    with serving(model, Gated, max_batch=1, timeout=60) as running, ThreadPoolExecutor(2) as pool:
        first = pool.submit(running.detect, GOOD)
        wait_until(running.service.detector.entered.is_set)
        head = f"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: {len(GOOD)}\r\n\r\n".encode()
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", running.port), timeout=30) as connection:
                connection.sendall(head + GOOD)
                wait_until(lambda: running.service.busy == 2)
            wait_until(lambda: running.service.busy == 1)
        running.service.detector.gate.set()
        assert first.result(60).status_code == 200
        assert running.detect(GOOD).status_code == 200
        assert running.service.detector.batches == [1, 1]
        wait_until(lambda: running.metrics()["yolo_lat_requests_total{path=/detect,status=499}"] == 5)


def test_a_failure_of_ours_gets_500_without_details(model, caplog):
    with serving(model, Gated) as running:
        running.service.detector.gate.set()
        running.service.detector.fails = ArithmeticError("secret of the inside")
        response = running.client.post("/detect", content=GOOD, headers={"X-Request-ID": "mine-1"})
        assert_refused(response, 500, "the server failed")
        assert response.headers["x-request-id"] == "mine-1"
        assert "secret" not in response.text
        assert "request=mine-1 failed" in caplog.text
        assert "secret of the inside" in caplog.text
        running.service.detector.fails = None
        assert running.detect(GOOD).status_code == 200


def test_request_ids_are_safe_to_write_into_a_log(running):
    for given_id, kept in (("abc-1_2.3", True), ("a b", False), ("x" * 65, False), ("é", False)):
        response = running.client.get("/health", headers={"X-Request-ID": given_id.encode()})
        assert (response.headers["x-request-id"] == given_id) is kept


SEEDS = [encoded(squares(7), suffix) for suffix in (".png", ".jpg", ".webp", ".bmp", ".tiff")]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_random_bodies(running, data):
    """Noise, and pictures with bytes replaced, removed or repeated: answered or refused, never a failure."""
    content = bytearray(data.draw(st.one_of(st.sampled_from(SEEDS), st.binary(max_size=300))))
    for _ in range(data.draw(st.integers(0, 4))):
        if content:
            at = data.draw(st.integers(0, len(content) - 1))
            content[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    headers = data.draw(st.sampled_from([{}, FORM, {"Content-Type": "image/png"}]))
    response = running.client.post("/detect", content=bytes(content), headers=headers)
    assert response.status_code in {200, 400, 413, 415, 422}
    if response.status_code != 200:
        assert_refused(response, response.status_code)
