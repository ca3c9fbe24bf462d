"""Probability of detection by defect size from hits and misses, and a90/95 (beside hop 5, at the engineer's desk).

MIL-HDBK-1823A, section 4 and appendix G: the log-odds of a hit against the logarithm of size. There they are one
straight line, and where a defect is harder to see in some places of a part, that states sizes that are too small. Here
they may bend: a smoothing spline, whose slope walks at random from size to size (Wahba, JRSS B 40, 1978), so that what
happens far from a90 bends nothing there, and few defects still make nearly a straight line. The confidence bound is the
handbook's: the largest size at which a rate of 90 % is not refuted by the ratio of likelihoods.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibration.errors import CalibrationError
from contract.stats import Rate, rate

Floats = NDArray[np.float64]
RATE = 0.9
LEVEL = math.log(RATE / (1 - RATE))
LEAST_DEFECTS = 29
"""Of as many hits without a miss 0.9 is the bound at 95 %: 0.9^29 < 0.05. With fewer, nothing can be said."""

LEAST_RATIO = 1.5  # of the largest size to the smallest
DEVIANCE = 2.705543
"""The 90 % point of chi-squared with one degree of freedom: two-sided 90 %, so one-sided 95 %."""

BEND = 4.5
"""Standard deviation of the change of slope over a factor of e in size. Chosen by simulation (benchmarks/bounds.py): at
3 the bound covers 90 to 92 % of curves with a kink, at 4.5 95 % and more; at 6 no more, and it lies further away."""

STEEPEST = 50.0  # standard deviation of the slope itself: from 1 to 99 % within a fifth of size
BINS = 8
SPACING = 0.05  # of knots, in ln size
KNOTS = (24, 160)
_HOLD = 1e6  # weight that holds a curve to LEVEL at a knot
_ROUNDS = 80
_AT_ONCE = 8
_STRIDE = 4.0  # of log-odds in a step of Newton's
_NEAR = 1e-6
_FALLING = 1e4  # weight of a slope that falls: larger defects are found no less often
_LEAST_WEIGHT = 1e-9


class Bin(NamedTuple):
    """Defects from ``low`` to ``high`` in size, and how many of them were detected."""

    low: float
    high: float
    detected: Rate


class Point(NamedTuple):
    """A size, and the fitted probability of detection of a defect of it."""

    size: float
    rate: float


class Pod(NamedTuple):
    """The fitted curve: log-odds of detection at each of ``knots`` (ln size), straight lines between them.

    ``a90`` is the size from which 90 % are detected, ``a90_95`` the size of which that can be said with 95 %
    confidence; None where the sizes tested do not allow to say. Sizes are in the unit given.
    """

    knots: tuple[float, ...]
    log_odds: tuple[float, ...]
    a50: float | None
    a90: float | None
    a90_95: float | None
    hits: int
    bins: list[Bin]

    def curve(self) -> list[Point]:
        """The fitted curve, at its knots."""
        return [
            Point(math.exp(knot), float(_chance(np.float64(each))))
            for knot, each in zip(self.knots, self.log_odds, strict=True)
        ]

    def at(self, size: float) -> float:
        """Fitted probability of detection of a defect of ``size``, within the sizes tested."""
        return float(_chance(np.interp(math.log(size), self.knots, self.log_odds)))


class Counts(NamedTuple):
    """Hits and all defects at each knot (ln size), float64 [k]: each defect is shared out to its two neighbours."""

    knots: Floats
    hits: Floats
    defects: Floats


def fit(sizes: Sequence[float], detected: Sequence[bool]) -> Pod:
    """Fit hits and misses of at least LEAST_DEFECTS defects of different sizes (> 0, one unit).

    Raises CalibrationError where they are too few or too alike.
    """
    size, hit = np.asarray(sizes, np.float64), np.asarray(detected, np.bool_)
    _require(size)
    counts = counts_of(size, hit)
    best = likeliest(counts)
    log_a90 = rises_to(counts.knots, best, LEVEL)
    a90_95 = None
    if best[-1] >= LEVEL:
        bound = _bound(counts, best)
        # The likelihood ratio's limit does not hold where nearly all are hits; fewer than LEAST_DEFECTS say nothing.
        least = float(np.sort(size)[LEAST_DEFECTS - 1])
        a90_95 = None if bound is None else max(math.exp(bound), least)
    return Pod(
        tuple(counts.knots.tolist()),
        tuple(best.tolist()),
        _size(rises_to(counts.knots, best, 0.0)),
        _size(log_a90),
        a90_95,
        int(hit.sum()),
        bins_of(size, hit),
    )


def counts_of(size: Floats, hit: NDArray[np.bool_]) -> Counts:
    """Knots evenly over the logarithm of the sizes, with what lies around each."""
    x = np.log(size)
    low, high = float(x.min()), float(x.max())
    number = min(max(math.ceil((high - low) / SPACING), KNOTS[0]), KNOTS[1])
    at = np.clip((x - low) / (high - low) * (number - 1), 0, number - 1)
    left = np.minimum(at.astype(np.intp), number - 2)
    share = at - left

    def shared(weight: Floats) -> Floats:
        first = np.bincount(left, weight * (1 - share), number)
        return np.asarray(first + np.bincount(left + 1, weight * share, number), np.float64)

    return Counts(np.linspace(low, high, number), shared(hit.astype(np.float64)), shared(np.ones(len(x))))


def likeliest(counts: Counts) -> Floats:
    """Log-odds at each knot of the likeliest curve."""
    start = np.zeros((1, len(counts.knots)))
    return np.asarray(_fitted(counts, start, np.zeros_like(start))[0][0])


def rises_to(knots: Floats, log_odds: Floats, level: float) -> float | None:
    """ln of the size from which on the curve lies above ``level``; None where that is no size tested."""
    below = np.flatnonzero(log_odds < level)
    if len(below) == 0 or below[-1] == len(knots) - 1:
        return None
    return _between(knots, log_odds, int(below[-1]) + 1, level)


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


def _bound(counts: Counts, best: Floats) -> float | None:
    """The largest ln size at which a curve through RATE is not refuted; None where the largest tested is not."""
    number = len(counts.knots)
    free = _fitted(counts, best[np.newaxis], np.zeros((1, number)))[1][0]
    below = np.flatnonzero(best < LEVEL)
    first = int(below[-1]) if len(below) else 0
    roots = np.full(number, -math.inf)
    for start in range(first, number, _AT_ONCE):
        at = np.arange(start, min(start + _AT_ONCE, number))
        found = _fitted(counts, np.tile(best, (len(at), 1)), _HOLD * np.eye(number)[at])[1]
        # Signed roots of the deviance run nearly straight from knot to knot, on both sides of the curve.
        roots[at] = np.sqrt(np.maximum(2 * (free - found), 0.0)) * np.where(best[at] >= LEVEL, 1.0, -1.0)
        refuted = np.flatnonzero(roots >= math.sqrt(DEVIANCE))
        if len(refuted):
            return _between(counts.knots, roots, int(refuted[0]), math.sqrt(DEVIANCE))
    return None


def _between(knots: Floats, values: Floats, at: int, level: float) -> float:
    """Where ``values`` come to ``level``, on the straight line that ends at knot ``at``."""
    if at == 0:
        return float(knots[0])
    share = (level - values[at - 1]) / (values[at] - values[at - 1])
    return float(knots[at - 1] + share * (knots[at] - knots[at - 1]))


def _fitted(counts: Counts, start: Floats, held: Floats) -> tuple[Floats, Floats]:
    """Likeliest rising curves, one for each row of ``start`` and of ``held``, weights that hold knots to LEVEL: [n, k].

    Newton's method on the penalised likelihood, which has one maximum. Returns log-odds [n, k] and likelihoods [n].
    """
    gap = float(counts.knots[1] - counts.knots[0])
    slope = np.diff(np.eye(len(counts.knots)), axis=0) / gap
    bend = np.diff(slope, axis=0)
    still = bend.T @ bend / (gap * BEND**2) + slope.T @ slope / (len(slope) * STEEPEST**2)
    curves, diagonal = start.copy(), np.eye(len(counts.knots))
    for _ in range(_ROUNDS):
        falling = _FALLING * (curves @ slope.T < 0)
        stiff = still + (slope.T * falling[:, np.newaxis, :]) @ slope
        chance = _chance(curves)
        rising = counts.hits - counts.defects * chance - held * (curves - LEVEL) - _times(stiff, curves)
        weights = counts.defects * chance * (1 - chance) + held + _LEAST_WEIGHT
        step = np.linalg.solve(weights[:, :, np.newaxis] * diagonal + stiff, rising[:, :, np.newaxis])[:, :, 0]
        longest = np.abs(step).max(1, keepdims=True)
        curves += step * np.minimum(1.0, _STRIDE / np.maximum(longest, 1e-12))
        if longest.max() < _NEAR:
            break
    likelihood = counts.hits * curves - counts.defects * np.logaddexp(0.0, curves)
    return curves, np.asarray(likelihood.sum(1) - 0.5 * (_times(stiff, curves) * curves).sum(1))


def _times(forms: Floats, curves: Floats) -> Floats:
    return np.asarray((forms @ curves[:, :, np.newaxis])[:, :, 0])


def _chance(log_odds: Floats | np.float64) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(log_odds, -500.0, 500.0))))


def _size(log_size: float | None) -> float | None:
    return None if log_size is None else math.exp(log_size)
