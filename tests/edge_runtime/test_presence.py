"""The tracker: every part exactly once, whatever the belt, the detection and the camera do."""

from __future__ import annotations

import csv
import functools
import json
import random
from collections import Counter
from collections.abc import Callable

import cv2
import numpy as np
import pytest

from contract.locate import Box, find_parts
from edge_runtime.presence import Lost, Outcome, Taken, Tracker
from edge_runtime.synthetic import PART_LENGTH_PX, SyntheticLine
from tests.shared_data import shared_data

HW = (480, 640)


def visible(left: int, y: int = 150, w: int = 150, h: int = 120) -> list[Box]:
    """A part's box as far as a frame 640 px wide shows it."""
    x0, x1 = max(0, left), min(640, left + w)
    return [Box(x0, y, x1 - x0, h)] if x1 - x0 > 5 else []


def run(frames: dict[int, list[Box]], tracker: Tracker | None = None) -> list[Outcome]:
    tracker = tracker or Tracker()
    outcomes = [outcome for number, boxes in frames.items() for outcome in tracker.update(number, boxes, HW)]
    return outcomes + tracker.finish()


def passing(speed: int = 12, frames: int = 80, w: int = 150) -> dict[int, list[Box]]:
    return {number: visible(speed * number - w, w=w) for number in range(frames)}


def test_a_part_that_passes_is_taken_once_and_whole() -> None:
    (taken,) = run(passing())
    assert isinstance(taken, Taken)
    assert taken.box.x > 0 and taken.box.w == 150


@pytest.mark.parametrize("settle", [1, 2, 5, 50])
def test_it_settles_first_but_no_part_is_missed_for_it(settle: int) -> None:
    outcomes = run(passing(), Tracker(settle_frames=settle))
    assert [type(outcome) for outcome in outcomes] == [Taken]


def test_what_vanishes_before_it_settled_is_taken_with_the_frame_that_showed_it_whole() -> None:
    tracker = Tracker(settle_frames=5)
    assert tracker.update(7, visible(100), HW) == []
    assert tracker.wanted() == {7}
    outcomes = [outcome for number in range(8, 14) for outcome in tracker.update(number, [], HW)]
    assert outcomes == [Taken(Box(100, 150, 150, 120), 7)]
    assert tracker.wanted() == set()


def test_never_wholly_in_view_is_accounted_for() -> None:
    outcomes = run(passing(w=700, frames=140))
    assert [type(outcome) for outcome in outcomes] == [Lost]
    assert "never wholly in view" in outcomes[0].reason  # type: ignore[union-attr]


def test_a_part_that_juts_out_at_the_side_is_lost_not_taken() -> None:
    frames = {number: [Box(50 + 12 * number, 0, 150, 120)] for number in range(20)}
    assert [type(outcome) for outcome in run(frames)] == [Lost]


def test_a_single_glint_is_nothing() -> None:
    assert run({0: [], 1: [Box(0, 100, 60, 60)], 2: [], 3: [], 4: [], 5: []}) == []


@pytest.mark.parametrize("gap", [1, 2, 3])
def test_flicker_does_not_take_it_twice(gap: int) -> None:
    for start in range(10, 50):
        frames = passing()
        for number in range(start, start + gap):
            frames[number] = []
        assert [type(outcome) for outcome in run(frames)] == [Taken]


@pytest.mark.parametrize("gap", [2, 5, 10, 20, 30])
def test_skipped_frames_do_not_take_it_twice(gap: int) -> None:
    for start in range(15, 40):
        frames = {number: boxes for number, boxes in passing().items() if not start <= number < start + gap}
        assert [type(outcome) for outcome in run(frames)] == [Taken]


def test_a_belt_that_stops_and_starts() -> None:
    places, frames = 0, {}
    for number in range(300):
        places += 0 if 30 <= number < 90 or 95 <= number < 200 else 12
        frames[number] = visible(places - 150)
    assert [type(outcome) for outcome in run(frames)] == [Taken]


