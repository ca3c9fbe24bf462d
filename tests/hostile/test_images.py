"""Image files that are not what they say: a sentence each, no crash, no memory taken on their word."""

from __future__ import annotations

import resource
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest

from contract.errors import ImageError
from contract.images import MAX_PIXELS, SUFFIXES, declared_size, decode_image, read_image

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def encoded(suffix: str, pixels: np.ndarray = PICTURE) -> bytes:
    ok, data = cv2.imencode(suffix, pixels)
    assert ok
    return data.tobytes()


def png(width: int, height: int) -> bytes:
    """A PNG whose header declares any size, with hardly any data."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = b""
    for name, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")):
        chunks += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return b"\x89PNG\r\n\x1a\n" + chunks


def bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, *[0] * 6)


def jpeg(width: int, height: int) -> bytes:
    frame = b"\xff\xc0" + struct.pack(">HBHHB", 11, 8, height, width, 1) + b"\x01\x11\x00"
    return b"\xff\xd8" + b"\xff\xff\xe0" + struct.pack(">H", 16) + b"JFIF\0" + b"\0" * 9 + frame + b"\xff\xd9"


def tiff(width: int, height: int, order: str = "<") -> bytes:
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 4, 1, 8), (277, 4, 1, 1)]
    directory = struct.pack(f"{order}H", len(entries)) + b"".join(struct.pack(f"{order}HHII", *e) for e in entries)
    return (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8) + directory + b"\0" * 4


def webp(width: int, height: int) -> bytes:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\0" * 4 + size


@pytest.mark.parametrize(
    ("make", "side"),
    [
        (png, 46_341),
        (bmp, 46_341),
        (jpeg, 65_500),
        (tiff, 46_341),
        (lambda w, h: tiff(w, h, ">"), 46_341),
        (webp, 46_341),
    ],
    ids=["png", "bmp", "jpeg", "tiff", "tiff-big-endian", "webp"],
)
def test_huge_declared_size_is_refused_before_memory(make: object, side: int, tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(make(side, side))  # type: ignore[operator]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageError, match=rf"bomb\.png: declares {side} x {side} pixels, at most {MAX_PIXELS}"):
        read_image(path, 1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


@pytest.mark.parametrize("marker", [0x01, 0xD0, 0xD7, 0xBF])
def test_a_jpeg_whose_size_hides_behind_a_marker_without_a_length_is_refused(marker: int) -> None:
    """It looks like a segment with a small frame in it; a decoder steps over two bytes and finds the large one."""
    ok, real = cv2.imencode(".jpg", PICTURE)
    small = jpeg(16, 16)[2:]
    hidden = bytes([0xFF, marker, 0x00, 0x02 + len(small)]) + small
    assert ok and declared_size(b"\xff\xd8" + hidden + real.tobytes()[2:]) is None
    with pytest.raises(ImageError, match="not a readable image"):
        decode_image(b"\xff\xd8" + hidden + real.tobytes()[2:], 1, "a picture")


def test_bmp_upside_down_and_old_headers() -> None:
    assert declared_size(bmp(100, -50_000_000)) == (100, 50_000_000)
    old = b"BM" + struct.pack("<IHHI", 26, 0, 0, 26) + struct.pack("<IHHHH", 12, 300, 200, 1, 24)
    assert declared_size(old) == (300, 200)


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
@pytest.mark.parametrize("channels", [1, 3])
def test_every_suffix_is_read_and_its_size_known(suffix: str, channels: int, tmp_path: Path) -> None:
    path = tmp_path / f"picture{suffix}"
    path.write_bytes(encoded(suffix))
    assert declared_size(path.read_bytes()) == (60, 40)
    pixels = read_image(path, channels)  # type: ignore[arg-type]
    assert pixels.dtype == np.uint8 and pixels.shape == ((40, 60) if channels == 1 else (40, 60, 3))


def test_lossy_webp() -> None:
    ok, data = cv2.imencode(".webp", PICTURE, [cv2.IMWRITE_WEBP_QUALITY, 50])
    assert ok and declared_size(data.tobytes()) == (60, 40)


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_torn_anywhere_is_refused_or_read_whole(suffix: str) -> None:
    data = encoded(suffix)
    for length in [*range(0, min(len(data), 80)), *range(80, len(data), max(1, len(data) // 20))]:
        try:
            pixels = decode_image(data[:length], 3, "torn")
        except ImageError as error:
            assert str(error).startswith("torn: ")
        else:
            assert pixels.shape == (40, 60, 3)


def test_flipped_bytes_never_crash() -> None:
    rng = np.random.default_rng(1)
    for suffix in sorted(SUFFIXES):
        whole = np.frombuffer(encoded(suffix), np.uint8)
        for _ in range(60):
            data = whole.copy()
            data[rng.integers(0, min(len(data), 200), 3)] = rng.integers(0, 256, 3)
            with suppress(ImageError):
                assert decode_image(data.tobytes(), 1, "flipped").dtype == np.uint8


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"hello", "not a readable image"),
        (b"\0" * 10_000, "not a readable image"),
        (b"P5 4 4 255 " + b"\0" * 16, "not a readable image"),
        (png(10, 10), "not a readable image|"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a readable image"),
    ],
    ids=["empty", "text", "zeros", "pgm", "png without pixels", "svg"],
)
def test_what_is_no_image(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.png"
    path.write_bytes(data)
    try:
        pixels = read_image(path, 1)
    except ImageError as error:
        assert "odd.png" in str(error)
        assert any(part in str(error) for part in message.split("|"))
    else:
        assert message.endswith("|") and pixels.shape == (10, 10)


def test_missing_file_folder_and_sparse_giant(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(tmp_path / "none.png", 1)
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(tmp_path, 1)
    giant = tmp_path / "giant.png"
    with giant.open("wb") as file:
        file.truncate(3 << 30)  # sparse: no disk, no memory
    with pytest.raises(ImageError, match=r"3221225472 bytes, at most"):
        read_image(giant, 1)


def test_alpha_palette_and_depth_are_brought_to_the_recipe(tmp_path: Path) -> None:
    colour = np.zeros((20, 30, 3), np.uint8)
    colour[..., 2] = 200  # red, in OpenCV's order
    kinds = {
        "rgba": np.dstack([colour, np.full((20, 30), 128, np.uint8)]),
        "deep": (colour.astype(np.uint16) << 8) | colour,
        "grey": np.full((20, 30), 60, np.uint8),
        "deep_grey": np.full((20, 30), 60 * 257, np.uint16),
    }
    for name, pixels in kinds.items():
        path = tmp_path / f"{name}.png"
        cv2.imwrite(str(path), pixels)
        level = 60 if pixels.ndim == 2 else round(0.299 * 200)
        grey, rgb = read_image(path, 1), read_image(path, 3)
        assert grey.shape == (20, 30) and abs(int(grey[0, 0]) - level) <= 1
        assert rgb.shape == (20, 30, 3)
        assert rgb[0, 0].tolist() == ([60] * 3 if pixels.ndim == 2 else [200, 0, 0])
