"""The preview's memory: nothing is written while nobody watches, and no torn frame is ever given out."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest

from contract.images import PixelFormat
from edge_runtime.glimpse import Glimpse

MONO, RGB = PixelFormat.MONO8, PixelFormat.RGB8


@pytest.fixture
def glimpse() -> Iterator[Glimpse]:
    made = Glimpse.create(64)
    yield made
    made.close()


def frame(value: int, width: int = 64, height: int = 48) -> np.ndarray:
    return np.full((height, width), value, np.uint8)


def test_nothing_is_written_while_nobody_watches(glimpse: Glimpse) -> None:
    assert not glimpse.offer(frame(1), MONO, 1, 10, part=True)
    glimpse.want(60, 0.0, 64)
    assert glimpse.offer(frame(1), MONO, 1, 10, part=False)
    glimpse.want(-1, 0.0, 64)
    assert not glimpse.offer(frame(2), MONO, 2, 20, part=False)


def test_the_newest_is_given_once_small_with_the_size_it_had(glimpse: Glimpse) -> None:
    assert glimpse.newest(0) is None
    glimpse.want(60, 0.0, 64)
    colour = np.zeros((300, 400, 3), np.uint8)
    colour[:, :, 0] = 200
    for number, pixels, pixel_format in ((1, frame(1), MONO), (2, frame(7, 1000, 3000), MONO), (3, colour, RGB)):
        assert glimpse.offer(pixels, pixel_format, number, 10 * number, part=False)
        seen = glimpse.newest(number - 1)
        assert seen is not None
        assert (seen.number, seen.frame_no, seen.t_capture_ns, seen.pixel_format) == (
            number,
            number,
            10 * number,
            pixel_format,
        )
        assert seen.frame_wh == (pixels.shape[1], pixels.shape[0]) and max(seen.pixels.shape[:2]) == 64
        assert (seen.pixels == pixels[0, 0]).all()
        assert glimpse.newest(number) is None


def test_frames_come_no_faster_than_asked_for_and_a_part_sooner(glimpse: Glimpse) -> None:
    glimpse.want(600, 1000.0, 64)
    glimpse._last_ns = time.monotonic_ns() - 600 * 10**9
    assert not glimpse.offer(frame(1), MONO, 1, 10, part=False)
    assert glimpse.offer(frame(1), MONO, 1, 10, part=True)
    assert not glimpse.offer(frame(2), MONO, 2, 20, part=True)


WRITER = """
import sys
import numpy as np
from contract.images import PixelFormat
from edge_runtime.glimpse import Glimpse
glimpse = Glimpse(int(sys.argv[1]))
number = 0
while True:
    number += 1
    glimpse.offer(np.full((64, 64), number % 251, np.uint8), PixelFormat.MONO8, number, number, part=False)
"""


def test_read_while_it_is_written_and_after_the_writer_was_killed_no_frame_is_torn(glimpse: Glimpse) -> None:
    glimpse.want(600, 0.0, 64)
    read = last = 0
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(glimpse.fd)], pass_fds=[glimpse.fd])
        try:
            deadline = time.monotonic() + 60
            goal = read + 500
            while read < goal:
                assert time.monotonic() < deadline
                seen = glimpse.newest(last)
                if seen is None:
                    continue
                assert (seen.pixels == seen.frame_no % 251).all(), "torn"
                assert seen.number > last
                read, last = read + 1, seen.number
        finally:
            writer.kill()
            writer.wait()
        left = glimpse.newest(0)
        assert left is not None and (left.pixels == left.frame_no % 251).all(), "one of the halves is always whole"
