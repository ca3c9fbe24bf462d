"""Image files of a data folder -> one record each: the file's faults, and what a glance tells (before hop 1).

Each file is read and decoded once; what is kept of a picture fits into a few kilobytes.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from contract.dataset import GROUPS_FILE, Dataset, Sample
from contract.errors import ImageError
from contract.images import SUFFIXES, Pixels, decode_image

GOOD = "good"
THUMB = 32
READERS = 4
GREY_TOLERANCE = 2  # JPEG's colour conversion moves a grey pixel by up to two levels
CORNERS = ("top left", "top right", "bottom left", "bottom right")
EXPECTED_FILES = {GROUPS_FILE, "SHA256SUMS"}
EXPECTED_SUFFIXES = {".md", ".txt", ".csv", ".json", ".toml", ".pdf"}
MAX_ENTRIES = 1_000_000  # of the folder's tree; a mistaken DIR may be a whole disk
KIND_OF_SUFFIX = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WebP",
}  # fmt: skip

Floats = NDArray[np.float32]
Advance = Callable[[int], None]


class Look(NamedTuple):
    """What a decoded picture shows; levels are 0 to 255.

    ``thumb``: RGB uint8 [32, 32, 3]; ``grey_thumb``: float32 [32, 32]; ``corners``: means of the four corner
    eighths in the order of CORNERS; ``border``: mean of the outer sixteenth; ``white``, ``black``: share of pixels
    at either end of the range.
    """

    size_hw: tuple[int, int]
    colour: bool
    thumb: Pixels
    grey_thumb: Floats
    brightness: float
    contrast: float
    corners: tuple[float, float, float, float]
    border: float
    white: float
    black: float


class Record(NamedTuple):
    """One image file. ``fault`` says why it cannot be used (then ``look`` is None), ``oddities`` what to know of it."""

    sample: Sample
    file_bytes: int
    sha256: str
    kind: str
    fault: str | None
    oddities: dict[str, str]
    look: Look | None


def read_records(samples: Sequence[Sample], advance: Advance | None = None) -> list[Record]:
    """A record for each sample, in order, read by a few threads; ``advance`` hears of each one."""
    records = []
    with ThreadPoolExecutor(READERS) as readers:
        for record in readers.map(examine, samples):
            records.append(record)
            if advance is not None:
                advance(1)
    return records


def examine(sample: Sample) -> Record:
    """Read and decode one file. What is wrong with it becomes ``fault``; nothing is raised."""
    try:
        data = sample.path.read_bytes()
    except OSError as error:
        return Record(sample, 0, "", "", f"cannot be read ({error.strerror or error})", {}, None)
    sha256 = hashlib.sha256(data).hexdigest()
    kind = kind_of(data)
    try:
        fault, look = torn(data, kind), None
        if fault is None:
            look = glance(decode_image(data, 3, sample.path.name))
    except ImageError as error:
        fault = str(error).removeprefix(f"{sample.path.name}: ")
    return Record(sample, len(data), sha256, kind, fault, _oddities(sample.path, data, kind) if look else {}, look)


def in_train(root: Path, record: Record) -> bool:
    """Whether the record is of the images to learn from."""
    return record.sample.path.relative_to(root).parts[0] != "test"


def kind_of(data: bytes) -> str:
    """``PNG``, ``JPEG``, ``BMP``, ``TIFF`` or ``WebP`` by the first bytes; empty for anything else."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if data[:2] == b"\xff\xd8":
        return "JPEG"
    if data[:2] == b"BM":
        return "BMP"
    if data[:4] in (b"II*\x00", b"MM\x00*"):
        return "TIFF"
    return "WebP" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else ""


def torn(data: bytes, kind: str) -> str | None:
    """Why the file's end is missing, or None. Decoders fill the rest of a torn picture with grey and say nothing."""
    if kind == "PNG" and b"IEND" not in data[-64:] and data.rfind(b"IEND\xaeB`\x82") < 0:
        return f"truncated: a PNG of {len(data)} bytes without its end"
    # After the last start of a scan the two bytes FF D9 occur only as the end of the image.
    if kind == "JPEG" and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        return f"truncated: a JPEG of {len(data)} bytes without its end"
    if kind == "BMP" and len(data) >= 6 and len(data) < struct.unpack_from("<I", data, 2)[0]:
        return f"truncated: a BMP of {len(data)} bytes that declares {struct.unpack_from('<I', data, 2)[0]}"
    if kind == "WebP" and len(data) < struct.unpack_from("<I", data, 4)[0] + 8:
        return f"truncated: a WebP of {len(data)} bytes that declares {struct.unpack_from('<I', data, 4)[0] + 8}"
    return None


