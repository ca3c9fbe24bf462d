"""Thresholds that keep a promise about parts to come, and what rate to expect of a threshold (before hop 5).

A part may have several images, which are no independent witnesses. So each of the K held-out parts weighs
1/(K+1), shared among its images, and 1/(K+1) stands at infinity for the part to come (Lee, Barber and Willett,
"Distribution-free inference with hierarchical data", 2023). With one image a part it is the usual split-conformal
rule. The promise: of parts exchangeable with the held-out ones, a share of at most ``alpha`` lies above on average.

The PAC threshold promises it of this calibration, not of the average one: with probability 1 - delta over the draw of
the K parts, at most ``alpha`` of the parts to come lie above (Wilks, "Determination of sample sizes for setting
tolerance limits", 1941). The order statistic that gives this is exact for independent units, and several images of a
part are not: the unit is the part, by its highest score, and "above" means any of its images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from calibration.errors import CalibrationError
from contract.stats import beta_quantile, log_binomial

ROUNDING = 1e-9
Floats = NDArray[np.float64]


def groups_needed(alpha: float) -> int:
    """Least number of held-out parts with which a rate of ``alpha`` can be promised at all: 1/alpha - 1."""
    return max(1, math.ceil(1 / alpha - 1 - ROUNDING))


def require(groups: int, alpha: float) -> None:
    """Raise CalibrationError where ``groups`` held-out parts cannot carry a rate of ``alpha``."""
    if not 0 < alpha < 1:
        raise CalibrationError(f"a rate must lie between 0 and 1, found {alpha:g}")
    if groups < groups_needed(alpha):
        raise CalibrationError(
            f"a false-reject rate of {alpha:g} needs at least {groups_needed(alpha)} held-out good parts; there are "
            f"{groups}. Ask for {math.ceil(1000 / (groups + 1)) / 1000:g} or more, or hold out more parts "
            "(flawline train --holdout)"
        )


def threshold(scores: Sequence[float], groups: Sequence[str], alpha: float) -> float:
    """Smallest score t with a weighted mass of scores <= t of at least 1 - alpha.

    ``scores`` and ``groups`` have one entry an image. Raises CalibrationError where there are too few parts.
    """
    values, weights, parts = _weighted(scores, groups)
    require(parts, alpha)
    return _at_mass(values, weights, (1 - alpha) * (parts + 1) / parts)


def level(scores: Sequence[float], groups: Sequence[str], mass: float) -> float:
    """Smallest score with at least a share ``mass`` of the held-out parts at or under it: a percentile, no promise."""
    values, weights, _ = _weighted(scores, groups)
    return _at_mass(values, weights, mass)


def share_above(scores: Sequence[float], groups: Sequence[str], limit: float) -> float:
    """Mean over the held-out parts of the share of their images that score above ``limit``."""
    values, weights, _ = _weighted(scores, groups)
    return float(weights[values > limit].sum())


def finite(scores: Sequence[float]) -> Floats:
    """The scores as an array; raises CalibrationError where one is no number."""
    values = np.asarray(scores, np.float64)
    if not np.isfinite(values).all():
        raise CalibrationError(f"{np.count_nonzero(~np.isfinite(values))} score(s) of good images are not finite")
    return values


def _weighted(scores: Sequence[float], groups: Sequence[str]) -> tuple[Floats, Floats, int]:
    """Scores, the weight of each image (a part's sum to 1 / parts), and how many parts there are."""
    values = finite(scores)
    _, part, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    return values, 1.0 / (sizes[part] * len(sizes)), len(sizes)


def _at_mass(values: Floats, weights: Floats, mass: float) -> float:
    order = np.argsort(values, kind="stable")
    at = int(np.searchsorted(np.cumsum(weights[order]), mass - ROUNDING))
    return float(values[order][min(at, len(values) - 1)])


def highest(scores: Sequence[float], groups: Sequence[str]) -> Floats:
    """The highest score of each part, ascending."""
    values = finite(scores)
    names, part = np.unique(np.asarray(groups), return_inverse=True)
    top = np.full(len(names), -np.inf)
    np.maximum.at(top, part, values)
    return np.sort(top)


def pac_groups_needed(alpha: float, delta: float) -> int:
    """Least number of held-out parts whose highest score keeps P(rate <= alpha) >= 1 - delta."""
    return max(1, math.ceil(math.log(delta) / math.log1p(-alpha) - ROUNDING))


def pac_require(groups: int, alpha: float, delta: float) -> None:
    """Raise CalibrationError where ``groups`` held-out parts cannot carry ``alpha`` with confidence 1 - delta."""
    if not 0 < alpha < 1:
        raise CalibrationError(f"a rate must lie between 0 and 1, found {alpha:g}")
    if not 0 < delta < 1:
        raise CalibrationError(f"a confidence must lie between 0 and 1, found {1 - delta:g}")
    needed = pac_groups_needed(alpha, delta)
    if groups < needed:
        carried = math.ceil(1000 * (1 - delta ** (1 / max(1, groups)))) / 1000
        raise CalibrationError(
            f"a false-reject rate of at most {alpha:g} with a confidence of {1 - delta:g} needs at least {needed} "
            f"held-out good parts; there are {groups}. Ask for {carried:g} or more, for less confidence, or hold out "
            f"more parts (--method conformal promises the average only and needs {groups_needed(alpha)})"
        )


@lru_cache(maxsize=64)
def pac_rank(groups: int, alpha: float, delta: float) -> int:
    """Which of ``groups`` scores in ascending order, from 1, is the PAC threshold: the lowest that keeps the promise.

    Above the r-th of n lies a share of parts to come that is Beta(n+1-r, r) distributed, so it exceeds ``alpha`` with
    probability P(Binomial(n, alpha) <= n - r); ties only lower it. Raises CalibrationError where no rank keeps it.
    """
    pac_require(groups, alpha, delta)
    exceeded = 0.0
    for above in range(groups):
        exceeded += math.exp(log_binomial(above, groups, alpha))
        if exceeded > delta * (1 + ROUNDING):
            return min(groups, groups - above + 1)
    return 1


def pac_threshold(scores: Sequence[float], groups: Sequence[str], alpha: float, delta: float) -> float:
    """Lowest limit with P(share of parts to come with an image above it <= alpha) >= 1 - delta.

    ``scores`` and ``groups`` have one entry an image. Raises CalibrationError where there are too few parts.
    """
    tops = highest(scores, groups)
    return float(tops[pac_rank(len(tops), alpha, delta) - 1])


def expected_rate(groups: int, alpha: float) -> tuple[float, float]:
    """5 and 95 % points of the false-reject rate that such a threshold realises on all parts to come.

    Over draws of the held-out parts the rate is Beta(n+1-k, k) distributed, k = ceil((n+1)(1-alpha)): exact for one
    image a part and scores without ties, an approximation for several.
    """
    rank = math.ceil((groups + 1) * (1 - alpha) - ROUNDING)
    if rank > groups:
        raise CalibrationError(f"{groups} parts are too few for a rate of {alpha:g}; {groups_needed(alpha)} are needed")
    return beta_quantile(0.05, groups + 1 - rank, rank), beta_quantile(0.95, groups + 1 - rank, rank)


def pac_expected_rate(groups: int, alpha: float, delta: float) -> tuple[float, float]:
    """5 and 95 % points of the share of parts to come that a PAC threshold rejects; exact for scores without ties."""
    rank = pac_rank(groups, alpha, delta)
    return beta_quantile(0.05, groups + 1 - rank, rank), beta_quantile(0.95, groups + 1 - rank, rank)


def rate_at(scores: Sequence[float], groups: Sequence[str], limit: float) -> tuple[float, float]:
    """What the held-out parts say of a limit that was found in another way: 90 % interval of its false-reject rate.

    A limit between the r-th and the next of n scores rejects a share between Beta(n-r, r+1) and Beta(n+1-r, r)
    (Clopper and Pearson, 1934). Parts with some of their images above count rounded to the wider side.
    """
    _, _, parts = _weighted(scores, groups)
    above = share_above(scores, groups, limit) * parts
    fewest, most = math.floor(above + ROUNDING), math.ceil(above - ROUNDING)
    low = 0.0 if fewest == 0 else beta_quantile(0.05, fewest, parts - fewest + 1)
    high = 1.0 if most == parts else beta_quantile(0.95, most + 1, parts - most)
    return low, high
