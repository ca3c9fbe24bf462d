"""Peaks over threshold: the tail of good parts' scores as a generalised Pareto distribution (a limit for comparison).

The form is Siffer et al., "Anomaly Detection in Streams with Extreme Value Theory" (KDD 2017), its initialisation
alone: z_q = t + (sigma / gamma) * ((q * n / N_t) ** -gamma - 1). A limit far out in the tail can be had from few
parts, at the price of believing in the shape of the tail; nothing is promised.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibration.errors import CalibrationError

Floats = NDArray[np.float64]

PEAKS = 20  # fewer leave the shape of the tail open
LEVEL = 0.9  # where there are enough parts; 0.98, usual for streams of thousands, would leave 6 peaks of 300 parts
FEWEST_DISTINCT = 10
LOWEST_SHAPE = -0.5  # below it the likelihood has no regular maximum (R. L. Smith, Biometrika 72, 1985)
GRID = 400


class Pareto(NamedTuple):
    """Shape gamma and scale sigma of P(excess > y) = (1 + gamma * y / sigma) ** (-1 / gamma)."""

    shape: float
    scale: float


def pot_threshold(tops: Floats, rate: float) -> float:
    """The score that a share ``rate`` of good parts exceeds if their tail is generalised Pareto.

    ``tops`` is the highest score of each held-out part, ascending. Raises CalibrationError where there are too few
    parts or too many equal scores, or where ``rate`` does not lie in the tail.
    """
    if len(tops) < 2 * PEAKS:
        raise CalibrationError(
            f"peaks over threshold need at least {2 * PEAKS} held-out good parts, the upper half of them as peaks; "
            f"there are {len(tops)}. Hold out more parts, or use --method conformal"
        )
    start = float(tops[-1 - max(PEAKS, round((1 - LEVEL) * len(tops)))])
    excess = tops[tops > start] - start
    if len(np.unique(excess)) < FEWEST_DISTINCT:
        raise CalibrationError(
            f"only {len(np.unique(excess))} different scores lie in the tail of the held-out parts, at least "
            f"{FEWEST_DISTINCT} are needed for its shape: use --method conformal, which ties do not disturb"
        )
    share = len(excess) / len(tops)
    if rate >= share:
        raise CalibrationError(
            f"a rate of {rate:g} does not lie in the tail, which is the highest {share:.3g} of the held-out parts: "
            "peaks over threshold are for smaller rates; use --method conformal or percentile"
        )
    shape, scale = fit_pareto(excess)
    odds = rate / share
    return start + (-scale * math.log(odds) if abs(shape) < 1e-9 else scale / shape * (odds**-shape - 1))


def fit_pareto(excess: Floats) -> Pareto:
    """Maximum likelihood, over shapes of at least LOWEST_SHAPE, for excesses above 0.

    With u = gamma / sigma the best gamma is the mean of log(1 + u * y), so that one parameter is left to search
    (S. D. Grimshaw, Technometrics 35, 1993): on a grid, then ever finer around its best point.
    """
    mean = float(excess.mean())
    scaled = excess / mean
    largest = float(scaled.max())
    upper = 2 * (1 - float(scaled.min())) / float(scaled.min()) ** 2 + 1
    grid = np.concatenate([-np.linspace(1 - 1e-9, 0, GRID) / largest, np.geomspace(1e-6, upper, GRID)])
    for _ in range(6):
        likelihood = _likelihood(grid, scaled)
        best = int(np.argmax(likelihood))
        grid = np.linspace(grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)], GRID)
    u = float(grid[int(np.argmax(_likelihood(grid, scaled)))])
    shape = float(np.log1p(u * scaled).mean())
    return Pareto(shape, mean * (shape / u if abs(u) > 1e-9 else 1.0))


def _likelihood(u: Floats, scaled: Floats) -> Floats:
    """Mean log likelihood at each ``u`` with its best shape, of excesses with mean 1; minus infinity where refused."""
    shape = np.log1p(np.multiply.outer(u, scaled)).mean(axis=1)
    flat = np.abs(u) < 1e-9
    scale = np.where(flat, 1.0, shape / np.where(flat, 1.0, u))
    return np.where(shape < LOWEST_SHAPE, -np.inf, -np.log(scale) - shape - 1)
