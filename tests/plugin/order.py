"""Which numbers a consumer of JSON takes: rising ones of a session, and none of a session that has ended."""

from __future__ import annotations


class Order:
    """docs/mqtt.md and docs/webhook.md ask for it."""

    def __init__(self) -> None:
        self._sessions: list[str] = []
        self._last = 0

    def admits(self, session: str, number: int) -> bool:
        if session not in self._sessions:
            self._sessions.append(session)
            self._last = 0
        if session != self._sessions[-1] or number <= self._last:
            return False
        self._last = number
        return True
