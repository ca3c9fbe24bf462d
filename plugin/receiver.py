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

from contract.errors import EventError
from contract.event import (
    MAGIC,
    MAX_PART_BYTES,
    REPLY,
    Ack,
    Attachment,
    Chunk,
    Held,
    Message,
    Nack,
    from_frames,
    identity_of,
)
from contract.overseer import Pulse
from plugin.gate import Gate
from plugin.logs import LimitedLog
from plugin.partials import Partials, Whole
from plugin.router import LOOK_MS, MAX_FRAMES, Connections, Oversize, Router
from plugin.store import Received
from plugin.transit import Arrival, Transit
from plugin.writer import Verdicted

MAX_MESSAGE_BYTES = 128 << 20
UNREAD_BYTES = 1 << 30
"""Of all edges together, where the receiver lags; beyond it the connection with the most is cut and sends again."""

ACKS_PER_MESSAGE = 4096
MAX_ANSWERING = 4096
BURST = 64
BURST_BYTES = 8 << 20
log = logging.getLogger(__name__)
Socket = zmq.Socket[bytes]
Code = Literal["schema", "size", "parts", "version", "identity"]


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
        self.chunks = 0


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
        tell_ledger: Callable[[Sequence[Arrival]], Sequence[int | None]],
        offer: Callable[[Sequence[Received]], int],
        gate: Gate | None = None,
        partials: Partials | None = None,
    ) -> None:
        """Without ``partials`` attachments in chunks are refused, and come in one piece."""
        self.counts = Counts()
        self.pulse = Pulse("receiver")
        self._partials = partials
        self._answering: dict[tuple[bytes, str, int], str] = {}
        self._gate = gate
        self._tell_ledger = tell_ledger
        self._offer = offer
        self._stopping = threading.Event()
        self._log = LimitedLog(log)
        self._transit = Transit()
        limits = (MAX_PART_BYTES + 1024, MAX_MESSAGE_BYTES, UNREAD_BYTES)
        self._router = Router(context, bind, "events", limits, gate, self.counts)
        self.endpoint = self._router.endpoint
        self._answers = context.socket(zmq.PULL)
        self._answers.bind(f"inproc://answers-{id(self)}")
        self._answer_socket = context.socket(zmq.PUSH)  # used by the writer's thread only, after it started
        self._answer_socket.set(zmq.SNDHWM, 0)  # the writer must never wait for the receiver
        self._answer_socket.connect(f"inproc://answers-{id(self)}")

    def begin(self) -> None:
        """Just before ``run``: nobody knows how old it is what came since the socket was bound."""
        self._router.begin()

    def run(self) -> None:
        """Receive and answer until stopped."""
        poller = zmq.Poller()
        self._router.register(poller)
        poller.register(self._answers, zmq.POLLIN)
        while not self._stopping.is_set():
            self.pulse.turn()
            ready = dict(poller.poll(LOOK_MS))
            if self._answers in ready:
                self._send_answers()
            drained = self._router.socket not in ready or self._receive_some()
            self._router.tend(drained)

    def stop(self) -> None:
        """Take no more events; ``flush`` afterwards sends the last answers."""
        self._stopping.set()

    def flush(self) -> None:
        """Send what the writer answered after ``run`` returned, and close. Call when both threads have ended."""
        self._send_answers()
        self._answer_socket.close(0)
        self._answers.close(0)
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
            self._forget_answered(route, reply)
            self._send(route, reply)

    def _send(self, route: bytes, reply: bytes) -> None:
        try:
            self._router.socket.send_multipart([route, MAGIC, reply], zmq.NOBLOCK)
        except zmq.ZMQError:  # gone or not reading: it will send again and be answered then
            self.counts.unreachable += 1

    def _receive_some(self) -> bool:
        """What waits, up to a burst, goes on in one piece; then answers get their turn. True: nothing is left."""
        events: list[_Event] = []
        size, drained = 0, False
        for _ in range(BURST):
            try:
                got, user_id = self._router.read()
            except zmq.Again:
                drained = True
                break
            event = self._take(got, user_id)
            if event is not None:
                events.append(event)
                size += sum(map(len, event.message.parts))
            if size > BURST_BYTES:
                break
        if events:
            self._hand_on_or_each(events)
        return drained

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
        tickets = self._tell_ledger([self._arrival(event) for event in events])
        now_ns = time.time_ns()
        items = [
            Received(event.route, event.message, event.header, now_ns, ticket)
            for event, ticket in zip(events, tickets, strict=True)
            if ticket is not None  # it would only keep the answers of others waiting
        ]
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
            header = event.message.header
            if name not in (None, header.edge_id):
                self.counts.wrong_edge += 1
                raise EventError(
                    f"the sender's key is that of edge {name!r}, the event says {header.edge_id!r}",
                    "identity",
                )
            if isinstance(header, Chunk):
                return self._take_chunk(event, header)
            if isinstance(header, Attachment) and self._partials is not None:
                self._partials.forget((header.edge_id, header.spool_id, header.seq))  # its edge gave the rest up
            return event
        except (EventError, UnicodeDecodeError) as error:
            self._refuse(frames, error)
            return None

    def _take_chunk(self, event: _Event, chunk: Chunk) -> _Event | None:
        """Keep a chunk and say from where to go on; the attachment itself where it is whole."""
        if self._partials is None:
            raise EventError("attachments in chunks are not taken here")
        self.counts.chunks += 1
        taken = self._partials.take(chunk, event.message.parts, event.message.envelope)
        if isinstance(taken, Held):
            self._send(event.route, taken.model_dump_json().encode())
        if not isinstance(taken, Whole):
            return None
        if len(self._answering) >= MAX_ANSWERING:  # of edges that have gone: what they left is removed by its age
            self._answering.clear()
        self._answering[event.route, chunk.spool_id, chunk.seq] = chunk.edge_id
        return event._replace(message=taken.message, header=taken.header)

    def _forget_answered(self, route: bytes, reply: bytes) -> None:
        """What is committed or refused is not continued any more."""
        if not self._answering or self._partials is None:
            return
        said = REPLY.validate_json(reply)
        for seq in said.seqs if isinstance(said, Ack) else (said.seq,):
            edge_id = self._answering.pop((route, said.spool_id, seq), None)
            if edge_id is not None:
                self._partials.forget((edge_id, said.spool_id, seq))

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
