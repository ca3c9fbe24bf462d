"""What a calibration knows of places: what is not inspected, zones, the map's normal level (between hops 3 and 5).

Pixels that are not inspected are replaced by those of the mean good part before anything looks at them, so that no
verdict can depend on them, and the map is 0 there. A tile's score is then made anew, as its graph makes it, from the
map of what is inspected, divided by each zone's tolerance.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from contract.bundle import PLACE_ROLES, ROLE_FILL, ROLE_LEVEL, ROLE_MASK, Bundle
from contract.errors import BundleError
from contract.images import Pixels
from contract.preprocess import tile_origins
from contract.recipe import Outline, Places, Recipe, View, Zone

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
MAX_ARRAY_BYTES = 512 << 20
MAX_HEADER_BYTES = 10_000
MAX_LEVEL_SIDE = 64
SUBPIXEL = 8  # bits of a polygon's corners


class Level(NamedTuple):
    """The map's normal level in a grid of places, float32 [h, w] each: the usual, and how far good parts go above it.

    A value of the map becomes (value - middle) / spread; ``spread`` is above 0.
    """

    middle: Floats
    spread: Floats


class Blank(NamedTuple):
    """What of a view is not inspected: ``keep`` bool [H, W] of its canvas, ``fill`` uint8 of the canvas's shape."""

    keep: Bools
    fill: Pixels

    @property
    def inspected(self) -> float:
        """Share of the view that is inspected."""
        return float(self.keep.mean())


class _View(NamedTuple):
    """One view, ready: ``keep``, ``weights``, ``middle``, ``scale`` and ``zone_at`` (-1: none) in the map's size."""

    blank: Blank | None
    keep: Floats | None
    weights: Floats | None
    zone_at: NDArray[np.int16] | None
    middle: Floats | None
    scale: Floats | None


class Rule(NamedTuple):
    """A zone that makes verdicts: the least rectangle of its view's map around it, and bool what of that it is."""

    zone: Zone
    place: tuple[slice, slice]
    inside: Bools


class Located:
    """A bundle's places, made ready once; asked for every part."""

    def __init__(
        self,
        recipe: Recipe,
        map_hw: tuple[int, int],
        places: Places,
        blanks: dict[str, Blank],
        levels: dict[str, Level],
    ) -> None:
        """Raises ValueError where a zone could never count or a mask leaves nothing."""
        self.recipe = recipe
        self.places = places
        self.blanks = blanks
        self.levels = levels
        self._views = {
            view.name: _ready(view, recipe, map_hw, places, blanks.get(view.name), levels.get(view.name))
            for view in recipe.views
        }
        self._shapes = {view.name: map_shape(view, recipe, map_hw) for view in recipe.views}
        self.rescores = places.top_k is not None and any(view.weights is not None for view in self._views.values())
        self._rules = {name: _rules(view.zone_at, places) for name, view in self._views.items()}
        self.rules = [zone for zone in places.zones if zone.verdict is not None]
        if self.rules and places.top_k is None:
            raise ValueError("zones with a verdict, though the score is not made of the map")

    def with_levels(self, levels: dict[str, Level], map_hw: tuple[int, int]) -> Located:
        """The same places with the map's normal levels."""
        return Located(self.recipe, map_hw, self.places, self.blanks, levels)

    def map_shape(self, view: str) -> tuple[int, int]:
        """Size of a view's map."""
        return self._shapes[view]

    def neutralise(self, view: str, canvas: Pixels) -> Pixels:
        """``canvas`` with the pixels that are not inspected replaced; the same array where all are."""
        blank = self._views[view].blank
        if blank is None:
            return canvas
        keep = blank.keep if canvas.ndim == 2 else blank.keep[..., np.newaxis]
        return np.where(keep, canvas, blank.fill)

    def score(self, view: View, scores: Floats, maps: Floats) -> Floats:
        """Scores of a view's tiles, float32 [T], made anew from their maps [T, h, w] where places ask for it.

        A score or map that is not finite stays so.
        """
        weights = self._views[view.name].weights
        if weights is None or self.places.top_k is None:
            return scores
        origins = tile_origins(view, self.recipe)
        found = [
            self._tile_score(score, tile, weights, origin)
            for score, tile, origin in zip(scores, maps, origins, strict=True)
        ]
        return np.array(found, np.float32)

    def _tile_score(self, score: np.float32, tile: Floats, weights: Floats, origin: tuple[int, int]) -> float:
        if not np.isfinite(score):
            return float(score)
        top, left = (
            round(at * size / whole) for at, size, whole in zip(origin, tile.shape, self.recipe.tile_hw, strict=True)
        )
        place = weights[top : top + tile.shape[0], left : left + tile.shape[1]]
        return top_mean(tile[: place.shape[0], : place.shape[1]] * place, self.places.top_k or 1)

    def blanked(self, view: str, values: Floats) -> Floats:
        """A view's map, 0 where nothing is inspected; the same array where all is."""
        keep = self._views[view].keep
        return values if keep is None else values * keep

    def kept(self, view: str) -> Bools | None:
        """Pixels of a view's map that are inspected; None where all are."""
        keep = self._views[view].keep
        return None if keep is None else keep > 0

    def weighted(self, view: str, values: Floats) -> Floats:
        """A view's map as it counts: divided by tolerances, 0 where nothing is inspected."""
        weights = self._views[view].weights
        return values if weights is None else values * weights

    def levelled(self, view: str, values: Floats) -> Floats | None:
        """A view's map over its normal level at each place, divided by tolerances; None where no level is known."""
        known = self._views[view]
        if known.middle is None or known.scale is None:
            return None
        return (values - known.middle) * known.scale

    def zone(self, view: str, row: int, column: int) -> Zone | None:
        """The zone at a pixel of a view's map."""
        at = self._views[view].zone_at
        index = -1 if at is None else int(at[row, column])
        return None if index < 0 else self.places.zones[index]

    def rules_of(self, view: str) -> list[Rule]:
        """What makes verdicts on a view."""
        return self._rules[view]


