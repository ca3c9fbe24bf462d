"""The register map of a line: numbered results in a ring, heartbeat, acknowledgement, counters (hop 10).

Plain memory; who serves it (Modbus TCP) is another module's matter. Words are 16 bits; what needs 32 has its high word
first. A controller polls words 0 to 111 in one read, which is answered in one piece, and writes from 200 on.
``docs/modbus.md`` is the page for the controller's programmer; a test holds it against the tables here.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from contract.event import LineCode
from plugin.connectors.base import LINE_CONTROLLER, LineOutput, RecipeState

VERSION = 1
SLOTS = 8
SLOT_WORDS = 10
RING = 32
SEQ_MAX = 65528
"""Largest sequence number; a multiple of SLOTS, so that slot (seq - 1) mod 8 holds over the wrap as well."""

READ_WORDS = RING + SLOTS * SLOT_WORDS
WRITE_FIRST = 200
SIZE = 210
JUMP = 16
"""A part counter that goes on by more at once was set anew; so many parts cannot have passed."""

ASK_AGAIN_S = 5.0
"""A controller that goes on writing a recipe that was refused is taken to ask again: the reason may have passed."""

CLEAR = 1
"""The command that clears the bits overrun and missed, and the warning."""

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
    "ring": RING,
}
WRITTEN = {
    "acknowledge": 200,
    "controller_heartbeat": 201,
    "command": 202,
    "recipe_request": 203,
    "part_counter": 204,
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
}
ERRORS = {"none": 0, "not_inspecting": 1, "another_recipe": 2}
WARNINGS = {"none": 0, "acknowledged_what_was_not_sent": 1, "counter_jumped": 2, "unknown_command": 3}
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
    """What a controller's write asks of the host: its counter at each part it saw, and a recipe to select."""

    counters: tuple[int, ...]
    recipe: int | None


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
        self._last_command = 0
        self._refused_at = 0.0
        self._head = self._acked = last_number
        self._counter: int | None = None
        self._counts = dict.fromkeys(("results", "missed", "overruns", *COUNTERS.values()), 0)
        self._set("version", VERSION)
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

    def beat(self, trouble: str | None, recipe: RecipeState) -> None:
        """Ten times a second: the heartbeat goes on only where the line is inspected."""
        with self._room:
            requested = self._words[WORDS["recipe_requested"]]
            error = "none" if trouble is None else "not_inspecting"
            if trouble is None and requested not in (0, recipe.number):
                error = "another_recipe"  # the parts that come are not those that the recipe judges
            if error == "none":
                self._set("heartbeat", self._words[WORDS["heartbeat"]] + 1 & 0xFFFF)
            self._flag("ready", error == "none")
            self._flag("error", error != "none")
            self._set("error", ERRORS[error])
            self._set("recipe", recipe.number & 0xFFFF)
            self._set("model", recipe.model)
            if requested and requested == recipe.number:
                self._set("recipe_state", RECIPE_STATES["active"])
            self._flag("recipe_mismatch", requested not in (0, recipe.number))

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
        recipe = None
        with self._room:
            for address, value in enumerate(values, first):
                self._words[address] = value & 0xFFFF
                if address == WRITTEN["acknowledge"]:
                    self._acknowledge(value)
                elif address == WRITTEN["controller_heartbeat"]:
                    self._set("controller_heartbeat_echo", value)
                elif address == WRITTEN["command"]:
                    self._command(value)
                elif address == WRITTEN["recipe_request"] and self._request(value):
                    recipe = value
                elif address == WRITTEN["part_counter"]:
                    counters = self._count_parts(value)
            self._room.notify_all()
        return Asked(counters, recipe)

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

    def _command(self, command: int) -> None:
        before, self._last_command = self._last_command, command
        if command == before:
            return  # a controller that writes its whole block every cycle asks once
        if command == CLEAR:
            self._flag("overrun", False)
            self._flag("missed", False)
            self._warn("none")
        elif command:
            self._warn("unknown_command")

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
