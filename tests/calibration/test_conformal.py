"""The threshold rule against its definition, its promise and known quantiles."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from calibration.conformal import (
    beta_quantile,
    expected_rate,
    groups_needed,
    highest,
    level,
    pac_expected_rate,
    pac_groups_needed,
    pac_rank,
    pac_require,
    pac_threshold,
    rate_at,
    require,
    share_above,
    threshold,
)
from calibration.errors import CalibrationError


def test_one_image_a_part_is_split_conformal() -> None:
    rng = np.random.default_rng(0)
    for count, alpha in ((19, 0.05), (40, 0.05), (99, 0.01), (100, 0.1), (9, 0.1), (3, 0.25)):
        scores = rng.normal(size=count)
        rank = int(np.ceil((count + 1) * (1 - alpha) - 1e-9))
        found = threshold(scores.tolist(), [str(i) for i in range(count)], alpha)
        assert found == np.sort(scores)[rank - 1]


def test_images_of_one_part_share_its_weight() -> None:
    # parts a (three images) and b, c, d (one each): each part weighs 1/5, so 0.6 is reached at b's score
    scores, groups = [1.0, 2.0, 3.0, 4.0, 5.0, 9.0], ["a", "a", "a", "b", "c", "d"]
    assert threshold(scores, groups, 0.6) == 4.0
    assert threshold(scores, groups, 0.4) == 5.0
    assert threshold(scores, groups, 0.2) == 9.0


def test_repeating_every_image_changes_nothing() -> None:
    scores = np.random.default_rng(1).normal(size=30).tolist()
    groups = [f"part {i // 2}" for i in range(30)]
    assert threshold(scores * 6, groups * 6, 0.1) == threshold(scores, groups, 0.1)


def test_smallest_score_of_enough_mass() -> None:
    rng = np.random.default_rng(2)
    for _ in range(200):
        groups = rng.integers(0, 12, 60).astype(str).tolist()
        scores = rng.integers(0, 20, 60).astype(float)  # with ties
        alpha = float(rng.uniform(0.1, 0.9))
        count = len(set(groups))
        weights = np.array([1 / (groups.count(group) * (count + 1)) for group in groups])
        reached = [t for t in np.unique(scores) if weights[scores <= t].sum() >= 1 - alpha - 1e-9]
        assert threshold(scores.tolist(), groups, alpha) == reached[0]


def test_promise_holds_on_average() -> None:
    rng = np.random.default_rng(3)
    above = []
    for _ in range(400):
        level = rng.normal(size=26)
        scores = (level[:, None] + 0.3 * rng.normal(size=(26, 4))).ravel()
        groups = np.repeat(np.arange(26), 4).astype(str)
        limit = threshold(scores[:100].tolist(), groups[:100].tolist(), 0.1)
        above.append((scores[100:] > limit).mean())
    assert 0.07 < np.mean(above) <= 0.1 + 0.02


@pytest.mark.parametrize(("alpha", "needed"), [(0.05, 19), (0.01, 99), (0.1, 9), (0.5, 1), (0.001, 999), (0.03, 33)])
def test_parts_needed(alpha: float, needed: int) -> None:
    assert groups_needed(alpha) == needed
    require(needed, alpha)
    with pytest.raises(CalibrationError, match=rf"needs at least {needed} held-out good parts; there are {needed - 1}"):
        require(needed - 1, alpha)
    scores = np.arange(float(needed))
    assert threshold(scores.tolist(), [str(i) for i in range(needed)], alpha) == scores[-1]


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0, 2.0])
def test_rate_must_be_a_share(alpha: float) -> None:
    with pytest.raises(CalibrationError, match="between 0 and 1"):
        require(100, alpha)


def test_scores_must_be_finite() -> None:
    with pytest.raises(CalibrationError, match=r"1 score\(s\)"):
        threshold([1.0, float("nan")], ["a", "b"], 0.5)


@pytest.mark.parametrize(
    ("q", "a", "b", "expected"),
    [
        (0.05, 1, 1, 0.05),  # uniform
        (0.5, 3, 3, 0.5),  # symmetric
        (0.95, 1, 19, 1 - 0.05 ** (1 / 19)),  # minimum of 19 uniforms
        (0.05, 20, 1, 0.05 ** (1 / 20)),  # maximum of 20
    ],
)
def test_beta_quantiles(q: float, a: int, b: int, expected: float) -> None:
    assert beta_quantile(q, a, b) == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize(("a", "b"), [(2, 5), (4, 37), (1, 99), (10, 990), (50, 2)])
def test_beta_quantiles_are_scipys(a: int, b: int) -> None:
    for q in (0.001, 0.05, 0.5, 0.95):
        assert beta_quantile(q, a, b) == pytest.approx(float(stats.beta.ppf(q, a, b)), abs=1e-9)


def test_expected_rate_is_what_calibrations_realise() -> None:
    low, high = expected_rate(40, 0.1)
    uniform = np.random.default_rng(5).uniform(size=(20_000, 40))
    uniform.sort(axis=1)
    realised = 1 - uniform[:, int(np.ceil(41 * 0.9)) - 1]
    assert (realised < low).mean() == pytest.approx(0.05, abs=0.01)
    assert (realised > high).mean() == pytest.approx(0.05, abs=0.01)
    with pytest.raises(CalibrationError, match="too few"):
        expected_rate(10, 0.05)


@pytest.mark.parametrize(
    ("alpha", "delta", "needed"), [(0.05, 0.05, 59), (0.01, 0.05, 299), (0.001, 0.05, 2995), (0.1, 0.1, 22)]
)
def test_parts_that_a_confidence_needs(alpha: float, delta: float, needed: int) -> None:
    assert pac_groups_needed(alpha, delta) == needed
    assert pac_rank(needed, alpha, delta) == needed
    with pytest.raises(CalibrationError, match=rf"needs at least {needed} held-out good parts; there are {needed - 1}"):
        pac_require(needed - 1, alpha, delta)


def test_the_rate_that_a_refusal_names_is_carried() -> None:
    with pytest.raises(CalibrationError, match=r"Ask for 0\.096 or more"):
        pac_require(30, 0.05, 0.05)
    pac_require(30, 0.096, 0.05)


@pytest.mark.parametrize("parts", [59, 100, 300, 1000])
@pytest.mark.parametrize("alpha", [0.05, 0.2])
@pytest.mark.parametrize("delta", [0.05, 0.1])
def test_rank_is_the_lowest_that_scipys_binomial_allows(parts: int, alpha: float, delta: float) -> None:
    rank = pac_rank(parts, alpha, delta)
    assert stats.binom.cdf(parts - rank, parts, alpha) <= delta
    assert rank == 1 or stats.binom.cdf(parts - rank + 1, parts, alpha) > delta
    assert stats.beta.sf(alpha, parts + 1 - rank, rank) <= delta
    assert pac_expected_rate(parts, alpha, delta)[1] <= alpha or delta > 0.05


def test_pac_counts_a_part_by_its_highest_score() -> None:
    scores = [5.0, 1.0, 2.0, 3.0, 9.0, 4.0]
    groups = ["b", "a", "a", "b", "c", "c"]
    assert highest(scores, groups).tolist() == [2.0, 5.0, 9.0]
    assert pac_threshold(scores, groups, 0.7, 0.05) == 9.0
    assert pac_threshold(scores, groups, 0.7, 0.3) == 5.0


def test_shares_and_percentiles_weigh_parts() -> None:
    scores, groups = [1.0, 2.0, 3.0, 4.0], ["a", "a", "a", "b"]
    assert share_above(scores, groups, 2.0) == pytest.approx(1 / 6 + 1 / 2)
    assert level(scores, groups, 0.5) == 3.0
    assert level(scores, groups, 0.51) == 4.0
    assert level(scores, groups, 0.0) == 1.0


@pytest.mark.parametrize("above", [0, 1, 5, 40])
def test_rate_of_a_limit_is_clopper_and_pearsons(above: int) -> None:
    found = rate_at([float(i) for i in range(40)], [str(i) for i in range(40)], 39.5 - above)
    exact = stats.binomtest(above, 40).proportion_ci(0.9, "exact")
    assert found == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_rate_of_a_limit_between_images_of_a_part_is_rounded_outwards() -> None:
    scores, groups = [float(i) for i in range(40)], [str(i // 2) for i in range(40)]
    low, high = rate_at(scores, groups, 38.5)  # one image of one part
    assert (low, high) == (0.0, pytest.approx(float(stats.beta.ppf(0.95, 2, 19)), abs=1e-9))
