"""What waits in a spool and what the host refused for good, seen and changed beside a running edge (beside hop 6).

Every call is one short transaction of a connection of its own; the edge notices what changed and counts anew.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from edge_runtime.errors import SpoolError
from edge_runtime.spool_tables import COPIED, PRIORITIES, SCHEMA_VERSION, check_version, totals, unusable, unwritable

NAMES = ("verdict rows", "maps", "pictures")


class Waiting(NamedTuple):
    """What waits of one priority: ``size`` in bytes; ``oldest_s`` by the wall clock, None where nothing waits."""

    name: str
    rows: int
    size: int
    oldest_s: float | None


class Letter(NamedTuple):
    """A dead letter: its number here, its identity, why and when the host refused it, what it says."""

    n: int
    spool_id: str
    seq: int
    priority: int
    size: int
    code: str
    message: str
    t_dead_ns: int
    header: bytes

    @property
    def kind(self) -> str:
        """As its header says; ``?`` where that cannot be read."""
        try:
            return str(json.loads(self.header)["kind"])
        except (ValueError, KeyError, TypeError):
            return "?"


class SpoolFile:
    """An edge's spool as a file, whether or not the edge runs. Raises SpoolError where there is none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.exists():
            raise SpoolError(f"{path}: no spool; no edge has run with this state_dir")
        with self._connection() as connection:
            version = check_version(connection, path)
        if version != SCHEMA_VERSION:
            raise SpoolError(
                f"{path}: spool version {version}, this command reads {SCHEMA_VERSION}; the edge brings it up to date "
                "at its next start"
            )

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            # "rw": a command must not make a spool where there is none
            with closing(
                sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=10)
            ) as connection:
                connection.execute("PRAGMA synchronous=FULL")
                connection.execute("PRAGMA wal_autocheckpoint=0")
                yield connection
        except sqlite3.OperationalError as error:
            raise unwritable(self._path, error) from error
        except sqlite3.DatabaseError as error:
            raise unusable(self._path, error) from error

    def waiting(self) -> list[Waiting]:
        """What waits, by priority."""
        with self._connection() as connection:
            found = totals(connection)
            oldest = [
                connection.execute(
                    "SELECT t_wall_ns FROM rows WHERE priority = ? ORDER BY n LIMIT 1", (each,)
                ).fetchone()
                for each in PRIORITIES
            ]
        now_ns = time.time_ns()
        ages = [None if row is None else max(0.0, (now_ns - row[0]) / 1e9) for row in oldest]
        return [Waiting(NAMES[each], found.rows[each], found.bytes[each], ages[each]) for each in PRIORITIES]

    def removed(self) -> int:
        """Dead letters that had to go for want of room."""
        with self._connection() as connection:
            row = connection.execute("SELECT value FROM meta WHERE key = 'dead_removed'").fetchone()
        return 0 if row is None else int(row[0])

    def letters(self, numbers: Sequence[int] = ()) -> list[Letter]:
        """Every dead letter, oldest first, or those of these numbers. Raises SpoolError for one that is not there."""
        statement = "SELECT n, spool_id, seq, priority, bytes, code, message, t_dead_ns, header FROM dead_letters"
        with self._connection() as connection:
            found = [Letter(*row) for row in connection.execute(f"{statement} ORDER BY n")]
        if missing := sorted(set(numbers) - {letter.n for letter in found}):
            raise SpoolError(f"{self._path}: no dead letter {missing[0]}; flawline edge spool dead list shows them")
        return [letter for letter in found if not numbers or letter.n in numbers]

    def parts(self, n: int) -> tuple[bytes, tuple[bytes, ...]]:
        """Header and binary parts of a dead letter; no parts where it was refused before they were kept."""
        from edge_runtime.spool import cut_up

        with self._connection() as connection:
            row = connection.execute("SELECT header, sizes, body FROM dead_letters WHERE n = ?", (n,)).fetchone()
        if row is None:
            raise SpoolError(f"{self._path}: no dead letter {n}")
        return row[0], cut_up(row[2], json.loads(row[1]))

    def retry(self, numbers: Sequence[int]) -> list[int]:
        """Put dead letters back among what waits for the host, under their own identity; returns those that went.

        One whose identity waits already stays dead, as does one of which only the header was kept.
        """
        done = []
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            for n in numbers:
                added = connection.execute(
                    f"INSERT OR IGNORE INTO rows ({COPIED}) SELECT {COPIED} FROM dead_letters "  # noqa: S608 - constants
                    "WHERE n = ? AND boot_id != ''",
                    (n,),
                ).rowcount
                if added:
                    connection.execute("DELETE FROM dead_letters WHERE n = ?", (n,))
                    done.append(n)
            connection.execute("COMMIT")
        return done

    def drop(self, numbers: Sequence[int]) -> int:
        """Remove dead letters for good; returns how many."""
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            gone = sum(connection.execute("DELETE FROM dead_letters WHERE n = ?", (n,)).rowcount for n in numbers)
            connection.execute("COMMIT")
        return gone
