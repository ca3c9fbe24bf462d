"""Shares in time against their own limits (p-chart, Laney's p'), and causes in order (Pareto): for the figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Literal, NamedTuple

RUN = 8
FEW = 10
D2 = 1.128
"""Mean of the range of two values of a standard normal distribution."""


class Point(NamedTuple):
    """A subgroup: hits of n, their share, its limits (None where there are none) and what is marked of it."""

    hits: int
    n: int
    share: float
    low: float | None
    high: float | None
    outside: bool
    run: bool


class Chart(NamedTuple):
    """``sigma_z``: how much more subgroups scatter than chance would have them; ``needed``: from where p' is used."""

    kind: Literal["p", "laney"]
    centre: float | None
    sigma_z: float | None
    needed: float | None
    points: list[Point]


def p_chart(counts: Sequence[tuple[int, int]]) -> Chart:
    """(hits, n) of each subgroup in order -> their chart; subgroups must not be empty.

    Limits are p ± 3 sqrt(p (1 - p) / n), within 0 and 1. Laney's p' (Quality Engineering 14, 2002) multiplies them by
    sigma_z, the mean moving range of z over 1.128, where that is beyond what chance brings at 5 % (its standard error
    is sqrt(0.826 / (k - 1))) and there are at least ten subgroups.
    """
    total = sum(n for _, n in counts)
    if not total:
        return Chart("p", None, None, None, [])
    centre = sum(hits for hits, _ in counts) / total
    sigmas = [math.sqrt(centre * (1 - centre) / n) for _, n in counts]
    sigma_z = (
        None
        if centre in (0.0, 1.0)
        else scatter([(hits / n - centre) / sigma for (hits, n), sigma in zip(counts, sigmas, strict=True)])
    )
    needed = None if len(counts) < FEW else 1 + 1.645 * math.sqrt(0.826 / (len(counts) - 1))
    laney = sigma_z is not None and needed is not None and sigma_z > needed
    widths = [3 * sigma * (sigma_z if laney and sigma_z else 1.0) for sigma in sigmas]
    shares = [hits / n for hits, n in counts]
    runs = in_runs(shares, centre)
    points = []
    for (hits, n), share, width, run in zip(counts, shares, widths, runs, strict=True):
        low, high = max(0.0, centre - width), min(1.0, centre + width)
        points.append(Point(hits, n, share, low, high, not low <= share <= high, run))
    return Chart("laney" if laney else "p", centre, sigma_z, needed, points)


def scatter(z: Sequence[float]) -> float | None:
    """Laney's sigma_z: the mean moving range over 1.128; None of fewer than two values."""
    if len(z) < 2:
        return None
    return sum(abs(b - a) for a, b in pairwise(z)) / (len(z) - 1) / D2


def in_runs(shares: Sequence[float], centre: float) -> list[bool]:
    """Which points belong to at least eight in a row on one side of the centre; one on the centre ends a run."""
    marked = [False] * len(shares)
    begun, side = 0, 0
    for i, share in enumerate([*shares, centre]):
        here = (share > centre) - (share < centre)
        if here != side:
            if side and i - begun >= RUN:
                marked[begun:i] = [True] * (i - begun)
            begun, side = i, here
    return marked


class Cause(NamedTuple):
    """A class of defects, how often, and the share of all that it and those before it make."""

    name: str
    n: int
    cumulative: float


def pareto(counts: Mapping[str, int]) -> list[Cause]:
    """The most frequent first, equal ones by name; what was never counted is left out."""
    order = sorted(((name, n) for name, n in counts.items() if n > 0), key=lambda each: (-each[1], each[0]))
    sums = list(accumulate(n for _, n in order))
    return [Cause(name, n, so_far / sums[-1]) for (name, n), so_far in zip(order, sums, strict=True)]
