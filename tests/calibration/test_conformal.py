"""The threshold rule against its definition, its promise and known quantiles."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from calibration.conformal import beta_quantile, expected_rate, groups_needed, require, threshold
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
