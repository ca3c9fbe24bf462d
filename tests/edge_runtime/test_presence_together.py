"""Parts that are in view together, drawn as pixels: apart, beside each other, touching, half in; one outcome each."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import pytest

from contract.images import Pixels
from contract.locate import Box, find_parts
from edge_runtime.presence import Lost, Outcome, Taken, Tracker

HW = (240, 640)
LENGTH, WIDTH, CUT = 150, 80, 12


class Part(NamedTuple):
    """A plate: how far its front is from the left edge in frame 0, and where it lies across the belt."""

    front: int
    across: int = 80


def draw(parts: list[Part], moved: int) -> Pixels:
    frame = np.full(HW, 20, np.uint8)
    for part in parts:
        right, y = part.front + moved, part.across
        left = right - LENGTH
        corners = [(left + CUT, y), (right - CUT, y), (right, y + CUT), (right, y + WIDTH - CUT)]
        corners += [(right - CUT, y + WIDTH), (left + CUT, y + WIDTH), (left, y + WIDTH - CUT), (left, y + CUT)]
        cv2.fillPoly(frame, [np.array(corners, np.int32)], 180)
    return frame


def outcomes_of(
    parts: list[Part], speed: int, frames: int, part_length_px: int | None, settle: int = 2
) -> list[Outcome]:
    tracker = Tracker(settle_frames=settle)
    found: list[Outcome] = []
    for number in range(frames):
        boxes = find_parts(
            draw(parts, speed * number), foreground="bright", threshold=None, min_area=0.005, direction="right",
            part_length_px=part_length_px,
        )  # fmt: skip
        found += tracker.update(number, boxes, HW)
    return found + tracker.finish()


def shown(outcome: Outcome, parts: list[Part], speed: int) -> int:
    """Which of the parts an outcome is about, by where it says that it was."""
    middle_x, middle_y = outcome.box.x + outcome.box.w / 2, outcome.box.y + outcome.box.h / 2
    away = [
        (part.front + speed * outcome.frame_no - LENGTH / 2 - middle_x) ** 2 + (part.across + WIDTH / 2 - middle_y) ** 2
        for part in parts
    ]
    return int(np.argmin(away))


TOGETHER = {
    "apart": ([Part(0), Part(-200)], None),
    "three apart": ([Part(0), Part(-190), Part(-380)], None),
    "a hair apart": ([Part(0), Part(-LENGTH - 4)], LENGTH),
    "touching": ([Part(0), Part(-LENGTH)], LENGTH),
    "three touching": ([Part(0), Part(-LENGTH), Part(-2 * LENGTH)], LENGTH),
    "four touching, more than the view holds": ([Part(-n * LENGTH) for n in range(5)], LENGTH),
    "two touching, one after them": ([Part(0), Part(-LENGTH), Part(-2 * LENGTH - 60)], LENGTH),
    "side by side": ([Part(0, 20), Part(0, 140)], None),
    "side by side and staggered": ([Part(0, 20), Part(-70, 140)], None),
    "side by side, two behind them": ([Part(0, 20), Part(0, 140), Part(-200, 20), Part(-210, 140)], None),
}


@pytest.mark.parametrize("speed", [5, 12, 40])
@pytest.mark.parametrize("name", TOGETHER)
def test_each_is_taken_once_and_whole(name: str, speed: int) -> None:
    parts, length = TOGETHER[name]
    farthest = -min(part.front for part in parts)
    outcomes = outcomes_of(parts, speed, (HW[1] + LENGTH + farthest) // speed + 10, length)
    assert [type(outcome) for outcome in outcomes] == [Taken] * len(parts), outcomes
    assert sorted(shown(outcome, parts, speed) for outcome in outcomes) == list(range(len(parts)))
    for outcome in outcomes:
        assert abs(outcome.box.w - LENGTH) <= 4 and abs(outcome.box.h - WIDTH) <= 4, outcome
        assert outcome.box.x > 0 and outcome.box.x + outcome.box.w < HW[1], "wholly in view"


def test_two_that_touch_are_one_outcome_where_nobody_said_how_long_a_part_is() -> None:
    parts = [Part(0), Part(-LENGTH)]
    (taken,) = outcomes_of(parts, 12, 100, None)
    assert isinstance(taken, Taken) and taken.box.w > 1.9 * LENGTH, "its shape is for the quality gate to refuse"


@pytest.mark.parametrize("speed", [5, 12, 40])
def test_half_in_at_the_start_is_taken_when_it_is_whole(speed: int) -> None:
    parts = [Part(LENGTH // 2), Part(LENGTH // 2 - 250)]
    outcomes = outcomes_of(parts, speed, 1100 // speed, None)
    assert [type(outcome) for outcome in outcomes] == [Taken, Taken]


@pytest.mark.parametrize("speed", [5, 12])
def test_half_out_at_the_start_was_never_whole_and_is_lost_not_passed_over(speed: int) -> None:
    parts = [Part(HW[1] + LENGTH // 2), Part(100)]
    outcomes = outcomes_of(parts, speed, 1000 // speed, None)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Lost", "Taken"]
    (lost,) = [outcome for outcome in outcomes if isinstance(outcome, Lost)]
    assert "never wholly in view" in lost.reason


@pytest.mark.parametrize("speed", [5, 12])
def test_half_in_at_the_end_is_lost_not_passed_over(speed: int) -> None:
    frames = (300 + LENGTH // 2) // speed
    parts = [Part(0), Part(-300)]
    outcomes = outcomes_of(parts, speed, frames, None)
    assert [type(outcome) for outcome in outcomes] == [Taken, Lost], outcomes


def test_the_box_of_each_is_its_own() -> None:
    boxes = find_parts(
        draw([Part(400, 20), Part(400, 140), Part(200, 80)], 0), foreground="bright", threshold=None, min_area=0.005,
        direction="right", part_length_px=None,
    )  # fmt: skip
    assert sorted(box.y for box in boxes) == [20, 80, 140]
    assert all(isinstance(box, Box) for box in boxes)
