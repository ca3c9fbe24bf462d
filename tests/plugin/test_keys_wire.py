"""Keys on the wire with real sockets and a real host: who is let in, who is refused, said and counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import zmq

from contract import keys
from contract.event import MAGIC, Verdict
from contract.keys import KeyPair, authorise, new_pair, revoke
from edge_runtime import link
from edge_runtime.emitter import Emitter
from edge_runtime.link import load_keys
from edge_runtime.settings import HostLink
from edge_runtime.spool import Draft, Spool
from plugin.errors import ConfigError
from plugin.gate import Gate
from plugin.receiver import Receiver
from tests.plugin import synthetic as s
from tests.plugin.synthetic import Dealer, HostProcess

MakeDealer = Callable[..., Dealer]


class Keyed:
    """A host with keys, and edges made and authorised as they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = folder / "keys"
        self.public = new_pair(self.keys, "host").public
        self.host = HostProcess(folder, deadline_ms=60_000, head='keys = "keys"')
        self.host.start()

    def edge(self, name: str, authorised: bool = True) -> KeyPair:
        pair = new_pair(self.folder / "edge-keys", name)
        if authorised:
            self.authorise(name)
        return pair

    def authorise(self, name: str) -> None:
        authorise(self.keys, self.folder / "edge-keys" / f"{name}.key")

    def link(self, name: str, server: str = "keys/host.key") -> HostLink:
        key = self.folder / "edge-keys" / f"{name}.key_secret"
        return HostLink(endpoint=self.host.endpoint, key=key, server_key=self.folder / server, resend_ms=200)

    def counts(self) -> dict[str, Any]:
        found: dict[str, Any] = self.host.get("/healthz")["receiver"]
        return found

    def said(self, text: str) -> bool:
        return text in self.host.log.read_text()


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    made = Keyed(tmp_path_factory.mktemp("keyed"))
    yield made
    assert made.host.end() == 0


@pytest.fixture
def emit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Emitter, Spool]]]:
    """An edge's emitter with one event in its spool; it tries again soon after a refusal."""
    monkeypatch.setattr(link, "RETRY_S", 0.2)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    made: list[tuple[Emitter, Spool]] = []

    def make(to: HostLink, edge_id: str) -> tuple[Emitter, Spool]:
        spool = Spool(tmp_path / f"spool-{len(made)}.sqlite")
        spool.append([Draft(s.missed(1, f"{edge_id}-part", edge_id=edge_id))])
        emitter = Emitter(spool, to, context, load_keys(to))
        made.append((emitter, spool))
        emitter.start()
        emitter.wake()
        return emitter, spool

    yield make
    for emitter, spool in made:
        emitter.stop()
        spool.close()
    context.term()


def test_an_authorised_edge_is_heard_over_curve(keyed: Keyed, make_dealer: MakeDealer) -> None:
    pair = keyed.edge("plain-sailing")
    dealer = make_dealer(keyed.host.endpoint, pair, keyed.public)
    dealer.send(s.frames(s.result(1, "sailing", edge_id="plain-sailing", spool_id="sailing")))
    dealer.wait_acked(1, spool="sailing")


def test_a_rogue_key_is_refused_said_and_counted(keyed: Keyed, make_dealer: MakeDealer) -> None:
    before = keyed.counts()
    pair = keyed.edge("rogue", authorised=False)
    dealer = make_dealer(keyed.host.endpoint, pair, keyed.public)
    dealer.send(s.frames(s.result(1, "rogue", edge_id="rogue", spool_id="rogue")))
    s.until(lambda: keyed.counts()["unknown_key"] == before["unknown_key"] + 1)
    assert keyed.said(pair.public)
    assert keyed.counts()["received"] == before["received"]
    dealer.collect(200)
    assert not dealer.acked


def test_a_client_without_a_key_is_refused_said_and_counted(keyed: Keyed, make_dealer: MakeDealer) -> None:
    before = keyed.counts()
    dealer = make_dealer(keyed.host.endpoint)
    dealer.send(s.frames(s.result(1, "plain", spool_id="plain")))
    s.until(lambda: keyed.counts()["handshake_failed"] > before["handshake_failed"])
    assert keyed.said("without a key")
    assert keyed.counts()["received"] == before["received"]


