"""Events that a host commits and acknowledges per second, from real ZeroMQ clients, into either database.

A part is an announcement and a verdict; with images every tenth is flagged and brings a map, a picture and a
reconstruction besides, 108 kB together, none like another.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import zmq

from contract.event import (
    REPLY,
    Ack,
    Attachment,
    Envelope,
    Result,
    Timing,
    Trigger,
    Verdict,
    encode_header,
    part_ref,
    to_frames,
)

WINDOW = 512
LEAST_WINDOW = 32
FLAGGED_EVERY = 10
ATTACHED = ("edge_id", "spool_id", "run_id", "seq", "t_wall_ns", "part_id")
PICTURES = {"image": 60_000, "reconstruction": 40_000}


def header(part: int, seq: int, kind: type[Trigger] | type[Result], edge: str = "edge-1", **more: Any) -> bytes:
    """A header as an edge writes it."""
    return encode_header(kind(**_fields(part, seq, edge), **(_judged(part) if kind is Result else {}), **more))


def _fields(part: int, seq: int, edge: str) -> dict[str, Any]:
    return {
        "edge_id": edge,
        "spool_id": f"spool-{edge}",
        "run_id": "run-1",
        "seq": seq,
        "t_wall_ns": time.time_ns(),
        "part_id": f"top-run-{part:06d}",
        "camera_id": "top",
        "trigger_id": part,
        "frame_no": part,
        "timing": Timing(t_capture_ns=time.monotonic_ns()),
    }


def _judged(part: int) -> dict[str, Any]:
    flagged = part % FLAGGED_EVERY == 0
    return {
        "verdict": Verdict.REJECT if flagged else Verdict.PASS,
        "score": 1.0 + part % 997 / 997 if flagged else 0.4,
        "threshold": 1.0,
        "recipe": "plate",
        "bundle_id": "plate-1",
        "model_sha256": "ab" * 32,
        "engine": "openvino fp32",
    }


def envelope(age_ms: float = 1.0) -> Envelope:
    """As it is made for each sending."""
    return Envelope(age_ms=age_ms, t_sent_ns=time.monotonic_ns(), clock_id="bench")


def dealer(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> zmq.Socket[bytes]:
    """An edge's socket."""
    made = context.socket(zmq.DEALER)
    made.set(zmq.LINGER, 0)
    made.connect(endpoint)
    return made


def messages(edge: str, images: bool, data: Callable[[int], bytes] = os.urandom) -> Iterator[list[bytes]]:
    """An edge's events, without an end; ``data`` makes the bytes of maps and pictures."""
    part = seq = 0
    while True:
        part += 1
        yield to_frames(header(part, seq + 1, Trigger, edge), (), envelope())
        if images and part % FLAGGED_EVERY == 0:
            deviation = data(8192)
            to_part = (4.0, 0.0, 0.0, 0.0, 4.0, 0.0)
            told = part_ref("map", deviation, codec="raw", dtype="float16", shape=(64, 64), to_part=to_part)
            yield to_frames(header(part, seq + 2, Result, edge, parts=(told,)), (deviation,), envelope())
            pictures = {role: data(size) for role, size in PICTURES.items()}
            said = tuple(part_ref(role, each, codec="png", shape=(256, 256, 3)) for role, each in pictures.items())
            fields = {
                name: each for name, each in _fields(part, seq + 3, edge).items() if name in Attachment.model_fields
            }
            attached = encode_header(Attachment(**fields, result_seq=seq + 2, parts=said))
            yield to_frames(attached, tuple(pictures.values()), envelope())
            seq += 3
        else:
            yield to_frames(header(part, seq + 2, Result, edge), (), envelope())
            seq += 2


class Edge:
    """A client that keeps a window of its events under way."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, made: list[list[bytes]], window: int):
        self.socket = dealer(context, endpoint)
        self._messages, self._window = made, window
        self._sent = self._acked = 0

    def send(self) -> None:
        """As many as the window lets."""
        while self._sent < len(self._messages) and self._sent - self._acked < self._window:
            self.socket.send_multipart(self._messages[self._sent])
            self._sent += 1

    def hear(self) -> int:
        """How many more are acknowledged."""
        reply = REPLY.validate_json(self.socket.recv_multipart()[1])
        if not isinstance(reply, Ack):
            raise SystemExit(f"the host refuses: {reply}")
        self._acked += len(reply.seqs)
        return len(reply.seqs)


def ingestion(endpoint: str, edges: int, events: int, images: bool) -> float:
    """Events per second, of all edges together, from the first sending to the last acknowledgement."""
    each = events // edges
    made = []
    for number in range(1, edges + 1):
        own = messages(f"edge-{number}", images)
        made.append([next(own) for _ in range(each)])
    window = max(LEAST_WINDOW, WINDOW // edges)
    with zmq.Context() as context:
        clients = [Edge(context, endpoint, own, window) for own in made]
        by_socket = {client.socket: client for client in clients}
        poller = zmq.Poller()
        for client in clients:
            poller.register(client.socket, zmq.POLLIN)
        start = time.monotonic()
        for client in clients:
            client.send()
        acked = 0
        while acked < each * edges:
            ready = poller.poll(20_000)
            if not ready:
                raise SystemExit(f"the host acknowledges nothing more: {acked} of {each * edges}")
            for socket, _ in ready:
                acked += by_socket[socket].hear()
                by_socket[socket].send()
        took = time.monotonic() - start
        for client in clients:
            client.socket.close(0)
    return each * edges / took
