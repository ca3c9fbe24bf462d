"""Do thresholds keep their promise? Thousands of calibrations by the rules of ``flawline calibrate thresholds``.

    python -m benchmarks.coverage --json benchmarks/results/coverage.json
    python -m benchmarks.coverage --json FILE --trials 500

Each trial draws held-out parts of a known law, lets the product find the limit, and takes the false-reject rate of that
limit from the law itself, so that a rate has no sampling error within a trial. Ends with 1 where a promise is broken.

A row: ``method``, ``case`` (continuous, ties, groups, learner), held-out parts ``n``, ``target`` rate, ``trials``,
``false_reject_mean`` over trials with its ``standard_error``, ``violation_rate`` (share of trials whose rate exceeds
the X lies in the 90 % interval that the report states), ``kept`` (whether
the promise holds within three standard errors, null where none is made). ``learner`` rows learn from the same parts: a
network is the mean of 5-dimensional parts, a score the distance from it, and n counts all parts.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import ncx2

from benchmarks.common import machine, parser, write
from calibration.conformal import groups_needed, pac_groups_needed
from calibration.methods import METHODS, Choice, Rates, Scores, find_limits, rate_to_expect

Floats = NDArray[np.float64]
Names = NDArray[np.str_]

PARTS = (30, 100, 300)
TARGETS = (0.05, 0.1)
TRIALS = 5000
DELTA = 0.05
STEP = 0.25
MOST_IMAGES = 6
DIMENSIONS, NETWORKS = 20, 5
ERRORS = 3.0


class Case(NamedTuple):
    """A law of scores: ``draw`` gives scores and parts of n held-out parts, ``rate`` what exceeds each of the limits.

    ``rate(limits, of_parts)``: the share of images, or of parts with any image above.
    """

    draw: Callable[[np.random.Generator, int], tuple[Floats, Names]]
    rate: Callable[[Floats, bool], Floats]


def lognormal_above(limits: Floats) -> Floats:
    return np.asarray(ndtr(-2 * np.log(np.maximum(limits, 1e-300))))


def draw_continuous(rng: np.random.Generator, parts: int) -> tuple[Floats, Names]:
    return np.exp(rng.normal(0, 0.5, parts)), np.arange(parts).astype(str)


def draw_ties(rng: np.random.Generator, parts: int) -> tuple[Floats, Names]:
    scores, groups = draw_continuous(rng, parts)
    return STEP * np.round(scores / STEP), groups


def draw_groups(rng: np.random.Generator, parts: int) -> tuple[Floats, Names]:
    """One to six images of a part; parts of more images score higher, so that images must not be counted alike."""
    images = rng.integers(1, MOST_IMAGES + 1, parts)
    level = rng.normal(0, 0.5, parts) + 0.1 * images
    part = np.repeat(np.arange(parts), images)
    return np.exp(level[part] + rng.normal(0, 0.25, len(part))), np.arange(parts).astype(str)[part]


def groups_above(limits: Floats, of_parts: bool) -> Floats:
    """The law of ``draw_groups``: over the level of a part by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    total = np.zeros(len(limits))
    for images in range(1, MOST_IMAGES + 1):
        level = 0.5 * nodes + 0.1 * images
        above = ndtr((level - np.log(np.maximum(limits, 1e-300))[:, None]) / 0.25)
        total += (1 - (1 - above) ** images if of_parts else above) @ weights
    return total / (MOST_IMAGES * weights.sum())


CASES = {
    "continuous": Case(draw_continuous, lambda limits, _: lognormal_above(limits)),
    "ties": Case(draw_ties, lambda limits, _: lognormal_above(STEP * np.floor(limits / STEP + 1e-9) + STEP / 2)),
    "groups": Case(draw_groups, groups_above),
}


def rows(trials: int) -> Iterator[dict[str, Any]]:
    """All rows, as they are found; a method is left out where it refuses the number of parts."""
    for method in ("conformal", "pac", "percentile", "sigma", "pot"):
        for case in CASES:
            for parts in PARTS:
                for target in targets(method, case, parts):
                    yield measure(method, case, parts, target, trials)
    for method in ("cross", "learnt-from"):
        for parts in PARTS:
            yield learner(method, parts, TARGETS[0], trials)


