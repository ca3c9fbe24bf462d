"""The control socket under keys: who an edge is comes from its key, revocation cuts it, garbage is counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from contract.control import MAGIC, MAX_BYTES, Hello, Reply, Status, encode, from_host
from contract.keys import KeyPair, authorise, new_pair, revoke
from plugin.control import ControlServer
from plugin.gate import Gate
from tests.plugin import synthetic as s
from tests.plugin.synthetic import Dealer

STATUS = Status(recipe="r", bundle_id="b", model_sha256="ab" * 32, engine="e")


class Rig:
    """A gate and a control socket with their threads, in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.public = new_pair(folder / "keys", "host").public
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.gate = Gate(self.context, folder / "keys")
        self.server = ControlServer(self.context, "tcp://127.0.0.1:*", self.gate, lambda _edge_id: "line-1")
        self._threads = [threading.Thread(target=run) for run in (self.gate.run, self.server.run)]
        for thread in self._threads:
            thread.start()

    def edge(self, name: str) -> KeyPair:
        pair = new_pair(self.folder / "edges", name)
        authorise(self.folder / "keys", self.folder / "edges" / f"{name}.key")
        return pair

    def close(self) -> None:
        self.server.stop()
        self.gate.stop()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()
        self.server.close()
        self.gate.close()
        self.context.term()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


@pytest.fixture
def connect(rig: Rig, make_dealer: Callable[..., Dealer]) -> Callable[[str], Dealer]:
    return lambda name: make_dealer(rig.server.endpoint, rig.edge(name), rig.public)


def hello(edge_id: str) -> list[bytes]:
    return encode(Hello(edge_id=edge_id, run_id="run", t_sent_ns=1, status=STATUS))


def test_an_edge_cannot_say_that_it_is_another(rig: Rig, connect: Callable[[str], Dealer]) -> None:
    mallory, victim = connect("mallory"), connect("victim")
    victim.send(hello("victim"))
    s.until(lambda: rig.server.known("victim"))
    mallory.send(hello("victim"))
    s.until(lambda: rig.server.counts.wrong_edge == 1)
    asked = rig.server.status("victim", timeout_s=5.0)
    assert victim.socket.poll(30_000), "asked is who has the key"
    request = from_host(victim.socket.recv_multipart())
    mallory.send(encode(Reply(id=request.id, edge_id="victim", outcome="ok", status=STATUS)))
    s.until(lambda: rig.server.counts.wrong_edge == 2)
    mallory.send(encode(Reply(id=request.id, edge_id="mallory", outcome="ok", status=STATUS)))
    s.until(lambda: rig.server.counts.received == 4)
    assert not asked.done()
    victim.send(encode(Reply(id=request.id, edge_id="victim", outcome="refused", reason="no", status=STATUS)))
    assert asked.result(30).reason == "no"


def test_a_request_to_a_run_that_has_ended_is_not_sent_to_the_next(rig: Rig, connect: Callable[[str], Dealer]) -> None:
    edge = connect("edge-1")
    edge.send(hello("edge-1"))
    s.until(lambda: rig.server.known("edge-1"))
    asked = rig.server.select_recipe("edge-1", 2)
    assert edge.socket.poll(30_000)
    edge.send(encode(Hello(edge_id="edge-1", run_id="the next", t_sent_ns=1, status=STATUS)))
    reply = asked.result(30)
    assert (reply.outcome, "started anew" in (reply.reason or "")) == ("unknown", True)


def test_a_revoked_edge_is_cut_and_asked_nothing(rig: Rig, connect: Callable[[str], Dealer]) -> None:
    edge = connect("edge-1")
    edge.send(hello("edge-1"))
    s.until(lambda: rig.server.edges_of("line-1") == ["edge-1"])
    revoke(rig.folder / "keys", "edge-1")
    s.until(lambda: rig.server.known("edge-1") is None)
    reply = rig.server.select_recipe("edge-1", 2).result(30)
    assert reply.outcome == "refused"
    assert "flawline keys authorise edge-1.key" in (reply.reason or "")
    assert not edge.socket.poll(100)


def test_what_waits_for_an_edge_that_is_revoked_is_answered_and_what_others_are_asked_goes_on(
    rig: Rig, connect: Callable[[str], Dealer]
) -> None:
    leaving, loyal = connect("leaving"), connect("loyal")
    rig.edge("absent")
    s.until(lambda: rig.gate.authorises("absent"))
    for edge, name in ((leaving, "leaving"), (loyal, "loyal")):
        edge.send(hello(name))
    s.until(lambda: len(rig.server.edges_of("line-1")) == 2)
    asked = {name: rig.server.select_recipe(name, 2) for name in ("leaving", "loyal", "absent")}
    assert leaving.socket.poll(30_000)
    assert loyal.socket.poll(30_000)
    first = from_host(loyal.socket.recv_multipart())
    cut = rig.server.counts.disconnected
    revoke(rig.folder / "keys", "leaving")
    revoke(rig.folder / "keys", "absent")
    assert asked["leaving"].result(30).outcome == "unknown"
    assert asked["absent"].result(30).outcome == "refused"
    s.until(lambda: rig.server.counts.disconnected >= cut + 2, what="the cut")
    assert rig.server.known("leaving") is None
    assert rig.server.known("loyal") is not None, "a cut connection says nothing against who had it"
    loyal.send(hello("loyal"))

    def again() -> bool:
        return loyal.socket.poll(100) != 0 and from_host(loyal.socket.recv_multipart()).id == first.id

    s.until(again, what="the request on the new connection")
    loyal.send(encode(Reply(id=first.id, edge_id="loyal", outcome="ok", status=STATUS)))
    assert asked["loyal"].result(30).outcome == "ok"


def test_garbage_is_dropped_and_counted_and_the_next_is_heard(rig: Rig, connect: Callable[[str], Dealer]) -> None:
    edge = connect("edge-1")
    garbage = [[b""], [b"FLAWLINE1", b"{}"], [MAGIC, b"{"], [MAGIC, b"x" * MAX_BYTES], [MAGIC] * 200]
    for message in garbage:
        edge.send(message)
    s.until(lambda: rig.server.counts.garbage == len(garbage))
    rude = connect("rude")
    rude.send([MAGIC, b"x" * (2 * MAX_BYTES)])
    s.until(lambda: rig.server.counts.disconnected >= 1)
    edge.send(hello("edge-1"))
    s.until(lambda: rig.server.known("edge-1"))


def test_a_key_that_nobody_authorised_is_refused_here_too(rig: Rig, make_dealer: Callable[..., Dealer]) -> None:
    rogue = make_dealer(rig.server.endpoint, new_pair(rig.folder / "rogue", "rogue"), rig.public)
    rogue.send(hello("rogue"))
    s.until(lambda: rig.gate.counts.unknown_key == 1)
    assert rig.server.known("rogue") is None
    assert rig.server.counts.received == 0


def test_what_is_under_way_when_the_host_stops_is_answered(tmp_path: Path, make_dealer: Callable[..., Dealer]) -> None:
    rig = Rig(tmp_path)
    edge = make_dealer(rig.server.endpoint, rig.edge("edge-1"), rig.public)
    edge.send(hello("edge-1"))
    s.until(lambda: rig.server.known("edge-1"))
    asked = rig.server.select_recipe("edge-1", 2)
    assert edge.socket.poll(30_000)
    rig.close()
    assert asked.result(1).outcome == "unknown"
