"""One number for each part on each line, committed before it is published, published at most once ever (hop 9).

A trigger opens a part; its verdict, or else its deadline, closes it with the next number. What comes after the
deadline is recorded and never dispatched, and so is a deadline of long ago. A part that the line controller counted is
open too, until an edge announces it: nobody has to trust that edges see everything. The ledger is a small SQLite file
of its own and waits for no store.
"""

from __future__ import annotations

import collections
import errno
import heapq
import json
import logging
import queue
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from contract.event import Header, LineCode, Missed, Result, State, Trigger, Verdict
from contract.overseer import Pulse
from plugin.checkpoint import Checkpointer, without_checkpoints
from plugin.connectors.base import LINE_CONTROLLER, GateOutcome, LineOutput, LineState
from plugin.dispatch import Sent
from plugin.durability import LOCK_S, LogSync, empty_log, first_number, is_log_failure, sync
from plugin.errors import ConfigError, LineError
from plugin.lines import TABLES as LINE_TABLES
from plugin.lines import Asked, Gated, Judging, Lines, Order, Part, check_gated, checked
from plugin.logs import LimitedLog
from plugin.matching import Row, Seen
from plugin.renumber import not_before_ns
from plugin.settings import LineSettings
from plugin.transit import Arrival

SCHEMA_VERSION = 3
MAX_WAITING = 65536
MAX_EDGES = 1024
MAX_OF_EDGE = 8192
"""Of those one edge's: twice the largest window, so that one that sends without measure neither takes the room of the
others nor lets them wait for long."""

BURST = 512
RETRY_S = 0.25
IDLE_S = 5.0
DISK_S = 30.0
"""Longest time of one turn, waiting for the file's lock included, that is not taken for a hang."""

STALLED_NS = 10**9
"""A turn that has lasted this long has ended the lines' heartbeat: what their parts are is not told meanwhile."""

PATIENCE_S = 0.01
"""What nobody waits for, announcements and outcomes, is committed together with what comes so soon after it."""

NEAR_S = 3 * PATIENCE_S
GRACE_NS = 10**9
"""A deadline that ran out longer ago than this, or than the line's deadline where that is longer, is not published."""

LONG_AGO_NS = 3600 * 10**9
FLOODED_NS = 10**9
MAX_COUNTED = 64
"""Parts of a line that its controller counted and no edge announced, waiting for their deadline."""

CHALLENGES = 20
UNANNOUNCED = "the line controller counted a part that no edge announced"
CODES = {
    Verdict.PASS: LineCode.PASS,
    Verdict.REJECT: LineCode.REJECT,
    Verdict.REVIEW: LineCode.REVIEW,
    Verdict.NOT_INSPECTED: LineCode.NOT_INSPECTED,
}
log = logging.getLogger(__name__)

_TABLES = """
CREATE TABLE IF NOT EXISTS outputs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    line TEXT NOT NULL,
    number INTEGER NOT NULL,
    edge_id TEXT NOT NULL,
    part_id TEXT NOT NULL,
    camera_id TEXT NOT NULL,
    trigger_id INTEGER NOT NULL,
    code INTEGER NOT NULL,
    source TEXT NOT NULL,
    reason TEXT,
    outcome TEXT NOT NULL,
    age_ms REAL NOT NULL,
    t_wall_ns INTEGER NOT NULL,
    counter INTEGER,
    model TEXT,
    held TEXT,
    UNIQUE (line, number),
    UNIQUE (edge_id, part_id)
);
CREATE INDEX IF NOT EXISTS outputs_committed ON outputs (id) WHERE outcome = 'committed';
CREATE TABLE IF NOT EXISTS open_parts (
    edge_id TEXT NOT NULL,
    part_id TEXT NOT NULL,
    line TEXT NOT NULL,
    camera_id TEXT NOT NULL,
    trigger_id INTEGER NOT NULL,
    t_capture_ns INTEGER NOT NULL,
    due_ns INTEGER NOT NULL,
    boot_id TEXT NOT NULL,
    PRIMARY KEY (edge_id, part_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS late (
    edge_id TEXT NOT NULL,
    part_id TEXT NOT NULL,
    code INTEGER NOT NULL,
    reason TEXT,
    age_ms REAL NOT NULL,
    t_wall_ns INTEGER NOT NULL,
    PRIMARY KEY (edge_id, part_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sends (
    line TEXT NOT NULL,
    number INTEGER NOT NULL,
    connector TEXT NOT NULL,
    outcome TEXT NOT NULL,
    detail TEXT,
    t_wall_ns INTEGER NOT NULL,
    PRIMARY KEY (line, number, connector)
) WITHOUT ROWID;
"""

LATER = {"counter": "INTEGER", "model": "TEXT", "held": "TEXT"}
"""Columns of ``outputs`` that came after the first version."""

_SELECT = """
SELECT o.id, o.line, o.number, o.edge_id, o.part_id, o.camera_id, o.trigger_id, o.code, o.source, o.reason, o.outcome,
       o.age_ms, o.t_wall_ns, o.counter, o.model, o.held, l.code AS late_code, l.age_ms AS late_age_ms,
       (SELECT min(t_wall_ns) FROM sends s WHERE s.line = o.line AND s.number = o.number AND s.outcome = 'published')
           AS t_published_ns,
       (SELECT json_extract(j.detail, '$.outcome') FROM journal j
        WHERE j.kind = 'gate' AND j.line = o.line AND j.number = o.number ORDER BY j.id DESC LIMIT 1) AS gate
FROM outputs o LEFT JOIN late l ON l.edge_id = o.edge_id AND l.part_id = o.part_id
"""


