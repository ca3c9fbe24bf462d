"""Counted and announced parts: a pair is believed only where nothing else could be meant, and never next to a hole."""

from __future__ import annotations

import random

import pytest

from plugin.matching import PAIRS_TO_TRUST, Row, Seen

MS = 1_000_000
SPACING = 200 * MS
TOLERANCE = 60 * MS


def part(number: int, shift_ms: float = 0.0) -> Seen:
    return Seen(number * SPACING + int(shift_ms * MS), ("edge-1", f"p{number}"))


def count(number: int, shift_ms: float = 0.0) -> Seen:
    return Seen(number * SPACING + int(shift_ms * MS), ("controller", f"c{number}"), number)


@pytest.fixture
def row() -> Row:
    return Row(TOLERANCE)


def test_counting_may_begin_at_any_time() -> None:
    row = Row(TOLERANCE)
    assert all(row.announced(part(number)) is None for number in range(1000))
    for number in range(1000, 1000 + PAIRS_TO_TRUST):
        row.counted(count(number))
        assert row.announced(part(number)) is None, "the first count may be late, and another part's"
    row.counted(count(2000))
    assert row.announced(part(2000)) == count(2000)


def test_a_line_counted_from_its_first_part_on_is_believed_at_once() -> None:
    row = Row(TOLERANCE)
    row.counted(count(1))
    assert row.announced(part(1)) == count(1)


@pytest.mark.parametrize("first", ["count", "part"])
def test_a_pair_is_found_whichever_comes_first(row: Row, first: str) -> None:
    if first == "count":
        assert row.counted(count(1)) is None
        assert row.announced(part(1, 30)) == count(1)
    else:
        assert row.announced(part(1, 30)) is None
        assert row.counted(count(1)) == part(1, 30)


def test_a_part_that_the_edge_missed_costs_no_other(row: Row) -> None:
    for number in range(1, 20):
        row.counted(count(number))
        if number % 4:
            assert row.announced(part(number)) == count(number)


def test_after_a_part_without_count_several_pairs_must_fit(row: Row) -> None:
    row.announced(part(1))
    believed = []
    for number in range(2, 9):
        row.counted(count(number))
        believed.append(row.announced(part(number)) is not None)
    assert believed == [False] * PAIRS_TO_TRUST + [True] * (7 - PAIRS_TO_TRUST)


def test_ambiguity_is_never_resolved_by_guessing(row: Row) -> None:
    row.counted(count(1))
    row.counted(count(1, 40)._replace(counter=2))
    assert row.announced(part(1, 20)) is None
    row.counted(count(5))
    assert row.announced(part(5)) is None


@pytest.mark.parametrize("seed", range(40))
def test_with_one_fault_at_a_time_no_part_bears_another_ones_count(seed: int) -> None:
    """A missed part, a missing write, a late one, a merged one, a part split in two: each now and then."""
    rng = random.Random(seed)
    row = Row(TOLERANCE)
    pairs: list[tuple[str, int]] = []
    held: list[tuple[int, Seen]] = []
    for number in range(1, 400):
        fault = rng.choice(["missed", "lost", "late", "split"]) if number % 25 == 0 else ""
        events: list[tuple[int, str, Seen]] = []
        true_ns = number * SPACING
        if fault != "missed":
            events.append((true_ns + 10 * MS, "part", part(number, rng.uniform(-20, 20))))
        if fault == "split":
            events.append((true_ns + 15 * MS, "part", part(number, 25)._replace(key=("edge-1", f"p{number}b"))))
        if fault == "late":
            late_ms = rng.uniform(70, 390)
            held.append((true_ns + int(late_ms * MS), count(number, late_ms)))
        elif fault != "lost":
            events.append((true_ns, "count", count(number)))
        due = [each for each in held if each[0] < true_ns + SPACING]
        held = [each for each in held if each not in due]
        events += [(at_ns, "count", seen) for at_ns, seen in due]
        for _, kind, seen in sorted(events, key=lambda each: each[0]):
            found = row.announced(seen) if kind == "part" else row.counted(seen)
            if found is not None:
                pair = (seen, found) if kind == "part" else (found, seen)
                pairs.append((pair[0].key[1].rstrip("b"), pair[1].counter))
    assert all(name == f"p{counter}" for name, counter in pairs), [pair for pair in pairs if pair[0] != f"p{pair[1]}"]
    assert len(pairs) > 250
