"""The edge's own record of every event until the host has committed it (hop 6, before the wire).

A row stands in the spool before it is sent. Commits do not wait for the disk: a thread gathers them for ``sync_ms``,
the time of a sync included where the disk is quick, and syncs the write-ahead log. Killing the process loses nothing;
after a power cut the time since the last mark is a gap.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from contract.event import CHUNK_BYTES, Gap, Header, Missed, Result, Trigger, encode_header
from edge_runtime.clock import boot_id
from edge_runtime.errors import SpoolBlockedError
from edge_runtime.spool_room import FREED, Limits, bury, give_up, trim_dead
from edge_runtime.spool_tables import (
    CHECKPOINT_BYTES,
    EVENTS,
    Totals,
    connect,
    newest,
    open_tables,
    priority_of,
    totals,
    unusable,
    unwritable,
)

ANOTHER_BOOT_MS = 3_600_000.0
"""Least age of what was written before the machine started anew: its clocks may be wrong, its parts are gone."""

GATHER_SHARE = 0.8
"""Of ``sync_ms``, how long events are gathered until they are synced, past what is recorded a moment later."""

DEAD_LIMITS = Limits(10_000, 256 << 20)

log = logging.getLogger(__name__)


class Row(NamedTuple):
    """One spooled message: ``n`` orders rows locally, ``age_ms`` counts from capture (or writing) to now.

    ``body_bytes`` is the size of all its parts together; over CHUNK_BYTES they are left out here, to be ``read`` piece
    by piece.
    """

    n: int
    spool_id: str
    seq: int
    header: bytes
    parts: tuple[bytes, ...]
    age_ms: float
    body_bytes: int = 0

    @property
    def is_large(self) -> bool:
        return self.body_bytes > CHUNK_BYTES


class Outage(NamedTuple):
    """The time since the last mark; ``clean`` where the run before was stopped in order.

    ``reason`` where it is this run that could not record.
    """

    since_wall_ns: int
    since_boot_ns: int
    same_boot: bool
    clean: bool
    reason: str | None = None


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

    def __init__(
        self,
        path: Path,
        max_bytes: int = 2 << 30,
        sync_ms: float = 10.0,
        max_rows: int = 1_000_000,
        dead: Limits = DEAD_LIMITS,
    ) -> None:
        """Raises SpoolBlockedError where the disk does not take it now, SpoolError where the file is no spool."""
        self.path = path
        self.run_id = uuid.uuid4().hex[:12]
        self.dropped = 0
        self.full = False
        self._limits = Limits(max_rows, max_bytes)
        self._dead_limits = dead
        self._boot_id = boot_id()
        self._lock = threading.Lock()
        self._wal = path.with_name(path.name + "-wal")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = connect(path)
            self._reader = connect(path)
            open_tables(self._writer, path)
            self.outage = self._outage()
            self.spool_id, self._seq = self._numbering()
            if self.outage is None:
                self._set_meta(alive=self._mark())
            _sync(self._wal)  # before anything is numbered: a power cut must find that this run began
            self._removed = int(self._meta("dead_removed") or 0)
            self._count()
            self.note_earlier()
        except sqlite3.DatabaseError as error:
            raise unusable(path, error) from error
        except OSError as error:
            raise SpoolBlockedError(
                f"{path}: the spool cannot be opened ({error.strerror}); is the disk full?"
            ) from error
        self._syncer = _Syncer(path, sync_ms / 1000)

    def _count(self) -> None:
        """Count anew: at the start, and when a command beside this process changed the file."""
        self._totals, self._dead = totals(self._writer), totals(self._writer, "dead_letters")
        self._newest = newest(self._writer)
        self._version = self._data_version()

    def _data_version(self) -> int:
        """Changes when another connection has written."""
        return int(self._writer.execute("PRAGMA data_version").fetchone()[0])

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
        with self._lock, self._transaction():
            self._set_meta(alive=self._mark(age_ns))

    def begin_outage(self, since_ns: int, reason: str) -> None:
        """Nothing is on record from the last mark on, or from ``since_ns`` (CLOCK_MONOTONIC) where that is earlier.

        It lasts until a gap of the whole edge is appended, over a restart too.
        """
        with self._lock:
            ago_ns = max(0, time.monotonic_ns() - since_ns)
            wall_ns, boot_ns = time.time_ns() - ago_ns, time.clock_gettime_ns(time.CLOCK_BOOTTIME) - ago_ns
            if self.outage is None:
                self.outage = Outage(wall_ns, boot_ns, same_boot=True, clean=False)
                with suppress(sqlite3.Error):  # where the disk fails to be read as well, ``since_ns`` has to do
                    marked = self._outage()
                    self.outage = marked if marked is not None and marked.same_boot else self.outage
            first = self.outage
            if first.same_boot and boot_ns < first.since_boot_ns:
                first = first._replace(since_boot_ns=boot_ns, since_wall_ns=wall_ns)
            self.outage = first._replace(clean=False, reason=first.reason or reason)

    def _mark(self, age_ns: int = 0) -> str:
        boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - age_ns
        return json.dumps({"wall_ns": time.time_ns() - age_ns, "boot_ns": boot_ns, "boot_id": self._boot_id})

    def note_earlier(self) -> None:
        """What stands here now is all that earlier runs owe the host."""
        self._owed_n = self._newest[EVENTS]

    def settled(self) -> bool:
        """Whether the host has committed every event of earlier runs, or refused it for good."""
        if self._owed_n:
            with self._lock, suppress(sqlite3.Error):
                (oldest,) = self._writer.execute("SELECT min(n) FROM rows WHERE priority = ?", (EVENTS,)).fetchone()
                self._owed_n = self._owed_n if oldest is not None and oldest <= self._owed_n else 0
        return self._owed_n == 0

    def append(self, drafts: Iterable[Draft]) -> list[int]:
        """Number and write events in one transaction; they are safe from a killed process when this returns.

        Never refused for the spool's own limits (``require_room`` is): a part that was taken has its end recorded.
        Raises SpoolBlockedError where the disk does not take them; none of them stands then.
        """
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
            for priority, size in added:
                self._totals.rows[priority] += 1
                self._totals.bytes[priority] += size
            self.outage = None if ends_outage else self.outage
            if not self._limits.holds(self._totals):
                self._shrink()
        self._syncer.request()
        return numbers

    def require_room(self) -> None:
        """Raise SpoolBlockedError while event rows alone reach the limits: no further part is to be taken then.

        The other parts' ends, and the gap afterwards, still have their place beyond the limit.
        """
        if self.full and self._limits.holds(self._totals, FREED):
            self.full = False
        if self.full:
            rows, size = self.size
            raise SpoolBlockedError(
                f"the spool is full: {rows} events, {size / 1e6:.0f} MB, wait for the host, and what is not recorded "
                f"must not pass; bring the host back, or raise max_mb ({self._limits.bytes / 1e6:.0f}) or max_rows "
                f"({self._limits.rows}) under [spool]"
            )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing; raises SpoolBlockedError where the disk does not take it."""
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            if self._data_version() != self._version:
                self._count()
            yield
            self._writer.execute("COMMIT")
        except BaseException as error:
            with suppress(sqlite3.Error):
                self._writer.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise unwritable(self.path, error) from error
            raise

    def _insert(self, draft: Draft, seq: int) -> tuple[int, int]:
        header = draft.header.model_copy(update={"seq": seq, "spool_id": self.spool_id, "run_id": self.run_id})
        data = encode_header(header)
        body = b"".join(draft.parts)
        priority = priority_of(header)
        added = self._writer.execute(
            "INSERT INTO rows (spool_id, seq, priority, header, sizes, bytes, boot_id, t_ref_ns, t_wall_ns, body) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                self.spool_id,
                seq,
                priority,
                data,
                json.dumps([len(part) for part in draft.parts]) if draft.parts else "[]",
                len(data) + len(body),
                self._boot_id,
                draft.t_ref_ns or time.monotonic_ns(),
                header.t_wall_ns,
                body,
            ),
        )
        self._newest[priority] = added.lastrowid or self._newest[priority]
        if isinstance(header, Trigger):
            self._writer.execute("INSERT INTO open_triggers VALUES (?, ?)", (header.part_id, data))
        elif isinstance(header, Result | Missed):
            self._writer.execute("DELETE FROM open_triggers WHERE part_id = ?", (header.part_id,))
        return priority, len(data) + len(body)

    def _shrink(self) -> None:
        """Give pictures up, then maps; where event rows alone are over the limits the spool is full."""
        try:
            with self._transaction():
                left, given_up = give_up(self._writer, self._limits, self._totals)
        except SpoolBlockedError as error:  # what was appended stands; the next one tries again
            log.error("no room could be made: %s", error)
            return
        self._totals = left
        self.dropped += given_up
        if not self.full and not self._limits.holds(left, FREED):
            self.full = True
            log.error("the spool is full of events that the host has not taken: no further part is taken")

    def has_behind(self, priority: int, after_n: int) -> bool:
        """Whether ``pending`` may find something: known without a look at the file."""
        return self._newest[priority] > after_n

    def pending(self, priority: int, after_n: int, limit: int) -> list[Row]:
        """Rows of one priority behind ``after_n``, oldest first."""
        return self._read("priority = ? AND n > ? ORDER BY n LIMIT ?", (priority, after_n, limit))

    def row(self, n: int) -> Row | None:
        """One row for sending again, or None where the host has committed it since."""
        return next(iter(self._read("n = ?", (n,))), None)

    def read(self, n: int, offset: int, size: int) -> bytes | None:
        """Bytes of a row's parts, all in one, from ``offset`` on; None where the row or its parts have gone."""
        try:
            with self._reader.blobopen("rows", "body", n, readonly=True) as body:
                body.seek(min(offset, len(body)))
                return body.read(size) or None
        except sqlite3.OperationalError:
            if self.row(n) is None:
                return None
            raise

    def _read(self, where: str, values: tuple[int, ...]) -> list[Row]:
        statement = (
            "SELECT n, spool_id, seq, header, sizes, boot_id, t_ref_ns, t_wall_ns, length(body), "
            "CASE WHEN length(body) <= ? THEN body ELSE x'' END FROM rows WHERE "
        )
        found = self._reader.execute(statement + where, (CHUNK_BYTES, *values)).fetchall()
        return [self._to_row(*columns) for columns in found]

    def _to_row(
        self,
        n: int,
        spool_id: str,
        seq: int,
        header: bytes,
        sizes: str,
        boot: str,
        t_ref_ns: int,
        t_wall_ns: int,
        body_bytes: int,
        body: bytes,
    ) -> Row:
        if boot == self._boot_id:
            age_ms = (time.monotonic_ns() - t_ref_ns) / 1e6
        else:
            age_ms = max(ANOTHER_BOOT_MS, (time.time_ns() - t_wall_ns) / 1e6)
        lengths = json.loads(sizes) if body_bytes <= CHUNK_BYTES else []
        return Row(n, spool_id, seq, header, cut_up(body, lengths), max(0.0, age_ms), body_bytes)

    def parts(self, row: Row) -> tuple[bytes, ...] | None:
        """All parts of a row, however large; None where they have gone."""
        if not row.is_large:
            return row.parts
        body = self.read(row.n, 0, row.body_bytes)
        sizes = self._reader.execute("SELECT sizes FROM rows WHERE n = ?", (row.n,)).fetchone()
        return None if body is None or sizes is None else cut_up(body, json.loads(sizes[0]))

    def forget(self, spool_id: str, seqs: Iterable[int]) -> None:
        """Delete rows that the host has committed."""
        statement = "DELETE FROM rows WHERE spool_id = ? AND seq BETWEEN ? AND ? RETURNING priority, bytes"
        with self._lock:
            gone: list[tuple[int, int]] = []
            with self._transaction():
                for first, last in runs(seqs):
                    gone += self._writer.execute(statement, (spool_id, first, last)).fetchall()
            self._take_off(gone)

    def _take_off(self, gone: list[tuple[int, int]]) -> None:
        for priority, size in gone:
            self._totals.rows[priority] -= 1
            self._totals.bytes[priority] -= size

    def bury(self, spool_id: str, seq: int, code: str, message: str) -> None:
        """Move a row that the host refuses for good to the dead letters, so that it is not sent for ever."""
        with self._lock:
            with self._transaction():
                found = bury(self._writer, spool_id, seq, (code, message), time.time_ns())
                dead = Totals(list(self._dead.rows), list(self._dead.bytes))
                if found is not None:
                    dead.rows[found[0]] += 1
                    dead.bytes[found[0]] += found[1]
                dead, removed = trim_dead(self._writer, self._dead_limits, dead)
                self._set_meta(dead_removed=str(self._removed + removed))
            self._take_off([] if found is None else [found])
            self._dead = dead
            self._removed += removed

    def open_triggers(self) -> list[Trigger]:
        """Triggers without a result or a missed: after a restart, what the last run never finished."""
        try:
            with self._lock:
                rows = self._writer.execute("SELECT header FROM open_triggers ORDER BY rowid").fetchall()
        except sqlite3.Error as error:
            raise unwritable(self.path, error) from error
        return [Trigger.model_validate_json(row[0]) for row in rows]

    @property
    def size(self) -> tuple[int, int]:
        """(rows, bytes) that wait for the host."""
        return sum(self._totals.rows), sum(self._totals.bytes)

    @property
    def dead(self) -> tuple[int, int]:
        """Dead letters there are, and how many had to go for their limits since the spool began."""
        return sum(self._dead.rows), self._removed

    @property
    def trouble(self) -> str | None:
        """Why what is recorded would not survive a power cut, where the disk does not sync; None: it does."""
        return self._syncer.trouble

    @property
    def last_seq(self) -> int:
        """Number of the newest event; 0 before the first."""
        return self._seq

    def close(self, clean: bool = True) -> None:
        """Sync and close. ``clean``: every event of this run stands here, so that its numbering may go on."""
        self._syncer.stop()
        with self._lock:
            # On a disk that is full the log stays, and is read at the next start, which declares a gap too many.
            with suppress(sqlite3.OperationalError):
                if clean:
                    self._set_meta(clean="yes")
                self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._writer.close()
            self._reader.close()


def runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """First and last of each run without a hole, each number once: [4, 2, 3, 9] is [(2, 4), (9, 9)]."""
    found: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def cut_up(body: bytes, sizes: list[int]) -> tuple[bytes, ...]:
    """A row's parts out of its body."""
    parts, at = [], 0
    for size in sizes:
        parts.append(body[at : at + size])
        at += size
    return tuple(parts)


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
        self.trouble: str | None = None
        self._thread = threading.Thread(target=self._run, name="spool-sync", daemon=True)
        self._thread.start()

    def request(self) -> None:
        self._wanted.set()

    def _run(self) -> None:
        while not self._stopping:
            self._wanted.wait()
            if self._window_s and not self._stopping:
                time.sleep(GATHER_SHARE * self._window_s)  # what is written meanwhile is synced with it
            self._wanted.clear()
            try:
                _sync(self._wal)
                if self._wal.stat().st_size > CHECKPOINT_BYTES:
                    self._checkpoint()
                self.trouble = None
            except (OSError, sqlite3.Error) as error:
                self._say(f"{self._path}: what is recorded may not survive a power cut ({error})")

    def _checkpoint(self) -> None:
        with closing(sqlite3.connect(self._path, isolation_level=None, timeout=10)) as connection:
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def _say(self, trouble: str) -> None:
        if self.trouble is None:
            log.error("%s", trouble)
        self.trouble = trouble

    def stop(self) -> None:
        self._stopping = True
        self._wanted.set()
        self._thread.join(timeout=5)
