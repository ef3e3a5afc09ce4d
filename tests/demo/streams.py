"""Servers on loopback that stream like a camera does, in processes of their own so that they can be killed."""

from __future__ import annotations

import subprocess
import sys
from types import TracebackType

MJPEG = """
import itertools, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import cv2, numpy as np

port, rate, stall = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3] == "stall"
SIZES = [(96, 96)] if sys.argv[3] != "sizes" else [(96, 96), (192, 128)]

class Camera(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *words):
        pass

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        try:
            for i in itertools.count():
                width, height = SIZES[i // 40 % len(SIZES)]
                image = np.zeros((height, width, 3), np.uint8)
                x = i * 2 % (width - 24)
                image[32:56, x : x + 24] = 0, 0, 255
                done, jpeg = cv2.imencode(".jpg", image)
                data = jpeg.tobytes()
                head = b"--frame\\r\\nContent-Type: image/jpeg\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(data)
                self.wfile.write(head + data + b"\\r\\n")
                time.sleep(1 / rate)
                while stall and i == 40:
                    time.sleep(1)
        except OSError:
            pass

ThreadingHTTPServer.daemon_threads = True
server = ThreadingHTTPServer(("127.0.0.1", port), Camera)
print(server.server_port, flush=True)
server.serve_forever()
"""


RTSP = """
import sys
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
if len(sys.argv) > 1:
    Gst.init(None)
    server, factory = GstRtspServer.RTSPServer(), GstRtspServer.RTSPMediaFactory()
    server.set_address("127.0.0.1")
    server.set_service(sys.argv[1])
    factory.set_launch(
        "( videotestsrc is-live=true pattern=ball ! video/x-raw,width=160,height=96,framerate=30/1 ! "
        "x264enc tune=zerolatency key-int-max=30 ! rtph264pay name=pay0 pt=96 )"
    )
    server.get_mount_points().add_factory("/camera", factory)
    server.attach(None)
    print(server.get_bound_port(), flush=True)
    GLib.MainLoop().run()
"""
SYSTEM_PYTHON = "/usr/bin/python3"  # GStreamer's bindings come with the system, not from PyPI


class Server:
    """A server on a port that it finds itself, which can be killed and started again on the same port.

    Its program is given the port, 0 at first, and prints the one on which it listens.
    """

    path = ""
    scheme = "http"

    def __init__(self, command: list[str]) -> None:
        self.port = 0
        self._command = command
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/{self.path}"

    def start(self) -> None:
        command = [str(self.port) if word == "PORT" else word for word in self._command]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, text=True, **streams)
        with self._process.stdout as told:
            self.port = int(told.readline())

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


class MjpegServer(Server):
    """Moving red squares of 96 px as MJPEG over HTTP.

    Args:
        rate: frames a second.
        kind: "plain"; "stall", which goes silent after 40 frames; "sizes", which changes its resolution every 40.
    """

    path = "video"

    def __init__(self, rate: float = 30, kind: str = "plain") -> None:
        super().__init__([sys.executable, "-c", MJPEG, "PORT", str(rate), kind])


class RtspServer(Server):
    """A moving ball as H.264 over RTSP, 160 by 96 px, 30 frames a second, from GStreamer."""

    path, scheme = "camera", "rtsp"

    def __init__(self) -> None:
        super().__init__([SYSTEM_PYTHON, "-c", RTSP, "PORT"])

    @staticmethod
    def is_there() -> bool:
        try:
            return subprocess.run([SYSTEM_PYTHON, "-c", RTSP], capture_output=True).returncode == 0
        except OSError:
            return False
