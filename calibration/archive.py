"""The parts of an archive, a folder of any size or a host's store, one after the other (at the engineer's desk).

Nothing that an archive says becomes the name of a file or an address: a host's numbers are asked for as numbers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol
from urllib.parse import unquote, urlencode, urlsplit

from pydantic import Field, ValidationError

from calibration import exports
from calibration.errors import CalibrationError
from calibration.exports import Source
from contract.errors import ImageError
from contract.event import MAX_PART_BYTES, Verdict, Wire
from contract.fixture import FILE, FOLDER, PICTURE
from contract.images import SUFFIXES, Pixels, decode_image
from contract.part_pictures import AS_CUT, Line, read_part
from contract.preprocess import Picture
from contract.recipe import Recipe
from contract.verdicts import MAX_PAGE, MAX_PAGE_BYTES

PARTS = "/api/v1/parts"
IMAGES = "/api/v1/images"
LABELLED = ("train", "test")
MASKS = "ground_truth"
TRIES, PAUSE_S = 3, 1.0
"""How often a host is asked for one thing before the replay stops, to go on later; and what it is left to recover."""


class Item(NamedTuple):
    """A part of an archive: how it is read, what people call it, and what is known of it.

    ``label``: ``good`` or a kind of defect. ``was``: the verdict on record, with its score.
    """

    key: str
    name: str
    label: str | None = None
    was: str | None = None
    score: float | None = None


LeftOut = dict[str, tuple[int, str]]
"""What an archive has that is no part: how many of each kind, and the first of them."""


class Archive(Protocol):
    """Lists its parts in an order that stands, and reads each of them; ``left_out`` is whole once they are listed."""

    left_out: LeftOut

    def items(self) -> Iterator[Item]:
        """Every part once. Raises CalibrationError where the archive cannot be listed whole."""

    def read(self, key: str, recipe: Recipe, line: Line = AS_CUT) -> Picture:
        """A part's picture, where it is a raw frame as ``line`` cuts it out.

        Raises ImageError where it has none that can be read, CalibrationError to stop.
        """


class Place(NamedTuple):
    """Where an archive is, told to every process that reads it; ``query`` narrows a host's parts down."""

    source: Source
    of_cameras: bool
    query: tuple[tuple[str, str], ...] = ()

    @property
    def is_host(self) -> bool:
        return urlsplit(self.source.url).scheme in ("http", "https")

    def open(self) -> Archive:
        """Raises CalibrationError where there is no such folder, or the address is none."""
        return HostArchive(self) if self.is_host else FolderArchive(folder_of(self.source.url), self.of_cameras)


def folder_of(url: str) -> Path:
    """The folder that ``DIR`` or ``file:DIR`` names; raises CalibrationError."""
    path = Path(unquote(url.partition(":")[2].removeprefix("//"))) if url.startswith("file:") else Path(url)
    if not path.is_dir():
        raise CalibrationError(
            f"--archive {url!r}: no such folder; expected a folder of pictures, or https://HOST:PORT of a host"
        )
    return path.resolve()


class FolderArchive:
    """Pictures below a folder, as MVTec AD lays them out or in any other way.

    ``of_cameras``: a part is a folder with a picture of each camera; else each picture is one. In the layout of MVTec
    AD the folders ``train`` and ``test`` hold classes, and masks are no parts. The mark's picture of the fixture that a
    data set was cut by is none either.
    """

    def __init__(self, root: Path, of_cameras: bool) -> None:
        self._root = root
        self._of_cameras = of_cameras
        self._labelled = any((root / name).is_dir() for name in LABELLED)
        self._mark = root / FOLDER / PICTURE if (root / FOLDER / FILE).is_file() else None
        self.left_out: LeftOut = {}

    def items(self) -> Iterator[Item]:
        """Sorted by name in each folder; holds one folder's names at a time. Links to folders are followed."""
        walk = _Walk(self._root, ignore=MASKS if self._labelled else None)
        self.left_out = walk.left_out
        for folder, pictures in walk.folders():
            pictures = [path for path in pictures if path != self._mark]
            whole = self._of_cameras and folder != self._root
            for path in [folder] if whole and pictures else pictures:
                key = path.relative_to(self._root).as_posix()
                yield Item(key, key, self._label(key))

    def _label(self, key: str) -> str | None:
        first, _, rest = key.partition("/")
        label, between, _ = rest.partition("/")
        return label if self._labelled and first in LABELLED and between else None

    def read(self, key: str, recipe: Recipe, line: Line = AS_CUT) -> Picture:
        path = self._root / key
        if not (path.is_dir() or path.is_file()):  # whoever reads a pipe waits for ever
            raise ImageError(f"{path}: no file that can be read")
        return read_part(path, recipe, line)


