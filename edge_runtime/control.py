"""The edge's end of the control socket: takes requests, loads recipes beside the station, answers (beside hop 6).

The station does what is asked, between two parts; this thread never touches a part.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, Protocol

import zmq

from contract.control import HELLO_S, MAX_BYTES, Hello, Outcome, Part, Reply, Request, Status, encode, from_host
from contract.errors import EventError, FlawlineError
from contract.overseer import Pulse
from edge_runtime.link import Keys, Link
from edge_runtime.recipes import Judge

REMEMBERED = 4096
"""Idempotency keys that are known again."""

MAX_ORDERS = 64
TROUBLE_S = 1.0
log = logging.getLogger(__name__)


class Order(NamedTuple):
    """What the station is to do between two parts; ``judge``: the recipe to go on with, ready."""

    request: Request
    judge: Judge | None

    @property
    def late(self) -> bool:
        """Whether it must not be done any more."""
        return time.monotonic_ns() > self.request.deadline_ns


class Orders(Protocol):
    """Where the station learns what is asked of it, and tells what came of it; called from the station's thread."""

    @property
    def trouble(self) -> str | None:
        """Why whoever may ask cannot; None where nothing is wrong."""

    def show(self, status: Status) -> None:
        """How the edge is now."""

    def orders(self) -> list[Order]:
        """What has come since the last call, in order."""

    def finish(self, order: Order, problem: str | None = None) -> None:
        """The order was done; with ``problem`` it was not, and why."""

    def serve_triggers(self, take: TakeTrigger) -> None:
        """Parts that are asked for go to ``take``."""


class TakeTrigger(Protocol):
    """Records a part that was asked for; the ids of its events. Raises FlawlineError where it cannot."""

    def __call__(self, part: Part, arrived_ns: int) -> tuple[str, ...]: ...


