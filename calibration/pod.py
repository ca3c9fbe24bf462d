"""Probability of detection by defect size from hits and misses, and a90/95 (beside hop 5, at the engineer's desk).

MIL-HDBK-1823A, section 4 and appendix G, with one parameter more than its logit on the logarithm of size: the link of
Aranda-Ordaz (Biometrika 68, 1981), 1 - (1 + k e^h)^(-1/k), is the logit at k = 1 and comes to 1 ever more slowly as k
grows, as where a defect is hard to see in some places of a part. There a logit states sizes that are too small. The
confidence bound is the one of the likelihood ratio, which holds for few defects and steep curves where Wald's does not.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibration.errors import CalibrationError
from contract.stats import Rate, rate

Floats = NDArray[np.float64]
RATE = 0.9
LEAST_DEFECTS = 29
"""Of as many hits without a miss 0.9 is the bound at 95 %: 0.9^29 < 0.05. With fewer, nothing can be said."""

LEAST_RATIO = 1.5  # of the largest size to the smallest
DEVIANCE = 2.705543
"""The 90 % point of chi-squared with one degree of freedom: two-sided 90 %, so one-sided 95 %."""

STEEPEST = 200.0  # of h by the logarithm of size: from 1 to 99 % within 5 % of size
SKEWS = (0.1, 0.3, 0.6, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
BINS = 8
GRID = 32
CELLS = 200
"""More defects than that are counted in as many cells of neighbours in size: it tells the same and takes less time."""

NEAREST = 800
ROUNDS = 4
_REACH = math.log(100.0)  # sizes up to this factor outside those tested are searched
STEPS = 29
_GOLDEN = (math.sqrt(5) - 1) / 2


def _level(share: float, skew: float) -> float:
    """The h at which the link gives ``share``."""
    return math.log(((1 - share) ** -skew - 1) / skew)


_SKEWS = np.array(SKEWS)
_LEVELS = np.array([_level(RATE, skew) for skew in SKEWS])


class Bin(NamedTuple):
    """Defects from ``low`` to ``high`` in size, and how many of them were detected."""

    low: float
    high: float
    detected: Rate


class Pod(NamedTuple):
    """The fitted curve: h = intercept + slope ln(size), ``skew`` the k of the link. Sizes are in the unit given.

    ``a90`` is the size that is detected in 90 % of cases, ``a90_95`` the size of which that can be said with 95 %
    confidence; None where the sizes tested do not allow to say.
    """

    intercept: float
    slope: float
    skew: float
    a50: float | None
    a90: float | None
    a90_95: float | None
    hits: int
    bins: list[Bin]

    def at(self, size: float) -> float:
        """Fitted probability of detection of a defect of ``size``."""
        return float(-np.expm1(_log_missed(np.array(self.intercept + self.slope * math.log(size)), self.skew)))


class Cells(NamedTuple):
    """Defects of about one size: ln size, hits and misses, float64 [n]."""

    x: Floats
    hits: Floats
    misses: Floats


class Curve(NamedTuple):
    """The likeliest curve that rises through 0.9 at one size."""

    likelihood: float
    slope: float
    skew: float


def fit(sizes: Sequence[float], detected: Sequence[bool]) -> Pod:
    """Fit hits and misses of at least LEAST_DEFECTS defects of different sizes (> 0, one unit).

    Raises CalibrationError where they are too few or too alike.
    """
    size, hit = np.asarray(sizes, np.float64), np.asarray(detected, np.bool_)
    _require(size)
    tested = (math.log(size.min()), math.log(size.max()))
    near = np.full(len(size), True)
    first = found = _fit(cells_of(size, hit), tested)
    for _ in range(ROUNDS):
        before, near = near, _nearest(np.log(size), found.log_a90)
        if (near == before).all() or np.ptp(np.log(size[near])) < math.log(LEAST_RATIO):
            break
        found = _fit(cells_of(size[near], hit[near]), tested)
    # The likelihood ratio's limit does not hold where nearly all are hits; fewer than LEAST_DEFECTS say nothing anyway.
    least = float(np.sort(size)[LEAST_DEFECTS - 1])
    a90_95 = None if found.a90_95 is None else max(found.a90_95, least)
    hits, bins = int(hit.sum()), bins_of(size, hit)
    return Pod(found.intercept, found.slope, found.skew, first.a50, found.a90, a90_95, hits, bins)


def _nearest(x: Floats, log_a90: float) -> NDArray[np.bool_]:
    """The NEAREST defects by size: what happens far from a90 must not bend the curve there (local likelihood)."""
    away = np.abs(x - log_a90)
    return np.asarray(away <= np.partition(away, min(NEAREST, len(x)) - 1)[min(NEAREST, len(x)) - 1])


class _Fitted(NamedTuple):
    intercept: float
    slope: float
    skew: float
    log_a90: float
    a50: float | None
    a90: float | None
    a90_95: float | None


def _fit(cells: Cells, tested: tuple[float, float]) -> _Fitted:
    log_a90 = _likeliest(cells)
    best = _profile(cells, log_a90)
    intercept = _level(RATE, best.skew) - best.slope * log_a90
    log_a50 = (_level(0.5, best.skew) - intercept) / max(best.slope, 1e-9)
    bound = _bound(cells, best, log_a90)

    def within(log_size: float) -> float | None:
        """Sizes beyond the tested ones are none of what was seen."""
        return math.exp(log_size) if tested[0] <= log_size <= tested[1] else None

    a90_95 = within(max(bound, tested[0])) if log_a90 <= tested[1] else None
    return _Fitted(intercept, best.slope, best.skew, log_a90, within(log_a50), within(log_a90), a90_95)


def cells_of(size: Floats, hit: NDArray[np.bool_]) -> Cells:
    """Neighbours in size together, where there are more than CELLS."""
    order = np.argsort(size, kind="stable")
    x, hits = np.log(size[order]), hit[order].astype(np.float64)
    starts = np.unique(np.linspace(0, len(x), min(len(x), CELLS), endpoint=False).astype(np.intp))
    counts = np.diff(np.append(starts, len(x))).astype(np.float64)
    summed = np.add.reduceat(hits, starts)
    return Cells(np.add.reduceat(x, starts) / counts, summed, counts - summed)


def bins_of(size: Floats, hit: NDArray[np.bool_]) -> list[Bin]:
    """Bins of about equally many defects, at most BINS; equal sizes stay together."""
    order = np.argsort(size, kind="stable")
    size, hit = size[order], hit[order]
    wanted = np.linspace(0, len(size), min(BINS, max(1, len(size) // 10)) + 1)[1:].astype(np.intp)
    ends = np.unique(np.searchsorted(size, size[wanted - 1], "right")).tolist()
    return [
        Bin(float(size[first]), float(size[end - 1]), rate(int(hit[first:end].sum()), end - first))
        for first, end in itertools.pairwise([0, *ends])
    ]


def _require(size: Floats) -> None:
    if len(size) < LEAST_DEFECTS:
        raise CalibrationError(
            f"a detection rate by size needs at least {LEAST_DEFECTS} defects (60 and more are usual); there are "
            f"{len(size)}"
        )
    if not (np.isfinite(size).all() and (size > 0).all()):
        raise CalibrationError("sizes of defects must be finite and above 0")
    if size.max() / size.min() < LEAST_RATIO:
        raise CalibrationError(
            f"all defects are nearly of one size ({size.min():.3g} to {size.max():.3g}); a detection rate by size "
            f"needs sizes that differ by {LEAST_RATIO:g} times and more"
        )


def _likeliest(cells: Cells) -> float:
    """ln a90 of the likeliest curve, up to _REACH outside the sizes tested."""
    grid = np.linspace(cells.x[0] - _REACH, cells.x[-1] + _REACH, GRID)
    at = int(np.argmax([_profile(cells, log_a90).likelihood for log_a90 in grid]))
    low, high = grid[max(at - 1, 0)], grid[min(at + 1, GRID - 1)]
    return _maximize(lambda log_a90: _profile(cells, log_a90).likelihood, float(low), float(high))


def _bound(cells: Cells, best: Curve, log_a90: float) -> float:
    """The ln size above ln a90 at which the likelihood falls to the bound; infinite where it does not."""

    def lies_within(at: float) -> bool:
        return 2 * (best.likelihood - _profile(cells, at).likelihood) < DEVIANCE

    below, above = log_a90, float(cells.x[-1]) + _REACH
    if lies_within(above):
        return math.inf
    while above - below > 1e-5:
        middle = (below + above) / 2
        below, above = (middle, above) if lies_within(middle) else (below, middle)
    return (below + above) / 2


def _profile(cells: Cells, log_a90: float) -> Curve:
    """The best slope for each skew, all at once by golden section, and of these the likeliest."""
    away = cells.x - log_a90

    def likelihoods(slopes: Floats) -> Floats:
        missed = _log_missed(_LEVELS[:, None] + slopes[:, None] * away, _SKEWS[:, None])
        found = np.log(-np.expm1(np.minimum(missed, -1e-300)))
        return np.asarray((cells.hits * found + cells.misses * missed).sum(1))

    low, high = np.zeros(len(SKEWS)), np.full(len(SKEWS), STEEPEST)
    for _ in range(STEPS):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        rising = likelihoods(left) < likelihoods(right)
        low, high = np.where(rising, left, low), np.where(rising, high, right)
    slopes = (low + high) / 2
    values = likelihoods(slopes)
    at = int(np.argmax(values))
    return Curve(float(values[at]), float(slopes[at]), SKEWS[at])


def _log_missed(h: Floats, skew: float | Floats) -> Floats:
    """ln of the probability of a miss under the link of Aranda-Ordaz."""
    return np.asarray(-np.log1p(skew * np.exp(np.clip(h, -500.0, 500.0))) / skew)


def _maximize(value: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one maximum has it: golden section, to 1e-6 of the range."""
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = value(left), value(right)
    for _ in range(STEPS):
        if at_left < at_right:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = value(right)
        else:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = value(left)
    return (low + high) / 2