def test_a_client_that_expects_another_host_tells_it_nothing(keyed: Keyed, make_dealer: MakeDealer) -> None:
    before = keyed.counts()
    pair = keyed.edge("strayed")
    dealer = make_dealer(keyed.host.endpoint, pair, zmq.curve_keypair()[0].decode())
    dealer.send(s.frames(s.result(1, "strayed", edge_id="strayed", spool_id="strayed")))
    s.until(lambda: keyed.counts()["handshake_failed"] > before["handshake_failed"])
    assert keyed.said("expects another host's key")
    assert keyed.counts()["received"] == before["received"]


def test_an_event_of_another_edge_is_refused_by_name_and_reaches_nobody(keyed: Keyed, make_dealer: MakeDealer) -> None:
    before = keyed.counts()["wrong_edge"]
    mallory = make_dealer(keyed.host.endpoint, keyed.edge("mallory"), keyed.public)
    keyed.edge("victim")
    forged = [
        s.result(1, "forged", edge_id="victim", spool_id="forged"),
        s.trigger(2, "forged", edge_id="victim", spool_id="forged"),
        s.state(3, edge_id="victim", spool_id="forged"),
        s.result(4, "forged", edge_id="nobody", spool_id="forged"),
    ]
    for header in forged:
        mallory.send(s.frames(header))
    assert {mallory.wait_nack(seq, "forged").code for seq in (1, 2, 3, 4)} == {"identity"}
    mallory.send(s.frames(s.result(1, "own", edge_id="mallory", spool_id="own")))
    mallory.wait_acked(1, spool="own")
    assert keyed.counts()["wrong_edge"] == before + 4
    assert keyed.said("the sender's key is that of edge 'mallory'")
    parts = {row["part_id"] for row in keyed.host.get("/api/parts")}
    assert "own" in parts
    assert "forged" not in parts
    assert "forged" not in {row["part_id"] for row in keyed.host.published()}
    assert all(each["edge_id"] not in ("victim", "nobody") for each in keyed.host.get("/api/summary")["states"])


def test_a_replayed_event_changes_nothing_and_a_changed_one_is_refused(keyed: Keyed, make_dealer: MakeDealer) -> None:
    pair = keyed.edge("echo")
    dealer = make_dealer(keyed.host.endpoint, pair, keyed.public)
    captured = s.frames(s.result(1, "echo-1", Verdict.REJECT, edge_id="echo", spool_id="echo"))
    dealer.send(captured)
    dealer.wait_acked(1, spool="echo")
    again = make_dealer(keyed.host.endpoint, pair, keyed.public)
    conflicts = keyed.counts()["conflicts"]
    again.send(captured)
    again.wait_acked(1, spool="echo")
    again.send(s.frames(s.result(1, "echo-1", Verdict.PASS, edge_id="echo", spool_id="echo"), age_ms=0.0))
    assert again.wait_nack(1, "echo").code == "identity"
    assert keyed.counts()["conflicts"] == conflicts + 1
    assert [row["code"] for row in keyed.host.published() if row["part_id"] == "echo-1"] == [2]
    other = make_dealer(keyed.host.endpoint, keyed.edge("parrot"), keyed.public)
    other.send(captured)
    assert other.wait_nack(1, "echo").code == "identity"


def test_an_oversized_message_costs_its_sender_alone(keyed: Keyed, make_dealer: MakeDealer) -> None:
    before = keyed.counts()
    rude = make_dealer(keyed.host.endpoint, keyed.edge("rude"), keyed.public)
    polite = make_dealer(keyed.host.endpoint, keyed.edge("polite"), keyed.public)
    rude.send([*s.frames(s.result(1, "rude", edge_id="rude", spool_id="rude")), *[b"x"] * 200])
    assert rude.wait_nack(1, "rude").code == "size"
    rude.send([MAGIC, b"{}", b"{}", bytes((64 << 20) + 4096)])
    polite.send(s.frames(s.result(1, "polite", edge_id="polite", spool_id="polite")))
    polite.wait_acked(1, spool="polite")
    s.until(lambda: keyed.counts()["disconnected"] > before["disconnected"])
    assert keyed.counts()["refused"] == before["refused"] + 1


