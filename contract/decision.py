"""Fuses tile scores and maps into one part score, cuts regions and gives the verdict (hop 5)."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from contract.event import Region, Verdict
from contract.places import Floats, Located, counts, highest_region, region_scale
from contract.preprocess import PartSize, size_in, tile_origins, view_box
from contract.recipe import Recipe, Thresholds, View

MAX_REGIONS = 32


class ViewMap(NamedTuple):
    """One view's fused map, float32 [H', W'], and its place on the cut-out part."""

    view: str
    values: NDArray[np.float32]
    box: tuple[int, int, int, int]


class PartScore(NamedTuple):
    """A part's fused score (the worst view's, that its worst tile's), which view it was, and every view's map.

    Where zones make verdicts, ``score`` is at least the level of the highest region that counts in a zone whose verdict
    is REJECT, and ``review`` at least that of one whose verdict is REVIEW; ``review`` is None where none is. ``zone``
    names the zone that ``score`` is of, and ``review_zone`` the one that ``review`` is of where it is above ``score``.
    """

    score: float
    worst_view: str
    maps: list[ViewMap]
    review: float | None = None
    zone: str | None = None
    review_zone: str | None = None

    @property
    def highest(self) -> float:
        """What is held against the review limit."""
        return self.score if self.review is None else self.review


def fuse(
    scores: NDArray[np.float32],
    maps: NDArray[np.float32],
    recipe: Recipe,
    part_hw: PartSize,
    places: Located | None = None,
) -> PartScore:
    """Join tiles and views. ``scores`` float32 [T], ``maps`` float32 [T, h', w'], in the order of ``prepare``.

    Overlapping tiles take the larger deviation. ``places``: what is not inspected is 0 on the map and has no part in
    the score. Raises ValueError where the tile count is not the recipe's.
    """
    if scores.shape != (recipe.tiles,) or maps.ndim != 3 or maps.shape[0] != recipe.tiles:
        raise ValueError(
            f"engine returned scores {scores.shape} and maps {maps.shape}; the recipe has {recipe.tiles} tile(s)"
        )
    fused: list[ViewMap] = []
    view_scores: list[float] = []
    at = 0
    for view in recipe.views:
        count = view.tiling.count
        own, tiles = scores[at : at + count], maps[at : at + count]
        values = _stitch(tiles, view, recipe)
        if places is not None:
            own, values = places.score(view, own, tiles), places.blanked(view.name, values)
        view_scores.append(float(own.max()))
        fused.append(ViewMap(view.name, values, view_box(view, size_in(part_hw, view.name))))
        at += count
    worst = int(np.argmax(view_scores))  # a NaN wins, and decide() refuses it
    part = PartScore(view_scores[worst], recipe.views[worst].name, fused)
    return part if places is None or not places.rules else _with_rules(part, places)


def _with_rules(part: PartScore, places: Located) -> PartScore:
    """The part's score raised to that of the highest region that counts in a zone that makes verdicts."""
    if not np.isfinite(part.score):
        return part
    score, review, worst = part.score, part.score, part.worst_view
    zone: str | None = None
    review_zone: str | None = None
    for view_map in part.maps:
        view = next(view for view in places.recipe.views if view.name == view_map.view)
        scale = region_scale(view_map.box, view_map.values.shape)
        for zone_of, place, inside in places.rules_of(view.name):
            values = places.weighted(view.name, view_map.values)[place]
            # What is below the part's score in any case need not be known.
            over = score if zone_of.verdict == "REJECT" else max(score, review)
            found = highest_region(values, inside, over, zone_of, scale, view.mm_per_px)
            if found > max(score, review):
                worst = view.name
            if zone_of.verdict == "REJECT":
                zone, score = zone_of.name if found > score else zone, found
            elif found > over:
                review, review_zone = found, zone_of.name
    has_review = any(rule.verdict == "REVIEW" for rule in places.rules)
    review_zone = review_zone if review > score else None
    return PartScore(score, worst, part.maps, max(score, review) if has_review else None, zone, review_zone)


def _stitch(maps: NDArray[np.float32], view: View, recipe: Recipe) -> NDArray[np.float32]:
    if len(maps) == 1:
        return np.asarray(maps[0])
    scale_y, scale_x = maps.shape[1] / recipe.tile_hw[0], maps.shape[2] / recipe.tile_hw[1]
    canvas_h, canvas_w = recipe.canvas_hw(view)
    whole = np.full((round(canvas_h * scale_y), round(canvas_w * scale_x)), -np.inf, np.float32)
    for tile, (y, x) in zip(maps, tile_origins(view, recipe), strict=True):
        top, left = round(y * scale_y), round(x * scale_x)
        place = whole[top : top + tile.shape[0], left : left + tile.shape[1]]
        np.maximum(place, tile[: place.shape[0], : place.shape[1]], out=place)
    return whole


