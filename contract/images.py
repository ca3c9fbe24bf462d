"""Decodes image files and brings pixels to the recipe's channels, after checking the size they claim (hops 1 and 3)."""

from __future__ import annotations

import struct
from enum import StrEnum
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from contract.errors import ImageError

Pixels = NDArray[np.uint8]
Channels = Literal[1, 3]

MAX_FILE_BYTES = 256 << 20
MAX_PIXELS = 120_000_000
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})


class PixelFormat(StrEnum):
    """How the bytes of a frame are to be read; nothing guesses."""

    MONO8 = "mono8"
    BGR8 = "bgr8"
    RGB8 = "rgb8"

    @property
    def channels(self) -> Channels:
        return 1 if self is PixelFormat.MONO8 else 3


def to_channels(pixels: Pixels, pixel_format: PixelFormat, channels: Channels) -> Pixels:
    """Return uint8 [H, W] (channels 1) or RGB [H, W, 3] (channels 3); no copy where nothing changes.

    Grey from colour is ITU-R BT.601 luma. Raises ImageError where the array does not fit its format.
    """
    expected = 2 if pixel_format is PixelFormat.MONO8 else 3
    if pixels.dtype != np.uint8 or pixels.ndim != expected or (expected == 3 and pixels.shape[2] != 3):
        raise ImageError(
            f"frame of shape {pixels.shape}, {pixels.dtype}: expected uint8 "
            f"{'[H, W]' if expected == 2 else '[H, W, 3]'} for {pixel_format.value}"
        )
    if pixel_format is PixelFormat.MONO8:
        return pixels if channels == 1 else _convert(pixels, cv2.COLOR_GRAY2RGB)
    if channels == 1:
        code = cv2.COLOR_BGR2GRAY if pixel_format is PixelFormat.BGR8 else cv2.COLOR_RGB2GRAY
        return _convert(pixels, code)
    return pixels if pixel_format is PixelFormat.RGB8 else _convert(pixels, cv2.COLOR_BGR2RGB)


def _convert(pixels: Pixels, code: int) -> Pixels:
    return np.asarray(cv2.cvtColor(pixels, code), dtype=np.uint8)


def read_image(path: Path, channels: Channels) -> Pixels:
    """Read an image file as uint8 [H, W] or RGB [H, W, 3].

    The size is read from the file's header and refused above MAX_PIXELS before memory is taken for it.
    Raises ImageError naming the file.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ImageError(f"{path}: {path.stat().st_size} bytes, at most {MAX_FILE_BYTES} are read")
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error})") from error
    return decode_image(data, channels, str(path))


def decode_image(data: bytes, channels: Channels, name: str) -> Pixels:
    """Decode an encoded image held in memory; ``name`` stands in the error."""
    if not data:
        raise ImageError(f"{name}: the file is empty (0 bytes); expected a PNG, JPEG, BMP, TIFF or WebP image")
    size = declared_size(data)
    if size is None:
        raise ImageError(f"{name}: not a readable image: no PNG, JPEG, BMP, TIFF or WebP header in {len(data)} bytes")
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageError(f"{name}: declares {size[0]} x {size[1]} pixels, at most {MAX_PIXELS} are read")
    flag = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR
    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error as error:
        raise ImageError(f"{name}: not a readable image ({error.err or 'decoder error'})") from error
    if decoded is None:
        raise ImageError(f"{name}: not a readable image ({len(data)} bytes); is it truncated or of another type?")
    pixels = np.asarray(decoded, dtype=np.uint8)
    return pixels if channels == 1 else _convert(pixels, cv2.COLOR_BGR2RGB)


def encode_png(pixels: Pixels) -> bytes:
    """PNG bytes of uint8 [H, W] or RGB [H, W, 3]; fast, lossless."""
    if pixels.ndim == 3:
        pixels = _convert(pixels, cv2.COLOR_RGB2BGR)
    ok, data = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not ok:
        raise ImageError(f"an image of shape {pixels.shape} cannot be encoded as PNG")
    return data.tobytes()


def extent_px(mask: NDArray[np.bool_]) -> float:
    """Longest extent of the largest connected area of a mask, in pixels: the longer side of the least rectangle."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count < 2:
        return 0.0
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    points = np.argwhere(labels == largest)[:, ::-1].astype(np.float32)
    (_, _), sides, _ = cv2.minAreaRect(points)
    return max(float(sides[0]), float(sides[1])) + 1.0  # from centre to centre of pixels, and half of one at each end


def declared_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) that a header declares; None where it is torn or of a format that is not read.

    What is None is not decoded: a decoder would take memory by a size that nobody has checked.
    """
    try:
        if data[:8] == b"\x89PNG\r\n\x1a\n":
            return _pair(">II", data, 16)
        if data[:2] == b"BM":
            core_header = _pair("<II", data, 14)[0] == 12
            width, height = _pair("<HH", data, 18) if core_header else _pair("<ii", data, 18)
            return abs(width), abs(height)
        if data[:2] == b"\xff\xd8":
            return _jpeg_size(data)
        if data[:4] in (b"II*\x00", b"MM\x00*"):
            return _tiff_size(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp_size(data)
    except struct.error:
        return None
    return None


def _pair(layout: str, data: bytes, at: int) -> tuple[int, int]:
    first, second = struct.unpack_from(layout, data, at)
    return int(first), int(second)


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """From the first start-of-frame segment; segments before it are stepped over."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = _pair(">HH", data, at + 5)
            return width, height
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _tiff_size(data: bytes) -> tuple[int, int] | None:
    """Tags 256 and 257 of the first directory, 16 or 32 bits wide."""
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    (entries,) = struct.unpack_from(f"{order}H", data, start)
    found: dict[int, int] = {}
    for index in range(entries):
        at = start + 2 + 12 * index
        tag, kind = struct.unpack_from(f"{order}HH", data, at)
        if tag in (256, 257):
            (found[tag],) = struct.unpack_from(f"{order}{'H' if kind == 3 else 'I'}", data, at + 8)
    return (found[256], found[257]) if len(found) == 2 else None


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """From the first chunk: extended, lossless or lossy."""
    kind = data[12:16]
    if kind == b"VP8X" and len(data) >= 30:
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = _pair("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None
