"""The bytes of a request: no more than allowed, no longer than allowed, and the file of a form."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header
from starlette.requests import Request

from yolo_lat.serve.refusal import RefusalError

FORM = "multipart/form-data"
# The last is what curl --data-binary says of any file.
_RAW = ("application/octet-stream", "application/x-www-form-urlencoded")
_HELD = 25  # bodies of the largest size that may be in memory at once
_MOST_PARTS = 8
_FIELD = "file"


class Uploads:
    """The bodies that are in memory.

    Args:
        max_bytes: of one body.
        seconds: for one body to arrive.
    """

    def __init__(self, max_bytes: int, seconds: float) -> None:
        self._max_bytes, self._seconds, self._free = max_bytes, seconds, _HELD * max_bytes

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytearray]:
        """Read the body of a request, and count it as held until the context ends.

        Raises:
            RefusalError: 413 as soon as it is too long, 408 when it takes too long, 400 for an empty one, 503 when too
                much is held already.
            starlette.requests.ClientDisconnect: the client went away.
        """
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self._max_bytes:
            raise self._too_large()
        body = bytearray()
        try:
            try:
                async with asyncio.timeout(self._seconds):
                    async for chunk in request.stream():
                        self._hold(body, chunk)
            except TimeoutError:
                raise RefusalError(408, f"the body did not arrive within {self._seconds:g} s; send it faster") from None
            if not body:
                raise RefusalError(400, f"the body is empty; send a picture, or a form with a field '{_FIELD}'")
            yield body
        finally:
            self._free += len(body)

    def _hold(self, body: bytearray, chunk: bytes) -> None:
        if len(body) + len(chunk) > self._max_bytes:
            raise self._too_large()
        if len(chunk) > self._free:
            raise RefusalError(503, "too many large uploads at once; try again soon", retry=1)
        self._free -= len(chunk)
        body += chunk

    def _too_large(self) -> RefusalError:
        return RefusalError(413, f"the body is larger than {self._max_bytes / 1e6:g} MB; send a smaller picture")


def check_type(content_type: str) -> None:
    """Raise `RefusalError` 415 for a body that says itself that it is no picture."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind and kind != FORM and kind not in _RAW and not kind.startswith("image/"):
        raise RefusalError(415, f"a body of type {kind[:60]!r} is no picture; send image/*, octet-stream or {FORM}")


def picture_of(body: bytearray, content_type: str) -> bytes | bytearray:
    """Return the body, or what the field `file` of a form holds.

    Raises:
        RefusalError: 400 for a form that cannot be read, 422 for one without exactly one such file.
    """
    kind, options = parse_options_header(content_type)
    if kind.decode("latin-1").lower() != FORM:
        return body
    files: list[File] = []
    parts = 0

    def count(part: Field | File) -> None:
        nonlocal parts
        parts += 1
        if parts > _MOST_PARTS:
            raise RefusalError(422, f"the form has more than {_MOST_PARTS} fields; send '{_FIELD}' alone")
        if isinstance(part, File) and part.field_name == _FIELD.encode():
            files.append(part)

    try:
        # In memory whatever its size, which was limited before; by default large files go to disk.
        config = {"MAX_MEMORY_FILE_SIZE": len(body) + 1}
        parser = FormParser(FORM, count, count, boundary=options.get(b"boundary"), config=config)
        parser.write(bytes(body))
        parser.finalize()
    except (FormParserError, ValueError, AssertionError) as error:
        raise RefusalError(400, "the form cannot be read as multipart/form-data; check its boundary") from error
    if len(files) != 1:
        raise RefusalError(422, f"the form has {len(files)} files in fields '{_FIELD}'; send one")
    stream = files[0].file_object
    stream.seek(0)
    return stream.read()