def targets(method: str, case: str, parts: int) -> list[float]:
    """The rates that ``parts`` held-out parts can carry by ``method``; a tail needs 40 parts, and no ties."""
    if method == "sigma":
        return [0.00135]  # what 3 sigma are said to be
    if method == "percentile":
        return [TARGETS[0]]
    if method == "pot":
        return [TARGETS[0]] if parts >= 100 and case != "ties" else []
    needed = {"conformal": groups_needed, "pac": lambda rate: pac_groups_needed(rate, DELTA)}.get(method)
    return [target for target in TARGETS if needed is None or parts >= needed(target)]


def measure(method: str, case: str, parts: int, target: float, trials: int) -> dict[str, Any]:
    """One row: the product's own rule on ``trials`` draws, the same draws for every method."""
    law = CASES[case]
    rng = np.random.default_rng([parts, list(CASES).index(case)])
    choice = Choice(method, confidence=1 - DELTA)
    rates = Rates(target if METHODS[method].rated else None)
    limits, stated = np.empty(trials), np.empty((trials, 2))
    for trial in range(trials):
        values, groups = law.draw(rng, parts)
        scores = Scores(values, groups)
        limits[trial] = find_limits(scores, rates, choice).reject
        # Where the interval follows from n alone it is the same in every trial.
        fixed = METHODS[method].promise is not None and trial > 0
        stated[trial] = stated[0] if fixed else rate_to_expect(scores, rates, choice, float(limits[trial]))
    return row(method, case, parts, target, law.rate(limits, method == "pac"), stated)


def learner(method: str, parts: int, target: float, trials: int) -> dict[str, Any]:
    """``cross``: five networks, each with a fifth of the parts held out. ``learnt-from``: calibrated on what it learnt.

    The second is what nobody should do, by conformal's own rule: held out is not a formality.
    """
    rng = np.random.default_rng([parts, len(CASES)])
    names = np.arange(parts).astype(str)
    limits, offsets, stated = np.empty(trials), np.empty(trials), np.empty((trials, 2))
    for trial in range(trials):
        seen = rng.normal(size=(parts, DIMENSIONS))
        if method == "cross":
            fold_of = np.arange(parts) % NETWORKS
            networks = [seen[fold_of != fold].mean(0) for fold in range(NETWORKS)]
            scored = [_distances(seen[fold_of == fold], networks[fold]) for fold in range(NETWORKS)]
            held = [names[fold_of == fold].tolist() for fold in range(NETWORKS)]
            more = (list(chain.from_iterable(of_folds[1:])) for of_folds in (scored, held))
            scores, choice, network = Scores(scored[0], held[0], (), *more), Choice("cross"), networks[0]
        else:
            network, choice = seen.mean(0), Choice()
            scores = Scores(_distances(seen, network), names.tolist())
        limits[trial], offsets[trial] = find_limits(scores, Rates(target), choice).reject, (network**2).sum()
        stated[trial] = rate_to_expect(scores, Rates(target), choice, float(limits[trial]))
    return row(method, "learner", parts, target, ncx2.sf(limits, DIMENSIONS, offsets), stated)


def _distances(parts: Floats, network: Floats) -> list[float]:
    return [float(value) for value in ((parts - network) ** 2).sum(axis=1)]


def row(method: str, case: str, parts: int, target: float, rates: Floats, stated: Floats) -> dict[str, Any]:
    mean, error = float(rates.mean()), float(rates.std(ddof=1) / math.sqrt(len(rates)))
    violations = float((rates > target + 1e-9).mean())
    kept = None
    if method == "conformal":
        kept = mean <= target + ERRORS * error
    elif method == "pac":
        kept = violations <= DELTA + ERRORS * math.sqrt(DELTA * (1 - DELTA) / len(rates))
    return {
        "method": method,
        "case": case,
        "n": parts,
        "target": target,
        "trials": len(rates),
        "false_reject_mean": mean,
        "standard_error": error,
        "violation_rate": violations,
        "below_interval": float((rates < stated[:, 0]).mean()),
        "above_interval": float((rates > stated[:, 1]).mean()),
        "kept": kept,
    }


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--trials", type=int, default=TRIALS)
    arguments = made.parse_args()
    before = machine()
    found = list(rows(arguments.trials))
    write(arguments.json, {"delta": DELTA, "rows": found}, before)
    broken = [entry for entry in found if entry["kept"] is False]
    for entry in broken:
        sys.stderr.write(f"promise broken: {entry}\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
