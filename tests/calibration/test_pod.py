"""a90/95 from hits and misses: a known curve is found, the bound holds as often as it says, nothing is made up."""

from __future__ import annotations

import math

import numpy as np
import pytest

from calibration.errors import CalibrationError
from calibration.pod import LEAST_DEFECTS, fit

LOGIT_90 = math.log(9.0)


def drawn(
    random: np.random.Generator, count: int, a90: float = 10.0, slope: float = 4.0
) -> tuple[list[float], list[bool]]:
    sizes = np.exp(random.uniform(math.log(2.0), math.log(40.0), count))
    chance = 1 / (1 + np.exp(-(LOGIT_90 + slope * np.log(sizes / a90))))
    return sizes.tolist(), (random.random(count) < chance).tolist()


def test_a_known_curve_is_found() -> None:
    pod = fit(*drawn(np.random.default_rng(1), 20_000))
    assert pod.a90 == pytest.approx(10.0, rel=0.03)
    assert pod.a50 == pytest.approx(10.0 * math.exp(-LOGIT_90 / 4.0), rel=0.03)
    assert pod.a90_95 is not None
    assert pod.a90 < pod.a90_95 < 10.5
    assert pod.at(pod.a90) == pytest.approx(0.9, abs=1e-6)
    assert sum(each.detected.total for each in pod.bins) == 20_000


@pytest.mark.parametrize("a90", [3.0, 10.0])
def test_the_bound_lies_above_the_truth_in_95_of_100_cases(a90: float) -> None:
    random = np.random.default_rng(2)
    above = sum((fit(*drawn(random, 80, a90)).a90_95 or math.inf) >= a90 for _ in range(40))
    assert above >= 34  # 38 expected; three standard deviations of a binomial


def hard_in_some_places(size: float) -> float:
    """Rate of a defect that is easy to see in 85 % of places and needs four times the size in the others."""
    return sum(share / (1 + (middle / size) ** 5) for share, middle in ((0.85, 3.0), (0.15, 12.0)))


def test_the_bound_holds_where_the_curve_has_a_kink() -> None:
    """The straight line of log-odds nearest to this curve comes to 90 % at 8.3 instead of 10.5."""
    random, true_a90 = np.random.default_rng(4), 10.55
    assert hard_in_some_places(true_a90) == pytest.approx(0.9, abs=0.001)
    stated = []
    for _ in range(40):
        sizes = np.exp(random.uniform(math.log(2.0), math.log(48.0), 1000))
        hits = random.random(1000) < [hard_in_some_places(float(size)) for size in sizes]
        stated.append(fit(sizes.tolist(), hits.tolist()).a90_95 or math.inf)
    assert sum(each >= true_a90 for each in stated) >= 34


def test_the_curve_never_falls() -> None:
    random = np.random.default_rng(5)
    sizes = random.uniform(2.0, 40.0, 120)
    rates = [point.rate for point in fit(sizes.tolist(), (random.random(120) < 0.8).tolist()).curve()]
    assert np.diff(rates).min() > -1e-3


def test_hits_alone_say_that_90_percent_lies_at_the_smallest_sizes_or_below() -> None:
    sizes = np.geomspace(3.0, 30.0, LEAST_DEFECTS + 30)
    pod = fit(sizes.tolist(), [True] * len(sizes))
    assert (pod.a50, pod.a90) == (None, None), "they lie below what was tested"
    assert pod.a90_95 is not None
    assert pod.a90_95 == pytest.approx(sizes[LEAST_DEFECTS - 1]), "0.9^29 < 0.05: so many hits at or under it"


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_where_90_percent_is_not_reached_no_size_is_stated(share: float) -> None:
    random = np.random.default_rng(3)
    sizes = random.uniform(2.0, 40.0, 300)
    pod = fit(sizes.tolist(), (random.random(300) < share).tolist())
    assert (pod.a90, pod.a90_95) == (None, None)


def test_a_step_has_its_size_between_the_last_miss_and_the_first_hit() -> None:
    sizes = np.geomspace(1.0, 16.0, 161)
    pod = fit(sizes.tolist(), (sizes > 4.0).tolist())
    assert pod.a90 is not None
    assert pod.a90_95 is not None
    assert 3.9 < pod.a90 < 4.0 * 1.06, "knots are 5 % apart"
    assert pod.a90 < pod.a90_95 < 4.5


def test_detection_that_falls_with_size_reaches_nothing() -> None:
    sizes = np.geomspace(1.0, 16.0, 200)
    pod = fit(sizes.tolist(), (sizes < 4.0).tolist())
    assert (pod.a90, pod.a90_95) == (None, None)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ([2.0 + i for i in range(LEAST_DEFECTS - 1)], f"at least {LEAST_DEFECTS} defects.*there are 28"),
        ([5.0 + 0.01 * i for i in range(60)], "nearly of one size"),
        ([float(i) for i in range(60)], "above 0"),
        ([math.nan] + [float(i + 1) for i in range(60)], "finite"),
    ],
)
def test_what_cannot_carry_a_curve_is_refused(sizes: list[float], words: str) -> None:
    with pytest.raises(CalibrationError, match=words):
        fit(sizes, [True] * len(sizes))


def test_equal_sizes_stay_in_one_bin() -> None:
    sizes = [2.0] * 50 + [4.0] * 50 + [8.0] * 50
    bins = fit(sizes, [False] * 50 + [True, False] * 25 + [True] * 50).bins
    assert [(each.low, each.high) for each in bins] == [(2.0, 2.0), (4.0, 4.0), (8.0, 8.0)]
    assert [each.detected.hits for each in bins] == [0, 25, 50]
