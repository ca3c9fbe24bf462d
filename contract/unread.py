"""What a peer has sent and nobody could read yet, and the end of who sends too much of it (beside hops 6 and 7).

ZeroMQ counts a message only once its last frame is there: frames of a message without an end lie in memory, out of the
reader's sight, and no socket option bounds them (MAXMSGSIZE bounds a frame, a high-water mark whole messages). What
does is the kernel's count of a connection's bytes, less those that were read; and, because a frame of no bytes takes
64 in memory, the growth of this process beyond all bytes that came while a connection brings nothing that is whole.
Only TCP counts bytes: on ipc:// the growth alone decides.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import time
from contextlib import suppress
from functools import cache

import zmq

from contract.curve import Happening

LOOK_S = 0.05
SLACK_BYTES = 16 << 20
"""Of whole messages that came between the last reading and the look, and lie in the kernel's buffers."""

EXCESS_BYTES = 32 << 20
"""How much this process may grow beyond the bytes that came while a connection that owes the rest of a message
completes none. Small, because the frames of a message that does end must be read one by one."""

COPIES = 2
"""A message that is being read is there twice: as ZeroMQ has it, and as it is handed on."""

MOST_PER_BYTE = 32
"""A frame of no bytes takes 64 in memory and 2 on the wire: more than so often what it sent no connection can fill."""

MAX_NEW = 512
"""Connections that have brought no whole message yet: of more, the one that came first is ended."""

PINGS_BYTES_PER_S = 256
"""ZeroMQ's own heartbeats, both ways and generously."""

OWED_BYTES = 64 << 10
"""More than what heartbeats and short answers leave unread: a long message is on its way."""

YOUNG_S = 2.0
"""How long a new connection is watched closely, whatever it sends: who does not speak as we do shows it at once."""

TRIM_S = 0.25
RECEIVED = struct.Struct("=Q")
RECEIVED_AT = 128
"""Where Linux's ``struct tcp_info`` has ``tcpi_bytes_received`` (RFC 4898), since 4.1."""


class _Connection:
    """One accepted or made connection.

    ``base``: this process's memory when a message of it was last whole; ``base_brought``: what all had brought then.
    """

    def __init__(self, inode: int, received: int | None, base: int, base_brought: int) -> None:
        self.inode = inode
        self.received = received
        self.base = base
        self.base_brought = base_brought
        self.since = time.monotonic()
        self.unread = 0
        self.read_since = 0
        self.heard = False
        self.proven = False
        self.cut = False