Key = tuple[str, str]


class Told(NamedTuple):
    """A header as the receiver decoded it: its age at arrival, and when that was (CLOCK_MONOTONIC)."""

    header: Trigger | Result | Missed
    age_ms: float
    arrived_ns: int

    @property
    def key(self) -> Key:
        return self.header.edge_id, self.header.part_id


class Counted(NamedTuple):
    """The line controller's counter went on to each of ``counters``; one write told so at ``t_ns``, CLOCK_MONOTONIC."""

    line: LineSettings
    counters: tuple[int, ...]
    t_ns: int


class OpenPart(NamedTuple):
    """A part that was announced and has no verdict yet; ``due_ns`` and ``captured_ns`` are CLOCK_MONOTONIC."""

    line: str
    camera_id: str
    trigger_id: int
    captured_ns: int
    due_ns: int


Item = Told | Counted | Sent | Gated | Judging | Order


class Ledger:
    """``tell`` events from the receiver, ``record`` outcomes from connectors; ``run`` on a thread of its own."""

    def __init__(
        self,
        path: Path,
        line_of: Callable[[str], LineSettings],
        lines: Sequence[LineSettings] = (),
        rows_before: int = 0,
    ) -> None:
        """``rows_before``: the last row of a journal that the store knows, of another ledger perhaps."""
        self.path = path
        self.journaled = threading.Event()
        """Set whenever the journal has grown."""

        self.lost = 0
        self.skipped = 0
        self.pulse = Pulse("ledger")
        self._line_of = line_of
        self._boot_id = _boot_id()
        self._inbox: queue.SimpleQueue[Sequence[Item]] = queue.SimpleQueue()
        self._log = LimitedLog(log)
        self._closing = False
        self._stopping = False
        self._stale = False
        self._trouble: str | None = None
        self._torn: Exception | None = None
        self._tearing = threading.Lock()
        self._mend_ns = 0
        self._turned_ns: int | None = None
        self._idle = threading.Event()
        self._tickets = 0
        self._done = 0
        self._count_of_edge: collections.Counter[str] = collections.Counter()
        self._progress = threading.Condition()
        self._dispatch: Callable[[Sequence[LineOutput]], None] = lambda _outputs: None
        self._connected: Callable[[str], bool] = lambda _line: False
        self._open: dict[Key, OpenPart] = {}
        self._due: list[tuple[int, Key]] = []
        self._next: dict[str, int] = {}
        self._counters: dict[Key, int] = {}
        self._counters_before: dict[Key, int] = {}
        self._run_id = secrets.token_hex(4)
        self._counted_so_far = 0
        self._rows: dict[str, Row] = {}
        self._flooded: dict[str, int] = {}
        self._connection = _open_file(path)
        self._lines = Lines(self._connection, lines, rows_before)
        self._line_states: dict[str, LineState] = {}
        self._said: dict[str, Judging] = {}
        self._answers: list[tuple[Order, dict[str, Any] | LineError]] = []
        self._checkpointer = Checkpointer(path, failed=self._tear_and_wake)
        self._log_sync = LogSync(path, self._tear_and_wake)
        try:
            empty_log(self._connection)  # whether the log is torn was known to the last run alone
        except sqlite3.Error as error:
            self._tear(error)
        self._first_number = _first_number(self._connection, path, self._boot_id)
        self._not_before_ns = not_before_ns(self._connection, self._boot_id)
        unknown = self._connection.execute(
            "UPDATE outputs SET outcome = 'unknown' WHERE outcome = 'committed'"
        ).rowcount
        if unknown:
            log.warning(
                "%d output(s) of the last run may or may not have been published; they are not repeated", unknown
            )
        self._load()
        self._connection.execute("BEGIN IMMEDIATE")
        self._lines.restart()
        self._connection.execute("COMMIT")
        self._line_states = self._lines.states()

    @property
    def trouble(self) -> str | None:
        """Why nothing is published now, in words; None where all is well. Asked by any thread."""
        if self._trouble is not None:
            return self._trouble
        if (torn := self._torn) is not None:
            return (
                f"the ledger's disk does not keep what is written ({_said(torn)}); nothing is published until it does"
            )
        began_ns = [ns for ns in (self._turned_ns, self._log_sync.began_ns) if ns is not None]
        lasting_ns = time.monotonic_ns() - min(began_ns) if began_ns else 0
        if lasting_ns > STALLED_NS:
            return (
                f"the ledger's disk has not answered for {lasting_ns / 1e9:.0f} s; nothing is published until it does"
            )
        return None

    def connect(
        self,
        dispatch: Callable[[Sequence[LineOutput]], None],
        connected: Callable[[str], bool],
        edges_of: Callable[[str], list[str]] = lambda _line: [],
    ) -> None:
        """Where outputs go once committed, which lines anyone listens to, each line's edges. Call before ``run``."""
        self._dispatch = dispatch
        self._connected = connected
        self._lines.edges_of = edges_of

    def tell(self, arrivals: Sequence[Arrival]) -> list[int | None]:
        """Say what arrived, when and how old; a ticket for ``has`` for each. One thread calls; never blocks.

        None: there is no room for more, of this edge or of all; leave it unacknowledged, it will be sent again.
        """
        told: list[Told] = []
        tickets: list[int | None] = []
        with self._progress:
            for arrival in arrivals:
                header = arrival.message.header
                if isinstance(header, State):
                    self._note_judging(header)
                if not isinstance(header, Trigger | Result | Missed):
                    tickets.append(self._tickets)
                elif self._is_full(header.edge_id):
                    tickets.append(None)
                else:
                    self._count_of_edge[header.edge_id] += 1
                    self._tickets += 1
                    tickets.append(self._tickets)
                    told.append(Told(header, arrival.age_ms, arrival.arrived_ns))
        if told:
            self._inbox.put(told)
        if lost := tickets.count(None):
            self.lost += lost
            self._log.warning("lost", "the ledger lags; events are left unacknowledged and will be sent again")
        return tickets

    def _is_full(self, edge_id: str) -> bool:
        return self._tickets - self._done >= MAX_WAITING or self._count_of_edge[edge_id] >= MAX_OF_EDGE

    def counted(self, line: LineSettings, counters: tuple[int, ...], t_ns: int) -> None:
        """The line controller saw parts. Called by any thread; never blocks.

        An edge's part is the same one where its capture lies ``trigger_offset_ms`` behind, give or take
        ``trigger_tolerance_ms``, and no other could be meant; without one by the deadline it is NOT_INSPECTED.
        """
        self._inbox.put([Counted(line, counters, t_ns)])

    def state_of(self, line: str) -> LineState:
        """Whether the line is to stop, and how its challenge stands. Asked by any thread."""
        return self._line_states.get(line) or LineState()

    def gate(self, line: str, number: int, outcome: GateOutcome, who: str) -> None:
        """What a sensor behind the gate saw of a part. Called by any thread; never blocks. Raises LineError."""
        check_gated(line, number, outcome, who)
        self._inbox.put([Gated(line, number, outcome, who)])

    def ask(self, line: str, what: Asked, who: str, **values: Any) -> Future[dict[str, Any]]:
        """Ask something of a line; the future ends once it is committed, or with LineError. Called by any thread.

        Raises LineError at once where what is asked makes no sense.
        """
        order = Order(line, what, who, checked(line, what, who, values), Future())
        self._inbox.put([order])
        return order.done

    def _note_judging(self, state: State) -> None:
        """What an edge judges by, where that has changed."""
        if state.model_sha256 is None:
            return
        cameras = tuple(camera.camera_id for camera in state.cameras)
        line = self._line_of(state.edge_id).id
        now = Judging(line, state.edge_id, state.recipe_number, state.model_sha256, cameras)
        if self._said.get(state.edge_id) != now and (state.edge_id in self._said or len(self._said) < MAX_EDGES):
            self._said[state.edge_id] = now
            self._inbox.put([now])

    def flooded(self, line: str) -> bool:
        """Whether the line controller has just counted more parts than can be under way."""
        return time.monotonic_ns() - self._flooded.get(line, -FLOODED_NS) < FLOODED_NS

    def last_number(self, line: str) -> int:
        """The last number that was committed before ``run``, 0 before the first. Call before ``run``."""
        return self._next.get(line, self._first_number) - 1

    def has(self, ticket: int, timeout_s: float) -> bool:
        """Wait until everything up to ``ticket`` is committed; False where that takes longer."""
        with self._progress:
            return self._progress.wait_for(lambda: self._done >= ticket, timeout_s)

    def record(self, sent: Sent) -> None:
        """Note a connector's outcome. Called by any thread."""
        self._inbox.put([sent])

    def drain(self, timeout_s: float) -> bool:
        """Publish what was told before and no deadline any more; outcomes are noted until ``stop``.

        False where that takes longer. Connectors may be closed afterwards: nothing new goes to them.
        """
        self._closing = True
        self._inbox.put([])
        return self._idle.wait(timeout_s)

    def stop(self) -> None:
        """End ``run`` when what was told before is committed. Parts still open stay open in the file."""
        self._stopping = True
        self._inbox.put([])

    def run(self) -> None:
        """Decide, commit, publish until stopped; then close the file."""
        self._checkpointer.start()
        self._log_sync.start()
        try:
            while True:
                self.pulse.turn(DISK_S)
                closing = self._closing  # read first: all of the turn that follows is then without deadlines
                batch = self._gather()
                self._turned_ns = time.monotonic_ns()
                if not self._settle(batch):
                    return
                if self._checkpointer.is_due(self._inbox.empty()):
                    self._finish_checkpoint()
                self._turned_ns = None
                if closing and self._inbox.empty():
                    self._idle.set()
                if self._stopping and self._inbox.empty():
                    return
        finally:
            self._checkpointer.stop()
            self._log_sync.stop()
            self._connection.close()

    def _finish_checkpoint(self) -> None:
        try:
            self._checkpointer.finish(self._connection)
        except sqlite3.Error as error:  # what was committed stays in the log; the next commit says what is wrong
            self._tear(error)
            self._log.warning("checkpoint", f"{self.path}: no checkpoint ({error}); the log grows until there is")

    def _gather(self) -> list[Item]:
        """What waits, at once where a judgement is among it: a verdict waits for no commit that could wait for it."""
        try:
            batch = list(self._inbox.get(timeout=self._time_left_s()))
        except queue.Empty:
            return []
        urgent = self._is_urgent(batch)
        patient_until = time.monotonic() + PATIENCE_S
        while len(batch) < BURST:
            wait_s = 0.0 if urgent else min(patient_until - time.monotonic(), self._time_left_s())
            try:
                items = self._inbox.get(timeout=max(0.0, wait_s))
            except queue.Empty:
                break
            urgent = urgent or self._is_urgent(items)
            batch += items
        return batch

    def _is_urgent(self, items: Sequence[Item]) -> bool:
        """Whether a judgement is among them, a part whose deadline is near, or nothing: who stops or drains is next."""
        soon_ns = time.monotonic_ns() + int(NEAR_S * 1e9)
        return not items or any(
            isinstance(item, Told) and (not isinstance(item.header, Trigger) or self._new_part(item).due_ns < soon_ns)
            for item in items
        )

    def _time_left_s(self) -> float:
        """Until the next deadline. While draining there are none; the first turn then must not wait at all."""
        if self._closing:
            return IDLE_S if self._idle.is_set() else 0.0
        longest_s = IDLE_S if self._torn is None else RETRY_S
        due_ns = [self._due[0][0]] if self._due else []
        if (gate_ns := self._lines.next_ns()) is not None:
            due_ns.append(gate_ns)
        return min([longest_s, *(max(0.0, (each - time.monotonic_ns()) / 1e9) for each in due_ns)])

    def _settle(self, batch: list[Item]) -> bool:
        """Commit what ``batch`` and the clock decide, then publish; retry a failing disk until stopped (False)."""
        while True:
            try:
                if self._stale:
                    self._recover()
                outputs = self._decide(batch)
                break
            except sqlite3.Error as error:
                self._trouble = f"the ledger cannot be written ({error}); nothing is published until it can"
                self._log.warning("disk", self._trouble)
                self._stale = True
                if is_log_failure(error):
                    self._tear(error)
                if self._stopping:
                    return False
                self.pulse.turn(DISK_S)  # a disk that refuses is no hang: another start would not mend it
                time.sleep(RETRY_S)
        self._trouble = None
        self._say_lines()
        if outputs:
            self._give_out(outputs)
        else:
            self._log_sync.request()
            self._mend()
        with self._progress:
            told = [item.header.edge_id for item in batch if isinstance(item, Told)]
            self._done += len(told)
            self._count_of_edge -= collections.Counter(told)  # without keys anybody may invent edges: none stays at 0
            self._progress.notify_all()
        return True

    def _say_lines(self) -> None:
        """Before any output of the same transaction: whoever takes a part's code sees how its line stands."""
        if self._lines.changed:
            self._lines.changed = False
            self._line_states = self._lines.states()
            self.journaled.set()
        answers, self._answers = self._answers, []
        for order, answer in answers:
            if isinstance(answer, LineError):
                order.done.set_exception(answer)
            else:
                order.done.set_result(answer)

    def _give_out(self, outputs: list[LineOutput]) -> None:
        """Once the disk has them: what the line was told must still be known after a power cut.

        What the disk refuses is never sent: a second sync would not tell whether it has it.
        """
        try:
            self._keep()
        except (OSError, sqlite3.Error) as error:
            self._refuse(error)
            now_ns = time.time_ns()
            refused = [Sent(each.line, each.number, "ledger", "refused", _said(error), now_ns) for each in outputs]
            self._inbox.put(refused)
        else:
            self._dispatch(outputs)

    def _keep(self) -> None:
        """Wait until the disk has all that was committed; a torn log, as a whole. Raises OSError or sqlite3.Error."""
        torn = self._torn
        others = self._log_sync.begun
        if torn is not None:
            self.pulse.turn(DISK_S)
            empty_log(self._connection)
        sync(self.path)
        self._log_sync.wait(others)
        with self._tearing:
            if self._torn is not None and self._torn is not torn:
                raise OSError(errno.EIO, _said(self._torn))
            self._torn = None

    def _mend(self) -> None:
        """Nobody waits, and no part should have to be refused for the line to learn that the disk is well again."""
        if self._torn is None or time.monotonic_ns() < self._mend_ns:
            return
        try:
            self._keep()
        except (OSError, sqlite3.Error) as error:
            self._refuse(error)

    def _refuse(self, error: Exception) -> None:
        self._tear(error)
        self._mend_ns = time.monotonic_ns() + int(RETRY_S * 1e9)
        self._log.warning("sync", f"{self.path}: the disk does not keep what is written ({_said(error)})")

    def _tear(self, error: Exception) -> None:
        """The log on the disk may lack what SQLite reads from memory: nothing is given out until it began anew."""
        with self._tearing:
            self._torn = error

    def _tear_and_wake(self, error: Exception) -> None:
        """As another thread hears it."""
        self._tear(error)
        self._inbox.put([])

    def _recover(self) -> None:
        """Undo a failed transaction, in the file and in memory."""
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        self._counters = self._counters_before
        self._load()

    def _decide(self, batch: list[Item]) -> list[LineOutput]:
        outputs: list[LineOutput] = []
        self._counters_before = self._counters.copy()
        self._answers = []
        self._connection.execute("BEGIN IMMEDIATE")
        self._lines.look_at_clock()
        for item in batch:
            if isinstance(item, Told):
                self._or_skip(item.key, partial(self._hear, item, outputs))
            elif isinstance(item, Counted):
                for counter in item.counters:
                    key = self._name_counted(item.line)
                    self._or_skip(key, partial(self._count, key, item, counter))
            elif isinstance(item, Gated):
                if not self._lines.gate(item):
                    self._log.warning("gate", f"line {item.line}: {item.outcome} of no. {item.number}, which is none")
            elif isinstance(item, Judging):
                self._lines.judging(item)
            elif isinstance(item, Order) and _is_wanted(item):
                self._answers.append((item, self._do(item)))
        self._write_sent([item for item in batch if isinstance(item, Sent)])
        now_ns = time.monotonic_ns()
        while self._due and self._due[0][0] <= now_ns and not self._closing:
            due_ns, key = heapq.heappop(self._due)
            part = self._open.get(key)
            if part is not None and part.due_ns == due_ns:
                self._or_skip(key, partial(self._close_at_deadline, key, part, outputs))
        if not self._closing:
            self._lines.tick(now_ns)
        self._lines.save()
        self._connection.execute("COMMIT")
        self._lines.committed()
        return outputs

    def _do(self, order: Order) -> dict[str, Any] | LineError:
        try:
            return self._lines.order(order)
        except LineError as error:
            return error

    def _or_skip(self, key: Key, work: Callable[[], None]) -> None:
        """Do the work for one part; a part that the file's constraints refuse keeps no other waiting."""
        try:
            work()
            return
        except sqlite3.IntegrityError:
            self._next = self._read_numbers()  # another hand may have written to the file: once more
        try:
            work()
        except sqlite3.IntegrityError as error:
            self.skipped += 1
            self._log.warning("skipped", f"part {key[1]!r} of {key[0]!r} cannot be numbered and is left out: {error}")
            self._open.pop(key, None)
            self._counters.pop(key, None)
            self._connection.execute("DELETE FROM open_parts WHERE edge_id = ? AND part_id = ?", key)

    def _hear(self, told: Told, outputs: list[LineOutput]) -> None:
        header, key = told.header, told.key
        source = self._source_of(key)
        if source is not None:
            if source == "deadline" and not isinstance(header, Trigger):
                self._write_late(told)
            return
        as_told = self._new_part(told)
        part = self._open.get(key)
        announced = part is not None
        if part is None:
            part = as_told
            self._find_counter(key, part)
            self._lines.announced(part.line, key, part.camera_id, part.captured_ns, header.serial)
        in_time = time.monotonic_ns() <= min(part.due_ns, as_told.due_ns)  # the older of what was said of its age
        # A ledger from a backup cannot know which parts of before the line was told of.
        in_time = in_time and min(part.captured_ns, as_told.captured_ns) >= self._not_before_ns
        if isinstance(header, Trigger):
            if announced:
                return
            if in_time:
                self._open_part(key, part)
            else:
                self._write_output(
                    key, part, LineCode.NOT_INSPECTED, "deadline", "announced after its deadline", "late"
                )
        elif in_time:
            code = CODES[header.verdict] if isinstance(header, Result) else LineCode.NOT_INSPECTED
            source = "verdict" if isinstance(header, Result) else "missed"
            output = self._write_output(key, part, code, source, header.reason, None, header)
            outputs.append(_judged(output, header))
        elif announced:
            self._close_at_deadline(key, part, outputs)
            self._write_late(told)
        else:
            self._write_output(key, part, LineCode.NOT_INSPECTED, "deadline", "arrived after its deadline", "late")
            self._write_late(told)

    def _new_part(self, told: Told) -> OpenPart:
        header = told.header
        line = self._line_of(header.edge_id)
        captured_ns = told.arrived_ns - int(min(told.age_ms, 1e9) * 1e6)
        due_ns = captured_ns + line.deadline_ms * 1_000_000
        return OpenPart(line.id, header.camera_id, header.trigger_id, captured_ns, due_ns)

    def _name_counted(self, line: LineSettings) -> Key:
        self._counted_so_far += 1
        return LINE_CONTROLLER, f"{line.id}-{self._run_id}-{self._counted_so_far:06d}"

    def _row(self, line: LineSettings) -> Row:
        return self._rows.setdefault(line.id, Row(line.trigger_tolerance_ms * 1_000_000))

    def _count(self, key: Key, counted: Counted, counter: int) -> None:
        """The announced part that surely is the same bears the counter; where there is none, it is a part by itself."""
        line = counted.line
        expected_ns = counted.t_ns + line.trigger_offset_ms * 1_000_000
        same = self._row(line).counted(Seen(expected_ns, key, counter), alone=len(counted.counters) == 1)
        if same is not None and same.key in self._open:
            self._counters[same.key] = counter
            return
        waiting = sum(1 for other, part in self._open.items() if other[0] == LINE_CONTROLLER and part.line == line.id)
        if waiting >= MAX_COUNTED:
            self._flooded[line.id] = time.monotonic_ns()
            self._log.warning("flood", f"line {line.id}: its controller counts more parts than can pass; not numbered")
            return
        self._counters[key] = counter
        due_ns = expected_ns + line.deadline_ms * 1_000_000
        self._open_part(key, OpenPart(line.id, "none", counter, expected_ns, due_ns))

    def _find_counter(self, key: Key, part: OpenPart) -> None:
        """A part that an edge announces bears the counter that surely is its own, which then is no part by itself."""
        same = self._row(self._line_of(key[0])).announced(Seen(part.captured_ns, key))
        if same is not None and same.key in self._open:
            self._counters[key] = same.counter
            self._forget(same.key)

    def _forget(self, key: Key) -> None:
        self._counters.pop(key, None)
        if self._open.pop(key, None) is not None:
            self._connection.execute("DELETE FROM open_parts WHERE edge_id = ? AND part_id = ?", key)

    def _source_of(self, key: Key) -> str | None:
        row = self._connection.execute("SELECT source FROM outputs WHERE edge_id = ? AND part_id = ?", key).fetchone()
        return None if row is None else str(row[0])

    def _open_part(self, key: Key, part: OpenPart) -> None:
        self._connection.execute("INSERT INTO open_parts VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*key, *part, self._boot_id))
        self._open[key] = part
        heapq.heappush(self._due, (part.due_ns, key))

    def _close_at_deadline(self, key: Key, part: OpenPart, outputs: list[LineOutput]) -> None:
        reason = UNANNOUNCED if key[0] == LINE_CONTROLLER else "no verdict by the deadline"
        expiry_ns = part.due_ns + max(GRACE_NS, part.due_ns - part.captured_ns)
        if time.monotonic_ns() > expiry_ns:  # the part is gone from the gate; another one may stand there
            self._write_output(key, part, LineCode.NOT_INSPECTED, "deadline", reason, "late")
            return
        output = self._write_output(key, part, LineCode.NOT_INSPECTED, "deadline", reason)
        outputs.append(output._replace(due_ns=expiry_ns))

    def _write_output(
        self,
        key: Key,
        part: OpenPart,
        code: LineCode,
        source: str,
        reason: str | None,
        outcome: str | None = None,
        header: Result | Missed | None = None,
    ) -> LineOutput:
        about = Part(key, part.camera_id, part.captured_ns, header)
        hold = self._lines.hold(part.line, about, code)
        if hold is not None:
            code, reason = LineCode.NOT_INSPECTED, hold.reason
        outcome = outcome or ("committed" if self._connected(part.line) else "unconnected")
        number = self._next.get(part.line, self._first_number)
        age_ms = (time.monotonic_ns() - part.captured_ns) / 1e6
        counter = self._counters.get(key)
        self._connection.execute(
            "INSERT INTO outputs (line, number, edge_id, part_id, camera_id, trigger_id, code, source, reason, "
            "outcome, age_ms, t_wall_ns, counter, model, held) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                part.line,
                number,
                *key,
                part.camera_id,
                part.trigger_id,
                int(code),
                source,
                reason,
                outcome,
                age_ms,
                time.time_ns(),
                counter,
                header.model_sha256 if isinstance(header, Result) else None,
                None if hold is None else hold.kind,
            ),
        )
        self._lines.told(part.line, number, about, code, hold, outcome == "committed")
        self._next[part.line] = number + 1
        self._forget(key)
        return LineOutput(
            part.line,
            number,
            *key,
            part.camera_id,
            part.trigger_id,
            code,
            reason,
            part.due_ns,
            counter=counter,
            captured_ns=part.captured_ns,
        )

    def _write_late(self, told: Told) -> None:
        header = told.header
        code = CODES[header.verdict] if isinstance(header, Result) else LineCode.NOT_INSPECTED
        self._connection.execute(
            "INSERT OR IGNORE INTO late VALUES (?, ?, ?, ?, ?, ?)",
            (header.edge_id, header.part_id, int(code), _reason(header), told.age_ms, time.time_ns()),
        )

    def _write_sent(self, sent: list[Sent]) -> None:
        """What a connector says last of an output counts; an output is published where any connector published it."""
        self._connection.executemany("INSERT OR REPLACE INTO sends VALUES (?, ?, ?, ?, ?, ?)", sent)
        self._connection.executemany(
            "UPDATE outputs SET outcome = CASE WHEN EXISTS (SELECT 1 FROM sends s WHERE s.line = outputs.line "
            "AND s.number = outputs.number AND s.outcome = 'published') THEN 'published' ELSE ? END "
            "WHERE line = ? AND number = ?",
            [(each.outcome, each.line, each.number) for each in sent],
        )

    def _load(self) -> None:
        """Read the open parts and the next numbers. Times of another boot of the machine have passed long ago."""
        self._connection.execute(
            "DELETE FROM open_parts WHERE EXISTS (SELECT 1 FROM outputs o "
            "WHERE o.edge_id = open_parts.edge_id AND o.part_id = open_parts.part_id)"
        )
        rows = self._connection.execute("SELECT * FROM open_parts").fetchall()
        numbers = self._read_numbers()
        now_ns = time.monotonic_ns()
        parts: dict[Key, OpenPart] = {}
        for edge_id, part_id, line, camera_id, trigger_id, captured_ns, due_ns, boot_id in rows:
            if boot_id != self._boot_id:
                captured_ns, due_ns = now_ns, now_ns - LONG_AGO_NS
            parts[edge_id, part_id] = OpenPart(line, camera_id, trigger_id, captured_ns, due_ns)
        due = [(part.due_ns, key) for key, part in parts.items()]
        heapq.heapify(due)
        self._open, self._due, self._next, self._stale = parts, due, numbers, False
        self._lines.load()
        self._counters |= {key: part.trigger_id for key, part in parts.items() if key[0] == LINE_CONTROLLER}

    def _read_numbers(self) -> dict[str, int]:
        found = self._connection.execute("SELECT line, max(number) + 1 FROM outputs GROUP BY line").fetchall()
        return {line: max(number, self._first_number) for line, number in found}


