"""Group commit: what arrived while the disk was busy goes in one transaction, then acknowledgements leave (hop 8).

The only thread that touches the Store. A failing disk is tried again for ever, nothing is acknowledged meanwhile.
"""

from __future__ import annotations

import collections
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Literal, NamedTuple, TypeVar

import sqlalchemy as sa

from contract.overseer import Pulse
from plugin.database import blames_the_event, short
from plugin.errors import FlawlineError, ReviewError
from plugin.logs import LimitedLog
from plugin.store import Outcome, Received, Store

MAX_BATCH = 256
MAX_WAITING = 16384
EDGE_SHARE = 0.75
"""Of the backlog that one edge may fill: whatever it sends, there is room for the others."""

PATIENCE_S = 0.02
"""Fewer commits leave the processor and the disk to the line's ledger; acknowledgements have this much time."""

RETRY_S = 0.5
IDLE_S = 1.0
COMMIT_S = 120.0
"""Longest time of one commit, with all its pictures, that is not taken for a hang."""

JOB_S = 1800.0
"""The same for one job; a backup or an export of years takes its time."""

LEDGER_WAIT_S = 1.0
log = logging.getLogger(__name__)
Value = TypeVar("Value")


class Verdicted(NamedTuple):
    """What to answer for one event: acknowledged, or refused with a code and a sentence."""

    route: bytes
    spool_id: str
    seq: int
    refused: tuple[Literal["schema", "identity"], str] | None


