"""The fixture finds drawn parts where they were laid, and refuses what is not one of them, or not surely."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from contract.errors import ConfigError, FixtureError
from contract.fixture import (
    FILE,
    PICTURE,
    Placer,
    cut_mask,
    learnt_limits,
    make_fixture,
    open_fixture,
    placed_of_data,
    same_fixture,
    write_fixture,
)
from contract.images import Pixels
from tests.turned import FRAME_HW, Lie, Turned, anywhere, belt

REGION = (70, 80, 180, 140)
MIDDLE = Lie(160.0, 150.0, 0.0)
PARTS = Turned()


def random(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def placer() -> Placer:
    return make_fixture(PARTS.frame(0, MIDDLE, random()), REGION)


def errors_of(placer: Placer, parts: int, **look: float) -> tuple[list[float], list[float]]:
    """Distances in pixels (worst of the cut's corners) and in degrees between what is found and the truth."""
    draw = random(7)
    pixels, degrees = [], []
    corners = np.array([[0, 0], [180, 0], [0, 140], [180, 140]], float)
    for number in range(parts):
        lie = anywhere(draw)
        placed = placer.place(PARTS.frame(number, lie, draw, **look))  # type: ignore[arg-type]
        a, b, c, d, e, f = placed.to_picture
        found = corners @ np.array([[a, d], [b, e]]) + [c, f]
        # The reference lay at MIDDLE: what stood there is at `lie` now, turned about the plate's own centre.
        turn = np.radians(lie.angle_deg)
        way = lie.scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        about = corners + np.array([REGION[0] - 0.5 - MIDDLE.x, REGION[1] - 0.5 - MIDDLE.y])
        expected = about @ way.T + np.array([lie.x + 0.5, lie.y + 0.5])
        pixels.append(float(np.linalg.norm((found - expected).mean(axis=0))))
        degrees.append(abs((placed.measures["fixture.angle_deg"] - lie.angle_deg + 180) % 360 - 180))
    return pixels, degrees


@pytest.mark.parametrize(("gain", "noise"), [(1.0, 2.0), (0.6, 2.0), (1.35, 2.0), (1.0, 10.0)])
def test_parts_at_any_turn_are_found_to_a_fraction_of_a_pixel(placer: Placer, gain: float, noise: float) -> None:
    pixels, degrees = errors_of(placer, 12, gain=gain, noise=noise)
    assert np.median(pixels) < 0.1 and max(pixels) < 0.5
    assert np.median(degrees) < 0.1 and max(degrees) < 0.3


def test_the_cut_shows_every_part_alike_and_its_way_back_is_true(placer: Placer) -> None:
    draw = random(3)
    reference = placer.place(PARTS.frame(0, MIDDLE, draw))
    assert reference.pixels.shape == (140, 180)
    assert reference.to_picture == pytest.approx((1, 0, 70, 0, 1, 80), abs=0.1)
    frame = PARTS.frame(0, Lie(150.3, 160.8, 137.0), draw)
    placed = placer.place(frame)
    inner = np.s_[20:-20, 20:-20]
    assert np.abs(placed.pixels[inner].astype(int) - reference.pixels[inner]).mean() < 4
    # A point of the cut, followed into the picture, shows what the cut shows there.
    a, b, c, d, e, f = placed.to_picture
    for u, v in ((60.5, 70.5), (90.5, 40.5), (120.5, 100.5)):
        x, y = a * u + b * v + c, d * u + e * v + f
        there = cv2.getRectSubPix(frame, (1, 1), (x - 0.5, y - 0.5))[0, 0]
        assert abs(int(there) - int(placed.pixels[int(v), int(u)])) <= 2


def test_a_mask_is_cut_as_its_part_was(placer: Placer) -> None:
    spotted = Turned(kind="dent")
    lie = Lie(152.0, 149.0, -71.0)
    placed = placer.place(spotted.frame(4, lie, random()))
    mask = cut_mask(spotted.mask(4, lie), placed)
    upright = placer.place(spotted.frame(4, MIDDLE, random()))
    expected = cut_mask(spotted.mask(4, MIDDLE), upright)
    assert expected.any() and mask.shape == (140, 180)
    both = np.count_nonzero(mask & expected) / np.count_nonzero(mask | expected)
    assert both > 0.9


def test_a_colour_picture_is_cut_in_colour(placer: Placer) -> None:
    frame = np.ascontiguousarray(np.repeat(PARTS.frame(1, Lie(155, 150, 80.0), random())[..., None], 3, axis=2))
    assert placer.place(frame).pixels.shape == (140, 180, 3)


def empty() -> Pixels:
    return np.clip(belt(FRAME_HW, random()), 0, 255).astype(np.uint8)


def two() -> Pixels:
    draw = random()
    first = PARTS.frame(2, Lie(130, 130, 20.0), draw, hw=(320, 560))
    return PARTS.frame(3, Lie(420, 180, 200.0), draw, hw=(320, 560), bare=first)


def half_hidden() -> Pixels:
    frame = PARTS.frame(2, MIDDLE, random())
    frame[:, 150:] = 44
    return frame


def another_product() -> Pixels:
    frame = empty()
    cv2.rectangle(frame, (80, 90), (240, 210), 150, -1)
    cv2.circle(frame, (120, 150), 22, 40, -1)
    cv2.circle(frame, (200, 150), 30, 60, -1)
    return cv2.GaussianBlur(frame, (3, 3), 0)


def mirrored() -> Pixels:
    """The same product seen from behind: it looks much like it, with other things at other places."""
    return np.ascontiguousarray(PARTS.frame(2, MIDDLE, random())[:, ::-1])


def reaching_out() -> Pixels:
    return np.ascontiguousarray(PARTS.frame(2, MIDDLE, random())[:, 95:])


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (empty, "not found|score"),
        (two, "ambiguous: score 0.9.* a lead of 0.0.* below 0.05"),
        (half_hidden, "score 0.* below 0.8"),
        (mirrored, "score 0.7.* below 0.8"),
        (another_product, "score 0.* below 0.8|not found"),
        (reaching_out, r"reaches 2.* px out of the picture, at most 3\.6"),
        (lambda: np.full(FRAME_HW, 90, np.uint8), "not found"),
        (lambda: np.full((40, 40), 90, np.uint8), "not found"),
        (lambda: np.tile(np.arange(256, dtype=np.uint8), (300, 1)), "not found|score"),
        (lambda: random().integers(0, 256, FRAME_HW).astype(np.uint8), "not found|score"),
    ],
)
def test_what_is_not_surely_the_part_is_refused(placer: Placer, picture: object, reason: str) -> None:
    limits = placer.fixture.model_copy(update={"least_score": 0.8})
    with pytest.raises(FixtureError, match=reason):
        Placer(limits, placer.mark).place(picture())  # type: ignore[operator]