def top_mean(values: Floats, count: int) -> float:
    """Mean of the ``count`` highest values; a NaN among any of them is the result."""
    flat = values.ravel()
    count = min(count, flat.size)
    if count == 1:
        return float(flat.max())
    return float(np.partition(flat, flat.size - count)[flat.size - count :].mean(dtype=np.float64))


def region_scale(box: tuple[int, int, int, int], shape: tuple[int, ...]) -> tuple[float, float]:
    """Pixels of the cut-out part that a pixel of its view's map is wide and high."""
    return box[2] / shape[1], box[3] / shape[0]


def counts(zone: Zone | None, mm_per_px: float | None, area_px: float, longer_px: float) -> bool:
    """Whether a region of this area and longer side (pixels of the cut-out part) is large enough for its zone."""
    if zone is None:
        return True
    if zone.smallest_px is not None:
        return area_px >= zone.smallest_px
    scale = mm_per_px or math.nan
    if zone.smallest_mm2 is not None:
        return area_px * scale**2 >= zone.smallest_mm2
    return zone.smallest_mm is None or longer_px * scale >= zone.smallest_mm


def highest_region(
    values: Floats, inside: Bools, above: float, zone: Zone, scale: tuple[float, float], mm_per_px: float | None
) -> float:
    """Highest level from which on a connected region of ``values`` within ``inside`` is large enough for ``zone``.

    At most ``above`` where none is so above it. Only a map's own values can be that level, and more of the map lies
    above a lower one, so they are bisected; of a good part mostly nothing has to be.
    """
    over = (values > above) & inside
    if np.count_nonzero(over) < _least_pixels(zone, scale, mm_per_px):
        return above
    rows, columns = np.flatnonzero(over.any(axis=1)), np.flatnonzero(over.any(axis=0))
    place = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    over, values = np.ascontiguousarray(over[place]), values[place]
    if not _large_enough(over, zone, scale, mm_per_px):
        return above
    levels = np.unique(values[over])
    low, high = 0, len(levels) - 1  # index of the highest level known to do, and of the highest that may
    while low < high:
        middle = (low + high + 1) // 2
        if _large_enough((values >= levels[middle]) & over, zone, scale, mm_per_px):
            low = middle
        else:
            high = middle - 1
    return float(levels[low])


def _least_pixels(zone: Zone, scale: tuple[float, float], mm_per_px: float | None) -> float:
    """No region of fewer pixels of the map is large enough."""
    pixel_px = scale[0] * scale[1]
    if zone.smallest_px is not None:
        return max(1.0, zone.smallest_px / pixel_px * (1 - 1e-6))
    if zone.smallest_mm2 is not None and mm_per_px is not None:
        return max(1.0, zone.smallest_mm2 / mm_per_px**2 / pixel_px * (1 - 1e-6))
    return 1.0


