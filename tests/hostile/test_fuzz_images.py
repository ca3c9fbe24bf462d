"""Every image format that OpenCV reads, cut, flipped and lied about: refused in a sentence or read as declared."""

from __future__ import annotations

import json
import resource
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import images
from contract.errors import ImageError
from contract.images import declared_size, decode_image, is_whole, read_image
from tests.hostile.fuzz import LONG, QUICK, bounded, damaged

COLOUR = np.random.default_rng(3).integers(0, 256, (40, 60, 3), np.uint8)
GREY = np.ascontiguousarray(COLOUR[..., 0])
DEEP = COLOUR.astype(np.uint16) << 8
ALPHA = np.dstack([COLOUR, GREY])
FLOAT = COLOUR.astype(np.float32) / 255
SIZE = (60, 40)  # width, height

READ: dict[str, tuple[str, np.ndarray, list[int]]] = {
    "png": (".png", COLOUR, []),
    "png grey": (".png", GREY, []),
    "png alpha": (".png", ALPHA, []),
    "png 16 bit": (".png", DEEP, []),
    "png 1 bit": (".png", GREY, [cv2.IMWRITE_PNG_BILEVEL, 1]),
    "jpeg": (".jpg", COLOUR, []),
    "jpeg grey": (".jpg", GREY, []),
    "jpeg progressive": (".jpg", COLOUR, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]),
    "jpeg restarts": (".jpg", COLOUR, [cv2.IMWRITE_JPEG_RST_INTERVAL, 1]),
    "bmp": (".bmp", COLOUR, []),
    "bmp grey": (".bmp", GREY, []),
    "bmp alpha": (".bmp", ALPHA, []),
    "tiff": (".tiff", COLOUR, []),
    "tiff plain": (".tiff", GREY, [cv2.IMWRITE_TIFF_COMPRESSION, 1]),
    "tiff packbits": (".tiff", COLOUR, [cv2.IMWRITE_TIFF_COMPRESSION, 32773]),
    "tiff deflate": (".tiff", GREY, [cv2.IMWRITE_TIFF_COMPRESSION, 8]),
    "tiff 16 bit": (".tiff", DEEP, []),
    "webp": (".webp", COLOUR, [cv2.IMWRITE_WEBP_QUALITY, 101]),
    "webp lossy": (".webp", COLOUR, [cv2.IMWRITE_WEBP_QUALITY, 60]),
    "webp alpha": (".webp", ALPHA, [cv2.IMWRITE_WEBP_QUALITY, 60]),
}
NOT_READ: dict[str, tuple[str, np.ndarray]] = {
    "gif": (".gif", COLOUR),
    "avif": (".avif", COLOUR),
    "jpeg 2000": (".jp2", COLOUR),
    "radiance": (".hdr", FLOAT),
    "pfm": (".pfm", FLOAT),
    "ppm": (".ppm", COLOUR),
    "pgm": (".pgm", GREY),
    "pbm": (".pbm", GREY),
    "pam": (".pam", COLOUR),
    "sun raster": (".ras", COLOUR),
}
"""OpenCV reads them, we do not: nothing here checks the size that they declare."""


