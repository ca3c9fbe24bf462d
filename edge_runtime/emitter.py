"""Sends spooled events to the host and keeps each until the host says that it has committed it (hop 6)."""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import suppress

import zmq
from pydantic import ValidationError

from contract.event import (
    CHUNK_BYTES,
    MAGIC,
    MAX_BODY_BYTES,
    MAX_HEADER_BYTES,
    REPLY,
    Ack,
    Envelope,
    Held,
    Nack,
    State,
    chunk_of,
    encode_header,
    to_frames,
)
from contract.overseer import Pulse
from edge_runtime.clock import boot_id
from edge_runtime.errors import SpoolBlockedError
from edge_runtime.link import Keys, Link
from edge_runtime.observer import Observer
from edge_runtime.settings import HostLink
from edge_runtime.spool import Row, Spool
from edge_runtime.spool_tables import PRIORITIES

ATTACHMENT_WINDOW = 4
"""Attachments under way at once, of a large one a chunk: small, so that a verdict never waits behind pictures."""

TROUBLE_S = 1.0
FORGET_MS, FORGET_ROWS = 20, 256
"""Acknowledged rows are deleted together, so late and so many at most."""

NOW = float("-inf")
"""When what is to be sent again at once was sent."""

CLOCK_ID = boot_id()

log = logging.getLogger(__name__)


