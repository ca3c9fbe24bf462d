"""A candidate beside the line's own bundle: scored and recorded, never acted on, never waited for (beside hop 5)."""

from __future__ import annotations

import logging
import mmap
import os
import select
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import ValidationError

from contract import event
from contract.event import Result, ShadowScore, Verdict
from contract.preprocess import Picture
from edge_runtime.cutting import CutPart
from edge_runtime.emitter import Emitter
from edge_runtime.settings import EdgeSettings
from edge_runtime.shadow_child import WHOLE, Answer, Opened, Order, Task
from edge_runtime.spool import Draft, Spool

MOST = 4
"""Parts that may wait; each holds its pixels."""

TOGETHER, TOGETHER_S = 64, 2.0
"""Scores that travel together, and how long the first one waits for others."""

QUIET_S = 10.0
"""How often counts are sent that no score goes with."""

MEMORY_BYTES = 512 << 20
"""Largest part; what is never written of it takes no memory."""

START_S = 120.0
RETRY_S = (1.0, 10.0, 60.0)
"""Pauses before a process that died or hung is replaced; after the last one it is given up until the next start."""

LEAST = 0.1
"""Of its share, what a candidate gets beside a line that is never idle."""

STOP_S, GONE_S = 5.0, 1.0
STEP_S = 0.1
CODE = "import sys; from edge_runtime.shadow_child import main; main(int(sys.argv[1]))"

log = logging.getLogger(__name__)


class _Part(NamedTuple):
    result: Result
    seq: int
    pixels: Picture


class _ChildError(Exception):
    """The candidate's process died, hung, or says what cannot be understood."""


