"""What the station does while nothing can be recorded: takes no part, says so, tries again for ever (hops 2 to 6)."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from edge_runtime.capture import CameraProcess
from edge_runtime.errors import RingError, SpoolBlockedError

FIRST_RETRY_S, LAST_RETRY_S = 0.1, 5.0
LOOK_S = 0.05

log = logging.getLogger(__name__)


def hold_out(
    error: SpoolBlockedError,
    cameras: Sequence[CameraProcess],
    stop: threading.Event,
    beat: Callable[[SpoolBlockedError], None],
    resume: Callable[[str], None],
) -> None:
    """Return once ``resume``, told in words what was not recorded, no longer raises SpoolBlockedError.

    Parts that the cameras see meanwhile are let go: they lie in the gap that ``resume`` declares. ``beat`` is called
    all the time. Raises the error where the edge is to stop meanwhile: as after a kill, the next start declares it.
    """
    log.error("no part is taken: %s", error)
    reason, unseen = str(error), 0
    pause_s, next_try = FIRST_RETRY_S, time.monotonic()
    while not stop.is_set():
        for camera in cameras:
            camera.supervise()
            unseen += _let_go(camera)
        if time.monotonic() >= next_try:
            try:
                resume(f"{unseen} part(s) were seen and not recorded: {reason}"[:500])
            except SpoolBlockedError as again:
                error = again
                next_try, pause_s = time.monotonic() + pause_s, min(2 * pause_s, LAST_RETRY_S)
            else:
                log.warning("parts are taken again; %d were seen meanwhile and lie in the gap", unseen)
                return
        beat(error)
        time.sleep(LOOK_S)  # not `stop.wait`: a signal sets it on this very thread, whose lock it might be
    raise error


def _let_go(camera: CameraProcess) -> int:
    taken = camera.drain()
    for trigger in taken:
        with suppress(RingError):
            camera.release(trigger)
    return len(taken)