def decide(
    score: float,
    thresholds: Thresholds | None,
    highest: float | None = None,
    zone: str | None = None,
    review_zone: str | None = None,
) -> tuple[Verdict, str | None]:
    """Verdict and, where it is not PASS, the reason. Only a finite score at or under the limits is PASS.

    ``highest``: what is held against the review limit, the score where it is None. ``zone`` and ``review_zone``, as in
    ``PartScore``, stand in the reason of the verdict that they made.
    """
    highest = score if highest is None else highest
    if thresholds is None:
        return Verdict.NOT_INSPECTED, "the bundle is not calibrated: run `flawline calibrate thresholds`"
    if not (np.isfinite(score) and np.isfinite(highest)):
        return Verdict.NOT_INSPECTED, f"the score is not a finite number ({score})"
    if score > thresholds.reject:
        return Verdict.REJECT, f"score {score:.4g} above {thresholds.reject:.4g}{_in_zone(zone)}"
    if thresholds.review is not None and highest > thresholds.review:
        return Verdict.REVIEW, f"score {highest:.4g} above {thresholds.review:.4g}{_in_zone(review_zone or zone)}"
    return Verdict.PASS, None


def _in_zone(name: str | None) -> str:
    return "" if name is None else f", a region in zone {name!r}"


def find_regions(
    part: PartScore,
    map_threshold: float,
    recipe: Recipe,
    places: Located | None = None,
    region_level: float | None = None,
    limit: float | None = None,
) -> list[Region]:
    """Connected areas of each view's map above ``map_threshold``, worst first, in pixels of the cut-out part.

    With ``region_level``, areas whose level (the map over its normal level at each place) is above that; where a zone
    made the verdict, also what of it is above the part's ``limit``. Regions under their zone's smallest size are left
    out.
    """
    views = {view.name: view for view in recipe.views}
    regions = [
        region
        for view_map in part.maps
        for region in _view_regions(
            view_map, _cut(part, view_map, map_threshold, places, region_level, limit), views[view_map.view], places
        )
    ]
    return sorted(regions, key=lambda region: -(region.peak if region.level is None else region.level))[:MAX_REGIONS]


class _Cut(NamedTuple):
    """What regions of a view have their peak in, whether that is a level, and where they are."""

    values: Floats
    levelled: bool
    mask: NDArray[np.bool_]


def _cut(
    part: PartScore,
    view_map: ViewMap,
    threshold: float,
    places: Located | None,
    region_level: float | None,
    limit: float | None,
) -> _Cut:
    view, values = view_map.view, view_map.values
    if places is None:
        return _Cut(values, False, values > threshold)
    weighted = places.weighted(view, values)
    cut = _Cut(weighted, False, weighted > threshold)
    if region_level is not None and (levels := places.levelled(view, values)) is not None:
        cut = _Cut(levels, True, levels > region_level)
    for zone, place, inside in places.rules_of(view):
        if limit is not None and zone.name in (part.zone, part.review_zone):
            cut.mask[place] |= (weighted[place] > limit) & inside
    kept = places.kept(view)
    return cut if kept is None else cut._replace(mask=cut.mask & kept)


def _view_regions(view_map: ViewMap, cut: _Cut, view: View, places: Located | None) -> list[Region]:
    values, levelled, above = cut
    if not above.any():
        return []
    mask = above.view(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    x0, y0, _, _ = view_map.box
    scale_x, scale_y = region_scale(view_map.box, values.shape)
    mm = view.mm_per_px
    regions = []
    for label, (left, top, box_w, box_h, area) in enumerate(stats[1:].tolist(), start=1):
        place = np.s_[top : top + box_h, left : left + box_w]
        inside = np.where(labels[place] == label, values[place], np.float32(-np.inf))
        row, column = divmod(int(inside.argmax()), box_w)
        zone = None if places is None else places.zone(view.name, top + row, left + column)
        area_px = area * scale_x * scale_y
        if not counts(zone, mm, area_px, max(box_w * scale_x, box_h * scale_y)):
            continue
        box = (x0 + left * scale_x, y0 + top * scale_y, box_w * scale_x, box_h * scale_y)
        regions.append(
            Region(
                view=view.name,
                box_px=box,
                area_px=area_px,
                box_mm=None if mm is None else (box[0] * mm, box[1] * mm, box[2] * mm, box[3] * mm),
                area_mm2=None if mm is None else area_px * mm**2,
                peak=float(view_map.values[place][labels[place] == label].max()),
                level=float(inside.max()) if levelled else None,
                zone=None if zone is None else zone.name,
            )
        )
    return regions


def map_to_part(view_map: ViewMap) -> tuple[float, float, float, float, float, float]:
    """Affine (a, b, c, d, e, f): part x = a*u + b*v + c, y = d*u + e*v + f, for a map pixel's corner (u, v)."""
    x, y, width, height = view_map.box
    rows, columns = view_map.values.shape
    return (width / columns, 0.0, float(x), 0.0, height / rows, float(y))
