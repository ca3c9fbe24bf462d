"""Receiver, writer and ledger behind a real socket: acknowledgements, refusals, garbage, a failing disk."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import socket
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa
import zmq

from contract.event import MAGIC, MAX_HEADER_BYTES, Message, Verdict, from_frames, part_ref
from plugin import receiver
from plugin.receiver import Receiver
from plugin.store import Outcome, Received, Store
from plugin.transit import Arrival
from plugin.writer import Writer
from tests.plugin import synthetic as s
from tests.plugin.synthetic import Dealer, HostProcess

MakeDealer = Callable[[str], Dealer]


class Gate:
    """A store whose commits wait for ``open`` and fail while ``error`` is set."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.open = threading.Event()
        self.asked = threading.Event()
        self.error: Exception | None = None
        self.poison: str | None = None

    def commit(self, batch: Sequence[Received]) -> list[Outcome]:
        self.asked.set()
        assert self.open.wait(30)
        if self.error is not None:
            raise self.error
        if any(self.poison and self.poison in item.header for item in batch):
            raise ValueError("this cannot be written")
        return self.store.commit(batch)

    def close(self) -> None:
        self.store.close()


class Rig:
    """Receiver and writer of a host in this process, over a store with a gate."""

    def __init__(self, folder: Path, backlog_bytes: int = 1 << 20) -> None:
        self.gate = Gate(Store(folder))
        self.ledger_has = True
        self.told: list[Any] = []
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.writer = Writer(self.gate, lambda _ticket, _timeout_s: self.ledger_has, backlog_bytes)  # type: ignore[arg-type]
        self.receiver = Receiver(self.context, "tcp://127.0.0.1:*", self._tell, self.writer.offer)
        self.threads = [
            threading.Thread(target=self.receiver.run),
            threading.Thread(target=self.writer.run, args=(self.receiver.answer,)),
        ]
        for thread in self.threads:
            thread.start()

    def _tell(self, arrivals: Any) -> list[int | None]:
        self.told += arrivals
        return [len(self.told)] * len(arrivals)

    def stop(self) -> None:
        self.gate.open.set()
        self.receiver.stop()
        self.writer.stop()
        for thread in self.threads:
            thread.join(5)
            assert not thread.is_alive()
        self.receiver.flush()
        self.context.term()


@pytest.fixture
def rig(tmp_path: Path):  # type: ignore[no-untyped-def]
    rig = Rig(tmp_path)
    yield rig
    rig.stop()


def test_what_came_before_the_host_reads_is_not_taken_for_young(make_dealer: MakeDealer) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    told: list[Any] = []

    def tell(arrivals: Any) -> list[int | None]:
        told.extend(arrivals)
        return [1] * len(arrivals)

    receiver = Receiver(context, "tcp://127.0.0.1:*", tell, len)
    early = make_dealer(receiver.endpoint)
    early.send(s.frames(s.result(1), age_ms=5.0))
    assert receiver._router.socket.poll(30_000), "it lies there, and grows old unseen"
    receiver.begin()
    reading = threading.Thread(target=receiver.run)
    reading.start()
    late = make_dealer(receiver.endpoint)

    def is_told() -> bool:
        late.send(s.frames(s.result(2)))
        early.send(s.frames(s.result(3)))  # who was cut comes back by itself
        return {2, 3} <= {each.message.header.seq for each in told}

    s.until(is_told)
    receiver.stop()
    reading.join(5)
    receiver.flush()
    assert 1 not in {each.message.header.seq for each in told}
    for dealer in (early, late):
        dealer.socket.close(0)
    context.term()


def test_nothing_is_acknowledged_before_the_commit_and_the_ledger_does_not_wait(
    rig: Rig, make_dealer: MakeDealer
) -> None:
    dealer = make_dealer(rig.receiver.endpoint)
    dealer.send(s.frames(s.result(1)))
    assert rig.gate.asked.wait(30)
    dealer.send(s.frames(s.result(2)))
    s.until(lambda: len(rig.told) == 2)  # told although the store stands still
    dealer.collect(200)
    assert dealer.acked == set()
    rig.gate.open.set()
    dealer.wait_acked(1, 2)


def test_a_full_disk_is_tried_again_and_said(rig: Rig, make_dealer: MakeDealer) -> None:
    rig.gate.open.set()
    rig.gate.error = sa.exc.OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))
    dealer = make_dealer(rig.receiver.endpoint)
    dealer.send(s.frames(s.result(1)))
    assert "disk is full" in s.until(lambda: rig.writer.trouble)
    dealer.collect(100)
    assert dealer.acked == set()
    rig.gate.error = None
    dealer.wait_acked(1)
    assert rig.writer.trouble is None


