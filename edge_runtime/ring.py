"""Frames and triggers in memory that the supervisor owns, shared with one capture process (hop 1 -> hop 2).

The memory is an anonymous file (memfd): it has no name that could be left behind, it is not bounded by /dev/shm, and
it goes when the last process that holds it does. A capture process can be killed at any instruction: what it had
announced stands, what it had not finished is given back by ``reclaim``.

Slots go FREE -> WRITING -> KEPT (complete; the capture process may want it yet) -> HELD (triggers refer to it) ->
FREE. One frame may serve several triggers: ``refs`` counts those announced and not released.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np

from contract.images import PixelFormat, Pixels
from edge_runtime.errors import RingError
from edge_runtime.wanted import KeptFrame, Wanted, choose

MAGIC = 0x464C5752494E4731
RECORDS = 1024
LOCK_WAIT_S = 0.5
DETAIL_BYTES = 400
STATE_BYTES = 16384
LOST_BYTES = 300

_HEAD = struct.Struct("<QQQQ")  # magic, slots, bytes of a slot, policy
_COUNTS = struct.Struct("<QQ")  # triggers recorded so far, triggers drained so far: the ids are 1 higher than the first
_LIVE = struct.Struct("<qqqqqIII")  # alive_ns, frame_ns, frame_no, frames, skipped, state, waits, learnt_mhz
_SLOT = struct.Struct("<QqqIIIII")  # sequence, frame_no, t_capture_ns, width, height, format, state, refs
_RECORD = struct.Struct(
    f"<QqqqiiiiiI{LOST_BYTES}s"
)  # id, frame_no, t_capture, t_trigger, x, y, w, h, slot, flags, lost
_STATE = struct.Struct("<QII")  # sequence, length, checksum

_AT_COUNTS, _AT_GONE, _AT_AWAITED, _AT_LIVE, _AT_DETAIL, _AT_STATE = 64, 80, 88, 128, 192, 4096
_AT_RECORDS = _AT_STATE + 2 * STATE_BYTES
_RECORD_STEP, _SLOT_STEP = 384, 64
_AT_SLOTS = _AT_RECORDS + RECORDS * _RECORD_STEP
_HAS_BOX = 1

FORMATS = (PixelFormat.MONO8, PixelFormat.BGR8, PixelFormat.RGB8)
"""What a slot may hold; its header says which by the place in this tuple."""


class SlotState(IntEnum):
    """Who may touch a slot."""

    FREE = 0
    WRITING = 1
    KEPT = 2
    HELD = 3


class ChildState(IntEnum):
    """What the capture process says of itself."""

    STARTING = 0
    RUNNING = 1
    ENDED = 2
    FAILED = 3


class Slot(NamedTuple):
    """A slot's header."""

    sequence: int
    frame_no: int
    t_capture_ns: int
    width: int
    height: int
    format: int
    state: int
    refs: int


class Record(NamedTuple):
    """One trigger. ``slot`` is -1 where there is no picture, and ``lost`` says why."""

    trigger_id: int
    frame_no: int
    t_capture_ns: int
    t_trigger_ns: int
    box: tuple[int, int, int, int] | None
    slot: int
    lost: str | None


class Live(NamedTuple):
    """Signs of life: monotonic times in ns (0: none yet), the last frame's number, counts.

    ``frame_ns``: until when nothing can have been missed: the last frame that showed something new, or, of a camera
    that ``waits`` for parts to trigger it, when it last answered. ``learnt_mhz``: frames in 1000 s, as learnt.
    """

    alive_ns: int = 0
    frame_ns: int = 0
    frame_no: int = -1
    frames: int = 0
    skipped: int = 0
    state: int = ChildState.STARTING
    waits: int = 0
    learnt_mhz: int = 0