class Control:
    """A thread that owns the DEALER. The station calls ``show``, ``orders`` and ``finish`` from its own."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        keys: Keys | None,
        edge_id: str,
        run_id: str,
        load: Callable[[int], Judge],
    ) -> None:
        self._context = context
        self._endpoint = endpoint
        self._keys = keys
        self._edge_id = edge_id
        self._run_id = run_id
        self._load = load
        self.pulse = Pulse("control")
        self._status: Status | None = None
        self._connection: Link | None = None
        self._orders: queue.Queue[Order] = queue.Queue(MAX_ORDERS)
        self._outcomes: queue.SimpleQueue[tuple[Request, Outcome, str | None]] = queue.SimpleQueue()
        self._doing: set[str] = set()
        self._done: OrderedDict[str, Reply] = OrderedDict()
        self._loading: int | None = None
        self._take_trigger: TakeTrigger | None = None
        self._stopping = threading.Event()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self._next_hello = 0.0
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)

    @property
    def trouble(self) -> str | None:
        """Why the host does not let this edge in; None where it does, or is merely away."""
        return None if self._connection is None else self._connection.trouble

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Answer what the station has finished, take nothing more."""
        self._stopping.set()
        self._wake()
        self._thread.join(timeout=5)

    def serve_triggers(self, take: TakeTrigger) -> None:
        """What records a part that the host asks for; it is called on this object's thread."""
        self._take_trigger = take

    def show(self, status: Status) -> None:
        """How the edge is now; told with the next hello and reply."""
        self._status = status

    def orders(self) -> list[Order]:
        """What has come since the last call, in order."""
        found: list[Order] = []
        with suppress(queue.Empty):
            while True:
                found.append(self._orders.get_nowait())
        return found

    def finish(self, order: Order, problem: str | None = None) -> None:
        """The order was done; with ``problem`` it was not, and why."""
        self._conclude(order.request, problem)

    def _conclude(self, request: Request, problem: str | None) -> None:
        self._outcomes.put((request, "ok" if problem is None else "refused", problem))
        self._wake()

    def _wake(self) -> None:
        with suppress(OSError):  # closed: the edge ends
            os.eventfd_write(self._wake_fd, 1)

    def _run(self) -> None:
        connection = Link(self._context, self._endpoint, self._keys, 64, MAX_BYTES)
        self._connection = connection
        poller = zmq.Poller()
        connection.register(poller)
        poller.register(self._wake_fd, zmq.POLLIN)
        try:
            while not self._stopping.is_set():
                self.pulse.turn()
                try:
                    self._turn(connection, poller)
                except Exception:  # whatever one request provokes, the next one is taken
                    log.exception("the control socket goes on after")
                    self._stopping.wait(TROUBLE_S)
            self._reply_to_finished(connection)
        finally:
            connection.close(linger_ms=200)
            os.close(self._wake_fd)

    def _turn(self, connection: Link, poller: zmq.Poller) -> None:
        hello_ms = int((self._next_hello - time.monotonic()) * 1000) + 1
        ready = dict(poller.poll(min(max(1, hello_ms), connection.look_ms)))
        if self._wake_fd in ready:
            with suppress(BlockingIOError):
                os.eventfd_read(self._wake_fd)
        if connection.socket in ready:
            self._receive(connection)
        if connection.tend():
            self._next_hello = 0.0  # a host that we just reached must not wait to know us
        self._reply_to_finished(connection)
        self._say_hello(connection)

    def _say_hello(self, connection: Link) -> None:
        if self._status is None or time.monotonic() < self._next_hello:
            return
        self._next_hello = time.monotonic() + HELLO_S
        status = self._status.model_copy(update={"loading": self._loading})
        hello = Hello(edge_id=self._edge_id, run_id=self._run_id, t_sent_ns=time.monotonic_ns(), status=status)
        _send(connection, hello)

    def _receive(self, connection: Link) -> None:
        while True:
            try:
                frames = connection.receive()
            except zmq.Again:
                return
            arrived_ns = time.monotonic_ns()
            try:
                request = from_host(frames)
            except EventError as error:
                log.warning("the host's request is not understood: %s", error)
                continue
            reply = self._take(request, arrived_ns)
            if reply is not None:
                _send(connection, reply)

    def _take(self, request: Request, arrived_ns: int) -> Reply | None:
        """A reply where it can be given at once; what was asked before is not done again."""
        key = request.idempotency_key
        if key in self._done:
            return self._done[key].model_copy(update={"id": request.id})
        if key in self._doing:
            return None  # answered when it is finished
        problem = self._problem(request)
        if problem is not None:
            return self._remember(request, "refused", problem)
        if request.what == "status":
            return self._reply(request, "ok", None)
        if request.what == "trigger":
            return self._trigger(request, arrived_ns)
        if request.what == "recipe" and self._is_active(request.number):
            return self._remember(request, "ok", None)
        self._doing.add(key)
        log.info("the host asks: %s %s", request.what, request.number or "")
        if request.what == "recipe":
            self._loading = request.number
            threading.Thread(target=self._prepare, args=(request,), name="recipe", daemon=True).start()
        else:
            self._put(Order(request, None))
        return None

    def _trigger(self, request: Request, arrived_ns: int) -> Reply:
        """Done here and now: a part that was asked for must not wait until the one before it is inspected."""
        if self._take_trigger is None:
            return self._remember(request, "refused", "this edge takes no triggers")
        try:
            part_ids = self._take_trigger(request.part or Part(), arrived_ns)
        except FlawlineError as error:
            return self._remember(request, "refused", str(error))
        return self._remember(request, "ok", None, part_ids)

    def _problem(self, request: Request) -> str | None:
        """Why a request is not done, known at once."""
        if request.run_id != self._run_id:
            return "the edge was started anew since it was asked"
        if time.monotonic_ns() > request.deadline_ns:
            return "it arrived after its deadline"
        if self._status is None:
            return "the edge is not ready yet"
        if request.what == "recipe":
            if request.number is None:
                return "no recipe number was given"
            if request.number not in self._status.recipes:
                return f"no recipe {request.number}; there are: {', '.join(map(str, self._status.recipes))}"
            if self._loading is not None:
                return f"recipe {self._loading} is being loaded; ask again when it is active"
        return None

    def _is_active(self, number: int | None) -> bool:
        return self._status is not None and self._status.recipe_number == number

    def _prepare(self, request: Request) -> None:
        """Load, warm up and prove a recipe while the old one goes on."""
        try:
            self._put(Order(request, self._load(request.number or 1)))
        except FlawlineError as error:
            self._conclude(request, f"recipe {request.number} cannot be used: {error}")
        except Exception as error:
            log.exception("recipe %s", request.number)
            self._conclude(request, f"recipe {request.number} cannot be used: {type(error).__name__}: {error}")

    def _put(self, order: Order) -> None:
        try:
            self._orders.put_nowait(order)
        except queue.Full:
            if order.judge is not None:
                order.judge.engine.close()
            self._conclude(order.request, "too many requests wait")

    def _reply_to_finished(self, connection: Link) -> None:
        with suppress(queue.Empty):
            while True:
                request, outcome, reason = self._outcomes.get_nowait()
                if request.what == "recipe":
                    self._loading = None
                self._doing.discard(request.idempotency_key)
                _send(connection, self._remember(request, outcome, reason))
                self._next_hello = 0.0

    def _remember(
        self, request: Request, outcome: Outcome, reason: str | None, part_ids: tuple[str, ...] = ()
    ) -> Reply:
        reply = self._reply(request, outcome, reason).model_copy(update={"part_ids": part_ids})
        if outcome == "refused":
            log.warning("the host asked: %s %s; refused: %s", request.what, request.number or "", reply.reason)
        self._done[request.idempotency_key] = reply
        if len(self._done) > REMEMBERED:
            self._done.popitem(last=False)
        return reply

    def _reply(self, request: Request, outcome: Outcome, reason: str | None) -> Reply:
        text = None if reason is None else reason[:500]
        return Reply(id=request.id, edge_id=self._edge_id, outcome=outcome, reason=text, status=self._status)


def _send(connection: Link, message: Hello | Reply) -> None:
    """Best effort: a host that is away asks again."""
    with suppress(zmq.Again):
        connection.socket.send_multipart(encode(message), zmq.NOBLOCK)