class _Walk:
    """Every folder with its image files, depth first, each level by name; what links lead to is below as well.

    Each folder comes once, under its own name where it lies below the root: so links that lead round in a circle end.
    """

    def __init__(self, root: Path, ignore: str | None) -> None:
        self._root = root
        self._ignored = None if ignore is None else root / ignore
        self._came = {_identity(root)}
        self.left_out: LeftOut = {}

    def folders(self) -> Iterator[tuple[Path, list[Path]]]:
        waiting = [(self._root, False)]
        while waiting:
            folder, linked = waiting.pop()
            if linked and not self._is_new(folder):
                self._leave_out("folders under another name", folder)
                continue
            pictures: list[Path] = []
            below: list[tuple[Path, bool]] = []
            for name, is_folder, is_link in _names(folder):
                path = folder / name
                if is_folder:
                    below.append((path, linked or is_link))
                elif path.suffix.lower() in SUFFIXES:
                    # Also what is no file, or leads nowhere: a part by its name, and the reader says what is wrong.
                    pictures.append(path)
                else:
                    _refuse_unreachable(path)
                    self._leave_out("files of other types", path)
            waiting += [each for each in reversed(below) if each[0] != self._ignored]
            yield folder, pictures

    def _is_new(self, folder: Path) -> bool:
        """Of a folder behind a link; what lies below the root comes, or came, under its own name."""
        if folder.resolve().is_relative_to(self._root) or (identity := _identity(folder)) in self._came:
            return False
        self._came.add(identity)
        return True

    def _leave_out(self, kind: str, path: Path) -> None:
        count, first = self.left_out.get(kind, (0, path.relative_to(self._root).as_posix()))
        self.left_out[kind] = (count + 1, first)


