"""The data sets of arXiv 1906.11632 read from their original files, and the survey's split (no hop: the field's data).

What a file declares is checked before memory is taken for it, and what it holds before it is believed: a file that is
cut off, larger than the data set that it is said to be, or no such file at all is refused with a DatasetError.
"""

from __future__ import annotations

import gzip
import io
import lzma
import re
import struct
import sys
import tarfile
import zlib
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from contract.errors import DatasetError, ImageError
from contract.images import declared_size, decode_image

SIDE = 32
MOST_IMAGES = 100_000
MOST_ARCHIVE_BYTES = 1 << 28  # CIFAR-10's 60 000 JPEG copies in a tar are about 90 MB
MOST_JPEG_BYTES = 1 << 16
MEMBER = re.compile(r"[\w-]+/(?:train|test)/([a-z]+)/\d+\.jpg")
MOST_ROWS, MOST_ROW_BYTES, MOST_VALUES = 600_000, 512, 128
COLUMNS = 41
NAMED = (1, 2, 3, 6, 11, 20, 21)  # of KDD-99: protocol, service, flag, land, logged in, host login, guest login
ANOMALOUS_ROWS = "normal."
SHARE_LEARNT = 0.8
MOST_VALIDATION = 512
BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError)
Numbers = NDArray[Any]


class Data(NamedTuple):
    """``tiles``: uint8 [M, 32, 32, C]; of a table float32 [M, 1, 1, K], one channel a column, as they stand.

    ``labels``: int64 [M]. ``classes``: those that take their turn at being anomalous, with their names.
    """

    tiles: Numbers
    labels: NDArray[np.int64]
    classes: dict[int, str]


class Split(NamedTuple):
    """Indices: normal rows to learn from, normal rows that select the weights, and rows of all classes to test."""

    fit: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


def deal(labels: NDArray[np.int64], anomalous: int, seed: int, most: int) -> Split:
    """The survey's split: 80 % of everything, less the anomalous class, to learn from; of the other 20 % ``most``.

    One order a seed, whatever class is anomalous. A tenth of what is learnt from, at most 512, selects the weights.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    cut = round(SHARE_LEARNT * len(order))
    learnt = order[:cut][labels[order[:cut]] != anomalous]
    selecting = min(MOST_VALIDATION, len(learnt) // 10)
    return Split(learnt[selecting:], learnt[:selecting], order[cut:][:most])


def scaled(tiles: Numbers, split: Split) -> tuple[Numbers, Numbers, Numbers]:
    """Tiles of fit, validation and test; a table's columns are brought to 0 ... 255 by what is learnt from alone.

    A column that is constant there keeps its unit, as scikit-learn has it; what is outside its range stays outside.
    """
    if tiles.dtype == np.uint8:
        return tiles[split.fit], tiles[split.validation], tiles[split.test]
    fit = tiles[split.fit]
    low, high = fit.min(axis=0), fit.max(axis=0)
    width = np.where(high > low, high - low, 1).astype(np.float32)
    sides = [255 * ((tiles[rows] - low) / width) for rows in (split.fit, split.validation, split.test)]
    return sides[0], sides[1], sides[2]


def seen_before(data: Data, split: Split) -> float:
    """Share of the normal test rows of which an equal is among those that are learnt from."""
    normal = split.test[np.isin(data.labels[split.test], data.labels[split.fit])]
    known = {data.tiles[row].tobytes() for row in split.fit}
    return sum(data.tiles[row].tobytes() in known for row in normal) / max(1, len(normal))


def read_digits(folder: Path) -> Data:
    """MNIST and its relatives: four idx files, training and test images together. Raises DatasetError."""
    images, labels = [], []
    for part in ("train", "t10k"):
        pictures = read_idx(_found(folder, f"{part}-images-idx3-ubyte"), 3)
        named = read_idx(_found(folder, f"{part}-labels-idx1-ubyte"), 1)
        if len(pictures) != len(named):
            raise DatasetError(f"{folder}: {len(pictures)} images of {part} and {len(named)} labels")
        images.append(pictures)
        labels.append(named)
    found = np.concatenate(labels).astype(np.int64)
    if found.max() > 9:
        raise DatasetError(f"{folder}: a label is {found.max()}; expected 0 to 9")
    tiles = np.stack([resized(picture) for picture in np.concatenate(images)])
    return Data(tiles[..., np.newaxis], found, {number: str(number) for number in range(10)})


def resized(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture at 32 px, bilinear."""
    return np.asarray(cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR), np.uint8)


def _found(folder: Path, name: str) -> Path:
    path = next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)
    if path is None:
        raise DatasetError(f"absent: {name}.gz")
    return path