class Emitter:
    """A thread that owns the DEALER socket; ``wake`` tells it that the spool has something new."""

    def __init__(
        self,
        spool: Spool,
        link: HostLink,
        context: zmq.Context[zmq.Socket[bytes]],
        keys: Keys | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._observer = observer or Observer()
        self._spool = spool
        self._link = link
        self._context = context
        self._keys = keys
        self.pulse = Pulse("emitter")
        self._connection: Link | None = None
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self._stopping = threading.Event()
        self._drained = threading.Event()
        self._state: bytes | None = None
        self._in_flight: list[dict[tuple[str, int], _Sent]] = [{} for _ in PRIORITIES]
        self._cursor = [0 for _ in PRIORITIES]
        self._in_chunks = self._noted = True
        self._committed: dict[str, list[int]] = {}
        self._forget_at = 0.0
        self._thread = threading.Thread(target=self._run, name="emitter", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def trouble(self) -> str | None:
        """Why the host does not let this edge in; None where it does, or is merely away."""
        return None if self._connection is None else self._connection.trouble

    def wake(self) -> None:
        """Something was appended to the spool."""
        self._drained.clear()
        os.eventfd_write(self._wake_fd, 1)

    def send_state(self, state: State) -> None:
        """Send a heartbeat; the newest replaces one that has not left yet, none is ever sent again."""
        self._state = encode_header(state)
        os.eventfd_write(self._wake_fd, 1)

    def wait_until_empty(self, timeout_s: float) -> bool:
        """Whether the host committed everything within the time."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self._spool.size[0] == 0:
                return True
            self._drained.wait(0.02)
        return self._spool.size[0] == 0

    def stop(self) -> None:
        """Stop sending; what is not committed stays in the spool."""
        self._stopping.set()
        os.eventfd_write(self._wake_fd, 1)
        self._thread.join(timeout=5)
        os.close(self._wake_fd)

    def _run(self) -> None:
        link = self._link
        connection = Link(self._context, link.endpoint, self._keys, 2 * link.window, MAX_HEADER_BYTES)
        self._connection = connection
        poller = zmq.Poller()
        connection.register(poller)
        poller.register(self._wake_fd, zmq.POLLIN)
        try:
            while not self._stopping.is_set():
                self.pulse.turn()
                try:
                    self._turn(connection, poller)
                except Exception:  # a disk that fails for a while must not silence the edge for good
                    log.exception("the emitter goes on after")
                    self._stopping.wait(TROUBLE_S)
        finally:
            self._forget()
            connection.close(linger_ms=200)

    def _turn(self, connection: Link, poller: zmq.Poller) -> None:
        ready = dict(poller.poll(self._timeout_ms(connection.look_ms)))
        if self._wake_fd in ready:
            with suppress(BlockingIOError):
                os.eventfd_read(self._wake_fd)
        if connection.socket in ready:
            self._receive(connection)
        if connection.tend():
            self._in_chunks = True  # the host there may be another one by now
        if self._committed and time.monotonic() >= self._forget_at:
            self._forget()
        blocked = not self._send_due(connection.socket)
        poller.modify(connection.socket, zmq.POLLIN | zmq.POLLOUT if blocked else zmq.POLLIN)

    def _timeout_ms(self, look_ms: int) -> int:
        """Until the next message would be sent again, the connection is looked at, or rows can be forgotten."""
        return min(self._link.resend_ms, look_ms, FORGET_MS if self._committed else look_ms)

    def _receive(self, connection: Link) -> None:
        while True:
            try:
                frames = connection.receive()
            except zmq.Again:
                return
            self.pulse.turn()  # each may wait for the disk
            try:
                if len(frames) != 2 or frames[0] != MAGIC:
                    raise ValueError(f"{len(frames)} frame(s)")
                reply = REPLY.validate_json(frames[1])
            except (ValidationError, ValueError) as error:
                log.warning("the host's reply is not understood: %s", error)
                continue
            self._apply(reply)

    def _apply(self, reply: Ack | Nack | Held) -> None:
        try:
            if isinstance(reply, Ack):
                self._observer.acknowledged()
                self._land(reply.spool_id, reply.seqs)
                self._forget_later(reply)
            elif isinstance(reply, Held):
                self._go_on(reply)
            elif not self._whole_from_now_on(reply):
                log.error("the host refuses event %s/%d: %s", reply.spool_id, reply.seq, reply.message)
                self._spool.bury(reply.spool_id, reply.seq, reply.code, reply.message)
                self._land(reply.spool_id, (reply.seq,))
            self._noted = True
        except SpoolBlockedError as error:  # it stays under way, is sent again and answered again
            if self._noted:  # once, not with every answer
                log.error("what the host answered could not be noted: %s", error)
            self._noted = False

    def _forget_later(self, reply: Ack) -> None:
        """What a host acknowledges within FORGET_MS leaves the spool at once; killed before, it is sent again."""
        if not self._committed:
            self._forget_at = time.monotonic() + FORGET_MS / 1000
        self._committed.setdefault(reply.spool_id, []).extend(reply.seqs)
        if sum(map(len, self._committed.values())) >= FORGET_ROWS:
            self._forget()

    def _forget(self) -> None:
        """Delete what the host has committed; where the disk does not take that now, it is tried again."""
        try:
            for spool_id in list(self._committed):
                self._spool.forget(spool_id, self._committed[spool_id])
                del self._committed[spool_id]
            self._noted = True
        except SpoolBlockedError as error:
            self._forget_at = time.monotonic() + TROUBLE_S
            if self._noted:  # once, not with every answer
                log.error("what the host answered could not be noted: %s", error)
            self._noted = False
        if self._spool.size[0] == 0:
            self._drained.set()

    def _land(self, spool_id: str, seqs: tuple[int, ...]) -> None:
        for flights in self._in_flight:
            for seq in seqs:
                flights.pop((spool_id, seq), None)

    def _go_on(self, held: Held) -> None:
        """Send a large attachment on from where the host has it; what is under way from there already goes on."""
        sent = self._sent(held.spool_id, held.seq)
        if sent is not None and sent.offset != held.offset:
            sent.offset, sent.at, sent.attempt = held.offset, NOW, 0

    def _whole_from_now_on(self, refusal: Nack) -> bool:
        """Whether a host of before chunks refused one: it gets attachments in one piece."""
        sent = self._sent(refusal.spool_id, refusal.seq)
        if sent is None or not sent.in_chunks or refusal.code != "schema":
            return False
        if self._in_chunks:
            log.warning("the host does not know chunks: attachments go in one piece")
        self._in_chunks, sent.in_chunks, sent.at = False, False, NOW
        return True

    def _sent(self, spool_id: str, seq: int) -> _Sent | None:
        return next((flights[spool_id, seq] for flights in self._in_flight if (spool_id, seq) in flights), None)

    def _send_due(self, socket: zmq.Socket[bytes]) -> bool:
        """Send what is new and what is due again, verdicts first; False where the socket takes no more."""
        state = self._state
        if state is not None:
            if not self._put(socket, to_frames(state, (), _envelope(0.0, 1))):
                return False
            if self._state is state:
                self._state = None
        for priority in PRIORITIES:
            window = self._link.window if priority == 0 else ATTACHMENT_WINDOW
            if not (self._resend(socket, priority) and self._send_new(socket, priority, window)):
                return False
            if len(self._in_flight[priority]) >= window:
                return True  # what is less urgent waits until the host has kept up with this
        return True

    def _resend(self, socket: zmq.Socket[bytes], priority: int) -> bool:
        """Send again what was not acknowledged in time; False where the socket takes no more."""
        flights = self._in_flight[priority]
        due = time.monotonic() - self._link.resend_ms / 1000
        for key, sent in list(flights.items()):
            if sent.at > due:
                continue
            row = self._spool.row(sent.n)
            if row is None:
                del flights[key]
            elif not self._transmit(socket, row, sent):
                return False
        return True

    def _send_new(self, socket: zmq.Socket[bytes], priority: int, window: int) -> bool:
        flights = self._in_flight[priority]
        free = window - len(flights)
        if free <= 0 or not self._spool.has_behind(priority, self._cursor[priority]):
            return True
        for row in self._spool.pending(priority, self._cursor[priority], free):
            sent = _Sent(row.n)
            if not self._transmit(socket, row, sent):
                return False
            self._cursor[priority] = row.n
            flights[(row.spool_id, row.seq)] = sent
            if priority == 0 and row.spool_id == self._spool.spool_id:
                self._observer.sent(row.seq)
        return True

    def _transmit(self, socket: zmq.Socket[bytes], row: Row, sent: _Sent) -> bool:
        """Send a row, or the next chunk of a large one; False where the socket takes no more."""
        envelope = _envelope(row.age_ms, sent.attempt + 1)
        if row.body_bytes > MAX_BODY_BYTES:
            self._spool.bury(row.spool_id, row.seq, "size", f"{row.body_bytes} bytes, at most {MAX_BODY_BYTES} go")
            return True
        sent.in_chunks = row.is_large and self._in_chunks
        if sent.in_chunks:
            offset = sent.offset if sent.offset < row.body_bytes else 0
            data = self._spool.read(row.n, offset, CHUNK_BYTES)
            if data is None:  # given up meanwhile: at the next turn the row says so
                return True
            header, parts = chunk_of(row.header, row.body_bytes, offset, data)
            frames = to_frames(header, parts, envelope)
        else:
            frames = to_frames(row.header, self._spool.parts(row) or (), envelope)
        if not self._put(socket, frames):
            return False
        sent.attempt, sent.at = sent.attempt + 1, time.monotonic()
        return True

    def _put(self, socket: zmq.Socket[bytes], frames: list[bytes]) -> bool:
        try:
            socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True


class _Sent:
    """A message under way: its row, when it was last sent (monotonic seconds), how often, and from which byte on."""

    __slots__ = ("at", "attempt", "in_chunks", "n", "offset")

    def __init__(self, n: int) -> None:
        self.n = n
        self.attempt = 0
        self.at = NOW
        self.offset = 0
        self.in_chunks = False


def _envelope(age_ms: float, attempt: int) -> Envelope:
    return Envelope(age_ms=age_ms, attempt=attempt, t_sent_ns=time.monotonic_ns(), clock_id=CLOCK_ID)