class Writer:
    """``offer`` events, ``call`` for small jobs; ``reply`` is called on the writer's thread after the commit."""

    def __init__(
        self,
        store: Store,
        ledger_has: Callable[[int, float], bool],
        backlog_bytes: int = 256 << 20,
    ) -> None:
        self._store = store
        self._ledger_has = ledger_has
        self._backlog_bytes = backlog_bytes
        self._items: collections.deque[Received] = collections.deque()
        self._jobs: collections.deque[tuple[Callable[[Store], Any], Future[Any]]] = collections.deque()
        self._bytes = 0
        self._of_edge: collections.Counter[str] = collections.Counter()
        self._count_of_edge: collections.Counter[str] = collections.Counter()
        self._changed = threading.Condition()
        self._stopping = False
        self._log = LimitedLog(log)
        self.trouble: str | None = None
        self.conflicts = 0
        self.pulse = Pulse("writer")

    def offer(self, items: Sequence[Received]) -> int:
        """Queue events for commit; returns how many found room (the edge will send the others again)."""
        taken = 0
        with self._changed:
            for item in items:
                size = _size(item)
                if self._stopping or len(self._items) >= MAX_WAITING or self._bytes + size > self._backlog_bytes:
                    continue
                edge_id = item.identity[0]
                if self._of_edge[edge_id] and self._of_edge[edge_id] + size > EDGE_SHARE * self._backlog_bytes:
                    continue
                if self._count_of_edge[edge_id] >= EDGE_SHARE * MAX_WAITING:
                    continue
                self._items.append(item)
                self._bytes += size
                self._of_edge[edge_id] += size
                self._count_of_edge[edge_id] += 1
                taken += 1
            if len(self._items) == taken or len(self._items) >= MAX_BATCH:
                self._changed.notify()
        return taken

    def waiting(self) -> tuple[int, int]:
        """Events that wait for their commit, and their bytes."""
        with self._changed:
            return len(self._items), self._bytes

    def call(self, job: Callable[[Store], Value], timeout_s: float = 5.0) -> Value:
        """Run ``job`` between two commits on the writer's thread and return its value or raise its error.

        Raises TimeoutError where it could not begin in time; it is then never run.
        """
        future: Future[Value] = Future()
        with self._changed:
            if self._stopping:
                raise ReviewError("the host is stopping; nothing was written")
            self._jobs.append((job, future))
            self._changed.notify()
        try:
            return future.result(timeout_s)
        except TimeoutError:
            if future.cancel():
                raise
            return future.result(timeout_s)  # it began just now: its end is near, and it must not be denied

    def stop(self) -> None:
        """Take nothing more; ``run`` returns when what it has is committed, or at once while the disk fails."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def run(self, reply: Callable[[list[Verdicted]], None]) -> None:
        """Commit until stopped, then close the store. ``reply`` gets one answer for each event that the disk has."""
        try:
            while True:
                batch, jobs, stopping = self._next()
                for job, future in jobs:
                    self.pulse.turn(JOB_S)
                    _run_job(job, future, self._store)
                if (batch and not self._commit(batch, reply)) or (stopping and not batch):
                    return
        finally:
            self.stop()
            for _, future in self._next()[1]:
                future.set_exception(ReviewError("the host is stopping; nothing was written"))
            self._store.close()

    def _next(self) -> tuple[list[Received], list[tuple[Callable[[Store], Any], Future[Any]]], bool]:
        with self._changed:
            while not (self._items or self._jobs or self._stopping):
                self.pulse.turn()
                self._changed.wait(IDLE_S)
            self._changed.wait_for(lambda: self._jobs or self._stopping or len(self._items) >= MAX_BATCH, PATIENCE_S)
            batch = [self._items.popleft() for _ in range(min(MAX_BATCH, len(self._items)))]
            for item in batch:
                self._bytes -= _size(item)
                self._of_edge[item.identity[0]] -= _size(item)
                self._count_of_edge[item.identity[0]] -= 1
            if not self._items:
                self._count_of_edge.clear()
                self._of_edge.clear()  # without keys anybody may invent edges
            jobs = list(self._jobs)
            self._jobs.clear()
            return batch, jobs, self._stopping

    def _commit(self, batch: list[Received], reply: Callable[[list[Verdicted]], None]) -> bool:
        """Commit ``batch``, again and again while the disk refuses; False where stopped meanwhile."""
        while True:
            self.pulse.turn(COMMIT_S)
            try:
                answers = self._committed(batch, self._store.commit(batch))
            except (ValueError, OverflowError, OSError, FlawlineError, sa.exc.SQLAlchemyError) as error:
                if not blames_the_event(error):
                    self.trouble = f"the store cannot be written ({short(error)}); nothing is acknowledged until it can"
                    self._log.warning("disk", self.trouble)
                    if self._wait_or_stop():
                        return False
                    continue
                answers = self._one_by_one(batch)
            break
        self.trouble = None
        # The line's ledger commits on its own; an acknowledged event must stand in both.
        if self._ledger_has(max(item.ticket for item in batch), LEDGER_WAIT_S):
            reply(answers)
        else:
            self._log.warning("ledger", "the ledger lags; events are not acknowledged and will be sent again")
        return True

    def _committed(self, batch: list[Received], outcomes: list[Outcome]) -> list[Verdicted]:
        answers = []
        for item, outcome in zip(batch, outcomes, strict=True):
            _, spool_id, seq = item.identity
            refused: tuple[Literal["schema", "identity"], str] | None = None
            if outcome == "conflict":
                self.conflicts += 1
                refused = ("identity", f"another event already stands under {spool_id[:40]}/{seq}")
            answers.append(Verdicted(item.route, spool_id, seq, refused))
        return answers

    def _one_by_one(self, batch: list[Received]) -> list[Verdicted]:
        """One event that the database cannot hold must not keep the others waiting for ever."""
        answers = []
        for item in batch:
            self.pulse.turn(COMMIT_S)
            try:
                answers += self._committed([item], self._store.commit([item]))
            except (ValueError, OverflowError, OSError, FlawlineError, sa.exc.SQLAlchemyError) as error:
                self._log.warning("unstorable", f"an event cannot be stored: {short(error)}")
                if not blames_the_event(error):
                    continue  # the disk's trouble, not the event's: unanswered, so it is sent again
                _, spool_id, seq = item.identity
                answers.append(Verdicted(item.route, spool_id, seq, ("schema", f"cannot be stored: {short(error)}")))
        return answers

    def _wait_or_stop(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping, RETRY_S)
            return self._stopping


def _run_job(job: Callable[[Store], Any], future: Future[Any], store: Store) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(job(store))
    except Exception as error:  # noqa: BLE001 - whatever it is belongs to the caller, who waits for it
        future.set_exception(error)


def _size(item: Received) -> int:
    return len(item.header) + sum(map(len, item.message.parts))
