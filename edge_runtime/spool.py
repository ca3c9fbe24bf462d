"""The edge's own record of every event until the host has committed it (hop 6, before the wire).

A row stands in the spool before it is sent. Commits do not wait for the disk: a thread syncs the write-ahead log
within ``sync_ms``. Killing the process loses nothing; after a power cut the time since the last mark is a gap.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from contract.event import Attachment, Gap, Header, Missed, Result, Trigger, encode_header
from edge_runtime.clock import boot_id
from edge_runtime.errors import SpoolError

SCHEMA_VERSION = 1
CHECKPOINT_BYTES = 8 << 20
ANOTHER_BOOT_MS = 3_600_000.0
"""Least age of what was written before the machine started anew: its clocks may be wrong, its parts are gone."""
PRIORITY = {"trigger": 0, "result": 0, "missed": 0, "gap": 0, "state": 0, "attachment": 1}

_TABLES = """
CREATE TABLE IF NOT EXISTS rows (
    n INTEGER PRIMARY KEY AUTOINCREMENT,
    spool_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    header BLOB NOT NULL,
    sizes TEXT NOT NULL,
    body BLOB NOT NULL,
    bytes INTEGER NOT NULL,
    boot_id TEXT NOT NULL,
    t_ref_ns INTEGER NOT NULL,
    t_wall_ns INTEGER NOT NULL,
    UNIQUE (spool_id, seq)
);
CREATE INDEX IF NOT EXISTS rows_by_priority ON rows (priority, n);
CREATE TABLE IF NOT EXISTS open_triggers (part_id TEXT PRIMARY KEY, header BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS dead_letters (
    spool_id TEXT, seq INTEGER, header BLOB, code TEXT, message TEXT, t_wall_ns INTEGER
);
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class Row(NamedTuple):
    """One spooled message: ``n`` orders rows locally, ``age_ms`` counts from capture (or writing) to now."""

    n: int
    spool_id: str
    seq: int
    header: bytes
    parts: tuple[bytes, ...]
    age_ms: float


class Outage(NamedTuple):
    """The time since the last mark of the run before; ``clean`` where that run was stopped in order."""

    since_wall_ns: int
    since_boot_ns: int
    same_boot: bool
    clean: bool


class Draft(NamedTuple):
    """A header to be numbered (its ``seq`` is replaced), its binary parts and the capture time its age counts from."""

    header: Header
    parts: tuple[bytes, ...] = ()
    t_ref_ns: int = 0


class Spool:
    """Append, read by priority, forget once committed. Safe to use from several threads.

    ``spool_id`` names this file's numbering; it is new after every start that followed an unclean stop, since rows
    which a power cut took may already have been numbered and sent.
    """

    def __init__(self, path: Path, max_bytes: int = 2 << 30, sync_ms: float = 10.0) -> None:
        self.path = path
        self.run_id = uuid.uuid4().hex[:12]
        self.dropped = 0
        self._max_bytes = max_bytes
        self._boot_id = boot_id()
        self._lock = threading.Lock()
        self._wal = path.with_name(path.name + "-wal")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._writer = self._connect()
            self._reader = self._connect()
            self._open_tables()
        except sqlite3.DatabaseError as error:
            raise SpoolError(
                f"{path}: the spool cannot be opened ({error}); move the file away to start a new one "
                "(what it still held is then lost to the host)"
            ) from error
        self.outage = self._outage()
        self.spool_id, self._seq = self._numbering()
        if self.outage is None:
            self._set_meta(alive=self._mark())
        _sync(self._wal)  # before anything is numbered: a power cut must find that this run began
        self._bytes, self._rows = self._writer.execute("SELECT coalesce(sum(bytes), 0), count(*) FROM rows").fetchone()
        self._syncer = _Syncer(path, sync_ms / 1000)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None, timeout=10)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")  # the syncer thread syncs; a commit never waits for the disk
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute(f"PRAGMA journal_size_limit={CHECKPOINT_BYTES // 2}")  # else the log keeps its largest size
        return connection

    def _open_tables(self) -> None:
        version = self._writer.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, SCHEMA_VERSION):
            raise SpoolError(f"{self.path}: spool version {version}, this program reads {SCHEMA_VERSION}")
        self._writer.executescript(_TABLES)
        self._writer.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    def _meta(self, key: str) -> str | None:
        row = self._writer.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def _set_meta(self, **values: str) -> None:
        self._writer.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())

    def _outage(self) -> Outage | None:
        alive = self._meta("alive")
        if alive is None:
            return None
        mark, clean = json.loads(alive), self._meta("clean") == "yes"
        return Outage(mark["wall_ns"], mark["boot_ns"], mark["boot_id"] == self._boot_id, clean)

    def _numbering(self) -> tuple[str, int]:
        spool_id = self._meta("spool_id")
        if spool_id is None or self._meta("clean") != "yes":
            spool_id = uuid.uuid4().hex
            self._set_meta(spool_id=spool_id, seq="0")
        self._set_meta(clean="no")
        return spool_id, int(self._meta("seq") or 0)

    def mark_alive(self, age_ns: int = 0) -> None:
        """Note that all that passed until ``age_ns`` ago stands here; what follows is a gap at the next start."""
        with self._lock:
            self._set_meta(alive=self._mark(age_ns))

    def _mark(self, age_ns: int = 0) -> str:
        boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - age_ns
        return json.dumps({"wall_ns": time.time_ns() - age_ns, "boot_ns": boot_ns, "boot_id": self._boot_id})

    def append(self, drafts: Iterable[Draft]) -> list[int]:
        """Number and write events in one transaction; they are safe from a killed process when this returns."""
        with self._lock:
            seq = self._seq
            drafts = list(drafts)
            ends_outage = any(isinstance(d.header, Gap) and d.header.camera_id is None for d in drafts)
            with self._transaction():
                added = [self._insert(draft, seq + n) for n, draft in enumerate(drafts, start=1)]
                seq += len(drafts)
                self._set_meta(seq=str(seq), **({"alive": self._mark()} if ends_outage else {}))
            numbers = list(range(self._seq + 1, seq + 1))
            self._seq = seq
            self._bytes += sum(added)
            self._rows += len(numbers)
            self.outage = None if ends_outage else self.outage
            if self._bytes > self._max_bytes:
                self._shrink()
        self._syncer.request()
        return numbers

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing; raises SpoolError where the disk does not take it."""
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            yield
            self._writer.execute("COMMIT")
        except BaseException as error:
            with suppress(sqlite3.Error):
                self._writer.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise SpoolError(f"{self.path}: the spool cannot be written ({error}); is the disk full?") from error
            raise

    def _insert(self, draft: Draft, seq: int) -> int:
        header = draft.header.model_copy(update={"seq": seq, "spool_id": self.spool_id, "run_id": self.run_id})
        data = encode_header(header)
        body = b"".join(draft.parts)
        self._writer.execute(
            "INSERT INTO rows (spool_id, seq, priority, header, sizes, body, bytes, boot_id, t_ref_ns, t_wall_ns) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                self.spool_id,
                seq,
                PRIORITY[header.kind],
                data,
                json.dumps([len(part) for part in draft.parts]),
                body,
                len(data) + len(body),
                self._boot_id,
                draft.t_ref_ns or time.monotonic_ns(),
                header.t_wall_ns,
            ),
        )
        if isinstance(header, Trigger):
            self._writer.execute("INSERT INTO open_triggers VALUES (?, ?)", (header.part_id, data))
        elif isinstance(header, Result | Missed):
            self._writer.execute("DELETE FROM open_triggers WHERE part_id = ?", (header.part_id,))
        return len(data) + len(body)

    def _shrink(self) -> None:
        """Empty the oldest attachments until a tenth is free; their headers stay and say that they were dropped."""
        target, left = int(0.9 * self._max_bytes), self._bytes
        rows = self._writer.execute("SELECT n, header, bytes FROM rows WHERE priority = 1 AND sizes != '[]' ORDER BY n")
        emptied = []
        for n, header, size in rows:
            if left <= target:
                break
            kept = Attachment.model_validate_json(header).model_copy(update={"dropped": True, "parts": ()})
            data = encode_header(kept)
            emptied.append((data, len(data), n))
            left -= size - len(data)
        statement = "UPDATE rows SET header = ?, sizes = '[]', body = x'', bytes = ? WHERE n = ?"
        with self._transaction():
            self._writer.executemany(statement, emptied)
        self._bytes = left
        self.dropped += len(emptied)

    def pending(self, priority: int, after_n: int, limit: int) -> list[Row]:
        """Rows of one priority behind ``after_n``, oldest first."""
        return self._read("priority = ? AND n > ? ORDER BY n LIMIT ?", (priority, after_n, limit))

    def row(self, n: int) -> Row | None:
        """One row for sending again, or None where the host has committed it since."""
        return next(iter(self._read("n = ?", (n,))), None)

    def _read(self, where: str, values: tuple[int, ...]) -> list[Row]:
        found = self._reader.execute(
            f"SELECT n, spool_id, seq, header, sizes, body, boot_id, t_ref_ns, t_wall_ns FROM rows WHERE {where}",  # noqa: S608
            values,
        ).fetchall()
        return [self._to_row(*columns) for columns in found]

    def _to_row(
        self,
        n: int,
        spool_id: str,
        seq: int,
        header: bytes,
        sizes: str,
        body: bytes,
        boot: str,
        t_ref_ns: int,
        t_wall_ns: int,
    ) -> Row:
        if boot == self._boot_id:
            age_ms = (time.monotonic_ns() - t_ref_ns) / 1e6
        else:
            age_ms = max(ANOTHER_BOOT_MS, (time.time_ns() - t_wall_ns) / 1e6)
        parts, at = [], 0
        for size in json.loads(sizes):
            parts.append(body[at : at + size])
            at += size
        return Row(n, spool_id, seq, header, tuple(parts), max(0.0, age_ms))

    def forget(self, spool_id: str, seqs: Iterable[int]) -> None:
        """Delete rows that the host has committed."""
        statement = "DELETE FROM rows WHERE spool_id = ? AND seq = ? RETURNING bytes"
        with self._lock:
            with self._transaction():
                found = [self._writer.execute(statement, (spool_id, seq)).fetchone() for seq in seqs]
            gone = [row[0] for row in found if row is not None]
            self._bytes -= sum(gone)
            self._rows -= len(gone)

    def bury(self, spool_id: str, seq: int, code: str, message: str) -> None:
        """Move a row that the host refuses for good to the dead letters, so that it is not sent for ever."""
        with self._lock:
            self._writer.execute(
                "INSERT INTO dead_letters SELECT spool_id, seq, header, ?, ?, ? FROM rows "
                "WHERE spool_id = ? AND seq = ?",
                (code, message, time.time_ns(), spool_id, seq),
            )
        self.forget(spool_id, [seq])

    def open_triggers(self) -> list[Trigger]:
        """Triggers without a result or a missed: after a restart, what the last run never finished."""
        rows = self._writer.execute("SELECT header FROM open_triggers ORDER BY rowid").fetchall()
        return [Trigger.model_validate_json(row[0]) for row in rows]

    @property
    def size(self) -> tuple[int, int]:
        """(rows, bytes) that wait for the host."""
        return self._rows, self._bytes

    def close(self, clean: bool = True) -> None:
        """Sync and close. ``clean``: every event of this run stands here, so that its numbering may go on."""
        self._syncer.stop()
        with self._lock:
            if clean:
                self._set_meta(clean="yes")
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._writer.close()
            self._reader.close()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fdatasync(handle)
    finally:
        os.close(handle)


class _Syncer:
    """Syncs the write-ahead log in groups and folds it into the database now and then, off the verdict's way."""

    def __init__(self, path: Path, window_s: float) -> None:
        self._path = path
        self._wal = path.with_name(path.name + "-wal")
        self._window_s = window_s
        self._wanted = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="spool-sync", daemon=True)
        self._thread.start()

    def request(self) -> None:
        self._wanted.set()

    def _run(self) -> None:
        connection = sqlite3.connect(self._path, isolation_level=None, timeout=10)
        connection.execute("PRAGMA synchronous=NORMAL")
        while not self._stopping:
            self._wanted.wait()
            self._wanted.clear()
            with suppress(OSError):
                _sync(self._wal)
            if self._wal.exists() and self._wal.stat().st_size > CHECKPOINT_BYTES:
                with suppress(sqlite3.Error):
                    connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
            if self._window_s and not self._stopping:
                time.sleep(self._window_s / 2)  # gather what is written meanwhile into one sync
        connection.close()

    def stop(self) -> None:
        self._stopping = True
        self._wanted.set()
        self._thread.join(timeout=5)
