"""A bound ROUTER: who connects, whole messages within limits, the end of who sends without an end (before hop 7)."""

from __future__ import annotations

import logging
import threading
from typing import NamedTuple

import zmq

from contract.curve import CRYPTOGRAPHIC, FAILED, MECHANISM_MISMATCH, Happening, Monitor, keep_alive
from contract.event import MAX_PARTS
from contract.unread import Unread
from plugin.errors import ConfigError
from plugin.gate import Gate
from plugin.logs import LimitedLog

MAX_FRAMES = 4 + MAX_PARTS
RUDE_FRAMES = 4096
"""Frames of one message that cost the connection: reading them to their end takes the time of all others."""

HIGH_WATER = 128
"""Whole messages that may wait for each edge: twice what an edge has under way."""

LOOK_MS = 50
"""How long the owner of a Router may wait until it calls ``tend`` again."""

log = logging.getLogger(__name__)
Socket = zmq.Socket[bytes]


class Connections:
    """What the connections of a ROUTER came to. Written by its thread alone, read by any."""

    def __init__(self) -> None:
        self.wrong_edge = 0
        self.revoked_key = 0
        self.handshake_failed = 0
        self.disconnected = 0
        self.cut = 0


class Oversize(NamedTuple):
    """A message that was read to its end and thrown away; its first frames are kept to answer it."""

    frames: list[bytes]
    size: int
    frame_count: int


