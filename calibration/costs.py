"""Limits that need defective parts: where F1 is highest, and where the costs of a line's mistakes are lowest.

Among limits of equal worth the lowest is taken: a false pass ships a defect.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibration.errors import CalibrationError

Floats = NDArray[np.float64]


class Costs(NamedTuple):
    """What one part costs, in any one currency, when it escapes, is rejected though good, or is looked at.

    ``review`` is None where nobody looks; ``defective`` is the share of defective parts on the line, which no folder
    of images tells.
    """

    escape: float
    false_reject: float
    review: float | None
    defective: float


class Limits(NamedTuple):
    """Parts above ``reject`` are rejected, above ``review`` looked at; None: no review band."""

    reject: float
    review: float | None


class Sides(NamedTuple):
    """Scores of good images with their weights, which sum to 1, and of defective ones, all of equal weight."""

    good: Floats
    weights: Floats
    defects: Floats

    def candidates(self) -> Floats:
        """One limit for each way to cut the scores, ascending; under the first everything is flagged."""
        values = np.unique(np.concatenate([self.good, self.defects]))
        return np.concatenate([[np.nextafter(values[0], -np.inf)], values])

    def good_above(self, limits: Floats) -> Floats:
        order = np.argsort(self.good)
        under = np.concatenate([[0.0], np.cumsum(self.weights[order])])
        return np.asarray(1 - under[np.searchsorted(self.good[order], limits, "right")])

    def defects_above(self, limits: Floats) -> Floats:
        return np.asarray(1 - np.searchsorted(np.sort(self.defects), limits, "right") / len(self.defects))


def costs_from(
    escape: float | None,
    false_reject: float | None,
    review_minute: float | None,
    review_minutes: float,
    defective: float | None,
) -> Costs | None:
    """The costs asked for, a look of ``review_minutes`` at ``review_minute`` each; None where there are none.

    Raises CalibrationError where some are missing.
    """
    named = {"--cost-escape": escape, "--cost-false-reject": false_reject, "--defect-rate": defective}
    if review_minute is None and all(value is None for value in named.values()):
        return None
    if escape is None or false_reject is None or defective is None:
        missing = ", ".join(name for name, value in named.items() if value is None)
        raise CalibrationError(
            f"costs need {', '.join(named)} together; {missing} is missing. The share of defective parts on the line "
            "has to be stated, since the mix of a folder is not the line's"
        )
    return Costs(escape, false_reject, None if review_minute is None else review_minute * review_minutes, defective)


def check(costs: Costs) -> None:
    """Raise CalibrationError where costs contradict each other or the share of defective parts is no share."""
    if min(costs.escape, costs.false_reject) <= 0 or (costs.review is not None and costs.review <= 0):
        raise CalibrationError("--cost-escape, --cost-false-reject and the cost of a review must be above 0")
    if not 0 < costs.defective < 1:
        raise CalibrationError(f"--defect-rate must lie between 0 and 1, found {costs.defective:g}")
    if costs.review is not None and costs.review / costs.escape + costs.review / costs.false_reject >= 1:
        raise CalibrationError(
            f"looking at a part costs {costs.review:g}; beside {costs.escape:g} for an escape and "
            f"{costs.false_reject:g} for a false reject that never pays, so that nothing would go to review. "
            "Leave out --cost-review-minute, or correct the costs"
        )


def best_f1(sides: Sides) -> float:
    """The limit with the highest F1 of "defective" among the given images; their mix decides, not the line's."""
    limits = sides.candidates()
    hits = sides.defects_above(limits) * len(sides.defects)
    false = sides.good_above(limits) * len(sides.good)
    return float(limits[_first_best(2 * hits / (hits + false + len(sides.defects)))])


def cheapest(sides: Sides, costs: Costs) -> Limits:
    """The limits with the lowest cost a part.

    An inspector is taken to be right, and a defective part that is rejected or looked at to cost no escape.
    """
    limits, at_review, at_reject = _shares(sides, costs)
    if costs.review is None:
        return Limits(float(limits[_first_best(-(at_review + at_reject))]), None)
    # The cost is a sum over the two limits: for each reject limit the best review limit at or under it.
    last = _first_best(-(at_reject + np.minimum.accumulate(at_review)))
    reject, review = float(limits[last]), float(limits[_first_best(-at_review[: last + 1])])
    return Limits(reject, review if review < reject else None)


def cheapest_review(sides: Sides, costs: Costs, reject: float) -> float | None:
    """The review limit under a given reject limit that has the lowest cost a part; None where no look pays."""
    limits = sides.candidates()
    limits = np.append(limits[limits < reject], reject)
    review = float(limits[_first_best(-_costs_at(sides, costs, limits)[0])])
    return review if review < reject else None


def _shares(sides: Sides, costs: Costs) -> tuple[Floats, Floats, Floats]:
    """Candidate limits, and what a part costs for each as review limit and as reject limit; the two add up."""
    limits = sides.candidates()
    return limits, *_costs_at(sides, costs, limits)


def _costs_at(sides: Sides, costs: Costs, limits: Floats) -> tuple[Floats, Floats]:
    good, bad = sides.good_above(limits), sides.defects_above(limits)
    looked_at = (costs.review or 0.0) * ((1 - costs.defective) * good + costs.defective * bad)
    escapes = costs.defective * costs.escape * (1 - bad)
    rejects = (1 - costs.defective) * costs.false_reject * good
    return escapes + looked_at, rejects - looked_at


def _first_best(worth: Floats) -> int:
    """First index of the highest value, give or take rounding."""
    return int(np.argmax(worth >= worth.max() - 1e-12 * max(1.0, float(np.abs(worth).max()))))
