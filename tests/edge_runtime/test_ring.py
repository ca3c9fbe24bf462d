"""Frames in shared memory: never torn, never lost in silence, right again after a kill at any point."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator

import numpy as np
import pytest

from contract.images import PixelFormat
from edge_runtime.errors import RingError
from edge_runtime.ring import RECORDS, ChildState, Live, Record, Ring, SlotState

SHAPE = (48, 64)
MONO = PixelFormat.MONO8


@pytest.fixture
def ring() -> Iterator[Ring]:
    made = Ring.create(3, 48 * 64)
    yield made
    made.close()


def picture(value: int) -> np.ndarray:
    return np.full(SHAPE, value % 251, np.uint8)


def announce(ring: Ring, number: int, *, keep: bool = False) -> int | None:
    """A frame with its trigger, as the capture process does it; the slot, or None."""
    slot = ring.put(picture(number), MONO, number, number * 1000)
    lost = None if slot is not None else "overrun"
    ring.announce(Record(0, number, number * 1000, number * 1000 + 1, (1, 2, 3, 4), -1 if slot is None else slot, lost))
    if slot is not None and not keep:
        ring.unkeep(slot)
    return slot


def test_a_trigger_and_its_frame_come_out_as_they_went_in(ring: Ring) -> None:
    announce(ring, 7)
    (record,) = ring.drain()
    assert record == Record(0, 7, 7000, 7001, (1, 2, 3, 4), record.slot, None)
    pixels, pixel_format = ring.read(record.slot)
    assert pixel_format is MONO and np.array_equal(pixels, picture(7))
    assert ring.drain() == []
    ring.release(record.slot)
    assert ring.slot(record.slot).state == SlotState.FREE


def test_colour_and_boxes(ring: Ring) -> None:
    frame = np.arange(10 * 20 * 3, dtype=np.uint8).reshape(10, 20, 3)
    slot = ring.put(frame, PixelFormat.BGR8, 0, 0)
    assert slot is not None
    pixels, pixel_format = ring.read(slot, (4, 2, 5, 6))
    assert pixel_format is PixelFormat.BGR8 and np.array_equal(pixels, frame[2:8, 4:9])
    assert pixels.base is None


def test_every_part_when_no_slot_is_free(ring: Ring) -> None:
    for number in range(5):
        announce(ring, number)
    records = ring.drain()
    assert [record.lost for record in records] == [None, None, None, "overrun", "overrun"]
    assert [record.frame_no for record in records] == list(range(5))
    ring.release(records[1].slot)
    assert announce(ring, 5) == records[1].slot


def test_freshest_takes_the_oldest_that_waits_and_says_so() -> None:
    ring = Ring.create(3, 48 * 64, freshest=True)
    for number in range(5):
        announce(ring, number)
    records = ring.drain()
    assert [record.lost for record in records] == ["superseded by a fresher part"] * 2 + [None] * 3
    assert [int(ring.read(record.slot)[0][0, 0]) for record in records[2:]] == [2, 3, 4]
    assert announce(ring, 5) is None, "what the station holds is never taken from it"
    ring.close()


def test_two_triggers_share_a_frame(ring: Ring) -> None:
    slot = ring.put(picture(1), MONO, 1, 0)
    assert slot is not None
    for _ in range(2):
        ring.announce(Record(0, 1, 0, 0, None, slot, None))
    ring.unkeep(slot)
    ring.drain()
    ring.release(slot)
    assert ring.slot(slot).state == SlotState.HELD
    ring.release(slot)
    assert ring.slot(slot).state == SlotState.FREE


def test_a_frame_larger_than_a_slot_is_refused(ring: Ring) -> None:
    with pytest.raises(RingError, match="raise max_frame_mb"):
        ring.put(np.zeros((2000, 2000), np.uint8), MONO, 0, 0)


def test_foreign_memory_is_refused() -> None:
    fd = os.memfd_create("other")
    os.ftruncate(fd, 8192)
    with pytest.raises(RingError, match="expected 0x"):
        Ring.attach(fd)


def test_records_that_nobody_fetched_are_accounted_for(ring: Ring) -> None:
    for number in range(RECORDS + 10):
        announce(ring, number)
    records = ring.drain()
    assert [record.trigger_id for record in records] == list(range(RECORDS + 10))
    assert all("fetched no triggers" in (record.lost or "") for record in records[:10])
    assert sum(record.slot >= 0 for record in records) <= 3
    assert all(record.lost or record.slot >= 0 for record in records)
    for record in records:
        if record.slot >= 0:
            ring.release(record.slot)
    ring.reclaim()
    assert all(ring.slot(index).state == SlotState.FREE for index in range(3))


def test_reclaim_frees_what_was_not_finished_and_keeps_what_was_announced(ring: Ring) -> None:
    announced = announce(ring, 1)
    writing = ring.put(picture(2), MONO, 2, 0)
    assert announced is not None and writing is not None
    ring._set_slot(writing, ring.slot(writing)._replace(state=SlotState.WRITING))
    ring.reclaim()
    assert ring.slot(writing).state == SlotState.FREE
    (record,) = ring.drain()
    assert np.array_equal(ring.read(record.slot)[0], picture(1))
    ring.reclaim()
    assert ring.slot(announced).state == SlotState.HELD, "the station has it"
    ring.release(record.slot)
    assert ring.slot(announced).state == SlotState.FREE


def test_killed_between_the_slot_and_the_record(ring: Ring) -> None:
    slot = ring.put(picture(1), MONO, 1, 0)
    assert slot is not None
    ring._set_slot(slot, ring.slot(slot)._replace(state=SlotState.HELD, refs=1))
    ring.reclaim()
    assert ring.slot(slot).state == SlotState.FREE


def test_kept_frames_wait_for_the_successor(ring: Ring) -> None:
    slot = ring.put(picture(9), MONO, 9, 77)
    ring.reclaim()
    assert ring.kept() == {9: slot}


def test_signs_of_life_and_state(ring: Ring) -> None:
    live = Live(5, 4, 3, 2, 1, ChildState.RUNNING)
    ring.set_live(live)
    ring.set_detail("a reason" * 100)
    assert ring.live() == live and ring.detail().startswith("a reason")
    assert ring.load_state() is None
    for number in range(5):
        ring.save_state({"number": number})
        assert ring.load_state() == {"number": number}


def test_a_state_cut_off_in_writing_leaves_the_one_before(ring: Ring) -> None:
    ring.save_state({"number": 1})
    ring.save_state({"number": 2})
    newest = max((0, 1), key=ring._state_sequence)
    at = 4096 + newest * 16384 + 16
    ring._memory[at : at + 4] = b"XXXX"
    assert ring.load_state() == {"number": 1}


WRITER = """
import os, sys, zlib
import numpy as np
from contract.images import PixelFormat
from edge_runtime.ring import Record, Ring
ring = Ring.attach(int(sys.argv[1]))
number = ring.counts()[0]
while True:
    frame = np.random.default_rng(number).integers(0, 256, (400, 500), dtype=np.uint8)
    slot = ring.put(frame, PixelFormat.MONO8, number, zlib.crc32(frame.tobytes()))
    lost = None if slot is not None else "overrun"
    ring.announce(Record(0, number, zlib.crc32(frame.tobytes()), 0, None, -1 if slot is None else slot, lost))
    if slot is not None:
        ring.unkeep(slot)
    number += 1
