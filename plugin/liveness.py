"""Whether a line is inspected at this moment: what its line controllers' heartbeat rests on (hops 7 to 10).

An edge says several times a second what its cameras and its inference do. A line is alive while every edge of it said
so a moment ago, every camera delivers, the last inference went well, no part waits past the deadline, and this host
can number parts. Anything else, silence above all, stops the heartbeat.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from contract.event import State
from plugin.connectors.base import RecipeState
from plugin.settings import LineSettings
from plugin.transit import Arrival

MAX_EDGES = 1024


class Heard(NamedTuple):
    """The last heartbeat of an edge; ``sent_ns`` is CLOCK_MONOTONIC of this machine."""

    state: State
    sent_ns: int


class Liveness:
    """``note`` every arrival, ask ``trouble_of`` a line; safe to use from several threads."""

    def __init__(self, lines: Sequence[LineSettings], line_of: Callable[[str], LineSettings]) -> None:
        self._lines = {line.id: line for line in lines}
        self._line_of = line_of
        self._lock = threading.Lock()
        self._heard: dict[str, Heard] = {}

    def note(self, arrivals: Sequence[Arrival]) -> None:
        """Learn from the heartbeats among ``arrivals``."""
        for arrival in arrivals:
            header = arrival.message.header
            if not isinstance(header, State):
                continue
            heard = Heard(header, arrival.arrived_ns - int(arrival.age_ms * 1e6))
            with self._lock:
                if header.edge_id in self._heard or len(self._heard) < MAX_EDGES:
                    self._heard[header.edge_id] = heard

    def edges_of(self, line_id: str) -> list[str]:
        """The edges that the line names, or, where it names none, those that were heard for it."""
        line = self._lines[line_id]
        if line.edges:
            return list(line.edges)
        with self._lock:
            return sorted(edge for edge in self._heard if self._line_of(edge).id == line_id)

    def state_of(self, edge_id: str) -> State | None:
        """What an edge said last; None before its first heartbeat."""
        with self._lock:
            heard = self._heard.get(edge_id)
        return None if heard is None else heard.state

    def recipe_of(self, line_id: str) -> RecipeState:
        """What judges the line's next parts; zeros where its edges disagree or do not say."""
        states = [self.state_of(edge) for edge in self.edges_of(line_id)]
        said = {
            None if state is None or state.model_sha256 is None else (state.recipe_number or 0, state.model_sha256)
            for state in states
        }
        if len(said) != 1 or (only := said.pop()) is None:
            return RecipeState(0, 0)
        return RecipeState(only[0], int(only[1][:8], 16))

    def trouble_of(self, line_id: str) -> str | None:
        """Why the line is not inspected now, in words; None where it is."""
        line = self._lines[line_id]
        edges = self.edges_of(line_id)
        if not edges:
            return "no edge has been heard of"
        trouble = next((trouble for edge in edges if (trouble := self._trouble_of_edge(line, edge))), None)
        numbers = {None if (state := self.state_of(edge)) is None else state.recipe_number for edge in edges}
        if trouble is None and len(numbers) > 1:
            return f"its edges judge by different recipes: {', '.join(map(str, sorted(numbers, key=str)))}"
        return trouble

    def forget(self, edges: frozenset[str]) -> None:
        """These are no longer authorised: where no line names them, nobody waits for them any more."""
        with self._lock:
            for edge_id in edges:
                self._heard.pop(edge_id, None)

    def _trouble_of_edge(self, line: LineSettings, edge_id: str) -> str | None:
        with self._lock:
            heard = self._heard.get(edge_id)
        if heard is None:
            return f"{edge_id}: not heard of"
        silent_ms = (time.monotonic_ns() - heard.sent_ns) / 1e6
        if silent_ms > line.silence_ms:
            return f"{edge_id}: silent for {silent_ms:.0f} ms, at most {line.silence_ms} ms"
        trouble = _trouble_of_state(heard.state, line)
        return None if trouble is None else f"{edge_id}: {trouble}"


def _trouble_of_state(state: State, line: LineSettings) -> str | None:
    if state.state != "running":
        return f"is {state.state}"
    if not state.inspecting:
        return "inspection is stopped by request"
    if state.inference != "ok":
        return "inference fails" if state.inference == "failed" else "does not say whether it infers; update it"
    if state.waiting_ms > line.deadline_ms:
        return f"a part has waited {state.waiting_ms:.0f} ms for its verdict, the deadline is {line.deadline_ms} ms"
    for camera in state.cameras:
        if camera.state != "running":
            return f"camera {camera.camera_id} is {camera.state}"
        if not 0 <= camera.frame_age_ms <= line.frame_age_ms:
            return f"camera {camera.camera_id}: no frame for {camera.frame_age_ms:.0f} ms, at most {line.frame_age_ms}"
    return None if state.cameras else "it has no camera"
