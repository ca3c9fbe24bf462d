"""Sizes of implants in stages: as many as asked for, within the range, most of them where a90 lies."""

from __future__ import annotations

import math

import numpy as np
import pytest

from calibration.pod import LEAST_DEFECTS, fit
from calibration.stages import BATCHES, batches, staged

LIMITS = (2.0, 48.0)


def run(
    count: int, detect: dict[str, float] | None = None, hits: bool | None = None, seed: int = 0
) -> list[tuple[float, bool | None]]:
    random = np.random.default_rng([1, seed])
    seen: list[tuple[float, bool | None]] = []

    def one(size: float) -> bool | None:
        hit = hits
        if detect is not None:
            hit = bool(random.random() < 1 / (1 + (detect["middle"] / size) ** detect["slope"]))
        seen.append((size, hit))
        return hit

    staged(count, LIMITS, np.random.default_rng([2, seed]), one)
    return seen


@pytest.mark.parametrize("count", [LEAST_DEFECTS, 31, 60, 200, 2000])
def test_as_many_as_asked_for(count: int) -> None:
    assert sum(batches(count)) == count and min(batches(count)) > 0 and len(batches(count)) <= BATCHES + 1
    sizes = [size for size, _ in run(count, {"middle": 6.0, "slope": 4.0})]
    assert len(sizes) == count
    assert LIMITS[0] <= min(sizes) and max(sizes) <= LIMITS[1]


def test_most_lie_around_a90() -> None:
    seen = run(1000, {"middle": 6.0, "slope": 4.0})
    a90 = 6.0 * 9 ** (1 / 4.0)
    assert sum(a90 / 1.35 < size < a90 * 1.35 for size, _ in seen) > 750
    assert min(size for size, _ in seen) < 2.1 and max(size for size, _ in seen) > 46, "the first go over the range"


def test_the_bound_lies_nearer_than_from_sizes_spread_evenly() -> None:
    def excess(sizes: list[float], hits: list[bool]) -> float:
        return (fit(sizes, hits).a90_95 or math.inf) / (6.0 * 9 ** (1 / 4.0))

    stages, evenly = [], []
    for seed in range(9):
        seen = run(1000, {"middle": 6.0, "slope": 4.0}, seed=seed)
        stages.append(excess([size for size, _ in seen], [bool(hit) for _, hit in seen]))
        random = np.random.default_rng(100 + seed)
        even = np.exp(random.uniform(*np.log(LIMITS), 1000))
        evenly.append(excess(even.tolist(), (random.random(1000) < 1 / (1 + (6.0 / even) ** 4)).tolist()))
    assert 1.0 < np.median(stages) < np.median(evenly)


@pytest.mark.parametrize(("hits", "near"), [(False, LIMITS[1]), (True, LIMITS[0])])
def test_where_none_or_all_are_found_the_rest_go_to_the_end_of_the_range(hits: bool, near: float) -> None:
    later = [size for size, _ in run(200, hits=hits)[40:]]
    assert all(near / 1.4 <= size <= near * 1.4 for size in later)


def test_without_verdicts_the_whole_range_is_tried_again() -> None:
    seen = run(200, hits=None)
    assert len(seen) == 200
    assert max(size for size, _ in seen[-20:]) / min(size for size, _ in seen[-20:]) > 10
