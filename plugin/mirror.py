"""Takes what happened on the lines from the ledger's journal over into the store (hop 9 to hop 8).

The ledger waits for no store: it notes what the gate, masters and people did, and this thread carries it over in the
journal's order, each row once. It begins where the store's rows end, so a kill or a store that is away loses nothing.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa

from plugin import tables as t
from plugin.database import short
from plugin.errors import FlawlineError
from plugin.ledger import LedgerReader
from plugin.logs import LimitedLog
from plugin.store import Store

ROWS = 500
LOOK_S = 1.0
Value = TypeVar("Value")
log = logging.getLogger(__name__)


class Call(Protocol):
    """Runs a job on the store's own thread."""

    def __call__(self, job: Callable[[Store], Value], timeout_s: float = 5.0) -> Value: ...


class Mirror:
    """``run`` on a thread of its own; ``grown`` is set when the journal has more."""

    def __init__(self, ledger: LedgerReader, call: Call, grown: threading.Event) -> None:
        self._ledger = ledger
        self._call = call
        self._grown = grown
        self.trouble: str | None = None
        self._stopping = False
        self._log = LimitedLog(log)

    def run(self) -> None:
        """Carry over until stopped, and then what is left."""
        unmarked = 1
        while True:
            self._grown.wait(LOOK_S if unmarked else None)
            self._grown.clear()
            stopping = self._stopping
            try:
                unmarked = self._carry_over()
                self.trouble = None
            except (TimeoutError, FlawlineError, OSError, sqlite3.Error, sa.exc.SQLAlchemyError) as error:
                self.trouble = f"what happened on the lines is not in the store yet ({_short(error)})"
                self._log.warning("mirror", self.trouble)
                unmarked = 1
            if stopping:
                return

    def stop(self) -> None:
        """End ``run`` once more has been carried over."""
        self._stopping = True
        self._grown.set()

    def _carry_over(self) -> int:
        """Returns how many readings of masters wait for their part to be stored."""
        while rows := self._ledger.journal(self._call(lambda store: store.run(last_row)), ROWS):
            self._call(lambda store, rows=rows: store.run(lambda connection: take_over(connection, rows)))  # type: ignore[misc]
        return self._call(lambda store: store.run(mark_masters))


def last_row(connection: sa.Connection) -> int:
    """The journal's last row that the store has."""
    newest = [sa.select(sa.func.max(table.c.id)) for table in (t.gate_outcomes, t.line_events, t.master_readings)]
    return max(connection.execute(each).scalar() or 0 for each in newest)


def rows_before(store: Store) -> int:
    """The same at the start of a host; 0 where the store cannot say, which ``Mirror.trouble`` tells of then."""
    try:
        return store.run(last_row)
    except (FlawlineError, OSError, sa.exc.SQLAlchemyError) as error:
        log.warning("the store does not say how far it has the lines' journal: %s", _short(error))
        return 0


def take_over(connection: sa.Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows of the journal; each goes into one table."""
    for row in rows:
        kept = {name: row[name] for name in ("id", "line", "number", "t_wall_ns")}
        part = {"edge_id": row["edge_id"], "part_id": row["part_id"]}
        detail = json.dumps(row["detail"])
        if row["kind"] == "gate":
            more = {**part, "outcome": row["detail"]["outcome"], "who": row["who"]}
            connection.execute(sa.insert(t.gate_outcomes), {**kept, **more})
        elif row["kind"] == "master":
            name = str(row["detail"].get("master") or row["detail"]["reason"])
            more = {**part, "name": name, "detail": detail, "marked": False}
            connection.execute(sa.insert(t.master_readings), {**kept, **more})
        else:
            more = {"kind": row["kind"], "who": row["who"], "detail": detail}
            connection.execute(sa.insert(t.line_events), {**kept, **more})


def _short(error: Exception) -> str:
    return short(error) if str(error) else "it is busy"


def mark_masters(connection: sa.Connection) -> int:
    """Tell master parts from others in the store; returns how many are not stored yet."""
    m = t.master_readings.c
    waiting = connection.execute(sa.select(m.id, m.edge_id, m.part_id, m.name).where(m.marked.is_(False))).all()
    left = 0
    for row in waiting:
        part = sa.and_(t.parts.c.edge_id == row.edge_id, t.parts.c.part_id == row.part_id)
        found = connection.execute(sa.update(t.parts).where(part).values(master=row.name))
        if found.rowcount:
            connection.execute(sa.update(t.master_readings).where(m.id == row.id).values(marked=True))
        left += not found.rowcount
    return left