def _names(folder: Path) -> list[tuple[str, bool, bool]]:
    """Sorted: each name in it, whether that is or leads to a folder, and whether it is a link."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                (entry.name, (folder / entry.name).is_dir() if (link := entry.is_symlink()) else entry.is_dir(), link)
                for entry in entries
            )
    except OSError as error:
        raise CalibrationError(
            f"{error.filename or folder}: cannot be listed ({error.strerror}); its parts would be missing"
        ) from error


def _refuse_unreachable(path: Path) -> None:
    """Raise CalibrationError where it is a link to what may be a folder that is not there just now."""
    if path.is_symlink() and not path.exists():
        raise CalibrationError(
            f"{path}: a link to {path.readlink()}, which is not there; parts would be missing if that is a folder: "
            "mount what it leads to, or remove the link"
        )


def _identity(folder: Path) -> tuple[int, int]:
    """Of a folder, by whatever name. Raises CalibrationError."""
    try:
        status = folder.stat()
    except OSError as error:
        raise CalibrationError(f"{folder}: cannot be read ({error.strerror}); its parts would be missing") from error
    return status.st_dev, status.st_ino


class _Part(Wire):
    id: Annotated[int, Field(ge=1, le=2**63 - 1)]
    edge_id: Annotated[str, Field(max_length=100)]
    part_id: Annotated[str, Field(max_length=100)]
    verdict: Verdict | None = None
    score: float | None = None
    review: Annotated[str | None, Field(max_length=20)] = None


class _Parts(Wire):
    items: Annotated[tuple[_Part, ...], Field(max_length=MAX_PAGE)]
    next: Annotated[int | None, Field(ge=1)] = None


class _Image(Wire):
    id: Annotated[int, Field(ge=1, le=2**63 - 1)]
    role: Annotated[str, Field(max_length=40)]
    view: Annotated[str, Field(max_length=100)]
    codec: Literal["png", "jpeg", "raw"]


class _Detail(Wire):
    images: Annotated[tuple[_Image, ...], Field(max_length=1000)] = ()
    images_dropped: bool = False


class HostArchive:
    """The parts of a host's store with the pictures that their edges sent, by its HTTP API."""

    def __init__(self, place: Place) -> None:
        self._source = place.source
        self._query = place.query
        self._connection, self._base = exports.connect(place.source)
        self._headers = {"accept": "application/json"} | exports.authorization(place.source.token_file)
        self._held: tuple[str, dict[str, bytes]] = ("", {})
        self.left_out: LeftOut = {}

    def items(self) -> Iterator[Item]:
        """By the store's numbers, which must rise: so that no part can come twice."""
        after = 0
        with closing(self._connection):
            while True:
                query = urlencode([*self._query, ("order", "oldest"), ("limit", str(MAX_PAGE)), ("after", str(after))])
                page = self._json(_Parts, f"{PARTS}?{query}")
                for part in page.items:
                    if part.id <= after:
                        raise CalibrationError(f"{self._source.url}: part {part.id} comes behind part {after}")
                    after = part.id
                    label = {"good": "good", "defect": "defect"}.get(part.review or "")
                    name = f"{part.edge_id}/{part.part_id}"
                    yield Item(str(part.id), name, label, part.verdict and part.verdict.value, part.score)
                if page.next is None:
                    return
                if page.next != after:
                    raise CalibrationError(f"{self._source.url}: a page that ends with {after} leads to {page.next}")

    def read(self, key: str, recipe: Recipe, line: Line = AS_CUT) -> Picture:
        """As its edge sent it, which is as ``line`` cut it out."""
        if self._held[0] != key:
            self._held = (key, self._pictures(int(key)))
        pictures = self._held[1]
        views = [view.name for view in recipe.views]
        if len({view.camera for view in recipe.views}) > 1:
            if missing := [view for view in views if view not in pictures]:
                raise ImageError(f"no picture of view {missing[0]!r}: the host has {', '.join(pictures) or 'none'}")
            return {view: self._decoded(key, pictures[view], recipe) for view in views}
        if len(pictures) != 1:
            raise ImageError(f"{len(pictures)} pictures of views {', '.join(pictures)}; the recipe has one")
        return self._decoded(key, next(iter(pictures.values())), recipe)

    def _decoded(self, key: str, data: bytes, recipe: Recipe) -> Pixels:
        return decode_image(data, recipe.channels, f"part {key}")

    def _pictures(self, number: int) -> dict[str, bytes]:
        """Encoded pictures by view. Raises ImageError where the host has none."""
        detail = self._json(_Detail, f"{PARTS}/{number}")
        wanted = [image for image in detail.images if image.role == "image" and image.codec != "raw"]
        if not wanted:
            why = "its edge's spool was full" if detail.images_dropped else "edges send those of flagged parts, or all"
            raise ImageError(f"the host has no picture of it ({why}: images in edge.toml)")
        return {image.view: self._get(f"{IMAGES}/{image.id}", MAX_PART_BYTES) for image in wanted}

    def _json(self, model: type[Any], path: str) -> Any:
        data = self._get(path, MAX_PAGE_BYTES)
        try:
            return model.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            at = ".".join(map(str, first["loc"]))
            raise CalibrationError(f"{self._source.url}{path}: at {at or 'its start'}: {first['msg']}") from error

    def _get(self, path: str, most: int) -> bytes:
        """Asks again where the connection broke. Raises ImageError where this one thing is not to be had."""
        for attempt in range(1, TRIES + 1):
            try:
                return exports.get(self._connection, self._base + path, self._headers, self._source.url, most)
            except CalibrationError as error:
                self._connection.close()
                status = error.status if isinstance(error, exports.AnswerError) else 503
                if status in (404, 410) and not path.startswith(f"{PARTS}?"):
                    raise ImageError(f"the host has it no more ({status})") from error
                if attempt == TRIES or status < 500:
                    raise
                time.sleep(PAUSE_S * attempt)
        raise AssertionError