def test_turns_and_sizes_beyond_what_is_allowed_are_refused() -> None:
    reference = PARTS.frame(0, MIDDLE, random())
    narrow = make_fixture(reference, REGION, max_angle_deg=20)
    assert narrow.place(PARTS.frame(1, Lie(150, 150, 18.0), random())).measures["fixture.angle_deg"] == pytest.approx(
        18, abs=0.3
    )
    for angle in (26.0, 90.0, 180.0):
        with pytest.raises(FixtureError, match=r"degrees|score|not found"):
            narrow.place(PARTS.frame(1, Lie(150, 150, angle), random()))
    steady = make_fixture(reference, REGION)
    with pytest.raises(FixtureError, match=r"scale 1\.0[67].*, at most 3 % from 1"):
        steady.place(PARTS.frame(0, Lie(150, 150, 30.0, 1.065), random()))


def test_a_small_mark_finds_the_whole_part() -> None:
    reference = PARTS.frame(0, MIDDLE, random())
    placer = make_fixture(reference, REGION, mark=(75, 95, 100, 110))
    lie = Lie(160, 150, 64.0)
    found = placer.place(PARTS.frame(5, lie, random()))
    assert found.measures["fixture.angle_deg"] == pytest.approx(64, abs=0.5)
    assert found.pixels.shape == (140, 180)


