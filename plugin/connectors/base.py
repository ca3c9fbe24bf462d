"""What every way to a line controller implements, and what it is given (hop 10)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from contract.event import LineCode

LINE_CONTROLLER = "(line controller)"
"""Stands as ``edge_id`` of a part that the line controller counted and no edge announced; no edge can be called so."""


class LineOutput(NamedTuple):
    """One part's code for the line. ``due_ns``: CLOCK_MONOTONIC after which it must not be sent.

    ``counter`` is the line controller's own count at this part, None where it counted none there; ``captured_ns`` is
    CLOCK_MONOTONIC, 0 where not known. ``ratio`` is score over threshold and ``model`` the first 32 bits of the model's
    sha256, None where nothing was scored.
    """

    line: str
    number: int
    edge_id: str
    part_id: str
    camera_id: str
    trigger_id: int
    code: LineCode
    reason: str | None
    due_ns: int
    counter: int | None = None
    captured_ns: int = 0
    ratio: float | None = None
    model: int | None = None


class RecipeState(NamedTuple):
    """What a line's edges say they judge by; ``number`` 0 and ``model`` 0 where they disagree or say nothing."""

    number: int
    model: int


def ask_nobody(
    line: str,
    what: Literal["start", "stop", "trigger"],
    serial: str | None,
    done: Callable[[str | None, tuple[str, ...]], None],
) -> None:
    """The answer of a plant whose edges cannot be asked."""
    done("the host has no [control]", ())


GateOutcome = Literal["confirmed", "not_confirmed", "bin_full"]
"""What a sensor behind the gate saw of a part: it left the line there; it did not; there is no room for it."""

LineCommand = Literal["clear_stop", "require_challenge", "begin_challenge"]
StopKind = Literal["not_confirmed", "rejects_in_a_row", "not_inspected_in_a_row", "bin_full", "alarm"]
Challenge = Literal["none", "due", "running", "failed", "passed"]


class LineState(NamedTuple):
    """Whether a line is to stop, and how its challenge with master parts stands; ``none``: it has no masters.

    ``held``: why no part of the line is OK although it is inspected. ``taken`` of ``steps`` masters have been read.
    ``drift``: alarms of drift that nobody has cleared; nothing follows from them by itself.
    """

    stop: StopKind | None = None
    stop_text: str | None = None
    challenge: Challenge = "none"
    held: str | None = None
    taken: int = 0
    steps: int = 0
    drift: str | None = None


class Plant(NamedTuple):
    """What a connector may ask of the host and tell it; every call returns at once, from any thread.

    ``lines``: those that the connector serves. ``trouble(line)``: why the line is not inspected now, None where it is.
    ``last_number(line)``: the last number that is committed, 0 before the first. ``deadline_ms(line)``: from a part's
    capture to its output. ``counted(line, counters, t_ns)``: the line controller's counter went on to each of
    ``counters``, of which one write told at ``t_ns`` of CLOCK_MONOTONIC. ``recipe(line)``: what judges now.
    ``select_recipe(line, number, done)``: ask for another; ``done`` hears None, or why it was refused.
    ``fail(output, detail)``: an output that ``publish`` took could not be delivered after all.
    ``ask(line, what, serial, done)``: start or stop inspecting, or take a picture of the part in view, whose own
    ``serial`` may be told; ``done`` hears None or the refusal, and ``EDGE/PART`` of each part that was triggered.
    ``state(line)``: whether it is to stop, and its challenge, of which ``trouble`` speaks too.
    ``gate(line, number, outcome)``: what a sensor behind the gate saw of the part with this number; raises LineError
    where that is no number or no outcome.
    ``command(line, what)``: the controller asks for it.
    """

    lines: tuple[str, ...]
    trouble: Callable[[str], str | None]
    last_number: Callable[[str], int]
    deadline_ms: Callable[[str], int]
    counted: Callable[[str, tuple[int, ...], int], None]
    recipe: Callable[[str], RecipeState]
    select_recipe: Callable[[str, int, Callable[[str | None], None]], None]
    fail: Callable[[LineOutput, str], None]
    ask: Callable[
        [str, Literal["start", "stop", "trigger"], str | None, Callable[[str | None, tuple[str, ...]], None]], None
    ] = ask_nobody
    state: Callable[[str], LineState] = lambda _line: LineState()
    gate: Callable[[str, int, GateOutcome], None] = lambda _line, _number, _outcome: None
    command: Callable[[str, LineCommand], None] = lambda _line, _what: None

    def trouble_and_held(self, line: str) -> tuple[str | None, bool]:
        """``trouble``, and whether it is only that masters are due: the line is inspected then, and nothing of it OK.

        Their state is asked before and after, so that no moment at which it changes is taken for trouble.
        """
        before = self.state(line).held
        trouble = self.trouble(line)
        return trouble, trouble is not None and trouble in (before, self.state(line).held)


class Connector(ABC):
    """One line controller. Made once, then used by a thread of its own; it may block, others do not wait for it.

    A number is given to ``publish`` once, ever: raise ConnectorError where it was not delivered; it is never retried.
    """

    patience_s: ClassVar[float] = 120.0
    """How long one ``publish`` may take; after more, or the host's `hang_s`, it hangs and the host is started again."""

    takes_late: ClassVar[bool] = False
    """Whether an output that is no PASS is given to ``publish`` after its ``due_ns`` as well."""

    @abstractmethod
    def __init__(self, url: str, base_dir: Path) -> None:
        """Read ``url`` (raises ConfigError); paths in it are relative to ``base_dir``. Connects nothing yet."""

    def start(self, plant: Plant) -> None:  # noqa: B027 - a connector that only publishes has nothing to begin
        """Begin to listen, once, before the first output. Raises ConfigError where an address cannot be used."""

    @abstractmethod
    def publish(self, output: LineOutput) -> None:
        """Deliver one output, connecting first where needed; raises ConnectorError."""

    def interrupt(self) -> None:  # noqa: B027 - a connector whose publish does not wait has nothing to end
        """The host stops: a ``publish`` that waits must end now. Called by another thread, perhaps more than once."""

    def status(self) -> dict[str, object]:
        """What a person should know about it now, for the health page; JSON values."""
        return {}

    def close(self) -> None:  # noqa: B027 - a connector without resources has nothing to close
        """Let go of the controller. Called once by another thread than ``publish``'s, or by its own."""