class LedgerReader:
    """What the pages ask the ledger's file; a connection for each question, so any thread may ask."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def outputs(self, after: int, limit: int) -> list[dict[str, Any]]:
        """Outputs in the order in which they were numbered, behind row ``after``."""
        return self._ask(f"{_SELECT} WHERE o.id > ? ORDER BY o.id LIMIT ?", (after, limit))

    def output_of(self, edge_id: str, part_id: str) -> dict[str, Any] | None:
        """What the line was told about one part."""
        rows = self._ask(f"{_SELECT} WHERE o.edge_id = ? AND o.part_id = ?", (edge_id, part_id))
        return rows[0] if rows else None

    def held_since(self, edge_id: str, camera_id: str, since: str, last: str, limit: int) -> list[str | None] | None:
        """What held each part of a camera from one part to another, newest first; None: one of them has no number."""
        row = "(SELECT id FROM outputs WHERE edge_id = ? AND part_id = ?)"
        ends = self._ask(f"SELECT {row} AS since, {row} AS last", (edge_id, since, edge_id, last))[0]
        if None in (ends["since"], ends["last"]):
            return None
        found = self._ask(
            "SELECT held FROM outputs WHERE id BETWEEN ? AND ? AND +edge_id = ? AND camera_id = ? "
            "ORDER BY id DESC LIMIT ?",
            (ends["since"], ends["last"], edge_id, camera_id, limit),
        )
        return [each["held"] for each in found]

    def counts(self) -> dict[str, Any]:
        """Outputs by outcome and by code, verdicts that came late, parts that still wait for theirs."""
        outcomes = self._ask("SELECT outcome AS name, count(*) AS n FROM outputs GROUP BY outcome", ())
        codes = self._ask("SELECT code AS name, count(*) AS n FROM outputs GROUP BY code", ())
        rest = self._ask("SELECT (SELECT count(*) FROM late) AS late, (SELECT count(*) FROM open_parts) AS open", ())[0]
        return {
            "outcomes": {row["name"]: row["n"] for row in outcomes},
            "codes": {LineCode(row["name"]).name: row["n"] for row in codes},
            "late_verdicts": rest["late"],
            "open": rest["open"],
        }

    def open_parts(self) -> int:
        """Parts that were announced and have no number yet."""
        return int(self._ask("SELECT count(*) AS n FROM open_parts", ())[0]["n"])

    def newest(self) -> int:
        """The last output's row; 0 before the first."""
        return int(self._ask("SELECT coalesce(max(id), 0) AS id FROM outputs", ())[0]["id"])

    def numbered(self, after: int) -> tuple[int, dict[tuple[str, str], int]]:
        """The newest row, and how many outputs are behind row ``after``, by line and code."""
        rows = self._ask(
            "SELECT line, code, count(*) AS n, max(id) AS last FROM outputs WHERE id > ? GROUP BY line, code", (after,)
        )
        last = max((row["last"] for row in rows), default=after)
        return last, {(row["line"], LineCode(row["code"]).name): row["n"] for row in rows}

    def journal(self, after: int, limit: int) -> list[dict[str, Any]]:
        """What happened on the lines beside their outputs, behind row ``after``."""
        return self._journal("id > ? ORDER BY id LIMIT ?", (after, limit))

    def journal_of(self, line: str, kinds: Sequence[str], limit: int) -> list[dict[str, Any]]:
        """What happened on one line, of these kinds, newest first."""
        marks = ", ".join("?" * len(kinds))
        return self._journal(f"line = ? AND kind IN ({marks}) ORDER BY id DESC LIMIT ?", (line, *kinds, limit))

    def journal_row(self, line: str, row: int) -> dict[str, Any] | None:
        """One of them."""
        found = self._journal("line = ? AND id = ?", (line, row))
        return found[0] if found else None

    def challenge_passed(
        self, line: str, side: Literal["before", "after"], row: int | None = None, number: int | None = None
    ) -> dict[str, Any] | None:
        """The nearest challenge that was passed before or after a row of the journal, or before a part's number."""
        direction, order = ("<", "DESC") if side == "before" else (">", "ASC")
        limits = [(f"id {direction} ?", row), (f"number {direction} ?", number)]
        given = [(text, value) for text, value in limits if value is not None]
        where = " AND ".join(["line = ?", "kind = 'challenge_passed'", *(text for text, _ in given)])
        found = self._journal(f"{where} ORDER BY id {order} LIMIT 1", (line, *(value for _, value in given)))
        return found[0] if found else None

    def challenges(self, line: str, before: int | None = None) -> Iterator[dict[str, Any]]:
        """Challenges that were passed or failed before a row of the journal, newest first, few read at a time."""
        kinds = "line = ? AND kind IN ('challenge_passed', 'challenge_failed')"
        before = 2**63 - 1 if before is None else before
        while rows := self._journal(f"{kinds} AND id < ? ORDER BY id DESC LIMIT ?", (line, before, CHALLENGES)):
            yield from rows
            before = rows[-1]["id"]

    def _journal(self, where: str, values: tuple[object, ...]) -> list[dict[str, Any]]:
        rows = self._ask(f"SELECT * FROM journal WHERE {where}", values)  # noqa: S608 - our own words, values apart
        return [{**row, "detail": json.loads(row["detail"])} for row in rows]

    def masters(self, line: str) -> list[dict[str, Any]]:
        """The masters of a line in the order in which they are read."""
        return self._ask("SELECT * FROM masters WHERE line = ? AND removed_by IS NULL ORDER BY id", (line,))

    def kept(self, line: str) -> dict[str, Any]:
        """What a line's stop and challenge stand at."""
        rows = self._ask("SELECT kept FROM lines WHERE line = ?", (line,))
        found: dict[str, Any] = json.loads(rows[0]["kept"]) if rows else {}
        return found

    def between(
        self, line: str, after: int, last: int, model: str | None = None, limit: int | None = None
    ) -> list[dict[str, Any]]:
        """Outputs of a line with numbers above ``after`` up to ``last``, in their order."""
        judged = "" if model is None else "AND o.model = ?"
        values = (line, after, last, *([] if model is None else [model]), -1 if limit is None else limit)
        return self._ask(
            f"{_SELECT} WHERE o.line = ? AND o.number > ? AND o.number <= ? {judged} ORDER BY o.number LIMIT ?", values
        )

    def count_between(self, line: str, after: int, last: int, model: str | None = None) -> dict[str, int]:
        """The same parts by the code that the line was told."""
        judged = "" if model is None else "AND model = ?"
        rows = self._ask(
            f"SELECT code, count(*) AS n FROM outputs WHERE line = ? AND number > ? AND number <= ? {judged} "  # noqa: S608 - our own words
            "GROUP BY code",
            (line, after, last, *([] if model is None else [model])),
        )
        return {LineCode(row["code"]).name: row["n"] for row in rows}

    def judged_by(self, line: str, model: str) -> tuple[int, int] | None:
        """The first and the last number of a line that a model judged; None where it judged none."""
        sql = "SELECT min(number) AS first, max(number) AS last FROM outputs WHERE line = ? AND model = ?"
        (row,) = self._ask(sql, (line, model))
        return None if row["first"] is None else (row["first"], row["last"])

    def ledger_id(self) -> str | None:
        """Names this file: in another one the same numbers are of other parts. A backup of it bears the same name."""
        rows = self._ask("SELECT value FROM meta WHERE key = 'ledger_id'", ())
        return str(rows[0]["value"]) if rows else None

    def last_number(self, line: str) -> int:
        """The last number of a line; 0 before the first."""
        (row,) = self._ask("SELECT coalesce(max(number), 0) AS n FROM outputs WHERE line = ?", (line,))
        return int(row["n"])

    def _ask(self, sql: str, values: tuple[object, ...]) -> list[dict[str, Any]]:
        with closing(sqlite3.connect(self._path, timeout=5)) as connection:
            connection.execute("PRAGMA query_only=ON")
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(sql, values)]


