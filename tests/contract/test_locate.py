"""Locating parts: tight boxes, nothing on bare belt, fragments joined, touching parts told apart."""

from __future__ import annotations

import csv
import time

import cv2
import numpy as np
import pytest

from contract import locate
from contract.errors import ImageError
from contract.locate import Box, find_parts, quartiles
from tests.shared_data import shared_data


def belt(height: int = 480, width: int = 640, level: int = 40) -> np.ndarray:
    noise = np.random.default_rng(3).normal(level, 3, (height, width))
    return np.clip(noise, 0, 255).astype(np.uint8)


def with_part(frame: np.ndarray, box: Box, level: int = 150) -> np.ndarray:
    frame[box.y : box.y + box.h, box.x : box.x + box.w] = level
    return frame


def test_bare_belt_has_no_parts() -> None:
    assert find_parts(belt()) == []
    assert find_parts(np.full((480, 640), 37, np.uint8)) == []


@pytest.mark.parametrize("foreground", ["bright", "dark"])
@pytest.mark.parametrize("texture", ["even", "striped", "wavy", "graded"])
def test_the_quick_look_at_a_belt_passes_over_no_part(
    texture: str, foreground: locate.Foreground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faint, small and textured parts on quiet and noisy belts: what the full look finds is found."""
    random = np.random.default_rng(len(texture))
    quick = locate._is_bare
    bare = 0
    for _ in range(24):
        height, width = random.integers(640, 900), random.integers(1200, 1300)
        frame = random.normal(random.integers(40, 210), random.uniform(0, 5), (height, width))
        side = int((height * width * random.uniform(0.004, 0.02)) ** 0.5)
        x, y = random.integers(0, width - side), random.integers(40, height - side - 40)
        shape = {
            "even": np.ones((side, side)),
            "striped": np.array([[0.0], [2.0]])[np.arange(side) % 2] * np.ones((1, side)),
            "wavy": 1 + np.sin(np.arange(side) / random.uniform(0.5, 9)) * np.ones((side, 1)),
            "graded": np.linspace(0, 2, side) * np.ones((side, 1)),
        }[texture]
        step = random.uniform(0, 40) * (1 if foreground == "bright" else -1)
        frame[y : y + side, x : x + side] += step * shape
        pixels = np.clip(frame, 0, 255).astype(np.uint8)
        monkeypatch.setattr(locate, "_is_bare", lambda *_: False)
        full = find_parts(pixels, foreground=foreground)
        monkeypatch.setattr(locate, "_is_bare", quick)
        assert find_parts(pixels, foreground=foreground) == full
        seen = locate._turned(locate._sampled(pixels, locate._scale_of(pixels)), True, foreground == "dark")
        bare += quick(seen, None, 0.005)
    assert 0 < bare < 24


@pytest.mark.parametrize("size", [*range(1, 12), 640, 641, 642, 643])
def test_quartiles_are_exact_whatever_the_count(size: int) -> None:
    random = np.random.default_rng(size)
    for _ in range(20):
        values = random.integers(0, random.integers(1, 257), size).astype(np.uint8)
        assert quartiles(values) == np.percentile(values, (25, 50, 75)).tolist()


def test_an_evenly_lit_frame_of_any_level_has_no_parts() -> None:
    for level in (0, 5, 128, 250, 255):
        assert find_parts(np.full((100, 120), level, np.uint8)) == []


@pytest.mark.parametrize("hw", [(480, 640), (1024, 1280), (2048, 2448)])
def test_the_box_is_tight_at_every_size_of_frame(hw: tuple[int, int]) -> None:
    truth = Box(hw[1] // 3, hw[0] // 4, hw[1] // 4, hw[0] // 3)
    (found,) = find_parts(with_part(belt(*hw), truth))
    assert found.overlap(truth) > 0.96


@pytest.mark.parametrize("direction", ["right", "left", "down", "up"])
def test_boxes_come_in_the_order_of_the_belt(direction: str) -> None:
    frame = belt()
    first, second = (Box(400, 150, 120, 100), Box(100, 200, 120, 100))
    if direction in ("down", "up"):
        first, second = (Box(200, 300, 120, 100), Box(250, 60, 120, 100))
    for box in (first, second):
        with_part(frame, box)
    found = find_parts(frame, direction=direction)  # type: ignore[arg-type]
    expected = [first, second] if direction in ("right", "down") else [second, first]
    assert [round(a.overlap(b)) for a, b in zip(found, expected, strict=True)] == [1, 1]


def test_dark_parts_on_a_bright_belt() -> None:
    truth = Box(200, 150, 170, 130)
    frame = with_part(belt(level=190), truth, 60)
    assert find_parts(frame) == []
    assert find_parts(frame, foreground="dark")[0].overlap(truth) > 0.95
    assert find_parts(frame, foreground="dark", threshold=120)[0].overlap(truth) > 0.95


def test_a_part_with_a_large_dark_patch_is_one_box() -> None:
    truth = Box(150, 120, 300, 200)
    frame = with_part(belt(), truth)
    cv2.ellipse(frame, (300, 215), (80, 94), 0, 0, 360, 40, -1)
    (found,) = find_parts(frame)
    assert found.overlap(truth) > 0.95


def test_a_part_that_the_belt_shows_through_from_edge_to_edge_is_one_box() -> None:
    truth = Box(150, 120, 300, 200)
    frame = with_part(belt(), truth)
    frame[120:320, 190:215] = belt()[120:320, 190:215]
    (found,) = find_parts(frame)
    assert found.overlap(truth) > 0.95


def test_a_dark_rim_belongs_to_a_bright_part() -> None:
    truth = Box(150, 120, 300, 200)
    frame = with_part(with_part(belt(), truth, 8), Box(160, 130, 280, 180), 140)
    (found,) = find_parts(frame)
    assert found.overlap(truth) > 0.95


def test_dust_is_no_part() -> None:
    frame = belt()
    frame[100:110, 100:110] = 200
    assert find_parts(frame) == []


@pytest.mark.parametrize("gap", [0, 1, 3])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("direction", ["right", "down"])
def test_touching_parts_are_parted_where_the_length_is_known(gap: int, count: int, direction: str) -> None:
    frame = belt(640, 640)
    truth = [Box(30 + i * (150 + gap), 200 + 3 * i, 150, 120) for i in range(count)]
    for box in truth:
        with_part(frame, box)
    if direction == "down":
        frame = np.ascontiguousarray(frame.T)
        truth = [Box(box.y, box.x, box.h, box.w) for box in truth]
    found = find_parts(frame, part_length_px=150, direction=direction)  # type: ignore[arg-type]
    assert len(found) == count
    for box, expected in zip(reversed(found), truth, strict=True):
        assert box.overlap(expected) > 0.9


def test_the_piece_at_the_border_of_touching_parts_is_told_from_the_whole_one() -> None:
    frame = belt()
    with_part(frame, Box(0, 200, 70, 120))
    with_part(frame, Box(71, 205, 150, 120))
    whole, piece = find_parts(frame, part_length_px=150)
    assert whole.overlap(Box(71, 205, 150, 120)) > 0.93
    assert piece.x == 0 and abs(piece.w - 70) < 5


def test_colour_frames_do_not_depend_on_the_order_of_channels() -> None:
    frame = cv2.merge([with_part(belt(), Box(200, 150, 170, 130), level) for level in (90, 150, 200)])
    assert find_parts(frame) == find_parts(np.ascontiguousarray(frame[..., ::-1]))
    assert len(find_parts(frame)) == 1


def test_what_is_no_frame_is_refused() -> None:
    with pytest.raises(ImageError, match="expected uint8"):
        find_parts(np.zeros((480, 640), np.float32))  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="expected uint8"):
        find_parts(np.zeros((4, 640), np.uint8))


def test_noise_alone_never_makes_it_fail() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        height, width = (int(side) for side in rng.integers(8, 200, 2))
        frame = rng.integers(0, 256, (height, width)).astype(np.uint8)
        for box in find_parts(frame, part_length_px=12):
            assert box.x >= 0 and box.y >= 0 and box.x + box.w <= width and box.y + box.h <= height


def test_the_recorded_line() -> None:
    """Every frame of the recording: the truth's box where there is a part, nothing where there is none."""
    video, table = shared_data("line", "line.avi"), shared_data("line", "line_frames.csv")
    with table.open() as file:
        rows = list(csv.DictReader(file))
    capture = cv2.VideoCapture(str(video), cv2.CAP_FFMPEG)
    overlaps = []
    started = time.process_time()
    for row in rows:
        ok, frame = capture.read()
        assert ok
        found = find_parts(np.asarray(frame[..., 0], dtype=np.uint8))
        if row["part_visible"] == "0":
            assert found == []
            continue
        (box,) = found
        overlaps.append(box.overlap(Box(*(int(row[f"part_{key}"]) for key in "xywh"))))
    capture.release()
    assert time.process_time() - started < 30
    assert len(overlaps) == 350
    assert min(overlaps) > 0.9
    assert float(np.median(overlaps)) > 0.98
