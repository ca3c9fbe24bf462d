"""Which alarms of drift stand, for pages, alarms and line controllers, and a containment for each (hops 8 and 9).

It changes no verdict and asks for no stop: what follows from drift is a person's matter.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import sqlalchemy as sa

from plugin import containment, drift_rows
from plugin.containment import Interval
from plugin.database import short
from plugin.errors import FlawlineError
from plugin.ledger import LedgerReader
from plugin.logs import LimitedLog
from plugin.mirror import Call

LOOK_S = 0.5
HOST = "the host"
log = logging.getLogger(__name__)


class DriftWatch:
    """``run`` on a thread of its own; any thread may ask ``texts`` and ``of_line``."""

    def __init__(self, engine: sa.Engine, ledger: LedgerReader, line_of: Callable[[str], str], call: Call) -> None:
        self._engine, self._ledger, self._line_of, self._call = engine, ledger, line_of, call
        self._standing: list[dict[str, Any]] = []
        self._ended = threading.Event()
        self._looks = threading.Event()
        self._log = LimitedLog(log)

    def run(self) -> None:
        """Look until stopped; what the store does not say now stays as it was."""
        while not self._ended.is_set():
            self._looks.wait(LOOK_S)
            self._looks.clear()
            try:
                self.look()
            except (TimeoutError, FlawlineError, OSError, sqlite3.Error, sa.exc.SQLAlchemyError) as error:
                self._log.warning("drift", f"alarms of drift cannot be seen to now: {short(error)}")

    def stop(self) -> None:
        """Let ``run`` return."""
        self._ended.set()
        self._looks.set()

    def wake(self) -> None:
        """Somebody has cleared an alarm."""
        self._looks.set()

    def look(self) -> None:
        """Read what stands, and open a containment for what has none."""
        with self._engine.connect() as connection:
            found = drift_rows.standing(connection)
        self._standing = found  # an alarm is told, whatever becomes of its list
        for alarm in found:
            if alarm["containment"] is None:
                interval = self._interval(alarm)
                self._call(lambda store, one=alarm, parts=interval: store.run(partial(_contain, one["id"], parts)))  # type: ignore[misc]

    def _interval(self, alarm: dict[str, Any]) -> Interval:
        line = self._line_of(alarm["edge_id"])
        since = alarm["detail"]["since_part_id"]
        told = None if since is None else self._ledger.output_of(alarm["edge_id"], since)
        cause = f"drift: {alarm['edge_id']}, camera {alarm['camera_id']}"
        return containment.since_drift(self._ledger, line, None if told is None else int(told["number"]), cause)

    def texts(self) -> dict[tuple[str, str], str]:
        """(edge, camera) -> what is said of an alarm that stands."""
        return {(each["edge_id"], each["camera_id"]): text_of(each) for each in self._standing}

    def of_line(self, line: str) -> str | None:
        """What is said of a line's alarms; None where none stands."""
        found = [text_of(each) for each in self._standing if self._line_of(each["edge_id"]) == line]
        return "; ".join(found)[:400] or None


def _contain(alarm: int, interval: Interval, connection: sa.Connection) -> None:
    if not drift_rows.is_contained(connection, alarm):
        drift_rows.contained(connection, alarm, containment.open_one(connection, interval, HOST))


def text_of(alarm: dict[str, Any]) -> str:
    """For people, in English; no part is named."""
    tests = [test["name"] for test in alarm["detail"]["tests"] if test["alarm"]]
    suspect = alarm["detail"]["suspect"]
    named = f" ({suspect})" if suspect else ""
    return f"drift at {alarm['edge_id']}, camera {alarm['camera_id']}: {', '.join(tests)}{named}"
