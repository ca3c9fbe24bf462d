"""What keeps the host or a line from its work, noticed as it begins and ends, for programs (beside hops 7 to 10).

Kept in memory alone: the disk may be what fails.
"""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Mapping

from plugin.models import Alarm, iso

LOOK_S = 0.25
LASTS_S = 1.0
"""What is over sooner is no alarm, and what comes back sooner has not ended."""

KEPT = 1000
Source = tuple[str, str]
"""Kind and name: ("line", "line-1"), ("store", "")."""


class AlarmBoard:
    """``run`` looks again and again; any thread may ask. ``changed`` is called without a lock held."""

    def __init__(self, look: Callable[[], Mapping[Source, str | None]], changed: Callable[[], None]) -> None:
        self._look = look
        self._changed = changed
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._kept: collections.deque[Alarm] = collections.deque(maxlen=KEPT)
        self._standing: dict[Source, Alarm] = {}
        self._differs_since: dict[Source, float] = {}
        self._last = 0

    def run(self) -> None:
        """Look until stopped."""
        while not self._ended.wait(LOOK_S):
            self.look(time.monotonic())

    def stop(self) -> None:
        """Let ``run`` return."""
        self._ended.set()

    def look(self, now_s: float) -> None:
        """Note what began and what ended, once it has lasted."""
        news = False
        found = self._look()
        for source in [*found, *(each for each in self._standing if each not in found)]:
            text = found.get(source)
            if (text is not None) == (source in self._standing):
                self._differs_since.pop(source, None)
            elif now_s - self._differs_since.setdefault(source, now_s) >= LASTS_S:
                del self._differs_since[source]
                self._note(source, text)
                news = True
        if news:
            self._changed()

    def say(self, source: Source, text: str) -> None:
        """Raise an alarm at once."""
        self._note(source, text)
        self._changed()

    def standing(self) -> list[Alarm]:
        """Raised and not cleared, oldest first."""
        with self._lock:
            return sorted(self._standing.values(), key=lambda alarm: alarm.id)

    def after(self, number: int) -> list[Alarm]:
        """What was noted behind ``number``, as far back as is kept."""
        with self._lock:
            return [alarm for alarm in self._kept if alarm.id > number]

    @property
    def last(self) -> int:
        """The newest alarm's number; 0 before the first."""
        with self._lock:
            return self._last

    def _note(self, source: Source, text: str | None) -> None:
        now_ns = time.time_ns()
        with self._lock:
            # Numbers go on where the last run of the host ended, without a file: they are its clock's milliseconds.
            self._last = max(self._last + 1, now_ns // 10**6)
            before = self._standing.pop(source, None)
            alarm = Alarm(
                id=self._last,
                t_wall_ns=now_ns,
                time=iso(now_ns),
                source=source[0],
                name=source[1],
                state="cleared" if text is None else "raised",
                text=text or (before.text if before else ""),
            )
            self._kept.append(alarm)
            if text is not None:
                self._standing[source] = alarm