def _oddities(path: Path, data: bytes, kind: str) -> dict[str, str]:
    found: dict[str, str] = {}
    expected = KIND_OF_SUFFIX.get(path.suffix.lower(), "")
    if kind != expected:
        found["suffix"] = f"is a {kind} named {path.suffix}"
    depth, alpha = _depth_and_alpha(data, kind)
    if depth > 8:
        found["depth"] = f"{depth} bits a channel"
    if alpha:
        found["alpha"] = "has an alpha channel"
    orientation = exif_orientation(data) if kind == "JPEG" else 1
    if orientation != 1:
        found["orientation"] = f"EXIF orientation {orientation}"
    return found


def _depth_and_alpha(data: bytes, kind: str) -> tuple[int, bool]:
    """Bits of a channel and whether there is transparency; a JPEG has 8 and none."""
    if kind == "PNG":
        return data[24], data[25] in (4, 6)
    if kind == "JPEG":
        return 8, False
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None:
        return 8, False
    return 8 * decoded.dtype.itemsize, decoded.ndim == 3 and decoded.shape[2] in (2, 4)


def exif_orientation(data: bytes) -> int:
    """Orientation tag of a JPEG's EXIF block, 1 (upright) where there is none or it is torn."""
    start = data.find(b"Exif\x00\x00", 0, 65_536)
    if start < 0:
        return 1
    tiff = data[start + 6 : start + 6 + 65_536]
    order = "<" if tiff[:2] == b"II" else ">"
    try:
        (first,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, first)
        for at in range(first + 2, first + 2 + 12 * entries, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, at)
            if tag == 0x0112:
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1


def glance(pixels: Pixels) -> Look:
    """What is kept of a picture, RGB uint8 [H, W, 3]."""
    height, width = pixels.shape[:2]
    some = pixels[::4, ::4].astype(np.int16)
    spread = some - some.mean(axis=2, keepdims=True)
    grey = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), np.uint8)
    means, deviations = cv2.meanStdDev(grey)
    rows, columns = max(1, height // 8), max(1, width // 8)
    tops, lefts = (slice(None, rows), slice(-rows, None)), (slice(None, columns), slice(-columns, None))
    corners = [float(grey[top, left].mean()) for top in tops for left in lefts]
    return Look(
        size_hw=(height, width),
        colour=bool(np.abs(spread).max() > GREY_TOLERANCE),
        thumb=_small(pixels).astype(np.uint8),
        grey_thumb=_small(grey.astype(np.float32)).astype(np.float32),
        brightness=float(np.ravel(means)[0]),
        contrast=float(np.ravel(deviations)[0]),
        corners=(corners[0], corners[1], corners[2], corners[3]),
        border=_border(grey),
        white=float(np.count_nonzero(grey >= 254) / grey.size),
        black=float(np.count_nonzero(grey <= 1) / grey.size),
    )


def _small(pixels: NDArray[np.generic]) -> NDArray[np.generic]:
    return np.asarray(cv2.resize(np.asarray(pixels), (THUMB, THUMB), interpolation=cv2.INTER_AREA))


def _border(grey: Pixels) -> float:
    height, width = grey.shape
    rows, columns = max(1, height // 16), max(1, width // 16)
    inner = grey[rows : height - rows, columns : width - columns]
    rest = grey.size - inner.size
    return (
        float((int(grey.sum(dtype=np.int64)) - int(inner.sum(dtype=np.int64))) / rest) if rest else float(grey.mean())
    )


def strays(dataset: Dataset) -> dict[str, list[Path]]:
    """What lies in the folder and is not read, by kind; links are not followed.

    ``images``: pictures outside the layout; ``files``: other types among the images; ``folders``: a folder with the
    name of an image; ``broken``: a link that leads nowhere.
    """
    known = {sample.path for sample in (*dataset.train, *dataset.test)}
    flat = not (dataset.root / "train" / "good").is_dir()
    found: dict[str, list[Path]] = {"images": [], "files": [], "folders": [], "broken": []}
    for path in _walk(dataset.root):
        inside = path.relative_to(dataset.root).parts
        if inside[0] == "ground_truth" or path in known:
            continue
        if path.is_dir():
            if path.suffix.lower() in SUFFIXES:
                found["folders"].append(path)
        elif not path.exists():
            found["broken"].append(path)
        elif path.suffix.lower() in SUFFIXES:
            found["images"].append(path)
        elif (flat or inside[0] in ("train", "test")) and not _expected(path, flat):
            found["files"].append(path)
    return found


def _expected(path: Path, flat: bool) -> bool:
    return flat and (path.name in EXPECTED_FILES or path.suffix.lower() in EXPECTED_SUFFIXES)


def _walk(root: Path) -> Iterator[Path]:
    seen = 0
    for folder, folders, files in os.walk(root):
        folders.sort()
        yield from (Path(folder) / name for name in sorted([*folders, *files]))
        seen += len(folders) + len(files)
        if seen > MAX_ENTRIES:
            return
