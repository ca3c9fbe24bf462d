"""The map's normal level at each place, from held-out good parts: what regions are cut over (before hop 5).

A map is first reduced to a grid, each place its highest value there. A place's level is then the median and a high
quantile over the parts, pooled with its neighbours where parts are few: a quantile of twenty values is noise.

Whether levels serve is seen on the parts at hand: defects are drawn into held-out good pictures, and levels are used
where clearly more of them are cut than from the raw map, with as many good parts showing a region.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration import conformal
from calibration.implant import implant
from calibration.progress import steps
from contract.dataset import Sample
from contract.decision import PartScore
from contract.part_pictures import line_of, read_corrected
from contract.places import Floats, Level, Located
from contract.recipe import Places
from edge_runtime.inspector import Inspector

SIDE = 32  # places along a view's longer side
HIGH = 0.95
POOLED = 200  # values that a place's quantiles rest on, neighbours included
LEAST_PARTS = 10
FLOOR = 0.5  # of the mean spread: quiet places must not become over-sensitive
FOLDS = 5
# What levels are tried on
TRIED = 30  # held-out pictures, a spot and a scratch in each
CONTRAST = 25.0
SIZES = (0.04, 0.15)  # of the shorter side
REGION = (0.1, 0.1, 0.8, 0.8)
SHOWN = 0.05  # share of good parts that show a region, in either way
WORTH = 0.05  # share of drawn defects that levels must cut over what the raw map does

Use = Literal["auto", "always", "never"]
Grids = dict[str, Floats]


class Tried(NamedTuple):
    """How many defects were drawn, and how many of them were cut from the raw map and over levels."""

    drawn: int
    raw: int
    levelled: int

    @property
    def worth(self) -> bool:
        return self.levelled - self.raw >= WORTH * self.drawn

    def text(self) -> str:
        """For people."""
        return f"of {self.drawn} defects drawn into held-out parts it cuts {self.levelled}, the raw map {self.raw}"


class Levels(NamedTuple):
    """Levels by view; for each image its highest level, by levels that its own part has no share in.

    ``pooled``: how many places along each side share their values. ``tried``: what drawn defects said, None where they
    were not asked.
    """

    views: dict[str, Level]
    peaks: list[float]
    pooled: int
    tried: Tried | None = None


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


def try_levels(inspector: Inspector, samples: Sequence[Sample], peaks: Sequence[float], found: Levels) -> Tried:
    """Draw defects into ``samples``, whose maps have these ``peaks``, and count those that each way cuts."""
    groups = [sample.group for sample in samples]
    limits = [conformal.level(each, groups, 1 - SHOWN) for each in (peaks, found.peaks)]
    recipe, places = inspector.bundle.manifest.recipe, inspector.places
    map_hw = inspector.bundle.manifest.model.map_hw
    known = Located(recipe, map_hw, Places() if places is None else places.places, {}, found.views)
    random = np.random.default_rng(1)
    drawn, cut = 0, [0, 0]
    line = line_of(inspector.bundle, renewing=True)
    chosen = np.unique(np.linspace(0, len(samples) - 1, min(TRIED, len(samples))).astype(int))
    for at in steps(chosen.tolist(), "trying normal levels on drawn defects"):
        good = read_corrected(samples[at].path, recipe, line)
        for kind in ("spot", "scratch"):
            size = min(good.shape[:2]) * float(np.exp(random.uniform(*np.log(SIZES))))
            made = implant(good, kind, size, CONTRAST, random, REGION)
            part = inspector.score(made.picture)[0]
            over = _cut(part, made.mask, known, limits)
            drawn += 1
            cut = [count + hit for count, hit in zip(cut, over, strict=True)]
    return Tried(drawn, *cut)


def _cut(part: PartScore, mask: NDArray[np.bool_], known: Located, limits: Sequence[float]) -> tuple[bool, bool]:
    """Whether any of the defect is above the limit, on the raw map and on the map over its level."""
    raw = levelled = False
    for view_map in part.maps:
        x, y, width, height = view_map.box
        shape = view_map.values.shape
        inside = mask[y : y + height, x : x + width].astype(np.float32)
        touched = np.asarray(cv2.resize(inside, shape[::-1], interpolation=cv2.INTER_AREA)) > 0
        over = known.levelled(view_map.view, view_map.values)
        if touched.any() and over is not None:
            raw |= bool(known.weighted(view_map.view, view_map.values)[touched].max() > limits[0])
            levelled |= bool(over[touched].max() > limits[1])
    return raw, levelled
