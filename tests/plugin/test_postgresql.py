"""A real PostgreSQL server that dies, freezes or belongs to another host: nothing is acknowledged that it lacks."""

from __future__ import annotations

import os
import signal
import threading
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from contract.errors import ConfigError
from plugin import database
from plugin.database import Place, place_of
from plugin.errors import StoreLostError
from plugin.finder import Filter, Finder
from plugin.queries import Reader
from plugin.settings import StoreSettings
from plugin.store import Store
from plugin.writer import Writer
from tests.plugin import synthetic as s
from tests.plugin.synthetic import Dealer, HostProcess
from tests.plugin.test_store import put, received
from tests.postgres import PASSWORD, PostgreSQL
from tests.processes import freeze


@pytest.fixture
def server(postgres: PostgreSQL) -> Iterator[PostgreSQL]:
    """Runs again at the end, whatever a test did to it."""
    yield postgres
    if not postgres.runs:
        postgres.start()


def store_at(url: str) -> str:
    return f'[store]\nurl = "{url}"\n'


def test_a_host_outlives_its_server_and_acknowledges_nothing_meanwhile(
    make_host: Callable[..., HostProcess], make_dealer: Callable[[str], Dealer], server: PostgreSQL
) -> None:
    url = server.database()
    host = make_host(http=store_at(url))
    dealer = make_dealer(host.endpoint)
    dealer.send(s.frames(s.result(1)))
    dealer.wait_acked(1)
    server.kill()
    dealer.send(s.frames(s.trigger(2, "b"), t_sent_ns=0))
    dealer.send(s.frames(s.result(3, "b")))
    s.until(lambda: len(host.published()) == 2, what="the line's output, which waits for no store")
    s.until(lambda: b"nothing is acknowledged until it can" in host.log.read_bytes())
    dealer.collect(0)
    assert dealer.acked == {(s.SPOOL, 1)}
    server.start()
    dealer.wait_acked(2, 3)
    dealer.send(s.frames(s.result(3, "b")))
    s.until(lambda: host.get("/api/summary")["duplicates"] == 1)
    assert host.get("/api/summary")["parts"] == 2
    assert host.get("/healthz")["ok"]
    assert host.end() == 0
    assert b"Traceback" not in host.log.read_bytes()


def test_a_host_starts_without_its_server_and_serves_the_line(
    make_host: Callable[..., HostProcess], make_dealer: Callable[[str], Dealer], server: PostgreSQL
) -> None:
    url = server.database()
    server.kill()
    host = make_host(http=store_at(url))
    dealer = make_dealer(host.endpoint)
    dealer.send(s.frames(s.result(1)))
    s.until(lambda: len(host.published()) == 1)
    with pytest.raises(urllib.error.HTTPError, match="503"):
        host.get("/queue")
    dealer.collect(0)
    assert dealer.acked == set()
    server.start()
    dealer.wait_acked(1)
    assert host.get("/api/summary")["parts"] == 1


def test_a_killed_host_finds_its_store_again_and_counts_nothing_twice(
    make_host: Callable[..., HostProcess], make_dealer: Callable[[str], Dealer], server: PostgreSQL
) -> None:
    host = make_host(http=store_at(server.database()), deadline_ms=60_000)
    dealer = make_dealer(host.endpoint)
    messages = {seq: s.frames((s.trigger if seq % 2 else s.result)(seq, f"p{(seq + 1) // 2}")) for seq in range(1, 401)}
    for seq in messages:
        dealer.send(messages[seq])
    s.until(lambda: dealer.collect() or len(dealer.acked) > 50)
    host.end(signal.SIGKILL)
    host.start()
    for seq in messages:
        if (s.SPOOL, seq) not in dealer.acked:
            dealer.send(messages[seq])
    dealer.wait_acked(*messages)
    summary = host.get("/api/summary")
    assert (summary["parts"], summary["events"], summary["holes"]) == (200, 400, 0)


def test_a_server_that_freezes_is_cut_and_the_batch_committed_once(
    tmp_path: Path, server: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "SILENT_S", 0.3)
    where = place_of(tmp_path, server.database(), None)
    store = Store(tmp_path, where=where)
    with store._connection.begin() as connection:
        backend = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
    assert backend is not None
    writer = Writer(store, lambda *_: True)
    answered = threading.Event()
    freeze(backend)
    thread = threading.Thread(target=writer.run, args=(lambda _answers: answered.set(),))
    thread.start()
    try:
        writer.offer([received(s.frames(s.result(1)))])
        s.until(lambda: writer.trouble)
        assert not answered.is_set()
    finally:
        os.kill(backend, signal.SIGCONT)
    assert answered.wait(20)
    writer.stop()
    thread.join()
    with closing(Reader(where)) as reader:
        assert [part["part_id"] for part in reader.parts(0, 10)] == ["part-00001"]


