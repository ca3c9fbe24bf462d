"""ROUTER socket: decode, tell the ledger, hand to the writer, acknowledge what the disk has (hop 7)."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import zmq
from pydantic import ValidationError

from contract.curve import CRYPTOGRAPHIC, FAILED, MECHANISM_MISMATCH, Happening, Monitor, keep_alive
from contract.errors import EventError
from contract.event import MAGIC, MAX_PART_BYTES, MAX_PARTS, Ack, Message, Nack, from_frames, identity_of
from plugin.errors import ConfigError
from plugin.gate import Gate
from plugin.logs import LimitedLog
from plugin.store import Received
from plugin.transit import Arrival, Transit
from plugin.writer import Verdicted

MAX_MESSAGE_BYTES = 128 << 20
MAX_FRAMES = 4 + MAX_PARTS
ACKS_PER_MESSAGE = 4096
BURST = 64
BURST_BYTES = 8 << 20
REBIND_S = 5.0
log = logging.getLogger(__name__)
Socket = zmq.Socket[bytes]
Code = Literal["schema", "size", "parts", "version", "identity"]


class Connections:
    """What the connections of a ROUTER came to. Written by its thread alone, read by any."""

    def __init__(self) -> None:
        self.wrong_edge = 0
        self.revoked_key = 0
        self.handshake_failed = 0
        self.disconnected = 0


class Counts(Connections):
    """What the receiver met since the start."""

    def __init__(self) -> None:
        super().__init__()
        self.received = 0
        self.garbage = 0
        self.refused = 0
        self.held_back = 0
        self.unreachable = 0
        self.failed = 0


class Oversize(NamedTuple):
    """A message that was read to its end and thrown away; its first frames are kept to answer it."""

    frames: list[bytes]
    size: int
    frame_count: int


class _Event(NamedTuple):
    """A decoded message: whom to answer, the header's JSON, its arrival by CLOCK_MONOTONIC."""

    route: bytes
    message: Message
    header: str
    arrived_ns: int