class Unread:
    """Watches the connections of one socket, on that socket's thread.

    ``message_bytes`` is the largest message that a peer may send; ``all_bytes`` what may wait unread over all
    connections where the reader lags. A ``quiet`` peer may say nothing for days: its heartbeats are no part of a
    message, and what this process takes meanwhile is not its doing.
    """

    def __init__(self, message_bytes: int, all_bytes: int, quiet: bool = False) -> None:
        self._message_bytes = message_bytes + SLACK_BYTES
        self._all_bytes = all_bytes
        self._quiet = quiet
        self._connections: dict[int, _Connection] = {}
        self._new: dict[int, _Connection] = {}
        self._brought = 0
        self._was_drained = False
        self._last_look = -LOOK_S
        self._trim_at: float | None = None
        own_memory()  # its file is open before anybody can use up all that there are

    def note(self, happening: Happening) -> None:
        """A connection came or went."""
        event, fd = happening
        if event in (zmq.EVENT_ACCEPTED, zmq.EVENT_CONNECTED):
            try:
                inode = os.fstat(fd).st_ino
            except OSError:  # gone already
                return
            connection = _Connection(inode, _received(fd), own_memory(), self._brought)
            self._connections[fd] = self._new[fd] = connection
            if len(self._new) > MAX_NEW:
                self.cut(next(iter(self._new)))
        elif event == zmq.EVENT_DISCONNECTED:
            self._connections.pop(fd, None)
            self._new.pop(fd, None)

    def heard(self, frame: zmq.Frame, size: int) -> int:
        """A whole message of ``size`` bytes was read, ``frame`` is one of it; returns its connection for ``cut``."""
        try:
            fd = int(frame.get(zmq.SRCFD))
        except zmq.ZMQError:  # it came over inproc://
            return -1
        connection = self._connections.get(fd)
        if connection is not None:
            connection.read_since += size
            connection.heard = connection.proven = True
            self._new.pop(fd, None)
        return fd

    def look(self, drained: bool) -> list[str]:
        """Cut who is over a limit, and say it; ``drained``: everything that is whole was read. Every LOOK_S at most.

        Hand every happening to ``note`` just before: a number of a closed connection may be another file's by now.
        """
        now = time.monotonic()
        elapsed_s = now - self._last_look
        if elapsed_s < LOOK_S:
            return []
        self._last_look = now
        self._trim(now)
        memory = own_memory()
        self._connections = {fd: each for fd, each in self._connections.items() if _is(fd, each.inode)}
        for fd, connection in self._connections.items():
            self._count(connection, _received(fd), drained)
            if self._quiet:
                connection.unread = max(0, connection.unread - int(PINGS_BYTES_PER_S * elapsed_s + 0.5))
        for connection in self._connections.values():
            if connection.heard or memory < connection.base:
                connection.base, connection.base_brought = memory, self._brought
            connection.heard = False
        problems = self._cut_those_over(memory, drained)
        self._was_drained = drained
        return problems

    def is_close(self) -> bool:
        """Whether to look again soon: a connection is new, or in the middle of a long message."""
        young = time.monotonic() - YOUNG_S
        return any(each.unread > OWED_BYTES or each.since > young for each in self._connections.values())

    def cut(self, fd: int) -> bool:
        """End one connection; what was read of it stays read. False where it has ended by itself."""
        connection = self._connections.get(fd)
        self._new.pop(fd, None)
        if connection is None or connection.cut:
            return False
        connection.cut = True
        with suppress(OSError):
            if _is(fd, connection.inode):
                handle = socket.socket(fileno=fd)
                try:
                    handle.shutdown(socket.SHUT_RDWR)
                finally:
                    handle.detach()  # ZeroMQ's own thread closes it
        self._trim_at = self._trim_at or time.monotonic() + TRIM_S
        return True

    def cut_all(self) -> None:
        """End every connection, also one that is in the middle of a message. First hand every happening to ``note``."""
        for fd in list(self._connections):
            self.cut(fd)

    def _count(self, connection: _Connection, received: int | None, drained: bool) -> None:
        new = 0 if received is None or connection.received is None else received - connection.received
        connection.received = received
        connection.unread = max(0, connection.unread + new - connection.read_since)
        connection.read_since = 0
        self._brought += new
        if connection.heard and drained and self._was_drained:
            connection.unread = min(connection.unread, new)  # what is owed is new; the rest is framing and pings

    def _cut_those_over(self, memory: int, drained: bool) -> list[str]:
        problems = []
        there = {fd: each for fd, each in self._connections.items() if not each.cut}
        for fd, each in there.items():
            excess = memory - each.base - COPIES * (self._brought - each.base_brought)
            allowed = EXCESS_BYTES + (self._message_bytes if each.received is None else 0)
            if drained and each.unread > self._message_bytes:
                why = f"it sent {_mib(each.unread)} of a message that may have {_mib(self._message_bytes)}"
            elif not self._quiet and excess > allowed and self._may_have_filled(each, allowed):
                why = f"memory grew by {_mib(excess)} beyond all that came while it completed no message"
            else:
                continue
            if self.cut(fd):
                problems.append(f"a connection was cut: {why}")
                for other in there.values():  # what it filled is nobody else's doing
                    other.base, other.base_brought = memory, self._brought
        waiting = {fd: each.unread for fd, each in there.items() if not each.cut}
        if sum(waiting.values()) > self._all_bytes:
            fd = max(waiting, key=waiting.__getitem__)
            if self.cut(fd):
                problems.append(f"a connection was cut: {_mib(sum(waiting.values()))} wait, most of them its own")
        return problems

    def _may_have_filled(self, connection: _Connection, size: int) -> bool:
        return connection.received is None or MOST_PER_BYTE * connection.unread > size

    def _trim(self, now: float) -> None:
        """Give back what was freed: memory that stays with the allocator would hide the next growth."""
        if self._trim_at is not None and now >= self._trim_at:
            self._trim_at = None
            with suppress(AttributeError):  # not every C library keeps it
                ctypes.CDLL(None).malloc_trim(0)


def own_memory() -> int:
    """Bytes of memory that this process alone has: resident, without files."""
    _, resident, shared, *_ = os.pread(_statm(os.getpid()), 256, 0).split()
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


@cache
def _statm(pid: int) -> int:
    """Kept open: where all files are in use, none could be opened to look."""
    return os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)


def _is(fd: int, inode: int) -> bool:
    """Whether the number still stands for the same connection."""
    try:
        return os.fstat(fd).st_ino == inode
    except OSError:
        return False


def _received(fd: int) -> int | None:
    """Bytes that a TCP connection received; None where that is not counted, or where it has gone."""
    try:
        handle = socket.socket(fileno=fd)
    except OSError:
        return None
    try:
        info = handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, RECEIVED_AT + RECEIVED.size)
    except OSError:
        return None
    finally:
        handle.detach()
    return int(RECEIVED.unpack_from(info, RECEIVED_AT)[0]) if len(info) >= RECEIVED_AT + RECEIVED.size else None


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"
