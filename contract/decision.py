"""Fuses tile scores and maps into one part score, cuts regions and gives the verdict (hop 5)."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from contract.event import Region, Verdict
from contract.preprocess import tile_origins, view_box
from contract.recipe import Recipe, Thresholds, View

MAX_REGIONS = 32


class ViewMap(NamedTuple):
    """One view's fused map, float32 [H', W'], and its place on the cut-out part."""

    view: str
    values: NDArray[np.float32]
    box: tuple[int, int, int, int]


class PartScore(NamedTuple):
    """A part's fused score (the worst view's, that its worst tile's), which view it was, and every view's map."""

    score: float
    worst_view: str
    maps: list[ViewMap]


def fuse(scores: NDArray[np.float32], maps: NDArray[np.float32], recipe: Recipe, part_hw: tuple[int, int]) -> PartScore:
    """Join tiles and views. ``scores`` float32 [T], ``maps`` float32 [T, h', w'], in the order of ``prepare``.

    Overlapping tiles take the larger deviation. Raises ValueError where the tile count is not the recipe's.
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
        view_scores.append(float(scores[at : at + count].max()))
        fused.append(ViewMap(view.name, _stitch(maps[at : at + count], view, recipe), view_box(view, part_hw)))
        at += count
    worst = int(np.argmax(view_scores))  # a NaN wins, and decide() refuses it
    return PartScore(view_scores[worst], recipe.views[worst].name, fused)


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


def decide(score: float, thresholds: Thresholds | None) -> tuple[Verdict, str | None]:
    """Verdict and, where it is not PASS, the reason. Only a finite score at or under the limits is PASS."""
    if thresholds is None:
        return Verdict.NOT_INSPECTED, "the bundle is not calibrated: run `flawline calibrate thresholds`"
    if not np.isfinite(score):
        return Verdict.NOT_INSPECTED, f"the score is not a finite number ({score})"
    if score > thresholds.reject:
        return Verdict.REJECT, f"score {score:.4g} above {thresholds.reject:.4g}"
    if thresholds.review is not None and score > thresholds.review:
        return Verdict.REVIEW, f"score {score:.4g} above {thresholds.review:.4g}"
    return Verdict.PASS, None


def find_regions(part: PartScore, map_threshold: float, recipe: Recipe) -> list[Region]:
    """Connected areas of each view's map above ``map_threshold``, worst first, in pixels of the cut-out part."""
    views = {view.name: view for view in recipe.views}
    regions = [
        region for view_map in part.maps for region in _view_regions(view_map, map_threshold, views[view_map.view])
    ]
    return sorted(regions, key=lambda region: -region.peak)[:MAX_REGIONS]


def _view_regions(view_map: ViewMap, threshold: float, view: View) -> list[Region]:
    values = view_map.values
    if float(values.max()) <= threshold:
        return []
    mask = (values > threshold).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    x0, y0, width, height = view_map.box
    scale_x, scale_y = width / values.shape[1], height / values.shape[0]
    area_mm2 = None if view.mm_per_px is None else view.mm_per_px**2
    regions = []
    for label, (left, top, box_w, box_h, area) in enumerate(stats[1:].tolist(), start=1):
        inside = labels[top : top + box_h, left : left + box_w] == label
        area_px = area * scale_x * scale_y
        regions.append(
            Region(
                view=view.name,
                box_px=(x0 + left * scale_x, y0 + top * scale_y, box_w * scale_x, box_h * scale_y),
                area_px=area_px,
                area_mm2=None if area_mm2 is None else area_px * area_mm2,
                peak=float(values[top : top + box_h, left : left + box_w][inside].max()),
            )
        )
    return regions


def map_to_part(view_map: ViewMap) -> tuple[float, float, float, float, float, float]:
    """Affine (a, b, c, d, e, f): part x = a*u + b*v + c, y = d*u + e*v + f, for a map pixel's corner (u, v)."""
    x, y, width, height = view_map.box
    rows, columns = view_map.values.shape
    return (width / columns, 0.0, float(x), 0.0, height / rows, float(y))
