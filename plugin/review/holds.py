"""Who has which part open, for a short time, so that two inspectors never decide the same one (hop 11).

Kept in memory: after a restart nobody holds anything, and the store still refuses a verdict on what has changed since.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import NamedTuple


class Hold(NamedTuple):
    """A part that a desk (one browser) has open, in whose name, until when; ``token`` names this opening of it."""

    desk: str
    name: str
    until_s: float
    token: str


class Holds:
    """One part a desk at most; any thread may ask."""

    def __init__(self, span_s: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.span_s = span_s
        self._clock = clock
        self._held: dict[int, Hold] = {}
        self._lock = threading.Lock()

    def take(self, part: int, desk: str, name: str) -> Hold | None:
        """Open a part, and let go of the desk's former one; None where another desk has it open."""
        with self._lock:
            self._forget_old()
            held = self._held.get(part)
            if held is not None and held.desk != desk:
                return None
            self._let_go(desk)
            self._held[part] = Hold(desk, name, self._clock() + self.span_s, str(secrets.randbelow(10**18)))
            return self._held[part]

    def renew(self, part: int, desk: str, token: str, lengthen: bool = True) -> bool:
        """Go on holding, or only ask; False where the hold has run out or was let go: the part must be opened anew."""
        with self._lock:
            self._forget_old()
            held = self._held.get(part)
            if held is None or (held.desk, held.token) != (desk, token):
                return False
            if lengthen:
                self._held[part] = held._replace(until_s=self._clock() + self.span_s)
            return True

    def release(self, part: int, desk: str, token: str) -> None:
        """Let go; nothing happens where the part was opened anew meanwhile."""
        with self._lock:
            held = self._held.get(part)
            if held is not None and (held.desk, held.token) == (desk, token):
                del self._held[part]

    def leave(self, desk: str) -> None:
        """Let go of whatever the desk has open."""
        with self._lock:
            self._let_go(desk)

    def others(self, desk: str) -> dict[int, str]:
        """The parts that other desks have open, and in whose name."""
        with self._lock:
            self._forget_old()
            return {part: held.name for part, held in self._held.items() if held.desk != desk}

    def _let_go(self, desk: str) -> None:
        for part in [part for part, held in self._held.items() if held.desk == desk]:
            del self._held[part]

    def _forget_old(self) -> None:
        now = self._clock()
        for part in [part for part, held in self._held.items() if held.until_s <= now]:
            del self._held[part]
