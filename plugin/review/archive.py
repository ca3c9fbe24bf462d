"""A data set as the answer to one request: a zip archive made while it is sent, few at a time (after hop 12)."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

MOST_PICTURES = 10_000
MOST_BYTES = 2 << 30
AT_ONCE = 2
LONGEST_S = 1800.0
"""An archive that takes longer is broken off, so that slow readers keep nobody else from theirs for ever."""


class Exports:
    """Counts the archives under way."""

    def __init__(self) -> None:
        self._free = threading.BoundedSemaphore(AT_ONCE)

    def begin(self) -> bool:
        """False where enough are under way."""
        return self._free.acquire(blocking=False)

    def end(self) -> None:
        """One is over, however it ended."""
        self._free.release()


class Archive(StreamingResponse):
    """Sends the pieces as they are made; what fails on the way breaks the answer off, and no program takes it whole."""

    def __init__(self, pieces: Iterator[bytes], name: str, exports: Exports) -> None:
        headers = {"content-disposition": f'attachment; filename="{name}"', "cache-control": "no-store"}
        super().__init__(_in_time(pieces), 200, headers, "application/zip")
        self._exports = exports

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._exports.begin():
            error = f"{AT_ONCE} exports are under way; try again later"
            await JSONResponse({"error": error}, 503)(scope, receive, send)
            return
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._exports.end()


def _in_time(pieces: Iterator[bytes]) -> Iterator[bytes]:
    began = time.monotonic()
    for piece in pieces:
        if time.monotonic() - began > LONGEST_S:
            raise TimeoutError(f"an export was broken off: it took more than {LONGEST_S:g} s")
        yield piece
