"""What the spool gives up where it is full: pictures first, the oldest first, then maps, never an event row (hop 6)."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from contract.event import Attachment, encode_header
from edge_runtime.spool_tables import COPIED, IMAGES, MAPS, Totals

FREED = 0.9
"""Room is made down to this share of a limit, so that not every event makes room for itself."""


class Limits(NamedTuple):
    """Most rows and bytes."""

    rows: int
    bytes: int

    def holds(self, found: Totals, share: float = 1.0) -> bool:
        """Whether all that is there lies within this share of the limits."""
        return sum(found.rows) <= share * self.rows and sum(found.bytes) <= share * self.bytes


def give_up(connection: sqlite3.Connection, limits: Limits, found: Totals) -> tuple[Totals, int]:
    """Make room in an open transaction; returns what is left, and how many maps' and pictures' messages lost theirs.

    A message that loses its pictures keeps its header, which says so to the host, as long as there is room for that.
    """
    left = Totals(list(found.rows), list(found.bytes))
    given_up = 0
    for priority in (IMAGES, MAPS):
        given_up += _empty(connection, limits, left, priority)
    for priority in (IMAGES, MAPS):
        given_up += _delete(connection, limits, left, priority)
    return left, given_up


def _empty(connection: sqlite3.Connection, limits: Limits, left: Totals, priority: int) -> int:
    """Empty the oldest messages of a priority, as long as bytes are what is over."""
    rows = connection.execute(
        "SELECT n, header, bytes FROM rows WHERE priority = ? AND sizes != '[]' ORDER BY n", (priority,)
    )
    emptied = []
    for n, header, size in rows:
        if sum(left.bytes) <= FREED * limits.bytes:
            break
        kept = Attachment.model_validate_json(header).model_copy(update={"dropped": True, "parts": ()})
        data = encode_header(kept)
        emptied.append((data, len(data), n))
        left.bytes[priority] -= size - len(data)
    statement = "UPDATE rows SET header = ?, sizes = '[]', body = x'', bytes = ? WHERE n = ?"
    connection.executemany(statement, emptied)
    return len(emptied)


def _delete(connection: sqlite3.Connection, limits: Limits, left: Totals, priority: int) -> int:
    """Delete the oldest messages of a priority; returns how many of them still had their pictures."""
    rows = connection.execute("SELECT n, bytes, sizes != '[]' FROM rows WHERE priority = ? ORDER BY n", (priority,))
    deleted, whole = [], 0
    for n, size, has_pictures in rows:
        if limits.holds(left, FREED):
            break
        deleted.append((n,))
        whole += has_pictures
        left.rows[priority] -= 1
        left.bytes[priority] -= size
    connection.executemany("DELETE FROM rows WHERE n = ?", deleted)
    return whole


def bury(
    connection: sqlite3.Connection, spool_id: str, seq: int, why: tuple[str, str], now_ns: int
) -> tuple[int, int] | None:
    """Move a row to the dead letters in an open transaction; (priority, bytes) of it, None where there is none."""
    connection.execute(
        f"INSERT INTO dead_letters ({COPIED}, code, message, t_dead_ns) "  # noqa: S608 - constants
        f"SELECT {COPIED}, ?, ?, ? FROM rows WHERE spool_id = ? AND seq = ?",
        (*why, now_ns, spool_id, seq),
    )
    statement = "DELETE FROM rows WHERE spool_id = ? AND seq = ? RETURNING priority, bytes"
    found: tuple[int, int] | None = connection.execute(statement, (spool_id, seq)).fetchone()
    return found


def trim_dead(connection: sqlite3.Connection, limits: Limits, found: Totals) -> tuple[Totals, int]:
    """Remove dead letters over the limits in an open transaction: pictures, then maps, then events, the oldest first.

    Returns what is left and how many went.
    """
    left = Totals(list(found.rows), list(found.bytes))
    if limits.holds(left):
        return left, 0
    removed = []
    for n, priority, size in connection.execute(
        "SELECT n, priority, bytes FROM dead_letters ORDER BY priority DESC, n"
    ):
        if limits.holds(left, FREED):
            break
        removed.append((n,))
        left.rows[priority] -= 1
        left.bytes[priority] -= size
    connection.executemany("DELETE FROM dead_letters WHERE n = ?", removed)
    return left, len(removed)
