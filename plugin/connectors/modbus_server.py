"""Modbus TCP, the serving side: frames in, answers out, at once and in order (hop 10).

Modbus Application Protocol 1.1b3 and Messaging on TCP/IP 1.0b: functions 3, 4, 6 and 16, any unit id.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from abc import ABC, abstractmethod
from itertools import chain
from typing import Any

MBAP = struct.Struct(">HHHB")
LONGEST = 260
MOST_READ, MOST_WRITTEN = 125, 123
READ_HOLDING, READ_INPUT, WRITE_ONE, WRITE_MANY = 3, 4, 6, 16
ILLEGAL_FUNCTION, ILLEGAL_ADDRESS, ILLEGAL_VALUE, FAILURE = 1, 2, 3, 4
SLOW_BYTES = 64 << 10
"""Answers that a controller leaves unread before it is let go."""

GONE_MS = 10_000
"""A controller that lost its power sends no farewell: without an answer for so long its connection ends."""

QUIET_S = 60.0
"""Without a request for so long a controller makes room for another, where there is none."""


class IllegalError(Exception):
    """A request that is answered with a Modbus exception code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"Modbus exception {code}")
        self.code = code


class Memory(ABC):
    """What is served. Called on the server's loop; must return at once."""

    @abstractmethod
    def read(self, first: int, count: int) -> list[int]:
        """``count`` words, as they stand at one moment; raises IllegalError."""

    @abstractmethod
    def write(self, first: int, values: list[int]) -> None:
        """Take words that a controller wrote; raises IllegalError."""

    @abstractmethod
    def admits(self, peer: str) -> bool:
        """Whether a controller at this address may connect."""

    @abstractmethod
    def crowded(self, peer: str, closed: str | None) -> None:
        """There was no room for one at ``peer``: the one at ``closed`` made it, or the newcomer was closed (None)."""


class Connection(asyncio.Protocol):
    """One controller. Any number of requests may come in one piece, or one in many."""

    def __init__(self, memory: Memory, connections: list[Connection], most: int) -> None:
        self._memory = memory
        self._connections = connections
        self._most = most
        self._peer = ""
        self._asked_s: float | None = None
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Set the connection up, or end it where this controller may not stay."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - what a TCP server gives
        self._transport = transport
        self._peer = str(transport.get_extra_info("peername")[0])
        if not self._memory.admits(self._peer) or not self._find_room():
            asyncio.get_running_loop().call_soon(transport.abort)  # not now: asyncio is still setting it up
            return
        self._connections.append(self)
        _keep_honest(transport.get_extra_info("socket"))

    def _find_room(self) -> bool:
        """Whether there is room for one more; one address has at most half of it.

        Who has never asked for anything makes room first, then who has not for long. A controller that polls stays,
        whoever comes later.
        """
        crowd = [each for each in self._connections if each._peer == self._peer]
        if len(crowd) < self._most // 2:
            crowd = self._connections
            if len(crowd) < self._most:
                return True
        long_ago_s = time.monotonic() - QUIET_S
        never = (each for each in crowd if each._asked_s is None)
        quiet = (each for each in crowd if each._asked_s is not None and each._asked_s < long_ago_s)
        first = next(chain(never, quiet), None)
        self._memory.crowded(self._peer, None if first is None else first._peer)
        if first is not None:
            first.close()
        return first is not None

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._transport = None
        if self in self._connections:
            self._connections.remove(self)

    def close(self) -> None:
        """End the connection now."""
        if self in self._connections:
            self._connections.remove(self)
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Answer every whole request; what is no Modbus ends the connection."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self._received += data
        while len(self._received) >= MBAP.size:
            transaction, protocol, length, unit = MBAP.unpack_from(self._received)
            if protocol != 0 or not 2 <= length <= LONGEST - 6:
                transport.abort()
                return
            if len(self._received) < 6 + length:
                return
            request, self._received = self._received[MBAP.size : 6 + length], self._received[6 + length :]
            self._asked_s = time.monotonic()
            answer = _answer(self._memory, request)
            transport.write(MBAP.pack(transaction, 0, len(answer) + 1, unit) + answer)
            if transport.get_write_buffer_size() > SLOW_BYTES:
                transport.abort()
                return


def _answer(memory: Memory, request: bytes) -> bytes:
    """The answer's function code and data, or the exception."""
    function = request[0]
    try:
        if function in (READ_HOLDING, READ_INPUT):
            first, count = _unpack(">HH", request)
            if not 1 <= count <= MOST_READ:
                raise IllegalError(ILLEGAL_VALUE)
            return struct.pack(f">BB{count}H", function, 2 * count, *memory.read(first, count))
        if function == WRITE_ONE:
            first, value = _unpack(">HH", request)
            memory.write(first, [value])
            return request
        if function == WRITE_MANY:
            first, count, size = _unpack(">HHB", request[:6])
            if not 1 <= count <= MOST_WRITTEN or size != 2 * count or len(request) != 6 + size:
                raise IllegalError(ILLEGAL_VALUE)
            memory.write(first, list(struct.unpack(f">{count}H", request[6:])))
            return request[:5]
        raise IllegalError(ILLEGAL_FUNCTION)
    except IllegalError as error:
        return bytes([function | 0x80, error.code])
    except Exception:  # noqa: BLE001 - the controller hears that it failed, and the others go on
        return bytes([function | 0x80, FAILURE])


def _unpack(layout: str, request: bytes) -> tuple[Any, ...]:
    try:
        return struct.unpack(layout, request[1:])
    except struct.error as error:
        raise IllegalError(ILLEGAL_VALUE) from error


def _keep_honest(handle: socket.socket) -> None:
    handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    handle.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
    handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
    handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, GONE_MS)
