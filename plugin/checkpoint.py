"""Moves what the ledger committed from SQLite's log into its file, so that no part waits for that (beside hop 9).

By itself SQLite does so within every thousandth page's commit: the commit then waits for the disk several times over.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from plugin.logs import LimitedLog

PERIOD_S = 20.0
"""The commit after a complete checkpoint begins the log anew and waits for the disk once: not more often than this."""

LONG_PAGES = 8192
"""Of the log, 32 MB: then it is time that it begins anew, which only the hand that writes can bring about."""

FAR_TOO_LONG = 8
"""So many times that: now, whoever waits."""

log = logging.getLogger(__name__)


def without_checkpoints(connection: sqlite3.Connection) -> None:
    """No commit of this connection checkpoints by itself any more."""
    connection.execute("PRAGMA wal_autocheckpoint=0")


class Checkpointer:
    """Checkpoints on a thread and a connection of its own; ``finish`` belongs to the thread that writes."""

    def __init__(
        self,
        path: Path,
        period_s: float = PERIOD_S,
        long_pages: int = LONG_PAGES,
        failed: Callable[[Exception], None] = lambda _error: None,
    ) -> None:
        """``failed`` hears of errors, on the thread that checkpoints: they may be the only word of a failed write."""
        self._pages = 0
        self._failed = failed
        self._path = path
        self._period_s = period_s
        self._long_pages = long_pages
        self._stopping = threading.Event()
        self._log = LimitedLog(log)
        self._thread = threading.Thread(target=self._run, name="ledger checkpoints", daemon=True)

    @property
    def is_long(self) -> bool:
        """Whether the log is to begin anew."""
        return self._pages >= self._long_pages

    def is_due(self, idle: bool) -> bool:
        """Whether to ``finish`` now: when nobody waits, or when the log is far too long."""
        return self._pages >= (self._long_pages if idle else FAR_TOO_LONG * self._long_pages)

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
        self._pages = 0
        self._checkpoint(connection)

    def _run(self) -> None:
        while not self._stopping.wait(self._period_s):
            try:
                with closing(sqlite3.connect(self._path, isolation_level=None)) as connection:
                    connection.execute("PRAGMA synchronous=NORMAL")
                    self._pages = self._checkpoint(connection)
            except (sqlite3.Error, OSError) as error:
                self._failed(error)
                self._log.warning("checkpoint", f"{self._path}: no checkpoint ({error}); the log grows until there is")

    def _checkpoint(self, connection: sqlite3.Connection) -> int:
        """PASSIVE: waits for no reader and keeps no writer waiting; returns the pages that the log had."""
        _, pages, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        return int(pages)