def test_a_jump_backwards_is_a_new_part() -> None:
    frames = {10 * part + step: visible(150 + 4 * step) if step < 7 else [] for part in range(6) for step in range(10)}
    outcomes = run(frames)
    assert [type(outcome) for outcome in outcomes] == [Taken] * 6
    assert [outcome.frame_no // 10 for outcome in outcomes] == list(range(6))


@pytest.mark.parametrize("direction", ["right", "left", "down", "up"])
def test_every_direction(direction: str) -> None:
    tracker = Tracker(direction)  # type: ignore[arg-type]
    outcomes: list[Outcome] = []
    for number, boxes in passing().items():
        moved = [_turned(box, direction) for box in boxes]
        hw = HW if direction in ("right", "left") else (640, 480)
        outcomes += tracker.update(number, moved, hw)
    assert [type(outcome) for outcome in outcomes + tracker.finish()] == [Taken]


def _turned(box: Box, direction: str) -> Box:
    if direction in ("left", "up"):
        box = Box(640 - box.x - box.w, box.y, box.w, box.h)
    return box if direction in ("right", "left") else Box(box.y, box.x, box.h, box.w)


def test_a_frame_that_is_not_newer_is_passed_over() -> None:
    tracker = Tracker(settle_frames=1)
    assert len(tracker.update(5, visible(100), HW)) == 1
    assert tracker.update(5, visible(300), HW) == []
    assert tracker.update(4, visible(300), HW) == []


@pytest.mark.parametrize("killed_at", range(12, 60, 3))
def test_a_successor_goes_on_from_the_state(killed_at: int) -> None:
    """State saved after each frame, restored after 12 frames without anybody looking."""
    frames, outcomes = passing(), []
    tracker = Tracker()
    for number in range(killed_at):
        outcomes += tracker.update(number, frames[number], HW)
    state = json.loads(json.dumps(tracker.state()))
    tracker = Tracker()
    tracker.restore(state)
    for number in range(killed_at + 12, 80):
        outcomes += tracker.update(number, frames[number], HW)
    assert [type(outcome) for outcome in outcomes + tracker.finish()] == [Taken]


def test_a_part_announced_after_the_state_was_saved_is_not_taken_again() -> None:
    frames, tracker = passing(), Tracker()
    for number in range(13):
        tracker.update(number, frames[number], HW)
    state = tracker.state()
    (taken,) = [outcome for number in (13, 14) for outcome in tracker.update(number, frames[number], HW)]
    successor = Tracker()
    successor.restore(state)
    successor.note_taken(taken.frame_no, taken.box, HW)
    assert [o for number in range(25, 80) for o in successor.update(number, frames[number], HW)] == []


# Whole lines ---------------------------------------------------------------------------------------------------------


@functools.cache
def synthetic_boxes(seed: int, parts: int) -> tuple[SyntheticLine, list[list[Box]]]:
    line = SyntheticLine(seed=seed, parts=parts)
    return line, [find_parts(line.render(number), part_length_px=PART_LENGTH_PX) for number in range(line.frames)]


def always(number: int) -> bool:
    return True


def never(number: int) -> bool:
    return False


def one_in_five(number: int) -> bool:
    return random.Random(number).random() < 0.2


def one_in_fourteen(number: int) -> bool:
    return random.Random(number).random() < 0.07


def often_away(number: int) -> bool:
    return number % 150 <= 14


@pytest.mark.parametrize(
    ("skipped", "blind"),
    [(never, never), (one_in_five, never), (often_away, never), (never, one_in_fourteen)],
    ids=["all frames", "one in five skipped", "15 skipped in a row", "detection flickers"],
)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_synthetic_lines(seed: int, skipped: Callable[[int], bool], blind: Callable[[int], bool]) -> None:
    """Touching parts, two in view, entering and leaving: one trigger each, and the box is the part's."""
    line, boxes = synthetic_boxes(seed, 60)
    tracker, outcomes = Tracker(), []
    for number in range(line.frames):
        if not skipped(number):
            outcomes += tracker.update(number, [] if blind(number) else boxes[number], HW)
    outcomes += tracker.finish()
    counts: Counter[int] = Counter()
    for outcome in outcomes:
        assert isinstance(outcome, Taken), outcome
        seen = max(line.seen(outcome.frame_no), key=lambda part: part.box.overlap(outcome.box))
        assert seen.box.overlap(outcome.box) > 0.8
        counts[seen.part.number] += 1
    assert counts == Counter(range(60))


def test_the_recorded_line() -> None:
    video, table = shared_data("line", "line.avi"), shared_data("line", "line_frames.csv")
    with table.open() as file:
        rows = list(csv.DictReader(file))
    capture, tracker, outcomes = cv2.VideoCapture(str(video), cv2.CAP_FFMPEG), Tracker(), []
    for number in range(len(rows)):
        _, frame = capture.read()
        boxes = find_parts(np.asarray(frame[..., 0], dtype=np.uint8))
        outcomes += tracker.update(number, boxes, (480, 480))
    capture.release()
    outcomes += tracker.finish()
    parts = []
    for outcome in outcomes:
        assert isinstance(outcome, Taken)
        row = rows[outcome.frame_no]
        assert outcome.box.overlap(Box(*(int(row[f"part_{key}"]) for key in "xywh"))) > 0.9
        parts.append(int(row["part_index"]))
    assert parts == list(range(50))
