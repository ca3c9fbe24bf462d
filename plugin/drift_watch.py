"""Which alarms of drift stand, for pages, alarms and line controllers, and a containment for each (hops 8 and 9).

It changes no verdict and asks for no stop: what follows from drift is a person's matter.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import sqlalchemy as sa

from plugin import containment, drift_rows
from plugin.containment import Interval
from plugin.database import short
from plugin.ledger import LedgerReader
from plugin.logs import LimitedLog
from plugin.mirror import Call

LOOK_S = 0.5
HOST = "the host"
log = logging.getLogger(__name__)


class Told(NamedTuple):
    """An alarm that stands, and what is said of it."""

    edge_id: str
    camera_id: str
    text: str


class DriftWatch:
    """``run`` on a thread of its own; any thread may ask ``texts`` and ``of_line``."""

    def __init__(self, engine: sa.Engine, ledger: LedgerReader, line_of: Callable[[str], str], call: Call) -> None:
        self._engine, self._ledger, self._line_of, self._call = engine, ledger, line_of, call
        self._told: dict[int, Told] = {}
        self._failed: set[int] = set()
        self._ended = threading.Event()
        self._looks = threading.Event()
        self._log = LimitedLog(log)

    def run(self) -> None:
        """Look until stopped; what the store does not say now stays as it was.

        Nothing ends this: where a thread ends the host does, and with it the verdicts' way to the line.
        """
        while not self._ended.is_set():
            self._looks.wait(LOOK_S)
            self._looks.clear()
            try:
                self.look()
            except Exception as error:  # noqa: BLE001 - it must go on
                self._log.warning("drift", f"alarms of drift cannot be seen to now: {short(error)}")

    def stop(self) -> None:
        """Let ``run`` return."""
        self._ended.set()
        self._looks.set()

    def cleared(self, alarm: int) -> None:
        """Somebody has: it is not told any more."""
        self._told = {number: told for number, told in self._told.items() if number != alarm}
        self._looks.set()

    def look(self) -> None:
        """Read what stands, and open a containment for what has none; an alarm that fails keeps no other from its."""
        with self._engine.connect() as connection:
            found = {row["id"]: row for row in drift_rows.standing(connection)}
            fresh = [number for number in found if number not in self._told]
            details = {number: drift_rows.detail(connection, number) for number in fresh}
        told = {number: one for number, one in self._told.items() if number in found}
        for number in fresh:
            told[number] = Told(
                found[number]["edge_id"], found[number]["camera_id"], _text(found[number], details[number])
            )
        self._told = told  # an alarm is told, whatever becomes of its list
        self._failed &= found.keys()
        for alarm in found.values():
            if self._ended.is_set():
                return
            if alarm["containment"] is None:
                self._see_to(alarm)

    def _see_to(self, alarm: dict[str, Any]) -> None:
        try:
            with self._engine.connect() as connection:
                detail = drift_rows.detail(connection, alarm["id"])
            interval = self._interval(alarm, detail.get("since_part_id"))
            self._call(lambda store: store.run(partial(_contain, alarm["id"], interval)))
        except Exception as error:  # noqa: BLE001 - it must go on
            if alarm["id"] not in self._failed:
                log.warning("drift: no list could be opened yet for alarm %d: %s", alarm["id"], short(error))
            self._failed.add(alarm["id"])

    def _interval(self, alarm: dict[str, Any], since: str | None) -> Interval:
        line = self._line_of(alarm["edge_id"])
        told = None if since is None else self._ledger.output_of(alarm["edge_id"], since)
        cause = f"drift: {alarm['edge_id']}, camera {alarm['camera_id']}"
        return containment.since_drift(self._ledger, line, None if told is None else int(told["number"]), cause)

    def texts(self) -> dict[tuple[str, str], str]:
        """(edge, camera) -> what is said of an alarm that stands."""
        return {(each.edge_id, each.camera_id): each.text for each in self._told.values()}

    def of_line(self, line: str) -> str | None:
        """What is said of a line's alarms; None where none stands."""
        found = [each.text for each in self._told.values() if self._line_of(each.edge_id) == line]
        return "; ".join(found)[:400] or None


def _contain(alarm: int, interval: Interval, connection: sa.Connection) -> None:
    if not drift_rows.is_contained(connection, alarm):
        drift_rows.contained(connection, alarm, containment.open_one(connection, interval, HOST))


def _text(alarm: dict[str, Any], detail: dict[str, Any]) -> str:
    """For people, in English; no part is named. Another version may have written the detail otherwise."""
    where = f"drift at {alarm['edge_id']}, camera {alarm['camera_id']}"
    try:
        tests = [str(test["name"]) for test in detail["tests"] if test["alarm"]]
        suspect = detail["suspect"]
    except (KeyError, TypeError):
        return where
    named = f" ({suspect})" if suspect else ""
    return f"{where}: {', '.join(tests)}{named}"
