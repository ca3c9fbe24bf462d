"""Parts under way through one engine, in order: the next one is prepared while one infers (hops 3 to 5)."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from contract.errors import FlawlineError
from contract.event import Trigger
from contract.preprocess import Picture
from edge_runtime.cutting import CutPart
from edge_runtime.inspector import Begun, Inspector, Outcome, Ready, begin_together, not_inspected

log = logging.getLogger(__name__)


class Taken(NamedTuple):
    """A part that was taken and has no verdict yet.

    ``step``: ready for the engine, or its outcome where that is known already and waits for those before it.
    ``cut``: the part's pixels and where they were; None where there are none.
    """

    header: Trigger
    inspector: Inspector
    cut: CutPart | None
    t_taken_ns: int
    step: Ready | Outcome

    @property
    def part(self) -> Picture | None:
        """The cut-out pixels, also view by view."""
        return None if self.cut is None else self.cut.pixels


class Lane:
    """As many parts as the engine has room for, of one recipe, begun and ended in the same order.

    Belongs to the engine's thread.
    """

    def __init__(self) -> None:
        self._parts: deque[tuple[Taken, Begun | Outcome]] = deque()

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[Taken]:
        return (taken for taken, _ in self._parts)

    @property
    def full(self) -> bool:
        """Whether the engine takes no further part before one has ended."""
        return bool(self._parts) and self._parts[0][0].inspector.engine.full

    def holds(self, camera_id: str) -> bool:
        """Whether a part of this camera is under way."""
        return any(taken.header.camera_id == camera_id for taken in self)

    def put(self, parts: Sequence[Taken]) -> None:
        """Behind all others; those that are ready for the engine are begun as one inference."""
        ready = [taken.step for taken in parts if isinstance(taken.step, Ready)]
        begun = iter(begin_together(parts[0].inspector.engine, ready) if ready else ())
        for taken in parts:
            self._parts.append((taken, next(begun) if isinstance(taken.step, Ready) else taken.step))

    def drop(self) -> None:
        """Forget every part, once the engine has ended it; waits for the engine."""
        while self._parts:
            self.end()

    def ready(self) -> bool:
        """Whether the oldest part can be ended without waiting for long."""
        if not self._parts:
            return False
        oldest, step = self._parts[0]
        return isinstance(step, Outcome) or oldest.inspector.engine.ready()

    def end(self) -> tuple[Taken, Outcome]:
        """End the oldest part; waits for the engine. Raises nothing."""
        taken, step = self._parts.popleft()
        if isinstance(step, Outcome):
            return taken, step
        try:
            return taken, taken.inspector.end(step)
        except Exception as error:  # noqa: BLE001 - whatever it was, the part has no verdict
            return taken, failed(taken.header.part_id, error)


def failed(part_id: str, error: Exception) -> Outcome:
    """What a part comes to that something failed for: NOT_INSPECTED with the reason."""
    if isinstance(error, FlawlineError):
        return not_inspected(str(error))
    log.error("part %s", part_id, exc_info=error)
    return not_inspected(f"internal error: {type(error).__name__}: {error}")
