"""The host's end of the control socket: asks edges for status, a recipe, to stop, start and trigger (beside hop 10).

A line connector calls this from its own thread and never waits: every question returns a future.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import NamedTuple

import zmq

from contract.control import HELLO_S, MAX_BYTES, Hello, Kind, Part, Reply, Request, Status, encode, from_edge
from contract.errors import EventError
from contract.keys import PUBLIC
from contract.overseer import Pulse
from plugin.gate import Gate
from plugin.logs import LimitedLog
from plugin.router import LOOK_MS, Connections, Oversize, Router

SILENT_S = 5 * HELLO_S
TRIGGER_S = 1.0
RESEND_S = 1.0
GRACE_S = 0.5
"""How much longer than the edge the host waits: an answer given at the last moment is still under way."""

MAX_EDGES = 4096
MAX_ASKED = 4096
"""Questions under way, those included that wait for an edge to connect."""

UNREAD_BYTES = 256 << 20
log = logging.getLogger(__name__)
Socket = zmq.Socket[bytes]


class Known(NamedTuple):
    """What an edge last said of itself, and how long ago."""

    status: Status
    age_s: float


class ControlCounts(Connections):
    """What the control socket met since the start. Written by its thread alone, read by any."""

    def __init__(self) -> None:
        super().__init__()
        self.received = 0
        self.garbage = 0
        self.asked = 0
        self.unanswered = 0


class _Peer(NamedTuple):
    """Where an edge can be reached; its newest hello, and when that arrived by our monotonic clock."""

    route: bytes
    hello: Hello
    arrived_ns: int


class _Asked:
    """A request under way. Times are our monotonic clock's nanoseconds."""

    def __init__(
        self, edge_id: str, what: Kind, number: int | None, timeout_s: float, key: str, part: Part | None = None
    ) -> None:
        self.id = uuid.uuid4().hex
        self.edge_id = edge_id
        self.what = what
        self.number = number
        self.part = part
        self.key = key
        self.deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
        self.send_at_ns = 0
        self.run_id: str | None = None
        """Of the edge's run that it was sent to; None: nobody has heard it yet."""
        self.future: Future[Reply] = Future()
        self.future.set_running_or_notify_cancel()  # it cannot be cancelled: it may have been done already

    def replaces(self, older: _Asked) -> bool:
        """Whether ``older`` must not be done after this: another recipe, or stop and start, to the same edge."""
        pair = {self.what, older.what}
        alike = pair == {"recipe"} or pair <= {"start", "stop"}
        return alike and self.edge_id == older.edge_id and self.key != older.key

    def request(self, peer: _Peer) -> Request:
        """To be sent to ``peer`` now: the deadline told from its newest hello on."""
        return Request(
            id=self.id,
            idempotency_key=self.key,
            run_id=peer.hello.run_id,
            hello_ns=peer.hello.t_sent_ns,
            deadline_after_hello_ms=max(0, self.deadline_ns - peer.arrived_ns) / 1e6,
            what=self.what,
            number=self.number,
            part=self.part,
        )