def test_what_the_ledger_has_not_committed_is_not_acknowledged(rig: Rig, make_dealer: MakeDealer) -> None:
    rig.gate.open.set()
    rig.ledger_has = False
    dealer = make_dealer(rig.receiver.endpoint)
    dealer.send(s.frames(s.result(1)))
    assert rig.gate.asked.wait(30)
    dealer.collect(200)
    assert dealer.acked == set()
    rig.ledger_has = True
    dealer.send(s.frames(s.result(1), attempt=2))
    dealer.wait_acked(1)


def test_an_event_that_cannot_be_stored_is_refused_and_keeps_no_other_waiting(
    rig: Rig, make_dealer: MakeDealer
) -> None:
    dealer = make_dealer(rig.receiver.endpoint)
    rig.gate.poison = "part-00002"
    for seq in (1, 2, 3):
        dealer.send(s.frames(s.result(seq)))
    s.until(lambda: len(rig.told) == 3)
    rig.gate.open.set()
    dealer.wait_acked(1, 3)
    assert dealer.wait_nack(2).code == "schema"


def test_a_verdict_that_could_not_be_written_in_time_is_never_written(rig: Rig, make_dealer: MakeDealer) -> None:
    dealer = make_dealer(rig.receiver.endpoint)
    dealer.send(s.frames(s.result(1)))
    assert rig.gate.asked.wait(30)  # the writer stands in a commit
    ran: list[int] = []
    with pytest.raises(TimeoutError):
        rig.writer.call(lambda _store: ran.append(1), timeout_s=0.05)
    rig.gate.open.set()
    rig.writer.call(lambda _store: ran.append(2))
    assert ran == [2]


def test_with_a_full_backlog_events_are_left_unanswered(tmp_path: Path, make_dealer: MakeDealer) -> None:
    rig = Rig(tmp_path, backlog_bytes=3000)
    dealer = make_dealer(rig.receiver.endpoint)
    dealer.send(s.frames(s.result(1)))
    assert rig.gate.asked.wait(30)
    for seq in range(2, 12):
        dealer.send(s.frames(s.result(seq)))
    s.until(lambda: len(rig.told) == 11)  # the ledger hears of each all the same
    s.until(lambda: rig.receiver.counts.held_back > 0)
    rig.gate.open.set()

    def resend() -> bool:
        for seq in range(1, 12):
            if (s.SPOOL, seq) not in dealer.acked:
                dealer.send(s.frames(s.result(seq), attempt=2))
        dealer.collect(100)
        return len(dealer.acked) == 11

    s.until(resend)
    rig.stop()


def test_one_edge_cannot_fill_the_backlog_of_all(tmp_path: Path, make_dealer: MakeDealer) -> None:
    rig = Rig(tmp_path, backlog_bytes=40_000)
    greedy, modest = make_dealer(rig.receiver.endpoint), make_dealer(rig.receiver.endpoint)
    greedy.send(s.frames(s.result(1)))
    assert rig.gate.asked.wait(30)  # the writer stands in a commit
    for seq in range(2, 102):
        greedy.send(s.frames(s.result(seq)))
    s.until(lambda: len(rig.told) == 101)
    s.until(lambda: rig.receiver.counts.held_back > 0)
    for seq in (1, 2, 3):
        modest.send(s.frames(s.result(seq, f"modest-{seq}", edge_id="edge-2", spool_id="modest")))
    s.until(lambda: len(rig.told) == 104)
    rig.gate.open.set()
    modest.wait_acked(1, 2, 3, spool="modest")
    rig.stop()


