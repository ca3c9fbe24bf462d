"""The interval behind every rate that Flawline prints (evaluation, demo and the host's counts)."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist
from typing import Any, NamedTuple


class Rate(NamedTuple):
    """``hits`` of ``total`` with its 95 % Wilson interval; the three rates are None where total is 0."""

    hits: int
    total: int
    rate: float | None
    low: float | None
    high: float | None

    def text(self) -> str:
        """``3 of 40, 7.5 % (2.6 to 19.9 %)``."""
        if self.rate is None or self.low is None or self.high is None:
            return f"{self.hits} of {self.total}"
        return f"{self.hits} of {self.total}, {100 * self.rate:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f} %)"


def rate(hits: int, total: int) -> Rate:
    """Binomial proportion with the Wilson score interval (E. B. Wilson, JASA 22, 1927) at 95 %."""
    if not 0 <= hits <= total:
        raise ValueError(f"hits must lie in 0..total, found {hits} of {total}")
    if total == 0:
        return Rate(0, 0, None, None, None)
    return Rate(hits, total, hits / total, *wilson(hits / total, total))


def wilson(share: float, total: float) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share of ``total`` independent looks, which need not be a whole number."""
    z = 1.959963984540054
    scale = 1 + z * z / total
    centre = (share + z * z / (2 * total)) / scale
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / scale
    return 0.0 if share == 0 else max(0.0, centre - half), 1.0 if share == 1 else min(1.0, centre + half)


def rate_fields(name: str, value: Rate | None) -> dict[str, Any]:
    """JSON keys of a rate: ``<name>_rate`` as a number, ``_interval`` as [low, high], ``_hits`` and ``_of``.

    Rate and interval are null where nothing was counted; all four where ``value`` is None, the truth unknown.
    """
    hits, total, share, low, high = (None,) * 5 if value is None else value
    return {
        f"{name}_rate": share,
        f"{name}_interval": None if low is None else [low, high],
        f"{name}_hits": hits,
        f"{name}_of": total,
    }


def student_quantile(q: float, degrees: int) -> float:
    """Quantile of Student's t, q from 0.5 on: Fisher's series (Abramowitz and Stegun 26.7.5), within 0.1 % from 5
    degrees of freedom on."""
    z, n = NormalDist().inv_cdf(q), degrees
    terms = (
        (z**3 + z) / (4 * n),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3),
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * n**4),
    )
    return z + math.fsum(terms)


@lru_cache(maxsize=4096)
def beta_quantile(q: float, a: int, b: int) -> float:
    """Quantile of Beta(a, b) for whole a, b >= 1: bisection on a binomial tail, exact to 1e-12."""
    low, high = 0.0, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if _beta_cdf(middle, a, b) < q else (low, middle)
    return (low + high) / 2


def _beta_cdf(x: float, a: int, b: int) -> float:
    """P(Beta(a, b) <= x) = P(Binomial(a+b-1, x) >= a)."""
    if not 0 < x < 1:
        return float(x >= 1)
    n = a + b - 1
    return math.fsum(math.exp(log_binomial(j, n, x)) for j in range(a, n + 1))


def log_binomial(hits: int, n: int, p: float) -> float:
    """log P(Binomial(n, p) = hits) for 0 < p < 1."""
    choose = math.lgamma(n + 1) - math.lgamma(hits + 1) - math.lgamma(n - hits + 1)
    return choose + hits * math.log(p) + (n - hits) * math.log1p(-p)
