"""Which announced part is the one that the line controller counted: by time alone, and never by a guess (hop 9).

A count and a capture belong together where their times differ by no more than the tolerance and no other could be
meant. A count without a part is a part that the edge missed. A part without a count says more: the count may still
come, late, and then look like the next part's. So after such a hole, or where two could be meant, some pairs in a row
must fit before one is believed again.
"""

from __future__ import annotations

from typing import NamedTuple

PAIRS_TO_TRUST = 3
MAX_WAITING = 64

Key = tuple[str, str]


class Seen(NamedTuple):
    """An announced part or a counted one, and when it was or should have been captured (CLOCK_MONOTONIC)."""

    captured_ns: int
    key: Key
    counter: int = 0


class Row:
    """The parts of one line, as edges announce them and as the controller counts them. Used by one thread."""

    def __init__(self, tolerance_ns: int) -> None:
        self._tolerance_ns = tolerance_ns
        self._parts: list[Seen] = []
        self._counts: list[Seen] = []
        self._to_trust = 0

    def announced(self, part: Seen) -> Seen | None:
        """An edge announced a part; the count that is surely its own, or None."""
        self._drop_holes(part.captured_ns)
        return self._pair(part, self._parts, self._counts)

    def counted(self, count: Seen, alone: bool = True) -> Seen | None:
        """The controller counted a part; the announced part that is surely the same, or None.

        ``alone`` False: one write told of several counts, so nobody knows when each of them was.
        """
        self._drop_holes(count.captured_ns)
        if not alone:
            self._to_trust = PAIRS_TO_TRUST
            return None
        return self._pair(count, self._counts, self._parts)

    def _pair(self, new: Seen, same: list[Seen], other: list[Seen]) -> Seen | None:
        near = [seen for seen in other if self._is_near(seen, new)]
        rivals = [seen for seen in same if self._is_near(seen, new)]
        if not near and not rivals:
            same.append(new)
            return None
        if len(near) == 1 and not rivals:
            other.remove(near[0])
            if not self._to_trust:
                return near[0]
            self._to_trust -= 1
            return None
        for seen in near:
            other.remove(seen)
        for seen in rivals:
            same.remove(seen)
        self._to_trust = PAIRS_TO_TRUST
        return None

    def _is_near(self, one: Seen, other: Seen) -> bool:
        return abs(one.captured_ns - other.captured_ns) <= self._tolerance_ns

    def _drop_holes(self, now_ns: int) -> None:
        """What lies so far behind that no partner can come any more stays alone."""
        oldest_ns = now_ns - 2 * self._tolerance_ns
        self._counts = [seen for seen in self._counts if seen.captured_ns >= oldest_ns][-MAX_WAITING:]
        kept = [seen for seen in self._parts if seen.captured_ns >= oldest_ns][-MAX_WAITING:]
        if len(kept) < len(self._parts):  # counted late, or before counting began: the first counts prove nothing yet
            self._to_trust = PAIRS_TO_TRUST
        self._parts = kept
