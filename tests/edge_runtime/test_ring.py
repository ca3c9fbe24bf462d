"""Frames in shared memory: never torn, never lost in silence, right again after a kill at any point."""

from __future__ import annotations

import errno
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
from edge_runtime.ring import _AT_STATE, _STATE, RECORDS, STATE_BYTES, ChildState, Live, Record, Ring, SlotState

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


SHAPES_WRITER = """
import os, sys, zlib
import numpy as np
from contract.images import PixelFormat
from edge_runtime.ring import Record, Ring
ring, seed = Ring.attach(int(sys.argv[1])), int(sys.argv[2])
noise = np.random.default_rng(seed).integers(0, 256, 700_000, dtype=np.uint8)
number = ring.counts()[0]
while True:
    shape, form = (((300, 400), "mono8"), ((150, 333, 3), "bgr8"), ((200, 200, 3), "rgb8"))[number % 3]
    start = number * 7919 % 500_000
    frame = noise[start : start + int(np.prod(shape))].reshape(shape)
    slot = ring.put(frame, PixelFormat(form), number, zlib.crc32(frame.tobytes()))
    lost = None if slot is not None else "overrun"
    ring.announce(Record(0, number, zlib.crc32(frame.tobytes()), 0, None, -1 if slot is None else slot, lost))
    if slot is not None:
        ring.unkeep(slot)
    number += 1
"""


def test_hammered_by_several_writers_at_once_that_are_stopped_and_killed_at_any_moment() -> None:
    """Three cameras into one station, frames of three sizes and formats: each read is one whole frame, none is lost."""
    rng = np.random.default_rng(5)
    rings = [Ring.create(4, 150 * 333 * 3, freshest=bool(number % 2)) for number in range(3)]

    def start(number: int, seed: int) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-c", SHAPES_WRITER, str(rings[number].fd), str(seed)]
        return subprocess.Popen(words, pass_fds=(rings[number].fd,))

    writers = [start(number, number) for number in range(3)]
    seen, whole, kills, stops = [0] * 3, [0] * 3, [0] * 3, 0
    held: list[tuple[int, Record]] = []
    deadline = time.monotonic() + 60
    while min(kills) < 2 or not stops:
        assert time.monotonic() < deadline, (seen, whole, kills)
        for number, ring in enumerate(rings):
            for record in ring.drain():
                assert record.trigger_id == seen[number]
                assert record.frame_no == seen[number]
                seen[number] += 1
                if record.slot >= 0:
                    held.append((number, record))
        for number, record in held:  # read late, while its writer goes on
            pixels, pixel_format = rings[number].read(record.slot)
            assert zlib.crc32(pixels.tobytes()) == record.t_capture_ns, "torn"
            assert pixel_format.value == ("mono8", "bgr8", "rgb8")[record.frame_no % 3]
            rings[number].release(record.slot)
            whole[number] += 1
        held.clear()
        victim = int(rng.integers(0, 3))
        if rng.uniform() < 0.02 and whole[victim] > 20 * (kills[victim] + 1):
            writers[victim].kill()
            writers[victim].wait()
            rings[victim].reclaim()
            kills[victim] += 1
            writers[victim] = start(victim, victim + 10 * kills[victim])
        elif rng.uniform() < 0.01:
            writers[victim].send_signal(signal.SIGSTOP)
            stops += 1
            for ring in rings:
                ring.counts()
            writers[victim].send_signal(signal.SIGCONT)
    for writer in writers:
        writer.kill()
        writer.wait()
    for ring in rings:
        ring.reclaim()
        for record in ring.drain():
            if record.slot >= 0:
                ring.release(record.slot)
        for slot in ring.kept().values():
            ring.unkeep(slot)
        assert all(ring.slot(index).state == SlotState.FREE for index in range(4))
        ring.close()
    assert stops


def test_a_slot_that_was_given_away_is_not_read(ring: Ring) -> None:
    slot = announce(ring, 1)
    assert slot is not None
    (record,) = ring.drain()
    ring.release(record.slot)
    with pytest.raises(RingError, match="holds no whole frame"):
        ring.read(slot)
    held = announce(ring, 2)
    assert held == slot
    whole = ring.slot(slot)
    ring._set_slot(slot, whole._replace(width=50_000, height=50_000))
    with pytest.raises(RingError, match="declares 50000 x 50000 pixels, more than it can hold"):
        ring.read(slot)
    ring._set_slot(slot, whole._replace(format=77))
    with pytest.raises(RingError, match="no whole frame"):
        ring.read(slot)
    with pytest.raises(RingError, match="not bayerrg8: develop it before"):
        ring.put(picture(1), PixelFormat.BAYER_RG8, 3, 0)


def test_a_slot_that_changes_while_it_is_read_is_noticed(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    slot = announce(ring, 1)
    assert slot is not None
    pixels_of = ring._pixels

    def meanwhile(index: int, shape: tuple[int, ...]) -> np.ndarray:
        ring._set_slot(index, ring.slot(index)._replace(sequence=99))
        return pixels_of(index, shape)

    monkeypatch.setattr(ring, "_pixels", meanwhile)
    with pytest.raises(RingError, match="given to another frame while it was read"):
        ring.read(slot)


def test_a_long_reason_is_cut_at_a_letter(ring: Ring) -> None:
    ring.announce(Record(0, 1, 0, 0, None, -1, "ü" * 400))
    (record,) = ring.drain()
    assert record.lost == "ü" * 150


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


def test_memory_that_the_system_does_not_give_is_said_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_fd: int, _size: int) -> None:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    monkeypatch.setattr(os, "ftruncate", refuse)
    with pytest.raises(RingError, match=r"no 32 MB of shared memory for frames \(File too large\): lower slots"):
        Ring.create(4, 8_000_000)


def test_a_state_whose_header_is_being_written_is_not_taken_for_an_empty_one() -> None:
    ring = Ring.create(3, 4096)
    ring.save_state({"number": 1})
    at = _AT_STATE + STATE_BYTES
    half = _STATE.pack(2, 0, 0)  # the sequence stands, length and checksum do not yet
    ring._memory[at : at + len(half)] = half
    assert ring.load_state() == {"number": 1}
    ring.close()


HEADERS = """
import sys
from edge_runtime.ring import Live, Ring
ring = Ring.attach(int(sys.argv[1]))
live, slot = ring.live(), ring.slot(0)
print("ready", flush=True)
while True:
    ring.set_live(live)
    ring._set_slot(0, slot)
"""


def test_whoever_reads_beside_a_writer_never_sees_an_empty_header(ring: Ring) -> None:
    """What is read without the lock: a picture of 0 x 0 pixels, or a camera that is starting, would be believed."""
    slot = ring.put(picture(3), MONO, 3, 3000)
    assert slot == 0
    ring.set_live(Live(1, 2, 3, 4, 5, ChildState.RUNNING, 1, 8))
    expected = ring.live(), ring.slot(0)
    words = [sys.executable, "-c", HEADERS, str(ring.fd)]
    writer = subprocess.Popen(words, pass_fds=(ring.fd,), stdout=subprocess.PIPE)
    try:
        assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
        wrong = sum((ring.live(), ring.slot(0)) != expected for _ in range(100_000))
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()
    assert wrong == 0