class Router:
    """Made by any thread, then used and closed by one. A gate lets in authorised keys alone, and is proven first.

    A message that is whole is held within ``max_message_bytes`` and MAX_FRAMES; of one that is not, libzmq holds what
    has come, and ``tend`` cuts its connection where that is too much. Raises ConfigError where it cannot be bound.
    """

    def __init__(
        self,
        context: zmq.Context[Socket],
        bind: str,
        section: str,
        limits: tuple[int, int, int],
        gate: Gate | None,
        counts: Connections,
    ) -> None:
        """``limits``: bytes of a frame, of a message, and of all that waits unread."""
        max_frame_bytes, self._max_message_bytes, all_bytes = limits
        self._gate = gate
        self._counts = counts
        self._log = LimitedLog(log)
        self._revoked = threading.Event()
        self._unread = Unread(self._max_message_bytes, all_bytes)
        self._there: set[int] = set()
        self._early: dict[int, bool] = {}
        self.socket = context.socket(zmq.ROUTER)
        self.socket.set(zmq.LINGER, 0)  # the edge's spool is the truth
        self.socket.set(zmq.ROUTER_MANDATORY, 1)  # an answer to a peer that is gone is an error, not silence
        self.socket.set(zmq.SNDHWM, 256)
        self.socket.set(zmq.RCVHWM, HIGH_WATER)
        self.socket.set(zmq.MAXMSGSIZE, max_frame_bytes)
        keep_alive(self.socket)
        if gate is not None:
            gate.secure(self.socket)
        self._monitor = Monitor(context, self.socket)
        try:
            self._bind(bind, section)
        except BaseException:
            self.close(0)
            raise

    def _bind(self, bind: str, section: str) -> None:
        try:
            self.socket.bind(bind)
        except zmq.ZMQError as error:
            raise ConfigError(
                f"{section} cannot be received on {bind}: {error.strerror}; is another host running? "
                f"Change `{section}.bind` or stop it"
            ) from error
        self.endpoint = self.socket.get_string(zmq.LAST_ENDPOINT).rstrip("\0")
        if self._gate is not None:
            self._gate.prove(self.endpoint)
            for happening in self._monitor.happenings():  # of the proof itself, which is no news, and of edges
                self._unread.note(happening)
                self._count(happening)
            self._gate.when_revoked(lambda _gone: self._revoked.set())

    def register(self, poller: zmq.Poller) -> None:
        """Wake the poller for messages and for what happens to connections."""
        poller.register(self.socket, zmq.POLLIN)
        poller.register(self._monitor.socket, zmq.POLLIN)

    def begin(self) -> None:
        """Reading begins now: ends the connections of before, and what came over them is thrown away.

        It may have lain here since the socket was bound, nobody knows for how long; edges send it again with its age.
        """
        self._note_all()
        self._early = dict.fromkeys(self._there, False)
        self._unread.cut_all()

    def tend(self, drained: bool) -> None:
        """Note what happened to connections, cut those that may not go on; every LOOK_MS at least.

        ``drained``: the last ``read`` found nothing more. After a revocation all are cut: whose one is shows only in a
        message that is whole. Who is authorised connects again at once and sends again.
        """
        revoked = self._revoked.is_set()
        if drained:  # nothing is left of a connection that had ended before
            self._early = {fd: ended for fd, ended in self._early.items() if not ended}
        self._note_all()
        if revoked:  # whoever came before that was noted; whoever comes after is refused by the gate
            self._revoked.clear()
            self._unread.cut_all()
        self._look(drained)

    def _note_all(self) -> None:
        for happening in self._monitor.happenings():
            self._unread.note(happening)
            self._count(happening)
            problem = self._note(happening)
            if problem is not None:
                self._say(problem)

    def _count(self, happening: Happening) -> None:
        """Who is there, by file number; one that is another connection's by now has ended for the one of before."""
        event, fd = happening
        if event == zmq.EVENT_ACCEPTED:
            self._there.add(fd)
        elif event == zmq.EVENT_DISCONNECTED:
            self._there.discard(fd)
        else:
            return
        if fd in self._early:
            self._early[fd] = True

    def _look(self, drained: bool) -> None:
        for problem in self._unread.look(drained):
            self._counts.cut += 1
            self._say(problem)

    def read(self) -> tuple[list[bytes] | Oversize, str | None]:
        """One message and the sender's proven key (``User-Id``). Raises zmq.Again where none waits."""
        while True:
            got, user_id, connection = self._read()
            if connection not in self._early:
                return got, user_id

    def _read(self) -> tuple[list[bytes] | Oversize, str | None, int]:
        first = self.socket.recv(zmq.NOBLOCK, copy=False)
        user_id = _user_id(first) if self._gate is not None else None
        frames = [first.bytes]
        size, count = len(frames[0]), 1
        more = first.more
        while more:
            frame = self.socket.recv(copy=False)
            size, count, more = size + len(frame), count + 1, frame.more
            if size <= self._max_message_bytes and count <= MAX_FRAMES:
                frames.append(frame.bytes)
            elif count % RUDE_FRAMES == 0:
                self._note_all()
                self._look(drained=False)  # another connection must not grow meanwhile
        connection = self._unread.heard(first, size)
        if count > RUDE_FRAMES and self._unread.cut(connection):
            self._counts.cut += 1
            self._say(f"a connection was cut: it sent a message of {count} frames")
        return frames if count == len(frames) else Oversize(frames[:4], size, count), user_id, connection

    def close(self, linger_ms: int) -> None:
        """Let go of the socket, sending for at most ``linger_ms``."""
        self._monitor.close()
        self.socket.close(linger_ms)

    def _say(self, problem: str) -> None:
        self._log.warning(problem[:30], f"{self.endpoint}: {problem}")

    def _note(self, happening: Happening) -> str | None:
        """Count what a connection came to; returns a sentence where it came to nothing.

        A key that is not authorised (HANDSHAKE_FAILED_AUTH) is counted and said by the gate, which knows the key.
        """
        event, value = happening
        if event == zmq.EVENT_DISCONNECTED:
            self._counts.disconnected += 1
        if not event & FAILED or event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            return None
        self._counts.handshake_failed += 1
        if self._gate is not None and value == CRYPTOGRAPHIC:
            return f"a client was refused that expects another host's key; this host's is {self._gate.key}"
        if value == MECHANISM_MISMATCH:
            if self._gate is not None:
                return "a client without a key was refused"
            return "a client with a key was refused: this host has none"
        return "a connection was refused: without a key, or ended before it said who it is"


def _user_id(frame: zmq.Frame) -> str | None:
    try:
        return str(frame.get("User-Id"))
    except zmq.ZMQError:  # nobody proved a key
        return None
