"""The routes: pictures in, detections out, and how the server is doing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Annotated, Any, Literal, TypeVar

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from yolo_lat import __version__
from yolo_lat.deploy.detections import Detections
from yolo_lat.serve.answers import Answer, Problem, annotated, coco_rows
from yolo_lat.serve.batcher import Batcher
from yolo_lat.serve.detector import Frame, ServedDetector, Thresholds
from yolo_lat.serve.metrics import CONTENT_TYPE, Metrics
from yolo_lat.serve.observed import Observed
from yolo_lat.serve.pictures import decode
from yolo_lat.serve.refusal import RefusalError
from yolo_lat.serve.settings import LOWEST_CONF, MOST_DET, ServeSettings
from yolo_lat.serve.uploads import FORM, Uploads, check_type, picture_of

Value = TypeVar("Value")
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_REFUSALS = {
    400: "no picture, or a damaged one",
    408: "the body took too long",
    413: "too many bytes or pixels",
    415: "not a format that is read",
    422: "a query or form that cannot be used",
    500: "the server failed",
    503: "too much to do, or the server is ending",
    504: "no answer in time",
}


class Asked(BaseModel):
    """The query of `POST /detect`."""

    model_config = ConfigDict(extra="forbid")

    conf: float | None = Field(None, ge=LOWEST_CONF, le=1, allow_inf_nan=False, description="return boxes above this")
    iou: float | None = Field(None, ge=0, le=1, allow_inf_nan=False, description="suppress boxes that overlap by more")
    max_det: int | None = Field(None, ge=1, le=MOST_DET, description="most boxes to return")
    format: Literal["json", "image"] = Field("json", description="the boxes, or the picture with them")


class Service:
    """A model at work: threads that decode, the thread that runs it, and the bounds on both.

    Args:
        detector: the model.
        settings: of the server.
    """

    def __init__(self, detector: ServedDetector, settings: ServeSettings) -> None:
        self.detector, self.settings = detector, settings
        self.uploads = Uploads(settings.max_bytes, settings.timeout)
        self.metrics = Metrics(lambda: self.batcher.waiting, lambda: self.busy)
        self.batcher: Batcher[Frame, Detections] = Batcher(
            detector.detect, detector.max_batch, settings.wait_ms, self.metrics.observe_batch, lambda: self.coming
        )
        self._workers = ThreadPoolExecutor(settings.workers, "pictures")
        self._begun = time.monotonic()
        self.busy = self.coming = 0
        self.draining = False

    def close(self) -> None:
        """Finish what runs, and end the threads."""
        self.draining = True
        self._workers.shutdown(cancel_futures=True)
        self.batcher.close()

    def check_open(self) -> None:
        """Raise `RefusalError` 503 once the server is ending."""
        if self.draining:
            raise RefusalError(503, "the server is ending; send this to another", retry=5)

    def check_room(self) -> None:
        """Raise `RefusalError` 503 unless one more picture may come."""
        if self.busy >= self.settings.queue:
            raise RefusalError(503, f"{self.settings.queue} pictures are waiting already; try again soon", retry=1)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Take one of the places in the queue while the context lasts."""
        self.check_room()
        self.busy += 1
        try:
            yield
        finally:
            self.busy -= 1

    @contextmanager
    def arrival(self) -> Iterator[None]:
        """Count a picture as coming while the context lasts, so that others wait for it."""
        self.coming += 1
        try:
            yield
        finally:
            self.coming -= 1

    async def detect(self, body: bytearray, content_type: str, asked: Asked, arrival: ExitStack) -> Response:
        """Answer one request whose body is there; `arrival` is closed as soon as its picture waits for a batch."""
        loop = asyncio.get_running_loop()
        thresholds = Thresholds(asked.conf, asked.iou, asked.max_det)
        begun = time.perf_counter()
        frame = await loop.run_in_executor(self._workers, self._frame, body, content_type, thresholds)
        decode_ms = (time.perf_counter() - begun) * 1000
        arrival.close()
        done = await asyncio.wrap_future(self.batcher.submit(frame))
        if asked.format == "image":
            content, media = await loop.run_in_executor(self._workers, self._draw, body, content_type, done.result)
            return Response(content, media_type=media)
        answer = {
            "width": frame.width,
            "height": frame.height,
            "model": self.settings.model.name,
            "detections": coco_rows(done.result),
            "batch": done.batch,
            "milliseconds": {"decode": decode_ms, "wait": done.wait_ms, "inference": done.run_ms},
        }
        return JSONResponse(answer)

    def health(self) -> dict[str, Any]:
        """Return what runs here and how busy it is."""
        return {
            "status": "draining" if self.draining else "ok" if self.batcher.alive else "broken",
            "model": self.settings.model.name,
            "imgsz": list(self.detector.imgsz),
            "classes": len(self.detector.names),
            "provider": self.detector.provider,
            "max_batch": self.detector.max_batch,
            "uptime_seconds": time.monotonic() - self._begun,
            "queue": {"waiting": self.batcher.waiting, "busy": self.busy, "limit": self.settings.queue},
            "version": __version__,
        }

    def _frame(self, body: bytearray, content_type: str, thresholds: Thresholds) -> Frame:
        picture = decode(picture_of(body, content_type), self.settings.max_pixels)
        return self.detector.frame(picture.image_bgr, thresholds)

    def _draw(self, body: bytearray, content_type: str, found: Detections) -> tuple[bytes, str]:
        # Decoded again, since compressed pictures are what waiting requests hold in memory.
        return annotated(decode(picture_of(body, content_type), self.settings.max_pixels), found)


