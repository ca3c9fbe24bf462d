"""Frames taken by their time: whole, the one that was meant, held until released, right again after a kill."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest

from contract.images import PixelFormat
from edge_runtime.ring import Ring, SlotState
from edge_runtime.wanted import GONE, KeptFrame, Wanted

MONO = PixelFormat.MONO8
FOR_EVER = 10**15


@pytest.fixture
def ring() -> Iterator[Ring]:
    made = Ring.create(4, 48 * 64)
    yield made
    made.close()


def put(ring: Ring, number: int) -> int:
    slot = ring.put(np.full((48, 64), number, np.uint8), MONO, number, number * 1000)
    assert slot is not None
    return slot


def test_a_frame_is_held_over_its_giving_up_until_it_is_released(ring: Ring) -> None:
    slots = [put(ring, number) for number in (1, 2, 3)]
    found = ring.hold(Wanted(1500, 1000))
    assert found == KeptFrame(slots[1], 2, 2000)
    for slot in slots:
        ring.give_up(slot)
    assert [ring.slot(slot).state for slot in slots] == [SlotState.FREE, SlotState.HELD, SlotState.FREE]
    assert {put(ring, number) for number in (4, 5, 6)} == {0, 2, 3}, "every slot but the held one"
    assert ring.read(slots[1])[0].max() == 2
    ring.release(slots[1])
    assert ring.slot(slots[1]).state == SlotState.FREE


def test_one_frame_for_two_parts(ring: Ring) -> None:
    slot = put(ring, 1)
    assert ring.hold(Wanted(900, 1000)) == ring.hold(Wanted(950, 1000)) == KeptFrame(slot, 1, 1000)
    ring.give_up(slot)
    ring.release(slot)
    assert ring.slot(slot).state == SlotState.HELD
    ring.release(slot)
    assert ring.slot(slot).state == SlotState.FREE


def test_what_was_given_up_or_never_kept_is_not_replaced_by_another(ring: Ring) -> None:
    first, _ = put(ring, 1), put(ring, 2)
    assert ring.hold(Wanted(2500, 1000)) is None, "the frame that is meant is still to come"
    ring.give_up(first)
    assert ring.hold(Wanted(900, 5000)) == GONE
    assert isinstance(ring.hold(Wanted(1500, 1000)), KeptFrame)
    ring.note_gone(3000)
    put(ring, 4)
    assert ring.hold(Wanted(2500, 5000)) == GONE
    assert ring.hold(Wanted(3600, 5000, nearest=True)) == KeptFrame(0, 4, 4000)


def test_after_a_kill_what_is_held_stays_and_what_was_kept_waits_for_the_successor(ring: Ring) -> None:
    held, kept = put(ring, 1), put(ring, 2)
    ring.hold(Wanted(900, 1000))
    ring.give_up(held)
    ring.reclaim()
    assert ring.read(held)[0].max() == 1
    assert ring.kept() == {2: kept}
    ring.release(held)
    assert ring.slot(held).state == SlotState.FREE


WRITER = """
import os, sys, time
import numpy as np
from contract.images import PixelFormat
from edge_runtime.ring import Ring
ring = Ring.attach(int(sys.argv[1]))
kept = ring.kept()
number = max(kept, default=ring.live().frame_no) + 1
while True:
    number += 1
    time.sleep(0.001)  # a camera has a pace: else each frame is gone before anybody can ask for it
    ring.set_live(ring.live()._replace(frame_no=number))
    while len(kept) >= ring.slots - 1:
        ring.give_up(kept.pop(min(kept)))
    frame = np.full((400, 500), number % 251, np.uint8)
    now = time.monotonic_ns()
    slot = ring.put(frame, PixelFormat.MONO8, number, now)
    while slot is None and kept:
        ring.give_up(kept.pop(min(kept)))
        slot = ring.put(frame, PixelFormat.MONO8, number, now)
    if slot is None:
        ring.note_gone(now)
    else:
        kept[number] = slot
"""


def test_hammered_by_a_writer_that_is_killed_again_and_again() -> None:
    """No frame that is held is torn or older than asked for, and no slot is lost."""
    ring = Ring.create(5, 400 * 500)
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(ring.fd)], pass_fds=(ring.fd,))
        whole, deadline = 0, time.monotonic() + 60
        asked_ns = time.monotonic_ns()
        while whole < 10:
            assert time.monotonic() < deadline, "the writer is stuck"
            found = ring.hold(Wanted(asked_ns, FOR_EVER))
            if isinstance(found, KeptFrame):
                assert found.t_capture_ns >= asked_ns
                pixels, _ = ring.read(found.slot)
                assert pixels.min() == pixels.max() == found.frame_no % 251
                ring.release(found.slot)
                whole += 1
            if found is not None:
                asked_ns = time.monotonic_ns()
            time.sleep(0.0005)  # a station has more to do: else the other side hardly comes to the lock
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        ring.reclaim()
    for slot in ring.kept().values():
        ring.give_up(slot)
    assert all(ring.slot(index).state == SlotState.FREE for index in range(5))
    ring.close()