def ring() -> Pixels:
    picture = np.full(FRAME_HW, 40, np.uint8)
    cv2.circle(picture, (160, 150), 60, 200, -1)
    cv2.circle(picture, (160, 150), 30, 60, -1)
    return cv2.GaussianBlur(picture, (5, 5), 0)


def large() -> Pixels:
    return random().integers(0, 256, (2000, 2600)).astype(np.uint8)


@pytest.mark.parametrize(
    ("picture", "region", "mark", "reason"),
    [
        (ring, (90, 80, 140, 140), None, "ambiguous.*looks different at every turn"),
        (lambda: np.full(FRAME_HW, 7, np.uint8), REGION, None, "needs structure"),
        (ring, (200, 80, 180, 140), None, "region = 200,80,180,140 leaves the picture of 320 x 300 px"),
        (ring, (90, 80, 140, 140), (0, 0, 4, 4), "mark = 0,0,4,4 leaves the picture"),
        (large, (90, 80, 140, 140), (95, 85, 12, 12), "12 x 12 px is too small to be searched for in 2600 x 2000 px"),
    ],
)
def test_marks_that_cannot_serve_are_refused_when_they_are_made(
    picture: object, region: tuple[int, int, int, int], mark: tuple[int, int, int, int] | None, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        make_fixture(picture(), region, mark)  # type: ignore[operator]


def test_limits_are_learnt_below_what_good_parts_give(placer: Placer) -> None:
    good = [{"fixture.score": score, "fixture.lead": lead} for score, lead in ((0.95, 0.5), (0.85, 0.3))]
    limits = learnt_limits(placer.fixture, good)
    assert (limits.least_score, limits.least_lead, limits.samples) == (0.65, 0.09, 2)
    poor = learnt_limits(placer.fixture, [{"fixture.score": 0.52, "fixture.lead": 0.06}])
    assert (poor.least_score, poor.least_lead) == (0.5, 0.05)


def test_a_fixture_is_kept_and_a_changed_one_refused(placer: Placer, tmp_path: Path) -> None:
    placer_says = {"fixture.score": 0.9, "fixture.lead": 0.3, "fixture.scale": 1.01, "fixture.angle_deg": 4.0}
    write_fixture(tmp_path / "fixture", placer)
    again = open_fixture(tmp_path)  # as a data set that was cut by it
    assert same_fixture(again, placer) and again.fixture == placer.fixture
    assert not same_fixture(again, None) and same_fixture(None, None)
    assert placed_of_data(tmp_path) == placed_of_data(tmp_path / "none") == {}
    write_fixture(tmp_path / "fixture", placer, [placer_says, {"fixture.score": 0.0}])
    assert placed_of_data(tmp_path) == {"score": [0.9, 0.0], "scale": [1.01], "angle_deg": [4.0]}
    file = tmp_path / "fixture" / FILE
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"fixture": content["fixture"] | {"mark_px": [0, 0, 9, 9]}}))
    with pytest.raises(ConfigError, match="its mark's picture is 180 x 140 px, expected 9 x 9"):
        open_fixture(tmp_path)
    file.write_text("[]")
    with pytest.raises(ConfigError, match="not a fixture"):
        open_fixture(tmp_path)
    write_fixture(tmp_path / "fixture", placer)
    (tmp_path / "fixture" / PICTURE).write_bytes(b"another")
    with pytest.raises(ConfigError, match=r"is not the picture that fixture\.json names"):
        open_fixture(tmp_path)
    with pytest.raises(ConfigError, match="no fixture"):
        open_fixture(tmp_path / "none")
