"""A request that is not answered as it asks: a status and one sentence."""

from __future__ import annotations

from starlette.responses import JSONResponse

CLIENT_GONE = 499  # of logs and metrics; nobody is there to read it


class RefusalError(Exception):
    """What a client did wrong, or why the server cannot answer now.

    Args:
        status: HTTP status.
        sentence: what is wrong and what to do; it goes to the client, so it holds nothing of this machine.
        retry: seconds after which another try makes sense.
    """

    def __init__(self, status: int, sentence: str, retry: int | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.retry = status, sentence, retry

    def response(self) -> JSONResponse:
        """Return it as JSON."""
        headers = None if self.retry is None else {"Retry-After": str(self.retry)}
        return JSONResponse({"error": self.sentence}, self.status, headers)