def test_revocation_cuts_the_connection_and_others_go_on(keyed: Keyed, make_dealer: MakeDealer) -> None:
    traitor = make_dealer(keyed.host.endpoint, keyed.edge("traitor"), keyed.public)
    other = make_dealer(keyed.host.endpoint, keyed.edge("loyal"), keyed.public)
    traitor.send(s.frames(s.result(1, "t-1", edge_id="traitor", spool_id="t")))
    traitor.wait_acked(1, spool="t")
    other.send(s.frames(s.result(1, "l-1", edge_id="loyal", spool_id="l")))
    other.wait_acked(1, spool="l")
    before = keyed.counts()["unknown_key"]
    revoke(keyed.keys, "traitor")
    s.until(lambda: keyed.said("edge traitor is no longer authorised"))

    def refused() -> bool:
        with suppress(zmq.Again):  # cut: there is nobody to send to
            second = s.frames(s.result(2, "t-2", edge_id="traitor", spool_id="t"))
            traitor.socket.send_multipart(second, zmq.NOBLOCK)
        return keyed.counts()["unknown_key"] > before

    s.until(refused)

    def resend() -> bool:  # what was under way when the connections were cut is sent again, as an edge does
        with suppress(zmq.Again):
            again = s.frames(s.result(2, "l-2", edge_id="loyal", spool_id="l"), attempt=2)
            other.socket.send_multipart(again, zmq.NOBLOCK)
        other.collect(100)
        return ("l", 2) in other.acked

    s.until(resend)
    traitor.collect()
    assert ("t", 2) not in traitor.acked
    assert "t-2" not in {row["part_id"] for row in keyed.host.get("/api/parts")}


def test_a_message_of_a_revoked_key_is_dropped_unanswered_before_the_connection_is(
    tmp_path: Path, make_dealer: MakeDealer
) -> None:
    """The folder is changed and nobody cuts: the live set alone must refuse the next message."""
    told: list[object] = []
    folder = tmp_path / "keys"
    host, pair = new_pair(folder, "host"), new_pair(tmp_path / "edge", "edge-1")
    authorise(folder, tmp_path / "edge" / "edge-1.key")
    with zmq.Context() as context:
        gate = Gate(context, folder)

        def tell(arrivals: Sequence[object]) -> list[int | None]:
            told.extend(arrivals)
            return [0] * len(arrivals)

        receiver = Receiver(context, "tcp://0.0.0.0:*", tell, len, gate)
        dealer = make_dealer(receiver.endpoint.replace("0.0.0.0", "127.0.0.1"), pair, host.public)
        dealer.send(s.frames(s.result(1)))
        s.until(lambda: turn(gate, receiver) and told)
        revoke(folder, "edge-1")
        gate._look()
        dealer.send(s.frames(s.result(2)))
        s.until(lambda: turn(gate, receiver) and receiver.counts.revoked_key)
        assert len(told) == 1
        assert not dealer.socket.poll(50)
        receiver.flush()
        gate.close()


