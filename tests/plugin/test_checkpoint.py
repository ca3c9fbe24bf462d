"""The ledger's log: emptied beside the work, begun anew, bounded, and nothing of it lost."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from plugin.checkpoint import Checkpointer, without_checkpoints
from tests.plugin import synthetic as s

PAGE = 4096
LONG = 64


@pytest.fixture
def file(tmp_path: Path) -> Iterator[tuple[Path, sqlite3.Connection]]:
    path = tmp_path / "state" / "ledger.sqlite"
    path.parent.mkdir()
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        without_checkpoints(connection)
        connection.execute("CREATE TABLE parts (number INTEGER PRIMARY KEY, what TEXT)")
        yield path, connection


def log_of(path: Path) -> int:
    return path.with_name(path.name + "-wal").stat().st_size


def times_begun(path: Path) -> int:
    """The checkpoint sequence number of the log's header (SQLite file format, section 4.1)."""
    with path.with_name(path.name + "-wal").open("rb") as log:
        return int.from_bytes(log.read(16)[12:])


def write(connection: sqlite3.Connection, count: int) -> None:
    connection.executemany("INSERT INTO parts (what) VALUES (?)", [("x" * PAGE,)] * count)


def test_by_itself_the_connection_never_checkpoints(file: tuple[Path, sqlite3.Connection]) -> None:
    path, connection = file
    write(connection, 1500)
    assert log_of(path) > 1500 * PAGE
    assert path.stat().st_size < 10 * PAGE


def test_a_log_that_became_long_begins_anew_under_writes_without_end(file: tuple[Path, sqlite3.Connection]) -> None:
    path, connection = file
    checkpointer = Checkpointer(path, period_s=0.005, long_pages=LONG)
    checkpointer.start()

    def write_and_finish() -> bool:
        write(connection, 4)
        if checkpointer.is_long:
            checkpointer.finish(connection)
        return times_begun(path) >= 5

    s.until(write_and_finish)
    checkpointer.stop()
    written = connection.execute("SELECT count(*) FROM parts").fetchone()[0]
    with closing(sqlite3.connect(path)) as reader:
        assert reader.execute("SELECT count(*), max(number) FROM parts").fetchone() == (written, written)
        assert reader.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_reader_that_stays_delays_no_writer_and_no_checkpoint_fails(
    file: tuple[Path, sqlite3.Connection], caplog: pytest.LogCaptureFixture
) -> None:
    path, connection = file
    write(connection, 4)
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM parts").fetchone() == (4,)
        checkpointer = Checkpointer(path, period_s=0.005, long_pages=LONG)
        checkpointer.start()
        write(connection, 2 * LONG)
        s.until(lambda: checkpointer.is_long)
        checkpointer.finish(connection)
        write(connection, 1)
        assert reader.execute("SELECT count(*) FROM parts").fetchone() == (4,), "what it saw when it began"
    s.until(lambda: checkpointer.is_long)
    checkpointer.finish(connection)
    checkpointer.stop()
    assert not caplog.records


def test_a_file_that_cannot_be_opened_is_said_and_tried_again(
    file: tuple[Path, sqlite3.Connection], caplog: pytest.LogCaptureFixture
) -> None:
    path, connection = file
    hidden = path.parent.with_name("hidden")
    write(connection, 2 * LONG)
    path.parent.rename(hidden)
    errors: list[Exception] = []
    checkpointer = Checkpointer(path, period_s=0.005, long_pages=LONG, failed=errors.append)
    checkpointer.start()
    s.until(lambda: any("no checkpoint" in record.message for record in caplog.records))
    hidden.rename(path.parent)
    s.until(lambda: checkpointer.is_long)
    checkpointer.stop()
    assert isinstance(errors[0], sqlite3.OperationalError), "who gives outputs out hears of it"
