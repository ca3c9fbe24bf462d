"""Limits from defective parts, against a search through all pairs of limits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from calibration.costs import Costs, Sides, best_f1, cheapest, cheapest_review, check, costs_from
from calibration.errors import CalibrationError


def draw(seed: int, ties: bool) -> Sides:
    rng = np.random.default_rng(seed)
    good, bad = rng.normal(0, 1, 25), rng.normal(1.5, 1, 12)
    weights = rng.uniform(0.5, 2, 25)
    if ties:
        good, bad = good.round(), bad.round()
    return Sides(good, weights / weights.sum(), bad)


def cost(sides: Sides, costs: Costs, review: float, reject: float) -> float:
    """By definition: what a part costs when it passes, is looked at and is rejected."""
    good = np.where(sides.good > reject, costs.false_reject, np.where(sides.good > review, costs.review or 0, 0))
    bad = np.where(sides.defects > reject, 0, np.where(sides.defects > review, costs.review or 0, costs.escape))
    return float((1 - costs.defective) * (sides.weights * good).sum() + costs.defective * bad.mean())


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_no_pair_of_limits_is_cheaper(seed: int, ties: bool) -> None:
    sides = draw(seed, ties)
    limits = sides.candidates().tolist()
    for costs in (Costs(50, 5, 1, 0.05), Costs(8, 7, 3, 0.3), Costs(400, 1, 0.5, 0.01), Costs(3, 30, None, 0.2)):
        found = cheapest(sides, costs)
        pairs = [(low, high) for low, high in itertools.product(limits, limits) if low <= high]
        if costs.review is None:
            pairs = [(limit, limit) for limit in limits]
        best = min(cost(sides, costs, *pair) for pair in pairs)
        review = found.reject if found.review is None else found.review
        assert cost(sides, costs, review, found.reject) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_review_under_a_given_limit(seed: int) -> None:
    sides, costs, reject = draw(seed, seed % 2 == 0), Costs(50, 5, 1, 0.05), 1.7
    found = cheapest_review(sides, costs, reject)
    limits = [limit for limit in [*sides.candidates().tolist(), reject] if limit <= reject]
    best = min(cost(sides, costs, limit, reject) for limit in limits)
    assert cost(sides, costs, reject if found is None else found, reject) == pytest.approx(best, abs=1e-12)
    assert found is None or found < reject


def test_f1_by_its_definition() -> None:
    for seed in range(8):
        rng = np.random.default_rng(seed)
        good, bad = rng.normal(0, 1, 30).round(1), rng.normal(1.5, 1, 12).round(1)
        sides = Sides(good, np.full(30, 1 / 30), bad)

        def f1(limit: float, good: np.ndarray = good, bad: np.ndarray = bad) -> float:
            return 2 * (bad > limit).sum() / ((bad > limit).sum() + (good > limit).sum() + len(bad))

        limits = sides.candidates()
        assert f1(best_f1(sides)) == pytest.approx(max(f1(limit) for limit in limits))


def test_among_equals_the_lowest_limit() -> None:
    sides = Sides(np.array([1.0, 2.0]), np.array([0.5, 0.5]), np.array([5.0, 6.0]))
    assert best_f1(sides) == 2.0
    assert cheapest(sides, Costs(10, 1, None, 0.1)) == (2.0, None)


@pytest.mark.parametrize(
    ("costs", "reason"),
    [
        (Costs(0, 1, None, 0.1), "above 0"),
        (Costs(10, 1, None, 0.0), "--defect-rate must lie between 0 and 1"),
        (Costs(10, 1, 2, 0.1), "that never pays"),
        (Costs(2, 2, 1, 0.1), "that never pays"),
    ],
)
def test_costs_that_make_no_sense(costs: Costs, reason: str) -> None:
    with pytest.raises(CalibrationError, match=reason):
        check(costs)


def test_costs_come_together() -> None:
    assert costs_from(None, None, None, 1.0, None) is None
    assert costs_from(100, 5, 0.5, 2.0, 0.01) == Costs(100, 5, 1.0, 0.01)
    with pytest.raises(CalibrationError, match="--defect-rate is missing"):
        costs_from(100, 5, None, 1.0, None)