class ControlServer:
    """Owns the control ROUTER. ``ask`` and what is built on it may be called by any thread and never block.

    A future's callbacks run on this object's thread: keep them short. Its Reply says ``ok``; ``refused`` with the
    reason: it was not done; or ``unknown``: nobody answered in time, and ``status`` tells what holds. What is asked of
    an edge that is not connected waits for it until the deadline, or until something else is asked in its place.
    """

    def __init__(
        self, context: zmq.Context[Socket], bind: str, gate: Gate | None, line_of: Callable[[str], str]
    ) -> None:
        self.counts = ControlCounts()
        self.pulse = Pulse("control")
        self._gate = gate
        self._line_of = line_of
        self._log = LimitedLog(log)
        self._peers: dict[str, _Peer] = {}
        self._asked: dict[str, _Asked] = {}
        self._inbox: queue.SimpleQueue[_Asked] = queue.SimpleQueue()
        self._gone: queue.SimpleQueue[frozenset[str]] = queue.SimpleQueue()
        self._stopping = threading.Event()
        limits = (MAX_BYTES + 1024, MAX_BYTES + 1024, UNREAD_BYTES)
        self._router = Router(context, bind, "control", limits, gate, self.counts)
        self.endpoint = self._router.endpoint
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        if gate is not None:
            gate.when_revoked(self._gone.put)

    def select_recipe(
        self, edge_id: str, number: int, timeout_s: float = 30.0, idempotency_key: str | None = None
    ) -> Future[Reply]:
        """Load recipe ``number`` and judge with it from the next part on; until then the old one goes on."""
        return self.ask(edge_id, "recipe", number, timeout_s, idempotency_key)

    def trigger(
        self, edge_id: str, part: Part, timeout_s: float = TRIGGER_S, idempotency_key: str | None = None
    ) -> Future[Reply]:
        """A part is in view now. ``ok``: it stands in the edge's spool and will have its verdict, or a reason for none.

        Unlike all else it waits for no edge that is not there: later another part would be in view.
        """
        return self.ask(edge_id, "trigger", None, timeout_s, idempotency_key, part)

    def status(self, edge_id: str, timeout_s: float = 2.0) -> Future[Reply]:
        """How the edge is now, asked of it; ``known`` answers at once with what it said last."""
        return self.ask(edge_id, "status", None, timeout_s)

    def stop_inspecting(
        self, edge_id: str, timeout_s: float = 5.0, idempotency_key: str | None = None
    ) -> Future[Reply]:
        """From the next part on every part is NOT_INSPECTED, by request."""
        return self.ask(edge_id, "stop", None, timeout_s, idempotency_key)

    def start_inspecting(
        self, edge_id: str, timeout_s: float = 5.0, idempotency_key: str | None = None
    ) -> Future[Reply]:
        """Inspect again from the next part on."""
        return self.ask(edge_id, "start", None, timeout_s, idempotency_key)

    def ask(
        self,
        edge_id: str,
        what: Kind,
        number: int | None = None,
        timeout_s: float = 5.0,
        idempotency_key: str | None = None,
        part: Part | None = None,
    ) -> Future[Reply]:
        """Ask one edge; resolves at most ``timeout_s`` + GRACE_S later. The same key is done once by one run of it.

        Asked again with the same key, also while the first is under way, it is done once and answered alike.
        """
        wait_s = min(max(timeout_s, 0.0), 3600.0)
        asked = _Asked(edge_id, what, number, wait_s, idempotency_key or uuid.uuid4().hex, part)
        self._inbox.put(asked)
        with suppress(OSError):  # closed: ``close`` answers what is in the inbox
            os.eventfd_write(self._wake_fd, 1)
        return asked.future

    def ask_line(
        self, line: str, what: Kind, number: int | None = None, timeout_s: float = 5.0
    ) -> dict[str, Future[Reply]]:
        """Ask every edge of a line that is there now; empty where none is."""
        return {edge_id: self.ask(edge_id, what, number, timeout_s) for edge_id in self.edges_of(line)}

    def edges_of(self, line: str) -> list[str]:
        """The edges of a line that have said something within SILENT_S."""
        return [edge_id for edge_id in self._there() if self._line_of(edge_id) == line]

    def known(self, edge_id: str) -> Known | None:
        """What an edge last said of itself: the active recipe's read-back, without waiting."""
        peer = self._peers.get(edge_id)
        return None if peer is None else Known(peer.hello.status, _age_s(peer))

    def is_there(self, edge_id: str) -> bool:
        """Whether an edge has said something within SILENT_S."""
        known = self.known(edge_id)
        return known is not None and known.age_s < SILENT_S

    def seen(self) -> list[str]:
        """Every edge that has connected since the start and is not revoked."""
        return sorted(self._peers.copy())

    def health(self) -> dict[str, object]:
        """The counts, and the edges that are there."""
        return {**vars(self.counts), "edges": self._there()}

    def _there(self) -> list[str]:
        return sorted(edge_id for edge_id, peer in self._peers.copy().items() if _age_s(peer) < SILENT_S)

    def run(self) -> None:
        """Receive, send and watch deadlines until stopped."""
        poller = zmq.Poller()
        self._router.register(poller)
        poller.register(self._wake_fd, zmq.POLLIN)
        while not self._stopping.is_set():
            self.pulse.turn()
            ready = dict(poller.poll(self._wait_ms()))
            if self._wake_fd in ready:
                with suppress(BlockingIOError):
                    os.eventfd_read(self._wake_fd)
            self._forget_revoked()
            drained = self._router.socket not in ready or self._receive_some()
            self._router.tend(drained)
            self._take_questions()
            self._send_due()

    def stop(self) -> None:
        """End ``run``; questions that are under way are answered with ``unknown`` by ``close``."""
        self._stopping.set()
        with suppress(OSError):
            os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        """Let go of the socket. Call when ``run`` has ended."""
        self._take_questions()
        for asked in list(self._asked.values()):
            self._resolve(asked, "the host stops")
        self._router.close(0)
        os.close(self._wake_fd)

    def _wait_ms(self) -> int:
        return 20 if self._asked else LOOK_MS

    def _forget_revoked(self) -> None:
        """An edge without authorisation is nobody; the others are there again with their next hello."""
        with suppress(queue.Empty):
            while True:
                gone = self._gone.get_nowait()
                for edge_id in gone:
                    self._peers.pop(edge_id, None)
                for asked in [each for each in self._asked.values() if each.edge_id in gone]:
                    if self._gate is None or not self._gate.authorises(asked.edge_id):  # not: its key was renewed
                        self._resolve(asked, f"edge {asked.edge_id!r} is no longer authorised")

    def _receive_some(self) -> bool:
        """True: nothing is left."""
        for _ in range(64):
            try:
                got, user_id = self._router.read()
            except zmq.Again:
                return True
            self.counts.received += 1
            try:
                self._hear(got, user_id)
            except Exception as error:  # noqa: BLE001 - whatever a message provokes, the next one must be received
                self.counts.garbage += 1
                self._log.warning("garbage", f"{self.endpoint}: a message was dropped: {str(error)[:200]!r}")
        return False

    def _hear(self, got: list[bytes] | Oversize, user_id: str | None) -> None:
        if isinstance(got, Oversize):
            raise EventError(f"a message of {got.size} bytes in {got.frame_count} frames", "size")
        name = None if self._gate is None else self._gate.name_of(user_id)
        if self._gate is not None and name is None:
            self.counts.revoked_key += 1
            return
        message = from_edge(got[1:])
        if name is not None and message.edge_id != name:
            self.counts.wrong_edge += 1
            self._log.warning("edge", f"{self.endpoint}: edge {name!r} said that it was {message.edge_id!r}; dropped")
            return
        if isinstance(message, Hello):
            self._note_hello(_Peer(got[0], message, time.monotonic_ns()))
        else:
            self._note_reply(message)

    def _note_hello(self, peer: _Peer) -> None:
        edge_id = peer.hello.edge_id
        before = self._peers.get(edge_id)
        if before is None and len(self._peers) >= MAX_EDGES:
            raise EventError(f"more than {MAX_EDGES} edges", "size")
        if before is None or before.hello.run_id != peer.hello.run_id:
            log.info("edge %s is there: recipe %d", edge_id, peer.hello.status.recipe_number)
            if before is not None and before.hello.status.state not in ("stopped", "failed") and _age_s(before) < 0.9:
                self._log.warning("twins", f"two edges call themselves {edge_id!r}; asked is the one that spoke last")
        self._peers[edge_id] = peer
        if before is None or before.route != peer.route:
            for asked in self._asked.values():
                if asked.edge_id == edge_id:
                    asked.send_at_ns = 0

    def _note_reply(self, reply: Reply) -> None:
        asked = self._asked.get(reply.id)
        if asked is None or asked.edge_id != reply.edge_id:
            return  # answered before, or nobody waits any more
        del self._asked[reply.id]
        peer = self._peers.get(reply.edge_id)
        if peer is not None and reply.status is not None:
            self._peers[reply.edge_id] = peer._replace(hello=peer.hello.model_copy(update={"status": reply.status}))
        asked.future.set_result(reply)

    def _take_questions(self) -> None:
        with suppress(queue.Empty):
            while True:
                asked = self._inbox.get_nowait()
                self.counts.asked += 1
                for older in [each for each in self._asked.values() if each.run_id is None and asked.replaces(each)]:
                    self._resolve(older, f"{asked.what} {asked.number or ''} was asked for in its place")
                problem = self._problem(asked)
                self._asked[asked.id] = asked
                if problem is not None:
                    self._resolve(asked, problem)

    def _problem(self, asked: _Asked) -> str | None:
        """Why nobody will ever hear it."""
        if self._gate is not None and not self._gate.authorises(asked.edge_id):
            return f"edge {asked.edge_id!r} is not authorised: flawline keys authorise {asked.edge_id}{PUBLIC}"
        if len(self._asked) >= MAX_ASKED:
            return f"{MAX_ASKED} requests are under way"
        if asked.what == "trigger" and not self.is_there(asked.edge_id):
            return f"edge {asked.edge_id!r} is not connected to {self.endpoint}"
        return None

    def _send_due(self) -> None:
        """Send what is new, send again what was not answered, give up what is past its deadline."""
        now_ns = time.monotonic_ns()
        for asked in list(self._asked.values()):
            peer = self._peers.get(asked.edge_id)
            there = peer is not None and _age_s(peer) <= SILENT_S
            if asked.run_id is None and now_ns > asked.deadline_ns:
                self._resolve(asked, f"edge {asked.edge_id!r} is not connected to {self.endpoint}")
            elif now_ns > asked.deadline_ns + int(GRACE_S * 1e9):
                self._resolve(asked, "no answer by its deadline")
            elif peer is not None and asked.run_id not in (None, peer.hello.run_id):
                self._resolve(asked, "the edge was started anew meanwhile")
            elif peer is not None and there and asked.send_at_ns <= now_ns < asked.deadline_ns:
                self._send(asked, peer)

    def _send(self, asked: _Asked, peer: _Peer) -> None:
        asked.send_at_ns = time.monotonic_ns() + int(RESEND_S * 1e9)
        try:
            self._router.socket.send_multipart([peer.route, *encode(asked.request(peer))], zmq.NOBLOCK)
        except zmq.ZMQError:  # gone: sent when it says hello again
            return
        asked.run_id = peer.hello.run_id

    def _resolve(self, asked: _Asked, reason: str) -> None:
        """Answer a question that no edge answers: refused where none has heard it."""
        self._asked.pop(asked.id, None)
        heard = asked.run_id is not None
        outcome, text = ("unknown", f"{reason}; it may or may not have been done") if heard else ("refused", reason)
        self.counts.unanswered += 1
        self._log.warning("unanswered", f"edge {asked.edge_id}: {asked.what} {asked.number or ''}: {text}")
        asked.future.set_result(Reply(id=asked.id, edge_id=asked.edge_id[:100], outcome=outcome, reason=text))


def _age_s(peer: _Peer) -> float:
    return (time.monotonic_ns() - peer.arrived_ns) / 1e9
