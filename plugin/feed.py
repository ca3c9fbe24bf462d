"""What is new since a cursor: ended parts and decisions as the store has them, alarms (hop 8 to hop 11).

Nothing is queued for anybody: whoever follows reads on from where it was, at its own pace, and none can be forgotten.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa

from plugin.alarms import AlarmBoard, Source
from plugin.finder import LARGEST, Finder
from plugin.models import Alarm, Part, Review, iso

Kind = Literal["result", "review", "alarm"]


class Cursor(NamedTuple):
    """How far somebody has read: the last rows of events and reviews, the last alarm."""

    event: int
    review: int
    alarm: int

    def __str__(self) -> str:
        return "-".join(map(str, self))

    @classmethod
    def parse(cls, text: str) -> Cursor | None:
        """What ``str`` gave; None where it is something else."""
        if re.fullmatch(r"[0-9]{1,19}(-[0-9]{1,19}){2}", text, re.ASCII) is None:
            return None
        found = cls(*map(int, text.split("-")))
        return found if max(found) <= LARGEST else None


class News(NamedTuple):
    """One thing that is new, and the cursor behind it."""

    kind: Kind
    item: Part | Review | Alarm
    cursor: Cursor


class Feed:
    """``read`` from any thread; ``wake`` is called after each commit."""

    def __init__(
        self, finder: Finder, line_of: Callable[[str], str], troubles: Callable[[], Mapping[Source, str | None]]
    ) -> None:
        self._finder = finder
        self._line_of = line_of
        self._changed = threading.Condition()
        self._version = 0
        self._listeners: list[Callable[[], None]] = []
        self.alarms = AlarmBoard(troubles, self.wake)

    def listen(self, listener: Callable[[], None]) -> None:
        """Have ``listener`` called, on any thread, when there may be news; it returns at once and raises nothing."""
        self._listeners.append(listener)

    def wake(self) -> None:
        """There may be news."""
        with self._changed:
            self._version += 1
            self._changed.notify_all()
        for listener in self._listeners:
            listener()

    def wait(self, version: int, timeout_s: float) -> int:
        """Until there may be more than at ``version``, or the time is up; the version now."""
        with self._changed:
            self._changed.wait_for(lambda: self._version != version, timeout_s)
            return self._version

    def head(self) -> Cursor:
        """Behind everything that there is."""
        return Cursor(*self._finder.heads(), self.alarms.last)

    def read(self, cursor: Cursor, limit: int) -> tuple[list[News], Cursor]:
        """At most ``limit`` of what is behind ``cursor``, and the cursor to go on from. A failing store keeps its own.

        Alarms come whatever the store does.
        """
        news: list[News] = []
        for alarm in self.alarms.after(cursor.alarm)[:limit]:
            cursor = cursor._replace(alarm=alarm.id)
            news.append(News("alarm", alarm, cursor))
        try:
            stored, cursor = self._read_store(cursor, limit - len(news))
        except (sa.exc.DBAPIError, OSError):
            return news, cursor
        return news + stored, cursor

    def _read_store(self, cursor: Cursor, limit: int) -> tuple[list[News], Cursor]:
        head_event, head_review = self._finder.heads()  # first: what comes meanwhile is behind it
        news: list[News] = []
        if head_event > cursor.event and limit > 0:
            rows = self._finder.ended_parts(cursor.event, limit)
            for row, part in rows:
                cursor = cursor._replace(event=row)
                news.append(News("result", self.part(part), cursor))
            if len(rows) < limit:  # the others are of kinds that end nothing
                cursor = cursor._replace(event=max(cursor.event, head_event))
        limit -= len(news)
        if head_review > cursor.review and limit > 0:
            said = self._finder.find_reviews(cursor.review, limit, blind_too=False)
            for found in said:
                cursor = cursor._replace(review=found["id"])
                news.append(News("review", Review.model_validate(found), cursor))
            if len(said) < limit:  # the others were given blindly
                cursor = cursor._replace(review=max(cursor.review, head_review))
        return news, cursor

    def part(self, row: dict[str, Any]) -> Part:
        """A part's row as the model that programs are given."""
        return Part.model_validate({**row, "line": self._line_of(row["edge_id"]), "time": iso(row["t_wall_ns"])})
