"""The register map of a line: numbered results in a ring, heartbeat, acknowledgement, counters (hop 10).

Plain memory; who serves it (Modbus TCP) is another module's matter. Words are 16 bits; what needs 32 has its high word
first. A controller polls words 0 to 119 in one read, which is answered in one piece, and writes from 200 on. One that
knows only what was there at first reads 0 to 111 and misses nothing that would pass a part.
``docs/modbus.md`` is the page for the controller's programmer; a test holds it against the tables here.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from contract.event import LineCode
from plugin.connectors.base import (
    LINE_CONTROLLER,
    Challenge,
    GateOutcome,
    LineCommand,
    LineOutput,
    LineState,
    RecipeState,
    StopKind,
)

VERSION = 1
"""Of what stands at each address. Another one would stop every controller, so what is added is told by ADDITIONS."""

ADDITIONS = 2
"""What came behind the words of the first map: 1 gate, stop and challenge; 2 the bit drift."""

SLOTS = 8
SLOT_WORDS = 10
RING = 32
SEQ_MAX = 65528
"""Largest sequence number; a multiple of SLOTS, so that slot (seq - 1) mod 8 holds over the wrap as well."""

BEHIND = RING + SLOTS * SLOT_WORDS
"""The first word behind the ring; the first map ended here."""

READ_WORDS = BEHIND + 8
WRITE_FIRST = 200
SIZE = 210
GATE_BACK = 4096
"""Parts that may stand between a camera and the sensor behind its gate; what names one further back means none."""

JUMP = 16
"""A part counter that goes on by more at once was set anew; so many parts cannot have passed."""

ASK_AGAIN_S = 5.0
"""A controller that goes on writing a recipe that was refused is taken to ask again: the reason may have passed."""

CLEAR = 1
"""The command that clears the bits overrun and missed, and the warning."""

COMMANDS: dict[int, LineCommand] = {2: "clear_stop", 3: "require_challenge", 4: "begin_challenge"}
"""The others, which the host does."""

WORDS = {
    "version": 0,
    "status": 1,
    "heartbeat": 2,
    "controller_heartbeat_echo": 3,
    "head": 4,
    "tail": 5,
    "acknowledged": 6,
    "free": 7,
    "session": 8,
    "error": 10,
    "warning": 11,
    "recipe": 12,
    "model": 13,
    "results": 15,
    "passed": 17,
    "rejected": 19,
    "review": 21,
    "not_inspected": 23,
    "counter_echo": 25,
    "missed": 26,
    "overruns": 27,
    "recipe_requested": 28,
    "recipe_state": 29,
    "additions": 30,
    "ring": RING,
    "stop": BEHIND,
    "challenge": BEHIND + 1,
    "challenge_taken": BEHIND + 2,
    "challenge_steps": BEHIND + 3,
    "gate_echo": BEHIND + 4,
}
WRITTEN = {
    "acknowledge": 200,
    "controller_heartbeat": 201,
    "command": 202,
    "recipe_request": 203,
    "part_counter": 204,
    "gate_outcome": 205,
    "gate_seq": 206,
}
SLOT = {
    "seq": 0,
    "trigger_id": 1,
    "code": 3,
    "counter": 4,
    "flags": 5,
    "age_ms": 6,
    "ratio": 7,
    "model": 8,
    "seq_again": 9,
}
FLAGS = {"judged": 0, "counted": 1, "stale": 2}
STATUS = {
    "ready": 0,
    "result_available": 1,
    "result_toggle": 2,
    "overrun": 3,
    "missed": 4,
    "warning": 5,
    "error": 6,
    "recipe_mismatch": 7,
    "stop": 8,
    "challenge": 9,
    "drift": 10,
}
ERRORS = {"none": 0, "not_inspecting": 1, "another_recipe": 2, "challenge_due": 3, "challenge_failed": 4}
WARNINGS = {
    "none": 0,
    "acknowledged_what_was_not_sent": 1,
    "counter_jumped": 2,
    "unknown_command": 3,
    "unknown_gate_result": 4,
}
STOPS: dict[StopKind | None, int] = {
    None: 0,
    "not_confirmed": 1,
    "rejects_in_a_row": 2,
    "not_inspected_in_a_row": 3,
    "bin_full": 4,
    "alarm": 5,
}
CHALLENGES: dict[Challenge, int] = {"none": 0, "due": 1, "running": 2, "failed": 3, "passed": 4}
GATE: dict[int, GateOutcome] = {1: "confirmed", 2: "not_confirmed", 3: "bin_full"}
RECIPE_STATES = {"none": 0, "asked": 1, "active": 2, "refused": 3}
COUNTERS = {
    LineCode.PASS: "passed",
    LineCode.REJECT: "rejected",
    LineCode.REVIEW: "review",
    LineCode.NOT_INSPECTED: "not_inspected",
}
WIDE = frozenset({"session", "model", "results", *COUNTERS.values()})


class Held(NamedTuple):
    """A result in its slot, and whether a controller has read it in time."""

    output: LineOutput
    shown: bool


class Asked(NamedTuple):
    """What a controller's write asks of the host: its counter at each part it saw, a recipe to select, a command.

    ``gate``: the number of a part, and what the sensor behind the gate saw of it.
    """

    counters: tuple[int, ...]
    recipe: int | None
    command: LineCommand | None = None
    gate: tuple[int, GateOutcome] | None = None


def seq_of(number: int) -> int:
    """The sequence number, 1 to SEQ_MAX, of a part's number on its line; 0 before the first part."""
    return 0 if number < 1 else (number - 1) % SEQ_MAX + 1


