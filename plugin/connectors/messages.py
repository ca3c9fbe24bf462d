"""The JSON that MQTT and webhooks carry: one message for each part, and one for how its line is (hop 10).

``docs/mqtt.md`` and ``docs/webhook.md`` are the pages for those who take them.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from datetime import UTC, datetime

from plugin.connectors.base import LineOutput, Plant, RecipeState

VERSION = 1
LOOK_S = 0.1
"""How often a line is asked how it is."""

BEAT_S = 1.0
"""How often that is told where nothing changed."""

GONE = "the host is gone"
STOPPED = "the host was stopped"


def new_session() -> str:
    """Names one start of the host, so that a number that comes again is known from one of another start."""
    return secrets.token_hex(8)


def encode(message: Mapping[str, object]) -> bytes:
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()


def result(output: LineOutput, session: str) -> dict[str, object]:
    """One part's code; ``due`` is when it ends to count. Made once, so that it is the same however often it is sent."""
    now_ns, now = time.monotonic_ns(), time.time()
    return {
        "version": VERSION,
        "kind": "result",
        "session": session,
        "line": output.line,
        "number": output.number,
        "edge": output.edge_id,
        "part": output.part_id,
        "camera": output.camera_id,
        "trigger": output.trigger_id,
        "counter": output.counter,
        "code": int(output.code),
        "verdict": output.code.name,
        "reason": output.reason,
        "ratio": None if output.ratio is None else round(output.ratio, 4),
        "model": None if output.model is None else f"{output.model:08x}",
        "captured": _utc(now + (output.captured_ns - now_ns) / 1e9) if output.captured_ns else None,
        "due": _utc(now + (output.due_ns - now_ns) / 1e9),
        "sent": _utc(now),
    }


def status(
    line: str, session: str, beat: int, trouble: str | None, recipe: RecipeState, drift: str | None = None
) -> dict[str, object]:
    """How the line is; ``beat`` goes on only while it is inspected, for masters that are due as well."""
    return {
        "version": VERSION,
        "kind": "status",
        "session": session,
        "line": line,
        "beat": beat,
        "inspected": trouble is None,
        "trouble": trouble,
        "recipe": recipe.number or None,
        "model": f"{recipe.model:08x}" if recipe.model else None,
        "drift": drift,
        "sent": _utc(time.time()),
    }


def last_will(line: str, session: str) -> dict[str, object]:
    """What a broker says in the host's place, at a time that nobody knows when it is written."""
    return {**status(line, session, 0, GONE, RecipeState(0, 0)), "sent": None}


class Heart:
    """Asks one line how it is, and says when that has to be told. One thread uses it."""

    def __init__(self, plant: Plant, line: str, session: str) -> None:
        self._plant, self._line, self._session = plant, line, session
        self._beat = 0
        self._told: tuple[str | None, bool, RecipeState, str | None] | None = None
        self._due = 0.0

    def look(self, anew: bool = False) -> dict[str, object] | None:
        """A status that has to be told now: something changed, it is time for a beat, or ``anew`` wants one."""
        state = self._ask()
        if state == self._told and time.monotonic() < self._due and not anew:
            return None
        self._told, self._due = state, time.monotonic() + BEAT_S
        trouble, held, recipe, drift = state
        if trouble is None or held:
            self._beat += 1
        return status(self._line, self._session, self._beat, trouble, recipe, drift)

    def last(self) -> dict[str, object]:
        """What is told when the host stops in order."""
        return status(self._line, self._session, self._beat, STOPPED, RecipeState(0, 0))

    def _ask(self) -> tuple[str | None, bool, RecipeState, str | None]:
        try:
            drift = self._plant.state(self._line).drift
            return *self._plant.trouble_and_held(self._line), self._plant.recipe(self._line), drift
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody knows that the line is inspected
            return f"the host cannot say how the line is: {error!r}"[:300], False, RecipeState(0, 0), None


def _utc(t_s: float) -> str:
    return datetime.fromtimestamp(t_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
