"""The store by itself: once each, in any order, append-only, and what the migrations make."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from contract.errors import ConfigError
from contract.event import Verdict, from_frames, part_ref
from plugin.database import Place, blames_the_event, is_sqlite, migrations, open_engine
from plugin.errors import ReviewError
from plugin.queries import Reader
from plugin.store import _CLOSE_LOST, LOST, Received, Store, severity
from plugin.tables import metadata
from tests.plugin import synthetic as s
from tests.plugin.older import older


def received(message: list[bytes]) -> Received:
    return Received(b"peer", from_frames(message), message[2].decode(), 1, 0)


@pytest.fixture
def store(tmp_path: Path, where: Place) -> Iterator[Store]:
    store = Store(tmp_path, where=where)
    yield store
    store.close()


@pytest.fixture
def lite(tmp_path: Path) -> Iterator[Store]:
    """One of SQLite, for what concerns its file or its plans."""
    store = Store(tmp_path)
    yield store
    store.close()


@pytest.fixture
def reader(store: Store, where: Place) -> Iterator[Reader]:
    reader = Reader(where)
    yield reader
    reader.close()


def put(store: Store, *messages: list[bytes]) -> list[str]:
    return list(store.commit([received(message) for message in messages]))


def test_the_migrations_make_the_tables(store: Store, where: Place) -> None:
    engine = open_engine(where)
    # Alembic cannot compare an index on an expression; the plan of the queue's query proves that one below.
    options = {"include_object": lambda _item, name, *_: name != "parts_queue"}
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []
        if is_sqlite(engine):
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    engine.dispose()


@pytest.mark.parametrize("before", ["0001", "0004", "0005"])
def test_the_tables_of_before_are_brought_to_the_same(tmp_path: Path, where: Place, before: str) -> None:
    engine, config = open_engine(where), migrations()
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, before)
        connection.commit()
    engine.dispose()
    store = Store(tmp_path, where=where)
    test_the_migrations_make_the_tables(store, where)
    assert put(store, s.frames(s.result(1))) == ["new"]
    store.close()


def test_what_is_no_store_is_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "store.sqlite").write_bytes(b"not a database at all" * 100)
    with pytest.raises(ConfigError, match="cannot be opened"):
        Store(tmp_path)


def test_a_store_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    Store(tmp_path).close()
    connection = sqlite3.connect(tmp_path / "store.sqlite")
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    with pytest.raises(ConfigError, match="a newer Flawline"):
        Store(tmp_path)


def test_duplicates_are_absorbed_across_and_within_batches(store: Store, reader: Reader) -> None:
    first = s.frames(s.result(1))
    assert put(store, first, first) == ["new", "duplicate"]
    assert put(store, first, s.frames(s.result(2)), s.frames(s.result(1), age_ms=99.0, attempt=3)) == [
        "duplicate",
        "new",
        "duplicate",
    ]
    assert reader.spools()[0] | {} == {
        "edge_id": s.EDGE,
        "spool_id": s.SPOOL,
        "stored": 2,
        "max_seq": 2,
        "duplicates": 3,
        "holes": 0,
    }
    assert reader.parts(0, 10)[0]["timing"]["age_ms"] == 5.0


def test_batches_of_all_sizes_use_the_same_statements(store: Store) -> None:
    """The driver keeps every statement that it has met, with its plan: over days, megabytes."""
    met: set[str] = set()
    sa.event.listen(store._engine, "before_cursor_execute", lambda *call: met.add(call[2]))
    put(store, s.frames(s.trigger(1)), s.frames(s.result(2)))
    first = met.copy()
    for size in (1, 2, 3, 7):
        triggers = [s.frames(s.trigger(100 * size + n)) for n in range(size)]
        results = [s.frames(s.result(100 * size + 50 + n)) for n in range(size)]
        assert put(store, *triggers, *results) == ["new"] * 2 * size
        assert put(store, *triggers, *results) == ["duplicate"] * 2 * size
    assert met == first


def test_the_same_identity_with_other_words_is_a_conflict(store: Store, reader: Reader) -> None:
    put(store, s.frames(s.result(1)))
    assert put(store, s.frames(s.result(1, verdict=Verdict.REJECT))) == ["conflict"]
    assert reader.parts(0, 10)[0]["verdict"] == "PASS"


def test_a_part_is_one_row_whatever_the_order(store: Store, reader: Reader) -> None:
    put(store, s.frames(s.trigger(1, "a")), s.frames(s.result(4, "b")))
    assert [part["state"] for part in reader.parts(0, 10)] == ["triggered", "result"]
    put(store, s.frames(s.trigger(3, "b")), s.frames(s.missed(2, "a")), s.frames(s.result(5, "a")))
    parts = {part["part_id"]: part for part in reader.parts(0, 10)}
    assert (parts["a"]["state"], parts["a"]["verdict"]) == ("missed", "NOT_INSPECTED")  # the first word stands
    assert (parts["b"]["state"], parts["b"]["seq"]) == ("result", 4)
    assert reader.counts()["kinds"] == {"trigger": 2, "result": 2, "missed": 1}


def test_a_missed_from_a_new_spool_closes_the_same_part(store: Store, reader: Reader) -> None:
    put(store, s.frames(s.trigger(1, "a")), s.frames(s.missed(1, "a", spool_id="spool-2")))
    assert [part["state"] for part in reader.parts(0, 10)] == ["missed"]


def test_pictures_may_come_before_their_result(store: Store, reader: Reader) -> None:
    data = b"\x89PNG fake"
    reference = part_ref("image", data, codec="png", shape=(2, 2, 3))
    put(store, s.frames(s.attachment(3, "a", 2, (reference,)), [data]))
    put(store, s.frames(s.result(2, "a", Verdict.REJECT)))
    (found,) = reader.attachments(s.EDGE, "a")
    assert found["role"] == "image"
    path = store.blobs.find(found["sha256"])
    assert path is not None
    assert path.read_bytes() == data
    assert reader.thumbnails(reader.parts(0, 10)) == {1: found["id"]}


def test_an_attachment_whose_pictures_were_dropped_meanwhile_is_a_duplicate(store: Store) -> None:
    data = b"x" * 10
    reference = part_ref("image", data, codec="png", shape=(1,))
    put(store, s.frames(s.attachment(3, "a", 2, (reference,)), [data]))
    assert put(store, s.frames(s.attachment(3, "a", 2, (), dropped=True))) == ["duplicate"]


def test_holes_are_numbers_never_seen(store: Store, reader: Reader) -> None:
    put(store, s.frames(s.result(1)), s.frames(s.result(2)), s.frames(s.result(7)))
    assert reader.spools()[0]["holes"] == 4


def test_states_are_kept_as_the_latest_only(store: Store, reader: Reader) -> None:
    put(store, s.frames(s.state(1, spool_rows=3)), s.frames(s.state(2, spool_rows=4)))
    assert [edge["spool_rows"] for edge in reader.edges()] == [4]
    assert reader.spools() == []


def ends(reader: Reader) -> dict[str, tuple[str, str | None]]:
    return {part["part_id"]: (part["state"], part["reason"]) for part in reader.parts(0, 10)}


def test_a_part_that_its_edge_lost_is_missed_once_the_edge_owes_nothing_more(store: Store, reader: Reader) -> None:
    put(store, s.frames(s.trigger(1, "lost")), s.frames(s.result(2, "done")), s.frames(s.trigger(3, "slow")))
    put(store, s.frames(s.trigger(1, "new", spool_id="spool-2")))
    put(store, s.frames(s.trigger(1, "other's", edge_id="edge-2")))
    before = ends(reader)
    put(store, s.frames(s.state(1, events_spool_id="spool-2")), s.frames(s.state(1, settled=True)))
    assert ends(reader) == before
    put(store, s.frames(s.state(2, events_spool_id="spool-2", settled=True)))
    lost = {"lost": ("missed", LOST), "slow": ("missed", LOST)}
    assert ends(reader) == before | lost
    assert reader.counts()["verdicts"] == {"PASS": 1, "NOT_INSPECTED": 2}
    put(store, s.frames(s.state(3, events_spool_id="spool-2", settled=True)))
    put(store, s.frames(s.result(4, "slow")), s.frames(s.missed(5, "done")))  # a dead letter that was sent after all
    assert ends(reader) == before | lost | {"slow": ("result", None)}


@pytest.mark.parametrize("started_anew", [False, True])
def test_a_late_heartbeat_of_the_run_before_ends_no_part_of_this_one(
    tmp_path: Path, where: Place, started_anew: bool
) -> None:
    old = s.frames(s.state(1, events_spool_id="spool-1", settled=True))
    with closing(Store(tmp_path, where=where)) as store:
        put(store, old)
        if not started_anew:
            put_and_look(store, where, old)
    if started_anew:
        with closing(Store(tmp_path, where=where)) as store:
            put_and_look(store, where, old)


def put_and_look(store: Store, where: Place, old: list[bytes]) -> None:
    put(store, s.frames(s.trigger(1, "live", spool_id="spool-2")))
    put(store, old)
    with closing(Reader(where)) as reader:
        assert ends(reader) == {"live": ("triggered", None)}
        put(store, s.frames(s.state(1, events_spool_id="spool-3", settled=True)))
        assert ends(reader) == {"live": ("missed", LOST)}


def test_an_edge_whose_settled_heartbeat_was_not_committed_is_asked_again(store: Store, reader: Reader) -> None:
    put(store, s.frames(s.trigger(1, "lost")))
    said = received(s.frames(s.state(1, events_spool_id="spool-2", settled=True)))
    broken = received(s.frames(s.state(1)))._replace(received_ns=2**70)
    with pytest.raises((OverflowError, sa.exc.DataError)) as refused:
        store.commit([said, broken])
    assert blames_the_event(refused.value)
    store.commit([said])
    assert ends(reader) == {"lost": ("missed", LOST)}


def test_the_reason_of_a_lost_part_is_brought_forward(tmp_path: Path) -> None:
    """It is compared: an end that comes after all takes the place of a loss alone."""
    store = Store(tmp_path / "newer")
    put(store, s.frames(s.trigger(1, "lost")), s.frames(s.state(1, events_spool_id="spool-2", settled=True)))
    store.close()
    before = "its edge lost it: it holds neither the part nor its end any more, as after a power cut"
    older(store.path, tmp_path / "store.sqlite", "0003", ("events", "parts", "edges"), {"reason": f"'{before}'"})
    store = Store(tmp_path)
    reader = Reader(tmp_path / "store.sqlite")
    assert ends(reader) == {"lost": ("missed", LOST)}
    reader.close()
    store.close()


@pytest.mark.parametrize("analyzed", [False, True])
def test_lost_parts_are_found_by_their_index_whatever_the_statistics_say(lite: Store, analyzed: bool) -> None:
    store = lite
    ended = [s.frames(s.result(seq, f"p{seq}")) for seq in range(1, 201)]
    put(store, *ended, s.frames(s.trigger(300, "open")))
    with closing(sqlite3.connect(store.path)) as connection, connection:
        if analyzed:
            connection.execute("ANALYZE")
    with closing(sqlite3.connect(store.path)) as connection:
        plan = str(connection.execute(f"EXPLAIN QUERY PLAN {_CLOSE_LOST}", ("", "", "edge-1", "spool-2")).fetchall())
    assert "SEARCH parts USING INDEX parts_open (edge_id=?" in plan


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE reviews SET decision = 'good'",
        "DELETE FROM reviews",
        "UPDATE events SET verdict = 'PASS'",
        "INSERT INTO reviews (part, decision, inspector, t_wall_ns) VALUES (1, 'maybe', 'x', 0)",
    ],
)
def test_the_database_itself_refuses_to_change_what_was_said(store: Store, where: Place, sql: str) -> None:
    put(store, s.frames(s.result(1, verdict=Verdict.REJECT)))
    store.review(1, "defect", "Ada")
    engine = open_engine(where)
    with engine.connect() as connection, pytest.raises(sa.exc.IntegrityError):
        connection.exec_driver_sql(sql)
    engine.dispose()


def test_reviews_supersede_and_undo_restores(store: Store, reader: Reader) -> None:
    put(store, s.frames(s.result(1, verdict=Verdict.REJECT)))
    first = store.review(1, "defect", "Ada")
    second = store.review(1, "good", "Ben")
    store.review(1, "undo", "Ben")
    assert [row["supersedes"] for row in reader.reviews(1)] == [None, first, second]
    part: dict[str, Any] = reader.part(1) or {}
    assert (part["review"], part["review_by"]) == ("defect", "Ada")
    store.review(1, "undo", "Ada")
    with pytest.raises(ReviewError, match="no verdict to undo"):
        store.review(1, "undo", "Ada")
    with pytest.raises(ReviewError, match="no part 9"):
        store.review(9, "good", "Ada")


def test_the_queue_is_worst_first_and_leaves_out_what_is_decided(store: Store, reader: Reader) -> None:
    put(
        store,
        s.frames(s.result(1, "mild", Verdict.REVIEW)),
        s.frames(s.result(2, "bad", Verdict.REJECT, score=9.0)),
        s.frames(s.result(3, "poor", Verdict.REJECT, score=2.0)),
        s.frames(s.result(4, "fine")),
    )
    assert [part["part_id"] for part in reader.queue(10)] == ["bad", "poor", "mild"]
    worst, middle, _ = reader.queue(10)
    assert reader.beside(worst, "next") == middle["id"]
    assert reader.beside(middle, "previous") == worst["id"]
    assert reader.beside(worst, "previous") is None
    store.review(worst["id"], "defect", "Ada")
    assert [part["part_id"] for part in reader.queue(10)] == ["poor", "mild"]
    assert reader.reviewed_rates()["REJECT"][:2] == (0, 1)


@pytest.mark.parametrize(
    ("condition", "order", "index"),
    [
        ("review IS NULL AND (audited OR verdict IN ('REJECT', 'REVIEW'))", "severity DESC, id", "parts_queue"),
        ("verdict = 'NOT_INSPECTED'", "id DESC", "parts_lost"),
    ],
)
def test_the_lists_are_answered_by_their_index(lite: Store, condition: str, order: str, index: str) -> None:
    connection = sqlite3.connect(lite.path)
    sql = f"EXPLAIN QUERY PLAN SELECT * FROM parts WHERE {condition} ORDER BY {order} LIMIT 5"
    plan = str(connection.execute(sql).fetchall())
    connection.close()
    assert index in plan
    assert "TEMP B-TREE" not in plan


@pytest.mark.parametrize(
    ("verdict", "score", "threshold", "expected"),
    [
        ("REJECT", 3.0, 2.0, 1.5),
        ("REJECT", None, None, 1.0),
        ("PASS", None, 1.0, None),
        ("REJECT", 2.0, 0.0, 3.0),
        ("REJECT", 1e308, 1e-308, 1e9),
    ],
)
def test_severity(verdict: str, score: float | None, threshold: float | None, expected: float | None) -> None:
    assert severity(verdict, score, threshold) == expected


def test_a_failing_commit_leaves_nothing_behind(store: Store, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise sa.exc.OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))

    monkeypatch.setattr(store, "_insert_gaps", fail)
    with pytest.raises(sa.exc.OperationalError):
        put(store, s.frames(s.result(1)))
    monkeypatch.undo()
    assert reader.parts(0, 10) == []
    assert put(store, s.frames(s.result(1))) == ["new"]


def test_a_commit_whose_sync_says_nothing_is_none(lite: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(os, "utime", refuse)
        with pytest.raises(OSError, match="Read-only"):
            put(lite, s.frames(s.result(1)))
    assert put(lite, s.frames(s.result(1))) == ["duplicate"]  # told to the edge now that the disk answers for it
