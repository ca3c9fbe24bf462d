"""The emitter against a real ROUTER: what is not acknowledged is sent again, verdicts go before pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from contract.event import (
    CHUNK_BYTES,
    MAGIC,
    Ack,
    Attachment,
    Chunk,
    Held,
    Message,
    Missed,
    Nack,
    State,
    from_frames,
    part_ref,
)
from edge_runtime.emitter import ATTACHMENT_WINDOW, Emitter
from edge_runtime.settings import HostLink
from edge_runtime.spool import Draft, Spool
from tests.processes import until

WAIT_MS = 10_000


class Host:
    """A ROUTER that answers only when the test says so."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        self.socket = context.socket(zmq.ROUTER)
        self.socket.set(zmq.LINGER, 0)
        self.socket.bind(endpoint)
        self.peer = b""

    def receive(self, timeout_ms: int = WAIT_MS) -> Message:
        assert self.socket.poll(timeout_ms), "nothing came"
        self.peer, *frames = self.socket.recv_multipart()
        return from_frames(frames)

    def answer(self, reply: Ack | Nack | Held | bytes) -> None:
        data = reply if isinstance(reply, bytes) else reply.model_dump_json().encode()
        self.socket.send_multipart([self.peer, MAGIC, data])


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    with zmq.Context() as made:
        yield made


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool(tmp_path / "spool.sqlite")
    yield made
    made.close()


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/host"