"""


@pytest.mark.parametrize("freshest", [False, True])
def test_hammered_by_a_writer_that_is_killed_again_and_again(freshest: bool) -> None:
    """No frame is torn, no trigger missing or doubled, no slot lost."""
    ring = Ring.create(4, 400 * 500, freshest)
    seen, whole, kills = 0, 0, 0
    while kills < 5:
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(ring.fd)], pass_fds=(ring.fd,))
        goal, deadline = whole + 25, time.monotonic() + 30
        while whole < goal:
            assert time.monotonic() < deadline, "the writer is stuck"
            for record in ring.drain():
                assert record.trigger_id == seen and record.frame_no in (seen, -1)
                seen += 1
                if record.slot >= 0:
                    pixels, _ = ring.read(record.slot)
                    assert zlib.crc32(pixels.tobytes()) == record.t_capture_ns
                    ring.release(record.slot)
                    whole += 1
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        ring.reclaim()
        kills += 1
    for record in ring.drain():
        if record.slot >= 0:
            ring.release(record.slot)
    for slot in ring.kept().values():
        ring.unkeep(slot)
    assert all(ring.slot(index).state == SlotState.FREE for index in range(4))
    ring.close()


def test_a_stopped_holder_of_the_lock_does_not_hang_the_other_side(ring: Ring) -> None:
    code = (
        "import sys, time; from edge_runtime.ring import Ring; ring = Ring.attach(int(sys.argv[1]))\n"
        "with ring._locked():\n    sys.stdout.write('held'); sys.stdout.flush(); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(ring.fd)], pass_fds=(ring.fd,), stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.read(4) == b"held"
    with pytest.raises(RingError, match="does not let go"):
        ring.drain()
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert ring.drain() == []
