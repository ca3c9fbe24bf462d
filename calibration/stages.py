"""Which sizes to implant next: a fifth over the whole range, the rest around what they say of a90 (beside hop 5).

Most defects of a range say little about a90: the small are always missed, the large always found. So each batch lies
around the size of which 90 % are found by all that came before it. Sizes depend on outcomes, the likelihood does not
mind, and how often the bound then holds is simulated with these very stages: benchmarks/bounds.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from calibration.pod import LEAST_DEFECTS, LEVEL, counts_of, likeliest, rises_to

FIRST = 5  # of the defects one in so many over the whole range
BATCHES = 8
AROUND = math.log(1.16)  # of ln a90, on either side
Limits = tuple[float, float]


def staged(
    count: int,
    limits: Limits,
    random: np.random.Generator,
    detect: Callable[[float], bool | None],
    told: Callable[[range], Iterable[int]] = iter,
) -> None:
    """Call ``detect`` for ``count`` sizes within ``limits``: was it detected, or None where it was not inspected.

    ``told`` is handed the numbers of the defects, for a bar of progress.
    """
    numbers = iter(told(range(count)))
    sizes: list[float] = []
    hits: list[bool] = []
    for defects in batches(count):
        low, high = within(np.array(sizes), np.array(hits, np.bool_), limits)
        for part in range(defects):
            next(numbers, None)
            size = low * (high / low) ** ((part + random.random()) / defects)
            hit = detect(size)
            if hit is not None:
                sizes.append(size)
                hits.append(hit)
    next(numbers, None)


def batches(count: int) -> list[int]:
    """How many defects in each batch."""
    first = min(count, max(LEAST_DEFECTS, count // FIRST))
    ends = np.linspace(first, count, BATCHES + 1).astype(int)
    return [first, *(each for each in np.diff(ends).tolist() if each)]


def within(sizes: NDArray[np.float64], hits: NDArray[np.bool_], limits: Limits) -> Limits:
    """The sizes that the next batch should cover, of those within ``limits``: all, until enough is known."""
    low, high = math.log(limits[0]), math.log(limits[1])
    if len(sizes) < LEAST_DEFECTS or high - low <= 2 * AROUND or sizes.min() == sizes.max():
        return limits
    counts = counts_of(sizes, hits)
    curve = likeliest(counts)
    log_a90 = rises_to(counts.knots, curve, LEVEL)
    if log_a90 is None:
        log_a90 = low if curve[-1] >= LEVEL else high
    start = min(max(log_a90 - AROUND, low), high - 2 * AROUND)
    return math.exp(start), math.exp(start + 2 * AROUND)
