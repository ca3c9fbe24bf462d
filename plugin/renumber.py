"""A ledger from a backup, made so that it gives out nothing that the lost one may have given out (beside hop 9).

What was numbered after the backup is not known. So numbering goes on beyond what can have been reached since, and a
part that was captured before the restored host first ran is recorded, and never told to a line again.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

PER_S = 200
"""Parts that a line may have numbered in each second since the backup."""

MARGIN = 1_000_000
"""Passed over besides: a clock may have been some minutes wrong."""

LONG_AGO_NS = -(2**63)


def renumber(path: Path, made_ns: int, now_ns: int, last: Mapping[str, int]) -> int:
    """Set the least number of a ledger that lay in a backup; returns it. ``last``: what controllers say they had."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID")
        held = dict(connection.execute("SELECT key, value FROM meta").fetchall())
        (most,) = connection.execute("SELECT coalesce(max(number), 0) FROM outputs").fetchone()
        since_s = (now_ns - made_ns) // 10**9
        first = max(most, int(held.get("first_number", 1)), *last.values()) + since_s * PER_S + MARGIN
        connection.execute("DELETE FROM meta WHERE key IN ('boot_id', 'restored_boot', 'restored_ns')")
        values = [("first_number", str(first)), ("restored", str(now_ns))]
        connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values)
        # Their times are of another time of the host: closed as of long ago, which is recorded and not published.
        connection.execute("UPDATE open_parts SET boot_id = 'of a backup'")
    return int(first)


def not_before_ns(connection: sqlite3.Connection, boot_id: str) -> int:
    """CLOCK_MONOTONIC before which a part's capture keeps it from the line: when a restored ledger was first opened."""
    held = dict(connection.execute("SELECT key, value FROM meta").fetchall())
    if "restored" not in held:
        return LONG_AGO_NS
    if "restored_boot" not in held:
        now_ns = time.monotonic_ns()
        values = [("restored_boot", boot_id), ("restored_ns", str(now_ns))]
        connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values)
        return now_ns
    # In another boot every time since its start is later than that.
    return int(held["restored_ns"]) if held["restored_boot"] == boot_id else 0
