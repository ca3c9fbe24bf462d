"""A part as a data set holds it: one picture, or a folder with one for each camera (in place of hops 1 and 2)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from contract.bundle import Bundle
from contract.correction import Correction, correction_of
from contract.dataset import pictures_of
from contract.errors import FixtureError, ImageError
from contract.fixture import Placer, placer_of
from contract.images import Pixels, read_image
from contract.preprocess import Picture
from contract.recipe import Recipe


class Line(NamedTuple):
    """What a line does to a camera's frame before a recipe sees it, done to the pictures of a data set as well.

    Without a ``correction`` the pictures are parts already: cut out, and upright where there is a fixture.
    """

    correction: Correction | None = None
    placer: Placer | None = None

    def part(self, picture: Pixels) -> Pixels:
        """The part in a raw picture. Raises ImageError, FixtureError where it is not found."""
        return self.placed(picture)[0]

    def placed(self, picture: Pixels) -> tuple[Pixels, Mapping[str, float]]:
        """The same, and what a fixture said of it."""
        if self.correction is None:
            return picture, {}
        placed = self.correction.part(picture, self.placer)
        return placed.pixels, placed.measures


AS_CUT = Line()


def line_of(bundle: Bundle, renewing: bool = False) -> Line:
    """What the bundle's line does to frames. Raises BundleError, as ``correction_of`` does."""
    correction = correction_of(bundle, renewing)
    return AS_CUT if correction is None else _line(correction, bundle)


@lru_cache(maxsize=4)
def _line(correction: Correction, bundle: Bundle) -> Line:
    return Line(correction, placer_of(bundle))


def read_part(path: Path, recipe: Recipe, line: Line = AS_CUT) -> Picture:
    """The picture of a part, uint8 [H, W] or RGB [H, W, 3], or, of a folder, one by the name of each view.

    Raises ImageError naming the file, or the camera whose picture is missing.
    """
    return read_placed(path, recipe, line)[0]


def read_placed(path: Path, recipe: Recipe, line: Line = AS_CUT) -> tuple[Picture, Mapping[str, float]]:
    """The same, and what a fixture said of it where it was cut out here."""
    if not path.is_dir():
        return _corrected(path, recipe, line)  # ``prepare`` refuses it where the views are of several cameras
    if line.correction is not None:
        raise ImageError(f"{path}: pictures of several cameras, and a preprocess file is of one")
    files = pictures_of(path)
    missing = [view.camera for view in recipe.views if view.camera not in files]
    if missing:
        raise ImageError(
            f"{path}: no picture of camera {missing[0]!r} ({', '.join(files) or 'none'} found); the recipe's views "
            "need one of each of their cameras, and a file is named by its camera"
        )
    cameras = {view.camera or "" for view in recipe.views}
    read = {camera: read_image(files[camera], recipe.channels) for camera in cameras}
    return {view.name: read[view.camera or ""] for view in recipe.views}, {}


def read_corrected(path: Path, recipe: Recipe, line: Line = AS_CUT) -> Pixels:
    """The one picture of a part as the line cuts it out. Raises ImageError naming the file."""
    return _corrected(path, recipe, line)[0]


def _corrected(path: Path, recipe: Recipe, line: Line) -> tuple[Pixels, Mapping[str, float]]:
    picture = read_image(path, recipe.channels)
    try:
        return line.placed(picture)
    except FixtureError as error:
        raise FixtureError(f"{path}: {error}", error.measures) from error
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error


def cut_like(mask: Pixels, path: Path, recipe: Recipe, line: Line) -> Pixels:
    """A mask of a raw picture, uint8 [H, W] of 0 and 255, cut out as the part in that picture is."""
    if line.correction is None:
        return mask
    return line.correction.mask(read_image(path, recipe.channels), mask, line.placer)
