"""Takes orders from this box as well as from the host: a socket in the state folder (beside hop 6).

``flawline edge update`` asks here for a slot to take over; no host is needed. The recipe is loaded and proven by a
thread while the old one goes on, and the station obeys between two parts, by the same orders as the host's. A message
is one line of JSON each way. Whoever may write in the state folder may ask.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from contract.config import Strict
from contract.control import Outcome, Request, Status
from contract.errors import FlawlineError
from edge_runtime.control import Control, Order, TakeTrigger
from edge_runtime.recipes import Judge, load_judge
from edge_runtime.settings import EdgeSettings
from edge_runtime.slots import in_slot, slots_of

SOCKET = "desk.sock"
MAX_BYTES = 16 << 10
MAX_CALLERS = 4
PATIENCE_S = 5.0
"""For a line of a caller who has connected."""

log = logging.getLogger(__name__)


class Call(Strict):
    """What a command on this box asks."""

    what: Literal["status", "update"]
    number: Annotated[int, Field(ge=1, le=65535)] = 1
    slot: Path = Path()
    within_s: float = Field(600.0, gt=0, le=86_400)


class Answer(Strict):
    """``ok``, ``refused`` with the reason, or ``unknown``; ``state`` is empty before the station turns."""

    outcome: Outcome
    reason: str | None = None
    state: str = ""
    recipe_number: int = 0
    bundle_id: str = ""


class Desk:
    """All that the station is asked: by the host through ``control``, and by commands on this box."""

    def __init__(
        self,
        settings: EdgeSettings,
        run_id: str,
        control: Control | None = None,
        load: Callable[[EdgeSettings, int], Judge] = load_judge,
    ) -> None:
        self._settings = settings
        self._run_id = run_id
        self._control = control
        self._load = load
        self._status: Status | None = None
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._answers: dict[str, queue.SimpleQueue[str | None]] = {}
        self._updating = threading.Lock()
        self._callers = threading.BoundedSemaphore(MAX_CALLERS)
        self._stopping = threading.Event()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="desk", daemon=True)

    @property
    def trouble(self) -> str | None:
        """Why the host does not let this edge in; None where it does, or is merely away."""
        return None if self._control is None else self._control.trouble

    def show(self, status: Status) -> None:
        """How the edge is now."""
        self._status = status
        if self._control is not None:
            self._control.show(status)

    def serve_triggers(self, take: TakeTrigger) -> None:
        """Parts that the host asks for go to ``take``."""
        if self._control is not None:
            self._control.serve_triggers(take)

    def orders(self) -> list[Order]:
        """What was asked since the last call, from either side."""
        found = [] if self._control is None else self._control.orders()
        with suppress(queue.Empty):
            while True:
                found.append(self._orders.get_nowait())
        return found

    def finish(self, order: Order, problem: str | None = None) -> None:
        """The order was done; with ``problem`` it was not, and why."""
        asked = self._answers.get(order.request.id)
        if asked is not None:
            asked.put(problem)
        elif self._control is not None:
            self._control.finish(order, problem)

    def start(self) -> None:
        """Listen in the state folder, which this edge alone uses; where that cannot be, the line runs all the same."""
        path = self._settings.state_dir / SOCKET
        try:
            path.unlink(missing_ok=True)
            with _short(path) as address:
                self._socket.bind(address)
            path.chmod(0o600)
            self._socket.listen(MAX_CALLERS)
        except OSError as error:
            log.error("%s: no socket can be made (%s), so `flawline edge update` cannot ask this edge", path, error)
            return
        self._thread.start()

    def stop(self) -> None:
        """Hear nobody any more; who waits learns that the edge ends."""
        self._stopping.set()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        for asked in list(self._answers.values()):
            asked.put("the edge ends")
        if self._thread.ident is not None:
            self._thread.join(5)
        self._socket.close()
        with suppress(OSError):
            (self._settings.state_dir / SOCKET).unlink()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                caller, _ = self._socket.accept()
            except OSError:
                if not self._stopping.wait(1.0):
                    continue
                return
            if self._callers.acquire(blocking=False):
                threading.Thread(target=self._hear, args=(caller,), name="caller", daemon=True).start()
            else:
                caller.close()

    def _hear(self, caller: socket.socket) -> None:
        try:
            with caller:
                caller.settimeout(PATIENCE_S)
                answer = self._answer(_read_line(caller))
                caller.sendall(answer.model_dump_json().encode() + b"\n")
        except OSError:
            pass  # gone: whoever asked does not wait any more
        except Exception:  # whatever one caller provokes, the next one is heard
            log.exception("the desk goes on after")
        finally:
            self._callers.release()

    def _answer(self, line: bytes) -> Answer:
        try:
            call = Call.model_validate_json(line)
        except ValidationError as error:
            return self._say("refused", f"not understood: {error.errors()[0]['msg']}")
        if call.what == "status":
            return self._say("ok", None)
        if not self._updating.acquire(blocking=False):
            return self._say("refused", "another update is under way")
        try:
            problem = self._update(call)
        except FlawlineError as error:
            problem = str(error)
        except Exception as error:
            log.exception("update of recipe %d", call.number)
            problem = f"{type(error).__name__}: {error}"
        finally:
            self._updating.release()
        if problem is not None:
            log.warning("the update of recipe %d is refused: %s", call.number, problem)
        return self._say("ok" if problem is None else "refused", problem)

    def _say(self, outcome: Outcome, reason: str | None) -> Answer:
        status = self._status
        if status is None:
            return Answer(outcome=outcome, reason=reason)
        return Answer(
            outcome=outcome,
            reason=reason,
            state=status.state,
            recipe_number=status.recipe_number,
            bundle_id=status.bundle_id,
        )

    def _update(self, call: Call) -> str | None:
        """Load, warm up and prove a slot while the old one goes on, and have the station take it over."""
        start_ns = time.monotonic_ns()
        if (problem := self._foreign(call)) is not None:
            return problem
        log.info("update of recipe %d: %s is loaded and proven", call.number, call.slot)
        judge = self._load(in_slot(self._settings, call.number, call.slot), call.number)
        judge.slot = call.slot
        request = Request(
            id=f"desk-{uuid.uuid4().hex}",
            idempotency_key=uuid.uuid4().hex,
            run_id=self._run_id,
            hello_ns=start_ns,
            deadline_after_hello_ms=call.within_s * 1000,
            what="recipe",
            number=call.number,
        )
        done: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._answers[request.id] = done
        try:
            if self._stopping.is_set():
                return "the edge ends"
            self._orders.put(Order(request, judge))
            return done.get()
        finally:
            del self._answers[request.id]

    def _foreign(self, call: Call) -> str | None:
        """Why a slot is none of this run's, which may have been started with another edge.toml."""
        link = slots_of(self._settings, call.number)
        if call.slot.parent.resolve() == link.root.resolve() and call.slot.name == link.idle:
            return None
        idle = link.path(link.idle)
        return f"{call.slot} is not the idle slot of recipe {call.number}, {idle}; was edge.toml changed?"


def ask(state_dir: Path, timeout_s: float, **call: Any) -> Answer | None:
    """Ask the edge that runs on ``state_dir``; None where none listens, ``unknown`` where no answer came in time."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as desk:
        desk.settimeout(timeout_s)
        try:
            with _short(state_dir / SOCKET) as address:
                desk.connect(address)
        except OSError:
            return None
        try:
            desk.sendall(json.dumps(call, default=str).encode() + b"\n")
            return Answer.model_validate_json(_read_line(desk))
        except (OSError, ValidationError) as error:
            why = str(error) if isinstance(error, OSError) else "the edge ended meanwhile"
            return Answer(outcome="unknown", reason=why)


def _read_line(connection: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n") and len(line) <= MAX_BYTES:
        piece = connection.recv(4096)
        if not piece:
            break
        line += piece
    return line


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """An address for ``path``, however long it is: a socket's holds 107 bytes."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