def _opened(path: Path) -> BinaryIO:
    return cast("BinaryIO", gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """An idx file of unsigned bytes, packed by gzip or not; sides of pictures are 1 to 64 px. Raises DatasetError."""
    try:
        with _opened(path) as file:
            head = file.read(4 + 4 * dimensions)
            if len(head) < 4 + 4 * dimensions or head[:4] != bytes([0, 0, 8, dimensions]):
                raise DatasetError(f"{path}: no idx file of {dimensions} dimension(s) of unsigned bytes")
            count, *sides = struct.unpack(f">{dimensions}I", head[4:])
            if not 1 <= count <= MOST_IMAGES or not all(1 <= side <= 64 for side in sides):
                raise DatasetError(f"{path}: declares {count} of {sides}; expected at most {MOST_IMAGES} of 64 px")
            size = count * int(np.prod(sides, dtype=np.int64))
            values = file.read(size + 1)
    except BROKEN as error:
        raise DatasetError(f"{path}: cannot be read ({error})") from error
    if len(values) != size:
        raise DatasetError(f"{path}: {'more' if len(values) > size else 'fewer'} than the {size} bytes it declares")
    return np.frombuffer(values, np.uint8).reshape(count, *sides)


class Limited(io.RawIOBase):
    """A stream that ends with a DatasetError where it gives more than ``most`` bytes: no archive unpacks for ever."""

    def __init__(self, stream: BinaryIO, most: int, name: str) -> None:
        self._stream, self._left, self._name = stream, most, name

    def read(self, size: int = -1) -> bytes:
        """As of any stream."""
        data = self._stream.read(size if size >= 0 else self._left + 1)
        self._left -= len(data)
        if self._left < 0:
            raise DatasetError(f"{self._name}: unpacks to more than this data set has")
        return data


def read_photographs(folder: Path) -> Data:
    """CIFAR-10 as JPEG copies, FOLDER/(train|test)/CLASS/NUMBER.jpg in a tar.xz. Raises DatasetError."""
    path = folder / "cifar10_jpg.tar.xz"
    if not path.is_file():
        raise DatasetError(f"absent: {path.name}")
    tiles: list[NDArray[np.uint8]] = []
    names: list[str] = []
    try:
        with lzma.open(path) as packed:
            unpacked = Limited(cast("BinaryIO", packed), MOST_ARCHIVE_BYTES, str(path))
            for name, jpeg in _members(path, unpacked):
                size = declared_size(jpeg)
                if size != (SIDE, SIDE) or len(tiles) == MOST_IMAGES:
                    raise DatasetError(f"{path}: picture {len(tiles)} is {size}; expected {MOST_IMAGES} of 32 x 32 px")
                tiles.append(decode_image(jpeg, 3, f"{path}, picture {len(tiles)}"))
                names.append(name)
    except (*BROKEN, ImageError) as error:
        raise DatasetError(f"{path}: cannot be read ({error})") from error
    classes = sorted(set(names))
    if not 2 <= len(classes) <= 10:
        raise DatasetError(f"{path}: pictures of {len(classes)} class(es); expected 2 to 10")
    labels = np.array([classes.index(name) for name in names], np.int64)
    return Data(np.stack(tiles), labels, dict(enumerate(classes)))


def _members(path: Path, unpacked: Limited) -> Iterator[tuple[str, bytes]]:
    """Class and bytes of each picture; nothing is ever written to the disk."""
    with tarfile.open(fileobj=cast("BinaryIO", unpacked), mode="r|") as archive:
        for member in archive:
            if member.isdir():
                continue
            named = MEMBER.fullmatch(member.name)
            if not member.isreg() or named is None or member.size > MOST_JPEG_BYTES:
                raise DatasetError(f"{path}: holds {member.name[:100]!r}, which is no picture of at most 64 KiB")
            file = archive.extractfile(member)
            yield named[1], b"" if file is None else file.read()


def read_connections(folder: Path) -> Data:
    """KDD-99's 10 %: 41 columns, those of words one-hot, by the words in the file. Raises DatasetError.

    Attacks are the majority, so they are what is normal here; ``normal.`` connections are the anomalous class.
    """
    path = _found(folder, "kddcup.data_10_percent")
    words: list[list[str]] = [[] for _ in NAMED]
    numbers = array("f")
    labels: list[int] = []
    for row in _rows(path):
        for column, at in zip(words, NAMED, strict=True):
            column.append(sys.intern(row[at]))
        try:
            numbers.extend(float(value) for at, value in enumerate(row[:-1]) if at not in NAMED)
        except ValueError as error:
            raise DatasetError(f"{path}: row {len(labels) + 1}: {error}") from error
        labels.append(int(row[-1] == ANOMALOUS_ROWS))
    table = np.array(numbers, np.float32).reshape(len(labels), COLUMNS - len(NAMED))
    if not np.isfinite(table).all():
        raise DatasetError(f"{path}: a value is no finite number")
    columns = [table, *(_one_hot(path, column) for column in words)]
    tiles = np.concatenate(columns, axis=1)[:, np.newaxis, np.newaxis, :]
    return Data(tiles, np.array(labels, np.int64), {1: "normal"})


def _rows(path: Path) -> Iterator[list[str]]:
    try:
        with _opened(path) as file:
            for number, line in enumerate(iter(lambda: file.readline(MOST_ROW_BYTES), b""), 1):
                row = line.decode("ascii").strip().split(",")
                if len(row) != COLUMNS + 1 or number > MOST_ROWS:
                    raise DatasetError(f"{path}: row {number} has {len(row)} columns; expected 42 in {MOST_ROWS} rows")
                yield row
    except (*BROKEN, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read ({error})") from error


def _one_hot(path: Path, words: list[str]) -> NDArray[np.float32]:
    known, numbers = np.unique(np.array(words), return_inverse=True)
    if len(known) > MOST_VALUES:
        raise DatasetError(f"{path}: a column of words has {len(known)} of them; expected at most {MOST_VALUES}")
    return np.eye(len(known), dtype=np.float32)[numbers]


READERS: dict[str, Callable[[Path], Data]] = {
    "mnist": read_digits,
    "fashion-mnist": read_digits,
    "cifar10": read_photographs,
    "kdd99": read_connections,
}
