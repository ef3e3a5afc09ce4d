"""The server of the page: the files of a site and nothing else, on this machine alone unless told otherwise."""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from yolo_lat.demo.web.site import Asset
from yolo_lat.errors import UserError

POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; connect-src 'self'; "
    "img-src 'self' blob:; media-src 'self' blob:; style-src 'self'; base-uri 'none'; form-action 'none'"
)
_HEADERS = {
    "Content-Security-Policy": f"{POLICY}; frame-ancestors 'none'",
    # These two give the page shared memory, without which WASM runs in one thread.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_IDLE_SECONDS = 60


class PageServer(ThreadingHTTPServer):
    """Serve a site, which is looked up by name, so no file outside it can be reached.

    Args:
        site: the files by path, see `yolo_lat.demo.web.site`.
        host: address or name to bind to.
        port: 0 takes any that is free.

    Raises:
        UserError: the address cannot be bound.
    """

    daemon_threads = True

    def __init__(self, site: Mapping[str, Asset], host: str = "127.0.0.1", port: int = 8000) -> None:
        self.site = site
        try:
            self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"cannot serve on {host}:{port} ({reason}); pass another port=, or 0 for any") from error
        # A name that a stranger's page resolves to this machine must not give that page the user's files.
        self.names = _LOOPBACK | {host.lower()} if is_loopback(self.server_address[0]) else None

    @property
    def url(self) -> str:
        """Return the address of the page."""
        host, port = self.server_address[:2]
        shown = "localhost" if host in ("0.0.0.0", "127.0.0.1", "::", "::1") else str(host)
        return f"http://{shown}:{port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of browsers that close a connection early; report everything else."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def is_loopback(host: Any) -> bool:
    """Return whether an IP address is of this machine alone."""
    return ipaddress.ip_address(str(host)).is_loopback


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "yolo-lat", ""
    timeout = _IDLE_SECONDS

    def do_GET(self) -> None:
        self._answer(with_content=True)

    def do_HEAD(self) -> None:
        self._answer(with_content=False)

    def _answer(self, with_content: bool) -> None:
        if self.server.names is not None and self._asked_host() not in self.server.names:
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
            return
        name = unquote(urlsplit(self.path).path).removeprefix("/") or "index.html"
        asset = self.server.site.get(name)
        try:
            content = None if asset is None else asset.read()
        except OSError:  # a model that was moved away since
            content = None
        if asset is None or content is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", asset.mime)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_content:
            self.wfile.write(content)

    def _asked_host(self) -> str | None:
        """Return the name under which the browser knows this server, None if it is none."""
        try:
            return urlsplit(f"//{self.headers.get('Host', '')}").hostname
        except ValueError:
            return None

    def end_headers(self) -> None:
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the terminal quiet; the page reports what fails."""
