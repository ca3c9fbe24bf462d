"""A backup of a host that runs, put back elsewhere: every row and picture, and no number given out twice."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from contract.event import Verdict
from plugin.accounts import Accounts, Actor
from plugin.renumber import MARGIN
from tests.plugin import synthetic as s
from tests.plugin.synthetic import Dealer, HostProcess
from tests.postgres import PostgreSQL


def flawline(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flawline", "host", *words], capture_output=True, text=True, check=False
    )


def done(*words: object) -> str:
    ran = flawline(*map(str, words))
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def refused(*words: object) -> str:
    ran = flawline(*map(str, words))
    assert ran.returncode == 2, ran.stdout + ran.stderr
    return ran.stderr


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_backup_of_a_running_host_is_put_back_and_numbers_go_on_beyond(
    kind: str,
    tmp_path: Path,
    make_host: Callable[..., HostProcess],
    make_dealer: Callable[[str], Dealer],
    request: pytest.FixtureRequest,
) -> None:
    server: PostgreSQL | None = request.getfixturevalue("postgres") if kind == "postgresql" else None
    store = "" if server is None else f'[store]\nurl = "{server.database()}"\n'
    (tmp_path / "a").mkdir()
    host = HostProcess(tmp_path / "a", http=store, deadline_ms=60_000)
    host.start()
    dealer = make_dealer(host.endpoint)
    for message in s.flagged(1, "bad", Verdict.REJECT, 2.0, seed=1):
        dealer.send(message)
    dealer.send(s.frames(s.trigger(10, "open")))
    dealer.wait_acked(1, 2, 3, 10)
    with closing(Accounts(host.folder / "state" / "accounts.sqlite")) as accounts:
        accounts.add("ada", "a long enough password", "administrator", Actor("test", ""))
        accounts.make_token("ada", 30.0, Actor("test", ""))
    stopping = threading.Event()
    seqs = iter(range(20, 100_000))

    def keep_sending() -> None:
        while not stopping.wait(0.02):
            dealer.send(s.frames(s.result(next(seqs))))

    sender = threading.Thread(target=keep_sending)
    sender.start()
    backup = tmp_path / "backup"
    done("backup", host.config, backup)
    stopping.set()
    sender.join()
    sent = next(seqs)
    dealer.wait_acked(*range(20, sent))
    told = max(row["number"] for row in host.published())
    before = host.get("/api/parts/1")
    assert host.end(timeout_s=20) == 0

    database = "" if server is None else f'[store]\nurl = "{server.database()}"\n'
    (tmp_path / "b").mkdir()
    other = HostProcess(tmp_path / "b", http=database, deadline_ms=60_000)
    done("restore", backup, other.config, "--last", f"line-1={told}")
    other.start()
    try:
        after = other.get("/api/parts/1")
        assert after["attachments"] == before["attachments"] and len(after["attachments"]) == 3
        parts = {part["part_id"]: part for part in other.get("/api/parts?limit=1000")}
        assert (parts["open"]["state"], parts["open"]["verdict"]) == ("missed", "NOT_INSPECTED")
        (gap,) = other.get("/api/gaps")
        assert "restored from a backup" in gap["reason"] and gap["edge_id"] == s.EDGE
        # An edge that was not acknowledged sends again what the line may have been told of: recorded, told to nobody.
        again = make_dealer(other.endpoint)
        again.send(s.frames(s.result(sent, "again"), age_ms=50_000.0))
        again.wait_acked(sent)
        again.send(s.frames(s.trigger(sent + 1, "new"), age_ms=0.0))
        again.send(s.frames(s.result(sent + 2, "new"), age_ms=0.0))
        again.wait_acked(sent + 2)
        (row,) = s.until(lambda: other.published())
        assert row["part_id"] == "new" and row["number"] > told + MARGIN
        outcomes = {row["part_id"]: row["outcome"] for row in other.get("/api/line?limit=1000")}
        assert outcomes["again"] == outcomes["open"] == "late"
    finally:
        assert other.end(timeout_s=20) == 0
    ledger = sqlite3.connect(other.folder / "state" / "ledger.sqlite")
    numbers = Counter(number for (number,) in ledger.execute("SELECT number FROM outputs"))
    ledger.close()
    assert max(numbers.values()) == 1
    with closing(sqlite3.connect(other.folder / "state" / "accounts.sqlite")) as connection:
        assert connection.execute("SELECT name FROM accounts").fetchall() == [("ada",)]
        assert connection.execute("SELECT count(*) FROM tokens").fetchone() == (0,)


@pytest.fixture
def backed_up(tmp_path: Path, make_host: Callable[..., HostProcess], make_dealer: Callable[[str], Dealer]) -> Path:
    """The folder of a small backup; ``host.toml`` beside it names an empty place."""
    host = make_host()
    dealer = make_dealer(host.endpoint)
    for message in s.flagged(1, "bad", Verdict.REJECT, 2.0, seed=1):
        dealer.send(message)
    dealer.wait_acked(1, 2, 3)
    done("backup", host.config, tmp_path / "backup")
    host.config.write_text(host.config.read_text().replace('"state"', '"elsewhere"'))
    return tmp_path / "backup"


def test_a_backup_that_is_not_whole_is_put_back_nowhere(backed_up: Path) -> None:
    config = backed_up.parent / "host.toml"
    picture = next((backed_up / "blobs").glob("*/*"))
    good = picture.read_bytes()
    picture.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert "its bytes are not those that were backed up" in refused("restore", backed_up, config)
    picture.write_bytes(good)
    ledger = (backed_up / "ledger.sqlite").read_bytes()
    (backed_up / "ledger.sqlite").write_bytes(ledger[:-1] + b"x")
    assert "its bytes are not those" in refused("restore", backed_up, config)
    (backed_up / "ledger.sqlite").unlink()
    assert "this backup is not whole" in refused("restore", backed_up, config)
    (backed_up / "ledger.sqlite").write_bytes(ledger)
    manifest = (backed_up / "backup.json").read_bytes()
    (backed_up / "backup.json").unlink()
    assert "broken off" in refused("restore", backed_up, config)
    (backed_up / "backup.json").write_bytes(manifest)
    assert not (backed_up.parent / "elsewhere").exists()
    done("restore", backed_up, config)


def test_only_empty_places_are_written_to(backed_up: Path) -> None:
    config = backed_up.parent / "host.toml"
    assert "no host has run here" in refused("backup", config, backed_up)
    before = backed_up.parent / "before.toml"
    before.write_text(config.read_text().replace('"elsewhere"', '"state"'))
    assert "not empty; a backup goes into an empty folder" in refused("backup", before, backed_up)
    (backed_up.parent / "elsewhere").mkdir()
    (backed_up.parent / "elsewhere" / "file").touch()
    assert "not empty; a host's state goes into an empty folder" in refused("restore", backed_up, config)
    assert "expected LINE=NUMBER" in refused("restore", backed_up, config, "--last", "line-9=3")


def test_a_host_does_not_begin_on_half_a_restore(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "restore.unfinished").touch()
    (tmp_path / "host.toml").write_text('state_dir = "state"\n')
    assert "a restore was broken off here" in refused("run", tmp_path / "host.toml")
