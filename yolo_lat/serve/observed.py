"""Around every request: its id, its line in the log, its metrics, and an answer when the code fails."""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from yolo_lat.serve.metrics import Metrics
from yolo_lat.serve.refusal import CLIENT_GONE, RefusalError

PATHS: Final = ("/detect", "/health", "/ready", "/metrics", "/openapi.json")
LOG = logging.getLogger("yolo_lat.serve")
_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class Observed:
    """ASGI middleware.

    A client's `X-Request-ID` is kept if it is 1 to 64 letters, digits, dots, dashes and underscores; it comes back in
    the answer and stands in the log.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and answer for it if nothing else does."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        identity = given if _ID.fullmatch(given) else uuid.uuid4().hex[:12].encode()
        path = scope["path"] if scope["path"] in PATHS else "other"
        begun, status = time.perf_counter(), CLIENT_GONE

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", identity)]
            await send(message)

        self._metrics.in_flight.inc()
        try:
            await self._app(scope, receive, tell)
        except ClientDisconnect:
            pass
        except Exception:
            LOG.exception("request=%s failed", identity.decode())
            if status == CLIENT_GONE:
                failed = RefusalError(500, "the server failed; its log tells why under this answer's X-Request-ID")
                await failed.response()(scope, receive, tell)
        finally:
            self._metrics.in_flight.dec()
            seconds = time.perf_counter() - begun
            self._metrics.requests.labels(path, status).inc()
            self._metrics.seconds.labels(path).observe(seconds)
            level = logging.INFO if path == "/detect" or status >= 400 else logging.DEBUG
            line = "request=%s %s %s %d %.1f ms"
            LOG.log(level, line, identity.decode(), scope["method"], path, status, seconds * 1000)