class Receiver:
    """Owns the ROUTER. ``answer`` may be called by one other thread; it speaks to ``run`` over inproc.

    With a ``gate``, only authorised keys are heard, and an event only where its ``edge_id`` is the one that the
    sender's key stands for: who speaks is known from the key, never from what is said.
    """

    def __init__(
        self,
        context: zmq.Context[Socket],
        bind: str,
        tell_ledger: Callable[[Sequence[Arrival]], int],
        offer: Callable[[Sequence[Received]], int],
        gate: Gate | None = None,
    ) -> None:
        self.counts = Counts()
        self._gate = gate
        self._cut = threading.Event()
        self._tell_ledger = tell_ledger
        self._offer = offer
        self._stopping = threading.Event()
        self._log = LimitedLog(log)
        self._transit = Transit()
        self._answers = context.socket(zmq.PULL)
        self._answers.bind(f"inproc://answers-{id(self)}")
        self._answer_socket = context.socket(zmq.PUSH)  # used by the writer's thread only, after it started
        self._answer_socket.set(zmq.SNDHWM, 0)  # the writer must never wait for the receiver
        self._answer_socket.connect(f"inproc://answers-{id(self)}")
        self._router, self._monitor = bind_router(context, bind, "events", MAX_PART_BYTES + 1024, gate)
        self.endpoint = self._router.get_string(zmq.LAST_ENDPOINT).rstrip("\0")
        if gate is not None:
            try:
                gate.prove(self.endpoint)
            except BaseException:
                self.flush()
                raise
            self._monitor.happenings()  # of the proof itself
            gate.when_revoked(lambda _gone: self._cut.set())

    def run(self) -> None:
        """Receive and answer until stopped."""
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._answers, zmq.POLLIN)
        poller.register(self._monitor.socket, zmq.POLLIN)
        while not self._stopping.is_set():
            ready = dict(poller.poll(100))
            if self._cut.is_set():
                self._cut.clear()
                drop_connections(self._router, self.endpoint)
            if self._monitor.socket in ready:
                self._note(self._monitor.happenings())
            if self._answers in ready:
                self._send_answers()
            if self._router in ready:
                self._receive_some()

    def stop(self) -> None:
        """Take no more events; ``flush`` afterwards sends the last answers."""
        self._stopping.set()

    def flush(self) -> None:
        """Send what the writer answered after ``run`` returned, and close. Call when both threads have ended."""
        self._send_answers()
        self._answer_socket.close(0)
        self._answers.close(0)
        self._monitor.close()
        self._router.close(200)  # the last acknowledgements; unsent ones only mean a duplicate

    def answer(self, answers: list[Verdicted]) -> None:
        """Acknowledge or refuse committed events, grouped by peer and spool. Called on the writer's thread."""
        acks: dict[tuple[bytes, str], list[int]] = defaultdict(list)
        for one in answers:
            if one.refused is None:
                acks[one.route, one.spool_id].append(one.seq)
            else:
                self._pass_on(
                    one.route, Nack(spool_id=one.spool_id, seq=one.seq, code=one.refused[0], message=one.refused[1])
                )
        for (route, spool_id), seqs in acks.items():
            for first in range(0, len(seqs), ACKS_PER_MESSAGE):
                self._pass_on(route, Ack(spool_id=spool_id, seqs=tuple(seqs[first : first + ACKS_PER_MESSAGE])))

    def _pass_on(self, route: bytes, reply: Ack | Nack) -> None:
        self._answer_socket.send_multipart([route, reply.model_dump_json().encode()])

    def _send_answers(self) -> None:
        while True:
            try:
                route, reply = self._answers.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._send(route, reply)

    def _send(self, route: bytes, reply: bytes) -> None:
        try:
            self._router.send_multipart([route, MAGIC, reply], zmq.NOBLOCK)
        except zmq.ZMQError:  # gone or not reading: it will send again and be answered then
            self.counts.unreachable += 1

    def _note(self, happenings: list[Happening]) -> None:
        for happening in happenings:
            problem = note_connection(self.counts, happening, self._gate)
            if problem is not None:
                self._log.warning(problem[:20], f"{self.endpoint}: {problem}")

    def _receive_some(self) -> None:
        """What waits, up to a burst, goes on in one piece; then answers get their turn."""
        events: list[_Event] = []
        size = 0
        for _ in range(BURST):
            try:
                got, user_id = read_message(self._router, self._gate is not None)
            except zmq.Again:
                break
            event = self._take(got, user_id)
            if event is not None:
                events.append(event)
                size += sum(map(len, event.message.parts))
            if size > BURST_BYTES:
                break
        if events:
            self._hand_on_or_each(events)

    def _take(self, got: list[bytes] | Oversize, user_id: str | None) -> _Event | None:
        """Decode, and learn from it how long the way takes; None where it is no event, or not of who sent it."""
        self.counts.received += 1
        name = None
        if self._gate is not None:
            name = self._gate.name_of(user_id)
            if name is None:  # unanswered: an edge that is authorised again still has it
                self.counts.revoked_key += 1
                self._log.warning(
                    "revoked", f"a message of a key that is not authorised any more was dropped: {user_id}"
                )
                return None
        try:
            event = self._decode(got, name)
            if event is not None:
                self._transit.note(event.message.header.edge_id, event.message.envelope, event.arrived_ns)
        except Exception as error:  # noqa: BLE001 - whatever a message provokes, the next one must be received
            self._failed(error)
            return None
        return event

    def _hand_on_or_each(self, events: list[_Event]) -> None:
        """All in one piece; where that fails each alone, so that one cannot keep the others out."""
        try:
            self._hand_on(events)
        except Exception as error:  # noqa: BLE001 - as above
            if len(events) == 1:
                self._failed(error)
                return
            for event in events:
                self._hand_on_or_each([event])

    def _failed(self, error: Exception) -> None:
        self.counts.failed += 1
        self._log.warning("failed", f"a message could not be handled and is left unanswered: {error!r:.300}")

    def _hand_on(self, events: list[_Event]) -> None:
        ticket = self._tell_ledger([self._arrival(event) for event in events])
        now_ns = time.time_ns()
        items = [Received(event.route, event.message, event.header, now_ns, ticket) for event in events]
        held_back = len(items) - self._offer(items)
        if held_back:
            self.counts.held_back += held_back
            self._log.warning("backlog", "the store lags: events are left unacknowledged and will be sent again")

    def _arrival(self, event: _Event) -> Arrival:
        message = event.message
        waited_ns = self._transit.waited_ns(message.header.edge_id, message.envelope, event.arrived_ns)
        return Arrival(message, event.arrived_ns, waited_ns)

    def _decode(self, got: list[bytes] | Oversize, name: str | None) -> _Event | None:
        frames = got.frames if isinstance(got, Oversize) else got
        try:
            if isinstance(got, Oversize):
                raise EventError(
                    f"a message of {got.size} bytes in {got.frame_count} frames, "
                    f"at most {MAX_MESSAGE_BYTES} in {MAX_FRAMES}",
                    "size",
                )
            event = _Event(frames[0], from_frames(frames[1:]), frames[3].decode(), time.monotonic_ns())
            if name not in (None, event.message.header.edge_id):
                self.counts.wrong_edge += 1
                raise EventError(
                    f"the sender's key is that of edge {name!r}, the event says {event.message.header.edge_id!r}",
                    "identity",
                )
            return event
        except (EventError, UnicodeDecodeError) as error:
            self._refuse(frames, error)
            return None

    def _refuse(self, frames: list[bytes], error: EventError | UnicodeDecodeError) -> None:
        nack = _nack(frames, error)
        if nack is None:
            self.counts.garbage += 1
            self._log.warning("garbage", f"a message that is no event was dropped: {str(error)[:200]!r}")
            return
        self.counts.refused += 1
        self._log.warning("refused", f"event {nack.spool_id[:40]!r}/{nack.seq} is refused: {str(error)[:200]!r}")
        self._send(frames[0], nack.model_dump_json().encode())