def _large_enough(mask: Bools, zone: Zone, scale: tuple[float, float], mm_per_px: float | None) -> bool:
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    return any(
        counts(zone, mm_per_px, area * scale[0] * scale[1], max(width * scale[0], height * scale[1]))
        for _, _, width, height, area in stats[1:].tolist()
    )


def map_shape(view: View, recipe: Recipe, map_hw: tuple[int, int]) -> tuple[int, int]:
    """Size of a view's fused map whose tiles have maps of ``map_hw``."""
    if view.tiling.count == 1:
        return map_hw
    height, width = recipe.canvas_hw(view)
    return round(height * map_hw[0] / recipe.tile_hw[0]), round(width * map_hw[1] / recipe.tile_hw[1])


def fill_outline(outline: Outline, shape: tuple[int, int]) -> Bools:
    """Bool [h, w]: pixels whose middle lies in the outline, and those that its edge crosses."""
    size = np.array([shape[1], shape[0]])
    corners = np.round((np.array(outline.points()) * size - 0.5) * 2**SUBPIXEL).astype(np.int32)
    drawn = np.zeros(shape, np.uint8)
    cv2.fillPoly(drawn, [corners], 1, shift=SUBPIXEL)
    return drawn.astype(np.bool_)


def _ready(
    view: View, recipe: Recipe, map_hw: tuple[int, int], places: Places, blank: Blank | None, level: Level | None
) -> _View:
    shape = map_shape(view, recipe, map_hw)
    keep = None if blank is None else whole_only(blank.keep, shape).astype(np.float32)
    if keep is not None and not keep.any():
        raise ValueError(f"the mask of view {view.name!r} leaves no whole pixel of its map, so nothing is inspected")
    zone_at = _zones(view, recipe, places, shape)
    weights = keep
    if zone_at is not None and any(zone.tolerance != 1 for zone in places.zones):
        factors = np.array([1.0, *(1 / zone.tolerance for zone in places.zones)], np.float32)[zone_at + 1]
        weights = factors if keep is None else factors * keep
    if level is None:
        return _View(blank, keep, weights, zone_at, None, None)
    rows = np.arange(shape[0]) * level.middle.shape[0] // shape[0]
    columns = np.arange(shape[1]) * level.middle.shape[1] // shape[1]
    middle, spread = level.middle[rows][:, columns], level.spread[rows][:, columns]
    return _View(blank, keep, weights, zone_at, middle, (1 if weights is None else weights) / spread)


def _rules(zone_at: NDArray[np.int16] | None, places: Places) -> list[Rule]:
    found = []
    for number, zone in enumerate(places.zones):
        inside = None if zone_at is None or zone.verdict is None else zone_at == number
        if inside is not None and inside.any():
            rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
            place = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
            found.append(Rule(zone, place, np.ascontiguousarray(inside[place])))
    return found


def whole_only(keep: Bools, shape: tuple[int, int]) -> Bools:
    """``keep`` in another size: True only where no part of a pixel is left out."""
    if keep.shape == shape:
        return keep
    out = (~keep).astype(np.float32)
    larger = (max(shape[1], keep.shape[1]), max(shape[0], keep.shape[0]))
    if larger != (keep.shape[1], keep.shape[0]):
        out = np.asarray(cv2.resize(out, larger, interpolation=cv2.INTER_LINEAR), np.float32)
    return np.asarray(cv2.resize(out, shape[::-1], interpolation=cv2.INTER_AREA) <= 1e-6)


def _zones(view: View, recipe: Recipe, places: Places, shape: tuple[int, int]) -> NDArray[np.int16] | None:
    mine = [(number, zone) for number, zone in enumerate(places.zones) if view_of(zone, recipe).name == view.name]
    if not mine:
        return None
    zone_at = np.full(shape, -1, np.int16)
    for number, zone in reversed(mine):
        zone_at[fill_outline(zone, shape)] = number
    for number, zone in mine:
        if not (zone_at == number).any():
            raise ValueError(f"zone {zone.name!r} lies wholly in zones before it, which count there; put it first")
    return zone_at


