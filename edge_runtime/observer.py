"""Counts and times of a running edge, for whoever looks at it (beside hops 2 to 6).

The station tells it what it recorded, the emitter what it sent; it costs some microseconds a part and never fails
them. What it holds is read by the metrics and by `flawline edge top`.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import logging
import threading
import time
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, ParamSpec

from contract.event import Gap, Header, Missed, Result, State

STAGES = ("trigger", "queue", "preprocess", "inference", "decision", "record", "send", "total")
"""Each ends where the next begins. The clock starts with the capture; ``total`` is from there to the sending."""

BOUNDS_S = (
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2,
    0.3, 0.5, 1.0, 2.0, 5.0, 10.0,
)  # fmt: skip
RECENT = 1000  # times of each stage that percentiles are taken from
UNMATCHED = 4096  # events of which only one of recording and sending has been heard
RATE_S = 5.0

MARKS = (
    ("trigger", "t_capture_ns", "t_trigger_ns"),
    ("queue", "t_trigger_ns", "t_taken_ns"),
    ("preprocess", "t_taken_ns", "t_prepared_ns"),
    ("inference", "t_prepared_ns", "t_inferred_ns"),
    ("decision", "t_inferred_ns", "t_decided_ns"),
    ("record", "t_decided_ns", "t_spooled_ns"),
)
_P = ParamSpec("_P")
log = logging.getLogger(__name__)


class Histogram:
    """How many times fell under each bound of BOUNDS_S, the last count being those above all; and their sum."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect.bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds

    def cumulative(self) -> list[int]:
        """As Prometheus has it: how many at or under each bound, then all."""
        return list(itertools.accumulate(self.counts))

    def copy(self) -> Histogram:
        made = Histogram()
        made.counts, made.sum_s = self.counts.copy(), self.sum_s
        return made


class Snapshot(NamedTuple):
    """All that was counted until now; ``stages`` by (camera, stage), ``results`` by (camera, verdict).

    ``recent`` are the newest RECENT times of each stage, seconds, over all cameras. ``acknowledged_ns`` is when the
    host last acknowledged anything, ``heartbeat_ns`` when the station last showed its state: CLOCK_MONOTONIC, 0: never.
    """

    results: dict[tuple[str, str], int]
    missed: dict[str, int]
    gaps: dict[str, int]
    gap_s: dict[str, float]
    stages: dict[tuple[str, str], Histogram]
    recent: dict[str, list[float]]
    fps: dict[str, float]
    state: State | None
    acknowledged_ns: int
    heartbeat_ns: int


def _harmless(method: Callable[_P, None]) -> Callable[_P, None]:
    """Whatever goes wrong in looking must not stop what is looked at; said once."""
    said = False

    @functools.wraps(method)
    def guarded(*args: _P.args, **kwargs: _P.kwargs) -> None:
        nonlocal said
        try:
            method(*args, **kwargs)
        except Exception:
            if not said:
                log.exception("the edge's figures are incomplete from here on")
            said = True

    return guarded


class Observer:
    """Safe to use from several threads; nothing that it is told raises."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._results: Counter[tuple[str, str]] = Counter()
        self._missed: Counter[str] = Counter()
        self._gaps: Counter[str] = Counter()
        self._gap_s: defaultdict[str, float] = defaultdict(float)
        self._stages: dict[tuple[str, str], Histogram] = {}
        self._recent: dict[str, deque[float]] = {stage: deque(maxlen=RECENT) for stage in STAGES}
        self._recorded: OrderedDict[int, tuple[str, int, int]] = OrderedDict()
        self._sent: OrderedDict[int, int] = OrderedDict()
        self._frames: dict[str, deque[tuple[int, int]]] = {}
        self._state: State | None = None
        self._acknowledged_ns = self._heartbeat_ns = 0

    @_harmless
    def recorded(self, headers: Iterable[Header], numbers: Iterable[int]) -> None:
        """The station has spooled these, under these numbers."""
        with self._lock:
            for header, seq in zip(headers, numbers, strict=True):
                if isinstance(header, Result):
                    self._result(header, seq)
                elif isinstance(header, Missed):
                    self._missed[header.camera_id] += 1
                elif isinstance(header, Gap):
                    self._gaps[header.camera_id or ""] += 1
                    self._gap_s[header.camera_id or ""] += header.duration_ns / 1e9

    def _result(self, result: Result, seq: int) -> None:
        camera, timing = result.camera_id, result.timing
        self._results[camera, result.verdict.value] += 1
        for stage, begin, end in MARKS:
            begin_ns, end_ns = getattr(timing, begin), getattr(timing, end)
            if begin_ns and end_ns >= begin_ns:  # else one was not reached, or the part was asked for before its frame
                self._add(camera, stage, (end_ns - begin_ns) / 1e9)
        sent_ns = self._sent.pop(seq, None)
        if sent_ns is not None:  # the emitter was faster than we
            self._send(camera, timing.t_begin_ns, timing.t_spooled_ns, sent_ns)
        else:
            _keep(self._recorded, seq, (camera, timing.t_begin_ns, timing.t_spooled_ns))

    @_harmless
    def sent(self, seq: int) -> None:
        """The emitter has given this number of this run's spool to the wire for the first time."""
        now = time.monotonic_ns()
        with self._lock:
            recorded = self._recorded.pop(seq, None)
            if recorded is None:
                _keep(self._sent, seq, now)
            else:
                self._send(*recorded, now)

    def _send(self, camera: str, capture_ns: int, spooled_ns: int, sent_ns: int) -> None:
        self._add(camera, "send", (sent_ns - spooled_ns) / 1e9)
        self._add(camera, "total", (sent_ns - capture_ns) / 1e9)

    def _add(self, camera: str, stage: str, seconds: float) -> None:
        histogram = self._stages.get((camera, stage))
        if histogram is None:
            histogram = self._stages[camera, stage] = Histogram()
        histogram.add(seconds)
        self._recent[stage].append(seconds)

    @_harmless
    def acknowledged(self) -> None:
        """The host has committed something."""
        self._acknowledged_ns = time.monotonic_ns()

    @_harmless
    def heartbeat(self, state: State) -> None:
        """What the station says of itself."""
        now = time.monotonic_ns()
        with self._lock:
            self._state, self._heartbeat_ns = state, now
            for camera in state.cameras:
                seen = self._frames.setdefault(camera.camera_id, deque())
                seen.append((now, camera.frames))
                while len(seen) > 2 and now - seen[1][0] >= RATE_S * 1e9:
                    seen.popleft()

    def snapshot(self) -> Snapshot:
        """A copy of all that was counted."""
        with self._lock:
            return Snapshot(
                results=dict(self._results),
                missed=dict(self._missed),
                gaps=dict(self._gaps),
                gap_s=dict(self._gap_s),
                stages={key: histogram.copy() for key, histogram in self._stages.items()},
                recent={stage: list(times) for stage, times in self._recent.items()},
                fps={camera: _rate(seen) for camera, seen in self._frames.items()},
                state=self._state,
                acknowledged_ns=self._acknowledged_ns,
                heartbeat_ns=self._heartbeat_ns,
            )


def _keep(held: OrderedDict[int, Any], seq: int, value: Any) -> None:
    held[seq] = value
    if len(held) > UNMATCHED:
        held.popitem(last=False)


def _rate(seen: deque[tuple[int, int]]) -> float:
    """Frames a second between the oldest and the newest mark."""
    (first_ns, first), (last_ns, last) = seen[0], seen[-1]
    return max(0, last - first) * 1e9 / (last_ns - first_ns) if last_ns > first_ns else 0.0