@pytest.fixture(autouse=True, scope="module")
def _small() -> Iterator[None]:
    """What may be decoded at all is small here: a damaged header then costs no seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "MAX_PIXELS", 1_000_000)
        yield


def encoded(suffix: str, pixels: np.ndarray, options: list[int]) -> bytes:
    try:
        ok, data = cv2.imencode(suffix, pixels, options)
    except cv2.error as error:
        pytest.skip(f"this build of OpenCV does not write {suffix}: {error.err}")
    assert ok
    return bytes(data.tobytes())


def whole(name: str) -> bytes:
    """An undamaged picture of this kind; skips the test where this build of OpenCV writes none."""
    return encoded(*READ[name]) if name in READ else encoded(*NOT_READ[name], [])


def read_or_refused(data: bytes) -> None:
    """The one rule: an image of the size that was checked, or an ImageError that names the picture."""
    size = declared_size(data)
    is_whole(data)
    for channels in (1, 3):
        try:
            pixels = decode_image(data, channels, "a picture")  # type: ignore[arg-type]
        except ImageError as error:
            assert str(error).startswith("a picture: ")
            continue
        assert size is not None
        assert pixels.dtype == np.uint8 and pixels.ndim == (2 if channels == 1 else 3)
        assert pixels.shape[:2] in (size, size[::-1]), "turned at most (EXIF), never of another size"


@pytest.mark.parametrize("name", READ)
def test_each_kind_is_read_whole(name: str) -> None:
    data = encoded(*READ[name])
    assert declared_size(data) == SIZE
    assert decode_image(data, 3, "x").shape == (40, 60, 3) and decode_image(data, 1, "x").shape == (40, 60)


@pytest.mark.parametrize("name", NOT_READ)
def test_other_formats_are_refused_before_any_decoder_sees_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(*NOT_READ[name], [])
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("a decoder was asked"))
    assert declared_size(data) is None
    with pytest.raises(ImageError, match="no PNG, JPEG, BMP, TIFF or WebP header"):
        decode_image(data, 3, "a picture")


@pytest.mark.parametrize("name", READ)
@bounded(QUICK)
@given(drawn=st.data())
def test_damaged_files(name: str, drawn: st.DataObject) -> None:
    read_or_refused(drawn.draw(damaged(encoded(*READ[name]))))


@pytest.mark.parametrize("name", NOT_READ)
@bounded(QUICK)
@given(drawn=st.data())
def test_damaged_files_of_other_formats(name: str, drawn: st.DataObject) -> None:
    data = drawn.draw(damaged(encoded(*NOT_READ[name], [])))
    if declared_size(data) is None:
        with pytest.raises(ImageError):
            decode_image(data, 1, "a picture")


@pytest.mark.parametrize("name", READ)
def test_cut_at_every_byte(name: str) -> None:
    data = encoded(*READ[name])
    for length in {*range(min(len(data), 100)), *range(0, len(data), max(1, len(data) // 40))}:
        read_or_refused(data[:length])


BOMBS: dict[str, bytes] = {
    "gif": b"GIF89a"
    + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0)
    + b"\0" * 6
    + b",\0\0\0\0\xff\xff\xff\xff\0\2\0;",
    "jpeg 2000": b"\xff\x4f\xff\x51\x00\x29\x00\x00" + struct.pack(">8I", *[60_000, 60_000, 0, 0] * 2) + b"\0\1\7\1\1",
    "ppm": b"P6\n60000 60000\n255\n" + b"\0" * 100,
    "pgm": b"P5\n60000 60000\n255\n" + b"\0" * 100,
    "pbm": b"P4\n200000 200000\n" + b"\0" * 100,
    "pam": b"P7\nWIDTH 60000\nHEIGHT 60000\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n" + b"\0" * 100,
    "pfm": b"PF\n60000 60000\n-1\n" + b"\0" * 100,
    "radiance": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 60000 +X 60000\n" + b"\0" * 100,
    "sun raster": struct.pack(">8I", 0x59A66A95, 60_000, 60_000, 24, 0, 1, 0, 0) + b"\0" * 100,
    "avif": b"\x00\x00\x00\x20ftypavif" + b"\0" * 100,
    "big tiff": b"II+\0\x08\0\0\0" + struct.pack("<Q", 16) + b"\0" * 100,
    "openexr": b"v/1\x01\x02\0\0\0dataWindow\0box2i\0\x10\0\0\0"
    + struct.pack("<4i", 0, 0, 60_000, 60_000)
    + b"\0" * 100,
}
"""Formats that are not read at all; PNG, JPEG, BMP, TIFF and WebP with huge sizes stand in test_images.py."""


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_of_other_formats_take_no_memory(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(BOMBS[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageError, match=r"bomb\.png: not a readable image"):
        read_image(path, 1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def chunks(png: bytes) -> list[tuple[int, bytes]]:
    """Where each chunk of a PNG begins, and its kind."""
    at, found = 8, []
    while at < len(png):
        found.append((at, png[at + 4 : at + 8]))
        at += 12 + struct.unpack_from(">I", png, at)[0]
    return found


@pytest.mark.parametrize("length", [200_000, 0x40000000, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_png_whose_chunk_claims_more_than_the_file_takes_no_memory(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder would take, and clear, as much as a chunk says: 4 GB and a minute for a file of 137 bytes."""
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("a decoder was asked"))
    whole = encoded(*READ["png"])
    for at, _ in chunks(whole):
        data = bytearray(whole)
        struct.pack_into(">I", data, at, length)
        with pytest.raises(ImageError, match="is it truncated"):
            decode_image(bytes(data), 1, "a picture")


