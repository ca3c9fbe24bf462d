"""Probability of detection by defect size from hits and misses, and a90/95 (beside hop 5, at the engineer's desk).

MIL-HDBK-1823A, section 4 and appendix G: a logit model on the logarithm of size; the confidence bound is the one of
the likelihood ratio (Cheng and Iles), which holds for few defects and steep curves where Wald's does not.
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

STEEPEST = 200.0  # of the logit by the logarithm of size: from 1 to 99 % within 5 % of size
BINS = 8
GRID = 60
_LOGIT = math.log(RATE / (1 - RATE))
_REACH = math.log(100.0)  # sizes up to this factor outside those tested are searched
_GOLDEN = (math.sqrt(5) - 1) / 2


class Bin(NamedTuple):
    """Defects from ``low`` to ``high`` in size, and how many of them were detected."""

    low: float
    high: float
    detected: Rate


class Pod(NamedTuple):
    """The fitted curve, logit(p) = intercept + slope ln(size). Sizes are in the unit given.

    ``a90`` is the size that is detected in 90 % of cases, ``a90_95`` the size of which that can be said with 95 %
    confidence; None where the sizes tested do not allow to say.
    """

    intercept: float
    slope: float
    a50: float | None
    a90: float | None
    a90_95: float | None
    hits: int
    bins: list[Bin]

    def at(self, size: float) -> float:
        """Fitted probability of detection of a defect of ``size``."""
        return 1 / (1 + math.exp(-max(-700.0, min(700.0, self.intercept + self.slope * math.log(size)))))


def fit(sizes: Sequence[float], detected: Sequence[bool]) -> Pod:
    """Fit hits and misses of at least LEAST_DEFECTS defects of different sizes (> 0, one unit).

    Raises CalibrationError where they are too few or too alike.
    """
    size, hit = np.asarray(sizes, np.float64), np.asarray(detected, np.bool_)
    _require(size)
    x = np.log(size)
    log_a90 = float(_steepest_ascent(x, hit))
    best, slope = _profile(x, hit, log_a90)
    log_a50 = log_a90 - _LOGIT / max(slope, 1e-9)
    bound = _bound(x, hit, best, log_a90)
    tested = (float(x.min()), float(x.max()))

    def within(log_size: float) -> float | None:
        """Sizes beyond the tested ones are none of what was seen."""
        return math.exp(log_size) if tested[0] <= log_size <= tested[1] else None

    a90 = within(log_a90)
    a90_95 = within(max(bound, tested[0])) if log_a90 <= tested[1] else None
    return Pod(_LOGIT - slope * log_a90, slope, within(log_a50), a90, a90_95, int(hit.sum()), bins_of(size, hit))


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
            f"{len(size)}. Add defective images, or implant defects with --implant"
        )
    if not (np.isfinite(size).all() and (size > 0).all()):
        raise CalibrationError("sizes of defects must be finite and above 0")
    if size.max() / size.min() < LEAST_RATIO:
        raise CalibrationError(
            f"all defects are nearly of one size ({size.min():.3g} to {size.max():.3g}); a detection rate by size "
            f"needs sizes that differ by {LEAST_RATIO:g} times and more"
        )


def _steepest_ascent(x: Floats, hit: NDArray[np.bool_]) -> float:
    """ln a90 of the likeliest curve, up to _REACH outside the sizes tested."""
    grid = np.linspace(x.min() - _REACH, x.max() + _REACH, GRID)
    values = [_profile(x, hit, at)[0] for at in grid]
    at = int(np.argmax(values))
    return _maximize(lambda log_a90: _profile(x, hit, log_a90)[0], grid[max(at - 1, 0)], grid[min(at + 1, GRID - 1)])


def _bound(x: Floats, hit: NDArray[np.bool_], best: float, log_a90: float) -> float:
    """The ln size above ln a90 at which the likelihood falls to the bound; infinite where it does not."""

    def lies_within(at: float) -> bool:
        return 2 * (best - _profile(x, hit, at)[0]) < DEVIANCE

    below, above = log_a90, float(x.max()) + _REACH
    if lies_within(above):
        return math.inf
    while above - below > 1e-9:
        middle = (below + above) / 2
        below, above = (middle, above) if lies_within(middle) else (below, middle)
    return (below + above) / 2


def _profile(x: Floats, hit: NDArray[np.bool_], log_a90: float) -> tuple[float, float]:
    """Greatest log-likelihood of the curves that rise through 0.9 at this size, and the slope of that one."""
    away = x - log_a90

    def likelihood(slope: float) -> float:
        logit = _LOGIT + slope * away
        return -float(np.logaddexp(0.0, np.where(hit, -logit, logit)).sum())

    slope = _maximize(likelihood, 0.0, STEEPEST)
    return likelihood(slope), slope


def _maximize(value: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one maximum has it: golden section, to 1e-9 of the range."""
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = value(left), value(right)
    for _ in range(44):
        if at_left < at_right:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = value(right)
        else:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = value(left)
    return (low + high) / 2
