"""Listening: the port, connections with deadlines, and an end that answers what was begun."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
import signal
import socket
import warnings
from types import FrameType

import cv2
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from yolo_lat.errors import UserError
from yolo_lat.serve.app import Service, create_app
from yolo_lat.serve.detector import ServedDetector
from yolo_lat.serve.settings import ServeSettings

MAX_CONNECTIONS = 500
HEAD_SECONDS = 10  # for the head of a request, and for what is left of a body that was refused
_SEND_SECONDS = 20  # for an answer to be taken


def run(settings: ServeSettings) -> None:
    """Serve until SIGTERM or SIGINT; requests that run then are answered.

    Raises:
        UserError: a model, device or port that cannot be used.
        KeyboardInterrupt: after SIGINT.
    """
    listener = bind(settings.host, settings.port)
    with listener:
        cv2.setNumThreads(1)  # pictures are spread over threads already
        # A damaged upload is its sender's business.
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
        warnings.filterwarnings("ignore", module="PIL")
        service = Service(ServedDetector(settings), settings)
        _log_to_stderr()
        # Uvicorn raises the signal once more when it is done.
        before = signal.signal(signal.SIGTERM, lambda *_: None)
        try:
            Server(service, listener).run(sockets=[listener])
        finally:
            signal.signal(signal.SIGTERM, before)


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that is bound and does not listen yet.

    Raises:
        UserError: an address that is not of this machine, or a port that is taken or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise UserError(f"cannot listen on host={host} port={port} ({error.strerror}); pass another") from error
    return listener


def is_loopback(address: str) -> bool:
    """Return whether only this machine reaches an IP address."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def notices(service: Service, host: str, port: int) -> list[str]:
    """Return what to print once a service listens there."""
    detector = service.detector
    height, width = detector.imgsz
    if service.settings.max_batch is not None:
        reason = ""
    elif detector.fixed_batch:
        reason = " (fixed by the model; export with dynamic=true for others)"
    else:
        reason = " (measured; max_batch= sets another number)"
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/detect"
    lines = [
        f"serving {service.settings.model.name} on {detector.provider}, {width}x{height} px, up to "
        f"{detector.max_batch} pictures at once{reason}: POST to {url}"
    ]
    if not is_loopback(host):
        lines.append(
            f"warning: {host} is reached from other machines, and there is no password; put a proxy with "
            "authentication and TLS before it, or leave host= out"
        )
    return lines


class Server(uvicorn.Server):
    """Uvicorn with deadlines, that stops taking pictures as soon as it is told to end.

    Args:
        service: the model at work.
        listener: the socket that `run` is given.
    """

    def __init__(self, service: Service, listener: socket.socket) -> None:
        grace = 2 * service.settings.timeout + _SEND_SECONDS
        super().__init__(
            uvicorn.Config(
                create_app(service),
                http=_timed_protocol(grace),
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=math.ceil(grace),
            )
        )
        self._service, self._address = service, listener.getsockname()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say so."""
        await super().startup(sockets)
        print("\n".join(notices(self._service, *self._address[:2])), flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Refuse pictures from now on."""
        self._service.draining = True
        super().handle_exit(sig, frame)


def _timed_protocol(request_seconds: float) -> type[H11Protocol]:
    """Return Uvicorn's HTTP/1.1 with deadlines and a bound on connections, none of which it has itself."""

    class TimedProtocol(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None
        _timed: object = None

        # Uvicorn's own signature, which is narrower than asyncio's already.
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > MAX_CONNECTIONS:
                transport.abort()
            else:
                self._arm(HEAD_SECONDS)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._time()

        def on_response_complete(self) -> None:
            self._disarm()  # what is idle between requests, Uvicorn closes
            super().on_response_complete()
            if self._busy():
                self._time()  # the next request was waiting already
            elif self.transport.get_write_buffer_size():
                self._arm(_SEND_SECONDS)

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            super().connection_lost(exc)

        def _busy(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _time(self) -> None:
            if self._busy():
                if self._timed is not self.cycle:
                    self._timed = self.cycle
                    self._arm(request_seconds)
            elif self._deadline is None:
                self._arm(HEAD_SECONDS)

        def _arm(self, seconds: float) -> None:
            self._disarm()
            self._deadline = self.loop.call_later(seconds, self.transport.abort)

        def _disarm(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

    return TimedProtocol


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name, level in (
        ("yolo_lat.serve", logging.INFO),
        ("uvicorn", logging.WARNING),
        ("python_multipart", logging.ERROR),
    ):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
