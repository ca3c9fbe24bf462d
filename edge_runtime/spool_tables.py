"""The spool's file: its tables, how it is opened and brought up to date (hop 6, beneath the spool)."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import NamedTuple

from contract.event import Attachment, Header, Shadow
from edge_runtime.errors import SpoolBlockedError, SpoolError

SPOOL_FILE = "spool.sqlite"
SCHEMA_VERSION = 2
CHECKPOINT_BYTES = 8 << 20
BUSY_S = 5.0
"""How long another program may hold the file; well under `hang_s`, so that the station says so and is not killed."""

EVENTS, MAPS, IMAGES = PRIORITIES = (0, 1, 2)
"""What is sent first, and given up last where there is no room: an event row never is."""

_MESSAGE = """
    spool_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    header BLOB NOT NULL,
    sizes TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    boot_id TEXT NOT NULL,
    t_ref_ns INTEGER NOT NULL,
    t_wall_ns INTEGER NOT NULL"""
COPIED = ", ".join(column.split()[0] for column in [*_MESSAGE.split(",\n"), "body"])
"""A message's columns, alike in the rows and in the dead letters."""

# The body comes last: SQLite would walk through all of it to reach a column behind it.
_TABLES = f"""
CREATE TABLE IF NOT EXISTS rows (
    n INTEGER PRIMARY KEY AUTOINCREMENT,{_MESSAGE},
    body BLOB NOT NULL,
    UNIQUE (spool_id, seq)
);
CREATE INDEX IF NOT EXISTS rows_in_order ON rows (priority, n, bytes);
CREATE TABLE IF NOT EXISTS open_triggers (part_id TEXT PRIMARY KEY, header BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS dead_letters (
    n INTEGER PRIMARY KEY AUTOINCREMENT,{_MESSAGE},
    code TEXT NOT NULL,
    message TEXT NOT NULL,
    t_dead_ns INTEGER NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS dead_in_order ON dead_letters (priority, n, bytes);
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
# Version 1 kept of a dead letter its header alone, so that it can be shown and not sent again as it was.
_FROM_1 = f"""
DROP INDEX IF EXISTS rows_by_priority;
ALTER TABLE rows RENAME TO old_rows;
ALTER TABLE dead_letters RENAME TO old_dead;
{_TABLES}
INSERT INTO rows (n, {COPIED}) SELECT n, {COPIED} FROM old_rows ORDER BY n;
INSERT INTO dead_letters ({COPIED}, code, message, t_dead_ns)
    SELECT spool_id, seq, 0, header, '[]', length(header), '', 0, t_wall_ns, x'', code, message, t_wall_ns
    FROM old_dead WHERE header IS NOT NULL;
DROP TABLE old_rows;
DROP TABLE old_dead;
"""  # noqa: S608 - constants alone


class Totals(NamedTuple):
    """Rows and bytes of each priority."""

    rows: list[int]
    bytes: list[int]


def priority_of(header: Header) -> int:
    """Verdict rows go before maps and a candidate's scores, those before pictures."""
    if isinstance(header, Shadow):
        return MAPS
    if not isinstance(header, Attachment):
        return EVENTS
    return MAPS if all(part.role == "map" for part in header.parts) else IMAGES


def connect(path: Path, uri: str | None = None) -> sqlite3.Connection:
    """A connection in autocommit; a commit never waits for the disk (the syncer thread does)."""
    connection = sqlite3.connect(
        uri or path, uri=uri is not None, check_same_thread=False, isolation_level=None, timeout=BUSY_S
    )
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute(f"PRAGMA journal_size_limit={CHECKPOINT_BYTES // 2}")  # else the log keeps its largest size
    return connection


def check_version(connection: sqlite3.Connection, path: Path) -> int:
    """The file's version, 0 where it is new. Raises SpoolError for one that this program does not know."""
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > SCHEMA_VERSION:
        raise SpoolError(f"{path}: spool version {version}, this program reads up to {SCHEMA_VERSION}")
    return version


def open_tables(connection: sqlite3.Connection, path: Path) -> None:
    """Make the tables, or bring those of an older version up to date, all or nothing."""
    version = check_version(connection, path)
    script = _FROM_1 if version == 1 else _TABLES
    connection.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")


def totals(connection: sqlite3.Connection, table: str = "rows") -> Totals:
    """Counted by the index alone, without a look at the rows themselves."""
    found = Totals([0, 0, 0], [0, 0, 0])
    for priority, rows, size in connection.execute(
        f"SELECT priority, count(*), coalesce(sum(bytes), 0) FROM {table} GROUP BY priority"  # noqa: S608
    ):
        found.rows[priority], found.bytes[priority] = rows, size
    return found


def newest(connection: sqlite3.Connection) -> list[int]:
    """The last row's number of each priority, 0 where there is none."""
    found = connection.execute("SELECT priority, max(n) FROM rows GROUP BY priority").fetchall()
    return [dict(found).get(priority, 0) for priority in PRIORITIES]


def unusable(path: Path, error: sqlite3.Error) -> SpoolError:
    """The error for a spool that cannot be opened: for now, or for good."""
    if isinstance(error, sqlite3.OperationalError):
        return SpoolBlockedError(
            f"{path}: the spool cannot be opened or written now ({error}): is the disk full or read-only?"
        )
    return SpoolError(
        f"{path}: the spool cannot be opened ({error}); move the file away to start a new one "
        "(what it still held is then lost to the host)"
    )


def unwritable(path: Path, error: sqlite3.Error) -> SpoolError:
    """The error for a write that failed: it may do so for now (disk full, read-only, I/O), or the file is damaged."""
    if isinstance(error, sqlite3.OperationalError):
        return SpoolBlockedError(f"{path}: the spool cannot be written ({error}); is the disk full?")
    return SpoolError(f"{path}: the spool is damaged ({error}); move the file away to start a new one")
