"""Moves what the ledger committed from SQLite's log into its file, so that no part waits for that (beside hop 9).

By itself SQLite does so within every thousandth page's commit: the commit then waits for the disk several times over.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

from plugin.logs import LimitedLog

PERIOD_S = 1.0
LONG_PAGES = 8192
"""Of the log, 32 MB: then it is time that it begins anew, which only the hand that writes can bring about."""

log = logging.getLogger(__name__)


def without_checkpoints(connection: sqlite3.Connection) -> None:
    """No commit of this connection checkpoints by itself any more."""
    connection.execute("PRAGMA wal_autocheckpoint=0")


class Checkpointer:
    """Checkpoints on a thread and a connection of its own; ``finish`` belongs to the thread that writes."""

    def __init__(self, path: Path, period_s: float = PERIOD_S, long_pages: int = LONG_PAGES) -> None:
        self.is_long = False
        self._path = path
        self._period_s = period_s
        self._long_pages = long_pages
        self._stopping = threading.Event()
        self._log = LimitedLog(log)
        self._thread = threading.Thread(target=self._run, name="ledger checkpoints", daemon=True)

    def start(self) -> None:
        """Begin to checkpoint, once every period."""
        self._thread.start()

    def stop(self) -> None:
        """End, after a checkpoint that is under way."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def finish(self, connection: sqlite3.Connection) -> None:
        """Checkpoint the few pages that came meanwhile: with none left, the next commit begins the log anew."""
        self.is_long = False
        self._checkpoint(connection)

    def _run(self) -> None:
        while not self._stopping.wait(self._period_s):
            try:
                with closing(sqlite3.connect(self._path, isolation_level=None)) as connection:
                    connection.execute("PRAGMA synchronous=NORMAL")
                    self.is_long = self._checkpoint(connection) >= self._long_pages
            except sqlite3.Error as error:
                self._log.warning("checkpoint", f"{self._path}: no checkpoint ({error}); the log grows until there is")

    def _checkpoint(self, connection: sqlite3.Connection) -> int:
        """PASSIVE: waits for no reader and keeps no writer waiting; returns the pages that the log had."""
        _, pages, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        return int(pages)