def test_a_connection_that_was_lost_while_nobody_asked_anything_is_made_anew(
    tmp_path: Path, server: PostgreSQL
) -> None:
    where = place_of(tmp_path, server.database(), None)
    with closing(Store(tmp_path, where=where)) as store, closing(Reader(where)) as reader:
        connection = store._connection._connection
        assert connection is not None
        raw: Any = connection.connection.dbapi_connection
        raw.close()  # as the driver does once it has seen the server go
        assert put(store, s.frames(s.result(1))) == ["new"]
        assert len(reader.parts(0, 10)) == 1


def test_no_two_hosts_write_one_store(tmp_path: Path, server: PostgreSQL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "LOCK_S", 1.0)
    where = place_of(tmp_path, server.database(), None)
    with closing(Store(tmp_path / "a", where=where)), pytest.raises(StoreLostError, match="another host writes"):
        Store(tmp_path / "b", where=where)
    Store(tmp_path / "b", where=where).close()


def test_a_server_that_may_forget_is_refused(tmp_path: Path, server: PostgreSQL) -> None:
    server.kill()
    server.start("-c", "fsync=off")
    try:
        with pytest.raises(StoreLostError, match="fsync = off"):
            Store(tmp_path, where=place_of(tmp_path, server.database(), None))
    finally:
        server.kill()


def test_a_session_that_would_not_wait_for_the_disk_is_made_to(tmp_path: Path, server: PostgreSQL) -> None:
    where = place_of(tmp_path, server.database(), None)
    assert isinstance(where, sa.URL)
    with server.connect() as connection:
        connection.execute(f"ALTER DATABASE {where.database} SET synchronous_commit = off")
    with closing(Store(tmp_path, where=where)) as store, store._connection.begin() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"


def test_a_value_that_the_server_cannot_hold_is_refused_alone(tmp_path: Path, server: PostgreSQL) -> None:
    store = Store(tmp_path, where=place_of(tmp_path, server.database(), None))
    writer = Writer(store, lambda *_: True)
    answers: list[tuple[int, bool]] = []
    three = (s.result(1), s.result(2, "a\0b"), s.result(3, reason="a\0b"))
    writer.offer([received(s.frames(header)) for header in three])
    writer.stop()
    writer.run(lambda all_: answers.extend((one.seq, one.refused is None) for one in all_))
    assert answers == [(1, True), (2, False), (3, True)]


def test_a_header_that_is_no_json_spoils_no_question_for_others(tmp_path: Path, where: Place) -> None:
    odd = s.frames(s.result(1, recipe="nut"))
    odd[2] = odd[2][:-1] + b',"more":NaN}'
    with closing(Store(tmp_path, where=where)) as store, closing(Finder(where)) as finder:
        assert put(store, odd, s.frames(s.result(2, recipe="washer"))) == ["new", "new"]
        found = finder.find_parts(Filter(recipe="washer"), None, 10)
        assert [part["part_id"] for part in found] == ["part-00002"]


def test_what_is_asked_for_and_cannot_be_held_is_the_asker_s_mistake(
    make_host: Callable[..., HostProcess], server: PostgreSQL
) -> None:
    host = make_host(http=store_at(server.database()))
    with pytest.raises(urllib.error.HTTPError, match="422"):
        host.get("/api/parts?serial=a%00b")
    assert host.get("/api/parts?serial=ab") is not None


def test_the_password_comes_from_a_file_or_the_environment(
    tmp_path: Path, server: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.database().replace("postgres@", "flawline@")
    secret = tmp_path / "store.password"
    secret.write_text(PASSWORD + "\n")
    secret.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        place_of(tmp_path, url, secret)
    secret.chmod(0o600)
    with closing(Store(tmp_path, where=place_of(tmp_path, url, secret))) as store:
        assert put(store, s.frames(s.result(1))) == ["new"]
    monkeypatch.setenv("FLAWLINE_STORE_PASSWORD", PASSWORD)
    with closing(Store(tmp_path, where=place_of(tmp_path, url, None))) as store:
        assert put(store, s.frames(s.result(1))) == ["duplicate"]
    assert PASSWORD not in database.shown_as(place_of(tmp_path, url, secret))


@pytest.mark.parametrize(
    "url", ["mysql://db/flawline", "postgresql://db", "postgresql://a:secret@db/x", "postgresql://db/x?password=secret"]
)
def test_a_url_that_will_not_do_is_refused_with_a_sentence(url: str) -> None:
    with pytest.raises(ValueError, match=r"expected postgresql|does not belong into this file"):
        StoreSettings(url=url)