def create_app(service: Service) -> FastAPI:
    """Return the ASGI application of a service, which it closes when it ends."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    # Its pages of documentation load scripts from elsewhere.
    app = FastAPI(title="YOLO-LAT", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Observed, metrics=service.metrics)
    app.add_exception_handler(RefusalError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _not_routed)

    @app.post(
        "/detect",
        summary="Detect objects in one picture",
        response_class=JSONResponse,
        responses={
            200: {"model": Answer, "content": {"image/jpeg": _BINARY, "image/png": _BINARY}},
            **{status: {"model": Problem, "description": text} for status, text in _REFUSALS.items()},
        },
        openapi_extra={"requestBody": _request_body()},
    )
    async def detect(request: Request, asked: Annotated[Asked, Query()]) -> Response:
        content_type = request.headers.get("content-type", "")
        check_type(content_type)
        if asked.iou is not None and not service.detector.takes_iou:
            raise RefusalError(422, "iou has no effect on this model, which suppresses no boxes here; leave it out")
        service.check_open()
        service.check_room()
        with ExitStack() as arrival:
            arrival.enter_context(service.arrival())
            async with service.uploads.body(request) as body:
                with service.place():
                    work = service.detect(body, content_type, asked, arrival)
                    return await _while_connected(request, work, service.settings.timeout)

    @app.get("/health", summary="What runs here and how busy it is")
    async def health() -> dict[str, Any]:
        return service.health()

    @app.get("/ready", summary="Whether pictures are taken", responses={503: {"model": Problem}})
    async def ready() -> dict[str, bool]:
        if service.draining or not service.batcher.alive:
            raise RefusalError(503, "no pictures are taken; the server is ending", retry=5)
        return {"ready": True}

    @app.get(
        "/metrics",
        summary="Metrics for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    return app


def _request_body() -> dict[str, Any]:
    raw = ("image/jpeg", "image/png", "image/webp", "image/bmp", "image/tiff", "application/octet-stream")
    form = {"type": "object", "required": ["file"], "properties": {"file": _BINARY["schema"]}}
    return {"required": True, "content": {**dict.fromkeys(raw, _BINARY), FORM: {"schema": form}}}


async def _while_connected(request: Request, work: Coroutine[Any, Any, Value], seconds: float) -> Value:
    """Await `work`, cancelled when the client goes away or the time is over.

    Raises:
        RefusalError: 504.
        ClientDisconnect: the client went away.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        done, _ = await asyncio.wait({working, leaving}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if working in done:
            return working.result()
        if leaving in done:
            raise ClientDisconnect
        raise RefusalError(504, f"no answer within {seconds:g} s; try again later", retry=1)
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    """Return when the client of a request whose body was read goes away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _refused(_: Request, error: Exception) -> Response:
    if not isinstance(error, RefusalError):
        raise error
    return error.response()


async def _invalid(_: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    first = error.errors()[0]
    name, message = str(first["loc"][-1])[:40], str(first["msg"])
    return RefusalError(422, f"query {name!r}: {message[:1].lower()}{message[1:]}; correct it").response()


async def _not_routed(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    known = {404: "there is no such page; POST a picture to /detect", 405: f"{request.method} has no meaning here"}
    response = RefusalError(error.status_code, known.get(error.status_code, str(error.detail))).response()
    response.headers.update(error.headers or {})
    return response
