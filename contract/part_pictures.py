"""A part as a data set holds it: one picture, or a folder with one for each camera (in place of hops 1 and 2)."""

from __future__ import annotations

from pathlib import Path

from contract.dataset import pictures_of
from contract.errors import ImageError
from contract.images import read_image
from contract.preprocess import Picture
from contract.recipe import Recipe


def read_part(path: Path, recipe: Recipe) -> Picture:
    """The picture of a part, uint8 [H, W] or RGB [H, W, 3], or, of a folder, one by the name of each view.

    Raises ImageError naming the file, or the camera whose picture is missing.
    """
    if not path.is_dir():
        return read_image(path, recipe.channels)  # ``prepare`` refuses it where the views are of several cameras
    files = pictures_of(path)
    missing = [view.camera for view in recipe.views if view.camera not in files]
    if missing:
        raise ImageError(
            f"{path}: no picture of camera {missing[0]!r} ({', '.join(files) or 'none'} found); the recipe's views "
            "need one of each of their cameras, and a file is named by its camera"
        )
    cameras = {view.camera or "" for view in recipe.views}
    read = {camera: read_image(files[camera], recipe.channels) for camera in cameras}
    return {view.name: read[view.camera or ""] for view in recipe.views}