class Shadow:
    """A thread and a process that no verdict waits for: what they have no time for is dropped and counted.

    ``offer`` belongs to the station's thread; it keeps a reference to the part's pixels, no more, and raises nothing.
    """

    def __init__(self, settings: EdgeSettings, spool: Spool, emitter: Emitter) -> None:
        self._settings = settings
        self._shadow = settings.shadow
        self._spool = spool
        self._emitter = emitter
        self._waiting: deque[_Part] = deque()
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._stopping = threading.Event()
        self._child: _Child | None = None
        self._opened = Opened()
        self._held: list[ShadowScore] = []
        self._held_since = self._told_at = 0.0
        self._told: tuple[object, ...] = ()
        self._recipe = ""
        self._under_way = 0
        self._died = 0
        self._line_ns, self._looked_at = 0, time.monotonic()
        self.offered = self.scored = self.dropped = self.unseen = 0
        self.trouble: str | None = None
        self.ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)

    def start(self) -> None:
        """Begin to open the candidate, unless that has begun."""
        if self._thread.ident is None:
            self._thread.start()

    def offer(self, result: Result, seq: int, cut: CutPart | None) -> None:
        """Take a part that has its verdict, where there is room; costs some microseconds."""
        timing = result.timing
        with self._lock:
            self._line_ns += max(0, timing.t_decided_ns - timing.t_taken_ns)
            if result.recipe_number != self._shadow.recipe:
                return
            self._recipe = result.recipe
            self.offered += 1
            if cut is None or cut.fault is not None:
                self.unseen += 1
            elif len(self._waiting) >= MOST or self.trouble is not None or self._stopping.is_set():
                self.dropped += 1
            else:
                self._waiting.append(_Part(result, seq, cut.pixels))
                self._news.set()

    def stop(self) -> None:
        """End the process; what waits is dropped and counted, and the last counts are sent."""
        self._stopping.set()
        self._news.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_S)

    def _run(self) -> None:
        # Not a nicer thread than the station's: that one would wait, without Python's lock, until this one gets a core.
        while not self._stopping.is_set():
            try:
                self._turn()
            except Exception as error:
                log.exception("the candidate in shadow")
                self._give_up(f"{type(error).__name__}: {error}")
        self._end()

    def _turn(self) -> None:
        """The process where it is missing, one part, and a look at what is to be sent."""
        try:
            if self._child is None and self.trouble is None:
                self._open()
            if (part := self._next()) is not None and self._child is not None:
                self._refuse_other(part.result)
                began = time.monotonic()
                answer = self._child.score(part.pixels, self._settings.hang_s)
                self._died = 0
                self._keep(part, answer)
                self._rest(answer.cpu_s, began)
        except _ChildError as error:
            self._failed(str(error))
        self._tell()

    def _open(self) -> None:
        """Raises _ChildError."""
        if self._held:
            self._tell(last=True)  # what was scored is of the candidate and beside the bundle that were open until now
        self._child = _Child(self._settings, self._stopping)
        self._opened = self._child.opened()
        if self._opened.error is not None:
            self._died = len(RETRY_S)  # the same bundle is as bad at the next try
            raise _ChildError(self._opened.error)
        self.ready.set()

    def _refuse_other(self, result: Result) -> None:
        """Raise _ChildError where another bundle judges than the one it was opened beside: it is opened anew.

        Pictures may be cut otherwise now. What waits may be of either bundle, and is dropped as well.
        """
        if (result.bundle_id, result.calibration_id) != self._opened.beside:
            with self._lock:
                self.dropped += len(self._waiting)
                self._waiting.clear()
            raise _ChildError(f"the line judges with another bundle or calibration now ({result.bundle_id})")

    def _next(self) -> _Part | None:
        if not self._waiting:
            self._news.wait(STEP_S)
        with self._lock:
            self._news.clear()
            if not self._waiting:
                return None
            self._under_way = 1
            return self._waiting.popleft()

    def _keep(self, part: _Part, answer: Answer) -> None:
        self._held_since = self._held_since or time.monotonic()
        self._held.append(
            ShadowScore(
                part_id=part.result.part_id,
                camera_id=part.result.camera_id,
                result_seq=part.seq,
                live=part.result.verdict,
                verdict=Verdict(answer.verdict),
                score=answer.score,
                reason=None if answer.reason is None else answer.reason[:500],
            )
        )
        with self._lock:
            self._under_way = 0
            self.scored += 1

    def _rest(self, cpu_s: float, began: float) -> None:
        """So that no more than its share of a core's time is taken since ``began``, and less beside a busy line."""
        now = time.monotonic()
        with self._lock:
            busy, self._line_ns = self._line_ns / 1e9 / max(now - self._looked_at, cpu_s), 0
        self._looked_at = now
        self._stopping.wait(max(0.0, pause_s(cpu_s, self._shadow.share, busy) - (now - began)))

    def _failed(self, why: str) -> None:
        """The part is dropped; the process is replaced after a while, or given up."""
        if self._child is not None:
            self._child.kill()
            self._child = None
        with self._lock:
            self.dropped += self._under_way
            self._under_way = 0
        if self._stopping.is_set():
            return
        self._died += 1
        if self._died > len(RETRY_S):
            self._give_up(why)
            return
        log.warning("the candidate in shadow: %s", why)
        self._stopping.wait(RETRY_S[self._died - 1])

    def _give_up(self, why: str) -> None:
        """No part is taken any more until the edge starts again; verdicts are given as ever."""
        log.error("the candidate in shadow scores nothing: %s", why)
        with self._lock:
            self.trouble = why[:500]
            self.dropped += len(self._waiting) + self._under_way
            self._waiting.clear()
            self._under_way = 0

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
        with self._lock:
            self.dropped += len(self._waiting) + self._under_way
            self._waiting.clear()
            self._under_way = 0
        self._tell(last=True)

    def _tell(self, last: bool = False) -> None:
        """Spool scores, a few at a time, and counts where they changed."""
        now = time.monotonic()
        due = len(self._held) >= TOGETHER or (self._held and now >= self._held_since + TOGETHER_S)
        counts = (self.offered, self.scored, self.dropped, self.unseen, self.trouble)
        changed = counts != self._told
        if not (due or (last and (self._held or changed)) or (changed and now >= self._told_at + QUIET_S)):
            return
        if not self._recipe:
            return
        held, self._held, self._held_since = self._held, [], 0.0
        try:
            self._spool.append([Draft(self._event(held))])
            self._emitter.wake()
        except Exception as error:  # noqa: BLE001 - whatever a spool does, the next ones are tried
            log.warning("the candidate's scores of %d part(s) cannot be recorded: %s", len(held), error)
            with self._lock:
                self.scored -= len(held)
                self.dropped += len(held)
        self._told, self._told_at = counts, now

    def _event(self, scores: list[ShadowScore]) -> event.Shadow:
        with self._lock:
            counts = {
                "offered": self.offered,
                "scored": self.scored,
                "dropped": self.dropped,
                "unseen": self.unseen,
                "waiting": len(self._waiting) + self._under_way,
            }
            recipe, trouble = self._recipe, self.trouble
        beside_bundle, beside_calibration = self._opened.beside or (None, None)
        return event.Shadow(
            edge_id=self._settings.edge_id,
            spool_id=self._spool.spool_id,
            seq=1,
            run_id=self._spool.run_id,
            t_wall_ns=time.time_ns(),
            recipe=recipe,
            recipe_number=self._shadow.recipe,
            **self._opened.model_dump(exclude={"error", "beside"}),
            beside_bundle_id=beside_bundle,
            beside_calibration_id=beside_calibration,
            scores=tuple(scores),
            trouble=trouble,
            **counts,
        )


