"""The newest frame of a camera, made small, for who watches: from the capture process to the preview (beside hop 1).

Memory without a name, as the ring's, and without locks: the capture process writes the half that is not the newest, and
a reader takes only what has a number and the checksum that goes with it. Neither ever waits for the other, and nothing
is made small while nobody watches.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
import zlib
from typing import NamedTuple

import cv2
import numpy as np

from contract.images import PixelFormat, Pixels
from edge_runtime.errors import RingError

MAGIC = 0x464C57474C4D5031
FORMATS = (PixelFormat.MONO8, PixelFormat.BGR8, PixelFormat.RGB8)

_HEAD = struct.Struct("<QQ")  # magic, bytes of a half
_WANTED = struct.Struct("<qqQ")  # until when somebody watches, least time between two frames, pixels of a side
_FRAME = struct.Struct("<QqqIIIIII")  # number, frame_no, t_capture, width, height, format, frame's width, height, crc
_AT_WANTED, _AT_FRAMES, _AT_PIXELS = 64, 128, mmap.PAGESIZE
_STEP = 128


class Seen(NamedTuple):
    """A frame made small. ``number`` counts up; ``frame_wh`` is the size it had; times are CLOCK_MONOTONIC."""

    number: int
    frame_no: int
    t_capture_ns: int
    pixels: Pixels
    pixel_format: PixelFormat
    frame_wh: tuple[int, int]


class _Header(NamedTuple):
    number: int
    frame_no: int
    t_capture_ns: int
    width: int
    height: int
    format: int
    frame_width: int
    frame_height: int
    checksum: int


class Glimpse:
    """Both ends. ``create`` on the supervisor's side, ``attach`` in the capture process."""

    def __init__(self, fd: int) -> None:
        """Map the memory behind ``fd``, which this object owns from now on."""
        self.fd = fd
        self._memory = mmap.mmap(fd, 0)
        self._last_ns = 0
        magic, self._half_bytes = _HEAD.unpack_from(self._memory, 0)
        if magic != MAGIC:
            raise RingError(f"a preview's memory begins with {magic:#x}, expected {MAGIC:#x}")

    @classmethod
    def create(cls, side: int) -> Glimpse:
        """For frames whose longer side is made ``side`` pixels; memory is taken when the first is written."""
        half_bytes = -(-side * side * 3 // mmap.PAGESIZE) * mmap.PAGESIZE
        fd = os.memfd_create("flawline-glimpse", os.MFD_CLOEXEC)
        os.ftruncate(fd, _AT_PIXELS + 2 * half_bytes)
        os.pwrite(fd, _HEAD.pack(MAGIC, half_bytes), 0)
        return cls(fd)

    def close(self) -> None:
        if self.fd >= 0:
            self._memory.close()
            os.close(self.fd)
            self.fd = -1

    # The side that watches --------------------------------------------------------------------------------------------

    def want(self, for_s: float, interval_s: float, side: int) -> None:
        """Have frames written for so long, so often at most, their longer side of so many pixels."""
        until_ns = time.monotonic_ns() + int(for_s * 1e9)
        _WANTED.pack_into(self._memory, _AT_WANTED, until_ns, int(interval_s * 1e9), side)

    def newest(self, after: int) -> Seen | None:
        """The newest whole frame with a number over ``after``; None where there is none, or it is being overwritten."""
        half = max((0, 1), key=lambda each: self._header(each).number)
        header = self._header(half)
        if header.number <= after or header.format >= len(FORMATS):
            return None
        pixel_format = FORMATS[header.format]
        shape = _shape(header.width, header.height, pixel_format)
        if int(np.prod(shape)) > self._half_bytes:
            return None
        pixels = self._pixels(half, shape).copy()
        if self._header(half) != header or zlib.crc32(pixels.data) != header.checksum:
            return None
        wh = (header.frame_width, header.frame_height)
        return Seen(header.number, header.frame_no, header.t_capture_ns, pixels, pixel_format, wh)

    # The capture process ----------------------------------------------------------------------------------------------

    def offer(self, pixels: Pixels, pixel_format: PixelFormat, frame_no: int, t_capture_ns: int, part: bool) -> bool:
        """Write a frame where somebody watches and it is time; one with a ``part`` in it is taken before its time."""
        until_ns, interval_ns, side = _WANTED.unpack_from(self._memory, _AT_WANTED)
        now = time.monotonic_ns()
        if now > until_ns or pixel_format not in FORMATS or not side:
            return False
        if now - self._last_ns < (interval_ns // 2 if part else interval_ns):
            return False
        self._last_ns = now
        small = _small(pixels, side)
        if small.nbytes > self._half_bytes:
            return False
        numbers = [self._header(half).number for half in (0, 1)]
        half = 0 if numbers[0] < numbers[1] else 1
        _FRAME.pack_into(self._memory, _AT_FRAMES + half * _STEP, *([0] * 9))  # whoever reads now has nothing
        self._pixels(half, small.shape)[...] = small
        header = _Header(
            max(numbers) + 1,
            frame_no,
            t_capture_ns,
            small.shape[1],
            small.shape[0],
            FORMATS.index(pixel_format),
            pixels.shape[1],
            pixels.shape[0],
            zlib.crc32(small.data),
        )
        _FRAME.pack_into(self._memory, _AT_FRAMES + half * _STEP, *header)
        return True

    def _header(self, half: int) -> _Header:
        return _Header(*_FRAME.unpack_from(self._memory, _AT_FRAMES + half * _STEP))

    def _pixels(self, half: int, shape: tuple[int, ...]) -> Pixels:
        return np.ndarray(shape, np.uint8, self._memory, _AT_PIXELS + half * self._half_bytes)


def _shape(width: int, height: int, pixel_format: PixelFormat) -> tuple[int, ...]:
    return (height, width) if pixel_format.planes == 1 else (height, width, pixel_format.planes)


def _small(pixels: Pixels, side: int) -> Pixels:
    """The longer side at most ``side``: by a whole factor first, without smoothing, so that large frames stay cheap."""
    step = max(1, 2 * max(pixels.shape[:2]) // (3 * side))
    coarse = _resized(pixels, 1 / step, cv2.INTER_NEAREST)
    return _resized(coarse, min(1.0, side / max(coarse.shape[:2])), cv2.INTER_LINEAR)


def _resized(pixels: Pixels, scale: float, how: int) -> Pixels:
    if scale == 1:
        return np.ascontiguousarray(pixels)
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    return np.asarray(cv2.resize(pixels, size, interpolation=how), dtype=np.uint8)
