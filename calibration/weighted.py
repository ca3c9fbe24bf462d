"""Limits from parts that were looked at with known, unequal probabilities (before hop 5).

Flagged parts are all looked at, passed ones with a small probability. Among n good parts that were looked at, part i
was drawn with density proportional to p_i, and parts to come are not: likelihood ratio 1/p_i. That is covariate shift
with known weights, for which Tibshirani, Barber, Candes and Ramdas ("Conformal prediction under covariate shift",
NeurIPS 2019) prove the weighted conformal rule. The part to come stands at infinity with its own weight: that of a
flagged part where it scores above every limit that was in force, else the largest there is. The same weights estimate
totals of everything that was produced (Horvitz and Thompson, JASA 47, 1952).

What a limit really rejects is spread as in the Bayesian bootstrap (Rubin, Annals of Statistics 9, 1981): each part's
weight times a standard exponential. With equal weights that is exactly the Beta distribution of an order statistic.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibration.conformal import ROUNDING, groups_needed
from calibration.errors import CalibrationError

DRAWS = 100_000
Floats = NDArray[np.float64]


class Sample(NamedTuple):
    """Good parts that were looked at: scores in ascending order, weights (1 / probability of being looked at).

    Above ``certain`` every part is flagged, whichever limit was in force, and weighs at most ``flagged_weight``.
    """

    scores: Floats
    weights: Floats
    certain: float
    flagged_weight: float

    @property
    def total(self) -> float:
        """Estimate of how many good parts were produced."""
        return float(self.weights.sum())

    @property
    def worth(self) -> float:
        """As many parts of equal weight would carry a limit among those that pass."""
        return self.total / float(self.weights.max())

    @property
    def effective_size(self) -> float:
        """Kish's effective sample size: how unequal weights thin out a sample."""
        return self.total**2 / float((self.weights**2).sum())

    def share_above(self, limit: float) -> float:
        """Estimate of the share of all good parts that score above ``limit``."""
        return float(self.weights[self.scores > limit].sum()) / self.total


def sample(scores: Floats, weights: Floats, certain: float, flagged_weight: float = 1.0) -> Sample:
    """A Sample of parts in any order."""
    order = np.argsort(scores, kind="stable")
    return Sample(scores[order], weights[order], certain, flagged_weight)


def threshold(good: Sample, alpha: float) -> float:
    """Lowest limit that keeps the rate: above it every score's weighted conformal p-value is at most ``alpha``.

    Raises CalibrationError where the parts are too few for it.
    """
    if not 0 < alpha < 1:
        raise CalibrationError(f"a rate must lie between 0 and 1, found {alpha:g}")
    needed = groups_needed(alpha)
    if good.total / good.flagged_weight < needed - ROUNDING:
        raise CalibrationError(
            f"a false-reject rate of {alpha:g} needs at least {needed} good parts; those that inspectors judged stand "
            f"for {good.total:.0f}. Ask for a higher rate, or wait for more verdicts"
        )
    among_passed = _quantile(good, alpha, float(good.weights.max()))
    if among_passed <= good.certain:
        return among_passed
    among_flagged = _quantile(good, alpha, good.flagged_weight)
    if among_passed == math.inf and among_flagged <= good.certain:
        raise CalibrationError(
            f"a false-reject rate of {alpha:g} needs a limit among the parts that passed, and there judged good parts "
            f"worth at least {needed} of equal weight; weighted by their probability of being shown, the "
            f"{len(good.scores)} there are are worth {good.worth:.1f}. Judge about {math.ceil(needed - good.worth)} "
            f"more audited parts, ask for {math.ceil(1000 / (good.worth + 1)) / 1000:g} or more, or raise audit_share"
        )
    return max(among_flagged, good.certain)


def _quantile(good: Sample, alpha: float, at_infinity: float) -> float:
    """Smallest score with a weight of (1 - alpha) (total + at_infinity) at or under it; infinite where there is none.

    A score is above it exactly where p = (weight of scores >= it + at_infinity) / (total + at_infinity) <= alpha.
    """
    wanted = (1 - alpha) * (good.total + at_infinity) * (1 - ROUNDING)
    at = int(np.searchsorted(np.cumsum(good.weights), wanted))
    return float(good.scores[at]) if at < len(good.scores) else math.inf


def expected_rate(good: Sample, limit: float) -> tuple[float, float]:
    """5 and 95 % points of the share of good parts to come that ``limit`` rejects.

    Follows the weights: a few audited parts that stand for many make it wide. Drawn with a fixed seed.
    """
    own = int(np.searchsorted(good.scores, limit, "left"))
    over = int(np.searchsorted(good.scores, limit, "right"))
    # A limit between two parts lies somewhere in the lower one's gap: all of it or nothing of it may be above.
    most, fewest = (own, over - 1) if own < over else (max(0, over - 1), over)
    low, high = (_rates(good, first, np.random.default_rng(0)) for first in (fewest, most))
    return float(np.quantile(low, 0.05)), float(np.quantile(high, 0.95))


def _rates(good: Sample, first: int, random: np.random.Generator) -> Floats:
    """Draws of the share of good parts above the part ``first``, that part's own gap included."""
    lowest_gap = float(good.weights.max()) * random.standard_exponential(DRAWS)
    above, under = _mass(good.weights[first:], random), _mass(good.weights[:first], random)
    return np.asarray(above / (above + under + lowest_gap))


def _mass(weights: Floats, random: np.random.Generator) -> Floats:
    """Draws of the sum of weight times standard exponential; equal weights add up to one gamma variable."""
    total = np.zeros(DRAWS)
    for weight, count in zip(*np.unique(weights, return_counts=True), strict=True):
        total += weight * random.standard_gamma(count, DRAWS)
    return total
