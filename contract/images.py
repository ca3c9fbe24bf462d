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
PNG = b"\x89PNG\r\n\x1a\n"
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})


class PixelFormat(StrEnum):
    """How the bytes of a frame are to be read, from the sensor to the graph; nothing guesses.

    The names are those of the GenICam Pixel Format Naming Convention in small letters; a Bayer format is named by the
    first two pixels of its first row.
    """

    MONO8 = "mono8"
    BGR8 = "bgr8"
    RGB8 = "rgb8"
    BGRA8 = "bgra8"
    RGBA8 = "rgba8"
    BAYER_RG8 = "bayerrg8"
    BAYER_GR8 = "bayergr8"
    BAYER_GB8 = "bayergb8"
    BAYER_BG8 = "bayerbg8"

    @property
    def planes(self) -> int:
        """Values that one pixel of the array has; with 1 the array is [H, W]."""
        return {PixelFormat.BGR8: 3, PixelFormat.RGB8: 3, PixelFormat.BGRA8: 4, PixelFormat.RGBA8: 4}.get(self, 1)


GRAPH_FORMATS: dict[Channels, PixelFormat] = {1: PixelFormat.MONO8, 3: PixelFormat.RGB8}
"""What a graph of so many channels takes, and what training reads from files: the one place that decides it."""

# OpenCV's plain Bayer names (COLOR_BayerRG2RGB) count from the second row; these say the whole pattern.
_DEVELOPED = {
    PixelFormat.BGRA8: (cv2.COLOR_BGRA2RGB, PixelFormat.RGB8),
    PixelFormat.RGBA8: (cv2.COLOR_RGBA2RGB, PixelFormat.RGB8),
    PixelFormat.BAYER_RG8: (cv2.COLOR_BayerRGGB2RGB, PixelFormat.RGB8),
    PixelFormat.BAYER_GR8: (cv2.COLOR_BayerGRBG2RGB, PixelFormat.RGB8),
    PixelFormat.BAYER_GB8: (cv2.COLOR_BayerGBRG2RGB, PixelFormat.RGB8),
    PixelFormat.BAYER_BG8: (cv2.COLOR_BayerBGGR2RGB, PixelFormat.RGB8),
}
_CONVERTED = {
    (PixelFormat.MONO8, PixelFormat.RGB8): cv2.COLOR_GRAY2RGB,
    (PixelFormat.BGR8, PixelFormat.RGB8): cv2.COLOR_BGR2RGB,
    (PixelFormat.BGR8, PixelFormat.MONO8): cv2.COLOR_BGR2GRAY,
    (PixelFormat.RGB8, PixelFormat.MONO8): cv2.COLOR_RGB2GRAY,
}


def developed(pixels: Pixels, pixel_format: PixelFormat) -> tuple[Pixels, PixelFormat]:
    """What a sensor gives as what can be looked at: mono8, bgr8 or rgb8.

    Bayer patterns are interpolated (bilinear) as their format declares them, an alpha plane is left out; the rest comes
    back as it is. Raises ImageError where the array does not fit its format.
    """
    _fits(pixels, pixel_format)
    if pixel_format not in _DEVELOPED:
        return pixels, pixel_format
    code, developed_format = _DEVELOPED[pixel_format]
    if pixel_format.planes == 1 and min(pixels.shape) < 4:
        raise ImageError(f"a {pixel_format.value} frame of {pixels.shape[1]} x {pixels.shape[0]}: too small to develop")
    return _convert(pixels, code), developed_format


def _fits(pixels: Pixels, pixel_format: PixelFormat) -> None:
    planes = pixel_format.planes
    shape_fits = pixels.ndim == 2 if planes == 1 else pixels.ndim == 3 and pixels.shape[2] == planes
    if pixels.dtype != np.uint8 or not shape_fits:
        raise ImageError(
            f"frame of shape {pixels.shape}, {pixels.dtype}: expected uint8 "
            f"{'[H, W]' if planes == 1 else f'[H, W, {planes}]'} for {pixel_format.value}"
        )


def to_channels(pixels: Pixels, pixel_format: PixelFormat, channels: Channels) -> Pixels:
    """Return uint8 [H, W] (channels 1) or RGB [H, W, 3] (channels 3); no copy where nothing changes.

    Grey from colour is ITU-R BT.601 luma. Raises ImageError where the array does not fit its format.
    """
    pixels, pixel_format = developed(pixels, pixel_format)
    code = _CONVERTED.get((pixel_format, GRAPH_FORMATS[channels]))
    return pixels if code is None else _convert(pixels, code)


def _convert(pixels: Pixels, code: int) -> Pixels:
    return np.asarray(cv2.cvtColor(pixels, code), dtype=np.uint8)


