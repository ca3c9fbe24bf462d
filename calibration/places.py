"""``--zones`` and ``--mask``: what is not inspected and what has limits of its own, made ready for a bundle (hop 3 on).

What stands in for pixels that are not inspected is the mean of good pictures that training saw: were it of held-out
ones, their scores would not be exchangeable with those of parts to come.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast, get_args

import numpy as np
from pydantic import Field

from calibration.errors import CalibrationError
from calibration.levels import Use
from calibration.progress import steps
from contract.bundle import (
    ROLE_FILL,
    ROLE_LEVEL,
    ROLE_MASK,
    Bundle,
    open_bundle,
)
from contract.config import Strict, load_toml
from contract.dataset import Sample
from contract.errors import ConfigError
from contract.images import Pixels, read_image
from contract.part_pictures import line_of, read_part
from contract.places import Blank, Bools, Level, Located, fill_outline, view_of, whole_only
from contract.preprocess import prepare, size_in, size_of, view_box
from contract.recipe import Mask, Places, Recipe, View, Zone
from edge_runtime.engines.base import Engine
from edge_runtime.engines.golden import golden_tiles

LEAST_SEEN = 8
ASPECT = 0.05  # by how much a mask's shape may differ from the view's
BLACK, WHITE = 32, 223
GREY = 0.01  # share of a mask's pixels that may be neither: a JPEG's edges
SAME = 1e-2  # relative: a score that is the mean of k map values agrees so well in any precision


class Where(NamedTuple):
    """What was asked of places: a zones.toml, masks as VIEW=FILE, and whether regions are cut over normal levels.

    ``levels`` auto: where drawn defects show that it serves.
    """

    zones: Path | None = None
    masks: tuple[str, ...] = ()
    levels: Use = "auto"


class ZonesFile(Strict):
    """``zones.toml``: tables [[masks]] and [[zones]]."""

    masks: list[Mask] = Field(default_factory=list, max_length=64)
    zones: list[Zone] = Field(default_factory=list, max_length=64)


def without_places(bundle: Bundle) -> Bundle:
    """The same bundle as if nothing were known of places: each calibration states them anew."""
    manifest = bundle.manifest
    files = {role: entry for role, entry in manifest.files.items() if role not in manifest.place_files()}
    thresholds = manifest.thresholds
    limits = None if thresholds is None else thresholds.model_copy(update={"region_level": None})
    changed = manifest.model_copy(update={"places": None, "files": files, "thresholds": limits})
    return Bundle(bundle.root, changed, bundle.content, bundle.exact)


def as_use(text: str) -> Use:
    """``--level`` by its name; raises ConfigError naming those that there are."""
    for use in get_args(Use):
        if use == text:
            return cast("Use", use)
    raise ConfigError(f"--level {text!r}: expected {', '.join(get_args(Use))}")


def dropped(folder: Path, where: Where) -> str | None:
    """A sentence where the bundle has masks or zones and none are asked for now."""
    places = open_bundle(folder).manifest.places
    if places is None or where.zones is not None or where.masks:
        return None
    return (
        f"the bundle had {len(places.masks)} mask(s) and {len(places.zones)} zone(s), and this calibration has none: "
        "give --zones or --mask again to keep them"
    )


def read_where(where: Where, recipe: Recipe) -> tuple[Places, Path]:
    """Masks and zones as asked, every view named, and the folder that pictures of the file are relative to.

    Raises ConfigError naming file and key, or the view that the recipe does not have.
    """
    file = ZonesFile() if where.zones is None else load_toml(where.zones, ZonesFile)
    source = "--mask" if where.zones is None else str(where.zones)
    base = Path() if where.zones is None else where.zones.parent
    masks = [mask if mask.picture is None else _beside(mask, base) for mask in file.masks]
    for each in where.masks:
        view, between, picture = each.partition("=")
        if not between or not picture:
            raise ConfigError(f"--mask {each!r}: expected VIEW=FILE, as in {recipe.views[0].name}=mask.png")
        masks.append(Mask(view=view, picture=picture))
    try:
        places = Places(
            masks=[mask.model_copy(update={"view": view_of(mask, recipe).name}) for mask in masks],
            zones=[zone.model_copy(update={"view": view_of(zone, recipe).name}) for zone in file.zones],
        )
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error
    for zone in places.zones:
        if view_of(zone, recipe).mm_per_px is None and (zone.smallest_mm2 or zone.smallest_mm):
            raise ConfigError(
                f"{source}: zone {zone.name!r} has a size in millimetres, and the scale of view {zone.view!r} is not "
                "known; give smallest_px, or train with --mm-per-px"
            )
    return places, base


def _beside(mask: Mask, base: Path) -> Mask:
    return mask.model_copy(update={"picture": str(base / str(mask.picture))})


def locate_asked(bundle: Bundle, where: Where, seen: Sequence[Sample], engine: Engine) -> Located | None:
    """Masks and zones as asked, made ready; None where none were. Raises ConfigError or CalibrationError."""
    recipe = bundle.manifest.recipe
    places, _ = read_where(where, recipe)
    if not places.masks and not places.zones:
        return None
    places = places.model_copy(update={"top_k": pooled_of(bundle, engine)})
    _refuse_unpooled(places)
    blanks = _blanks(bundle, places, seen) if places.masks else {}
    told = [mask if mask.picture is None else mask.model_copy(update={"picture": Path(mask.picture).name})
            for mask in places.masks]  # fmt: skip
    try:
        return Located(recipe, bundle.manifest.model.map_hw, places.model_copy(update={"masks": told}), blanks, {})
    except ValueError as error:
        raise ConfigError(f"{where.zones or '--mask'}: {error}") from error


def pooled_of(bundle: Bundle, engine: Engine) -> int | None:
    """How many of a map's highest values have the score as their mean, on all golden images; None where none do."""
    tiles = golden_tiles(bundle)
    batch, count = engine.spec.batch, len(tiles)
    worst = np.zeros(1)
    for start in range(0, count, batch):
        output = engine.infer(tiles[[(start + place) % count for place in range(batch)]])
        for score, values in zip(output.scores, output.maps, strict=True):
            ordered = np.sort(values, axis=None)[::-1].astype(np.float64)
            means = np.cumsum(ordered) / np.arange(1, ordered.size + 1)
            worst = np.maximum(worst, np.abs(means - score) / max(abs(float(score)), 1e-6))
    return int(worst.argmin()) + 1 if worst.min() <= SAME else None