class Registers:
    """One line's memory. Every method may be called from any thread; ``offer`` from one.

    With ``acknowledged`` a result stays until the controller acknowledged it; otherwise the newest overwrites the
    eighth last, and a controller that polls too slowly sees a gap in the sequence.
    """

    def __init__(self, last_number: int, acknowledged: bool) -> None:
        self._words = [0] * SIZE
        self._room = threading.Condition()
        self._acknowledged = acknowledged
        self._closed = False
        self._stored = [0] * SLOTS
        self._held: list[Held | None] = [None] * SLOTS
        self._unread: list[LineOutput] = []
        self._last_command: int | None = None
        self._last_gate: tuple[int, int] | None = None
        self._refused_at = 0.0
        self._before = self._head = self._acked = last_number
        self._counter: int | None = None
        self._counts = dict.fromkeys(("results", "missed", "overruns", *COUNTERS.values()), 0)
        self._set("version", VERSION)
        self._set("additions", ADDITIONS)
        self._set("session", secrets.randbits(32) or 1)
        self._set_ring()

    def offer(self, output: LineOutput) -> bool:
        """Put a result into its slot, waiting for room until its ``due_ns``; False where there was none till then."""
        slot = (seq_of(output.number) - 1) % SLOTS
        with self._room:
            wait_s = max(0.0, (output.due_ns - time.monotonic_ns()) / 1e9)
            free = self._room.wait_for(lambda: self._closed or self._is_free(slot), min(wait_s, threading.TIMEOUT_MAX))
            if self._closed:
                return False
            if not free:
                self._add("overruns")
                self._flag("overrun", True)
                return False
            self._note_unread(self._held[slot])
            self._stored[slot] = self._head = output.number
            self._held[slot] = Held(output, False)
            self._write_slot(slot, output)
            self._add("results")
            self._add(COUNTERS[output.code])
            if output.edge_id == LINE_CONTROLLER:
                self._add("missed")
                self._flag("missed", True)
            self._flag("result_toggle", not self._words[WORDS["status"]] >> STATUS["result_toggle"] & 1)
            self._set_ring()
            return True

    def unread(self) -> list[LineOutput]:
        """Results that no controller read by their ``due_ns``, each told once."""
        now_ns = time.monotonic_ns()
        with self._room:
            for slot, held in enumerate(self._held):
                if held is not None and not held.shown and held.output.due_ns < now_ns:
                    self._note_unread(held)
                    self._held[slot] = Held(held.output, True)
            unread, self._unread = self._unread, []
            return unread

    def _note_unread(self, held: Held | None) -> None:
        if held is not None and not held.shown:
            self._unread.append(held.output)

    def beat(self, trouble: str | None, recipe: RecipeState, state: LineState = LineState()) -> None:  # noqa: B008 - immutable
        """Ten times a second: the heartbeat goes on only where the line is inspected.

        While masters are due it is, and the line has to move for them: the heartbeat goes on, and nothing is ready.
        """
        with self._room:
            requested = self._words[WORDS["recipe_requested"]]
            held = state.held is not None and trouble in (None, state.held)
            error = "none" if trouble is None or held else "not_inspecting"
            if error == "none" and requested not in (0, recipe.number):
                error = "another_recipe"  # the parts that come are not those that the recipe judges
            if error == "none":
                self._set("heartbeat", self._words[WORDS["heartbeat"]] + 1 & 0xFFFF)
                if held:
                    error = "challenge_failed" if state.challenge == "failed" else "challenge_due"
            self._flag("ready", error == "none")
            self._flag("error", error != "none")
            self._set("error", ERRORS[error])
            self._set("recipe", recipe.number & 0xFFFF)
            self._set("model", recipe.model)
            if requested and requested == recipe.number:
                self._set("recipe_state", RECIPE_STATES["active"])
            self._flag("recipe_mismatch", requested not in (0, recipe.number))
            self._flag("stop", state.stop is not None)
            self._flag("challenge", state.held is not None)
            self._flag("drift", state.drift is not None)
            self._set("stop", STOPS[state.stop])
            self._set("challenge", CHALLENGES[state.challenge])
            self._set("challenge_taken", state.taken)
            self._set("challenge_steps", state.steps)

    def refuse_recipe(self, number: int) -> None:
        """The edges would not take this recipe; forgotten where another was asked for since."""
        with self._room:
            if self._words[WORDS["recipe_requested"]] == number:
                self._set("recipe_state", RECIPE_STATES["refused"])
                self._refused_at = time.monotonic()

    def read(self, first: int = 0, count: int = SIZE) -> list[int]:
        """Words as they stand, none half written; ages are of this moment, and a result past its time is no PASS."""
        now_ns = time.monotonic_ns()
        with self._room:
            words = list(self._words)
            for slot, held in enumerate(self._held):
                at = RING + slot * SLOT_WORDS
                if held is not None and first <= at and at + SLOT_WORDS <= first + count:
                    self._show(words, slot, held, now_ns)
            return words[first : first + count]

    def _show(self, words: list[int], slot: int, held: Held, now_ns: int) -> None:
        at = RING + slot * SLOT_WORDS
        output = held.output
        age_ms = (now_ns - output.captured_ns) // 1_000_000 if output.captured_ns else 0
        words[at + SLOT["age_ms"]] = min(max(age_ms, 0), 0xFFFF)
        if now_ns > output.due_ns:
            words[at + SLOT["code"]] = int(LineCode.NOT_INSPECTED)
            words[at + SLOT["flags"]] |= 1 << FLAGS["stale"]
        elif not held.shown:
            self._held[slot] = Held(output, True)

    def write(self, first: int, values: Sequence[int]) -> Asked:
        """A controller wrote ``values`` from word ``first`` on, all within 200 to 209."""
        counters: tuple[int, ...] = ()
        recipe, command, gate = None, None, None
        with self._room:
            for address, value in enumerate(values, first):
                self._words[address] = value & 0xFFFF
                if address == WRITTEN["acknowledge"]:
                    self._acknowledge(value)
                elif address == WRITTEN["controller_heartbeat"]:
                    self._set("controller_heartbeat_echo", value)
                elif address == WRITTEN["command"]:
                    command = self._command(value)
                elif address == WRITTEN["recipe_request"] and self._request(value):
                    recipe = value
                elif address == WRITTEN["part_counter"]:
                    counters = self._count_parts(value)
                elif address == WRITTEN["gate_seq"]:
                    gate = self._gate(value)
            self._room.notify_all()
        return Asked(counters, recipe, command, gate)

    def close(self) -> None:
        """Let a waiting ``offer`` end."""
        with self._room:
            self._closed = True
            self._room.notify_all()

    def _is_free(self, slot: int) -> bool:
        return not self._acknowledged or self._stored[slot] <= self._acked

    def _acknowledge(self, seq: int) -> None:
        """The number meant is the last one, up to the head, that has this sequence number."""
        if seq == 0:
            return
        number = self._head - (seq_of(self._head) - seq) % SEQ_MAX
        if seq > SEQ_MAX or number < self._acked - 2 * SLOTS:
            self._warn("acknowledged_what_was_not_sent")
        elif number > self._acked:
            self._acked = number
            self._set_ring()

    def _command(self, command: int) -> LineCommand | None:
        """What the host is to do. The first word of a session asks for nothing: it may stand there from before."""
        before, self._last_command = self._last_command, command
        if before is None or command == before:
            return None  # a controller that writes its whole block every cycle asks once
        if command == CLEAR:
            self._flag("overrun", False)
            self._flag("missed", False)
            self._warn("none")
        elif command and command not in COMMANDS:
            self._warn("unknown_command")
        return COMMANDS.get(command)

    def _gate(self, seq: int) -> tuple[int, GateOutcome] | None:
        """The part's number, the last up to the head with this sequence number, and what became of it.

        The first word of a session that names a part of before it tells nothing: it may stand there from before.
        """
        said = (seq, self._words[WRITTEN["gate_outcome"]])
        before, self._last_gate = self._last_gate, said
        if said == before or seq == 0 or said[1] == 0:
            return None
        self._set("gate_echo", seq)
        number = self._head - (seq_of(self._head) - seq) % SEQ_MAX
        if before is None and number <= self._before:
            return None
        if seq > SEQ_MAX or number < max(1, self._head - GATE_BACK) or said[1] not in GATE:
            self._warn("unknown_gate_result")
            return None
        return number, GATE[said[1]]

    def _request(self, number: int) -> bool:
        """Whether a recipe is asked for that was not asked for before, or was refused some seconds ago."""
        refused = self._words[WORDS["recipe_state"]] == RECIPE_STATES["refused"]
        again = refused and time.monotonic() - self._refused_at > ASK_AGAIN_S
        if number == self._words[WORDS["recipe_requested"]] and not again:
            return False
        self._set("recipe_requested", number)
        self._set("recipe_state", RECIPE_STATES["asked" if number else "none"])
        return number != 0

    def _count_parts(self, counter: int) -> tuple[int, ...]:
        """The counts that went by since the last write; the first write of a session only says where counting is."""
        before, self._counter = self._counter, counter
        self._set("counter_echo", counter)
        if before is None:
            return ()
        steps = (counter - before) & 0xFFFF
        if steps > JUMP:
            self._warn("counter_jumped")
            return ()
        return tuple((before + step) & 0xFFFF for step in range(1, steps + 1))

    def _write_slot(self, slot: int, output: LineOutput) -> None:
        seq = seq_of(output.number)
        judged = output.code is not LineCode.NOT_INSPECTED
        flags = judged << FLAGS["judged"] | (output.counter is not None) << FLAGS["counted"]
        values = {
            "seq": seq,
            "trigger_id": output.trigger_id >> 16 & 0xFFFF,
            "code": int(output.code),
            "counter": (output.counter or 0) & 0xFFFF,
            "flags": flags,
            "age_ms": 0,
            "ratio": min(max(round((output.ratio or 0.0) * 1000), 0), 0xFFFF),
            "model": (output.model or 0) >> 16,
            "seq_again": seq,
        }
        at = RING + slot * SLOT_WORDS
        for name, value in values.items():
            self._words[at + SLOT[name]] = value
        self._words[at + SLOT["trigger_id"] + 1] = output.trigger_id & 0xFFFF

    def _set_ring(self) -> None:
        waiting = [number for number in self._stored if number > self._acked] if self._acknowledged else []
        held = waiting or [number for number in self._stored if number]
        self._set("head", seq_of(self._head))
        self._set("tail", seq_of(min(held)) if held else 0)
        self._set("acknowledged", seq_of(self._acked))
        self._set("free", SLOTS - len(waiting))
        self._flag("result_available", bool(waiting))

    def _add(self, name: str) -> None:
        self._counts[name] += 1
        self._set(name, self._counts[name])

    def _set(self, name: str, value: int) -> None:
        at = WORDS[name]
        if name in WIDE:
            self._words[at : at + 2] = value >> 16 & 0xFFFF, value & 0xFFFF
        else:
            self._words[at] = value & 0xFFFF

    def _flag(self, name: str, on: bool) -> None:
        bit = 1 << STATUS[name]
        word = self._words[WORDS["status"]]
        self._words[WORDS["status"]] = word | bit if on else word & ~bit

    def _warn(self, name: str) -> None:
        self._set("warning", WARNINGS[name])
        self._flag("warning", name != "none")
