"""Figures of the benchmarks of a90/95: the truth from rates around it, coverage from experiments drawn by chance."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.bounds import CURVES, LIMITS, Task, row, true_a90
from benchmarks.capability import ABOVE, BELOW, GRID, where_90


def test_the_truth_is_where_the_rates_come_to_90_percent() -> None:
    sizes = np.geomspace(10 / BELOW, 10 * ABOVE, GRID)
    hits = [round(4000 / (1 + (5.8 / size) ** 4)) for size in sizes]
    assert where_90(sizes.tolist(), hits, [4000] * GRID) == pytest.approx(5.8 * 9**0.25, rel=0.01)
    assert where_90(sizes.tolist(), [3990] * GRID, [4000] * GRID) is None, "all of them lie above"


@pytest.mark.parametrize("curve", CURVES)
def test_every_curve_rises_through_90_percent_within_the_range(curve: str) -> None:
    x = np.linspace(math.log(LIMITS[0]), math.log(LIMITS[1]), 500)
    assert np.diff(CURVES[curve](x)).min() >= 0
    assert LIMITS[0] < true_a90(CURVES[curve]) < 0.5 * LIMITS[1]


def test_coverage_counts_what_is_stated_above_the_truth() -> None:
    found = row(Task("logit, slope 4", "staged", 200, 12))
    assert found["coverage_of"] == 12 and found["coverage_hits"] >= 9
    assert 0 < found["excess_median"] < 1 and 0 <= found["near"] <= 1
