"""CURVE on a socket and what its connections meet, the same on both sides (hops 6 and 7, and the control socket)."""

from __future__ import annotations

import struct
import uuid
from typing import NamedTuple

import zmq

from contract.keys import KeyPair

ZAP_DOMAIN = b"flawline"
"""One name on both sides: a socket of another domain than its authenticator refuses every key."""

WATCHED = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_ACCEPTED
    | zmq.EVENT_CONNECTED
    | zmq.EVENT_DISCONNECTED
)
FAILED = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
CRYPTOGRAPHIC = int(zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC)
MECHANISM_MISMATCH = int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH)
Socket = zmq.Socket[bytes]


class Happening(NamedTuple):
    """One event of a connection: a ``zmq.EVENT_...`` and its value."""

    event: int
    value: int


class Monitor:
    """What happens to a socket's connections. Belongs to the socket's thread; make it before bind or connect.

    Every monitor has an address of its own: ZeroMQ's default one clashes between sockets of one process.
    """

    def __init__(self, context: zmq.Context[Socket], watched: Socket) -> None:
        address = f"inproc://monitor-{uuid.uuid4().hex}"
        self._watched = watched
        watched.monitor(address, WATCHED)
        self.socket = context.socket(zmq.PAIR)
        self.socket.set(zmq.LINGER, 0)
        self.socket.set(zmq.RCVHWM, 0)  # ZeroMQ's own thread writes here, and must never wait for us
        self.socket.connect(address)

    def happenings(self) -> list[Happening]:
        """Everything since the last call."""
        found: list[Happening] = []
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return found
            found.append(Happening(*struct.unpack("=HI", frames[0])))

    def close(self) -> None:
        """Stop watching; call before the watched socket is closed."""
        self._watched.disable_monitor()
        self.socket.close(0)


def secure_server(socket: Socket, pair: KeyPair) -> None:
    """Let in only who proves a key that the context's authenticator accepts. Call before ``bind``."""
    socket.set(zmq.CURVE_SERVER, 1)
    socket.set(zmq.CURVE_SECRETKEY, pair.secret)
    socket.set(zmq.ZAP_DOMAIN, ZAP_DOMAIN)


def secure_client(socket: Socket, pair: KeyPair, server_public: str) -> None:
    """Prove our key, and speak only to who proves the key ``server_public``. Call before ``connect``."""
    socket.set(zmq.CURVE_PUBLICKEY, pair.public.encode())
    socket.set(zmq.CURVE_SECRETKEY, pair.secret)
    socket.set(zmq.CURVE_SERVERKEY, server_public.encode())


def keep_alive(socket: Socket) -> None:
    """ZeroMQ's heartbeats: a peer that is frozen or gone is noticed within four seconds."""
    socket.set(zmq.HEARTBEAT_IVL, 1000)
    socket.set(zmq.HEARTBEAT_TIMEOUT, 3000)
    socket.set(zmq.HEARTBEAT_TTL, 3000)
    socket.set(zmq.HANDSHAKE_IVL, 5000)
    socket.set(zmq.TCP_KEEPALIVE, 1)