def _nack(frames: list[bytes], error: Exception) -> Nack | None:
    """The refusal by name; None where the message has no name that could be sent back."""
    identity = identity_of(frames[1:])
    if identity is None:
        return None
    try:
        return Nack(spool_id=identity[0], seq=identity[1], code=_nack_code(error), message=str(error)[:500])
    except ValidationError:  # half of a surrogate pair is a str, and no text
        return None


def _nack_code(error: Exception) -> Code:
    code = getattr(error, "code", "schema")
    codes: tuple[Code, ...] = ("schema", "size", "parts", "version", "identity")
    return next((known for known in codes if known == code), "schema")


def read_message(router: Socket, keyed: bool) -> tuple[list[bytes] | Oversize, str | None]:
    """One message without ever holding more of it than the limits, and the sender's proven key (``User-Id``).

    Raises zmq.Again where none waits.
    """
    first = router.recv(zmq.NOBLOCK, copy=False)
    user_id = _user_id(first) if keyed else None
    frames = [first.bytes]
    size, count = len(frames[0]), 1
    while router.get(zmq.RCVMORE):
        frame = router.recv()
        size, count = size + len(frame), count + 1
        if size <= MAX_MESSAGE_BYTES and count <= MAX_FRAMES:
            frames.append(frame)
    return frames if count == len(frames) else Oversize(frames[:4], size, count), user_id


def _user_id(frame: zmq.Frame) -> str | None:
    try:
        return str(frame.get("User-Id"))
    except zmq.ZMQError:  # nobody proved a key
        return None


def note_connection(counts: Connections, happening: Happening, gate: Gate | None) -> str | None:
    """Count what a connection came to; returns a sentence where it came to nothing.

    A key that is not authorised (HANDSHAKE_FAILED_AUTH) is counted and said by the gate, which knows the key.
    """
    event, value = happening
    if event == zmq.EVENT_DISCONNECTED:
        counts.disconnected += 1
    if not event & FAILED or event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return None
    counts.handshake_failed += 1
    if gate is not None and value == CRYPTOGRAPHIC:
        return f"a client was refused that expects another host's key; this host's is {gate.key}"
    if value == MECHANISM_MISMATCH:
        return "a client without a key was refused" if gate else "a client with a key was refused: this host has none"
    return "a connection was refused: without a key, or ended before it said who it is"


def bind_router(
    context: zmq.Context[Socket], bind: str, section: str, max_frame_bytes: int, gate: Gate | None
) -> tuple[Socket, Monitor]:
    """A bound ROUTER, guarded where there is a gate, and what its connections meet. Raises ConfigError."""
    router = context.socket(zmq.ROUTER)
    router.set(zmq.LINGER, 0)  # the edge's spool is the truth
    router.set(zmq.ROUTER_MANDATORY, 1)  # an answer to a peer that is gone is an error, not silence
    router.set(zmq.SNDHWM, 256)
    router.set(zmq.RCVHWM, 256)
    router.set(zmq.MAXMSGSIZE, max_frame_bytes)
    keep_alive(router)
    if gate is not None:
        gate.secure(router)
    monitor = Monitor(context, router)
    try:
        router.bind(bind)
    except zmq.ZMQError as error:
        monitor.close()
        router.close(0)
        raise ConfigError(
            f"{section} cannot be received on {bind}: {error.strerror}; is another host running? "
            f"Change `{section}.bind` or stop it"
        ) from error
    return router, monitor


def drop_connections(router: Socket, endpoint: str) -> None:
    """Cut every connection: ZeroMQ cannot cut one alone. Who is authorised connects again at once and sends again."""
    router.unbind(endpoint)
    deadline = time.monotonic() + REBIND_S
    while True:
        try:
            router.bind(endpoint)
            return
        except zmq.ZMQError:  # the old listener closes on ZeroMQ's own thread
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
