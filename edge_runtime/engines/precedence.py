"""Gives the threads that an engine computes in precedence over the other threads of its edge (hop 4)."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

STEPS = 5
"""Nice steps: three times the processor time of a thread without them, where both want it."""

TASKS = Path("/proc/self/task")

log = logging.getLogger(__name__)


@contextmanager
def precedence() -> Iterator[None]:
    """Threads that a library starts within come before others of this process; Python's own stay as they are.

    The engine is what limits the rate: each time another thread takes its core, the next part waits. A process that is
    not allowed to (RLIMIT_NICE, ``LimitNICE=`` of a systemd unit) keeps its threads equal, which a debug line says.
    """
    before = _threads()
    yield
    ours = {each.native_id for each in threading.enumerate()}
    for thread in _threads() - before - ours:
        with suppress(ProcessLookupError):  # it has ended meanwhile
            try:
                os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) - STEPS)
            except PermissionError:
                log.debug("the engine's threads get no precedence: this process may not lower its nice value")
                return


def _threads() -> set[int]:
    """By the kernel's numbers; none where there is no /proc."""
    with suppress(OSError):
        return {int(each.name) for each in TASKS.iterdir()}
    return set()