def _refuse_unpooled(places: Places) -> None:
    if places.top_k is not None:
        return
    for zone in places.zones:
        if zone.verdict is not None or zone.tolerance != 1:
            raise CalibrationError(
                f"zone {zone.name!r}: this model's score is not made of its map, so that no place can be judged for "
                "itself; leave out verdict and tolerance, or train with --score residual"
            )


def _blanks(bundle: Bundle, places: Places, seen: Sequence[Sample]) -> dict[str, Blank]:
    recipe = bundle.manifest.recipe
    if len(seen) < LEAST_SEEN:
        raise CalibrationError(
            f"{len(seen)} good picture(s) of parts that training saw, at least {LEAST_SEEN} are needed: their mean "
            "stands in for what is not inspected. Give the folder that the bundle was trained with as --data"
        )
    means, sizes = _mean_canvases(bundle, seen)
    blanks = {}
    for view in recipe.views:
        masks = [mask for mask in places.masks if mask.view == view.name]
        if masks:
            keep = np.logical_and.reduce([_keep(mask, view, recipe, sizes[view.name]) for mask in masks])
            if not keep.any():
                raise CalibrationError(f"the mask of view {view.name!r} covers all of it: nothing would be inspected")
            blanks[view.name] = Blank(keep, means[view.name])
    return blanks


