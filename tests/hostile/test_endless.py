"""Messages without an end from a process of their own: the host's memory stays bounded and the others are served."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from contract.event import MAGIC, MAX_PART_BYTES, part_ref
from contract.keys import authorise, load_pair, new_pair, revoke
from contract.unread import own_memory
from edge_runtime.link import Link
from tests.plugin import synthetic as s
from tests.plugin.synthetic import Dealer, HostProcess
from tests.plugin.synthetic import make_dealer as make_dealer

MORE_BYTES = 400 << 20
"""What the host may take beyond its memory before: one message, and what comes until a look on a busy machine."""

CUTS = 2
SENDER = Path(__file__).with_name("endless.py")
Start = Callable[..., "Sender"]


class Sender:
    """The hostile process."""

    def __init__(self, log: Path, *words: str) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(SENDER), *words], stdout=output, stderr=output, cwd=s.ROOT,
                env={**os.environ, "PYTHONPATH": str(s.ROOT)},
            )  # fmt: skip

    def said(self, word: str) -> int:
        assert self.process.poll() is None, self.log.read_text()
        return self.log.read_text().split().count(word)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    made: list[Sender] = []

    def make(*words: str) -> Sender:
        made.append(Sender(tmp_path / f"sender-{len(made)}", *words))
        return made[-1]

    yield make
    for sender in made:
        sender.end()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    made = HostProcess(
        tmp_path_factory.mktemp("host"), deadline_ms=60_000, line='[control]\nbind = "tcp://127.0.0.1:*"'
    )
    made.start()
    yield made
    assert made.end() == 0


def memory(host: HostProcess) -> int:
    assert host.process is not None
    _, resident, shared, *_ = Path(f"/proc/{host.process.pid}/statm").read_text().split()
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module")
def at_rest(host: HostProcess) -> int:
    """The host's memory before anybody was hostile."""
    return memory(host)


def endure(host: HostProcess, sender: Sender, polite: Callable[[int], None]) -> int:
    """The most memory that the host took until the sender was cut CUTS times, while another edge was served."""
    most, seq = 0, 0
    deadline = time.monotonic() + 60
    while sender.said("cut") < CUTS:
        seq += 1
        polite(seq)
        for _ in range(10):
            most = max(most, memory(host))
            time.sleep(0.005)
        assert time.monotonic() < deadline, f"cut {sender.said('cut')} times, {most >> 20} MiB"
    return most


def test_what_edges_may_send_is_never_cut(host: HostProcess, at_rest: int, make_dealer: Callable[..., Dealer]) -> None:
    """The largest message there is, and pictures of several edges at once, some of them in the middle of a message."""
    before = host.get("/healthz")["receiver"]
    dealers = [make_dealer(host.endpoint) for _ in range(4)]
    picture = os.urandom(8 << 20)
    for n, dealer in enumerate(dealers):
        reference = part_ref("image", picture, codec="png", shape=(1,))
        for seq in range(1, 5):
            dealer.send(s.frames(s.attachment(seq, f"p{seq}", seq, (reference,), spool_id=f"large-{n}"), [picture]))
    whole = [MAGIC, b"{}", *[bytes(MAX_PART_BYTES)] * 2]
    dealers[0].socket.send_multipart([*whole[:3], whole[3][:-4096]], copy=False)
    s.until(lambda: host.get("/healthz")["receiver"]["received"] == before["received"] + 17, 60)
    after = host.get("/healthz")["receiver"]
    assert (after["cut"], after["disconnected"]) == (before["cut"], before["disconnected"])


@pytest.mark.parametrize("kind", ["large", "empty", "dribbled", "many"])
def test_a_message_without_an_end_costs_its_connection_not_the_host(
    host: HostProcess, at_rest: int, start: Start, make_dealer: Callable[..., Dealer], kind: str
) -> None:
    other = make_dealer(host.endpoint)

    def polite(seq: int) -> None:
        other.send(s.frames(s.result(seq, f"{kind}-{seq}", spool_id=kind)))
        other.wait_acked(seq, spool=kind)

    polite(1)
    cut = host.get("/healthz")["receiver"]["cut"]
    most = endure(host, start(host.endpoint, kind), lambda seq: polite(seq + 1))
    assert most - at_rest < MORE_BYTES
    assert host.get("/healthz")["receiver"]["cut"] >= cut + CUTS
    assert "a connection was cut" in host.log.read_text()


