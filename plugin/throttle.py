"""Makes guessing slow: delays that double with each failure, in memory of a fixed size (before hop 11)."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from array import array
from collections.abc import Callable
from typing import NamedTuple

SLOTS = 1 << 16
LONGEST_S = 300.0
FORGET_S = 600.0


class Key(NamedTuple):
    """What failures are counted for, and how many of them cost nothing yet."""

    text: str
    free: int


class Throttle:
    """Counts failures per key. Two keys may meet in a slot and share its delay; whoever guesses cannot choose which.

    An attempt counts as a failure from its beginning, so that many at once gain nothing; ``take_back`` undoes that. One
    failure is forgotten every ten minutes.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._secret = secrets.token_bytes(16)
        self._failures = array("L", bytes(SLOTS * array("L").itemsize))
        self._last_s = array("d", bytes(8 * SLOTS))
        self._until_s = array("d", bytes(8 * SLOTS))

    def admit(self, *keys: Key) -> float:
        """Zero where an attempt may be made, which then counts; else the seconds to wait."""
        now = self._clock()
        with self._lock:
            slots = [(self._slot(key), key.free) for key in keys]
            wait_s = max(self._until_s[slot] - now for slot, _ in slots)
            if wait_s > 0:
                return wait_s
            for slot, free in slots:
                self._count(slot, free, now)
        return 0.0

    def take_back(self, *keys: Key) -> None:
        """The attempt was no failure, or was never looked at."""
        with self._lock:
            for slot in map(self._slot, keys):
                self._failures[slot] -= self._failures[slot] > 0
                self._until_s[slot] = 0.0

    def forget(self, key: Key) -> None:
        """Forget every failure of a key."""
        with self._lock:
            slot = self._slot(key)
            self._failures[slot], self._until_s[slot] = 0, 0.0

    def _count(self, slot: int, free: int, now: float) -> None:
        forgotten = int((now - self._last_s[slot]) // FORGET_S)
        failures = max(self._failures[slot] - forgotten, 0) + 1
        self._failures[slot], self._last_s[slot] = failures, now
        if failures > free:
            self._until_s[slot] = now + min(2.0 ** min(failures - free, 30), LONGEST_S)

    def _slot(self, key: Key) -> int:
        text = key.text.encode("utf-8", "replace")
        return int.from_bytes(hashlib.blake2b(text, key=self._secret, digest_size=8).digest()) % SLOTS