def pause_s(cpu_s: float, share: float, busy: float) -> float:
    """Seconds in which a candidate may take ``cpu_s`` of a core, where a line is at work for ``busy`` of them.

    A process that the kernel gives only what is left over still costs a full line: it empties the cores' caches.
    """
    return cpu_s / (share * max(LEAST, 1 - busy))


def cpu_seconds(pid: int) -> float:
    """What a process has worked so far; 0 once it is gone."""
    return sum(map(int, _stat(pid)[11:13])) / os.sysconf("SC_CLK_TCK")


def wants_a_core(pid: int) -> bool:
    """Whether a process could go on if it were let: it runs, or waits for a core, for no lock and no file."""
    return _stat(pid)[:1] == ["R"]


def _stat(pid: int) -> list[str]:
    """``/proc/PID/stat`` from the state on (proc(5)); empty once it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    except OSError:
        return []


class _Child:
    """The candidate's process and the memory that it shares."""

    def __init__(self, settings: EdgeSettings, stopping: threading.Event) -> None:
        self._stopping = stopping
        fd = os.memfd_create("shadow")
        try:
            os.ftruncate(fd, MEMORY_BYTES)
            self._memory = mmap.mmap(fd, MEMORY_BYTES)
            self._process = subprocess.Popen(
                [sys.executable, "-c", CODE, str(fd)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[fd],
                # Of its own for Ctrl-C, and not a session, which the kernel may give a core's fair share (autogroup).
                process_group=0,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
            )
        except OSError as error:
            raise _ChildError(f"its process cannot be started ({error.strerror})") from error
        finally:
            os.close(fd)
        self._rest = b""
        self._say(Order(settings=settings, parent_pid=os.getpid()).model_dump_json())

    def opened(self) -> Opened:
        """What it opened; raises _ChildError."""
        try:
            return Opened.model_validate_json(self._line(START_S))
        except ValidationError as error:
            raise _ChildError(f"its process begins with what is none: {error.errors()[0]['msg']}") from error

    def score(self, part: Picture, limit_s: float) -> Answer:
        """What it says of a part; raises _ChildError, after ``limit_s`` too."""
        self._say(Task(pictures=self._laid(part)).model_dump_json())
        try:
            return Answer.model_validate_json(self._line(limit_s))
        except ValidationError as error:
            raise _ChildError(f"its process answers what is none: {error.errors()[0]['msg']}") from error

    def _laid(self, part: Picture) -> list[tuple[str, tuple[int, ...], int]]:
        """Copy a part's pictures into the memory, one behind the other."""
        laid: list[tuple[str, tuple[int, ...], int]] = []
        at = 0
        for view, pixels in (part if isinstance(part, Mapping) else {WHOLE: part}).items():
            if at + pixels.nbytes > MEMORY_BYTES:
                raise _ChildError(f"a part of over {MEMORY_BYTES >> 20} MiB")
            place = np.frombuffer(self._memory, np.uint8, pixels.size, at).reshape(pixels.shape)
            np.copyto(place, pixels)
            laid.append((view, pixels.shape, at))
            at += -(-pixels.nbytes // 64) * 64
        return laid

    def _say(self, line: str) -> None:
        pipe = self._process.stdin
        try:
            if pipe is not None:
                pipe.write(line.encode() + b"\n")
                pipe.flush()
        except (OSError, ValueError) as error:
            raise _ChildError(self._end()) from error

    def _line(self, limit_s: float) -> bytes:
        """The next line that it says, within the time; while it asks for a core and gets none, time does not count."""
        pipe = self._process.stdout
        deadline, worked_s = time.monotonic() + limit_s, cpu_seconds(self._process.pid)
        while pipe is not None and b"\n" not in self._rest:
            left = deadline - time.monotonic()
            try:
                if left <= 0 and wants_a_core(self._process.pid):
                    left = min(limit_s, limit_s - cpu_seconds(self._process.pid) + worked_s)
                    deadline = time.monotonic() + left
                if left <= 0 or self._stopping.is_set():
                    raise _ChildError(f"it did not answer within {limit_s:g} s")
                if not select.select([pipe], [], [], min(left, STEP_S))[0]:
                    continue
                data = os.read(pipe.fileno(), 1 << 16)
            except (OSError, ValueError) as error:
                raise _ChildError(self._end()) from error
            if not data:
                raise _ChildError(self._end())
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _end(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            return f"its process ended with {self._process.wait(GONE_S)}"
        return "its process does not take anything any more"

    def kill(self) -> None:
        """End it, whatever it does; it is waited for a moment only."""
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GONE_S)
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()