def same_pixels(pixels: Pixels, others: Pixels | None) -> bool:
    """Whether two pictures agree in every byte; a few rows tell most that do not."""
    if others is None or pixels.shape != others.shape:
        return False
    return np.array_equal(pixels[::64], others[::64]) and np.array_equal(pixels, others)


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
    if data[:8] == PNG and not _png_ends(data):  # OpenCV takes as much memory as a chunk says that it has
        raise ImageError(
            f"{name}: not a readable image (a PNG with pieces beyond its {len(data)} bytes); is it truncated?"
        )
    if data[:2] == b"\xff\xd8" and not _jpeg_ends(data):  # older decoders fill in what is missing, and say nothing
        raise ImageError(f"{name}: not a readable image ({len(data)} bytes without the end of one); is it truncated?")
    # Never IMREAD_GRAYSCALE: of a colour PNG the decoder's own grey is half a level darker than a camera's.
    flag = cv2.IMREAD_ANYCOLOR if channels == 1 else cv2.IMREAD_COLOR
    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error as error:
        raise ImageError(f"{name}: not a readable image ({error.err or 'decoder error'})") from error
    if decoded is None:
        raise ImageError(f"{name}: not a readable image ({len(data)} bytes); is it truncated or of another type?")
    pixels = np.asarray(decoded, dtype=np.uint8)
    return to_channels(pixels, PixelFormat.MONO8 if pixels.ndim == 2 else PixelFormat.BGR8, channels)


def encode_png(pixels: Pixels) -> bytes:
    """PNG bytes of uint8 [H, W] or RGB [H, W, 3]; fast, lossless."""
    if pixels.ndim == 3:
        pixels = _convert(pixels, cv2.COLOR_RGB2BGR)
    ok, data = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not ok:
        raise ImageError(f"an image of shape {pixels.shape} cannot be encoded as PNG")
    return data.tobytes()


def encode_png16(values: NDArray[np.uint16]) -> bytes:
    """PNG bytes of uint16 [H, W] or RGB [H, W, 3]; lossless."""
    ordered = values if values.ndim == 2 else np.ascontiguousarray(values[..., ::-1])
    ok, data = cv2.imencode(".png", ordered, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not ok:
        raise ImageError(f"values of shape {values.shape} cannot be encoded as PNG")
    return data.tobytes()


def decode_png(
    data: bytes, size: tuple[int, int], channels: Channels, dtype: np.dtype[np.generic], name: str
) -> NDArray[np.generic]:
    """A PNG of exactly this width and height, these channels and this depth: [H, W] or RGB [H, W, 3].

    What its header says is compared before memory is taken for it. Raises ImageError with ``name``.
    """
    kind = (8 * dtype.itemsize, 0 if channels == 1 else 2)
    found = declared_size(data) if data[:8] == PNG and len(data) > 26 else None
    if found != size or (data[24], data[25]) != kind or not _png_ends(data):
        raise ImageError(
            f"{name}: expected a whole PNG of {size[0]} x {size[1]} px with {channels} channel(s) of {kind[0]} bits, "
            f"found {'none' if found is None else f'{found[0]} x {found[1]} px or another kind'}"
        )
    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ImageError(f"{name}: not a readable PNG ({error.err or 'decoder error'})") from error
    shape = (size[1], size[0]) if channels == 1 else (size[1], size[0], 3)
    if decoded is None or decoded.shape != shape or decoded.dtype != dtype:
        raise ImageError(f"{name}: not a readable PNG ({len(data)} bytes)")
    return np.asarray(decoded) if channels == 1 else np.ascontiguousarray(decoded[..., ::-1])


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
        if data[:8] == PNG:
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
    """From the first start-of-frame segment; segments before it are stepped over.

    None also where a marker without a length stands before it (TEM, RSTn): a decoder steps over its two bytes alone and
    may find another size behind them.
    """
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker < 0xC0 or 0xD0 <= marker <= 0xD9:
            return None
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = _pair(">HH", data, at + 5)
            return width, height
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def is_whole(data: bytes) -> bool | None:
    """Whether an encoded image has the end that its format demands; None where the format does not tell (TIFF).

    A file that is still being written or was cut off has none, even where its size was reserved beforehand. Some
    programs write a wrong size into a BMP: what is not whole by this may yet be decoded.
    """
    if data[:8] == PNG:
        return b"IEND\xaeB`\x82" in data[-64:]
    if data[:2] == b"BM":
        return len(data) >= 26 and len(data) >= int.from_bytes(data[2:6], "little")
    if data[:2] == b"\xff\xd8":
        return _jpeg_ends(data)
    if data[:4] == b"RIFF":
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    return None if data[:4] in (b"II*\x00", b"MM\x00*") else False


def _png_ends(data: bytes) -> bool:
    """Whether every chunk up to the last one, IEND, lies within the file."""
    at = len(PNG)
    while at + 12 <= len(data):
        kind = data[at + 4 : at + 8]
        at += 12 + int.from_bytes(data[at : at + 4], "big")
        if kind == b"IEND":
            return at <= len(data)
    return False


def _jpeg_ends(data: bytes) -> bool:
    """Whether an end-of-image marker follows the first scan; one before it would be a thumbnail's."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        if data[at + 1] == 0xDA:
            return data.find(b"\xff\xd9", at) >= 0
        at += 1 if data[at + 1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def _tiff_size(data: bytes) -> tuple[int, int] | None:
    """Tags 256 and 257 of the first directory, 16 or 32 bits wide.

    None where one stands twice or is of another kind: a decoder would take the first, or read what we do not.
    """
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    (entries,) = struct.unpack_from(f"{order}H", data, start)
    found: dict[int, int] = {}
    for index in range(entries):
        at = start + 2 + 12 * index
        tag, kind, count = struct.unpack_from(f"{order}HHI", data, at)
        if tag in (256, 257):
            if tag in found or kind not in (3, 4) or count != 1:
                return None
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