def test_what_follows_the_end_of_a_png_is_no_fault() -> None:
    whole = encoded(*READ["png"])
    assert [kind for _, kind in chunks(whole)][-1] == b"IEND"
    assert decode_image(whole + b"\0" * 100, 3, "a picture").shape == (40, 60, 3)


Entry = tuple[int, int, int, int]


def directory(data: bytes) -> list[Entry]:
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    return [struct.unpack_from("<HHII", data, start + 2 + 12 * number) for number in range(count)]  # type: ignore[misc]


def with_directory(data: bytes, entries: list[Entry]) -> bytes:
    """The same TIFF with another directory, at its end."""
    rows = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return data[:4] + struct.pack("<I", len(data)) + data[8:] + struct.pack("<H", len(entries)) + rows + b"\0" * 4


@pytest.mark.parametrize(
    "lie",
    [
        lambda e: [e[0], (256, 3, 1, 16), e[1], (257, 3, 1, 16), *e[2:]],
        lambda e: [*e, (256, 3, 1, 16), (257, 3, 1, 16)],
        lambda e: [(256, 3, 1, 16), *e],
        lambda e: [(256, 16, 1, 100), (257, 16, 1, 100), *e[2:]],
        lambda e: [(256, 3, 2, 16 | 60 << 16), *e[1:]],
        lambda e: [(256, 1, 1, 60), *e[1:]],
        lambda e: [(256, 9, 1, 60), *e[1:]],
        lambda e: [(256, 4, 0, 60), *e[1:]],
        lambda e: [(256, 12, 1, 100), *e[1:]],
    ],
    ids=["twice", "twice, later", "twice, first", "64 bit", "two values", "byte", "signed", "no value", "double"],
)
def test_a_tiff_that_declares_two_sizes_is_refused(lie: Any) -> None:
    """A decoder takes the first of two widths, and reads kinds that we do not: it would read what was not checked."""
    data = encoded(*READ["tiff"])
    assert declared_size(with_directory(data, directory(data))) == SIZE
    bent = with_directory(data, lie(directory(data)))
    assert declared_size(bent) is None
    with pytest.raises(ImageError, match="not a readable image"):
        decode_image(bent, 3, "a picture")


def test_a_tiff_bomb_behind_a_small_second_size(tmp_path: Path) -> None:
    side = 12_000  # pixels that pack into little
    data = encoded(".tiff", np.zeros((side, side), np.uint8), [cv2.IMWRITE_TIFF_COMPRESSION, 8])
    assert len(data) < 1_000_000
    path = tmp_path / "bomb.tiff"
    path.write_bytes(with_directory(data, [*directory(data), (256, 3, 1, 16), (257, 3, 1, 16)]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageError):
        read_image(path, 1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


CHILD = """
import json, resource, sys
from hypothesis import given, strategies as st
from tests.hostile.fuzz import bounded, damaged
from tests.hostile import test_fuzz_images as module
name, examples, last = sys.argv[1], int(sys.argv[2]), sys.argv[3]
whole = module.whole(name)
module.images.MAX_PIXELS = 10_000_000
count = 0

@bounded(examples)
@given(damaged(whole))
def run(data):
    global count
    count += 1
    open(last, "wb").write(data)
    module.read_or_refused(data)

run()
print(json.dumps({"count": count, "peak_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))
"""


@pytest.mark.long
@pytest.mark.parametrize("name", [*READ, *NOT_READ])
def test_a_long_campaign_in_a_process_of_its_own(name: str, tmp_path: Path) -> None:
    """A decoder that crashes takes the child; the file that did it is in ``last``."""
    assert whole(name)
    last = tmp_path / "last"
    done = subprocess.run(
        [sys.executable, "-c", CHILD, name, str(LONG), str(last)],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, f"{last.read_bytes()!r:.2000}\n{done.stderr[-3000:]}"
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["count"] >= LONG // 2 and found["peak_kib"] < 2_000_000
