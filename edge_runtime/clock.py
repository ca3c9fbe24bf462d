"""Names this boot of the machine, and watches how right its wall clock is (hops 1 and 6).

Durations never come from the wall clock. It labels events, and so a step of it, or a clock that nobody keeps right,
has to be known.
"""

from __future__ import annotations

import ctypes
import functools
import time
from pathlib import Path

STEP_NS = 20_000_000
"""From here on a change of wall time against monotonic time is a step: slewing moves both clocks alike."""

ADMITTED_NS = 5_000_000  # between two reads that belong together; a process that was paused looks again later
STA_UNSYNC = 0x40
TIMESYNC = Path("/run/systemd/timesync/synchronized")


def boot_id() -> str:
    """The kernel's id of this boot; empty where there is none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def boot_ns() -> int:
    """Nanoseconds since this boot, sleep included."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class _Timex(ctypes.Structure):
    """``struct timex`` of Linux, adjtimex(2)."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        *((name, ctypes.c_long) for name in ("offset", "freq", "maxerror", "esterror")),
        ("status", ctypes.c_int),
        *((name, ctypes.c_long) for name in ("constant", "precision", "tolerance", "time_s", "time_us")),
        *((name, ctypes.c_long) for name in ("tick", "ppsfreq", "jitter")),
        ("shift", ctypes.c_int),
        *((name, ctypes.c_long) for name in ("stabil", "jitcnt", "calcnt", "errcnt", "stbcnt")),
        ("tai", ctypes.c_int),
        ("spare", ctypes.c_int * 11),
    )


def synchronised() -> bool | None:
    """Whether something (NTP, PTP) keeps the wall clock right, as the kernel was told; None where that is not known."""
    status = _kernel_status()
    if status is not None and not status & STA_UNSYNC:
        return True
    if TIMESYNC.exists():  # a sandbox may keep the kernel's word from us
        return True
    return None if status is None else False


def _kernel_status() -> int | None:
    asked = _Timex()
    try:
        answer = _libc().adjtimex(ctypes.byref(asked))
    except (AttributeError, OSError):
        return None
    return None if answer < 0 else int(asked.status)


@functools.cache
def _libc() -> ctypes.CDLL:
    """Opened once: every heartbeat asks."""
    return ctypes.CDLL(None)


class StepWatch:
    """Counts the steps of the wall clock since it was made; ``look`` is to be called now and then, by one thread."""

    def __init__(self) -> None:
        self.steps = 0
        self.step_ms = 0.0
        """The last step: how far the clock was set ahead, negative for back."""
        self._offset_ns = _offset_ns()

    def look(self) -> None:
        """Compare the wall clock with the clock since boot."""
        offset_ns = _offset_ns()
        if offset_ns is None or self._offset_ns is None:
            self._offset_ns = self._offset_ns or offset_ns
            return
        moved_ns = offset_ns - self._offset_ns
        if abs(moved_ns) >= STEP_NS:
            self.steps += 1
            self.step_ms = moved_ns / 1e6
            self._offset_ns = offset_ns


def _offset_ns() -> int | None:
    """Wall time minus time since boot; None where the process was paused between the reads."""
    before = boot_ns()
    wall = time.time_ns()
    after = boot_ns()
    return None if after - before > ADMITTED_NS else wall - (before + after) // 2
