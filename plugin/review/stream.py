"""Server-sent events: results, decisions and alarms as they come, resumed where a client left off (hop 11)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from fastapi import HTTPException
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from plugin.feed import Cursor, Feed, News
from plugin.logs import LimitedLog

MOST = 16
"""Clients at once; each asks the store for itself."""

BATCH = 100
BREATH_S = 0.1
"""What is committed together is read together."""

ALIVE_S = 10.0
SLOW_S = 10.0
"""A client that takes longer to read one batch is sent away, and told so."""

log = logging.getLogger(__name__)


class Streams:
    """The clients that follow now. ``woken`` is called on any thread, everything else on the pages' loop."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.closing = False
        self._lock = threading.Lock()
        self._clients: set[Following] = set()
        self._counts = {"dropped": 0, "refused": 0}
        self._log = LimitedLog(log)
        feed.listen(self.woken)

    def open(self, cursor: Cursor | None, may: Callable[[], bool]) -> Following:
        """A new client's answer; 503 where there are enough. ``may``: whether it still may read."""
        with self._lock:
            if self.closing or len(self._clients) >= MOST:
                self._counts["refused"] += 1
                raise HTTPException(503, f"{MOST} clients follow already, which is as many as may.")
            client = Following(self, cursor, may)
            self._clients.add(client)
        return client

    def woken(self) -> None:
        """There may be news."""
        with self._lock:
            for client in self._clients:
                client.wake()

    def close(self) -> None:
        """The host stops: every client is told, and none may come."""
        with self._lock:
            self.closing = True
        self.woken()

    def gone(self, client: Following, slow: bool) -> None:
        """Forget a client."""
        with self._lock:
            self._clients.discard(client)
            self._counts["dropped"] += slow
        if slow:
            self._log.warning("slow", f"a client of the stream was sent away: it took over {SLOW_S:g} s for one batch")

    def status(self) -> dict[str, float]:
        """Clients now, the longest that one has not read what it was sent; dropped and refused since the start."""
        with self._lock:
            unread = [each.unread_s() for each in self._clients]
            return {"clients": len(unread), "unread_s": max(unread, default=0.0), **self._counts}


class Following(Response):
    """One client's answer, which ends with the client, the host, the right to read, or too little reading.

    Each batch is read from the store when the one before it has been taken, so that a client holds one in memory.
    """

    media_type = "text/event-stream"

    def __init__(self, streams: Streams, cursor: Cursor | None, may: Callable[[], bool]) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._streams = streams
        self._cursor = cursor
        self._may = may
        self._wakened: Callable[[], None] = lambda: None
        self._began: float | None = None

    def wake(self) -> None:
        """From any thread."""
        self._wakened()

    def unread_s(self) -> float:
        """How long the batch under way has not been read."""
        began = self._began
        return 0.0 if began is None else time.monotonic() - began

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve until it ends."""
        loop, news = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(news.set)

        self._wakened = wake
        left = asyncio.ensure_future(_left(receive))
        told = asyncio.ensure_future(self._tell(send, news))
        try:
            await asyncio.wait((left, told), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (left, told):
                task.cancel()
            _, ended = await asyncio.gather(left, told, return_exceptions=True)
            self._streams.gone(self, ended is True)
        if isinstance(ended, Exception):
            raise ended

    async def _tell(self, send: Send, news: asyncio.Event) -> bool:
        """True where the client was too slow."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        feed = self._streams.feed
        cursor = await run_in_threadpool(feed.head) if self._cursor is None else self._cursor
        standing = [alarm.model_dump() for alarm in feed.alarms.standing()]
        await send(_body(_event("hello", {"standing": standing}, cursor)))
        asked = time.monotonic()
        while not self._streams.closing:
            if time.monotonic() - asked >= ALIVE_S:
                if not await run_in_threadpool(self._may):
                    break
                asked = time.monotonic()
                await send(_body(b": alive\n\n"))
            news.clear()
            found, behind = await run_in_threadpool(feed.read, cursor, BATCH)
            if not await self._send_batch(send, found):
                await send(_body(_event("dropped", {"reason": "too little was read"}, _last(found, cursor)), last=True))
                return True
            cursor = behind
            if found:
                await asyncio.sleep(BREATH_S)
                continue
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(news.wait(), ALIVE_S)
                await asyncio.sleep(BREATH_S)
        await send(_body(_event("end", {"reason": "the host stops, or your right to read has ended"}), last=True))
        return False

    async def _send_batch(self, send: Send, found: Iterable[News]) -> bool:
        """Each send waits until the one before has been taken."""
        self._began = time.monotonic()
        for each in found:
            await send(_body(_event(each.kind, each.item.model_dump(mode="json"), each.cursor)))
        in_time = self.unread_s() <= SLOW_S
        self._began = None
        return in_time


def _last(found: list[News], cursor: Cursor) -> Cursor:
    return found[-1].cursor if found else cursor


async def _left(receive: Callable[[], Awaitable[Message]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _event(name: str, data: Any, cursor: Cursor | None = None) -> bytes:
    number = "" if cursor is None else f"id: {cursor}\n"
    return f"{number}event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def _body(data: bytes, last: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": not last}