class Ring:
    """Both ends of the shared memory. ``create`` on the supervisor's side, ``attach`` in the capture process."""

    def __init__(self, fd: int) -> None:
        """Map the memory behind ``fd``, which this object owns from now on."""
        self.fd = fd
        # A file description of its own: flock excludes descriptions, and both processes inherit the same one.
        self._lock_fd = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        self._memory = mmap.mmap(fd, 0)
        self._held: dict[int, int] = {}  # the station's side: slot -> triggers fetched and not released
        magic, self.slots, self.slot_bytes, freshest = _HEAD.unpack_from(self._memory, 0)
        if magic != MAGIC:
            self.close()
            raise RingError(f"shared memory of a camera begins with {magic:#x}, expected {MAGIC:#x}")
        self.freshest = bool(freshest)

    @classmethod
    def create(cls, slots: int, slot_bytes: int, freshest: bool = False) -> Ring:
        """A new ring; memory is taken as frames come. Raises RingError where the system does not give it."""
        slot_bytes = -(-slot_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        size = _frames_at(slots) + slots * slot_bytes
        fd = -1
        try:
            fd = os.memfd_create("flawline-ring", os.MFD_CLOEXEC)
            os.ftruncate(fd, size)
            os.pwrite(fd, _HEAD.pack(MAGIC, slots, slot_bytes, int(freshest)), 0)
            os.pwrite(fd, _LIVE.pack(*Live()), _AT_LIVE)
            return cls(fd)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            raise RingError(
                f"the system gives no {size / 1e6:.0f} MB of shared memory for frames ({error.strerror}): lower slots "
                "or max_frame_mb of the camera, or raise the limits of the process (ulimit -f, -v, memory of the unit)"
            ) from error

    @classmethod
    def attach(cls, fd: int) -> Ring:
        """The ring behind an inherited descriptor."""
        return cls(fd)

    def close(self) -> None:
        """Give the memory back; frames handed out as views must be gone (``read`` copies, so there are none)."""
        if self.fd >= 0:
            self._memory.close()
            os.close(self._lock_fd)
            os.close(self.fd)
            self.fd = -1

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One side at a time. The kernel frees the lock of a killed process; a stopped one makes this give up."""
        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RingError("the other side holds the shared memory and does not let go") from None
                time.sleep(0.0002)
        try:
            yield
        finally:
            fcntl.flock(self._lock_fd, fcntl.LOCK_UN)

    # Slots ------------------------------------------------------------------------------------------------------------

    def _write(self, at: int, data: bytes) -> None:
        """Copy ``data`` over what is there. `pack_into` fills with zeros first, which others would read meanwhile."""
        self._memory[at : at + len(data)] = data

    def slot(self, index: int) -> Slot:
        return Slot(*_SLOT.unpack_from(self._memory, _AT_SLOTS + index * _SLOT_STEP))

    def _set_slot(self, index: int, slot: Slot) -> None:
        self._write(_AT_SLOTS + index * _SLOT_STEP, _SLOT.pack(*slot))

    def _pixels(self, index: int, shape: tuple[int, ...]) -> Pixels:
        """A view of a slot's memory; must not outlive the call it is made for."""
        at = _frames_at(self.slots) + index * self.slot_bytes
        return np.ndarray(shape, np.uint8, self._memory, at)

    def put(self, pixels: Pixels, pixel_format: PixelFormat, frame_no: int, t_capture_ns: int) -> int | None:
        """Copy a frame into a free slot (KEPT); None where there is none, or as ``freshest`` takes the oldest's.

        Raises RingError for a frame that is larger than a slot, or of a format that is none of FORMATS.
        """
        if pixel_format not in FORMATS:
            raise RingError(
                f"a frame in shared memory is {', '.join(FORMATS)}, not {pixel_format.value}: develop it before"
            )
        if pixels.nbytes > self.slot_bytes:
            raise RingError(self.too_large(pixels, pixel_format))
        with self._locked():
            index = self._free_slot()
            if index is None:
                return None
            sequence = self.slot(index).sequence + 1
            height, width = pixels.shape[:2]
            slot = Slot(
                sequence, frame_no, t_capture_ns, width, height, FORMATS.index(pixel_format), SlotState.WRITING, 0
            )
            self._set_slot(index, slot)
        self._pixels(index, pixels.shape)[...] = pixels
        with self._locked():
            self._set_slot(index, slot._replace(state=SlotState.KEPT))
        return index

    def _free_slot(self) -> int | None:
        for index in range(self.slots):
            if self.slot(index).state == SlotState.FREE:
                return index
        if self.freshest:
            recorded, drained = self.counts()
            for place in range(max(drained, recorded - RECORDS), recorded):
                freed = self._supersede(place)
                if freed is not None:
                    return freed
        return None

    def _supersede(self, place: int) -> int | None:
        """Take the picture from a trigger that nobody has fetched yet; returns its slot once that is free."""
        record = self._record(place)
        if record.slot < 0:
            return None
        self._set_record(place, record._replace(slot=-1, lost="superseded by a fresher part"))
        return record.slot if self._drop_ref(record.slot) else None

    def _drop_ref(self, index: int) -> bool:
        """One trigger less refers to the slot; true when it became free."""
        slot = self.slot(index)
        refs = max(0, slot.refs - 1)
        busy = refs > 0 or slot.state in (SlotState.WRITING, SlotState.KEPT)
        self._set_slot(index, slot._replace(refs=refs, state=slot.state if busy else SlotState.FREE))
        return not busy

    def unkeep(self, index: int) -> None:
        """The capture process does not want the frame any more; triggers that refer to it still have it."""
        with self._locked():
            slot = self.slot(index)
            if slot.state == SlotState.KEPT:
                self._set_slot(index, slot._replace(state=SlotState.HELD if slot.refs else SlotState.FREE))

    # Frames by their time ---------------------------------------------------------------------------------------------

    def give_up(self, index: int) -> None:
        """The capture process needs the room of a frame that it kept for whoever asks by time."""
        self.note_gone(self.slot(index).t_capture_ns)
        self.unkeep(index)

    def note_gone(self, t_capture_ns: int) -> None:
        """A frame of this time can be taken by nobody any more."""
        (gone_ns,) = struct.unpack_from("<q", self._memory, _AT_GONE)
        self._write(_AT_GONE, struct.pack("<q", max(gone_ns, t_capture_ns)))

    def hold(self, wanted: Wanted) -> KeptFrame | str | None:
        """Take a frame by its time, as ``choose`` says; a frame is the station's until ``release``."""
        with self._locked():
            slots = [(index, self.slot(index)) for index in range(self.slots)]
            whole = [(index, slot) for index, slot in slots if slot.state in (SlotState.KEPT, SlotState.HELD)]
            frames = [KeptFrame(index, slot.frame_no, slot.t_capture_ns) for index, slot in whole]
            (gone_ns,) = struct.unpack_from("<q", self._memory, _AT_GONE)
            found = choose(wanted, frames, gone_ns)
            if isinstance(found, KeptFrame):
                slot = self.slot(found.slot)
                self._set_slot(found.slot, slot._replace(refs=slot.refs + 1))
                self._held[found.slot] = self._held.get(found.slot, 0) + 1
        return found

    def await_frames(self, awaited: bool) -> None:
        """Whether the station wants to be woken by each frame that is kept."""
        self._write(_AT_AWAITED, struct.pack("<Q", int(awaited)))

    @property
    def awaited(self) -> bool:
        return bool(struct.unpack_from("<Q", self._memory, _AT_AWAITED)[0])

    def too_large(self, pixels: Pixels, pixel_format: PixelFormat) -> str:
        """The sentence about a frame that no slot takes."""
        return (
            f"a frame of {pixels.shape[1]} x {pixels.shape[0]} pixels, {pixel_format.value}, takes "
            f"{pixels.nbytes / 1e6:.1f} MB; a slot holds {self.slot_bytes / 1e6:.1f} MB: raise max_frame_mb"
        )

    def read(self, index: int, box: tuple[int, int, int, int] | None = None) -> tuple[Pixels, PixelFormat]:
        """An own copy of a frame, or of ``box`` (x, y, width, height) of it.

        Raises RingError where the slot was given to another frame meanwhile, or its header cannot be true.
        """
        slot = self.slot(index)
        if slot.state not in (SlotState.KEPT, SlotState.HELD) or slot.format >= len(FORMATS):
            raise RingError(f"slot {index} holds no whole frame (state {slot.state}, format {slot.format})")
        pixel_format = FORMATS[slot.format]
        planes = pixel_format.planes
        if slot.height * slot.width * planes > self.slot_bytes:
            raise RingError(f"slot {index} declares {slot.width} x {slot.height} pixels, more than it can hold")
        shape = (slot.height, slot.width) if planes == 1 else (slot.height, slot.width, planes)
        x, y, width, height = box or (0, 0, slot.width, slot.height)
        pixels = self._pixels(index, shape)[y : y + height, x : x + width].copy()
        if self.slot(index).sequence != slot.sequence:
            raise RingError(f"slot {index} was given to another frame while it was read")
        return pixels, pixel_format

    # Triggers ---------------------------------------------------------------------------------------------------------

    def counts(self) -> tuple[int, int]:
        """(recorded, drained) since the ring was made."""
        recorded, drained = _COUNTS.unpack_from(self._memory, _AT_COUNTS)
        return int(recorded), int(drained)

    def _record(self, place: int) -> Record:
        at = _AT_RECORDS + (place % RECORDS) * _RECORD_STEP
        number, frame_no, captured, triggered, x, y, w, h, slot, flags, lost = _RECORD.unpack_from(self._memory, at)
        reason = lost.rstrip(b"\0").decode("utf-8", "ignore") or None
        return Record(number, frame_no, captured, triggered, (x, y, w, h) if flags & _HAS_BOX else None, slot, reason)

    def _set_record(self, place: int, record: Record) -> None:
        at = _AT_RECORDS + (place % RECORDS) * _RECORD_STEP
        flags = 0 if record.box is None else _HAS_BOX
        lost = (record.lost or "").encode()[:LOST_BYTES]
        self._write(at, _RECORD.pack(*record[:4], *(record.box or (0, 0, 0, 0)), record.slot, flags, lost))

    def announce(self, record: Record) -> int:
        """Record a trigger; it exists from now on, whatever becomes of this process. Returns its place, from 0.

        With a slot the frame is kept until the trigger is released. The ``trigger_id`` of the record is not used:
        ids follow from the place.
        """
        with self._locked():
            recorded, drained = self.counts()
            if recorded - drained >= RECORDS:  # nobody drains: the oldest record goes, ``drain`` accounts for it
                self._supersede(recorded - RECORDS)
            if record.slot >= 0:
                slot = self.slot(record.slot)
                self._set_slot(record.slot, slot._replace(refs=slot.refs + 1))
            self._set_record(recorded, record._replace(trigger_id=recorded))
            self._set_counts(recorded=recorded + 1)
        return recorded

    def _set_counts(self, recorded: int | None = None, drained: int | None = None) -> None:
        # Eight aligned bytes: a process killed here leaves the old count or the new one.
        if recorded is not None:
            self._write(_AT_COUNTS, struct.pack("<Q", recorded))
        if drained is not None:
            self._write(_AT_COUNTS + 8, struct.pack("<Q", drained))

    def drain(self) -> list[Record]:
        """Triggers not fetched before, in order, each exactly once, with ``trigger_id`` counting from 0.

        The slots they refer to stay as they are until ``release``.
        """
        with self._locked():
            recorded, drained = self.counts()
            found = []
            oldest = self._record(max(drained, recorded - RECORDS)) if recorded > drained else None
            for place in range(drained, recorded):
                if oldest is not None and place < recorded - RECORDS:  # overwritten: it is older than the oldest left
                    reason = "the station fetched no triggers for too long"
                    found.append(oldest._replace(trigger_id=place, box=None, slot=-1, lost=reason))
                    continue
                record = self._record(place)
                if record.slot >= 0:
                    self._held[record.slot] = self._held.get(record.slot, 0) + 1
                found.append(record)
            self._set_counts(drained=recorded)
        return found

    def release(self, index: int) -> None:
        """The station is done with one trigger's frame. After a RingError ``reclaim`` frees it."""
        self._held[index] = self._held.get(index, 1) - 1
        with self._locked():
            self._drop_ref(index)

    def recent(self, since: int) -> list[Record]:
        """Triggers from place ``since`` on, fetched or not, as far as they are still there."""
        recorded, _ = self.counts()
        return [self._record(place) for place in range(max(since, recorded - RECORDS), recorded)]

    def reclaim(self) -> None:
        """After the capture process has died, before the next one: unfinished and unannounced slots become right.

        Counts references anew, since the process may have died between a slot's header and the trigger's record.
        KEPT slots stay; the next process keeps or frees them.
        """
        with self._locked():
            recorded, drained = self.counts()
            waiting: dict[int, int] = {}
            for place in range(max(drained, recorded - RECORDS), recorded):
                slot_index = self._record(place).slot
                waiting[slot_index] = waiting.get(slot_index, 0) + 1
            for index in range(self.slots):
                slot = self.slot(index)
                refs = 0 if slot.state == SlotState.WRITING else waiting.get(index, 0) + self._held.get(index, 0)
                if slot.state == SlotState.WRITING or (refs == 0 and slot.state != SlotState.KEPT):
                    slot = slot._replace(state=SlotState.FREE)
                self._set_slot(index, slot._replace(refs=refs))

    def kept(self) -> dict[int, int]:
        """Frame number -> slot of the frames that a capture process has kept."""
        slots = ((self.slot(index), index) for index in range(self.slots))
        return {slot.frame_no: index for slot, index in slots if slot.state == SlotState.KEPT}

    # Signs of life ----------------------------------------------------------------------------------------------------

    def live(self) -> Live:
        return Live(*_LIVE.unpack_from(self._memory, _AT_LIVE))

    def set_live(self, live: Live) -> None:
        self._write(_AT_LIVE, _LIVE.pack(*live))

    def detail(self) -> str:
        raw = bytes(self._memory[_AT_DETAIL : _AT_DETAIL + DETAIL_BYTES])
        return raw.split(b"\0", 1)[0].decode("utf-8", "replace")

    def set_detail(self, text: str) -> None:
        raw = text.encode()[: DETAIL_BYTES - 1]
        self._memory[_AT_DETAIL : _AT_DETAIL + DETAIL_BYTES] = raw.ljust(DETAIL_BYTES, b"\0")

    # What the capture process must know after a restart ---------------------------------------------------------------

    def save_state(self, state: dict[str, Any]) -> None:
        """Keep a small JSON value; a process killed while it writes leaves the value before."""
        raw = json.dumps(state, separators=(",", ":")).encode()
        if len(raw) > STATE_BYTES - _STATE.size:
            raise RingError(f"a tracker's state of {len(raw)} bytes does not fit {STATE_BYTES}")
        sequences = [self._state_sequence(half) for half in (0, 1)]
        half = 0 if sequences[0] <= sequences[1] else 1
        at = _AT_STATE + half * STATE_BYTES
        self._memory[at + _STATE.size : at + _STATE.size + len(raw)] = raw
        self._write(at, _STATE.pack(max(sequences) + 1, len(raw), zlib.crc32(raw)))

    def _state_sequence(self, half: int) -> int:
        sequence, _, _ = _STATE.unpack_from(self._memory, _AT_STATE + half * STATE_BYTES)
        return int(sequence)

    def load_state(self) -> dict[str, Any] | None:
        """The value saved last, None where there is none."""
        for half in sorted((0, 1), key=self._state_sequence, reverse=True):
            at = _AT_STATE + half * STATE_BYTES
            sequence, length, checksum = _STATE.unpack_from(self._memory, at)
            raw = bytes(self._memory[at + _STATE.size : at + _STATE.size + min(length, STATE_BYTES)])
            # While its header is being packed it holds zeros, and no bytes have the checksum 0.
            if sequence and length and zlib.crc32(raw) == checksum:
                value = json.loads(raw)
                return value if isinstance(value, dict) else None
        return None


def _frames_at(slots: int) -> int:
    end = _AT_SLOTS + slots * _SLOT_STEP
    return -(-end // mmap.PAGESIZE) * mmap.PAGESIZE
