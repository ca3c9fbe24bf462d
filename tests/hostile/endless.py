"""A peer that sends one message for ever: ``python endless.py ENDPOINT KIND [KEY_FILE HOST_KEY]``.

Without a key it speaks ZMTP by hand; with one it is libzmq with a message of eight gigabytes. It connects again as
often as it is cut, and says so on its output.
"""

from __future__ import annotations

import select
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path

import zmq

from contract.curve import Monitor, secure_client
from contract.keys import load_pair

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER\x08Identity" + bytes(4)
SO_MAX_PACING_RATE = 47
SIZES = {"large": 1 << 20, "small": 1 << 15, "dribbled": 40}


def frame(size: int) -> bytes:
    """With MORE set."""
    head = b"\x01" + bytes([size]) if size < 256 else b"\x03" + struct.pack(">Q", size)
    return head + bytes(size)


def connected(endpoint: str) -> socket.socket:
    if endpoint.startswith("ipc://"):
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(endpoint.removeprefix("ipc://"))
        return greeted(peer)
    host, port = endpoint.removeprefix("tcp://").split(":")
    return greeted(socket.create_connection((host, int(port)), 10))


def greeted(peer: socket.socket) -> socket.socket:
    """After the handshake."""
    if peer.family == socket.AF_INET:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    peer.sendall(GREETING)
    got = b""
    while len(got) < len(GREETING):
        got += peer.recv(len(GREETING) - len(got))
    peer.sendall(b"\x04" + bytes([len(READY)]) + READY)
    assert peer.recv(4096)
    return peer


def send(peer: socket.socket, piece: bytes, times: int) -> None:
    """The piece so often, then a last frame; returns when the other side has ended the connection."""
    peer.setblocking(False)
    rest, left = memoryview(piece), times
    while True:
        readable, writable, _ = select.select([peer], [peer] if rest else [], [])
        if readable and not peer.recv(4096):
            return
        if writable:
            rest = rest[peer.send(rest) :]
        if not rest and left:
            left -= 1
            rest = memoryview(piece if left else b"\x00\x00")


def plain(endpoint: str, kind: str) -> None:
    """``large``, ``small``, ``empty``, ``dribbled`` frames without an end; ``many``: a message that does end."""
    piece = frame(SIZES[kind]) if kind in SIZES else frame(0) * 65536
    while True:
        try:
            with connected(endpoint) as peer:
                send(peer, piece, 4 if kind == "many" else 1 << 40)
        except OSError:
            pass
        print("cut", flush=True)


def listen(kind: str) -> None:
    """The same to whoever connects; the endpoint is the first line of the output."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(f"tcp://127.0.0.1:{server.getsockname()[1]}", flush=True)
        while True:
            with server.accept()[0] as peer, suppress(OSError):
                send(greeted(peer), frame(SIZES[kind]), 1 << 40)
            print("cut", flush=True)


def keyed(endpoint: str, kind: str, key: str, host: str) -> None:
    """``large`` frames as fast as it goes; ``slow``: some kilobytes each second."""
    data = bytes(8 << 20)
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.set(zmq.LINGER, 0)
        secure_client(dealer, load_pair(Path(key)), host)
        monitor = Monitor(context, dealer)
        dealer.connect(endpoint)
        while True:
            for event, value in monitor.happenings():
                if event == zmq.EVENT_CONNECTED and kind == "slow":
                    with socket.socket(fileno=value) as peer:
                        peer.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, 1 << 20)
                        peer.detach()
                if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    print("connected", flush=True)
                    dealer.send_multipart([data] * 1024, copy=False)
                if event == zmq.EVENT_DISCONNECTED:
                    print("cut", flush=True)
            monitor.socket.poll(1000)


if __name__ == "__main__":
    if sys.argv[1] == "listen":
        listen(sys.argv[2])
    (keyed if len(sys.argv) > 3 else plain)(*sys.argv[1:])