def _mean_canvases(bundle: Bundle, seen: Sequence[Sample]) -> tuple[dict[str, Pixels], dict[str, tuple[int, int]]]:
    """Mean picture of each view, and the median width and height of its cut-out."""
    recipe = bundle.manifest.recipe
    mean, line = MeanPictures(), line_of(bundle, renewing=True)
    boxes: dict[str, list[tuple[int, int]]] = {view.name: [] for view in recipe.views}
    for sample in steps(seen, "mean of good pictures"):
        part = read_part(sample.path, recipe, line)
        mean.add(prepare(part, recipe).canvases)
        for view in recipe.views:
            boxes[view.name].append(view_box(view, size_in(size_of(part), view.name))[2:])
    sizes = {name: np.median(found, axis=0).astype(int).tolist() for name, found in boxes.items()}
    return mean.pictures(), {name: (size[0], size[1]) for name, size in sizes.items()}


class MeanPictures:
    """The mean of each view's canvases."""

    def __init__(self) -> None:
        self._sums: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]] = {}
        self._count = 0

    def add(self, canvases: dict[str, Pixels]) -> None:
        self._count += 1
        for view, canvas in canvases.items():
            self._sums[view] = self._sums.get(view, np.zeros(canvas.shape)) + canvas

    def pictures(self) -> dict[str, Pixels]:
        return {view: np.round(total / max(1, self._count)).astype(np.uint8) for view, total in self._sums.items()}


def _keep(mask: Mask, view: View, recipe: Recipe, size: tuple[int, int]) -> Bools:
    """Pixels of the view's canvas that no masked pixel of a usual cut-out part has a share in."""
    canvas = recipe.canvas_hw(view)
    if mask.picture is None:
        keep = ~fill_outline(mask, canvas)
    else:
        keep = whole_only(_picture(Path(mask.picture), view, size), canvas)
    # Where a part is enlarged, a pixel has a share in its neighbours' neighbours.
    reach = 1 + max(int(np.ceil(canvas[0] / size[1])), int(np.ceil(canvas[1] / size[0])))
    grown = np.pad(~keep, reach)
    windows = np.lib.stride_tricks.sliding_window_view(grown, (2 * reach + 1, 2 * reach + 1))
    return np.asarray(~windows.any(axis=(2, 3)))


def _picture(path: Path, view: View, size: tuple[int, int]) -> Bools:
    """A mask's picture, True where it is white. Raises CalibrationError where it is none, or of another shape."""
    grey = read_image(path, 1)
    between = float(((grey > BLACK) & (grey < WHITE)).mean())
    if between > GREY:
        raise CalibrationError(
            f"{path}: {100 * between:.1f} % of its pixels are neither black nor white; expected white where the part "
            "is inspected, black where not"
        )
    height, width = grey.shape
    if not 1 - ASPECT <= (width / height) / (size[0] / size[1]) <= 1 + ASPECT:
        raise CalibrationError(
            f"{path}: {width} x {height} pixels, of another shape than view {view.name!r} of the parts, which is "
            f"{size[0]} x {size[1]}; draw the mask over a picture of a cut-out part"
        )
    white = grey >= WHITE
    if not white.any():
        raise CalibrationError(f"{path}: all black, so that nothing of view {view.name!r} would be inspected")
    return np.asarray(white)


def place_files(bundle: Bundle, located: Located | None, levels: dict[str, Level]) -> dict[str, tuple[str, bytes]]:
    """Levels and masks as they are put into the bundle: role -> name and content."""
    contents = {}
    for index, view in enumerate(bundle.manifest.recipe.views):
        arrays: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]] = {}
        if view.name in levels:
            arrays[ROLE_LEVEL] = np.stack(levels[view.name]).astype(np.float32)
        if located is not None and view.name in located.blanks:
            blank = located.blanks[view.name]
            arrays[ROLE_MASK], arrays[ROLE_FILL] = blank.keep.astype(np.uint8), blank.fill
        for role, values in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, np.ascontiguousarray(values), allow_pickle=False)
            contents[f"{role}.{index}"] = (f"{role}-{index}.npy", buffer.getvalue())
    return contents
