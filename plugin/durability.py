"""What a power cut may take of the ledger: outputs are on the disk before they are given out, the rest soon (hop 9).

A killed process loses nothing. Announcements and outcomes, for which nobody waits, are synced in groups; a power cut
takes those of the last moments. Disks that say too soon that they have something are the reason for the numbers left
out: one that a line controller has read must never be given to another part.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from plugin.logs import LimitedLog

SYNC_S = 0.02
"""Least time from one sync to the next: what is committed meanwhile waits for it in one group."""

PASSED_OVER = 1000
"""Numbers left out in another boot of the machine: more than can be given out while one sync lasts."""

READERS_S = 0.2
"""Longest wait for those who read the database while the log is to be emptied; then another time."""

LOCK_S = 10.0
"""Longest wait of the ledger's connection for the file's lock otherwise."""

log = logging.getLogger(__name__)


def first_number(connection: sqlite3.Connection, boot_id: str) -> int:
    """The least number that may be given out: 1, or behind all of an earlier boot; kept in the table ``meta``."""
    connection.execute("CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID")
    held = dict(connection.execute("SELECT key, value FROM meta").fetchall())
    first = int(held.get("first_number", 1))
    if held.get("boot_id") == boot_id:
        return first
    if "boot_id" in held:
        (last,) = connection.execute("SELECT coalesce(max(number), 0) FROM outputs").fetchone()
        first = max(first, last + 1) + PASSED_OVER
    values = (("boot_id", boot_id), ("first_number", str(first)))
    connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values)
    return first


def sync(path: Path) -> None:
    """Wait until the database's log is on the disk. Raises OSError."""
    handle = os.open(_log_of(path), os.O_RDONLY)
    try:
        os.fdatasync(handle)
    finally:
        os.close(handle)
    confirm(path)


def confirm(path: Path) -> None:
    """Raise OSError where a sync of the database's log that has just come back said nothing.

    A file system that fails gives its journal up some milliseconds before it refuses to be synced; in between a sync
    returns and nothing was kept. A change of the file's times is refused sooner: that finds most such syncs, not all.
    """
    os.utime(_log_of(path))


def empty_log(connection: sqlite3.Connection) -> None:
    """Write all of the log into the database anew, on the disk, and begin the log anew. Raises sqlite3.Error.

    The only cure after a sync that was refused: the kernel says so once and never writes those pages again. A later
    sync says that all is well, and after a power cut SQLite reads the log as far as the first of them and no further.
    Belongs to the thread that writes, which is to ``sync`` next: before, the old log may come back.
    """
    connection.execute(f"PRAGMA busy_timeout={READERS_S * 1000:.0f}")
    try:
        busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        connection.execute(f"PRAGMA busy_timeout={LOCK_S * 1000:.0f}")
    if busy:
        raise sqlite3.OperationalError("its log is being read and cannot begin anew yet")


def is_log_failure(error: sqlite3.Error) -> bool:
    """Whether SQLite may have heard of a failed write before any sync of ours did."""
    return (getattr(error, "sqlite_errorcode", 0) & 0xFF) == sqlite3.SQLITE_IOERR


def _log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


class LogSync:
    """Syncs the log on a thread of its own after each ``request``, of which none waits; ``refused`` hears of errors."""

    def __init__(self, path: Path, refused: Callable[[OSError], None]) -> None:
        self.begun = 0
        """Syncs so far; each one's end can be waited for."""

        self.began_ns: int | None = None
        """CLOCK_MONOTONIC at the start of the one under way."""

        self._path = path
        self._refused = refused
        self._ended = 0
        self._end = threading.Condition()
        self._wanted = threading.Event()
        self._stopping = threading.Event()
        self._log = LimitedLog(log)
        self._thread = threading.Thread(target=self._run, name="ledger sync", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def request(self) -> None:
        """Something was committed."""
        self._wanted.set()

    def wait(self, begun: int) -> None:
        """Until so many syncs have ended: what one of them was refused, another that began later may not hear of."""
        with self._end:
            self._end.wait_for(lambda: self._ended >= begun)

    def stop(self) -> None:
        """Sync once more and end."""
        self._stopping.set()
        self._wanted.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(SYNC_S):
            self._wanted.wait()
            self._wanted.clear()
            self.begun += 1
            self.began_ns = time.monotonic_ns()
            try:
                sync(self._path)
            except OSError as error:
                self._refused(error)
                self._log.warning("sync", f"{self._path}: its log is not synced ({error.strerror})")
            self.began_ns = None
            with self._end:
                self._ended = self.begun
                self._end.notify_all()
        with suppress(OSError):
            sync(self._path)