def test_an_edge_whose_events_the_ledger_has_no_room_for_keeps_no_other_waiting(
    rig: Rig, make_dealer: MakeDealer, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = True

    def tell(arrivals: Sequence[Arrival]) -> list[int | None]:
        rig.told += arrivals
        return [None if full and each.message.header.edge_id == "greedy" else 1 for each in arrivals]

    rig.gate.open.set()
    monkeypatch.setattr(rig.receiver, "_tell_ledger", tell)
    greedy, modest = make_dealer(rig.receiver.endpoint), make_dealer(rig.receiver.endpoint)
    for seq in range(1, 201):
        greedy.send(s.frames(s.result(seq, f"greedy-{seq}", edge_id="greedy", spool_id="greedy")))
        if seq % 50 == 0:
            modest.send(s.frames(s.result(seq)))
    modest.wait_acked(50, 100, 150, 200)
    s.until(lambda: len(rig.told) == 204)
    greedy.collect(100)
    assert not greedy.acked
    full = False
    greedy.send(s.frames(s.result(1, "greedy-1", edge_id="greedy", spool_id="greedy"), attempt=2))
    greedy.wait_acked(1, spool="greedy")


def test_each_event_is_acknowledged_as_often_as_it_is_sent_and_stored_once(
    shared_host: HostProcess, make_dealer: MakeDealer
) -> None:
    dealer = make_dealer(shared_host.endpoint)
    spool = "spool-often"
    for _ in range(3):
        for seq in range(1, 101):
            dealer.send(s.frames(s.result(seq, f"often-{seq}", spool_id=spool)))

    def all_answered() -> bool:
        dealer.collect()
        return dealer.ack_count == 300

    s.until(all_answered)
    row = next(row for row in shared_host.get("/api/summary")["spools"] if row["spool_id"] == spool)
    assert (row["stored"], row["duplicates"], row["holes"]) == (100, 200, 0)
    outputs = [row for row in shared_host.published() if row["part_id"].startswith("often-")]
    assert len(outputs) == len({row["number"] for row in outputs}) == 100


def broken(seq: int) -> dict[str, list[bytes]]:
    """Messages that carry an identity and must be refused by name, keyed by the code of the refusal."""
    good = s.frames(s.result(seq, spool_id="bad"))
    header = json.loads(good[2])
    data = b"\0" * 64
    reference = part_ref("map", data, codec="raw", dtype="float32", shape=(4, 4))

    def with_header(*parts: bytes, **changes: Any) -> list[bytes]:
        return [MAGIC, good[1], json.dumps({**header, **changes}).encode(), *parts]

    described = reference.model_dump(mode="json")
    return {
        "version": with_header(schema="flawline.event/2.0"),
        "version other": with_header(schema="somebody.else/1.0"),
        "schema kind": with_header(kind="wish"),
        "schema verdict": with_header(verdict="FINE"),
        "schema nan": [MAGIC, good[1], good[2].replace(b'"score":0.4', b'"score":NaN'), *good[3:]],
        "schema envelope": [MAGIC, b"{}", good[2]],
        "parts hash": with_header(b"\1" * 64, parts=[described]),
        "parts missing": with_header(parts=[described]),
        "size claim": with_header(data, parts=[{**described, "size": 63}]),
        "size shape": with_header(data, parts=[{**described, "shape": [400, 400]}]),
        "schema huge": with_header(data, parts=[{**described, "size": 10**12}]),
        "size many": [*good, *[b"x"] * 9],
        "size envelope": [MAGIC, good[1] + b" " * 5000, good[2]],
        "size frames": [*good, *[b""] * 200],
    }


@pytest.mark.parametrize("name", sorted(broken(1)))
def test_a_broken_event_is_refused_by_name_and_the_host_lives_on(
    shared_host: HostProcess, make_dealer: MakeDealer, name: str
) -> None:
    dealer = make_dealer(shared_host.endpoint)
    seq = 1 + sorted(broken(1)).index(name)
    dealer.send(broken(seq)[name])
    nack = dealer.wait_nack(seq, "bad")
    assert nack.code == name.split()[0]
    assert nack.message
    dealer.send(s.frames(s.result(seq, f"after-{seq}", spool_id="after")))
    dealer.wait_acked(seq, spool="after")


def test_whatever_one_message_provokes_the_next_is_received(
    rig: Rig, make_dealer: MakeDealer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(frames: list[bytes]) -> Message:
        if b"part-00002" in frames[2]:
            raise RuntimeError("nobody foresaw this")
        return from_frames(frames)

    def tell(arrivals: Sequence[Arrival]) -> list[int | None]:
        if any(arrival.message.header.seq == 4 for arrival in arrivals):
            raise RuntimeError("nor this")
        return rig._tell(arrivals)

    rig.gate.open.set()
    monkeypatch.setattr(receiver, "from_frames", decode)
    monkeypatch.setattr(rig.receiver, "_tell_ledger", tell)
    dealer = make_dealer(rig.receiver.endpoint)
    for seq in range(1, 7):
        dealer.send(s.frames(s.result(seq)))
    dealer.wait_acked(1, 3, 5, 6)
    assert {seq for _, seq in dealer.acked} == {1, 3, 5, 6}
    assert rig.receiver.counts.failed == 2


def test_an_identity_used_twice_is_refused(shared_host: HostProcess, make_dealer: MakeDealer) -> None:
    dealer = make_dealer(shared_host.endpoint)
    dealer.send(s.frames(s.result(1, "twin", spool_id="twins")))
    dealer.wait_acked(1, spool="twins")
    dealer.send(s.frames(s.result(1, "twin", Verdict.REJECT, spool_id="twins")))
    assert dealer.wait_nack(1, "twins").code == "identity"


def test_garbage_is_dropped_and_counted(shared_host: HostProcess, make_dealer: MakeDealer) -> None:
    before = shared_host.get("/healthz")["receiver"]["garbage"]
    dealer = make_dealer(shared_host.endpoint)
    garbage = [
        [b""],
        [b"hello"],
        [MAGIC],
        [MAGIC, b"{}", b"[" * 100_000],
        [MAGIC, b"{}", b'{"spool_id": "\\ud800", "seq": 1e400}'],
        [MAGIC, b"{}", b'{"spool_id": "\\ud800", "seq": 1}'],  # a name that cannot be sent back
        [MAGIC, b"{}", b"\xff\xfe"],
        [b"X" * 1000] * 50,
        [MAGIC, b"{}", b"x" * (MAX_HEADER_BYTES + 1)],
        [MAGIC, b"{}", b'{"spool_id": "s", "seq": true}'],
        [os.urandom(500) for _ in range(5)],
    ]
    for message in garbage:
        dealer.send(message)
    s.until(lambda: shared_host.get("/healthz")["receiver"]["garbage"] == before + len(garbage))
    dealer.send(s.frames(s.result(1, "sane", spool_id="sane")))
    dealer.wait_acked(1, spool="sane")
    assert shared_host.log.read_text().count("dropped") < len(garbage)  # at a limited rate


def test_a_message_over_the_frame_limit_costs_the_connection_not_the_host(
    shared_host: HostProcess, make_dealer: MakeDealer
) -> None:
    rude, polite = make_dealer(shared_host.endpoint), make_dealer(shared_host.endpoint)
    rude.send([MAGIC, b"{}", b"{}", bytes((64 << 20) + 4096)])
    polite.send(s.frames(s.result(1, "polite", spool_id="polite")))
    polite.wait_acked(1, spool="polite")
    rude.send(s.frames(s.result(2, "rude", spool_id="polite")))
    rude.wait_acked(2, spool="polite")


def test_a_state_is_shown_and_stands_in_no_numbering(shared_host: HostProcess, make_dealer: MakeDealer) -> None:
    dealer = make_dealer(shared_host.endpoint)
    dealer.send(s.frames(s.state(3, edge_id="edge-9", spool_id="state-x", detail="<b>fine</b>")))
    dealer.wait_acked(3, spool="state-x")
    summary = shared_host.get("/api/summary")
    assert [each["detail"] for each in summary["states"] if each["edge_id"] == "edge-9"] == ["<b>fine</b>"]
    assert all(row["spool_id"] != "state-x" for row in summary["spools"])


def test_holes_are_counted_for_each_spool_and_in_all_without_heartbeats(
    make_host: Callable[..., HostProcess], make_dealer: MakeDealer
) -> None:
    host = make_host()
    dealer = make_dealer(host.endpoint)
    for spool, seqs in (("a", (1, 4)), ("b", (3,))):
        for seq in seqs:
            dealer.send(s.frames(s.result(seq, f"{spool}{seq}", spool_id=spool)))
        dealer.wait_acked(*seqs, spool=spool)
    dealer.send(s.frames(s.state(90)))
    dealer.wait_acked(90, spool="state-run-1")
    summary = host.get("/api/summary")
    assert {spool["spool_id"]: spool["holes"] for spool in summary["spools"]} == {"a": 2, "b": 2}
    assert summary["holes"] == 4


def test_a_real_full_disk_stops_acknowledgements_until_there_is_room(
    make_host: Callable[..., HostProcess], make_dealer: MakeDealer
) -> None:
    host = make_host(deadline_ms=60_000)
    dealer = make_dealer(host.endpoint)
    dealer.send(s.frames(s.result(1)))
    dealer.wait_acked(1)
    assert host.process is not None
    _, hard = resource.prlimit(host.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(host.process.pid, resource.RLIMIT_FSIZE, (4096, hard))  # writes past 4 KiB fail from now on
    picture = os.urandom(100_000)
    reference = part_ref("image", picture, codec="png", shape=(1,))
    dealer.send(s.frames(s.result(2, verdict=Verdict.REJECT, parts=(reference,)), [picture]))

    def troubled() -> bool:
        try:
            host.get("/healthz")
        except OSError as error:  # HTTPError 503
            return "503" in str(error)
        return False

    s.until(troubled)
    dealer.collect(100)
    assert (s.SPOOL, 2) not in dealer.acked
    resource.prlimit(host.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
    dealer.wait_acked(2)
    assert host.get("/healthz")["ok"]
    blob = (
        host.folder / "state" / "blobs" / hashlib.sha256(picture).hexdigest()[:2] / hashlib.sha256(picture).hexdigest()
    )
    assert blob.read_bytes() == picture


def test_a_body_in_chunks_is_refused_before_it_is_read(shared_host: HostProcess) -> None:
    """Chunks win over a length that is stated beside them, so a stated length alone proves nothing."""
    parts = urlsplit(shared_host.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), 5) as raw:
        raw.sendall(
            b"POST /api/parts/1/verdict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: 10\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        raw.settimeout(5)
        assert b" 413 " in raw.recv(200)
