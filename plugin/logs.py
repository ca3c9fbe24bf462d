"""A log that cannot be flooded: one line a key and period, with the number left out (hops 7 to 10)."""

from __future__ import annotations

import logging
import threading
import time

PERIOD_S = 5.0


class LimitedLog:
    """Warnings that a hostile or broken peer could cause at any rate. Safe to use from several threads."""

    def __init__(self, logger: logging.Logger, period_s: float = PERIOD_S) -> None:
        self._logger = logger
        self._period_s = period_s
        self._lock = threading.Lock()
        self._last: dict[str, tuple[float, int]] = {}

    def warning(self, key: str, text: str) -> None:
        """Say ``text`` unless ``key`` was said within the period; then count it."""
        now = time.monotonic()
        with self._lock:
            at, left_out = self._last.get(key, (-self._period_s, 0))
            if now - at < self._period_s:
                self._last[key] = (at, left_out + 1)
                return
            self._last[key] = (now, 0)
        more = f" ({left_out} more like it)" if left_out else ""
        self._logger.warning("%s%s", text, more)
