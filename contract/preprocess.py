"""Cut-out part -> quality measures -> uint8 tiles: the same code for training, calibration and the line (hop 3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from contract.errors import BundleError, ImageError
from contract.images import Pixels
from contract.recipe import QualityBounds, Recipe, View
from contract.shrink import shrink

SHARPNESS = ("focus_x", "focus_y", "detail_x", "detail_y", "edge_x", "edge_y")
MEASURES = ("mean", "contrast", "dark", "saturated", *SHARPNESS, "aspect", "likeness")
THUMB = 16
DARK, SATURATED = 4, 251  # grey levels
FLAT = 0.5  # standard deviation under which a picture has no contrast to compare with


class Prepared(NamedTuple):
    """One part ready for the engine: ``tiles`` uint8 [T, h, w, C] in view order, row-major within a view."""

    tiles: Pixels
    canvases: dict[str, Pixels]


Picture = Pixels | Mapping[str, Pixels]
"""A cut-out part: one picture that every view is of, or one by the name of each view, where cameras are several."""

PartSize = tuple[int, int] | Mapping[str, tuple[int, int]]
"""Height and width of such a picture, or of each view's."""

Neutralise = Callable[[str, Pixels], Pixels]  # a view's name and canvas -> the canvas without what is not inspected


def picture_of(part: Picture, view: str) -> Pixels:
    """The picture that a view is of. Raises ImageError where there is none."""
    if not isinstance(part, Mapping):
        return part
    if view not in part:
        raise ImageError(f"view {view!r} has no picture; there are: {', '.join(part) or 'none'}")
    return part[view]


def size_of(part: Picture) -> PartSize:
    """Height and width of a part's picture, or of each view's."""
    if isinstance(part, Mapping):
        return {view: (picture.shape[0], picture.shape[1]) for view, picture in part.items()}
    return part.shape[0], part.shape[1]


def size_in(part_hw: PartSize, view: str) -> tuple[int, int]:
    """Height and width of the picture that a view is of."""
    return part_hw[view] if isinstance(part_hw, Mapping) else part_hw


def prepare(part: Picture, recipe: Recipe, neutralise: Neutralise | None = None) -> Prepared:
    """Resize every view of a cut-out part and cut it into tiles.

    ``neutralise`` is applied to each view's canvas before anything looks at it: quality gate and network see what it
    returns.

    ``part``: uint8 [H, W] or RGB [H, W, 3], as the recipe's channels say, or one for each view. Shrinking averages
    areas, enlarging is linear. Raises ImageError where the channels differ, the part is under 2 px, or a view has no
    picture.
    """
    if not isinstance(part, Mapping) and len(cameras := {view.camera for view in recipe.views}) > 1:
        raise ImageError(
            f"one picture of a part that cameras {', '.join(sorted(map(str, cameras)))} see: expected one of each view"
        )
    for picture in part.values() if isinstance(part, Mapping) else (part,):
        _check(picture, recipe)
    canvases = {view.name: _canvas(picture_of(part, view.name), view, recipe) for view in recipe.views}
    if neutralise is not None:
        canvases = {name: neutralise(name, canvas) for name, canvas in canvases.items()}
    tiles = [tile for view in recipe.views for tile in _cut(canvases[view.name], view, recipe)]
    stacked = np.stack(tiles)
    return Prepared(stacked if stacked.ndim == 4 else stacked[..., np.newaxis], canvases)


def _check(part: Pixels, recipe: Recipe) -> None:
    channels = 1 if part.ndim == 2 else part.shape[-1]
    if part.dtype != np.uint8 or part.ndim not in (2, 3) or channels != recipe.channels:
        raise ImageError(
            f"image of shape {part.shape}, {part.dtype}: recipe {recipe.name!r} expects uint8 with "
            f"{recipe.channels} channel(s)"
        )
    if min(part.shape[:2]) < 2:
        raise ImageError(f"image of {part.shape[1]} x {part.shape[0]} pixels is too small to inspect")


def view_box(view: View, part_hw: tuple[int, int]) -> tuple[int, int, int, int]:
    """(x, y, width, height) of a view in pixels of the cut-out part, at least 1 x 1."""
    height, width = part_hw
    x0, y0 = int(view.region[0] * width), int(view.region[1] * height)
    x1 = max(x0 + 1, round((view.region[0] + view.region[2]) * width))
    y1 = max(y0 + 1, round((view.region[1] + view.region[3]) * height))
    return x0, y0, min(x1, width) - x0, min(y1, height) - y0


def _canvas(part: Pixels, view: View, recipe: Recipe) -> Pixels:
    x, y, width, height = view_box(view, (part.shape[0], part.shape[1]))
    region = part[y : y + height, x : x + width]
    target_h, target_w = recipe.canvas_hw(view)
    # Each side that shrinks is averaged, for itself: picked out of a long thin part, lines would vanish between pixels.
    shrunk = (min(width, target_w), min(height, target_h))
    if shrunk != (width, height):
        region = shrink(region, *shrunk)
    if shrunk != (target_w, target_h):
        region = np.asarray(cv2.resize(region, (target_w, target_h), interpolation=cv2.INTER_LINEAR), np.uint8)
    return region


def _cut(canvas: Pixels, view: View, recipe: Recipe) -> list[Pixels]:
    tile_h, tile_w = recipe.tile_hw
    return [canvas[y : y + tile_h, x : x + tile_w] for y, x in tile_origins(view, recipe)]