@pytest.fixture
def emitter(spool: Spool, endpoint: str, context: zmq.Context[zmq.Socket[bytes]]) -> Iterator[Emitter]:
    made = Emitter(spool, HostLink(endpoint=endpoint, window=8, resend_ms=200), context)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def host(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> Iterator[Callable[[], Host]]:
    hosts: list[Host] = []

    def start() -> Host:
        hosts.append(Host(context, endpoint))
        return hosts[-1]

    yield start
    for made in hosts:
        made.socket.close()


def missed(number: int) -> Draft:
    return Draft(
        Missed(
            edge_id="e", spool_id="-", seq=1, run_id="-", t_wall_ns=1, camera_id="top", frame_no=0,
            part_id=f"p{number}", trigger_id=number, reason="test",
        )
    )  # fmt: skip


def picture(size: int = 1000) -> Draft:
    data = os.urandom(size)
    reference = part_ref("image", data, codec="png", shape=(1, 1))
    header = Attachment(
        edge_id="e", spool_id="-", seq=1, run_id="-", t_wall_ns=1, part_id="p", result_seq=1, parts=(reference,)
    )
    return Draft(header, (data,))


def test_a_row_is_kept_and_sent_again_until_it_is_acknowledged(
    spool: Spool, emitter: Emitter, host: Callable[[], Host]
) -> None:
    router = host()
    spool.append([missed(1)])
    emitter.wake()
    first, again = router.receive(), router.receive()
    assert first.header == again.header
    assert (first.envelope.attempt, again.envelope.attempt) == (1, 2)
    assert again.envelope.age_ms >= first.envelope.age_ms + 200
    assert spool.size[0] == 1
    router.answer(Ack(spool_id=spool.spool_id, seqs=(1,)))
    assert emitter.wait_until_empty(10)


def test_a_host_that_comes_late_and_one_that_comes_back(
    spool: Spool, emitter: Emitter, host: Callable[[], Host]
) -> None:
    spool.append([missed(1), missed(2)])
    emitter.wake()
    router = host()
    assert {router.receive().header.seq for _ in range(2)} == {1, 2}
    router.socket.close()
    spool.append([missed(3)])
    emitter.wake()
    returned = host()
    seen: set[int] = set()
    while len(seen) < 3:
        seen.add(returned.receive().header.seq)
    returned.answer(Ack(spool_id=spool.spool_id, seqs=(1, 2, 3)))
    assert emitter.wait_until_empty(10)


def test_verdicts_overtake_pictures_and_few_pictures_are_under_way(
    spool: Spool, emitter: Emitter, host: Callable[[], Host]
) -> None:
    spool.append([picture() for _ in range(3 * ATTACHMENT_WINDOW)])
    spool.append([missed(1), missed(2)])
    router = host()
    emitter.wake()
    kinds = [router.receive().header.kind for _ in range(2 + ATTACHMENT_WINDOW)]
    assert kinds == ["missed"] * 2 + ["attachment"] * ATTACHMENT_WINDOW
    spool.append([missed(3)])
    emitter.wake()
    header = router.receive().header
    assert isinstance(header, Missed)
    assert header.part_id in {"p1", "p2", "p3"}


def test_the_window_bounds_what_is_under_way(spool: Spool, emitter: Emitter, host: Callable[[], Host]) -> None:
    router = host()
    spool.append([missed(number) for number in range(1, 21)])
    emitter.wake()
    seqs = {router.receive().header.seq for _ in range(8)}
    assert seqs == set(range(1, 9))
    router.answer(Ack(spool_id=spool.spool_id, seqs=tuple(seqs)))
    while len(seqs) < 16:
        seqs.add(router.receive().header.seq)
    assert seqs == set(range(1, 17))


def test_what_the_host_refuses_for_good_is_buried_and_not_sent_for_ever(
    spool: Spool, emitter: Emitter, host: Callable[[], Host]
) -> None:
    router = host()
    spool.append([missed(1)])
    emitter.wake()
    router.receive()
    router.answer(Nack(spool_id=spool.spool_id, seq=1, code="schema", message="no"))
    assert emitter.wait_until_empty(10)


def test_garbage_from_the_host_is_survived(spool: Spool, emitter: Emitter, host: Callable[[], Host]) -> None:
    router = host()
    spool.append([missed(1)])
    emitter.wake()
    router.receive()
    for garbage in (b"", b"{}", b'{"kind":"ack"}', b"\xff" * 100):
        router.answer(garbage)
    router.answer(Ack(spool_id="another spool", seqs=(1,)))
    assert router.receive().envelope.attempt >= 2
    router.answer(Ack(spool_id=spool.spool_id, seqs=(1,)))
    assert emitter.wait_until_empty(10)


def test_a_heartbeat_is_sent_and_never_spooled(spool: Spool, emitter: Emitter, host: Callable[[], Host]) -> None:
    router = host()
    emitter.send_state(State(edge_id="e", spool_id="state-r", seq=1, run_id="r", t_wall_ns=1, state="running"))
    assert router.receive().header.kind == "state"
    assert spool.size[0] == 0


def large(chunks: int = 3) -> tuple[Draft, bytes]:
    draft = picture((chunks - 1) * CHUNK_BYTES + 10)
    return draft, draft.parts[0]


def held(spool: Spool, chunk: Chunk, offset: int) -> Held:
    return Held(spool_id=spool.spool_id, seq=chunk.seq, sha256=chunk.sha256, offset=offset)


def next_chunk(router: Host, offset: int = 0) -> tuple[Chunk, bytes]:
    """The next chunk from ``offset`` on; what is sent again meanwhile is passed over."""
    message = router.receive()
    while not isinstance(message.header, Chunk) or message.header.offset != offset:
        message = router.receive()
    return message.header, message.parts[1]


def test_a_large_picture_goes_in_chunks_from_where_the_host_says_and_verdicts_overtake(
    spool: Spool, emitter: Emitter, host: Callable[[], Host]
) -> None:
    router = host()
    draft, data = large()
    spool.append([draft])
    emitter.wake()
    chunk, piece = next_chunk(router)
    assert (chunk.offset, chunk.size, piece) == (0, len(data), data[:CHUNK_BYTES])
    spool.append([missed(1)])
    router.answer(held(spool, chunk, CHUNK_BYTES))
    between = router.receive().header
    while isinstance(between, Chunk) and between.offset == 0:
        between = router.receive().header
    assert between.kind == "missed", "before the second chunk"
    router.answer(Ack(spool_id=spool.spool_id, seqs=(2,)))
    _, piece = next_chunk(router, CHUNK_BYTES)
    assert piece == data[CHUNK_BYTES : 2 * CHUNK_BYTES]
    router.answer(held(spool, chunk, 0))  # a host that lost what it had
    next_chunk(router, 0)
    router.answer(held(spool, chunk, 2 * CHUNK_BYTES))  # and one that had it after all
    _, piece = next_chunk(router, 2 * CHUNK_BYTES)
    assert piece == data[2 * CHUNK_BYTES :]
    router.answer(Ack(spool_id=spool.spool_id, seqs=(1,)))
    assert emitter.wait_until_empty(10)


def test_a_host_of_before_chunks_gets_the_picture_in_one_piece(
    spool: Spool, emitter: Emitter, host: Callable[[], Host]
) -> None:
    router = host()
    draft, data = large()
    spool.append([draft])
    emitter.wake()
    next_chunk(router)
    router.answer(Nack(spool_id=spool.spool_id, seq=1, code="schema", message="kind 'chunk' is not known"))
    message = router.receive()
    while isinstance(message.header, Chunk):
        message = router.receive()
    assert message.header.kind == "attachment" and message.parts == (data,)
    router.answer(Ack(spool_id=spool.spool_id, seqs=(1,)))
    assert emitter.wait_until_empty(10)
    assert spool.dead == (0, 0)


def test_a_large_picture_that_the_spool_gives_up_on_the_way_says_so(
    endpoint: str, context: zmq.Context[zmq.Socket[bytes]], host: Callable[[], Host], tmp_path: Path
) -> None:
    spool = Spool(tmp_path / "small.sqlite", max_bytes=4 * CHUNK_BYTES)
    emitter = Emitter(spool, HostLink(endpoint=endpoint, window=8, resend_ms=200), context)
    emitter.start()
    router = host()
    spool.append([large()[0]])
    emitter.wake()
    chunk, _ = next_chunk(router)
    spool.append([large()[0]])
    router.answer(held(spool, chunk, CHUNK_BYTES))
    message = router.receive()
    while message.header.seq != 1 or isinstance(message.header, Chunk):
        message = router.receive()
    assert isinstance(message.header, Attachment) and message.header.dropped
    emitter.stop()
    spool.close()


def test_what_the_host_committed_while_the_disk_took_nothing_is_noted_later(
    spool: Spool, emitter: Emitter, host: Callable[[], Host], caplog: pytest.LogCaptureFixture
) -> None:
    router = host()
    spool.append([missed(1)])
    emitter.wake()
    router.receive()
    spool._writer.execute("PRAGMA query_only=1")  # SQLite refuses every write, as on a read-only disk
    router.answer(Ack(spool_id=spool.spool_id, seqs=(1,)))
    until(lambda: "could not be noted" in caplog.text, "it is said")
    assert spool.size[0] == 1 and not emitter.wait_until_empty(0.05)
    spool._writer.execute("PRAGMA query_only=0")
    assert emitter.wait_until_empty(10), "without another word of the host"
    assert caplog.text.count("could not be noted") == 1


def test_acknowledgements_of_a_moment_are_noted_together(
    spool: Spool, emitter: Emitter, host: Callable[[], Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[list[int]] = []
    forget = spool.forget
    monkeypatch.setattr(spool, "forget", lambda spool_id, seqs: (noted.append(list(seqs)), forget(spool_id, seqs))[1])
    monkeypatch.setattr("edge_runtime.emitter.FORGET_MS", 3_600_000)
    router = host()
    spool.append([missed(1), missed(2), missed(3)])
    emitter.wake()
    for _ in range(3):
        router.receive()
    for seq in (1, 2, 3):
        router.answer(Ack(spool_id=spool.spool_id, seqs=(seq,)))
    until(lambda: sum(map(len, emitter._committed.values())) == 3, "all are heard")
    assert noted == [] and spool.size[0] == 3
    emitter._forget_at = 0.0
    emitter.wake()
    assert emitter.wait_until_empty(10)
    assert noted == [[1, 2, 3]]