def test_an_edge_that_connects_while_the_door_is_tried_is_watched_like_any_other(
    tmp_path: Path, make_dealer: MakeDealer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it sent then is as old as nobody knows, and a revocation has to find its connection."""
    told: list[Any] = []
    host, pair = new_pair(tmp_path / "keys", "host"), new_pair(tmp_path / "edge", "edge-1")
    authorise(tmp_path / "keys", tmp_path / "edge" / "edge-1.key")
    made: list[Dealer] = []

    def prove(gate: Gate, endpoint: str) -> None:
        edge = make_dealer(endpoint, pair, host.public)
        monitor = edge.socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        edge.send(s.frames(s.result(1)))
        s.until(lambda: (gate._zap.poll(5) and gate._answer()) or monitor.poll(5))
        monitor.close(0)
        edge.socket.disable_monitor()
        made.append(edge)
        proven(gate, endpoint)

    def tell(arrivals: Sequence[Any]) -> list[int | None]:
        told.extend(arrivals)
        return [0] * len(arrivals)

    proven = Gate.prove
    monkeypatch.setattr(Gate, "prove", prove)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    gate = Gate(context, tmp_path / "keys")
    receiver = Receiver(context, "tcp://127.0.0.1:*", tell, len, gate)
    assert receiver._router.socket.poll(30_000), "it lies there, and grows old unseen"
    receiver.begin()
    threads = [threading.Thread(target=each.run) for each in (gate, receiver)]
    for thread in threads:
        thread.start()

    def is_told() -> bool:
        made[0].send(s.frames(s.result(2)))
        return bool(told)

    try:
        s.until(is_told)
        assert {each.message.header.seq for each in told} == {2}
    finally:
        receiver.stop()
        gate.stop()
        for thread in threads:
            thread.join(5)
        receiver.flush()
        gate.close()
        context.destroy(0)


def turn(gate: Gate, receiver: Receiver) -> bool:
    """One turn of both threads' work, in this one."""
    if gate._zap.poll(5):
        gate._answer()
    receiver._receive_some()
    return True


def test_a_host_with_an_open_door_does_not_start(tmp_path: Path) -> None:
    """CURVE without an authenticator lets every key in; a plain socket everybody."""
    new_pair(tmp_path / "keys", "host")
    with zmq.Context() as context, zmq.Context() as elsewhere:
        gate = Gate(context, tmp_path / "keys")
        for secured, words in ((True, "nobody authorised was let in"), (False, "was let in|got no answer")):
            with elsewhere.socket(zmq.ROUTER) as router:
                router.set(zmq.LINGER, 0)
                if secured:
                    gate.secure(router)
                router.bind("tcp://127.0.0.1:*")
                endpoint = router.get_string(zmq.LAST_ENDPOINT).rstrip("\0")
                if secured:
                    with pytest.raises(ConfigError, match=words):
                        gate.prove(endpoint)
                assert (gate._try(endpoint, None) == zmq.EVENT_HANDSHAKE_SUCCEEDED) is not secured
        gate.close()


@pytest.mark.parametrize("damage", ["mode", "missing"])
def test_a_host_whose_key_is_not_safe_does_not_start(tmp_path: Path, damage: str) -> None:
    new_pair(tmp_path / "keys", "host")
    secret = tmp_path / "keys" / f"host{keys.SECRET}"
    if damage == "mode":
        secret.chmod(0o644)
    else:
        secret.unlink()
    host = HostProcess(tmp_path, head='keys = "keys"')
    with pytest.raises(AssertionError):
        host.start()
    assert host.end() == 2
    said = host.log.read_text()
    assert ("chmod 600" if damage == "mode" else "flawline keys new host") in said
    assert "Traceback" not in said


def test_an_edge_that_is_authorised_later_recovers_by_itself(keyed: Keyed, emit: Callable[..., Any]) -> None:
    keyed.edge("late", authorised=False)
    emitter, spool = emit(keyed.link("late"), "late")
    s.until(lambda: "flawline keys authorise late.key" in (emitter.trouble or ""))
    assert spool.size[0] == 1
    keyed.authorise("late")
    assert emitter.wait_until_empty(10)
    assert emitter.trouble is None
    revoke(keyed.keys, "late")
    s.until(lambda: "revoked" in (emitter.trouble or ""), what="the cut connection is refused")


def test_an_edge_says_what_is_wrong_once_and_goes_on_trying(
    keyed: Keyed, emit: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    keyed.edge("lost")
    other = new_pair(keyed.folder / "other-host", "host")
    assert other.public != keyed.public
    wrong, spool = emit(keyed.link("lost", "other-host/host.key"), "lost")
    s.until(lambda: "`server_key`" in (wrong.trouble or ""))
    plain, _ = emit(HostLink(endpoint=keyed.host.endpoint), "lost")
    s.until(lambda: "only to edges with keys" in (plain.trouble or ""))
    before = keyed.counts()["handshake_failed"]
    s.until(lambda: keyed.counts()["handshake_failed"] >= before + 4, what="tries again")
    assert sum("only to edges with keys" in record.getMessage() for record in caplog.records) == 1
    assert spool.size[0] == 1


def test_an_edge_with_keys_tells_a_host_without_keys_nothing(
    keyed: Keyed, shared_host: HostProcess, emit: Callable[..., Any]
) -> None:
    keyed.edge("careful")
    to = keyed.link("careful").model_copy(update={"endpoint": shared_host.endpoint})
    emitter, spool = emit(to, "careful")
    s.until(lambda: "speaks without keys" in (emitter.trouble or ""))
    assert spool.size[0] == 1
    assert shared_host.get("/healthz")["receiver"]["received"] == 0
    s.until(lambda: shared_host.get("/healthz")["receiver"]["handshake_failed"])