def tile_origins(view: View, recipe: Recipe) -> list[tuple[int, int]]:
    """(y, x) of each tile's corner on the view's canvas, row-major."""
    step_h = recipe.tile_hw[0] - view.tiling.overlap_px
    step_w = recipe.tile_hw[1] - view.tiling.overlap_px
    return [(row * step_h, column * step_w) for row in range(view.tiling.rows) for column in range(view.tiling.columns)]


def thumbnail(canvas: Pixels) -> NDArray[np.float32]:
    """The canvas as 16 x 16 grey, of mean 0 and deviation 1 (a flat picture: zeros), float32 [256]."""
    grey = canvas if canvas.ndim == 2 else np.asarray(cv2.cvtColor(canvas, cv2.COLOR_RGB2GRAY))
    thumb = cv2.resize(grey, (THUMB, THUMB), interpolation=cv2.INTER_AREA)
    mean, deviation = _mean_and_deviation(np.asarray(thumb, np.uint8))
    if deviation <= 1e-3:
        return np.zeros(THUMB * THUMB, np.float32)
    return (thumb.ravel().astype(np.float32) - np.float32(mean)) * np.float32(1 / deviation)


def _mean_and_deviation(grey: Pixels) -> tuple[float, float]:
    mean, deviation = cv2.meanStdDev(grey)
    return float(mean.item()), float(deviation.item())


def likeness(thumb: NDArray[np.float32], good_thumb: NDArray[np.float32]) -> float:
    """Correlation of two standardised thumbnails, -1 to 1."""
    return float(np.dot(thumb, good_thumb)) / good_thumb.size


def measure(canvas: Pixels, part_hw: tuple[int, int], good_thumb: NDArray[np.float32] | None) -> dict[str, float]:
    """Quality measures of one view's canvas, keyed by MEASURES.

    ``mean`` and ``contrast`` (standard deviation) in grey levels; ``dark`` and ``saturated`` the shares of pixels
    at most 4 and at least 251; ``aspect`` width over height of the cut-out part; ``likeness`` the correlation with
    the mean good thumbnail (1.0 where there is none); SHARPNESS as in ``_sharpness``.
    """
    grey = canvas if canvas.ndim == 2 else np.asarray(cv2.cvtColor(canvas, cv2.COLOR_RGB2GRAY), np.uint8)
    mean, deviation = _mean_and_deviation(grey)
    return {
        "mean": mean,
        "contrast": deviation,
        "dark": np.count_nonzero(grey <= DARK) / grey.size,
        "saturated": np.count_nonzero(grey >= SATURATED) / grey.size,
        **_sharpness(grey, mean, deviation),
        "aspect": part_hw[1] / part_hw[0],
        "likeness": 1.0 if good_thumb is None else likeness(thumbnail(canvas), good_thumb),
    }


def _sharpness(grey: Pixels, mean: float, deviation: float) -> dict[str, float]:
    """What blur lowers and dimming leaves alone, from the second difference along each axis.

    Each axis for itself, since a picture smeared by motion stays sharp across it. ``focus`` is the mean absolute
    difference over the contrast; ``detail`` the same over the mean, for parts whose contrast is shading; ``edge``
    the largest over the contrast, for bare parts with few edges.
    """
    values: dict[str, float] = {}
    levels = grey.astype(np.int16)
    for axis, lines in (("x", levels), ("y", levels.T)):
        second = lines[:, 2:] + lines[:, :-2] - 2 * lines[:, 1:-1]
        average, largest = _average_and_largest(second)
        values[f"focus_{axis}"] = average / deviation if deviation > FLAT else 0.0
        values[f"detail_{axis}"] = average / max(mean, 1.0)
        values[f"edge_{axis}"] = largest / deviation if deviation > FLAT else 0.0
    return values


def _average_and_largest(second: NDArray[np.int16]) -> tuple[float, float]:
    """Mean and maximum of the absolute values; of columns the transpose, so that memory is read in order."""
    ordered = second if second.flags.c_contiguous else second.T
    return cv2.norm(ordered, cv2.NORM_L1) / ordered.size, cv2.norm(ordered, cv2.NORM_INF)


class Gate:
    """The image-quality gate: built once from a bundle's bounds, asked for every part."""

    def __init__(self, bounds: QualityBounds) -> None:
        unknown = {name for view in bounds.views.values() for name in view} - set(MEASURES)
        if unknown:
            raise BundleError(f"quality bounds for unknown measure(s) {sorted(unknown)}: calibrate the bundle again")
        self._views = bounds.views
        self._thumbs = {name: np.asarray(thumb, np.float32) for name, thumb in bounds.likeness_thumb.items()}

    def check(self, prepared: Prepared, part_hw: PartSize) -> tuple[dict[str, float], str | None]:
        """Measures keyed ``view.measure`` and the reason why the picture is unusable, or None."""
        values: dict[str, float] = {}
        reason: str | None = None
        for view, canvas in prepared.canvases.items():
            measured = measure(canvas, size_in(part_hw, view), self._thumbs.get(view))
            values |= {f"{view}.{name}": value for name, value in measured.items()}
            bounds = self._views.get(view)
            if bounds is None:
                reason = reason or f"view {view!r} has no quality bounds: calibrate again"
                continue
            for name, bound in bounds.items():
                breach = bound.breach(measured[name])
                reason = reason or (f"image quality: {name} of view {view!r} is {breach}" if breach else None)
        return values, reason
