"""Ends a process whose loops hang, and gives its signs of life to systemd while they turn (edge and host, all hops).

A thread that waits for something that never comes looks alive from outside. Each loop therefore turns a pulse, and
the overseer, a thread of its own, ends the process with code 70 where one has not turned for its time: whoever
supervises the process (systemd, a container engine) starts it again, and the next start declares the gap. Silence is
counted in the overseer's own turns, so that a process that was stopped as a whole, or a clock that was set, ends
nothing. Where not even the overseer can turn, because C code keeps the interpreter's lock, the interpreter's own
watchdog thread ends the process with code 1; systemd does so too, whom nothing reaches then.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from contract.notify import Notifier

HUNG = 70  # EX_SOFTWARE of sysexits.h
TURN_S = 1.0
"""Between two looks; less where a limit is short."""

REPORT_S = 2.0
"""Longest time for the last words: whoever reads the log may be what hangs."""

STDERR = 2
log = logging.getLogger(__name__)


class Pulse:
    """One loop's sign of life. Only that loop's thread calls ``turn``."""

    def __init__(self, name: str, usual_s: float = 0.0, first_s: float = 0.0) -> None:
        self.name = name
        self.mark = (0, first_s)  # turns, and seconds within which the next is due: replaced in one piece
        self._usual_s = usual_s

    def turn(self, within_s: float = 0.0) -> None:
        """The loop has come round. The next turn is due within its usual time, or ``within_s`` where that is longer."""
        self.mark = (self.mark[0] + 1, max(within_s, self._usual_s))


class Overseer:
    """``with Overseer(...) as overseer``: armed from then on, before anything that could hang.

    ``hang_s``: the usual limit of a loop. ``start_s``: until every loop has turned for the first time. ``end`` is given
    the exit code.
    """

    def __init__(
        self, hang_s: float, start_s: float, notifier: Notifier | None = None, end: Callable[[int], object] = os._exit
    ) -> None:
        self.status: Callable[[], str] = lambda: "starting"
        self._hang_s, self._start_s = hang_s, start_s
        self._notifier = notifier or Notifier(None)
        self._end = end
        self._turn_s = min(TURN_S, hang_s / 4, (self._notifier.watchdog_s or hang_s) / 4)
        self._pulses = [Pulse("the start", first_s=start_s)]
        self._seen: dict[Pulse, tuple[int, float]] = {}  # turns, and seconds of silence since
        self._complete = self._ready = False
        self._told = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="overseer", daemon=True)

    def __enter__(self) -> Overseer:
        self._look_after_the_lock()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(5)
        faulthandler.cancel_dump_traceback_later()
        self._notifier.close()

    def watch(self, name: str, usual_s: float | None = None) -> Pulse:
        """A pulse for one loop. Raises ValueError where another one has the name: it would hide that this one hangs."""
        if any(pulse.name == name for pulse in self._pulses):
            raise ValueError(f"two loops are called {name!r}")
        pulse = Pulse(name, usual_s or self._hang_s, self._start_s)
        self._pulses = [*self._pulses, pulse]
        return pulse

    def complete(self) -> None:
        """Every loop is watched from here on; once each has turned, READY=1 is told."""
        self._pulses = self._pulses[1:]
        self._complete = True

    def stopping(self, within_s: float) -> None:
        """The process ends now, in order, and has ``within_s`` for it; no loop has to turn any more."""
        self._pulses = [Pulse("the stop", first_s=within_s)]
        self._complete = False
        self._notifier.tell("STOPPING=1", "STATUS=stopping")

    def _run(self) -> None:
        before = time.monotonic()
        while not self._stop.wait(self._turn_s):
            now = time.monotonic()
            self._count(min(now - before, 2 * self._turn_s))  # more: we did not turn ourselves
            before = now
            self._look_after_the_lock()
            hung = self._hung()
            if hung is not None:
                self._end_for(hung)
                return
            self._tell()

    def _count(self, seconds: float) -> None:
        seen = {}
        for pulse in self._pulses:
            turns, silent_s = self._seen.get(pulse, (0, 0.0))
            now = pulse.mark[0]
            seen[pulse] = (now, silent_s + seconds if now == turns else 0.0)
        self._seen = seen

    def _hung(self) -> Pulse | None:
        # The turn that was counted and the time that is due belong together: a loop may turn at this moment.
        for pulse, (turns, silent_s) in self._seen.items():
            now, due_s = pulse.mark
            if now == turns and silent_s > due_s:
                return pulse
        return None

    def _look_after_the_lock(self) -> None:
        """Put off the interpreter's own watchdog, a thread that needs no interpreter."""
        due_s = max((pulse.mark[1] for pulse in self._pulses), default=0.0)
        faulthandler.dump_traceback_later(due_s + self._hang_s, exit=True, file=STDERR)

    def _tell(self) -> None:
        lines = ["WATCHDOG=1"]
        if self._complete and not self._ready and all(pulse.mark[0] for pulse in self._pulses):
            lines.insert(0, "READY=1")
        status = self._said() if self._complete else self._told
        if status != self._told:
            lines.append(f"STATUS={status}")
        if self._notifier.tell(*lines):
            self._ready = self._ready or "READY=1" in lines
            self._told = status

    def _said(self) -> str:
        """What the process says of itself; nothing that goes wrong in there may end the watch."""
        try:
            return self.status()
        except Exception as error:  # noqa: BLE001
            return f"unknown: {type(error).__name__}"

    def _end_for(self, pulse: Pulse) -> None:
        """Say why, as far as that is possible, and end the process."""
        reporter = threading.Thread(target=self._report, args=(pulse,), daemon=True)
        reporter.start()
        reporter.join(REPORT_S)
        self._end(HUNG)

    def _report(self, pulse: Pulse) -> None:
        silent_s, due_s = self._seen[pulse][1], pulse.mark[1]
        text = f"{pulse.name} has not turned for {silent_s:.0f} s, at most {due_s:.0f} s"
        self._notifier.tell(f"STATUS=hung: {text}")
        faulthandler.dump_traceback(file=STDERR, all_threads=True)
        log.critical("%s: it hangs, so this process ends with code %d, to be started again", text, HUNG)
        sys.stderr.flush()
