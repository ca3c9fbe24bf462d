"""How far two people say the same beyond what chance would bring: kappa with an interval (figures of hop 12)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from contract.stats import wilson

CALLS = ("good", "defect")


class Kappa(NamedTuple):
    """Agreement on ``n`` parts: observed and expected by chance, kappa with its 95 % interval.

    All but ``n`` are None where nothing was compared; kappa and its interval also where both said only one thing of
    all parts, for then chance alone explains everything and nothing can be told.
    """

    n: int
    observed: float | None
    expected: float | None
    kappa: float | None
    low: float | None
    high: float | None


def cohen(table: Sequence[Sequence[int]]) -> Kappa:
    """Cohen's kappa (Educational and Psychological Measurement 20, 1960) of a square table of counts.

    Rows are what the one said, columns what the other said of the same parts.
    """
    n = sum(map(sum, table))
    if n == 0:
        return Kappa(0, None, None, None, None, None)
    observed = sum(row[i] for i, row in enumerate(table)) / n
    rows, columns = [sum(row) for row in table], [sum(column) for column in zip(*table, strict=True)]
    return _beyond(n, observed, sum(a * b for a, b in zip(rows, columns, strict=True)), n * n)


def fleiss(pairs: Sequence[tuple[str, str]]) -> Kappa:
    """Fleiss' kappa (Psychological Bulletin 76, 1971) for two opinions on each part, whoever gave them."""
    if not pairs:
        return Kappa(0, None, None, None, None, None)
    said = [call for pair in pairs for call in pair]
    observed = sum(first == second for first, second in pairs) / len(pairs)
    return _beyond(len(pairs), observed, sum(said.count(call) ** 2 for call in set(said)), len(said) ** 2)


def table_of(pairs: Sequence[tuple[str, str]]) -> list[list[int]]:
    """Counts of (one's call, other's call), both in the order of ``CALLS``."""
    return [[pairs.count((first, second)) for second in CALLS] for first in CALLS]


def _beyond(n: int, observed: float, by_chance: int, of: int) -> Kappa:
    """The interval is Wilson's of the observed agreement, chance taken as known: it does not shrink to a point at 1."""
    expected = by_chance / of
    if by_chance == of:
        return Kappa(n, observed, expected, None, None, None)
    low, high = wilson(observed, n)
    return Kappa(n, observed, expected, *((share - expected) / (1 - expected) for share in (observed, low, high)))
