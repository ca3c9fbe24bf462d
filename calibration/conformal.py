"""Split-conformal thresholds over parts, and what rate of false rejects to expect of them (before hop 5).

A part may have several images, which are no independent witnesses. So each of the K held-out parts weighs
1/(K+1), shared among its images, and 1/(K+1) stands at infinity for the part to come (Lee, Barber and Willett,
"Distribution-free inference with hierarchical data", 2023). With one image a part it is the usual split-conformal
rule. The promise: of parts exchangeable with the held-out ones, a share of at most ``alpha`` lies above on average.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from calibration.errors import CalibrationError

ROUNDING = 1e-9


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
            f"{groups}. Ask for {math.ceil(1000 / (groups + 1)) / 1000:g} or more, or hold out more parts"
        )


def threshold(scores: Sequence[float], groups: Sequence[str], alpha: float) -> float:
    """Smallest score t with a weighted mass of scores <= t of at least 1 - alpha.

    ``scores`` and ``groups`` have one entry an image. Raises CalibrationError where there are too few parts.
    """
    values = np.asarray(scores, np.float64)
    if not np.isfinite(values).all():
        raise CalibrationError(f"{np.count_nonzero(~np.isfinite(values))} score(s) of good images are not finite")
    sizes = Counter(groups)
    require(len(sizes), alpha)
    weights = np.array([1 / (sizes[group] * (len(sizes) + 1)) for group in groups])
    order = np.argsort(values, kind="stable")
    mass = np.cumsum(weights[order])
    at = int(np.searchsorted(mass, 1 - alpha - ROUNDING))
    return float(values[order][min(at, len(values) - 1)])


def expected_rate(groups: int, alpha: float) -> tuple[float, float]:
    """5 and 95 % points of the false-reject rate that such a threshold realises on all parts to come.

    Over draws of the held-out parts the rate is Beta(n+1-k, k) distributed, k = ceil((n+1)(1-alpha)): exact for one
    image a part and scores without ties, an approximation for several.
    """
    rank = math.ceil((groups + 1) * (1 - alpha) - ROUNDING)
    if rank > groups:
        raise CalibrationError(f"{groups} parts are too few for a rate of {alpha:g}; {groups_needed(alpha)} are needed")
    return beta_quantile(0.05, groups + 1 - rank, rank), beta_quantile(0.95, groups + 1 - rank, rank)


def beta_quantile(q: float, a: int, b: int) -> float:
    """Quantile of Beta(a, b) for whole a, b >= 1: bisection on a binomial tail, exact to 1e-12."""
    low, high = 0.0, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if _beta_cdf(middle, a, b) < q else (low, middle)
    return (low + high) / 2


def _beta_cdf(x: float, a: int, b: int) -> float:
    """P(Beta(a, b) <= x) = P(Binomial(a+b-1, x) >= a)."""
    if not 0 < x < 1:
        return float(x >= 1)
    n = a + b - 1
    terms = (
        math.lgamma(n + 1) - math.lgamma(j + 1) - math.lgamma(n - j + 1) + j * math.log(x) + (n - j) * math.log1p(-x)
        for j in range(a, n + 1)
    )
    return math.fsum(math.exp(term) for term in terms)
