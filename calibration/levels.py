"""The map's normal level at each place, from held-out good parts: what regions are cut over (before hop 5).

A map is first reduced to a grid, each place its highest value there. A place's level is then the median and a high
quantile over the parts, pooled with its neighbours where parts are few: a quantile of twenty values is noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from contract.decision import PartScore
from contract.places import Floats, Level, Located

SIDE = 32  # places along a view's longer side
HIGH = 0.95
POOLED = 200  # values that a place's quantiles rest on, neighbours included
LEAST_PARTS = 10
FLOOR = 0.5  # of the mean spread: quiet places must not become over-sensitive; chosen on implants, docs/decisions/0041
FOLDS = 5

Grids = dict[str, Floats]


class Levels(NamedTuple):
    """Levels by view; for each image its highest level, by levels that its own part has no share in.

    ``pooled``: how many places along each side share their values.
    """

    views: dict[str, Level]
    peaks: list[float]
    pooled: int


def grids_of(part: PartScore) -> Grids:
    """Each view's map as a grid of its highest values, float32 [h, w], at most SIDE places a side."""
    return {view_map.view: grid(view_map.values) for view_map in part.maps}


def grid(values: Floats) -> Floats:
    """Highest value in each of at most SIDE x SIDE places of a map [H, W]."""
    height, width = values.shape
    rows, columns = min(SIDE, height), min(SIDE, width)
    # Place r holds the pixels that `contract.places` gives it: those with pixel * rows // height == r.
    tops = -(-np.arange(rows) * height // rows)
    lefts = -(-np.arange(columns) * width // columns)
    return np.maximum.reduceat(np.maximum.reduceat(values, tops, axis=0), lefts, axis=1)


def find_levels(grids: Sequence[Grids], groups: Sequence[str], places: Located | None = None) -> Levels | None:
    """Levels from one entry an image; None where the parts are too few to tell a level by."""
    names = sorted(set(groups))
    if len(names) < LEAST_PARTS:
        return None
    fold_of = {name: index % FOLDS for index, name in enumerate(names)}
    folds = np.array([fold_of[group] for group in groups])
    pooled = pool_side(len(names))
    peaks = np.full(len(groups), -np.inf)
    views = {}
    for view in grids[0]:
        stack = np.stack([each[view] for each in grids])
        weights = None if places is None else places.weighted(view, np.ones(places.map_shape(view), np.float32))
        weight = np.ones(stack.shape[1:], np.float32) if weights is None else grid(weights)
        inside = weight > 0
        views[view] = level_of(stack, inside, pooled)
        for fold in range(FOLDS):
            mine = folds == fold
            level = level_of(stack[~mine], inside, pool_side(len(names) - len(names) // FOLDS))
            values = (stack[mine] - level.middle) / level.spread * weight
            peaks[mine] = np.maximum(peaks[mine], values.max(axis=(1, 2)))
    return Levels(views, peaks.tolist(), pooled)


def pool_side(parts: int) -> int:
    """Least odd number of places a side with which POOLED values stand behind a place's quantiles."""
    side = 1
    while parts * side * side < POOLED:
        side += 2
    return side


def level_of(stack: Floats, inside: NDArray[np.bool_], pooled: int) -> Level:
    """Level of grids [N, h, w]; places outside ``inside`` count for no mean."""
    rim = pooled // 2
    padded = np.pad(stack, ((0, 0), (rim, rim), (rim, rim)), mode="symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (pooled, pooled), (1, 2))
    middle, high = np.empty((2, *stack.shape[1:]), np.float32)
    for row in range(stack.shape[1]):  # a row at a time: the windows of all would take pooled^2 times the memory
        values = np.moveaxis(windows[:, row], 0, 1).reshape(stack.shape[2], -1)
        middle[row], high[row] = np.quantile(values, (0.5, HIGH), axis=1)
    spread = high - middle
    floor = FLOOR * float(spread[inside].mean()) or float(np.finfo(np.float32).tiny)
    return Level(middle, np.maximum(spread, max(floor, 1e-6 * float(np.abs(middle).max()))).astype(np.float32))