def view_of(outline: Outline, recipe: Recipe) -> View:
    """The view that an outline lies on; raises ValueError naming those that there are."""
    found = [view for view in recipe.views if outline.view in (None, view.name)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(repr(view.name) for view in recipe.views)
    raise ValueError(f"view {outline.view!r}: expected one of the recipe's views, {names}")


def locate(bundle: Bundle) -> Located | None:
    """The bundle's places ready for use; None where it knows of none. Raises BundleError."""
    manifest = bundle.manifest
    files = manifest.place_files()
    limits = manifest.thresholds
    if limits is not None and limits.region_level is not None and not any(r.startswith(ROLE_LEVEL) for r in files):
        raise BundleError(f"{bundle.root}: regions are cut by level and the bundle has none; calibrate it again")
    if manifest.places is None and not files:
        return None
    recipe = manifest.recipe
    known = {f"{role}.{index}" for role in PLACE_ROLES for index in range(len(recipe.views))}
    if set(files) - known:
        raise BundleError(f"{bundle.root}: {sorted(set(files) - known)} belong to no view; calibrate the bundle again")
    blanks: dict[str, Blank] = {}
    levels: dict[str, Level] = {}
    for index, view in enumerate(recipe.views):
        blank = _read_blank(bundle, index, view)
        level = _read_level(bundle, index)
        blanks |= {} if blank is None else {view.name: blank}
        levels |= {} if level is None else {view.name: level}
    try:
        return Located(recipe, manifest.model.map_hw, manifest.places or Places(), blanks, levels)
    except ValueError as error:
        raise BundleError(f"{bundle.root}: {error}; calibrate the bundle again") from error


def _read_blank(bundle: Bundle, index: int, view: View) -> Blank | None:
    roles = f"{ROLE_MASK}.{index}", f"{ROLE_FILL}.{index}"
    present = [role in bundle.manifest.files for role in roles]
    if not any(present):
        return None
    canvas, channels = bundle.manifest.recipe.canvas_hw(view), bundle.manifest.recipe.channels
    keep = read_array(bundle.path(roles[0]), np.dtype(np.uint8), canvas)
    fill = read_array(bundle.path(roles[1]), np.dtype(np.uint8), canvas if channels == 1 else (*canvas, channels))
    if keep.max() > 1 or not keep.any():
        raise BundleError(f"{bundle.path(roles[0])}: expected 1 where a pixel is inspected, 0 where not, and some of 1")
    return Blank(keep.astype(np.bool_), np.asarray(fill, np.uint8))


def _read_level(bundle: Bundle, index: int) -> Level | None:
    role = f"{ROLE_LEVEL}.{index}"
    if role not in bundle.manifest.files:
        return None
    path = bundle.path(role)
    found = read_array(path, np.dtype(np.float32), (2, None, None))
    if max(found.shape) > MAX_LEVEL_SIDE or not np.isfinite(found).all() or not (found[1] > 0).all():
        raise BundleError(
            f"{path}: a normal level of {found.shape}; expected finite values, a spread above 0, at most "
            f"{MAX_LEVEL_SIDE} places a side: calibrate the bundle again"
        )
    return Level(found[0], found[1])


def read_array(path: Path, dtype: np.dtype[np.generic], shape: tuple[int | None, ...]) -> NDArray[np.generic]:
    """An ``.npy`` file of this type and shape (None: any length); its header is read before memory is taken.

    Raises BundleError naming the file, what was found and what was expected.
    """
    wanted = f"{dtype} {list(shape)}"
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"version {version} of the format")
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            found, fortran, kind = read(file, max_header_size=MAX_HEADER_BYTES)
            fits = len(found) == len(shape) and all(b in (None, a) for a, b in zip(found, shape, strict=True))
            size = math.prod(found) * dtype.itemsize
            if kind != dtype or fortran or not fits or not 0 < size <= MAX_ARRAY_BYTES:
                raise BundleError(f"{path}: {kind} {list(found)}; expected {wanted}: calibrate the bundle again")
            data = file.read(size + 1)
    except (OSError, ValueError, EOFError) as error:
        raise BundleError(f"{path}: not an array that can be read ({error}); expected {wanted}") from error
    if len(data) != size:
        raise BundleError(f"{path}: {len(data)} bytes of data, its header says {size}: copy the bundle again")
    return np.frombuffer(data, dtype).reshape(found)
