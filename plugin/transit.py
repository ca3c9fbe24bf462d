"""How much longer than usual a message lay on its way, from the edge's clock and ours (hop 7).

Two monotonic clocks have no common zero, so ``arrival - sending`` alone says nothing. The least of it of late is what
the way takes at its fastest; what a message needed more, it waited: in a buffer, or for a host that was frozen.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from contract.event import Envelope, Message

BUCKET_NS = 60 * 10**9
MAX_EDGES = 1024
MAX_CLOCKS = 4  # of one edge: one a boot of its box, so that an edge that invents clocks pushes out its own alone


class Arrival(NamedTuple):
    """A decoded message, its arrival by CLOCK_MONOTONIC, and how much longer than usual it was on its way."""

    message: Message
    arrived_ns: int
    waited_ns: int = 0

    @property
    def age_ms(self) -> float:
        """Capture to arrival: the age at sending and what it waited on the way."""
        return self.message.envelope.age_ms + self.waited_ns / 1e6


class Transit:
    """One fastest way for each clock of each edge. ``note`` every arrival of a burst, then ask ``waited_ns``.

    A sender that does not say when it sent (``t_sent_ns`` 0) is believed as it is. Used by one thread.
    """

    def __init__(self) -> None:
        self._edges: OrderedDict[str, OrderedDict[str, _Clock]] = OrderedDict()

    def note(self, edge_id: str, envelope: Envelope, arrived_ns: int) -> None:
        """Learn from any message of an edge, heartbeats too."""
        if envelope.t_sent_ns == 0:
            return
        clocks = self._edges.setdefault(edge_id, OrderedDict())
        self._edges.move_to_end(edge_id)
        if len(self._edges) > MAX_EDGES:
            self._edges.popitem(last=False)  # the one that was silent longest
        clock = clocks.get(envelope.clock_id)
        if clock is None:
            clocks[envelope.clock_id] = _Clock(envelope.t_sent_ns, arrived_ns)
            if len(clocks) > MAX_CLOCKS:
                clocks.popitem(last=False)
        else:
            clock.note(envelope.t_sent_ns, arrived_ns)
            clocks.move_to_end(envelope.clock_id)

    def waited_ns(self, edge_id: str, envelope: Envelope, arrived_ns: int) -> int:
        """How much longer than the fastest of late; 0 where its clock is not known."""
        clocks = self._edges.get(edge_id)
        clock = None if clocks is None else clocks.get(envelope.clock_id)
        if clock is None or envelope.t_sent_ns == 0:
            return 0
        return max(0, arrived_ns - envelope.t_sent_ns - clock.fastest_ns())


class _Clock:
    """Least ``arrival - sending`` over this bucket and the one before, so that the clocks' drift does not add up."""

    def __init__(self, sent_ns: int, arrived_ns: int) -> None:
        self._before: int | None = None
        self._begin(sent_ns, arrived_ns)

    def _begin(self, sent_ns: int, arrived_ns: int) -> None:
        self._sent_ns, self._arrived_ns = sent_ns, arrived_ns
        self._least = arrived_ns - sent_ns

    def note(self, sent_ns: int, arrived_ns: int) -> None:
        sent_for, arrived_for = sent_ns - self._sent_ns, arrived_ns - self._arrived_ns
        # Both clocks must have gone on: while a host is frozen only arrivals jump, while a backlog drains only sendings
        # do, and neither may push what was learnt before out of the window. A clock that runs behind the bucket's
        # beginning (a false time of sending began it) must not keep that bucket for ever.
        if arrived_for >= BUCKET_NS and (sent_for >= BUCKET_NS or sent_for < 0):
            self._before = self._least
            self._begin(sent_ns, arrived_ns)
        else:
            self._least = min(self._least, arrived_ns - sent_ns)

    def fastest_ns(self) -> int:
        return self._least if self._before is None else min(self._least, self._before)
