"""Weighted conformal limits: they keep the rate where an unweighted quantile of what was looked at is far off."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from calibration import conformal, weighted
from calibration.errors import CalibrationError

PRODUCED, FLAGGED, SHARE = 4000, 0.10, 0.05
LIMIT = math.exp(1.2815515655446004)  # a tenth of lognormal scores lie above
TRIALS = 300


def true_rate(limit: float) -> float:
    return 0.5 * math.erfc(math.log(limit) / math.sqrt(2))


def looked_at(rng: np.random.Generator) -> weighted.Sample:
    """Of 4000 good parts those above the old limit, and one in twenty of the others."""
    scores = rng.lognormal(size=PRODUCED)
    flagged = scores > LIMIT
    seen = flagged | (rng.random(PRODUCED) < SHARE)
    return weighted.sample(scores[seen], np.where(flagged, 1.0, 1 / SHARE)[seen], LIMIT)


@pytest.fixture
def fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weighted, "DRAWS", 4000)


@pytest.mark.usefixtures("fewer_draws")
@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1, 0.15])
def test_rate_is_kept_above_and_below_the_old_limit(alpha: float) -> None:
    rng = np.random.default_rng(11)
    rates, unweighted, within = [], [], 0
    for _ in range(TRIALS):
        good = looked_at(rng)
        limit = weighted.threshold(good, alpha)
        low, high = weighted.expected_rate(good, limit)
        rates.append(true_rate(limit))
        within += low <= rates[-1] <= high
        unweighted.append(true_rate(float(np.quantile(good.scores, 1 - alpha))))
    error = np.std(rates) / math.sqrt(TRIALS)
    assert np.mean(rates) <= alpha + 3 * error
    assert np.mean(rates) >= 0.94 * alpha  # and not by rejecting next to nothing
    assert 0.84 <= within / TRIALS <= 0.96  # a 90 % interval, give or take three standard errors
    assert np.mean(unweighted) < 0.2 * alpha  # what ignoring the weights would do


def test_with_equal_weights_it_is_split_conformal() -> None:
    scores = np.random.default_rng(3).normal(size=101)
    parts = [str(number) for number in range(101)]
    for certain in (-math.inf, math.inf):
        good = weighted.sample(scores, np.ones(101), certain)
        for alpha in (0.02, 0.05, 0.1, 0.5):
            limit = weighted.threshold(good, alpha)
            assert limit == conformal.threshold(scores.tolist(), parts, alpha)
            expected = conformal.expected_rate(101, alpha)
            assert weighted.expected_rate(good, limit) == pytest.approx(expected, abs=0.004)


def test_interval_of_any_limit_is_that_of_a_binomial() -> None:
    scores = np.sort(np.random.default_rng(3).normal(size=100))
    good = weighted.sample(scores, np.ones(100), math.inf)
    between = float(scores[89] + scores[90]) / 2
    wanted = conformal.rate_at(scores.tolist(), [str(number) for number in range(100)], between)
    assert weighted.expected_rate(good, between) == pytest.approx(wanted, abs=0.004)
    low, high = weighted.expected_rate(good, float(scores[-1]) + 1)
    assert low == 0 and high == pytest.approx(1 - 0.05 ** (1 / 100), abs=0.002)
    low, high = weighted.expected_rate(good, float(scores[0]) - 1)
    assert low > 0.9 and high == pytest.approx(1, abs=0.01)


def test_ties_lower_the_rate_never_raise_it() -> None:
    scores = np.repeat([1.0, 2.0, 3.0], [20, 60, 20])
    good = weighted.sample(scores, np.ones(100), math.inf)
    assert weighted.threshold(good, 0.25) == 2.0
    assert weighted.threshold(good, 0.2) == 3.0  # a fifth lies above 2, and the part to come may be one of them
    low, high = weighted.expected_rate(good, 2.0)
    assert low < 0.2 < high


def test_equal_scores_of_unequal_weight_stay_apart_from_their_order() -> None:
    scores, weights = np.array([1.0, 1.0, 2.0, 2.0]), np.array([20.0, 1.0, 1.0, 20.0])
    forwards = weighted.sample(scores, weights, math.inf)
    backwards = weighted.sample(scores[::-1], weights[::-1], math.inf)
    assert weighted.threshold(forwards, 0.4) == weighted.threshold(backwards, 0.4)


def few(audited: int, flagged: int) -> weighted.Sample:
    scores = np.concatenate([np.linspace(0, 1, audited), np.linspace(2, 3, flagged)])
    return weighted.sample(scores, np.repeat([50.0, 1.0], [audited, flagged]), 1.5)


@pytest.mark.parametrize(
    ("good", "alpha", "words"),
    [
        (
            lambda: few(10, 5),
            0.05,
            r"worth at least 19.*worth 10\.1\. Judge about 9 more audited parts, ask for 0\.091",
        ),
        (lambda: few(1, 2), 0.01, r"needs at least 99 good parts; .* stand for 52"),
        (lambda: few(10, 5), 1.0, "between 0 and 1"),
        (lambda: few(10, 5), math.nan, "between 0 and 1"),
    ],
)
def test_too_few_are_refused_with_the_number_needed(
    good: Callable[[], weighted.Sample], alpha: float, words: str
) -> None:
    with pytest.raises(CalibrationError, match=words):
        weighted.threshold(good(), alpha)


def test_a_limit_among_flagged_parts_needs_few_audited_ones() -> None:
    good = few(10, 100)  # 600 good parts, 100 of them flagged
    assert weighted.threshold(good, 0.05) > 2.5
    # 17 % are flagged; for 15 % the limit has to lie among them, and does so without a part from below
    assert 2.0 <= weighted.threshold(good, 0.15) < 2.2


def test_the_limit_stays_where_only_what_passed_could_tell() -> None:
    good = few(30, 100)  # 6.25 % flagged
    # The rate of 7 % is not reached among flagged parts; an audited one that stands for 50 would overshoot it.
    assert weighted.threshold(good, 0.07) == 1.5
    assert weighted.threshold(good, 0.1) == 1.0 or weighted.threshold(good, 0.1) < 1.0


def test_effective_size_is_kish_s() -> None:
    assert few(10, 0).effective_size == pytest.approx(10)
    assert few(10, 500).effective_size == pytest.approx(1000**2 / (10 * 2500 + 500))