def _open_file(path: Path) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=LOCK_S)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")  # a killed process loses nothing; we sync ourselves
        without_checkpoints(connection)
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, 1, 2, SCHEMA_VERSION):
            raise ConfigError(f"{path}: ledger version {version}, this program reads {SCHEMA_VERSION}")
        if version:
            _add_columns(connection)
        connection.executescript(_TABLES + LINE_TABLES)
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    except sqlite3.Error as error:
        raise ConfigError(f"{path}: the ledger cannot be opened ({error}); restore a backup or move it away") from error
    return connection


def _add_columns(connection: sqlite3.Connection) -> None:
    """What a ledger of an earlier version lacks; nothing is known of it for the parts of before."""
    known = {row[1] for row in connection.execute("PRAGMA table_info(outputs)")}
    for name, kind in LATER.items():
        if name not in known:
            connection.execute(f"ALTER TABLE outputs ADD COLUMN {name} {kind}")


def _first_number(connection: sqlite3.Connection, path: Path, boot_id: str) -> int:
    try:
        found = first_number(connection, boot_id)
        named = ("ledger_id", secrets.token_hex(8))
        connection.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", named)
        sync(path)  # before anything is numbered: a power cut must find in which boot that was
    except (sqlite3.Error, OSError) as error:
        raise ConfigError(f"{path}: the ledger cannot be written ({error}); is the disk full, or read-only?") from error
    return found


def _judged(output: LineOutput, header: Result | Missed) -> LineOutput:
    """With what is said of the judgement beside its code."""
    if not isinstance(header, Result):
        return output
    ratio = header.score / header.threshold if header.score is not None and header.threshold else None
    return output._replace(ratio=ratio, model=int(header.model_sha256[:8], 16))


def _is_wanted(order: Order) -> bool:
    """Whether somebody still waits for it. From here on it is done, after a transaction that failed too."""
    done = order.done
    return done.running() or (not done.cancelled() and done.set_running_or_notify_cancel())


def _boot_id() -> str:
    """Names this boot of the machine: monotonic times of another one are never compared."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"unknown-{time.time_ns()}"


def _said(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _reason(header: Header) -> str | None:
    return header.reason if isinstance(header, Result | Missed) else None
