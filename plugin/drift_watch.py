"""Which alarms of drift stand, for pages, alarms and line controllers, and a containment for each (hops 8 and 9).

It changes no verdict and asks for no stop: what follows from drift is a person's matter.
"""

from __future__ import annotations

import logging
import threading
import time
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
BY_MASTERS = "the host: master parts"
ROUNDED, LEAST, LOOKED_AT = 64, 6, 1000
"""An edge names a part up to so many before the change; six rejects in a row are the quickest alarm."""

PATIENCE_S = 10.0
"""How long an alarm of a line with masters waits until its last part has a number; then it is told as any other."""

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
        self._waits: dict[int, float] = {}
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
            alarm, detail = found[number], details[number]
            if self._is_to_be_told(alarm, detail):
                told[number] = Told(alarm["edge_id"], alarm["camera_id"], _text(alarm, detail))
        self._told = told  # an alarm is told, whatever becomes of its list
        self._failed &= found.keys()
        self._waits = {number: at for number, at in self._waits.items() if number in found and number not in told}
        for number in told:
            if self._ended.is_set():
                return
            if found[number]["containment"] is None:
                self._see_to(found[number])

    def _is_to_be_told(self, alarm: dict[str, Any], detail: dict[str, Any]) -> bool:
        """Not where master parts made it, which is cleared then; nor for a while where that is not known yet."""
        if alarm["containment"] is not None or alarm["again"]:
            return True
        by_masters = None
        try:
            by_masters = self._by_masters(alarm, detail)
            if by_masters:
                self._call(lambda store: store.run(lambda c: drift_rows.clear(c, alarm["id"], BY_MASTERS)))
                return False
        except Exception as error:  # noqa: BLE001 - it must go on
            self._log.warning("masters", f"drift: whether masters made alarm {alarm['id']}: {short(error)}")
        if by_masters is False:
            return True
        return time.monotonic() - self._waits.setdefault(alarm["id"], time.monotonic()) >= PATIENCE_S

    def _by_masters(self, alarm: dict[str, Any], detail: dict[str, Any]) -> bool | None:
        """Whether most parts since the change were masters, the last one among them; None: not numbered yet."""
        since, last = detail.get("since_part_id"), detail.get("last_part_id")
        if since is None or last is None or not self._ledger.masters(self._line_of(alarm["edge_id"])):
            return False
        held = self._ledger.held_since(alarm["edge_id"], alarm["camera_id"], since, last, LOOKED_AT)
        if held is None:
            return None
        surely = held[: max(LEAST, len(held) - ROUNDED)]
        return surely[:1] == ["master"] and 2 * surely.count("master") > len(surely)

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
