"""The host inside another program: receiver, store and connectors, with callbacks (hops 7 to 12)."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from plugin.errors import FlawlineError
from plugin.feed import Cursor, Feed, News
from plugin.finder import Filter
from plugin.logs import LimitedLog
from plugin.models import Alarm, Part, Review
from plugin.service import Service
from plugin.settings import HostSettings, load_settings

BATCH = 200
LOOK_S = 0.5
GRACE_S = 2.0
"""For callbacks to take what waits for them, when the plugin stops."""

Item = TypeVar("Item")
log = logging.getLogger(__name__)


class FlawlinePlugin:
    """Start it, be called, stop it; or use it as a context manager. One at a time for a state folder.

    Each callback runs on a thread of its own and is given one thing at a time, in order: ``on_result`` every part that
    has ended, ``on_flagged`` those of them that are REVIEW or REJECT, ``on_alarm`` what keeps the host or a line from
    its work, as it begins and ends, ``on_review`` every decision of an inspector but blind opinions. A callback that
    raises is logged and goes on; one that lags further behind than ``queue`` is spared what follows, counted in
    ``dropped``: the store has everything, and neither line nor store waits for a callback.
    """

    def __init__(
        self,
        config: HostSettings | Path | str,
        *,
        on_result: Callable[[Part], object] | None = None,
        on_flagged: Callable[[Part], object] | None = None,
        on_alarm: Callable[[Alarm], object] | None = None,
        on_review: Callable[[Review], object] | None = None,
        queue: int = 1000,
        pages: bool = True,
    ) -> None:
        """``config``: host.toml, or settings whose paths are relative to the working directory.

        ``pages`` False leaves the review pages and the HTTP API out. Raises ConfigError.
        """
        if isinstance(config, HostSettings):
            self._settings, self._base_dir = config, Path.cwd()
        else:
            path = Path(config)
            self._settings, self._base_dir = load_settings(path), path.resolve().parent
        self._pages = pages
        self._results = _Caller("on_result", on_result, queue)
        self._flagged = _Caller("on_flagged", on_flagged, queue)
        self._alarms = _Caller("on_alarm", on_alarm, queue)
        self._reviews = _Caller("on_review", on_review, queue)
        self._callers: list[_Caller[Any]] = [self._results, self._flagged, self._alarms, self._reviews]
        self._service: Service | None = None
        self._follower: threading.Thread | None = None
        self._stopping = threading.Event()

    def start(self) -> None:
        """Open the store, bind the sockets, begin; returns when edges can connect. Raises ConfigError: nothing runs."""
        if self._service is not None:
            raise FlawlineError("this plugin runs already")
        service = Service(self._settings, self._base_dir, pages=self._pages)
        service.dropped = lambda: self.dropped
        self._stopping.clear()
        cursor = service.feed.head()
        service.start()
        self._service = service
        for caller in self._callers:
            caller.start()
        self._follower = threading.Thread(target=self._follow, args=(service, cursor), name="callbacks", daemon=True)
        self._follower.start()

    def stop(self) -> None:
        """Commit and answer what was taken, close everything, call what still waits; then it may be started again.

        A callback that does not return within two seconds is left behind. Raises FlawlineError where a part of the
        host had ended by itself.
        """
        service, self._service = self._service, None
        if service is None or self._follower is None:
            return
        try:
            service.stop()
        finally:
            self._stopping.set()
            service.feed.wake()
            self._follower.join()
            service.reader.close()
            deadline = time.monotonic() + GRACE_S
            for caller in self._callers:
                caller.stop(deadline)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def endpoint(self) -> str:
        """Where edges connect."""
        return self._running().endpoint

    @property
    def url(self) -> str:
        """Where pages and HTTP API are; empty where they were left out."""
        return self._running().url

    def health(self) -> dict[str, Any]:
        """What works and what does not, as /healthz says it."""
        return self._running().health()

    def parts(self, wanted: Filter | None = None, after: int = 0, limit: int = 100) -> list[Part]:
        """Parts of the store behind ``id`` ``after``: what a callback missed, or what was before it began."""
        service = self._running()
        rows = service.reader.find_parts(wanted or Filter(), after, limit)
        return [service.feed.part(row) for row in rows]

    @property
    def dropped(self) -> dict[str, int]:
        """How many calls each callback was spared because it lagged."""
        return {caller.name: caller.dropped for caller in self._callers}

    @property
    def failed(self) -> dict[str, int]:
        """How many calls of each callback raised."""
        return {caller.name: caller.failed for caller in self._callers}

    def _running(self) -> Service:
        if self._service is None:
            raise FlawlineError("this plugin is not running; call start() first")
        return self._service

    def _follow(self, service: Service, cursor: Cursor) -> None:
        feed, version, said = service.feed, 0, False
        while True:
            stopping = self._stopping.is_set()  # read first: what is read below is then all there will be
            if service.failure is not None and not said:
                said = True
                feed.alarms.say(("host", ""), f"a part of the host ended by itself: {service.failure!r}"[:500])
            cursor = self._hand_out(feed, cursor)
            if stopping:
                return
            version = feed.wait(version, LOOK_S)

    def _hand_out(self, feed: Feed, cursor: Cursor) -> Cursor:
        """Everything that is new."""
        while True:
            news, cursor = feed.read(cursor, BATCH)
            for each in news:
                self._hand_on(each)
            if len(news) < BATCH:
                return cursor

    def _hand_on(self, news: News) -> None:
        item = news.item
        if isinstance(item, Part):
            self._results.offer(item)
            if item.flagged:
                self._flagged.offer(item)
        elif isinstance(item, Alarm):
            self._alarms.offer(item)
        else:
            self._reviews.offer(item)


class _Caller(Generic[Item]):
    """One callback's queue and thread; none where there is no callback."""

    def __init__(self, name: str, function: Callable[[Item], object] | None, size: int) -> None:
        self.name = name
        self.dropped = 0
        self.failed = 0
        self._function = function
        self._size = size
        self._log = LimitedLog(log)
        self._waiting: queue.Queue[Item | None] = queue.Queue(size)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self._function is None:
            return
        # A new queue each time: a thread that was left behind keeps the old one.
        self._waiting = queue.Queue(self._size)
        arguments = (self._function, self._waiting)
        self._thread = threading.Thread(target=self._run, args=arguments, name=self.name, daemon=True)
        self._thread.start()

    def offer(self, item: Item) -> None:
        if self._thread is None:
            return
        try:
            self._waiting.put_nowait(item)
        except queue.Full:
            self.dropped += 1
            self._log.warning("full", f"{self.name} lags: {self.dropped} call(s) left out so far; the store has all")

    def stop(self, deadline: float) -> None:
        thread, self._thread = self._thread, None
        if thread is None:
            return
        try:
            self._waiting.put(None, timeout=max(0.0, deadline - time.monotonic()))
            thread.join(max(0.0, deadline - time.monotonic()))
        except queue.Full:
            pass
        if thread.is_alive():
            log.warning("%s has not returned; it is left behind with %d call(s)", self.name, self._waiting.qsize())

    def _run(self, function: Callable[[Item], object], waiting: queue.Queue[Item | None]) -> None:
        while (item := waiting.get()) is not None:
            try:
                function(item)
            except Exception as error:  # noqa: BLE001 - whatever another's code raises, the next call is made
                self.failed += 1
                self._log.warning("raised", f"{self.name} raised {error!r:.300}; {self.failed} time(s) so far")
