"""The generalised Pareto fit against scipy's likelihood and known quantiles, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from calibration.errors import CalibrationError
from calibration.tails import LOWEST_SHAPE, fit_pareto, pot_threshold


@pytest.mark.parametrize("shape", [-0.3, 0.0, 0.2, 0.6])
@pytest.mark.parametrize("count", [20, 50, 500])
def test_likelihood_is_no_lower_than_scipys(shape: float, count: int) -> None:
    excess = stats.genpareto.rvs(shape, scale=2.0, size=count, random_state=np.random.default_rng(count))
    found = fit_pareto(excess)
    other, _, scale = stats.genpareto.fit(excess, floc=0)
    if other >= LOWEST_SHAPE:
        ours = stats.genpareto.logpdf(excess, found.shape, scale=found.scale).sum()
        assert ours >= stats.genpareto.logpdf(excess, other, scale=scale).sum() - 1e-6
    else:
        assert found.shape == pytest.approx(LOWEST_SHAPE, abs=0.01)


def test_fit_does_not_depend_on_the_unit() -> None:
    excess = np.random.default_rng(4).exponential(size=60)
    one, thousand = fit_pareto(excess), fit_pareto(1000 * excess)
    assert thousand.shape == pytest.approx(one.shape, abs=1e-6)
    assert thousand.scale == pytest.approx(1000 * one.scale, rel=1e-6)


@pytest.mark.parametrize("law", [stats.expon(), stats.norm(), stats.t(5), stats.uniform()])
def test_quantiles_of_known_laws(law: stats.rv_continuous) -> None:
    rng = np.random.default_rng(8)
    realised = [law.sf(pot_threshold(np.sort(law.rvs(300, random_state=rng)), 0.01)) for _ in range(60)]
    assert 0.006 < np.mean(realised) < 0.016


@pytest.mark.parametrize(
    ("tops", "rate", "reason"),
    [
        (np.arange(39.0), 0.01, "at least 40 held-out good parts"),
        (np.sort(np.arange(100) % 4).astype(float), 0.01, "different scores lie in the tail"),
        (np.arange(400.0), 0.2, "does not lie in the tail"),
    ],
)
def test_refused(tops: np.ndarray, rate: float, reason: str) -> None:
    with pytest.raises(CalibrationError, match=reason):
        pot_threshold(tops, rate)
