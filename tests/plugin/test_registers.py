"""The register map by itself: the ring and its wrap, acknowledgement, overrun, counters, the heartbeat's gate."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.event import LineCode
from plugin.connectors import registers as r
from plugin.connectors.base import LINE_CONTROLLER, LineOutput, LineState, RecipeState
from plugin.connectors.registers import Registers, seq_of

ROOT = Path(__file__).resolve().parents[2]
NOW = RecipeState(0, 0)


def output(number: int, code: LineCode = LineCode.PASS, wait_s: float = 60.0, **more: object) -> LineOutput:
    due_ns = time.monotonic_ns() + int(wait_s * 1e9)
    return LineOutput("line-1", number, "edge-1", f"p{number}", "cam-1", 7 * number, code, None, due_ns)._replace(
        **more
    )  # type: ignore[arg-type]


def slot(words: list[int], number: int) -> dict[str, int]:
    at = r.RING + (seq_of(number) - 1) % r.SLOTS * r.SLOT_WORDS
    return {name: words[at + offset] for name, offset in r.SLOT.items()}


def value(words: list[int], name: str) -> int:
    at = r.WORDS[name]
    return words[at] << 16 | words[at + 1] if name in r.WIDE else words[at]


def bit(words: list[int], name: str) -> bool:
    return bool(words[r.WORDS["status"]] >> r.STATUS[name] & 1)


def acknowledge(registers: Registers, number: int) -> None:
    registers.write(r.WRITTEN["acknowledge"], [seq_of(number)])


def clear(registers: Registers) -> None:
    for word in (0, r.CLEAR):
        registers.write(r.WRITTEN["command"], [word])


def test_a_result_stands_in_its_slot_with_all_that_is_known_of_it() -> None:
    registers = Registers(0, acknowledged=True)
    captured_ns = time.monotonic_ns() - 40_000_000
    assert registers.offer(
        output(1, LineCode.REJECT, trigger_id=0x12345, counter=9, captured_ns=captured_ns, ratio=1.75, model=0xABCD1234)
    )
    words = registers.read()
    found = slot(words, 1)
    assert 40 <= found.pop("age_ms") < 5000
    assert found == {
        "seq": 1,
        "trigger_id": 0x1,
        "code": 2,
        "counter": 9,
        "flags": 0b11,
        "ratio": 1750,
        "model": 0xABCD,
        "seq_again": 1,
    }
    assert words[r.RING + r.SLOT["trigger_id"] + 1] == 0x2345
    assert (value(words, "head"), value(words, "tail"), value(words, "free")) == (1, 1, 7)
    assert bit(words, "result_available")
    assert bit(words, "result_toggle")


def test_what_was_not_judged_says_so() -> None:
    registers = Registers(0, acknowledged=True)
    registers.offer(output(1, LineCode.NOT_INSPECTED))
    registers.offer(output(2, LineCode.NOT_INSPECTED, edge_id=LINE_CONTROLLER, counter=0))
    words = registers.read()
    assert slot(words, 1)["flags"] == 0
    assert slot(words, 2)["flags"] == 1 << r.FLAGS["counted"]
    assert value(words, "missed") == 1
    assert bit(words, "missed")
    clear(registers)
    assert not bit(registers.read(), "missed")
    assert value(registers.read(), "missed") == 1  # a count is never cleared


@pytest.mark.parametrize("start", [0, 1, 7, 65_520, 65_527, 65_528, 10 * 65_528 - 3])
def test_sequence_numbers_and_slots_go_on_over_the_wrap(start: int) -> None:
    registers = Registers(start, acknowledged=True)
    for number in range(start + 1, start + 40):
        assert registers.offer(output(number))
        words = registers.read()
        assert slot(words, number)["seq"] == slot(words, number)["seq_again"] == value(words, "head") == seq_of(number)
        assert 1 <= seq_of(number) <= r.SEQ_MAX
        acknowledge(registers, number)
        assert value(registers.read(), "free") == r.SLOTS
    held = {slot(registers.read(), number)["seq"] for number in range(start + 32, start + 40)}
    assert len(held) == r.SLOTS  # eight in a row never share a slot


def test_an_unacknowledged_result_is_never_overwritten() -> None:
    registers = Registers(0, acknowledged=True)
    for number in range(1, 9):
        assert registers.offer(output(number))
    assert not registers.offer(output(9, wait_s=0.05))
    words = registers.read()
    assert [slot(words, number)["seq"] for number in range(1, 9)] == list(range(1, 9))
    assert bit(words, "overrun")
    assert (value(words, "overruns"), value(words, "free"), value(words, "head")) == (1, 0, 8)
    acknowledge(registers, 2)
    assert registers.offer(output(10))  # its slot was number 2's
    assert not registers.offer(output(11, wait_s=0.0))
    clear(registers)
    assert not bit(registers.read(), "overrun")


def test_room_that_comes_in_time_is_used() -> None:
    registers = Registers(0, acknowledged=True)
    for number in range(1, 9):
        registers.offer(output(number))
    taken: list[bool] = []
    waiting = threading.Thread(target=lambda: taken.append(registers.offer(output(9))))
    waiting.start()
    acknowledge(registers, 1)
    waiting.join(10)
    assert taken == [True]


def test_closing_ends_a_wait() -> None:
    registers = Registers(0, acknowledged=True)
    for number in range(1, 9):
        registers.offer(output(number))
    taken: list[bool] = []
    waiting = threading.Thread(target=lambda: taken.append(registers.offer(output(9))))
    waiting.start()
    registers.close()
    waiting.join(10)
    assert taken == [False]


def test_without_acknowledgement_the_newest_eight_stand() -> None:
    registers = Registers(0, acknowledged=False)
    for number in range(1, 13):
        assert registers.offer(output(number))
    words = registers.read()
    assert [slot(words, number)["seq"] for number in range(5, 13)] == list(range(5, 13))
    assert (value(words, "tail"), value(words, "head"), value(words, "free")) == (5, 12, 8)
    assert not bit(words, "overrun")


@pytest.mark.parametrize("nonsense", [9, 40_000, 65_529, 65_535])
def test_an_acknowledgement_of_what_was_not_sent_frees_nothing(nonsense: int) -> None:
    registers = Registers(100_000, acknowledged=True)
    for number in range(100_001, 100_009):
        registers.offer(output(number))
    registers.write(r.WRITTEN["acknowledge"], [nonsense])
    words = registers.read()
    assert value(words, "free") == 0
    assert value(words, "warning") == r.WARNINGS["acknowledged_what_was_not_sent"]
    acknowledge(registers, 100_008)
    acknowledge(registers, 100_003)  # an old one again is nothing new
    assert value(registers.read(), "free") == r.SLOTS


def test_numbers_that_were_left_out_are_gaps_and_block_nothing() -> None:
    registers = Registers(0, acknowledged=True)
    registers.offer(output(5))
    assert registers.offer(output(40))
    words = registers.read()
    assert slot(words, 6)["seq"] != 6
    assert value(words, "head") == 40


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.integers(1, 4), st.sampled_from(["acknowledge", "nonsense"])), max_size=60),
    st.integers(0, 200_000),
)
def test_whatever_comes_an_unacknowledged_result_stays_and_the_head_grows(steps: list[int | str], start: int) -> None:
    registers = Registers(start, acknowledged=True)
    number = acked = start
    waiting: list[int] = []
    for step in steps:
        if step == "acknowledge":
            acked = number
            acknowledge(registers, acked)
            waiting = []
        elif step == "nonsense":
            registers.write(r.WRITTEN["acknowledge"], [seq_of(number + 500)])
        else:
            following = number + int(step)
            if registers.offer(output(following, wait_s=0.0)):
                number = following
                waiting.append(number)
        words = registers.read()
        for kept in waiting:
            assert slot(words, kept)["seq"] == slot(words, kept)["seq_again"] == seq_of(kept)
        assert value(words, "head") == seq_of(number)


def test_the_heartbeat_goes_on_only_while_the_line_is_inspected() -> None:
    registers = Registers(0, acknowledged=True)
    registers.beat(None, RecipeState(3, 0xDEADBEEF))
    words = registers.read()
    assert (value(words, "heartbeat"), value(words, "recipe"), value(words, "model")) == (1, 3, 0xDEADBEEF)
    assert bit(words, "ready")
    for _ in range(3):
        registers.beat("edge-1: inference fails", NOW)
    words = registers.read()
    assert value(words, "heartbeat") == 1
    assert not bit(words, "ready")
    assert (bit(words, "error"), value(words, "error")) == (True, r.ERRORS["not_inspecting"])
    for _ in range(0x10000):
        registers.beat(None, NOW)
    assert value(registers.read(), "heartbeat") == 1  # over the wrap


def test_parts_are_counted_from_the_first_write_on() -> None:
    registers = Registers(0, acknowledged=True)
    at = r.WRITTEN["part_counter"]
    assert registers.write(at, [65_534]).counters == ()
    assert registers.write(at, [65_535]).counters == (65_535,)
    assert registers.write(at, [65_535]).counters == ()
    assert registers.write(at, [2]).counters == (0, 1, 2)
    assert registers.write(at, [5000]).counters == ()
    words = registers.read()
    assert value(words, "warning") == r.WARNINGS["counter_jumped"]
    assert value(words, "counter_echo") == 5000
    assert registers.write(at, [5001]).counters == (5001,)


def test_a_recipe_is_asked_for_once_and_read_back() -> None:
    registers = Registers(0, acknowledged=True)
    at = r.WRITTEN["recipe_request"]
    assert registers.write(at, [7]).recipe == 7
    assert registers.write(at, [7]).recipe is None
    registers.beat(None, RecipeState(2, 5))
    words = registers.read()
    assert (value(words, "recipe_state"), bit(words, "recipe_mismatch")) == (r.RECIPE_STATES["asked"], True)
    assert (value(words, "heartbeat"), bit(words, "ready")) == (0, False), "these parts are not that recipe's"
    assert value(words, "error") == r.ERRORS["another_recipe"]
    registers.refuse_recipe(7)
    assert value(registers.read(), "recipe_state") == r.RECIPE_STATES["refused"]
    assert registers.write(at, [7]).recipe is None
    registers._refused_at -= r.ASK_AGAIN_S + 1
    assert registers.write(at, [7]).recipe == 7, "the reason may have passed"
    registers.refuse_recipe(7)
    assert registers.write(at, [2]).recipe == 2
    registers.refuse_recipe(7)  # an answer to a question of before
    registers.beat(None, RecipeState(2, 5))
    words = registers.read()
    assert (value(words, "recipe_state"), bit(words, "recipe_mismatch")) == (r.RECIPE_STATES["active"], False)


def test_every_start_is_a_session_of_its_own() -> None:
    assert value(Registers(0, True).read(), "session") != value(Registers(0, True).read(), "session")


def test_no_two_names_share_a_word_and_all_fit_one_read() -> None:
    taken: set[int] = set()
    for name, at in {**r.WORDS, **r.WRITTEN}.items():
        words = {at, at + 1} if name in r.WIDE else {at}
        assert not words & taken, name
        taken |= words
    behind = {at for at in r.WORDS.values() if at > r.RING}
    assert behind <= set(range(r.BEHIND, r.READ_WORDS)), "behind the ring, where the first map ended"
    assert r.READ_WORDS <= 125
    assert set(r.WRITTEN.values()) <= set(range(r.WRITE_FIRST, r.SIZE))
    assert r.SEQ_MAX % r.SLOTS == 0


def test_a_controller_of_the_first_map_reads_what_it_always_read() -> None:
    """Its program refuses another version, and ends at word 111."""
    words = Registers(0, True).read(0, 112)
    assert (value(words, "version"), r.BEHIND, value(words, "additions")) == (1, 112, 2)


def test_the_gate_s_outcome_is_taken_once_and_of_a_number_that_was_given_out() -> None:
    registers = Registers(0, True)
    registers.offer(output(1))
    write = r.WRITTEN["gate_outcome"]
    assert registers.write(write, [1, 1]).gate == (1, "confirmed")
    assert registers.write(write, [1, 1]).gate is None, "a controller writes its whole block every cycle"
    assert registers.write(write, [2, 1]).gate == (1, "not_confirmed")
    assert registers.write(write, [1]).gate is None, "the outcome alone: the number follows"
    for wrong in ([1, 2], [4, 1], [1, r.SEQ_MAX + 1]):
        clear(registers)
        assert registers.write(write, wrong).gate is None
        assert value(registers.read(), "warning") == r.WARNINGS["unknown_gate_result"], wrong
    registers.offer(output(2))
    assert registers.write(write, [3, 2]).gate == (2, "bin_full")
    assert value(registers.read(), "gate_echo") == 2


@pytest.mark.parametrize("head", [1, 7, 70_000, 2 * r.SEQ_MAX])
def test_the_gate_speaks_of_no_part_ahead_of_the_head_nor_of_long_ago(head: int) -> None:
    registers = Registers(head, True)
    registers.offer(output(head + 1))
    write = r.WRITTEN["gate_outcome"]
    assert registers.write(write, [1, seq_of(head + 1)]).gate == (head + 1, "confirmed"), "the first one of a session"
    assert registers.write(write, [1, seq_of(head)]).gate == (head, "confirmed")
    for wrong in (head + 2, head + 1000, head + 1 - r.GATE_BACK - 1):
        clear(registers)
        assert registers.write(write, [1, seq_of(wrong % r.SEQ_MAX)]).gate is None, wrong
        if seq_of(wrong % r.SEQ_MAX):
            assert value(registers.read(), "warning") == r.WARNINGS["unknown_gate_result"], wrong


@pytest.mark.parametrize("outcome", r.GATE)
def test_what_the_gate_said_before_a_start_is_not_said_anew(outcome: int) -> None:
    """A controller that writes its whole block every cycle has not seen that the host was started anew."""
    registers = Registers(7, True)
    write = r.WRITTEN["gate_outcome"]
    for _ in range(3):
        assert registers.write(write, [outcome, 7]).gate is None
        assert value(registers.read(), "gate_echo") == 7
    registers.offer(output(8))
    assert registers.write(write, [outcome, 7]).gate is None
    assert registers.write(write, [outcome, 8]).gate == (8, r.GATE[outcome])
    assert registers.write(write, [outcome, 7]).gate == (7, r.GATE[outcome]), "it was written anew"


def test_a_command_that_stands_there_from_before_asks_for_nothing() -> None:
    """A controller that writes its whole block every cycle has not seen that the host was started anew."""
    registers = Registers(0, True)
    write = r.WRITTEN["command"]
    assert [registers.write(write, [2]).command for _ in range(3)] == [None] * 3
    assert registers.write(write, [0]).command is None
    assert registers.write(write, [2]).command == "clear_stop"
    assert registers.write(write, [3]).command == "require_challenge"


def test_a_challenge_takes_ready_away_and_leaves_the_heartbeat() -> None:
    registers = Registers(0, True)
    due = LineState(challenge="due", held="challenge due: a shift began")
    registers.beat(due.held, NOW, due)
    words = registers.read()
    assert (value(words, "heartbeat"), value(words, "error")) == (1, r.ERRORS["challenge_due"])
    assert (bit(words, "ready"), bit(words, "challenge"), bit(words, "error")) == (False, True, True)
    registers.beat("edge-1: inference fails", NOW, due)
    words = registers.read()
    assert (value(words, "heartbeat"), value(words, "error")) == (1, r.ERRORS["not_inspecting"])
    registers.beat(None, NOW, due)  # as it stood just before
    assert not bit(registers.read(), "ready")


def test_the_programmers_page_states_the_map() -> None:
    page = (ROOT / "docs" / "modbus.md").read_text()
    rows = {name: int(at) for at, name in re.findall(r"^\| (\d+)(?:[, –-]+\d+)? \| `(\w+)` \|", page, re.MULTILINE)}
    assert rows == {**r.WORDS, **r.WRITTEN}
    slots = {
        name: int(at) for at, name in re.findall(r"^\| \+(\d+)(?:[, –-]+\+\d+)? \| `(\w+)` \|", page, re.MULTILINE)
    }
    assert slots == r.SLOT
    for table in (r.STATUS, r.FLAGS):
        for name, number in table.items():
            assert re.search(rf"^\| bit {number} \| `{name}` \|", page, re.MULTILINE), name
    stops = {name: number for name, number in r.STOPS.items() if name is not None}
    gate = {name: number for number, name in r.GATE.items()}
    for table in (r.ERRORS, r.WARNINGS, r.RECIPE_STATES, stops, r.CHALLENGES, gate):
        for name, number in table.items():
            assert re.search(rf"\b{number} `{name}`", page), name