def test_the_control_socket_is_bounded_too(host: HostProcess, at_rest: int, start: Start) -> None:
    endpoint = (host.folder / "state" / "control").read_text().strip()
    most = endure(host, start(endpoint, "small"), lambda _seq: None)
    assert most - at_rest < MORE_BYTES
    assert host.get("/healthz")["control"]["cut"] >= CUTS


def test_where_the_kernel_counts_no_bytes_the_growth_of_memory_decides(
    tmp_path: Path, start: Start, make_dealer: Callable[..., Dealer]
) -> None:
    host = HostProcess(tmp_path, deadline_ms=60_000)
    host.config.write_text(host.config.read_text().replace("tcp://127.0.0.1:*", f"ipc://{tmp_path}/events"))
    host.start()
    other = make_dealer(host.endpoint)

    def polite(seq: int) -> None:
        other.send(s.frames(s.result(seq)))
        other.wait_acked(seq)

    try:
        polite(1)
        before = memory(host)
        whole = [MAGIC, b"{}", bytes(MAX_PART_BYTES), bytes(MAX_PART_BYTES - 4096)]
        other.socket.send_multipart(whole, copy=False)
        s.until(lambda: host.get("/healthz")["receiver"]["received"] == 2, 60)
        assert host.get("/healthz")["receiver"]["cut"] == 0
        most = endure(host, start(host.endpoint, "large"), lambda seq: polite(seq + 1))
        assert most - before < MORE_BYTES
        assert host.get("/healthz")["receiver"]["cut"] >= CUTS
    finally:
        host.end()


def test_an_edge_ends_a_host_that_sends_without_an_end(start: Start) -> None:
    sender = start("listen", "large")
    endpoint = s.until(lambda: sender.log.read_text().partition("\n")[0])
    with zmq.Context() as context:
        link = Link(context, endpoint, None, 128, 1 << 20)
        poller = zmq.Poller()
        link.register(poller)
        before, most = own_memory(), 0
        while sender.said("cut") < CUTS:
            poller.poll(link.look_ms)
            link.tend()
            most = max(most, own_memory())
        link.close(0)
    assert most - before < MORE_BYTES


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HostProcess, str]]:
    folder = tmp_path_factory.mktemp("keyed")
    public = new_pair(folder / "keys", "host").public
    made = HostProcess(folder, deadline_ms=60_000, head='keys = "keys"')
    made.start()
    yield made, public
    assert made.end() == 0


def edge_of(host: HostProcess, name: str) -> Path:
    """The secret key of an edge that the host lets in."""
    new_pair(host.folder / "edges", name)
    authorise(host.folder / "keys", host.folder / "edges" / f"{name}.key")
    return host.folder / "edges" / f"{name}.key_secret"


def test_an_authorised_edge_that_sends_without_an_end_is_cut(
    keyed: tuple[HostProcess, str], start: Start, make_dealer: Callable[..., Dealer]
) -> None:
    host, public = keyed
    key = edge_of(host, "endless")
    edge_of(host, "polite")
    other = make_dealer(host.endpoint, load_pair(host.folder / "edges" / "polite.key_secret"), public)

    def polite(seq: int) -> None:
        other.send(s.frames(s.result(seq, f"polite-{seq}", edge_id="polite", spool_id="polite")))
        other.wait_acked(seq, spool="polite")

    polite(1)
    before = memory(host)
    most = endure(host, start(host.endpoint, "large", str(key), public), lambda seq: polite(seq + 1))
    assert most - before < MORE_BYTES
    assert host.get("/healthz")["receiver"]["received"] == len(other.acked)


def test_a_key_that_is_revoked_in_the_middle_of_a_message_is_cut(keyed: tuple[HostProcess, str], start: Start) -> None:
    host, public = keyed
    sender = start(host.endpoint, "slow", str(edge_of(host, "leaver")), public)
    s.until(lambda: sender.said("connected") == 1)
    counts = host.get("/healthz")["receiver"]
    revoke(host.folder / "keys", "leaver")
    s.until(lambda: sender.said("cut") >= 1, what="the connection to end")
    s.until(lambda: host.get("/healthz")["receiver"]["unknown_key"] > counts["unknown_key"])
    assert sender.said("connected") == 1
    assert host.get("/healthz")["receiver"]["cut"] == counts["cut"], "cut for its key, before any limit"
